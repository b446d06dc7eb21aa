"""The table of the times of fits, which `make bench-fit` writes."""

import importlib

import numpy as np
import pytest
from bench_scripts import FOLDER, readme_tables

import pyce


@pytest.fixture
def fit_times(monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("pytest_benchmark")
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("fit_times")


def test_the_table_compares_both_solvers(fit_times, monkeypatch, tmp_path, capsys):
    data = {
        "small": lambda: fit_times.synthetic(200, 4, 3),
        "small, two classes": lambda: fit_times.synthetic(200, 4, 2),
        "many coefficients": lambda: fit_times.synthetic(400, 60, 20),
        "sparse": lambda: fit_times.text(300, 400, 3),
    }
    monkeypatch.setattr(fit_times, "DATA", data)
    name = f"fit-times-{pyce.info()['isa']}"
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n")
    options = fit_times.parser().parse_args(["--rounds", "1", "--write", str(page)])
    assert fit_times.main(options) == 0
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    assert text.splitlines()[2].startswith("Measured on 20")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    head, _, *rows = rows
    assert head == list(fit_times.HEAD)
    assert [row[:2] for row in rows] == [[n, d] for n in data for d in ("float64", "float32")]
    assert all(len(row) == len(head) for row in rows)
    newton = [i for i, title in enumerate(head) if "newton-cholesky" in title]
    newton.append(head.index("newton-cholesky") + 1)  # its iterations
    for row in rows:
        assert ({row[i] for i in newton} == {"–"}) == (not row[0].startswith("small"))
    # All three solve the same problem.
    for row in rows[:4]:
        ends = [float(row[i]) for i in range(head.index("objective, LogisticRegression"), 14)]
        assert len(ends) == 3
        np.testing.assert_allclose(ends, ends[0], rtol=1e-4)


def test_markers_that_are_missing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(readme_tables.Unusable, match="fit-times-avx2:begin"):
        readme_tables.replace(page, "fit-times-avx2", "text")
