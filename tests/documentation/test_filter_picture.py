"""The drawing of time and error against the tolerance of the filter."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "drawings" / "filter_tolerance.py"
if not SCRIPT.is_file():
    pytest.skip("the documentation is not part of an installed package", allow_module_level=True)


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        spec = importlib.util.spec_from_file_location("filter_tolerance", SCRIPT)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return made


def test_times_and_errors_of_each_tolerance(script):
    rng = np.random.default_rng(0)
    hidden, head = (rng.normal(size=(n, 16)).astype(np.float32) for n in (64, 500))
    head[:100] *= 3.0
    head[100:] *= 0.01  # of small probability in every row
    labels = (hidden @ head.T).argmax(1)
    tolerances = [2.0**-12, 0.5]
    found = script.measure(hidden, head, labels, tolerances, 2)
    assert found["tolerances"] == [0.0, *tolerances]
    assert all(time > 0 for time in found["times"]) and len(found["times"]) == 3
    for name in ("input", "linear_weight"):
        exact, small, large = found[name]
        assert exact == 0 and small <= large
        assert 0 < large < 0.5, name

    svg = script.draw(found | {"machine": "some machine"})
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in svg and "var(--blue)" in svg
    assert "http://www.w3.org/1999/xlink" not in svg.replace(' xmlns:xlink="', "")


def test_labels_are_powers_of_two(script):
    assert [script.power_of_two(x) for x in (2.0**-16, 0.25, 1.0, 1024.0)] == [
        "2⁻¹⁶",
        "2⁻²",
        "2⁰",
        "2¹⁰",
    ]
    errors = [0.0, 0.0, 2.0**-20, 2.0**-9]
    found = {"tolerances": [0.0, 2.0**-12, 2.0**-10, 2.0**-8], "times": [3.1, 3.1, 3.0, 2.0]}
    svg = script.draw(found | {"input": errors, "linear_weight": errors, "machine": ""})
    # Nothing is drawn far outside of the picture, as an error of 0 would be.
    drawn = re.findall(r'<path d="([^"]*)"[^>]*fill: none', svg)
    places = [y for path in drawn for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", path)]
    places += re.findall(r'<use [^>]*y="(-?[\d.]+)"', svg)
    assert len(places) > 50 and max(abs(float(y)) for y in places) < 500


def test_the_states_of_a_trained_model(script, tmp_path):
    import byte_pairs
    import language_model
    import torch

    settings = language_model.SMALL
    model = language_model.GPT(settings)
    language_model.save(tmp_path / "model.pt", model, settings, byte_pairs.BytePairs({}))
    hidden, head, labels = script.states(tmp_path / "model.pt", 100)
    assert hidden.shape == (100, settings.width) and labels.shape == (100,)
    assert torch.equal(torch.from_numpy(head), model.head)
    text = b"\n".join(language_model.split(settings)[1])
    assert labels.tolist() == list(text[1:101])
