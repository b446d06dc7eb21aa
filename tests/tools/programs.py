"""Programs that tests run, each with a time limit; Ctrl-C always reaches `python -m pyce`."""

import contextlib
import os
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


def listed(name):
    """The list that the tool in tests/tools/NAME prints; fails with its message if it is wrong."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tools" / name), "--list"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
