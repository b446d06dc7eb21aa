"""pyce.training.lr_find: the learning rate range test."""

import copy
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import one_isa
from training_cases import CLASSIFIERS, batch

from pyce.training import SGD, LinearClassifier, LRCurve, lr_find


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    return CLASSIFIERS[request.param]


# ---------------------------------------------------------------------------------------------
# The curve


def follow(losses):
    """A step that returns these losses in order, and records its rates."""
    rest, rates = iter(losses), []

    def step(lr):
        rates.append(lr)
        return next(rest)

    step.rates = rates
    return step


def falling_and_rising(n=100, noise=0.0, seed=0):
    """Losses that are flat, fall from 2.3 to 0.3 around the middle, and rise."""
    t = np.linspace(0, 1, n)
    loss = 2.3 - 2 / (1 + np.exp(-(t - 0.5) * 20)) + np.exp((t - 0.85) * 60)
    return loss + noise * np.random.default_rng(seed).normal(size=n)


def test_rates_are_geometric():
    step = follow([1.0] * 30)
    curve = lr_find(step, start=1e-3, end=7, num_iter=30)
    assert step.rates == curve.rates.tolist()
    assert all(type(rate) is float for rate in step.rates)
    assert (step.rates[0], step.rates[-1]) == (1e-3, 7)
    np.testing.assert_allclose(np.diff(np.log(step.rates)), math.log(7e3) / 29, rtol=1e-12)
    assert curve.ended == "at the last rate"


def test_the_smoothed_loss():
    """The recursion with bias correction equals Σ βᵏ·loss / Σ βᵏ over the losses so far."""
    losses = np.random.default_rng(1).uniform(1, 2, 40)
    curve = lr_find(follow(losses), num_iter=40, smoothing=0.7, divergence=math.inf)
    np.testing.assert_array_equal(curve.losses, losses)
    for i, smoothed in enumerate(curve.smoothed):
        weights = 0.7 ** np.arange(i, -1, -1)
        np.testing.assert_allclose(smoothed, np.average(losses[: i + 1], weights=weights))
    plain = lr_find(follow(losses), num_iter=40, smoothing=0)
    np.testing.assert_array_equal(plain.smoothed, losses)


@pytest.mark.parametrize("ends", [math.nan, math.inf, -math.inf])
def test_it_stops_at_what_is_not_finite(ends):
    curve = lr_find(follow([3.0, 2.0, ends]), num_iter=10)
    assert curve.ended == "not finite"
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) == 3


def test_it_stops_when_the_loss_diverges():
    losses = [2.0, 1.0, 3.9, 4.1, 1.0]
    curve = lr_find(follow(losses), num_iter=5, smoothing=0)
    assert (curve.ended, len(curve.losses)) == ("diverged", 4)
    assert len(lr_find(follow(losses), num_iter=5, smoothing=0, divergence=5).losses) == 5
    assert len(lr_find(follow(losses), num_iter=5, smoothing=0, divergence=2).losses) == 3
    # 4 times the lowest loss does not exceed it.
    assert len(lr_find(follow([2.0, 1.0, 4.0, 1.0]), num_iter=4, smoothing=0).losses) == 4
    with_zero = [1.0, 0.0, 1e9, 1e9]
    on = lr_find(follow(with_zero), num_iter=4, smoothing=0, divergence=math.inf)
    assert len(on.losses) == 4


def test_no_divergence_below_where_it_began():
    """A loss near 0 may grow by a large factor and stay small."""
    curve = lr_find(follow([2.0, 1e-6, 1.0, 1e-3, 2.1]), num_iter=5, smoothing=0)
    assert (curve.ended, len(curve.losses)) == ("diverged", 5)


def test_losses_below_zero():
    curve = lr_find(follow([1.0, -1.0, -2.0, -1.0, 1.0, 3.9, 4.1]), num_iter=7, smoothing=0)
    assert (curve.ended, len(curve.losses)) == ("diverged", 7)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, lambda x: np.array([x])])
def test_what_a_loss_may_be(kind):
    assert lr_find(lambda lr: kind(0.5), num_iter=2).losses.tolist() == [0.5, 0.5]


def test_a_loss_of_pytorch():
    torch = pytest.importorskip("torch")
    for loss in (torch.tensor(0.5, requires_grad=True), torch.tensor([0.5], dtype=torch.bfloat16)):
        assert lr_find(lambda lr, loss=loss: loss, num_iter=2).losses.tolist() == [0.5, 0.5]
    with pytest.raises(TypeError, match="one number, got Tensor"):
        lr_find(lambda lr: torch.zeros(3))


