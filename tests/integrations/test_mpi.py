"""`pyce.mpi` on 1 to 3 ranks of `mpiexec`; `mpi_ranks.py` has what they run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

if not importlib.util.find_spec("mpi4py"):
    pytest.skip("mpi4py is not installed", allow_module_level=True)

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PROGRAM = FOLDER / "mpi_ranks.py"


def mpiexec(ranks, *arguments, timeout=600):
    """Run Python on some ranks; returns the finished process, output and errors together."""
    # The wheels of MPI have their mpiexec with Python.
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = shutil.which("mpiexec", path=place)
    assert command, "mpi4py is installed, but there is no mpiexec"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYCE_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, FOLDER.parent, FOLDER)))
    environment["PYCE_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
    # Open MPI: more ranks than processors, and started by the administrator of a container.
    environment |= {
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    return subprocess.run(
        [command, "-n", str(ranks), sys.executable, "-m", "mpi4py", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module", params=[1, 2, 3])
def done(request):
    """All checks on some ranks."""
    return mpiexec(request.param, PROGRAM)


def check(done, name):
    assert name in done.stdout.splitlines(), done.stdout


def test_aligned_shards_have_the_bytes_of_one_process(done):
    check(done, "aligned_shards_have_the_bytes_of_one_process")


def test_any_shards_keep_the_accuracy(done):
    check(done, "any_shards_keep_the_accuracy")


def test_shapes_and_layouts(done):
    check(done, "shapes_and_layouts")


def test_errors_are_raised_on_all_ranks(done):
    check(done, "errors_are_raised_on_all_ranks")
    check(done, "a_rank_without_memory")


def test_communicators_and_threads(done):
    check(done, "other_communicators")
    check(done, "threads_with_a_communicator_each")
    assert done.returncode == 0, done.stdout


def test_a_killed_rank_ends_the_others():
    done = mpiexec(3, PROGRAM, "killed")
    assert done.returncode != 0
    assert "has a loss" not in done.stdout
    pids = done.stdout.partition("\n")[0].split()
    assert len(pids) == 3, done.stdout
    end = time.monotonic() + 100
    while any(map(running, pids)):
        assert time.monotonic() < end, done.stdout
        time.sleep(0.05)


def running(pid):
    """Whether there is such a process; one that nobody has waited for has ended, too."""
    try:
        os.kill(int(pid), 0)
        status = Path("/proc", pid, "status").read_text(encoding="utf-8")
    except ProcessLookupError:
        return False
    except OSError:  # there is no /proc, or the process has just ended
        return True
    return re.search(r"(?m)^State:\s*Z", status) is None


def test_the_program_of_the_page(tmp_path):
    page = (ROOT / "docs" / "mpi.md").read_text(encoding="utf-8")
    program = tmp_path / "head.py"
    program.write_text(re.search(r"(?s)```python\n(.*?)```", page)[1], encoding="utf-8")
    done = mpiexec(3, program)
    assert done.returncode == 0, done.stdout
    alone = mpiexec(1, program).stdout
    losses = [[float(v) for v in re.findall(r"\d+\.\d+", text)] for text in (done.stdout, alone)]
    assert len(losses[0]) > 2, done.stdout
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_pyce_imports_mpi4py_only_for_it(run_python):
    run_python("-c", "import sys, pyce; assert 'mpi4py' not in sys.modules")
    without = "import sys; sys.modules['mpi4py'] = None\nimport pyce.mpi"
    done = run_python("-c", without, check=False)
    assert "ImportError: pyce.mpi needs mpi4py and an MPI library" in done.stderr
    done = run_python("-c", "import pyce.mpi", check=False, MPI4PY_LIBMPI="/nowhere/libmpi.so")
    assert "ImportError: pyce.mpi needs mpi4py and an MPI library" in done.stderr


@pytest.mark.parametrize("level", ["funneled", "serialized"])
def test_threads_that_may_not_call_mpi(run_python, level):
    program = f"""
import threading, mpi4py
mpi4py.rc.thread_level = "{level}"
mpi4py.rc.initialize = False
import numpy as np, pyce.mpi
from mpi4py import MPI
errors = []
def call():
    try:
        print("loss", pyce.mpi.cross_entropy(np.zeros((1, 2)), [0]))
    except RuntimeError as error:
        errors.append(str(error))
call()
MPI.Init_thread(getattr(MPI, "THREAD_" + "{level}".upper()))
call()
thread = threading.Thread(target=call)
thread.start()
thread.join()
MPI.Finalize()
call()
print(errors)
"""
    done = run_python("-c", program)
    assert ("only the main thread may call it" in done.stdout) == (level == "funneled")
    assert done.stdout.count("loss") == (1 if level == "funneled" else 2)
    assert done.stdout.count("MPI is not initialized, or was finalized") == 2
