# Every target works on a fresh clone: it makes .venv and builds the extension first if need be.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
C_FILES := $(wildcard csrc/*.c csrc/*.h csrc/kernels/*.c csrc/kernels/*.h)
C_TESTS := $(wildcard tests/c/*.c tests/c/*.h)
EXTENSION := pyce/_pyce.abi3.so
# What each job needs beside the core, by the extras of pyproject.toml.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest hypothesis mpmath ml_dtypes
LINT_NEEDS := numpy ruff mypy clang-format
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax

.PHONY: help build test test-exhaustive lint format bench bench-full bench-peers bench-scaling accuracy accuracy-peers report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

test: .venv/.test $(EXTENSION) ## run the tests
	$(BIN)/python -m pytest

test-exhaustive: .venv/.test $(EXTENSION) ## the exponential at every float, on every instruction set (minutes)
	PYCE_TEST_EXHAUSTIVE=1 $(BIN)/python -m pytest -s tests/test_vmath.py

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

accuracy: .venv/.bench .venv/.test $(EXTENSION) ## errors of every backend in units in the last place: tables and pictures
	$(BIN)/python -m bench.accuracy

accuracy-peers: .venv/.peers .venv/.test $(EXTENSION) ## the same with PyTorch beside
	$(BIN)/python -m bench.accuracy

report: .venv/.bench .venv/.test ## put the last tables of bench-peers and accuracy-peers into the README
	$(BIN)/python -m bench.report --readme README.md
	$(BIN)/python -m bench.accuracy --readme README.md

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

.venv/.build: .venv/bin/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch $@
