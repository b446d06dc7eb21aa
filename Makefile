# Every target works on a fresh clone: it makes .venv and builds the extension first if need be.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PYTHON_HERE := $(CURDIR)/$(BIN)/python
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
C_FILES := $(wildcard csrc/*.c csrc/*.h csrc/kernels/*.c csrc/kernels/*.h)
EXTENSION := pyce/_pyce.abi3.so
# What each job needs beside the core, by the extras of pyproject.toml.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest hypothesis mpmath ml_dtypes
LINT_NEEDS := numpy ruff mypy clang-format
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax
PEER_TEST_NEEDS := $(TEST_NEEDS) torch jax optax scikit-learn onnx onnxruntime \
	"tensorflow-cpu; python_version < '3.14' and platform_machine == 'x86_64'"

AARCH64 := aarch64-linux-gnu-
C_TESTS := $(MAKE) --no-print-directory -C tests/c
RECORD := PYTHONPATH=. $(BIN)/python tests/golden.py --record -
SANITIZED := build/sanitized
# Inlined as for speed, the kernels would take the sanitizers minutes to compile.
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
	"-DINLINE=static __attribute__((noinline,unused))"
# $(call need,COMMAND,PACKAGES): stop with a word on what to install where a command is missing.
need = @command -v $(1) >/dev/null || { echo "$(1) is needed (Debian: apt-get install $(2))"; exit 1; }

.PHONY: help build test test-peers test-aarch64 valgrind sanitize mutation mutation-all lint format bench bench-full bench-peers bench-scaling report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

test: .venv/.test $(EXTENSION) ## run the tests
	$(BIN)/python -m pytest

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
# of the tree. Numba's and NumPy's own kernels have no C of ours to look at.
sanitize: .venv/.test $(EXTENSION) ## the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(C_TESTS) OUT=../../$(SANITIZED)/c CFLAGS="$(SANITIZE)" replay
	$(RECORD) | $(SANITIZED)/c/replay
	cp -r csrc pyce tests bench docs setup.py pyproject.toml README.md Makefile $(SANITIZED)
	cd $(SANITIZED) && rm -f pyce/*.so && CFLAGS="$(SANITIZE)" PYCE_REQUIRE_C=1 \
		$(PYTHON_HERE) setup.py --quiet build_ext --inplace --parallel 2
	cd $(SANITIZED) && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(PYTHON_HERE) -m pytest -k "not numba and not numpy"

# SEED=… draws other mutants.
mutation: .venv/.test $(EXTENSION) ## whether tests see changes of the code: a sample, some ten minutes
	$(BIN)/python tests/mutate.py --sample 60 --seed $(or $(SEED),0) --jobs 2

mutation-all: .venv/.test $(EXTENSION) ## the same with every mutant: many hours
	$(BIN)/python tests/mutate.py --all --jobs 2 --resume

test-peers: .venv/.test-peers $(EXTENSION) ## show where other libraries differ, by running them
	$(BIN)/python -m pytest tests/test_peers.py tests/test_docs.py

lint: .venv/.lint ## check style, types, and the rules of the C sources
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	.ci/lint-c

format: .venv/.lint ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: .venv/.bench $(EXTENSION) ## measure every backend on the tracked shapes: table and pictures
	$(BIN)/python -m bench

bench-full: .venv/.bench $(EXTENSION) ## the same with every workload
	$(BIN)/python -m bench --full

bench-peers: .venv/.peers $(EXTENSION) ## side by side with other libraries and with the goals
	$(BIN)/python -m bench.compare

bench-scaling: .venv/.bench $(EXTENSION) ## cost per element from 10^6 to 10^9 elements (8 GB)
	$(BIN)/python -m bench.scaling

report: .venv/.bench ## put the last bench-peers table into the README
	$(BIN)/python -m bench.report --readme README.md

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

.venv/.test-peers: .venv/bin/python constraints.txt Makefile
	$(PIP) $(PEER_TEST_NEEDS)
	@touch $@

.venv/.build: .venv/bin/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch $@
