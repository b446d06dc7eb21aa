"""pyce.training: the range test, SGD, classifiers, training, and images of one size."""

import copy
import errno
import importlib.util
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

import pyce
from pyce.training import (
    SGD,
    HiddenLayerClassifier,
    LinearClassifier,
    LRCurve,
    evaluate,
    lr_find,
    minibatches,
    presize,
    train,
)

CLASSIFIERS = {
    "linear": lambda **options: LinearClassifier(6, 4, seed=3, **options),
    "hidden layer": lambda **options: HiddenLayerClassifier(6, 5, 4, seed=3, **options),
}


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    return CLASSIFIERS[request.param]


def batch(rows=9, features=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, features)), rng.integers(0, classes, rows)


# ---------------------------------------------------------------------------------------------
# The module


def test_nothing_is_imported_before_it_is_used(run_python):
    libraries = {"torch", "sklearn", "scipy", "PIL", "matplotlib", "numba"}
    code = "import sys, pyce\nassert 'pyce.training' not in sys.modules\nimport pyce.training\n"
    code += f"print(sorted({libraries!r} & set(sys.modules)))"
    assert run_python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("PIL", "presize([np.zeros((2, 2))], 2)"),
        ("matplotlib", "lr_find(lambda lr: 1.0).plot('curve.png')"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(run_python, module, code):
    code = f"import sys; sys.modules[{module!r}] = None\nimport numpy as np\n" + (
        f"from pyce.training import *\ntry:\n    {code}\n"
        "except ImportError as error:\n    print(error)"
    )
    said = run_python("-c", code).stdout
    assert "pip install 'pyce[training]'" in said
    assert said.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# The range test: the curve


def follow(losses):
    """A step that returns these, one after the other, and keeps the rates that it was given."""
    rest, rates = iter(losses), []

    def step(lr):
        rates.append(lr)
        return next(rest)

    step.rates = rates
    return step


def falling_and_rising(n=100, noise=0.0, seed=0):
    """Flat, then down from 2.3 to 0.3 around the middle, then up."""
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
    """Σ βᵏ·loss / Σ βᵏ over the losses so far: what the recursion with bias correction is."""
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
    with_zero = [1.0, 0.0, 1e9, 1e9]
    on = lr_find(follow(with_zero), num_iter=4, smoothing=0, divergence=math.inf)
    assert len(on.losses) == 4


def test_no_divergence_below_where_it_began():
    """A loss near 0 may be many times as large and still small."""
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
# The range test: its suggestions


@pytest.mark.parametrize("noise", [0, 0.05, 0.2])
@pytest.mark.parametrize("n", [30, 100, 400])
def test_both_rates_of_a_usual_curve(n, noise):
    losses = falling_and_rising(n, noise)
    curve = lr_find(follow(losses), start=1e-6, end=1, num_iter=n, divergence=math.inf)
    # The middle is at 1e-3; the smoothing's lag comes on top.
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
    """The fall is that from the peak, even if it ends hardly below the beginning."""
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


def test_it_says_what_it_is():
    curve = lr_find(follow(falling_and_rising(100)), start=1e-6, end=1)
    assert re.fullmatch(
        r"<LRCurve of \d+ steps from 1e-06 to [\d.]+, ended diverged: steepest 0\.\d+, "
        r"before_rise 0\.\d+>",
        repr(curve),
    )


# ---------------------------------------------------------------------------------------------
# The range test: the state


class Stop(BaseException):
    pass


ENDS = {"last rate": None, "exception": ValueError, "Ctrl-C": KeyboardInterrupt, "any": Stop}


def run_and_end(change, state, ends):
    """The range test over a step that changes something, then ends so."""
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
        state["w"] = state["w"] + 1  # another array in its place
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
    optimizer.step(model.loss_and_gradients(x, y)[1])  # so that there are buffers
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


def test_one_that_fails_does_not_keep_the_others_from_being_restored():
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


def test_overflow_is_what_it_looks_for():
    """No warnings of it; those of the caller's own settings are as before."""
    w = np.float32([1.0, 2.0])

    def step(lr):
        loss = w @ w
        w[:] -= np.float32(1e20) * w
        return loss

    with np.errstate(over="raise"):
        assert lr_find(step, state=w, divergence=math.inf).ended == "not finite"
        with pytest.raises(FloatingPointError):
            w * np.float32(3e38)


def test_a_rate_that_trains(classifier, backend):
    """What it is for: the suggestion trains, and a rate ten times that of the edge does not."""
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
# The range test: the picture


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
    # What diverges leaves room for the rest.
    low, high = axes.get_ylim()
    assert low < curve.losses.min() and curve.smoothed[:-1].max() < high < 5


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


# ---------------------------------------------------------------------------------------------
# SGD

COMBINATIONS = [
    {
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for lr, momentum, dampening, decay, nesterov, maximize in itertools.product(
        (0.0, 0.1), (0.0, 0.9), (0.0, 0.3), (0.0, 0.01), (False, True), (False, True)
    )
    if not nesterov or (momentum and not dampening)
]


def test_all_combinations_are_there():
    assert len(COMBINATIONS) == 40
    assert sum(c["nesterov"] for c in COMBINATIONS) == 8


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "options", COMBINATIONS, ids=lambda o: "-".join(k for k, v in o.items() if v) or "nothing"
)
def test_every_step_is_that_of_pytorch(options, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours = [rng.normal(size=s).astype(dtype) for s in ((3, 4), (5,), ())]
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in ours]
    our = SGD(ours, **options)
    their = torch.optim.SGD(theirs, **options)
    changed = [p.copy() for p in ours]
    for step in range(6):
        gradients = [rng.normal(size=p.shape).astype(dtype) for p in ours]
        if step in (1, 4):
            gradients[1] = None
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        given = copy.deepcopy(gradients)
        our.step(gradients)
        their.step()
        np.testing.assert_equal(gradients, given)
        # One rounding more or less for each product, of numbers of about 1.
        close = {"rtol": 4 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
        for p, q in zip(ours, theirs, strict=True):
            assert p.dtype == dtype
            np.testing.assert_allclose(p, q.detach().numpy(), **close)
    moved = any((p != q).any() for p, q in zip(ours, changed, strict=True))
    assert moved == (options["lr"] > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -0.1},
        {"lr": 0.1, "momentum": -1},
        {"lr": 0.1, "weight_decay": -1},
        {"lr": 0.1, "nesterov": True},
        {"lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1},
    ],
)
def test_options_that_pytorch_refuses_too(options):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError):
        torch.optim.SGD([torch.zeros(2)], **options)
    name = next(reversed([n for n in options if n != "dampening"]))
    with pytest.raises(ValueError, match="nesterov" if "nesterov" in options else name):
        SGD([np.zeros(2)], **options)


