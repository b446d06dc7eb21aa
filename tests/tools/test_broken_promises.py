"""The tables of the breaks match docs/semantics.md, docs/promises.md and the sources.

`make broken-promises` makes the breaks.
"""

from pathlib import Path

import pytest
from programs import listed

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "csrc").is_dir():
    pytest.skip("these are about the tree, not an installed package", allow_module_level=True)


def test_every_line_has_a_break_that_applies():
    assert "Semantics" in listed("broken_promises")
