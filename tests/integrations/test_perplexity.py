"""The example that computes the perplexity of a language model: its parts, and a small run."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
EXAMPLES = Path(__file__).parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples are not part of an installed package", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))
try:
    import byte_pairs
    import language_model
    import perplexity
finally:
    sys.path.remove(str(EXAMPLES))

TINY = replace(language_model.SMALL, vocabulary=300, width=16, steps=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = language_model.GPT(TINY)
    with torch.no_grad():
        made.embedding.weight.mul_(40.0)  # so that probabilities differ
    return made


def test_a_small_run(run_python, tmp_path, monkeypatch, capsys):
    """The first run trains a model, the second one reads it; a text in a file has its surprise."""
    script, folder, text = EXAMPLES / "perplexity.py", tmp_path / "new", tmp_path / "text.txt"
    text.write_bytes("def f(x):\n    return 'na\u00efve <&>'\n".encode() * 3)
    options = ["--small", "--output", str(folder)]
    more = ["--threads", "1", "--tokens", "300", "--rows", "64"]
    first = run_python(script, *options, *more).stdout
    assert "training a model first" in first and "step 12/12" in first
    figures = json.loads((folder / "perplexity.json").read_text("utf-8"))
    assert len(figures["surprise"]) == 299
    ours, theirs = figures["perplexity"].values()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours == pytest.approx(np.exp(np.mean(figures["surprise"])), rel=1e-5)
    assert 50 < ours < 512  # better than guessing
    assert 0 <= figures["difference"] <= figures["bound"] < 1e-3

    monkeypatch.setattr(sys, "argv", [str(script), *options, "--text", str(text)])
    perplexity.main()
    said = capsys.readouterr().out
    assert "training" not in said
    assert (folder / "perplexity.md").read_text("utf-8") in said
    figures = json.loads((folder / "perplexity.json").read_text("utf-8"))
    assert "tokens of text.txt" in said and len(figures["surprise"]) > 30
    bits = sum(figures["surprise"]) / np.log(2) / figures["bytes"]
    assert f"{bits:.3f} bits per byte" in said
    picture = ElementTree.parse(folder / "perplexity.svg").getroot()
    shown = "".join(picture.itertext())
    assert "return 'na\u00efve <&>'\u21b5" in shown and "prefers-color-scheme: dark" in shown


@pytest.mark.parametrize("count", [2, 3, 32, 33, 34, 100, 1000])
@pytest.mark.parametrize("context", [1, 2, 7, 32])
def test_each_token_is_predicted_once(count, context):
    """From at least half a context before it, unless the text begins there."""
    predicted = []
    for start, skipped in perplexity.windows(count, context):
        width = min(context, count - 1)
        for position in range(skipped, width):
            predicted.append(start + position)
            assert position >= width // 2 or start == 0
        assert 0 <= start <= count - 1 - width
    assert predicted == list(range(count - 1))


@pytest.mark.parametrize("rows", [1, 40, 10_000])
def test_surprise_of_each_token(model, rows):
    tokens = torch.randint(300, (101,), generator=torch.Generator().manual_seed(1))
    figures = perplexity.measure(model, tokens, TINY.context, rows)
    expected = []
    with torch.no_grad():
        for start, skipped in perplexity.windows(101, TINY.context):
            part = tokens[start : start + TINY.context + 1]
            log_probs = model(part[None, :-1])[0].double().log_softmax(-1)
            expected.append(-log_probs.gather(1, part[1:, None])[skipped:, 0])
    np.testing.assert_allclose(figures["surprise"], torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert len(figures["surprise"]) == 100
    assert all(way["seconds"] > 0 for way in figures["ways"].values())


@pytest.mark.parametrize("error", [1e-2, np.nan])
def test_ways_that_differ(model, error):
    """More than rounding explains, or NaN: the program ends and reports nothing."""

    def wrong(*arguments):
        surprise = perplexity.by_pyce(*arguments).copy()
        surprise[3] += error
        return surprise

    ways = {"PyTorch": perplexity.by_pytorch, "pyce": wrong}
    with pytest.raises(SystemExit, match=r"PyTorch and pyce differ by (0.01|nan), more than"):
        perplexity.measure(model, torch.arange(40), TINY.context, 64, ways)


def test_the_bound_holds(model):
    """With logits from products in float64 as well."""
    hidden = 8 * torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(200) % 300
    head = model.head.detach()
    exact = perplexity.by_pytorch(hidden.double(), head.double(), targets)
    most = perplexity.bound(hidden, head)
    assert most < 0.1
    for way in perplexity.WAYS.values():
        assert np.abs(way(hidden, head, targets) - exact).max() <= most


def test_the_picture_has_every_token(tmp_path):
    text = (EXAMPLES / "byte_pairs.py").read_bytes()[:600] + b"x" * 300 + b"\t\x00\xff"
    coding = byte_pairs.BytePairs.train([text], 300)
    pieces = [coding.bytes[token] for token in coding.encode(text)]
    surprise = [0.07 * i for i in range(len(pieces))]
    perplexity.draw(pieces, surprise, "a <title>", tmp_path / "picture.svg")
    root = ElementTree.parse(tmp_path / "picture.svg").getroot()
    names = {"svg": "http://www.w3.org/2000/svg"}
    lines = [line.text for line in root.findall(".//svg:text[@class='code']", names)]
    shown = "".join(lines).replace("\u21b5", "\n")
    assert shown == text.decode("utf-8", "replace").replace("\t", "    ").replace("\0", "\u00b7")
    assert max(map(len, lines)) == perplexity.COLUMNS
    marks = root.findall(".//svg:rect", names)
    used = [
        re.search(r"s(\d)", mark.get("class"))[1]
        for mark in marks
        if mark.get("y") != "36" and "mark" in mark.get("class")
    ]
    assert used == sorted(used) and set(used) == set(map(str, range(perplexity.SHADES)))


@pytest.mark.parametrize("options", [["--tokens", "1"], ["--rows", "0"], ["--threads", "-1"]])
def test_counts_that_can_not_be(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["perplexity.py", *options])
    with pytest.raises(SystemExit) as end:
        perplexity.main()
    assert end.value.code == 2
    assert "at least" in capsys.readouterr().err


def test_a_text_without_tokens_to_predict(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.pt"
    language_model.save(path, language_model.GPT(TINY), TINY, byte_pairs.BytePairs({}))
    (tmp_path / "one").write_bytes(b"a")
    options = ["--model", str(path), "--text", str(tmp_path / "one"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["perplexity.py", *options])
    with pytest.raises(SystemExit):
        perplexity.main()
    assert "fewer than two tokens" in capsys.readouterr().err
    assert not list(tmp_path.glob("perplexity*"))
