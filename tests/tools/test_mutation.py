"""The lists of mutation testing match the sources. `make mutation` judges the mutants."""

from pathlib import Path

import pytest
from programs import listed

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "csrc").is_dir():
    pytest.skip("these are about the tree, not an installed package", allow_module_level=True)


def test_lists_match_the_sources():
    """Every mutant written by hand, and every equivalent one, changes lines that exist; and a rule
    names existing tests that judge every file.
    """
    files = {line.split()[1] for line in listed("mutation").splitlines()}
    assert files >= {
        *("csrc/kernels/finalize.inc.h", "csrc/kernels/partial.inc.h", "csrc/pool.c"),
        *("pyce/_backends/numpy.py", "pyce/_shards.py", "pyce/mpi.py", "pyce/jax/_losses.py"),
        *("pyce/_backends/numba/_rows.py", "pyce/numba/_c.py", "pyce/_threads.py"),
    }


def test_what_stands_between_functions_belongs_to_none(monkeypatch):
    """Else a function whose mutants have no effect would excuse the constants after it."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "tools" / "mutation"))
    from mutant import Mutant

    text = (ROOT / "csrc" / "plan.c").read_text(encoding="utf-8")
    for place, function in (
        ("grain < 1", "pyce_grain"),
        ("32768", ""),
        ("smooth = p->smoothing", "plan_coefficients"),
    ):
        start = text.index(place)
        assert Mutant("csrc/plan.c", start, start + 1, "0", "constant").function() == function


def test_a_comment_is_no_part_of_a_change_and_a_string_is(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "tools" / "mutation"))
    import mutant

    file = tmp_path / "file.py"
    file.write_text('a = 1\n# b\nc = "#", 2  # two\nd = 3\n', encoding="utf-8")
    start = file.read_text(encoding="utf-8").index("2")
    made = mutant.Mutant(str(file), start, start + 1, "3", "constant")
    assert made.hunk() == ("a = 1", 'c = "#", 2', 'c = "#", 3', "d = 3")
    assert made.line == 3