def test_a_rate_of_numpy_is_one_of_python():
    ours = [np.linspace(-1, 1, 100, dtype=np.float32) for _ in range(2)]
    for p, kind in zip(ours, (float, np.float64), strict=True):
        optimizer = SGD([p], lr=1.0)
        optimizer.lr = kind(0.1)  # as np.geomspace gives, say
        optimizer.step([np.cos(p)])
    np.testing.assert_array_equal(*ours)


@pytest.mark.parametrize(
    ("parameters", "options", "error", "words"),
    [
        ([], {}, ValueError, "no parameters"),
        (np.zeros((2, 2)), {}, TypeError, "list of arrays"),
        ([[1.0, 2.0]], {}, TypeError, "parameter 0 must be an array .* got list"),
        ([np.zeros(2), np.zeros(2, int)], {}, TypeError, "parameter 1 .* got int64"),
        ([np.zeros(2, np.float16)], {}, TypeError, "float16"),
        ([np.broadcast_to(1.0, 3)], {}, ValueError, "parameter 0 is read-only"),
        ([np.zeros(2)], {"lr": math.nan}, ValueError, "lr"),
        ([np.zeros(2)], {"lr": "fast"}, TypeError, "lr"),
        ([np.zeros(2)], {"lr": None}, TypeError, "lr"),
        ([np.zeros(2)], {"dampening": "much"}, TypeError, "dampening"),
    ],
)
def test_what_cant_be_optimized(parameters, options, error, words):
    with pytest.raises(error, match=words):
        SGD(parameters, **{"lr": 0.1, **options})


