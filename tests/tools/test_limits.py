"""The waits of the tests have limits, and say what they waited for."""

import threading

import pytest
from conftest import join


def test_a_program_that_runs_too_long(run_python):
    code = "import time; print('so far', flush=True); time.sleep(100)"
    with pytest.raises(pytest.fail.Exception, match=r"still running after 1 s\nso far"):
        run_python("-c", code, timeout=1)


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
