"""The lists of mutation testing match the sources. `make mutation` judges the mutants."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_lists_match_the_sources():
    """Every mutant written by hand, and every equivalent one, is a change of a line that exists."""
    if not (ROOT / "csrc").is_dir():
        pytest.skip("the sources are not here")
    command = [sys.executable, str(ROOT / "tests" / "tools" / "mutation"), "--list"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    files = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"csrc/kernels/finalize.inc.h", "pyce/_backends/numpy.py"} <= set(files)
    assert any(file.startswith("pyce/_backends/numba/") for file in files)
