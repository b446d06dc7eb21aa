"""Rows whose classes are cut into shards: states, and loss and gradient from them."""

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss

import pyce
from pyce._backends import load
from pyce._problem import ShardedProblem

CLASSES = 5000
ALIGNED = ((0, 5000), (0, 2048, 5000), (0, 2048, 4096, 4096, 5000), (0, 0, 4096, 5000, 5000))
CUTS = ((0, 1, 700, 700, 5000), (0, 4999, 5000))
KINDS = ("plain", "smoothing", "probabilities", "smoothed probabilities", "ignored")


def make(kind, regime, classes, dtype, rows=6):
    """Logits, a target and options."""
    x, y, _ = cases.Case(regime, classes, rows).make(dtype)
    if "probabilities" in kind:
        y = np.random.default_rng(classes).random(x.shape).astype(dtype)
    if kind == "ignored":
        return x, np.where(np.arange(rows) % 3 == 1, -1, y), {"ignore_index": -1}
    return x, y, {"label_smoothing": 0.1} if "smooth" in kind else {}


def problem(x, target, bounds, own, *, ignore_index=-100, label_smoothing=0.0, **options):
    """The problem of one shard, its outputs filled with a number."""
    p = ShardedProblem()
    here = slice(bounds[own], bounds[own + 1])
    p.logits = x[:, here]
    p.dtype_name = x.dtype.name
    p.outer = p.rows = len(x)
    p.axis = p.inner = 1
    p.classes = x.shape[1]
    p.contiguous = False
    labels = target.ndim == 1
    p.labels, p.probs = (target, None) if labels else (None, target[:, here])
    p.weight = p.sample_weight = p.lse = p.normalizer = p.losses = p.grad = None
    p.ignore_index, p.smoothing = ignore_index, label_smoothing
    p.lse_square_scale = options.get("lse_square_scale", 0.0)
    p.reduction = options.get("reduction", "mean")
    p.grad_loss = 1.0
    if p.logits.size:
        p.grad = np.full(p.logits.shape, 7, x.dtype)
    if p.reduction == "none":
        p.losses = np.full(len(x), 7, np.float64 if x.dtype == np.float64 else np.float32)
    p.bounds, p.own = bounds, own
    return p


def sharded(backend, x, target, bounds, **options):
    """Loss and gradient, after a check that all shards have the same loss."""
    module = load(backend.name)
    shards = [problem(x, target, bounds, own, **options) for own in range(len(bounds) - 1)]
    states = [module.partial(p) for p in shards]
    losses = [module.complete(p, states) for p in shards]
    losses = [p.losses if loss is None else loss for loss, p in zip(losses, shards, strict=True)]
    assert len({np.asarray(loss).tobytes() for loss in losses}) == 1
    return losses[0], np.concatenate([p.grad for p in shards if p.grad is not None], axis=1)


@pytest.fixture
def shard_backend(backend):
    if load(backend.name).partial is None:
        pytest.skip("this backend leaves shards to NumPy")
    return backend


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_any_cuts_keep_the_accuracy(shard_backend, dtype, kind):
    for regime, scale in (("spread25", 0.0), ("confident30", 1.0), ("offset-1e4", 0.0)):
        for bounds in ((0, 1, 700, 700, 2100), (0, 2099, 2100)):
            x, target, options = make(kind, regime, 2100, dtype)
            options = {**options, "lse_square_scale": scale, "reduction": "none"}
            exact = oracle.reference(x, target, **options)
            loss, grad = sharded(shard_backend, x, target, bounds, **options)
            check_loss(loss, exact.loss)
            check_array(grad, exact.grad, exact.terms)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_shards_at_multiples_of_2048_have_the_bytes_of_whole_rows(c_backend, dtype):
    rng = np.random.default_rng(1)
    for spread, order in ((1, "C"), (30, "F"), (400, "C")):
        x = (rng.standard_normal((7, CLASSES)) * spread).astype(ml_dtypes.finfo(dtype).dtype, order)
        labels = rng.integers(0, CLASSES, 7)
        labels[2] = -100
        probs = rng.random(x.shape).astype(np.float32)
        for target in (labels, labels.astype(np.int32), probs):
            for reduction, smoothing, scale in (
                ("mean", 0.0, 0.0),
                ("sum", 0.1, 1e-3),
                ("none", 0.0, 1.0),
            ):
                options = {
                    "reduction": reduction,
                    "label_smoothing": smoothing,
                    "lse_square_scale": scale,
                }
                expected = pyce.cross_entropy_with_grad(x, target, **options)
                for bounds in ALIGNED:
                    loss, grad = sharded(c_backend, x, target, bounds, **options)
                    assert np.asarray(loss).tobytes() == np.asarray(expected[0]).tobytes()
                    assert grad.tobytes() == expected[1].tobytes()