def test_one_parameter_twice():
    w = np.zeros(2)
    with pytest.raises(ValueError, match="parameter 1 comes twice"):
        SGD([w, w], lr=0.1)
    SGD(iter([w, np.zeros(2)]), lr=0.1)


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        ([np.ones(2)], "1 gradients for 2 parameters"),
        ([np.ones(2), np.ones(3)], r"gradient 1 of shape \(3,\) .* \(2,\)"),
        ([np.ones(2), 1.0], r"gradient 1 of shape \(\)"),
        ([np.ones(2), ["a", "b"]], "could not convert"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(gradients, words):
    parameters = [np.zeros(2), np.zeros(2)]
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=words):
        optimizer.step(gradients)
    assert not any(p.any() for p in parameters)
    assert optimizer.state_dict()["buffers"] == [None, None]


def test_complex_gradients():
    w = np.ones(2)
    with pytest.raises(TypeError, match="real numbers"):
        SGD([w], lr=0.1).step([w * 1j])
    assert w.tolist() == [1, 1]


def test_an_optimizer_goes_on_from_its_state():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 1, 3))
    whole, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = SGD([whole], **options)
    for g in gradients:
        optimizer.step(g)
    begun = SGD([first], **options)
    for g in gradients[:3]:
        begun.step(g)
    second[:] = first
    resumed = SGD([second], lr=7.0)
    state = begun.state_dict()
    resumed.load_state_dict(state)
    for g in gradients[3:]:
        resumed.step(g)
        begun.step(g)  # shares nothing with the other
    np.testing.assert_array_equal(second, whole)
    np.testing.assert_array_equal(first, whole)
    assert not np.array_equal(state["buffers"][0], begun.state_dict()["buffers"][0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("lr"), "lr"),
        (lambda s: s.update(more=1), "more"),
        (lambda s: s.update(lr=-1), "lr"),
        (lambda s: s.update(buffers=[None]), "1 buffers for 2"),
        (lambda s: s.update(buffers=[None] * 3), "3 buffers for 2"),
        (lambda s: s.update(buffers=[None, np.zeros(3)]), "buffer 1 of shape"),
    ],
)
def test_states_that_do_not_fit_change_nothing(change, words):
    optimizer = SGD([np.zeros(2), np.zeros(2)], lr=0.1, momentum=0.9)
    optimizer.step([np.ones(2), np.ones(2)])
    before, state = optimizer.state_dict(), optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    np.testing.assert_equal(optimizer.state_dict(), before)


# ---------------------------------------------------------------------------------------------
# Classifiers


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_the_derivatives(classifier, backend, smoothing, soft):
    model = classifier(dtype=np.float64)
    x, y = batch()
    if soft:
        y = np.random.default_rng(2).dirichlet(np.ones(4), 9)
    for p in model.parameters:
        p += 0.1 * np.random.default_rng(4).normal(size=p.shape)  # biases, too
    loss, gradients = model.loss_and_gradients(x, y, label_smoothing=smoothing)
    np.testing.assert_allclose(
        loss, pyce.cross_entropy(model.logits(x), y, label_smoothing=smoothing), rtol=1e-14
    )

    def slope(p, position):
        kept, losses = p[position], []
        for value in (kept + 1e-6, kept - 1e-6):
            p[position] = value
            losses.append(model.loss_and_gradients(x, y, label_smoothing=smoothing)[0])
        p[position] = kept
        return (losses[0] - losses[1]) / 2e-6

    for p, g in zip(model.parameters, gradients, strict=True):
        assert g.shape == p.shape and g.dtype == p.dtype
        expected = [slope(p, position) for position in np.ndindex(*p.shape)]
        np.testing.assert_allclose(g.ravel(), expected, rtol=1e-6, atol=1e-9)


