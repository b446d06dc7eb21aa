"""The measured tables of the README and of the documentation."""

import json
import re

import pytest
from bench_scripts import readme_tables
from run_files import ELEMENTS, run_of

from pyce import _cli
from pyce._check import findings


def test_peers_markdown_bolds_a_loss():
    text = readme_tables.peers_markdown(run_of(slower=[("64x10", "fused", "torch", 0.1)]))
    rows = [line for line in text.splitlines() if line.startswith("| 64x10, a test")]
    assert [re.findall(r"\*\*(.+?)\*\*", row) for row in rows] == [["0.45 ×"], []]
    assert "| workload | floor | pyce c | pyce numba | pyce numpy | torch | JAX + optax |" in text
    assert "1 thread" not in text and "digits" not in text
    goal = r"\| fused, time over the copy floor \| 2048x32000 \| ≤ 1.25 \| \*\*(.+)\*\* \|"
    assert float(re.search(goal, text)[1]) == pytest.approx(2, rel=0.05)
    assert "| two threads over one | 1024x1000 | ≤ 1.05 | 0.501 |" in text
    short = readme_tables.peers_markdown(
        run_of(slower=[("64x10", "fused", "torch", 0.1)]), full=False
    )
    assert rows[0] in short and "Loss alone" not in short and "| limit |" not in short
    assert re.search(r"Missed: .*time over the copy floor: 2048x32000 \S+ \(≤ 1.25\)", short)


def test_headline_says_what_was_measured():
    text = " ".join(readme_tables.headline(run_of()).split())
    assert "than in torch, JAX + optax at every shape measured" in text
    assert "2.5 to 4.5 times as fast with 32,000 classes and more" in text
    assert "at least 2.5 times with fewer" in text
    text = readme_tables.headline(run_of(slower=[("64x10", "fused", "torch", 0.1)]))
    assert "at most shapes measured" in text and "at least 0.45 times" in text


def test_torch_markdown_bolds_a_loss():
    times = {"pyce c": 2.0, "torch": 9.0, "torch.compile": 6.0, "pyce torch": 3.0}
    slow = [("64x10", "fused", "pyce torch", 4)]
    run = run_of(times=times, slower=slow)
    run.machine["versions"]["torch"] = "2.13"
    rows = [
        line.split(" | ")
        for line in readme_tables.torch_markdown(run).splitlines()
        if "a test" in line
    ]
    assert [row[0] for row in rows] == [f"| {name}, a test" for name in ELEMENTS]
    assert [row[-1] for row in rows] == ["**0.5** |", "2 |", "2 |"]


def test_replace_touches_only_what_is_between_the_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nz\n", encoding="utf-8")
    readme_tables.replace(path, "bench", "new ≤\n")
    expected = "a\n<!-- bench:begin -->\n\nnew ≤\n\n<!-- bench:end -->\nz\n"
    assert path.read_text(encoding="utf-8") == expected
    with pytest.raises(_cli.Unusable, match="accuracy:begin"):
        readme_tables.replace(path, "accuracy", "new")
    assert path.read_text(encoding="utf-8") == expected


def test_the_table_of_the_readme(tmp_path):
    about = {"numbers": 2, "right": 0.5, "median": 0.4, "99.9%": 1.0, "histogram": [2]}

    def of(loss, gradient):
        return {"loss": {**about, "max": loss}, "gradient": {**about, "max": gradient}}

    results = {
        "random": {"c": of(0.67, 1.88), "PyTorch": of(4.32, 2e7)},
        "text": {"c": of(0.5, 0.5), "PyTorch": of(1.0, 1.0)},
        "confident100": {"c": of(None, None), "PyTorch": of(None, findings.INFINITE)},
    }
    found = {
        "versions": {"Python": "3.12", "numpy": "2.4.6", "torch": "2.13.0"},
        "shapes": [[3000, 10], [3, 32000]],
        "results": {"float32": results},
    }
    saved, page = tmp_path / "accuracy.json", tmp_path / "README.md"
    saved.write_text(json.dumps(found))
    page.write_text("before\n<!-- accuracy:begin -->\nold\n<!-- accuracy:end -->\nafter\n")
    options = readme_tables.parser().parse_args([str(page), "--accuracy", str(saved)])
    assert readme_tables.main(options) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- accuracy:begin -->\n\nLargest errors in units")
    assert text.endswith("\n<!-- accuracy:end -->\nafter\n")
    assert "over 3000×10, 3×32000; those beyond 2 / 4 in bold" in text
    assert "numpy 2.4.6, torch 2.13.0." in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| float32 | c | PyTorch |",
        "| --- | ---: | ---: |",
        "| random | 0.67 / 1.88 | **4.32** / **2e7** |",
        "| confident by 100 | – / – | – / **∞** |",
    ]
    page.write_text("no markers")
    with pytest.raises(_cli.Unusable, match="must have the lines"):
        readme_tables.main(options)