def test_rows_that_are_not_finite(shard_backend):
    x = np.random.default_rng(2).standard_normal((8, CLASSES)).astype(np.float32)
    y = np.full(8, 3)
    x[0, 4500] = np.nan
    x[1, 20] = np.inf
    x[2] = -np.inf
    x[3, 700:] = -np.inf  # the last shards have nothing else
    x[4, 3] = -np.inf
    x[5, 4999] = np.nan
    y[5] = -100
    x[6, :700] = -1e30
    for target, smoothing in ((y, 0.0), (y, 0.1), (np.eye(CLASSES, dtype=np.float32)[y], 0.0)):
        options = {"reduction": "none", "label_smoothing": smoothing}
        whole = pyce.cross_entropy_with_grad(x, target, **options)
        for bounds in (*ALIGNED, *CUTS):
            parts = sharded(shard_backend, x, target, bounds, **options)
            np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
            np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6, atol=1e-37)


def test_a_label_out_of_range_leaves_the_outputs_as_they_were(shard_backend):
    x = np.zeros((3, CLASSES), np.float32)
    module = load(shard_backend.name)
    good = [problem(x, np.array([1, 2, 3]), CUTS[1], own) for own in range(2)]
    states = [module.partial(p) for p in good]
    p = problem(x, np.array([1, 5000, -1]), CUTS[1], 0, reduction="none")
    for call in (lambda: module.partial(p), lambda: module.complete(p, states)):
        with pytest.raises(IndexError, match=r"row 1 is 5000, outside the valid range 0\.\.4999"):
            call()
    assert (p.losses == 7).all()
    assert (p.grad == 7).all()


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 0.0), ("mean", np.nan)])
def test_no_rows(shard_backend, reduction, expected):
    x, y = np.zeros((0, CLASSES), np.float32), np.zeros(0, np.int64)
    module = load(shard_backend.name)
    shards = [problem(x, y, CUTS[1], own, reduction=reduction) for own in range(2)]
    states = [module.partial(p) for p in shards]
    for p in shards:
        np.testing.assert_equal(float(module.complete(p, states)), expected)


def test_c_refuses_shards_that_do_not_fit(c_backend):
    from pyce._pyce import ffi, lib

    from pyce._backends import c

    x = np.zeros((2, 10), np.float32)
    y = np.array([1, 2])
    state = np.full((2, 3), 7.0)
    pointer = ffi.from_buffer("double[]", state)
    for bounds, own, change in (
        ((0, 4, 10), 0, {"inner": 2}),
        ((0, 4, 10), 0, {"classes": 11}),
        ((0, 4, 10), 0, {"operation": lib.PYCE_BACKWARD}),
        ((0, 4, 10), 0, {"outer": 2**61}),
        ((0, 4, 10), 0, {"weight": ffi.from_buffer("double[]", np.ones(10))}),
        ((0, 4, 10), 0, {"lse": ffi.from_buffer("double[]", np.ones(2))}),
        ((0, 4, 10), 2, {}),
        ((0, 4, 10), -1, {}),
        ((1, 4, 10), 0, {}),
        ((0, 11, 10), 0, {}),
    ):
        p = problem(x, y, (0, 4, 10), 0)
        p.bounds, p.own = bounds, own
        filled, keep_alive = c._sharded(p)
        filled.result.data = ffi.NULL
        filled.reduction = lib.PYCE_SUM
        for name, value in change.items():
            setattr(filled, name, value)
        assert lib.pyce_partial(filled, keep_alive[0], pointer) == lib.PYCE_BAD_ARGUMENT
        states = ffi.new("double *[]", [pointer, pointer])
        assert lib.pyce_complete(filled, keep_alive[0], states) == lib.PYCE_BAD_ARGUMENT
    p = problem(x, y, (0, 10), 0)
    filled, keep_alive = c._sharded(p)
    filled.result.data, filled.reduction = ffi.NULL, lib.PYCE_SUM
    shards = keep_alive[0]
    none = ffi.NULL
    logits = ffi.cast("double *", filled.logits.data)
    for call in (
        lambda: lib.pyce_partial(filled, shards, none),
        lambda: lib.pyce_partial(filled, shards, logits),
        lambda: lib.pyce_partial(filled, none, pointer),
        lambda: lib.pyce_partial(none, shards, pointer),
        lambda: lib.pyce_complete(filled, shards, none),
        lambda: lib.pyce_complete(filled, shards, ffi.new("double *[]", [none])),
    ):
        assert call() == lib.PYCE_BAD_ARGUMENT
    assert (state == 7.0).all()
