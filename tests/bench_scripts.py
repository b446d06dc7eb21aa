"""The scripts of the folder bench, which is not installed, imported as modules."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "bench"
if not FOLDER.is_dir():
    pytest.skip("bench is not part of an installed package", allow_module_level=True)
sys.path.insert(0, str(FOLDER))
try:
    import baseline
    import goals
    import readme_tables
finally:
    sys.path.remove(str(FOLDER))

__all__ = ["FOLDER", "baseline", "goals", "readme_tables"]
