"""Programs that tests run and interrupt: each has a time limit, and Ctrl-C always reaches it."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyce

ROOT = Path(pyce.__file__).parents[1]
# A test suite that runs in the background may have been started with SIGINT ignored, which child
# processes inherit.
_PYCE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pyce", run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def running(*arguments, seconds=600, **options):
    """`python -m pyce` with these arguments, as a process; it is killed after this many seconds."""
    late = threading.Event()
    command = [sys.executable, "-c", _PYCE, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **options) as process:

        def kill():
            late.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            if late.is_set():
                pytest.fail(f"python -m pyce {' '.join(arguments)} took more than {seconds} s")
