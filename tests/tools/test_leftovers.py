"""A test that leaves a setting of its process changed fails, and the setting is put back."""

import re
from pathlib import Path

LEAVE = """
import gc, os, random, signal, sys, tracemalloc
import numpy as np
import pytest
from pyce import _arguments, _threads

CHANGES = {
    "the current directory": lambda: os.chdir("/"),
    "environment variables": lambda: os.environ.update(PYCE_ADDED="1", PATH="/bin"),
    "sys.path": lambda: sys.path.append("/"),
    "handlers of signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "gc.isenabled": gc.disable,
    "tracemalloc.is_tracing": tracemalloc.start,
    "sys.setswitchinterval": lambda: sys.setswitchinterval(1.0),
    "numpy.seterr": lambda: np.seterr(divide="raise"),
    "at_most of pyce._threads": lambda: _threads._at_most.set(1.0),
}

@pytest.mark.parametrize("setting", CHANGES)
def test_leaves(setting):
    CHANGES[setting]()

@pytest.fixture(scope="module")
def shared():
    os.environ["NUMBA_SHARED"] = "1"

def test_nothing(shared):
    assert os.environ["NUMBA_SHARED"] == "1"

def test_patches():
    _arguments.NAME = _arguments.output
    _arguments.output = None

def test_random_numbers():
    assert random.random() == random.Random(0).random()
    assert np.random.random() == np.random.RandomState(0).random()
"""

NEXT = """
import os
from pyce import _arguments

def test_everything_is_as_it_was():
    assert "NUMBA_SHARED" not in os.environ
    assert _arguments.output is _arguments.NAME
"""


def test_what_is_left_fails(run_python, tmp_path):
    (tmp_path / "test_a.py").write_text(LEAVE, encoding="utf-8")
    (tmp_path / "test_b.py").write_text(NEXT, encoding="utf-8")
    options = ["-q", "-p", "leftovers", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    tests = str(Path(__file__).parents[1])
    done = run_python("-m", "pytest", *options, str(tmp_path), check=False, PYTHONPATH=tests)
    said = done.stdout
    changed = re.findall(r"(?m)^(?!ERROR)(.+?): .* before, .* after$", said)
    assert set(changed) == {
        "the current directory",
        "environment variables",
        "sys.path",
        "handlers of signals",
        "gc.isenabled",
        "tracemalloc.is_tracing",
        "sys.setswitchinterval",
        "numpy.seterr",
        "at_most of pyce._threads",
        "pyce",
    }
    assert said.splitlines()[-1].startswith("13 passed, 10 errors")
