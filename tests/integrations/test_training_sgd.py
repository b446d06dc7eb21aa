"""pyce.training.SGD: the steps of torch.optim.SGD."""

import copy
import inspect
import itertools
import math

import numpy as np
import pytest

from pyce.training import SGD

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
        # The number of roundings of each product may differ by one; values are about 1.
        close = {"rtol": 4 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
        for p, q in zip(ours, theirs, strict=True):
            assert p.dtype == dtype
            np.testing.assert_allclose(p, q.detach().numpy(), **close)
    moved = any((p != q).any() for p, q in zip(ours, changed, strict=True))
    assert moved == (options["lr"] > 0)


def test_options_that_are_left_out_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    options = inspect.signature(SGD).parameters
    theirs = inspect.signature(torch.optim.SGD).parameters
    for name in ("momentum", "dampening", "weight_decay", "nesterov", "maximize"):
        assert options[name].default == theirs[name].default, name


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
        optimizer.lr = kind(0.1)  # for example from np.geomspace
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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_that_are_parameters(momentum):
    """The gradients of a·b are b and a: both are those before the step."""
    a, b = np.array([1.0, 5.0]), np.array([2.0, 3.0])
    SGD([a, b], lr=0.1, momentum=momentum).step([b, a[:]])
    np.testing.assert_array_equal(a, np.array([1.0, 5.0]) - 0.1 * np.array([2.0, 3.0]))
    np.testing.assert_array_equal(b, np.array([2.0, 3.0]) - 0.1 * np.array([1.0, 5.0]))


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
        begun.step(g)  # it shares no array with `resumed`
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
