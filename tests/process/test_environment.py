"""Settings from the environment: PYCE_BACKEND, PYCE_ISA, PYCE_NUM_THREADS and OMP_NUM_THREADS."""

import os
import sys

import pytest

import pyce

PRINT_BACKEND = "import pyce; print(pyce.get_backend())"


RUN = "import numpy as np, pyce; print(pyce.cross_entropy(np.eye(3), [0, 1, 2]))"


def test_backend_from_the_environment(backend, run_python):
    assert run_python("-c", PRINT_BACKEND, **backend.environment).stdout.split() == [backend.name]
    done = run_python("-c", "import pyce; print(pyce.info()['isa'])", **backend.environment)
    if backend.isa:
        assert done.stdout.split() == [backend.isa]
    # A setting of the program takes precedence over the environment.
    code = f"import pyce; pyce.set_backend({backend.name!r}); print(pyce.get_backend())"
    done = run_python("-c", code, PYCE_BACKEND="numpy")
    assert done.stdout.split() == [backend.name]


def test_auto_from_the_environment(run_python):
    for value in ("auto", ""):
        done = run_python("-c", PRINT_BACKEND, PYCE_BACKEND=value)
        assert done.stdout.split() == [pyce.backends()[0]]


def test_unknown_backend_in_the_environment(run_python):
    done = run_python("-c", RUN, check=False, PYCE_BACKEND="cuda")
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError")
    for word in ("PYCE_BACKEND", "cuda", "auto", "c", "numba", "numpy"):
        assert word in error
    # Importing does not fail, only using it does.
    run_python("-c", "import pyce", PYCE_BACKEND="cuda")


def test_unknown_instruction_set_in_the_environment(c_backend, run_python):
    for variables in ({}, {"PYCE_BACKEND": "c"}):
        done = run_python("-c", RUN, check=False, PYCE_ISA="mmx", **variables)
        assert done.returncode
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("ValueError")
        assert "mmx" in error
        for isa in pyce.info()["isas"]:
            assert isa in error


@pytest.mark.skipif(sys.platform != "linux", reason="the environment may be of characters")
def test_bytes_that_are_no_text_in_the_environment(c_backend, run_python):
    for name in ("PYCE_BACKEND", "PYCE_ISA"):
        done = run_python("-c", RUN, check=False, **{name: os.fsdecode(b"\xff")})
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith(f"ValueError: {name} must be one of"), error


def test_numbers_that_are_long_or_of_other_digits(run_python):
    """Those of other programs count only if they are of the digits 0 to 9."""
    code = "import pyce; print(pyce.get_num_threads())"
    most = run_python("-c", code).stdout
    long = "9" * 5000
    for name in ("PYCE_NUM_THREADS", "OMP_NUM_THREADS"):
        assert run_python("-c", code, **{name: long}).stdout == most
    assert run_python("-c", code, PYCE_NUM_THREADS=f" {'0' * 5000}1 ").stdout.split() == ["1"]
    assert run_python("-c", code, LOCAL_WORLD_SIZE=long).stdout.split() == ["1"]
    for value in ("²", "١"):
        assert run_python("-c", code, OMP_NUM_THREADS=value, LOCAL_WORLD_SIZE=value).stdout == most


def test_number_of_threads_from_the_environment(run_python):
    code = "import pyce; print(pyce.get_num_threads())"
    assert run_python("-c", code, PYCE_NUM_THREADS="1").stdout.split() == ["1"]
    assert run_python("-c", code, OMP_NUM_THREADS="1").stdout.split() == ["1"]
    assert run_python("-c", code, OMP_NUM_THREADS="1,4").stdout.split() == ["1"]
    # Set later, for processes that the program starts, as by Dask.
    later = 'import os; os.environ["OMP_NUM_THREADS"] = "1"; print(pyce.get_num_threads())'
    without = run_python("-c", code, OMP_NUM_THREADS="").stdout
    assert run_python("-c", f"{code}; {later}", OMP_NUM_THREADS="").stdout == 2 * without
    # A setting of the program takes precedence over the environment.
    asked = "import pyce; pyce.set_num_threads(1); print(pyce.get_num_threads())"
    assert run_python("-c", asked, PYCE_NUM_THREADS="1000").stdout.split() == ["1"]
    both = run_python("-c", code, OMP_NUM_THREADS="1", PYCE_NUM_THREADS="1000")
    assert both.stdout == run_python("-c", code, PYCE_NUM_THREADS="1000").stdout


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "2x", "²", "٢", "000"])
def test_bad_number_of_threads_in_the_environment(run_python, value):
    code = "import pyce; print(pyce.get_num_threads())"
    done = run_python("-c", code, check=False, PYCE_NUM_THREADS=value)
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError")
    assert "PYCE_NUM_THREADS" in error
    assert value in error