def test_the_same_seed_gives_the_same_model(classifier):
    one, two = classifier(), classifier()
    np.testing.assert_equal(one.state_dict(), two.state_dict())
    assert all(p.dtype == np.float32 for p in one.parameters)
    different = [type(one)(*([5] * (2 + isinstance(one, HiddenLayerClassifier)))) for _ in "ab"]
    assert not np.array_equal(different[0].parameters[0], different[1].parameters[0])


def test_weights_begin_with_the_variances_that_are_told():
    hidden = HiddenLayerClassifier(400, 500, 100, seed=0)
    linear = LinearClassifier(400, 500, seed=0)
    for weights, variance in (
        (hidden.parameters[0], 2 / 400),
        (hidden.parameters[2], 1 / 500),
        (linear.parameters[0], 1 / 400),
    ):
        np.testing.assert_allclose(weights.var(), variance, rtol=0.05)
    assert not hidden.parameters[1].any() and not linear.parameters[1].any()


def test_images_are_taken_as_they_are(classifier):
    model = classifier()
    x, y = batch()
    images = x.reshape(9, 2, 3)
    np.testing.assert_array_equal(model.logits(images), model.logits(x))
    assert model.logits(images).shape == (9, 4)
    assert model.logits(np.uint8(images > 0)).dtype == np.float32
    assert model.loss_and_gradients(images, y)[0] == model.loss_and_gradients(x, y)[0]
    assert model.logits(np.zeros((0, 6))).shape == (0, 4)


def test_inputs_are_only_read(classifier):
    x, y = batch()
    x.flags.writeable = y.flags.writeable = False
    for dtype in (np.float32, np.float64):
        classifier(dtype=dtype).loss_and_gradients(x, y)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((9, 5)), ValueError, r"6 features for each sample, got \(9, 5\)"),
        (np.zeros(6), ValueError, r"must be \(N, …\)"),
        (np.zeros((9, 6), complex), TypeError, "complex128"),
        ([["a"] * 6] * 9, TypeError, "real numbers"),
    ],
)
def test_inputs_that_do_not_fit(classifier, x, error, words):
    model = classifier()
    with pytest.raises(error, match=words):
        model.logits(x)
    with pytest.raises(error, match=words):
        model.loss_and_gradients(x, np.zeros(9, int))


def test_bad_labels_have_the_words_of_the_loss(classifier):
    with pytest.raises(IndexError, match="target of row 1 is 4"):
        classifier().loss_and_gradients(np.zeros((2, 6)), [0, 4])


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0, 3), {}, ValueError),
        ((3, 0), {}, ValueError),
        ((3, -1), {}, ValueError),
        ((3.5, 2), {}, TypeError),
        ((3, 2), {"dtype": np.float16}, ValueError),
        ((3, 2), {"dtype": int}, ValueError),
        ((3, 2), {"seed": -1}, ValueError),
    ],
)
def test_what_makes_no_classifier(arguments, options, error):
    with pytest.raises(error):
        LinearClassifier(*arguments, **options)
    with pytest.raises(error):
        HiddenLayerClassifier(arguments[0], 4, arguments[1], **options)
    with pytest.raises(error):
        HiddenLayerClassifier(4, *arguments, **options)


def test_states_of_models(classifier):
    model, other = classifier(), classifier()
    for p in model.parameters:
        p += 1
    state = model.state_dict()
    for p in model.parameters:
        p += 1
    other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), state)
    assert all((p == q + 1).all() for p, q in zip(model.parameters, other.parameters, strict=True))
    for wrong in ({}, {**state, "more": 1}, {n: v[..., :1] for n, v in state.items()}):
        with pytest.raises(ValueError):
            other.load_state_dict(wrong)
    np.testing.assert_equal(other.state_dict(), state)


