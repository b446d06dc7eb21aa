"""Settings from the environment: PYCE_BACKEND, PYCE_ISA, PYCE_NUM_THREADS and OMP_NUM_THREADS."""

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


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "2x"])
def test_bad_number_of_threads_in_the_environment(run_python, value):
    code = "import pyce; print(pyce.get_num_threads())"
    done = run_python("-c", code, check=False, PYCE_NUM_THREADS=value)
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError")
    assert "PYCE_NUM_THREADS" in error
    assert value in error
