"""The example that trains a language model: its parts, and a small run of the command."""

import json
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_proc
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples are not part of an installed package", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))
try:
    import byte_pairs
    import language_model
finally:
    sys.path.remove(str(EXAMPLES))

import torch.nn.functional as F  # noqa: E402
from bench_scripts import readme_tables  # noqa: E402

import pyce.torch  # noqa: E402
from pyce import _cli  # noqa: E402

Loss = language_model.Loss
TINY = replace(language_model.SMALL, vocabulary=300, width=16, steps=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokens():
    return torch.tensor(list(language_model.standard_library(10)[0] * 9))


# ---------------------------------------------------------------------------------------------
# The command


def test_a_small_run(run_python, tmp_path):
    script = EXAMPLES / "language_model.py"
    folder, extra = tmp_path / "new" / "folder", tmp_path / "extra.json"
    options = ["--small", "--threads", "1", "--seed", "3", "--output", folder, "--json", extra]
    said = run_python(script, *options).stdout
    figures = json.loads(extra.read_text())
    settings = figures["settings"]
    assert (settings["steps"], settings["seed"], settings["vocabulary"]) == (12, 3, 512)
    when = r"20\d\d-\d\d-\d\d( at commit [0-9a-f]{9})?"
    assert re.match(rf"{when} on .* with 1 threads", figures["machine"])

    names = ("PyTorch", "pyce", "pyce-linear", language_model.NUDGED)
    theirs, ours, fused, nudged = (figures["trainings"][name] for name in names)
    for training in (theirs, ours, fused, nudged):
        assert len(training["losses"]) == len(training["differences"]) == 12
        assert 0 < training["loss"] <= training["head and loss"] < training["step"]
        assert 0 < training["share"] < 1
        assert training["losses"][-1] < training["losses"][0] - 0.05
        # A trained model that cannot see the targets has a lower loss than guessing.
        assert 1 < training["held_out"] < np.log(512)
    assert abs(theirs["losses"][0] - np.log(512)) < 0.1
    # Some units in the last place of a loss of 6, amplified by a dozen steps.
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(nudged["losses"], theirs["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fused["losses"], theirs["losses"], rtol=0, atol=1e-4)
    assert max(theirs["differences"]) == 0
    for training in (ours, fused):
        assert abs(training["held_out"] - theirs["held_out"]) < 1e-4
        apart = np.abs(np.subtract(training["losses"], theirs["losses"]))
        np.testing.assert_array_equal(training["differences"], apart)

    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report in said and "step 12/12" in said
    assert "12 steps with 128 × 512 logits" in report
    row = next(line for line in report.splitlines() if line.startswith("| a training step"))
    assert all(f"{1e3 * training['step']:.1f} ms" in row for training in (theirs, ours, fused))
    alone = next(line for line in report.splitlines() if line.startswith("| in it the loss alone"))
    assert alone.count("ms") == 2  # not of the training whose head and loss are one function
    picture = (folder / "language-model.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 10_000 < len(picture) < 100_000
    model, saved, coding = language_model.load(folder / "model.pt")
    assert saved == replace(language_model.SMALL, seed=3)
    _, held_out = language_model.split(saved)
    unseen = torch.tensor(coding.encode(b"\n".join(held_out)))
    training = language_model.Training(saved)
    training.model = model
    assert training.mean_loss(unseen, saved) == pytest.approx(theirs["held_out"], abs=1e-6)


def test_one_loss(tmp_path, monkeypatch):
    """`--loss` names what is trained besides PyTorch's loss."""
    monkeypatch.setattr(language_model, "SMALL", replace(TINY, steps=2, modules=12))
    options = ["--small", "--loss", "pyce-linear", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["language_model.py", *options])
    language_model.main()
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert list(figures["trainings"]) == ["PyTorch", "pyce-linear", language_model.NUDGED]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    header = next(line for line in report.splitlines() if line.startswith("|"))
    assert header.split("|")[2:-1] == [
        f" {name.rjust(len(cell) - 2)} "
        for name, cell in zip(("PyTorch", "pyce-linear"), header.split("|")[2:-1], strict=True)
    ]
    # On systems other than Linux the memory is not known, and the picture has no panel for it.
    heights = []
    for memory in (2**26, 0):
        for training in figures["trainings"].values():
            training["memory"] = memory
        language_model.draw(figures, tmp_path / "drawn.png")
        heights.append(int.from_bytes((tmp_path / "drawn.png").read_bytes()[20:24], "big"))
    assert heights[0] > heights[1]
    assert "memory that a step adds" not in language_model.report(figures)


@pytest.mark.parametrize("options", [["--steps", "0"], ["--threads", "-1"]])
def test_counts_that_can_not_be(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["language_model.py", *options])
    with pytest.raises(SystemExit) as end:
        language_model.main()
    assert end.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Text


def test_the_text_is_the_same_every_time(monkeypatch):
    loaded = set(sys.modules)
    texts = language_model.standard_library()
    assert set(sys.modules) == loaded
    assert len(texts) > 200 and sum(map(len, texts)) > 4e6
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *a: reversed(list(rglob(*a))))
    assert language_model.standard_library() == texts
    assert language_model.standard_library(20) == texts[:20]


@pytest.mark.parametrize("name", ["os.py", "json/decoder.py", "unittest/case.py", "doctest.py"])
def test_what_is_text(name):
    assert not language_model.LEFT_OUT.search(name)


@pytest.mark.parametrize(
    "name",
    [
        "site-packages/numpy/__init__.py",
        "dist-packages/six.py",
        "test/test_os.py",
        "idlelib/idle_test/htest.py",
        "lib2to3/tests/support.py",
        "encodings/cp037.py",
        "config-3.13-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
    ],
)
def test_what_is_left_out(name):
    assert language_model.LEFT_OUT.search(name)


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"sources of the standard library are not in"):
        language_model.standard_library()


def test_batches(tokens):
    first, again, other = (
        list(language_model.batches(tokens, replace(TINY, seed=seed), 3)) for seed in (0, 0, 1)
    )
    assert len(first) == 3
    for (inputs, targets), (inputs_again, _), (others, _) in zip(first, again, other, strict=True):
        assert inputs.shape == targets.shape == (TINY.batch, TINY.context)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs, inputs_again) and not torch.equal(inputs, others)
    assert not torch.equal(first[0][0], first[1][0])


# ---------------------------------------------------------------------------------------------
# Byte-pair encoding


def naive(texts, vocabulary):
    """The merges, with all pairs counted again for each, and the tokens of all texts."""
    words = [list(word) for text in texts for word in byte_pairs.WORD.findall(text)]
    merges = {}
    while 256 + len(merges) < vocabulary:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        token = merges[best] = 256 + len(merges)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [token]
                i += 1
    return merges, [token for word in words for token in word]


TEXTS = st.lists(st.text("ab c", max_size=60).map(str.encode), max_size=3)


@given(TEXTS, st.integers(256, 290))
def test_merges_are_those_of_counting_anew(texts, vocabulary):
    merges, encoded = naive(texts, vocabulary)
    coding = byte_pairs.BytePairs.train(texts, vocabulary)
    assert list(coding.merges.items()) == list(merges.items())
    assert [token for text in texts for token in coding.encode(text)] == encoded


def test_merges_of_a_real_text():
    text = (EXAMPLES / "byte_pairs.py").read_bytes()
    merges, encoded = naive([text], 400)
    coding = byte_pairs.BytePairs.train([text], 400)
    assert coding.merges == merges and len(coding.bytes) == 400
    assert coding.encode(text) == encoded and len(encoded) < len(text) / 2
    assert coding.decode(encoded) == text


CODING = byte_pairs.BytePairs.train([(EXAMPLES / "byte_pairs.py").read_bytes()], 600)


@example(bytes(range(256)))
@given(st.binary(max_size=60) | st.text().map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_come_back(text):
    tokens = CODING.encode(text)
    assert CODING.decode(tokens) == text
    assert all(0 <= token < len(CODING.bytes) for token in tokens)


def test_words():
    text = b"def f(x1):\n    return  x == 'na\xc3\xafve'"
    words = [b"def", b" f", b"(", b"x", b"1", b"):", b"\n   ", b" return", b" ", b" x", b" =="]
    words += [b" '", b"na\xc3\xafve", b"'"]
    assert byte_pairs.WORD.findall(text) == words


# ---------------------------------------------------------------------------------------------
# Model and training


def test_the_model_sees_no_future():
    torch.manual_seed(0)
    model = language_model.GPT(TINY)
    tokens = torch.randint(TINY.vocabulary, (2, TINY.context))
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % TINY.vocabulary
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert before.shape == (2, TINY.context, TINY.vocabulary)
    torch.testing.assert_close(after[:, :20], before[:, :20], rtol=0, atol=1e-6)
    assert ((after - before)[:, 20:].abs().amax(-1) > 1e-3).all()
    # It sees all previous tokens: the first one changes the prediction after the last.
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % TINY.vocabulary
    with torch.no_grad():
        assert ((model(changed) - before)[:, -1].abs().amax(-1) > 1e-6).all()


def test_the_model_knows_where_it_is():
    model = language_model.GPT(TINY)
    with torch.no_grad():
        logits = model(torch.zeros((1, TINY.context), dtype=int))[0]
    assert ((logits[1:] - logits[:-1]).abs().amax(-1) > 1e-4).all()


def test_the_model_is_as_large_as_told():
    count = sum(p.numel() for p in language_model.GPT(language_model.Settings()).parameters())
    assert 4e6 < count < 8e6
    assert language_model.Settings().vocabulary >= 32_000


def test_the_same_seed_gives_the_same_curve(tokens):
    same = language_model.train(tokens, TINY, {"one": Loss(), "other": Loss()})
    assert same["one"].losses == same["other"].losses
    assert len(same["one"].losses) == TINY.steps
    ours = {"one": Loss(pyce.torch.patched), "other": Loss(fused=True)}
    of_pyce = language_model.train(tokens, TINY, ours)
    np.testing.assert_allclose(of_pyce["one"].losses, of_pyce["other"].losses, rtol=1e-5)
    again = language_model.train(tokens, TINY, ours)
    assert all(again[name].losses == of_pyce[name].losses for name in ours)
    other = language_model.train(tokens, replace(TINY, seed=1), {"one": Loss()})
    assert other["one"].losses != same["one"].losses


def test_one_bit_is_changed(tokens):
    trainings = language_model.train(tokens, replace(TINY, steps=0))
    weights, nudged, *ours = (
        torch.cat([p.detach().flatten() for p in trainings[name].model.parameters()])
        for name in ("PyTorch", language_model.NUDGED, *language_model.OURS)
    )
    assert all(torch.equal(weights, those) for those in ours)
    bits = weights.view(torch.int32) ^ nudged.view(torch.int32)
    assert (bits != 0).sum() == 1
    changed = bits != 0
    np.testing.assert_array_max_ulp(weights[changed].numpy(), nudged[changed].numpy(), maxulp=1)


def test_each_loss_is_its_own(tokens, monkeypatch):
    """Steps take turns, also at being first, and call the function that the context sets."""
    called = []
    for who, module, function in (
        ("PyTorch", torch._C._nn, "cross_entropy_loss"),
        ("pyce", pyce.torch._patched, "cross_entropy"),
        ("pyce-linear", pyce.torch, "linear_cross_entropy"),
    ):
        original = getattr(module, function)

        def spy(*arguments, who=who, original=original, **options):
            called.append(who)
            return original(*arguments, **options)

        monkeypatch.setattr(module, function, spy)
    losses = dict(language_model.LOSSES)
    del losses[language_model.NUDGED]
    language_model.train(tokens, replace(TINY, steps=3), losses)
    turn = ["PyTorch", "pyce", "pyce-linear"]
    assert called == [*turn, *turn[1:], turn[0], turn[2], *turn[:2]]


class Slow(torch.autograd.Function):
    """The sum; the forward and the backward pass take a tenth of a second each."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        time.sleep(0.1)
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.1)
        return gradient.expand(ctx.shape)


@pytest.mark.parametrize("fused", [False, True])
def test_the_time_of_the_loss_is_its_own(tokens, monkeypatch, fused):
    training = language_model.Training(TINY, fused)
    inputs, targets = next(language_model.batches(tokens, TINY, 1))
    began = time.perf_counter()
    with monkeypatch.context() as patch:
        where, name = (pyce.torch, "linear_cross_entropy") if fused else (F, "cross_entropy")
        patch.setattr(where, name, lambda scores, *_: Slow.apply(scores))
        training.step(inputs, targets)
    taken = time.perf_counter() - began
    assert training.seconds[0]["loss"] >= 0.2
    assert sum(training.seconds[0].values()) <= taken
    assert training.seconds[0]["model"] + training.seconds[0]["head"] <= taken - 0.2

    def sleep(*_):
        time.sleep(0.1)

    training.model.norm.register_forward_hook(sleep)
    training.model.norm.register_full_backward_hook(sleep)
    began = time.perf_counter()
    training.step(inputs, targets)
    taken = time.perf_counter() - began
    assert training.seconds[1]["model"] >= 0.2
    assert training.seconds[1]["loss"] <= taken - 0.2

    training.optimizer.register_step_post_hook(sleep)
    training.step(inputs, targets)
    assert training.seconds[2]["optimizer"] >= 0.1


MEMORY = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import language_model
print(language_model.added_memory(lambda: np.ones(8_000_000)))
"""


@needs_proc
def test_the_memory_that_a_call_adds(run_python):
    """In a process of its own, since other tests may have left memory that the call can use."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the high-water mark can't be set")
    said = run_python("-c", MEMORY, os.path.dirname(language_model.__file__)).stdout
    assert 60e6 < int(said) < 120e6


def test_a_step_is_that_of_a_plain_loop(tokens):
    settings = replace(TINY, steps=5)
    training = language_model.train(tokens, settings, {"PyTorch": Loss()})["PyTorch"]
    torch.manual_seed(settings.seed)
    model = language_model.GPT(settings)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, betas=(0.9, 0.95))
    losses = []
    for inputs, targets in language_model.batches(tokens, settings, 5):
        loss = -model(inputs).log_softmax(-1).gather(-1, targets[..., None]).mean()
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(training.losses, losses, rtol=1e-5)


def test_the_time_of_the_head_is_its_own(tokens, monkeypatch):
    training = language_model.Training(TINY)
    inputs, targets = next(language_model.batches(tokens, TINY, 1))
    linear = F.linear

    def slow(hidden, weight, *bias):
        if weight is training.model.head:
            time.sleep(0.1)
        return linear(hidden, weight, *bias)

    monkeypatch.setattr(F, "linear", slow)
    training.step(inputs, targets)
    assert training.seconds[0]["head"] >= 0.1


def test_the_learning_rate_warms_up(tokens):
    training = language_model.Training(replace(TINY, steps=30))
    rates = []
    for inputs, targets in language_model.batches(tokens, TINY, 6):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.step(inputs, targets)
    np.testing.assert_allclose(rates, TINY.learning_rate * np.array([0.25, 0.5, 0.75, 1, 1, 1]))


# ---------------------------------------------------------------------------------------------
# The page


def test_the_page_gets_what_was_measured(tmp_path):
    page, measured = tmp_path / "page.md", tmp_path / "measured"
    page.write_text(
        "before\n<!-- language-model:begin -->\nold\n<!-- language-model:end -->\nafter\n"
    )
    options = readme_tables.parser().parse_args([str(page), "--language-model", str(measured)])
    with pytest.raises(_cli.Unusable, match=r"can't read .*report\.md: No such file"):
        readme_tables.main(options)
    assert "old" in page.read_text()
    measured.mkdir()
    (measured / "report.md").write_text("| a step |\n")
    (measured / "language-model.png").write_bytes(b"picture")
    assert readme_tables.main(options) == _cli.FINE
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- language-model:begin -->\n\n| a step |\n\n![The curves")
    assert text.endswith("(pictures/language-model.png)\n\n<!-- language-model:end -->\nafter\n")
    assert (tmp_path / "pictures" / "language-model.png").read_bytes() == b"picture"


def test_the_page_has_its_picture():
    docs = EXAMPLES.parent / "docs"
    assert "(pictures/language-model.png)" in (docs / "language-model.md").read_text("utf-8")
    assert (docs / "pictures" / "language-model.png").stat().st_size < 100_000
