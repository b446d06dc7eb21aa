# Every target works on a fresh clone: it makes .venv and builds the extension first if need be.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
C_FILES := $(wildcard csrc/*.c csrc/*.h csrc/kernels/*.c csrc/kernels/*.h)
EXTENSION := pyce/_pyce.abi3.so
# What each job needs beside the core, by the extras of pyproject.toml.
TEST_NEEDS := numpy cffi setuptools wheel numba pytest hypothesis mpmath ml_dtypes
LINT_NEEDS := numpy ruff mypy clang-format
BENCH_NEEDS := numpy cffi setuptools wheel numba pytest pytest-benchmark scikit-learn ml_dtypes rich matplotlib
PEER_NEEDS := $(BENCH_NEEDS) torch jax optax

.PHONY: help build test fuzz-python lint format bench bench-full bench-peers bench-scaling report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: $(EXTENSION) ## build the C extension in place

test: .venv/.test $(EXTENSION) ## run the tests
	$(BIN)/python -m pytest

fuzz-python: .venv/.test $(EXTENSION) ## look for inputs that break a law of tests/test_properties.py: minutes
	PYCE_FUZZ_EXAMPLES=$${PYCE_FUZZ_EXAMPLES:-50} $(BIN)/python -m pytest tests/test_properties.py

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

.venv/.build: .venv/bin/python constraints.txt Makefile
	$(PIP) numpy cffi setuptools wheel
	@touch $@

$(EXTENSION): .venv/.build setup.py csrc/build_ffi.py $(C_FILES)
	PYCE_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 1
	@touch $@
