"""minibatches, evaluate and train of pyce.training."""

import io
import itertools
import re

import numpy as np
import pytest
from conftest import one_isa
from training_cases import CLASSIFIERS, batch, blobs

import pyce
from pyce.training import SGD, evaluate, minibatches, train


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    return CLASSIFIERS[request.param]


# ---------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (10, 5), (10, 10), (10, 99), (10, 1), (0, 4)])
def test_every_sample_is_in_one_batch(rows, size):
    x, y = np.arange(rows * 2).reshape(rows, 2), np.arange(rows)
    batches = list(minibatches(x, y, size, seed=0))
    assert [len(b) for _, b in batches] == [size] * (rows // size) + [rows % size] * (
        rows % size > 0
    )
    seen = [label for _, b in batches for label in b]
    assert sorted(seen) == list(range(rows))
    for a, b in batches:
        np.testing.assert_array_equal(a, x[b])
    assert rows < 2 or seen != list(range(rows))


def test_a_generator_gives_every_epoch_another_order():
    x, rng = np.arange(20), np.random.default_rng(0)

    def orders(seed):
        return [np.concatenate([b for _, b in minibatches(x, x, 6, seed)]).tolist() for _ in "ab"]

    assert len(set(map(tuple, orders(rng)))) == 2
    assert len(set(map(tuple, orders(1)))) == 1


def test_batches_are_copies():
    x = np.zeros((4, 2))
    for a, _ in minibatches(x, np.zeros(4), 2):
        a += 1
    assert not x.any()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1, 2], [1], 1), ValueError, "differ in length"),
        ((1, 2, 1), ValueError, "differ in length"),
        ((1, [2], 1), ValueError, "differ in length"),
        (([1], 2, 1), ValueError, "differ in length"),
        (([1], [1], 0), ValueError, "size must be at least 1, got 0"),
        (([1], [1], 1.5), TypeError, "integer"),
    ],
)
def test_batches_that_cant_be(arguments, error, words):
    with pytest.raises(error, match=words):
        minibatches(*arguments)  # before the first batch is asked for


# ---------------------------------------------------------------------------------------------
# Evaluation


@one_isa
def test_evaluating_in_parts_is_evaluating_the_whole(classifier, backend):
    model = classifier(dtype=np.float64)
    x, y = batch(2500)
    loss, accuracy = evaluate(model, x, y)
    np.testing.assert_allclose(loss, pyce.cross_entropy(model.logits(x), y), rtol=1e-12)
    np.testing.assert_allclose(accuracy, pyce.accuracy(model.logits(x), y), rtol=1e-12)
    y[1000:2400] = -100
    y[1030] = 1
    loss, accuracy = evaluate(model, x, y)
    np.testing.assert_allclose(loss, pyce.cross_entropy(model.logits(x), y), rtol=1e-12)
    np.testing.assert_allclose(accuracy, pyce.accuracy(model.logits(x), y), rtol=1e-12)
    soft = np.eye(4)[np.maximum(y, 0)]
    loss, accuracy = evaluate(model, x, soft)
    np.testing.assert_allclose(loss, pyce.cross_entropy(model.logits(x), soft), rtol=1e-12)
    np.testing.assert_allclose(accuracy, pyce.accuracy(model.logits(x), soft), rtol=1e-12)


def test_evaluating_nothing(classifier):
    for x, y in ((np.zeros((0, 6)), np.zeros(0, int)), (np.zeros((3, 6)), np.full(3, -100))):
        assert np.isnan(evaluate(classifier(), x, y)).all()
    with pytest.raises(ValueError, match="differ in length"):
        evaluate(classifier(), np.zeros((3, 6)), [1])


# ---------------------------------------------------------------------------------------------
# Training


@one_isa
def test_training_learns_and_returns_its_history(classifier, backend):
    model = classifier()
    x, y = blobs()
    begun = evaluate(model, x, y)
    optimizer = SGD(model.parameters, lr=0.1, momentum=0.9)
    held_out = blobs(1)
    history = train(
        model, x, y, optimizer, epochs=6, batch_size=32, held_out=held_out, seed=0, progress=False
    )
    assert [len(numbers) for numbers in vars(history).values()] == [6] * 4
    assert history.loss[-1] < begun[0] / 4 and history.accuracy[-1] > 0.9
    assert (history.loss[-1], history.accuracy[-1]) == evaluate(model, x, y)
    last = history.held_out_loss[-1], history.held_out_accuracy[-1]
    assert last == evaluate(model, *held_out)
    assert history.held_out_accuracy[-1] > 0.9


