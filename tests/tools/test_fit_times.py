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


def test_the_tables_compare_each_solver(fit_times, monkeypatch, tmp_path, capsys):
    data = {
        "lbfgs": {
            "many coefficients": lambda: fit_times.synthetic(400, 60, 20),
            "sparse": lambda: fit_times.text(300, 400, 3),
        },
        "newton-cholesky": {"two classes": lambda: fit_times.unscaled(200, 4, 2)},
    }
    monkeypatch.setattr(fit_times, "DATA", data)
    name = f"fit-times-{pyce.info()['isa']}"
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n")
    options = fit_times.parser().parse_args(["--seconds", "0", "--write", str(page)])
    assert fit_times.main(options) == 0
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    assert text.splitlines()[2].startswith("Measured on 20")
    head = list(fit_times.HEAD)
    first = head.index("objective, LogisticRegression")
    for solver, of_solver in data.items():
        after = text.split(f'`solver="{solver}"`')[1].split("`solver=")[0]
        rows = [line.strip("| ").split(" | ") for line in after.splitlines() if line[:1] == "|"]
        assert rows[0] == head
        expected = [[n, d] for n in of_solver for d in ("float64", "float32")]
        assert [row[:2] for row in rows[2:]] == expected
        for row in rows[2:]:
            assert len(row) == len(head)
            # Both solve the same problem.
            theirs, ours = map(float, row[first : first + 2])
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_markers_that_are_missing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(readme_tables.Unusable, match="fit-times-avx2:begin"):
        readme_tables.replace(page, "fit-times-avx2", "text")