# ---------------------------------------------------------------------------------------------
# Batches, training, measuring


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
        (([1], [1], 0), ValueError, "size must be at least 1, got 0"),
        (([1], [1], 1.5), TypeError, "integer"),
    ],
)
def test_batches_that_cant_be(arguments, error, words):
    with pytest.raises(error, match=words):
        minibatches(*arguments)  # before the first batch is asked for


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


def blobs(seed=0, rows=300):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, rows)
    x = rng.normal(size=(rows, 6))
    x[np.arange(rows), y] += 4
    return x, y


def test_training_learns_and_says_how(classifier, backend):
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
    assert history.held_out_loss[-1], history.held_out_accuracy[-1] == evaluate(model, *held_out)
    assert history.held_out_accuracy[-1] > 0.9


def test_training_is_what_one_would_write(classifier):
    """The loop itself, with smoothing and a schedule."""
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


def test_the_seed_settles_everything(classifier):
    def run(seed):
        model = classifier()
        optimizer = SGD(model.parameters, lr=0.1)
        return train(model, *blobs(), optimizer, epochs=2, seed=seed, progress=False)

    assert run(0) == run(0) != run(1)


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
    # What is left when every "\r" has gone back to the beginning of the line.
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


# ---------------------------------------------------------------------------------------------
# Images of one size


@pytest.fixture
def pillow():
    pytest.importorskip("PIL")
    return importlib.import_module("PIL.Image")


def picture(height, width, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (8, 6), (5, 7), (1, 1)])
def test_squashed_is_as_pillow_resizes(pillow, height, width, channels):
    array = picture(height, width, channels)
    found = presize([array], (8, 6), "squash", dtype=np.uint8)
    expected = pillow.fromarray(array).resize((6, 8), pillow.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0], np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (8, 8), (5, 9), (8, 100)])