def test_training_is_the_loop_written_out(classifier):
    """`train` equals the loop written out, with smoothing and a schedule."""
    x, y = blobs()
    histories = []
    for by_hand in (True, False):
        model = classifier()
        optimizer = SGD(model.parameters, lr=9.0, nesterov=True, momentum=0.5)
        rng = np.random.default_rng(5)
        if by_hand:
            done = itertools.count()
            for _ in range(2):
                for some, labels in minibatches(x, y, 64, rng):
                    optimizer.lr = 0.1 * (1 - next(done) / 10)
                    gradients = model.loss_and_gradients(some, labels, label_smoothing=0.1)[1]
                    optimizer.step(gradients)
        else:
            train(
                model,
                x,
                y,
                optimizer,
                epochs=2,
                batch_size=64,
                label_smoothing=0.1,
                schedule=lambda done: 0.1 * (1 - done),
                seed=5,
                progress=False,
            )
        histories.append(model.state_dict())
    for one, other in zip(*(h.values() for h in histories), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_the_seed_determines_everything(classifier):
    def run(seed):
        model = classifier()
        optimizer = SGD(model.parameters, lr=0.1)
        return train(model, *blobs(), optimizer, epochs=2, seed=seed, progress=False)

    assert run(0) == run(0) != run(1)


def test_options_that_are_left_out(classifier):
    def run(**options):
        model = classifier()
        optimizer = SGD(model.parameters, lr=0.1)
        return train(model, *blobs(), optimizer, seed=0, progress=False, **options)

    history = run()
    assert len(history.loss) == 10
    assert history == run(epochs=10, batch_size=64, label_smoothing=0.0)
    assert history.held_out_loss == history.held_out_accuracy == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"held_out": ([1, 2], [1])}, ValueError, "differ in length"),
        ({"held_out": np.zeros((3, 6))}, TypeError, "held_out must be two arrays"),
        ({"held_out": 3}, TypeError, "held_out must be two arrays"),
        ({"x": np.zeros((0, 6)), "y": []}, ValueError, "no samples"),
        ({"progress": "yes"}, TypeError, "progress must be .* got 'yes'"),
        ({"y": [1]}, ValueError, "differ in length"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing"),
        ({"y": np.full(300, 4)}, IndexError, "target of row 0 is 4"),
        ({"optimizer": SGD([np.zeros(2)], lr=1)}, ValueError, "gradients for 1 parameters"),
    ],
)
def test_trainings_that_cant_be(classifier, options, error, words):
    model = classifier()
    before = model.state_dict()
    x, y = blobs()
    with pytest.raises(error, match=words):
        train(
            **{
                "model": model,
                "x": x,
                "y": y,
                "optimizer": SGD(model.parameters, lr=0.1),
                "progress": False,
                **options,
            }
        )
    np.testing.assert_equal(model.state_dict(), before)


# ---------------------------------------------------------------------------------------------
# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trained_in_sight(stream, epochs=11, **options):
    model = CLASSIFIERS["linear"]()
    x, y = blobs()
    optimizer = SGD(model.parameters, lr=0.1)
    train(model, x, y, optimizer, epochs=epochs, seed=0, progress=stream, **options)


LINE = r"epoch +(\d+)/11: loss \d\.\d{4}; accuracy [01]\.\d{4}"


@pytest.mark.parametrize("held_out", [None, blobs(1)], ids=["alone", "held-out"])
def test_a_line_for_each_epoch(capsys, held_out):
    for stream in (True, io.StringIO()):
        trained_in_sight(stream, held_out=held_out)
        out, err = capsys.readouterr()
        text = err if stream is True else stream.getvalue()
        assert out == "" and (err == "") == (stream is not True)
        pattern = LINE
        if held_out:
            pattern = LINE.replace(";", r", held out \d\.\d{4};") + r", held out [01]\.\d{4}"
        found = [re.fullmatch(pattern, line)[1] for line in text.splitlines()]
        assert found == [str(i) for i in range(1, 12)]
        assert "\r" not in text and text.isascii() and max(map(len, text.splitlines())) < 80


def test_no_progress_is_shown_on_request(capsys):
    trained_in_sight(False)
    assert capsys.readouterr() == ("", "")


def test_batches_are_counted_on_a_terminal(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = Terminal()
    trained_in_sight(stream, epochs=11)
    assert "epoch  1/11: batch 1/5" in stream.getvalue()
    assert "epoch 11/11: batch 5/5" in stream.getvalue()
    # The text that remains visible: "\r" returns to the beginning of the line.
    for line in stream.getvalue().splitlines(keepends=False)[-1:]:
        assert re.fullmatch(LINE, line.split("\r")[-1].rstrip())
    shown = [re.split("\r", line)[-1].rstrip() for line in stream.getvalue().split("\n")[:-1]]
    assert [re.fullmatch(LINE, line)[1] for line in shown] == [str(i) for i in range(1, 12)]


def test_a_terminal_is_not_flooded():
    stream = Terminal()
    trained_in_sight(stream, epochs=11, batch_size=1)
    assert stream.getvalue().count("batch ") < 3300 / 2


def test_an_interrupted_training_leaves_a_clean_line(monkeypatch):
    model, stream = CLASSIFIERS["linear"](), Terminal()
    optimizer = SGD(model.parameters, lr=0.1)
    monkeypatch.setattr(optimizer, "step", lambda gradients: [][0])
    with pytest.raises(IndexError):
        train(model, *blobs(), optimizer, progress=stream)
    text = stream.getvalue()
    assert "batch 1/5" in text and re.search(r"\r +\r$", text)


def test_a_process_without_standard_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    trained_in_sight(True)
