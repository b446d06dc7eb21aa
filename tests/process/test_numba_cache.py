"""Numba's cache on disk: used by the next process, and never for other sources."""

import shutil
from pathlib import Path

import pytest

import pyce

pytest.importorskip("numba")

SOURCES = Path(pyce.__file__).parent / "_backends" / "numba"

# Numba prints these words with NUMBA_DEBUG_CACHE=1.
LOADED, SAVED = "data loaded from", "data saved to"

CALL = """
import numpy as np, pyce
from pyce import _threads
from pyce._backends.numba import _launch
pyce.set_backend('numba')
_threads._unlimited = lambda *most: 2.0
x, t = np.linspace(-9, 9, 4000), np.linspace(0, 1, 4000)
losses = [pyce.binary_cross_entropy(x, t)]
_launch.PARALLEL_WORK = 1
losses.append(pyce.binary_cross_entropy(x, t))
assert _launch._helpers.count == 1
assert losses[0] == losses[1] and 0 < losses[0] < 9, losses
"""


def test_the_next_process_compiles_nothing(run_python, tmp_path):
    variables = {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_DEBUG_CACHE": "1",
        "NUMBA_NUM_THREADS": "2",
    }
    first = run_python("-c", CALL, **variables).stdout
    assert (first.count(SAVED), first.count(LOADED)) == (2, 0), first
    second = run_python("-c", CALL, **variables).stdout
    assert (second.count(SAVED), second.count(LOADED)) == (0, 2), second


CHECK = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
import pyce
assert pyce.__file__.startswith({root!r})

def call(label):
    # What a new process does, without the second that Numba takes to be imported.
    for name in [n for n in sys.modules if n.startswith('pyce._backends.numba')]:
        del sys.modules[name]
    from pyce._backends.numba import _lanes, _launch
    labels = np.arange(3)
    print('==', label)
    check = _launch.entry_point(_lanes.count_valid, (labels,))
    assert check(labels, -100, 2) == -1 and check(labels, 0, 3) == 2
"""

EDIT = """
call('first')
for path in sorted(Path({root!r}).glob('pyce/_backends/numba/*.py')):
    call('before ' + path.name)
    path.write_text(path.read_text(encoding='utf-8') + '# edited\\n', encoding='utf-8')
    call(path.name)
"""


@pytest.fixture
def copied(tmp_path):
    """A copy of the package, whose sources may be edited."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(pyce.__file__).parent, tmp_path / "pyce", ignore=ignore)
    return str(tmp_path)


def test_a_change_of_any_module_invalidates_the_cache(run_python, tmp_path, copied):
    code = (CHECK + EDIT).format(root=copied)
    variables = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1"}
    turns = run_python("-c", code, **variables).stdout.split("== ")[1:]
    found = {}
    for turn in turns:
        label, _, text = turn.partition("\n")
        found[label] = (text.count(SAVED), text.count(LOADED))
    modules = sorted(path.name for path in SOURCES.glob("*.py"))
    assert len(modules) > 8
    assert found == {
        "first": (1, 0),
        **{f"before {name}": (0, 1) for name in modules},
        **dict.fromkeys(modules, (1, 0)),
    }


DAMAGE = """
call('first')
for suffix in ('nbc', 'nbi'):
    (path,) = Path({cache!r}).rglob('*.' + suffix)
    path.write_bytes(path.read_bytes()[:9])
    call(suffix)
    call(suffix)
"""


def test_damaged_files_are_passed_over(run_python, tmp_path, copied):
    cache = str(tmp_path / "cache")
    code = (CHECK + DAMAGE).format(root=copied, cache=cache)
    run_python("-c", code, NUMBA_CACHE_DIR=cache)
