"""Shapes and dtypes of logits, targets and results."""

import numpy as np
import oracle
from every import every
from samples import DTYPES, by_dtype, by_float, every_way, log_probs, near, sample

import pyce


@by_dtype
@every("rows", [1, 5, 40])
@every("offset", [0.0, -3.5, 200.0, 6e4])
def test_one_class(backend, dtype, rows, offset):
    x = np.full((rows, 1), offset, dtype)
    y = np.zeros(rows, int)
    loss, grad, back = every_way(x, y, reduction="none")
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert (back == 0).all()
    near(pyce.softmax(x), 1.0, dtype)
    assert (pyce.log_softmax(x) == 0).all()
    assert (pyce.logsumexp(x) == x[:, 0].astype(np.float64)).all()
    assert pyce.cross_entropy(x, y) == 0
    # With one class, loss and gradient are 0 for any target.
    t = np.full((rows, 1), 0.7, np.float32)
    weights = {"weight": [0.9], "sample_weight": np.linspace(0.3, 0.9, rows)}
    for target, options in (
        (t, {}),
        (t, {"label_smoothing": 0.1}),
        (y, {"label_smoothing": 0.1}),
        (t, {"label_smoothing": 0.1, **weights}),
        (y, {"label_smoothing": 0.1, **weights}),
    ):
        for result in every_way(x, target, reduction="none", **options):
            assert (result == 0).all()


SHAPES = [
    ((5,), 0),
    ((4, 5), -1),
    ((4, 5), 0),
    ((2, 5, 3), 1),
    ((2, 5, 3), -2),
    ((2, 3, 4, 5), 0),
    ((2, 3, 4, 5), 3),
    ((1, 1, 1), 1),
    ((70, 2), 0),
    ((3, 700, 2), 1),
]


