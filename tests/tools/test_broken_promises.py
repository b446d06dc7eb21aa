"""The tables of the breaks match docs/semantics.md, docs/promises.md and the sources.

`make broken-promises` makes the breaks.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "csrc").is_dir():
    pytest.skip("these are about the tree, not an installed package", allow_module_level=True)


def test_every_line_has_a_break_that_applies():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tools" / "broken_promises"), "--list"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Semantics" in done.stdout