@pytest.mark.parametrize("loss", [None, "low", [1.0], np.zeros(2), 1j, object()])
def test_what_is_no_loss(loss):
    with pytest.raises(TypeError, match="step must return its loss as one number, got"):
        lr_find(lambda lr: loss)


class OnlyLoads:
    def load_state_dict(self, state):
        raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"start": 0}, ValueError, "start"),
        ({"start": -1e-3}, ValueError, "start"),
        ({"start": math.nan}, ValueError, "start"),
        ({"start": 10}, ValueError, "start < end"),
        ({"start": 11}, ValueError, "start < end"),
        ({"end": math.inf}, ValueError, "end"),
        ({"start": "small"}, TypeError, "start"),
        ({"num_iter": 1}, ValueError, "num_iter must be at least 2, got 1"),
        ({"num_iter": 2.5}, TypeError, "integer"),
        ({"smoothing": 1}, ValueError, "smoothing"),
        ({"smoothing": -0.1}, ValueError, "smoothing"),
        ({"divergence": 0.5}, ValueError, "divergence"),
        ({"divergence": math.nan}, ValueError, "divergence"),
        ({"step": 3}, TypeError, "step must be callable, got int"),
        ({"state": 3}, TypeError, "state can't be restored: int"),
        ({"state": iter([np.zeros(2)])}, TypeError, "state can't be restored"),
        ({"state": LinearClassifier}, TypeError, "state can't be restored: type"),
        ({"state": OnlyLoads()}, TypeError, "state can't be restored: OnlyLoads"),
        ({"state": [np.zeros(2), {"w": object()}]}, TypeError, r"state\[1\]\['w'\]"),
        ({"state": np.broadcast_to(1.0, 3)}, ValueError, "read-only"),
    ],
)
def test_arguments_that_are_wrong(arguments, error, words):
    def step(lr):
        raise AssertionError("nothing may be done")

    with pytest.raises(error, match=words):
        lr_find(**{"step": step, **arguments})


# ---------------------------------------------------------------------------------------------
# The suggested rates


@pytest.mark.parametrize("noise", [0, 0.05, 0.2])
@pytest.mark.parametrize("n", [30, 100, 400])
def test_both_rates_of_a_usual_curve(n, noise):
    losses = falling_and_rising(n, noise)
    curve = lr_find(follow(losses), start=1e-6, end=1, num_iter=n, divergence=math.inf)
    # The middle is at 1e-3; the lag of the smoothing is added to it.
    lag = 10 ** (6 * 10 / n)
    assert 2e-4 < curve.steepest < 4e-3 * lag
    lowest = 10 ** (-6 + 6 * 0.78)
    assert lowest / 10 < curve.before_rise < lowest * 2 * lag
    assert curve.steepest < curve.before_rise
    assert {curve.steepest, curve.before_rise} <= set(curve.rates)


def test_the_rates_of_a_curve_by_hand():
    losses = [9, 9, 9, 9, 8, 5, 1, 0.9, 0.8, 7, 9]
    curve = lr_find(follow(losses), start=1, end=1e10, num_iter=11, smoothing=0)
    # Slopes are central differences: at 10⁵, 8 − 1.
    assert curve.steepest == pytest.approx(1e5)
    assert curve.before_rise == pytest.approx(1e8)


def test_the_fall_and_rise_after_divergence_do_not_count():
    losses = [*falling_and_rising(80)[:75], *np.linspace(300, 0.35, 25)]
    curve = lr_find(follow(losses), start=1e-6, end=1, divergence=math.inf)
    assert curve.steepest == pytest.approx(
        lr_find(follow(losses), start=1e-6, end=1, num_iter=100).steepest
    )
    assert curve.steepest < curve.before_rise < 0.1


def test_a_loss_that_rises_before_it_falls():
    """The fall from the peak counts, even if it ends little below the beginning."""
    t = np.clip(np.linspace(-0.2, 1, 100), 0, None)
    losses = 1 + np.sin(np.pi * t) ** 2 - 1e-8 * t
    curve = lr_find(follow(losses), smoothing=0)
    assert curve.rates[70] < curve.steepest < curve.rates[90]


def test_a_loss_that_never_turns_up():
    curve = lr_find(follow(falling_and_rising(100)[:70]), num_iter=70)
    assert curve.steepest is not None
    assert curve.before_rise is None


def test_a_loss_that_is_nan_after_its_fall():
    losses = [*falling_and_rising(100)[:60], math.nan]
    curve = lr_find(follow(losses), num_iter=100)
    assert curve.ended == "not finite"
    assert curve.before_rise == curve.rates[59]