@by_dtype
@every(("shape", "axis"), SHAPES)
def test_shapes_and_dtypes_of_results(backend, dtype, shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    positions = tuple(np.delete(shape, axis))
    y = rng.integers(0, shape[axis], positions)
    t = rng.random(shape).astype(np.float32)
    result = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    for target in (y, t):
        for reduction in ("mean", "sum", "none"):
            options = {"axis": axis, "reduction": reduction}
            expected = positions if reduction == "none" else ()
            loss = pyce.cross_entropy(x, target, **options)
            both = pyce.cross_entropy(x, target, return_lse=True, **options)
            pair = pyce.cross_entropy_with_grad(x, target, **options)
            three = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            assert (len(both), len(pair), len(three)) == (2, 2, 3)
            for value in (loss, both[0], pair[0], three[0]):
                assert value.dtype == result
                assert value.shape == expected
                assert isinstance(value, np.ndarray if reduction == "none" else np.generic)
                np.testing.assert_array_equal(value, loss)
            for lse in (both[1], three[2]):
                assert lse.shape == positions
                assert lse.dtype == np.float64
                assert isinstance(lse, np.ndarray)
                np.testing.assert_array_equal(lse, both[1])
            ones = np.ones(positions) if reduction == "none" else 1.0
            back = pyce.cross_entropy_backward(ones, x, target, both[1], **options)
            for grad in (pair[1], three[1], back):
                assert type(grad) is np.ndarray
                assert grad.shape == shape
                assert grad.dtype == dtype
                assert grad.flags.c_contiguous
            np.testing.assert_array_equal(pair[1], three[1])
    for result in (pyce.softmax(x, axis=axis), pyce.log_softmax(x, axis=axis)):
        assert (result.shape, result.dtype) == (shape, dtype)
    lse = pyce.logsumexp(x, axis=axis)
    assert lse.dtype == np.float64
    assert lse.shape == positions
    kept = pyce.logsumexp(x, axis=axis, keepdims=True)
    assert kept.dtype == np.float64
    np.testing.assert_array_equal(kept, np.expand_dims(lse, axis))


@by_dtype
@every(("shape", "axis"), SHAPES)
def test_any_class_axis(backend, dtype, shape, axis):
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(dtype)
    y = rng.integers(0, shape[axis], tuple(np.delete(shape, axis)))
    exact = oracle.reference(x, y, axis=axis, reduction="none")
    loss, grad, back = every_way(x, y, axis=axis, reduction="none")
    near(loss, exact.loss.hi, np.float32 if dtype.itemsize < 8 else dtype)
    near(grad, exact.grad.hi, dtype)
    near(back, exact.grad.hi, dtype)


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@every("kind", INTEGERS)
@every("classes", [3, 100, 120])
def test_integer_targets_of_any_dtype(backend, kind, classes):
    x, y = sample(classes, rows=20)
    expected = pyce.cross_entropy_with_grad(x, y)
    forms = [y.astype(kind), y.astype(kind).astype(np.dtype(kind).newbyteorder())]
    strided = np.zeros(40, kind)
    strided[::2] = y
    forms.append(strided[::2])
    forms.append(y.astype(kind)[::-1].copy()[::-1])
    raw = np.zeros(20 * np.dtype(kind).itemsize + 1, np.uint8)[1:].view(kind)
    raw[:] = y
    forms.append(raw)
    if np.dtype(kind).kind == "i":
        forms.append(np.where(np.arange(20) == 3, -100, y).astype(kind))
        y = np.where(np.arange(20) == 3, -100, y)
    for target in forms[:-1]:
        got = pyce.cross_entropy_with_grad(x, target)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    got = pyce.cross_entropy_with_grad(x, forms[-1])
    for one, other in zip(got, pyce.cross_entropy_with_grad(x, y), strict=True):
        np.testing.assert_array_equal(one, other)


@by_float
@every("kind", DTYPES)
def test_probability_targets_of_any_dtype(backend, dtype, kind):
    x, _ = sample(20)
    t = np.random.default_rng(2).random(x.shape).astype(kind)
    x = x.astype(dtype)
    exact = oracle.reference(x, t, reduction="none")
    loss, grad, back = every_way(x, t, reduction="none")
    near(loss, exact.loss.hi, dtype)
    near(grad, exact.grad.hi, dtype)
    near(back, exact.grad.hi, dtype)


def test_lists_are_float64(backend):
    loss, grad = pyce.cross_entropy_with_grad([[1, 2, 3], [0, 0, 0]], [2, 0])
    assert loss.dtype == grad.dtype == np.float64
    expected = (np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(3)) / 2
    near(loss, expected)
    near(pyce.cross_entropy([1.0, 2.0, 0.5], 1), -log_probs(np.array([1, 2, 0.5]))[1])
    near(pyce.cross_entropy([[1.0, 2.0]], [[0.25, 0.75]]), 0.25 + np.log1p(np.exp(-1)))
    assert pyce.softmax([1, 2]).dtype == np.float64
    assert pyce.cross_entropy(np.float32([1, 2]), 0).dtype == np.float32


def test_lists_are_float64_whatever_is_in_them(backend):
    x = np.array([[0.1, 2, 3], [3, 2, 1]], np.float32)
    out = np.empty((2, 3))
    loss, grad = pyce.cross_entropy_with_grad([list(row) for row in x], [0, 1], out=out)
    assert grad is out
    assert loss.dtype == np.float64
    assert loss == pyce.cross_entropy(x.astype(np.float64), [0, 1])


@every("shape", [(0, 3), (3, 0), (2, 3, 0)])
def test_probabilities_without_rows_and_without_a_dtype(backend, shape):
    """NumPy makes float64 of an empty list, and class indices are meant only by their shape."""
    x = np.zeros(shape, np.float32)
    axis = shape.index(3)
    for target in (memoryview(np.zeros(shape)), list(np.zeros(shape)), np.zeros(shape).tolist()):
        if np.shape(target) == shape:
            loss, grad = pyce.cross_entropy_with_grad(x, target, axis=axis, reduction="sum")
            assert loss == 0.0 and grad.shape == shape
    labels = np.zeros(shape).sum(axis).tolist()
    assert pyce.cross_entropy(x, labels, axis=axis, reduction="sum") == 0.0


def most_dimensions():
    """32 in NumPy 1, 64 in NumPy 2."""
    try:
        return np.zeros((1,) * 64).ndim
    except ValueError:
        return 32


@by_float
@every("axis", [0, -1])
def test_as_many_dimensions_as_arrays_have(backend, dtype, axis):
    x, y = sample(5, rows=6)
    x = x.astype(dtype)
    positions = (2, *(1,) * (most_dimensions() - 3), 3)
    logits = np.moveaxis(x.reshape(*positions, 5), -1, axis)
    labels = y.reshape(positions)
    for options in ({}, {"label_smoothing": 0.1, "weight": np.linspace(0.5, 2.0, 5)}):
        loss, grad = pyce.cross_entropy_with_grad(logits, labels, axis=axis, **options)
        expected, of_rows = pyce.cross_entropy_with_grad(x, y, **options)
        near(loss, expected, dtype)
        near(np.moveaxis(grad, axis, -1).reshape(x.shape), of_rows, dtype)
        log_p = pyce.log_softmax(logits, axis=axis)
        near(pyce.nll_loss(log_p, labels, axis=axis, **options), expected, dtype)
        near(pyce.log_loss(np.exp(log_p), labels, axis=axis, **options), expected, dtype)
    assert pyce.accuracy(logits, labels, axis=axis) == pyce.accuracy(x, y)
    near(pyce.logsumexp(logits, axis=axis).reshape(-1), pyce.logsumexp(x), dtype)
