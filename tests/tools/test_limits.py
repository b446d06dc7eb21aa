"""The waits of the tests have limits, and say what they waited for."""

import threading
from pathlib import Path

import pytest
from conftest import join


def test_a_program_that_runs_too_long(run_python):
    code = "import time; print('so far', flush=True); time.sleep(1000)"
    for timeout in (1, 10, 100):  # it may take long to start
        with pytest.raises(pytest.fail.Exception, match=f"still running after {timeout} s") as e:
            run_python("-c", code, timeout=timeout)
        if "so far" in str(e.value):
            break
    assert f"still running after {timeout} s\nso far" in str(e.value)


def test_a_thread_that_runs_too_long():
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(100,), name="waiting", daemon=True)
    thread.start()
    with pytest.raises(pytest.fail.Exception, match=r"still running after 0\.1 s: waiting"):
        join([thread], 0.1)
    end.set()
    join([thread])


def test_hanging_tests_end(pytestconfig):
    """The process ends, with the stacks of all threads, when a test hangs."""
    assert 0 < float(pytestconfig.getini("faulthandler_timeout")) <= 7200
    assert pytestconfig.getini("faulthandler_exit_on_timeout")


def distributed(run_python, folder, files, *options):
    """The output of pytest in two processes that run the given files, without their times."""
    pytest.importorskip("xdist")
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    arguments = ["-p", "processes", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    tests = str(Path(__file__).parents[1])
    done = run_python(
        *("-m", "pytest", "-q", "--rootdir", str(folder), *arguments, *options, str(folder)),
        check=False,
        PYTHONPATH=tests,
    )
    assert done.returncode != 0
    return done.stdout


def test_files_that_take_long_come_early():
    processes = pytest.importorskip("processes", reason="pytest-xdist is not installed")
    names = {path.name for path in Path(__file__).parents[1].rglob("test_*.py")}
    assert names >= set(processes.SECONDS)
    sizes = [processes.size("tests/c/test_vmath.py", "ab")]
    sizes += [processes.size("a.py", "ab" * 1000), processes.size("b.py", "ab")]
    assert sizes == sorted(sizes, reverse=True)


PASSES = "def test_{}(): pass\n"


@pytest.mark.parametrize("files", [2, 7])
def test_a_process_that_ends(run_python, tmp_path, files):
    """Its test fails, once; all others run, whatever is left to do."""
    crash = "import os\ndef test_crash(): os._exit(1)\n"
    passing = "".join(PASSES.format(i) for i in range(2))
    programs = {"a": passing + crash + PASSES.format("last")}
    programs.update((f"b{i}", passing if i % 2 else crash) for i in range(1, files))
    said = distributed(run_python, tmp_path, programs)
    crashes, passed = 1 + (files - 1) // 2, 3 + 2 * (files // 2)
    assert said.splitlines()[-1].lstrip("= ").startswith(f"{crashes} failed, {passed} passed"), said
    assert said.count("node down") == crashes, said


def test_a_test_that_hangs(run_python, tmp_path):
    """If its process does not end at the test's own limit, all end."""
    files = {
        "a": "import time\ndef test_sleep(): time.sleep(1000)\n" + PASSES.format(1),
        "b": PASSES.format(1),
    }
    said = distributed(run_python, tmp_path, files, "-o", "faulthandler_timeout=8")
    assert "no test has ended for 12 s; running: test_a.py::test_sleep" in said
    assert said.splitlines()[-1].lstrip("= ").startswith("1 passed"), said