RNG = np.random.default_rng(5)
NOTHING_TO_SEE = {
    "constant": [1.0] * 100,
    "constant in decimals": [2.3] * 100,
    "falling by what is rounding": 2.3 - 1e-9 * np.arange(100),
    "three steps down and up": [3.0, 2.0, 1.0, 5.0, 5.0, 5.0],
    "four steps down and up": [4.0, 3.0, 2.0, 1.0, 9.0, 9.0],
    "constant but for rounding": 1 + 1e-8 * RNG.normal(size=100),
    "rising from the start": np.linspace(1, 3, 100),
    "rising with noise": np.linspace(1, 3, 100) + 0.05 * RNG.normal(size=100),
    "diverges on the second step": [1.0, 1e9],
    "diverges on the fifth step": [1.0, 0.9, 0.95, 1.1, 1e9],
    "NaN at once": [math.nan],
    "NaN on the second step": [1.0, math.nan],
    "two steps": [2.0, 1.0],
    "three steps": [3.0, 2.0, 1.0],
}


@pytest.mark.parametrize("name", NOTHING_TO_SEE)
def test_no_rate_is_better_than_a_wrong_one(name):
    losses = NOTHING_TO_SEE[name]
    curve = lr_find(follow(losses), num_iter=max(2, len(losses)))
    assert (curve.steepest, curve.before_rise) == (None, None)
    assert "steepest None, before_rise None" in repr(curve)


def test_noise_is_hardly_ever_taken_for_a_fall():
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.exponential, lambda size: rng.standard_t(3, size)):
        found = [
            lr_find(follow(10 + draw(size=100)), divergence=math.inf).steepest is not None
            for _ in range(200)
        ]
        assert sum(found) <= 2


def test_repr():
    curve = lr_find(follow(falling_and_rising(100)), start=1e-6, end=1)
    assert re.fullmatch(
        r"<LRCurve of \d+ steps from 1e-06 to [\d.]+, ended diverged: steepest 0\.\d+, "
        r"before_rise 0\.\d+>",
        repr(curve),
    )


def test_a_curve_of_other_measurements():
    """A curve can be constructed from rates and losses that were measured elsewhere."""
    rates = np.geomspace(1e-4, 1, 50)
    losses = falling_and_rising(50)
    curve = LRCurve(rates, losses, losses, "at the last rate")
    assert 1e-3 < curve.steepest < 0.1 < curve.before_rise


# ---------------------------------------------------------------------------------------------
# Restoring the state


class Stop(BaseException):
    pass


ENDS = {"last rate": None, "exception": ValueError, "Ctrl-C": KeyboardInterrupt, "any": Stop}


def run_and_end(change, state, ends):
    """Run the range test with a step that calls `change`, and end it with `ends`."""
    rest = itertools.count()

    def step(lr):
        change(lr)
        if ends is not None and next(rest) == 3:
            raise ends
        return 1.0

    if ends is None:
        lr_find(step, num_iter=5, state=state)
    else:
        with pytest.raises(ends):
            lr_find(step, num_iter=5, state=state)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_arrays_are_restored_in_place(ends):
    w, b, deep = np.arange(6.0).reshape(2, 3), np.float32([1, 2]), np.arange(4)
    view = w[:, ::2]
    state = {"w": w, "more": [b, (deep, 3.5)], "t": 7}

    def change(lr):
        w[:] += 1
        b[:] = np.nan
        deep[0] -= 1
        state["w"] = state["w"] + 1  # a new array replaces the old one
        state["more"].append(None)
        state["t"] += 1
        state["new"] = 0

    run_and_end(change, state, ends)
    np.testing.assert_array_equal(w, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(view, [[0, 2], [3, 5]])
    assert (b.tolist(), deep.tolist()) == ([1, 2], [0, 1, 2, 3])
    assert list(state) == ["w", "more", "t"]
    assert state["w"] is w and state["more"][0] is b and len(state["more"]) == 2
    assert state["t"] == 7


@pytest.mark.parametrize("state", ["array", "list", "tuple", "strided", "0-d", "Fortran"])
def test_every_kind_of_array(state):
    w = {
        "strided": np.arange(12.0)[::-3],
        "0-d": np.array(5.0),
        "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }.get(state, np.arange(3.0))
    before = w.copy()

    def change(lr):
        w[...] = 9

    run_and_end(change, {"list": [w], "tuple": (w,)}.get(state, w), None)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_models_and_optimizers_are_restored(classifier, ends):
    model = classifier()
    optimizer = SGD(model.parameters, lr=0.3, momentum=0.9)
    x, y = batch()
    optimizer.step(model.loss_and_gradients(x, y)[1])  # creates the momentum buffers
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    arrays = list(model.parameters)

    def change(lr):
        optimizer.lr = lr
        optimizer.step(model.loss_and_gradients(x, y)[1])

    run_and_end(change, [model, optimizer], ends)
    np.testing.assert_equal((model.state_dict(), optimizer.state_dict()), before)
    assert all(p is q for p, q in zip(arrays, model.parameters, strict=True))


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_modules_and_optimizers_of_pytorch_are_restored(ends):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    x, y = map(torch.from_numpy, batch())
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def change(lr):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.float()), y).backward()
        optimizer.step()

    change(0.1)
    assert optimizer.state_dict()["state"]
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    run_and_end(change, [model, optimizer], ends)
    for name, value in before[0].items():
        assert torch.equal(model.state_dict()[name], value), name
    assert optimizer.state_dict() == before[1]


