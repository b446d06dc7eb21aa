"""bench/ranks.py and its picture: the cost model, and a small measurement."""

import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import pyce
from pyce import _shards
from pyce._backends import load

torch = pytest.importorskip("torch")
pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)
if "c" not in pyce.backends():
    pytest.skip("the model is that of the C backend", allow_module_level=True)

from bench_scripts import FOLDER  # noqa: E402

SCRIPT = FOLDER.parent / "docs" / "drawings" / "several_machines.py"


@pytest.fixture(scope="module")
def ranks():
    sys.path.insert(0, str(FOLDER))
    try:
        import ranks
    finally:
        sys.path.remove(str(FOLDER))
    return ranks


def test_classes_and_states_are_those_of_the_code(ranks):
    """All classes are somewhere, and a rank sends the state that the C backend computes."""
    for count in (*ranks.RANKS, 3, 5):
        of_ranks = [ranks.classes_of(count, rank) for rank in range(count)]
        assert sum(of_ranks) == ranks.VOCABULARY
        p = _shards.local_problem(
            np.zeros((1, 4), np.float32),
            np.zeros(1, int),
            vocab_size=None,
            ignore_index=-100,
            label_smoothing=0.0,
            reduction="mean",
            lse_square_scale=0.0,
            what="logits",
        )
        p.classes, p.bounds, p.own = sum(of_ranks), (0, *np.cumsum(of_ranks).tolist()), 0
        if count > 1:
            size = max(load("c").state_size(p, classes) for classes in of_ranks)
            assert ranks.state_bytes(count) == 8 * size
    assert ranks.blocks_of(64) == 128
    assert ranks.blocks_of(512) == 512


def test_a_small_measurement(ranks, monkeypatch, tmp_path, capsys):
    """Of the rank that is measured alone; processes have figures of their own."""
    monkeypatch.setattr(ranks, "ELEMENTS", 2**18)
    monkeypatch.setattr(ranks, "ROWS", 64)
    processes = {
        n: {"computing": 1e-4, "sending": 1e-5, "wall": 2e-4, "sent": ranks.state_bytes(n)}
        for n in ranks.PROCESSES
    }
    monkeypatch.setattr(ranks, "processes", lambda *_: processes)
    name = f"ranks-{pyce.info()['isa']}"
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n")
    options = ["--rounds", "1", "--write", str(page), "--output", str(figures)]
    assert ranks.main(ranks.parser().parse_args(options)) == 0
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    shown = [int(row[0]) for row in rows if row[0].isdigit()]
    assert shown == [*ranks.PROCESSES, *ranks.SHOWN]
    assert len({len(row) for row in rows[:6]}) == len({len(row) for row in rows[6:]}) == 1

    found = json.loads(figures.read_text(encoding="utf-8"))
    costs = ranks.Costs(**found["all threads"])
    most = ranks.FITTED[-1]  # from whose time a constant was computed
    model = costs.computing(most, ranks.rows_for(most))
    assert model == pytest.approx(found["ranks"][str(most)], rel=1e-9)
    parts = costs.parts(8, 64, 1e9)
    assert parts["network"] == 7 * 8 * (1 + 2 * 16) / 1e9
    svg = drawing().draw(found)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in svg


def drawing():
    if not SCRIPT.is_file():
        pytest.skip("the documentation is not part of an installed package")
    spec = importlib.util.spec_from_file_location("several_machines", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_processes_send_what_the_model_says(ranks, monkeypatch):
    """Each of them checks its loss."""
    monkeypatch.syspath_prepend(str(FOLDER))  # they import the script
    found = ranks.processes((1, 2), 2, 1)
    for count, about in found.items():
        assert about["sent"] == ranks.state_bytes(count)
        assert about["computing"] > 0 and about["wall"] > 0
