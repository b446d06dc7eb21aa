# Every target works on a fresh clone: it makes .venv and builds the extension first if need be.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
C_FILES := $(wildcard csrc/*.c csrc/*.h csrc/kernels/*.c csrc/kernels/*.h)
C_TESTS := $(wildcard tests/c/*.c)
EXTENSION := pyce/_pyce.abi3.so
# What each job needs beside the core, by the extras of pyproject.toml.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest hypothesis mpmath ml_dtypes threadpoolctl
STRESS_NEEDS := $(TEST_NEEDS) torch
LINT_NEEDS := numpy ruff mypy clang-format
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax

.PHONY: help build test test-stress sanitize-threads lint format bench bench-full bench-peers bench-scaling report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

test: .venv/.test $(EXTENSION) ## run the tests
	$(BIN)/python -m pytest

test-stress: .venv/.stress $(EXTENSION) ## fork a thousand times for each backend, with torch and Numba beside it
	PYCE_TEST_STRESS=1 $(BIN)/python -m pytest tests/test_forks.py

# What ThreadSanitizer can't see, forks, the same program does without it. Both run ten seconds.
THREADS_C := csrc/pyce.c csrc/dispatch.c csrc/pool.c csrc/kernels/isa_scalar.c tests/c/threads.c
THREADS_CC := $(CC) -std=gnu11 -O1 -g -ffp-contract=off -fno-math-errno -pthread

sanitize-threads: $(C_FILES) $(C_TESTS) ## run the pool's test program under ThreadSanitizer
	@mkdir -p build
	$(THREADS_CC) -fsanitize=thread $(THREADS_C) -o build/threads-tsan -lm
	$(THREADS_CC) $(THREADS_C) -o build/threads -lm
	$(shell setarch -R true 2>/dev/null && echo setarch -R) timeout 120 build/threads-tsan 10
	timeout 120 build/threads 10

lint: .venv/.lint ## check style, types, and the rules of the C sources
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES) $(C_TESTS)
	.ci/lint-c

format: .venv/.lint ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES) $(C_TESTS)

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

.venv/.stress: .venv/bin/python constraints.txt Makefile
	$(PIP) $(STRESS_NEEDS)
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

.venv/.build: .venv/bin/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch $@