def test_others_are_restored_if_one_fails():
    class Broken:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("broken")

    w, v = np.zeros(2), np.zeros(2)

    def change(lr):
        w[:] = v[:] = 1

    with pytest.raises(RuntimeError, match="broken"):
        run_and_end(change, [w, Broken(), v], None)
    assert not w.any() and not v.any()


def test_nothing_is_restored_without_state():
    w = np.zeros(2)

    def step(lr):
        w[:] += 1
        return 1.0

    lr_find(step, num_iter=3)
    assert w.tolist() == [3, 3]


def test_overflow_gives_no_warnings():
    """It gives no warnings, and the error settings of the caller are unchanged."""
    w = np.float32([1.0, 2.0])

    def step(lr):
        loss = w @ w
        w[:] -= np.float32(1e20) * w
        return loss

    with np.errstate(over="raise"):
        assert lr_find(step, state=w, divergence=math.inf).ended == "not finite"
        with pytest.raises(FloatingPointError):
            w * np.float32(3e38)


@one_isa
def test_a_rate_that_trains(classifier, backend):
    """Training with the suggested rate halves the loss."""
    x, y = batch(200)
    y = (x @ np.random.default_rng(7).normal(size=(6, 4))).argmax(axis=1)
    model = classifier()

    def steps(optimizer):
        def step(lr):
            optimizer.lr = lr
            loss, gradients = model.loss_and_gradients(x, y)
            optimizer.step(gradients)
            return loss

        return step

    optimizer = SGD(model.parameters, lr=0.0, momentum=0.9)
    curve = lr_find(steps(optimizer), start=1e-4, end=1e4, state=[model, optimizer])
    start = float(model.loss_and_gradients(x, y)[0])
    for _ in range(30):
        steps(optimizer)(curve.steepest)
    assert model.loss_and_gradients(x, y)[0] < start / 2


# ---------------------------------------------------------------------------------------------
# The picture


def test_the_picture_marks_both(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    curve = lr_find(follow(falling_and_rising(100, 0.05)), start=1e-6, end=1)
    axes = figure.Figure().add_subplot()
    assert curve.plot(axes) is axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate (logarithmic)", "loss")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"steepest descent: {curve.steepest:.2g}" in labels
    assert f"before it rises: {curve.before_rise:.2g}" in labels
    marked = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert marked == [curve.steepest, curve.before_rise]
    # The y axis shows the losses before they diverge.
    low, high = axes.get_ylim()
    room = curve.smoothed[:-1].max() - curve.losses.min()
    assert low == pytest.approx(curve.losses.min() - 0.05 * room)
    assert curve.smoothed[:-1].max() < high < 5


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_the_picture_is_a_file(tmp_path, name):
    pytest.importorskip("matplotlib")
    curve = lr_find(follow(falling_and_rising(100)))
    for path in (tmp_path / name, str(tmp_path / f"again-{name}")):
        curve.plot(path)
        assert Path(path).stat().st_size > 5000


@pytest.mark.parametrize("losses", NOTHING_TO_SEE.values(), ids=NOTHING_TO_SEE)
def test_a_picture_of_nothing(losses, recwarn):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = lr_find(follow(losses), num_iter=max(2, len(losses))).plot(figure.add_subplot())
    figure.draw_without_rendering()
    assert len(axes.get_legend().get_texts()) == 2
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []


def test_what_cant_be_drawn_on(tmp_path):
    pytest.importorskip("matplotlib")
    curve = lr_find(follow([1.0] * 5), num_iter=5)
    with pytest.raises(TypeError, match="path or matplotlib Axes, got int"):
        curve.plot(3)
    with pytest.raises(FileNotFoundError):
        curve.plot(tmp_path / "nowhere" / "curve.png")