def test_cropped_is_the_middle_in_its_own_shape(pillow, height, width):
    """Of a picture whose pixels are their own coordinates."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for image, sides in ((rows, (height, width)), (columns, (width, height))):
        found = presize([image], 8)[0]
        length, other = sides
        scale = min(length, other) / 8
        # Centres of 8 pixels of this size around the middle.
        expected = length / 2 - 0.5 + scale * (np.arange(8) - 3.5)
        along = found.mean(axis=1 if image is rows else 0)
        np.testing.assert_allclose(along[2:-2], expected[2:-2], atol=0.02 * length)
        across = found.mean(axis=0 if image is rows else 1)
        np.testing.assert_allclose(across, across.mean(), rtol=1e-5)


def test_cropped_to_another_shape(pillow):
    """Resized until a side fits, and cut: where all of it comes to whole pixels."""
    image = pillow.fromarray(picture(10, 40))
    for size, whole, part in (
        ((5, 10), (20, 5), (slice(None), slice(5, 15))),
        ((10, 10), (40, 10), (slice(None), slice(15, 25))),
        ((4, 40), (40, 10), (slice(3, 7), slice(None))),
        ((4, 80), (80, 20), (slice(8, 12), slice(None))),
    ):
        expected = np.asarray(image.resize(whole, pillow.Resampling.BILINEAR))[part]
        # But for the last bit of the weights' rounding.
        found = presize([image], size, dtype=np.uint8)[0].astype(int)
        np.testing.assert_allclose(found, expected.astype(int), rtol=0, atol=1)


def test_sizes_and_kinds_may_differ(pillow, tmp_path):
    array = picture(9, 17)
    pillow.fromarray(array).save(tmp_path / "image.png")
    images = [
        array,
        pillow.fromarray(array),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        array[::-1, ::-1][::-1, ::-1],
        np.asfortranarray(array),
    ]
    found = presize(iter(images), (4, 6))
    assert found.shape == (6, 4, 6, 3) and found.dtype == np.float32
    assert found.flags.c_contiguous and found.flags.writeable
    assert found.min() > 0 and found.max() < 1
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    np.testing.assert_array_equal(array, picture(9, 17))
    assert presize([picture(9, 17), picture(3, 2), picture(40, 40)], 5).shape == (3, 5, 5, 3)
    assert presize(picture(6, 7, 4).astype(np.uint8), 3).shape == (6, 3, 3)  # (N, H, W)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("deep", [False, True])
def test_floats_are_from_0_to_1(pillow, dtype, deep):
    array = np.full((4, 4), 65535 if deep else 255, np.uint16 if deep else np.uint8)
    array[:, :2] = 0
    found = presize([array], 4, dtype=dtype)
    assert found.dtype == dtype
    assert (found[:, :, 2:] == 1).all() and (found[:, :, :2] == 0).all()
    part = presize([array // 7], 4, dtype=dtype)
    expected = (array // 7).astype(max(dtype, np.float32, key=lambda d: np.dtype(d).itemsize))
    np.testing.assert_array_equal(
        part[0], (expected / expected.dtype.type(array.max())).astype(dtype)
    )
    raw = presize([array // 5], 4, dtype=array.dtype)
    np.testing.assert_array_equal(raw[0], array // 5)


@pytest.mark.parametrize(
    ("mode", "counts_as", "shape"),
    [
        ("1", "L", ()),
        ("L", "L", ()),
        ("P", "RGB", (3,)),
        ("LA", "LA", (2,)),
        ("PA", "RGBA", (4,)),
        ("CMYK", "RGB", (3,)),
        ("YCbCr", "RGB", (3,)),
        ("HSV", "RGB", (3,)),
        ("LAB", "RGB", (3,)),
        ("RGBX", "RGB", (3,)),
        ("La", "LA", (2,)),
        ("RGBa", "RGBA", (4,)),
        ("RGBA", "RGBA", (4,)),
    ],
)
def test_every_mode_of_pillow(pillow, mode, counts_as, shape):
    rgb = pillow.fromarray(picture(9, 12))
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    if mode == "LAB":
        image = pillow.frombytes("LAB", (12, 9), picture(9, 12).tobytes())
    elif mode == "PA":
        image = pillow.new("PA", (12, 9))
    else:
        image = (rgb.convert(via) if via else rgb).convert(mode)
    found = presize([image], 6, dtype=np.uint8)
    assert found.shape == (1, 6, 6, *shape)
    try:
        expected = image.convert(counts_as)
    except ValueError:
        return
    np.testing.assert_array_equal(found, presize([expected], 6, dtype=np.uint8))
    for wanted, last in (("L", ()), ("RGB", (3,)), ("RGBA", (4,))):
        assert presize([image], 6, mode=wanted).shape == (1, 6, 6, *last)


def test_transparent_palettes(pillow, tmp_path):
    image = pillow.fromarray(picture(4, 4)).convert("P")
    image.info["transparency"] = 0
    assert presize([image], 4).shape == (1, 4, 4, 4)
    assert presize([image], 4, mode="RGB").shape == (1, 4, 4, 3)


def test_16_bits(pillow, tmp_path):
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pillow.fromarray(array).save(tmp_path / "deep.png")
    kinds = [array, array.astype(">u2"), pillow.fromarray(array), tmp_path / "deep.png"]
    kinds += [pillow.fromarray(array.astype(np.int32))]
    found = presize(kinds, 8, dtype=np.uint16)
    for one in found:
        np.testing.assert_array_equal(one, array)
    gray = presize(kinds, 8, mode="L", dtype=np.uint8)
    np.testing.assert_array_equal(gray[0], np.rint(array / 257))
    small = presize(kinds, 4)
    np.testing.assert_allclose(small.mean(axis=(1, 2)), array.mean() / 65535, rtol=1e-3)
    whole = presize(kinds, 5, dtype=np.uint16)
    np.testing.assert_array_equal(whole, np.rint(presize(kinds, 5, dtype=float) * 65535))
    with pytest.raises(ValueError, match="image 0 has integers of more than 16 bits"):
        presize([pillow.fromarray(array.astype(np.int32) * 2)], 8)
    with pytest.raises(ValueError, match="image 0 has integers of more than 16 bits"):
        presize([pillow.fromarray(array.astype(np.int32) - 1)], 8)


def test_floats_stay_as_they_are(pillow):
    array = np.linspace(-3, 500, 64).reshape(8, 8)
    for image in (array, array.astype(np.float32), pillow.fromarray(array.astype(np.float32))):
        np.testing.assert_allclose(presize([image], 8)[0], array, rtol=1e-6)
    for options in ({"mode": "L"}, {"dtype": np.uint8}, {"dtype": np.uint16}):
        with pytest.raises(ValueError, match=r"image 0 .*floats"):
            presize([array], 8, **options)


def test_booleans_are_black_and_white(pillow):
    array = picture(6, 6, 1) > 100
    np.testing.assert_array_equal(presize([array], 6)[0], array)
    np.testing.assert_array_equal(presize([array[:, :, None]], 6)[0], array)


def test_the_orientation_of_exif(pillow, tmp_path):
    array = picture(6, 9)
    image = pillow.fromarray(array)
    for orientation, turned in ((1, array), (3, array[::-1, ::-1]), (6, np.rot90(array, -1))):
        exif = image.getexif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        image.save(path, exif=exif)
        expected = presize([turned], (5, 4), dtype=np.uint8)
        np.testing.assert_array_equal(presize([path], (5, 4), dtype=np.uint8), expected)
        with pillow.open(path) as opened:
            np.testing.assert_array_equal(presize([opened], (5, 4), dtype=np.uint8), expected)


def test_files_are_closed(pillow, tmp_path):
    pillow.fromarray(picture(6, 9)).save(tmp_path / "image.png")
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("there is no /proc")
    before = len(list(open_files.iterdir()))
    presize([tmp_path / "image.png"] * 20, 4)
    assert len(list(open_files.iterdir())) == before


def test_the_first_picture_of_an_animation(pillow, tmp_path):
    first, second = (pillow.fromarray(picture(5, 5, 1, seed)) for seed in (0, 1))
    first.save(tmp_path / "moves.gif", save_all=True, append_images=[second])
    found = presize([tmp_path / "moves.gif"], 5, mode="L", dtype=np.uint8)
    np.testing.assert_array_equal(found[0], np.asarray(first))


GRAY = np.zeros((4, 4), np.uint8)
COLOR = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], ValueError, "no images"),
        ("image.png", TypeError, "several, got one str"),
        (Path("image.png"), TypeError, "several, got one"),
        (7, TypeError, "not iterable"),
        ([GRAY, 7], TypeError, "image 1 is neither .* but int"),
        ([GRAY, None], TypeError, "image 1 is neither"),
        ([GRAY, [[1, 2]]], TypeError, "image 1 is neither .* but list"),
        ([GRAY, b"image.png"], TypeError, "image 1 is neither .* but bytes"),
        ([GRAY, COLOR], ValueError, "image 1 is RGB and image 0 is L: mode="),
        ([GRAY, np.zeros((4, 4))], ValueError, "image 1 is L of floats"),
        ([GRAY, np.zeros((4, 4), np.uint16)], ValueError, "image 1 is 16-bit L"),
        ([GRAY, np.zeros((0, 4), np.uint8)], ValueError, r"image 1 has no pixels: .*\(0, 4\)"),
        ([GRAY, np.zeros((4, 0, 3), np.uint8)], ValueError, "image 1 has no pixels"),
        ([GRAY, np.zeros(4, np.uint8)], ValueError, r"image 1 has the shape \(4,\)"),
        ([GRAY, np.zeros((4, 4, 5), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((4, 4, 0), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((1, 2, 3, 4), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((4, 4), np.int64)], TypeError, "image 1 is an array of int64"),
        ([GRAY, np.zeros((4, 4, 3))], TypeError, "image 1 is an array of float64"),
        ([GRAY, np.zeros((4, 4), complex)], TypeError, "image 1 is an array of complex128"),
        ([GRAY, np.zeros((4, 4), object)], TypeError, "image 1 is an array of object"),
    ],
)
def test_images_that_cant_be_taken(pillow, images, error, words):
    with pytest.raises(error, match=words):
        presize(images, 4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(pillow, size):
    with pytest.raises(ValueError, match=f"image 1 has no pixels: {size[1]} by {size[0]}"):
        presize([GRAY, pillow.new("L", size)], 4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 0}, ValueError, "at least 1, got 0"),
        ({"size": (4, -1)}, ValueError, "at least 1"),
        ({"size": (4, 4, 4)}, ValueError, "height and width"),
        ({"size": 4.0}, TypeError, "integer"),
        ({"size": "4"}, TypeError, "integer"),
        ({"method": "stretch"}, ValueError, "method must be one of crop, squash; got 'stretch'"),
        ({"method": None}, ValueError, "method"),
        ({"mode": "CMYK"}, ValueError, "mode must be one of L, RGB, RGBA"),
        ({"dtype": np.int64}, ValueError, "dtype must be floating, uint8 or uint16, got int64"),
        ({"dtype": np.uint16}, ValueError, "image 0 is L, whose numbers uint16 does not hold"),
        ({"dtype": complex}, ValueError, "dtype"),
    ],
)
def test_arguments_of_presize_that_are_wrong(pillow, options, error, words):
    with pytest.raises(error, match=words):
        presize([GRAY], **{"size": 4, **options})


def test_files_that_cant_be_read(pillow, tmp_path):
    pillow.fromarray(picture(50, 50)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    files = {
        "text.png": b"no image",
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
        "wrong.png": whole[:60] + b"\0" * 40 + whole[100:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="image 1 can't be read") as found:
            presize([tmp_path / "whole.png", tmp_path / name], 4)
        assert type(found.value) is ValueError and found.value.__cause__ is not None
    for name, kind, number in (
        ("missing.png", FileNotFoundError, errno.ENOENT),
        (".", IsADirectoryError, errno.EISDIR),
    ):
        with pytest.raises(kind, match="image 1: ") as found:
            presize([tmp_path / "whole.png", tmp_path / name], 4)
        assert found.value.errno == number
        assert Path(found.value.filename) == tmp_path / name


def test_too_large_for_pillow(pillow, tmp_path, monkeypatch):
    pillow.fromarray(picture(50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image 0 can't be read: .*decompression bomb"):
        presize([tmp_path / "bomb.png"], 4)


def test_presized_images_train(pillow, backend):
    """From arrays of differing sizes to a classifier that tells them apart."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for i in range(40):
        height, width = rng.integers(10, 30, 2)
        image = np.zeros((height, width), np.uint8)
        top = slice(0, height // 2) if i % 2 else slice(height // 2, height)
        image[top] = 200
        images.append(image)
        labels.append(i % 2)
    x = presize(images, 6, "squash")
    model = LinearClassifier(36, 2, seed=0)
    optimizer = SGD(model.parameters, lr=0.5)
    assert train(model, x, labels, optimizer, epochs=10, progress=False).accuracy[-1] == 1


def test_the_curve_is_made_by_lr_find_alone():
    """Its parts may be given by hand as well, for curves that were measured elsewhere."""
    rates = np.geomspace(1e-4, 1, 50)
    losses = falling_and_rising(50)
    curve = LRCurve(rates, losses, losses, "at the last rate")
    assert 1e-3 < curve.steepest < 0.1 < curve.before_rise
