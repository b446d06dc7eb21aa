"""Ignored rows, and batches of which no row counts."""

import math

import numpy as np
import pytest
from every import every
from samples import by_classes, by_dtype, by_float, every_way, near, sample

import pyce


@by_classes
@by_dtype
@every("poison", [np.nan, np.inf, -np.inf])
def test_ignored_rows_are_inert(backend, dtype, classes, poison):
    x, y = sample(classes, rows=40)
    x = x.astype(dtype)
    ignored = np.zeros(40, bool)
    ignored[[0, 3, 17, 18, 39]] = True
    y[ignored] = -100
    x[ignored] = poison
    for extra in (
        {},
        {"label_smoothing": 0.1},
        {"weight": np.linspace(0.5, 2, classes)},
        {"sample_weight": np.linspace(0.5, 2, 40)},
    ):
        options = dict(extra)
        if "sample_weight" in options:
            options["sample_weight"] = options["sample_weight"][~ignored]
        for reduction in ("mean", "sum", "none"):
            loss, grad, back = every_way(x, y, reduction=reduction, **extra)
            only, only_grad, only_back = every_way(
                x[~ignored], y[~ignored], reduction=reduction, **options
            )
            if reduction == "none":
                assert (loss[ignored] == 0).all()
                np.testing.assert_array_equal(loss[~ignored], only)
            else:
                near(loss, float(only), np.float32 if dtype.itemsize < 8 else dtype)
            for whole, part in ((grad, only_grad), (back, only_back)):
                assert (whole[ignored] == 0).all()
                near(whole[~ignored], part.astype(np.float64), dtype)


@by_float
def test_another_ignore_index(backend, dtype):
    """It may be a valid class, which is then never a target; -100 is then out of range."""
    x, y = sample(rows=20)
    x = x.astype(dtype)
    y[:4] = 2
    valid = y != 2
    loss, grad, _ = every_way(x, y, ignore_index=2)
    near(loss, float(pyce.cross_entropy(x[valid], y[valid])), dtype)
    assert (grad[~valid] == 0).all()
    assert (grad[valid] != 0).all()
    high = np.where(valid, y, 1000)
    np.testing.assert_array_equal(pyce.cross_entropy(x, high, ignore_index=1000), loss)
    for edge in (np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        target = np.where(valid, y, edge)
        np.testing.assert_array_equal(pyce.cross_entropy(x, target, ignore_index=edge), loss)
    with pytest.raises(IndexError):
        pyce.cross_entropy(x, np.where(valid, y, -100), ignore_index=2)


def test_ignore_index_and_sample_weight_of_nan(backend):
    """The sample weight of an ignored row does not matter."""
    x, y = sample()
    y[3] = -100
    s = np.ones(7)
    expected = pyce.cross_entropy_with_grad(x, y, sample_weight=s)
    s[3] = np.nan
    got = pyce.cross_entropy_with_grad(x, y, sample_weight=s)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ignore_index_is_for_labels(backend):
    """Probability targets are never ignored, whatever their values."""
    x, _ = sample()
    t = np.full(x.shape, -100.0)
    expected = pyce.cross_entropy(x, t, ignore_index=7, reduction="none")
    got = pyce.cross_entropy(x, t, reduction="none")
    np.testing.assert_array_equal(got, expected)
    assert (got != 0).all()


@by_float
def test_backward_reads_nothing_of_an_ignored_row(backend, dtype):
    """Neither its lse nor its factor is read."""
    x, y = sample()
    x = x.astype(dtype)
    y[3] = -100
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    g = np.linspace(1, 2, 7)
    expected = pyce.cross_entropy_backward(g, x, y, lse, reduction="none")
    lse[3] = g[3] = np.nan
    got = pyce.cross_entropy_backward(g, x, y, lse, reduction="none")
    np.testing.assert_array_equal(got, expected)
    assert (got[3] == 0).all()


@by_dtype
@every("rows", [0, 1, 5, 40])
@every("classes", [1, 3, 10, 100, 700])
def test_no_row_counts(backend, dtype, rows, classes):
    x = np.full((rows, classes), np.nan, dtype)
    y = np.full(rows, -100)
    for options, expected in (
        ({"reduction": "mean"}, math.nan),
        ({"reduction": "sum"}, 0.0),
        ({"reduction": "mean", "normalizer": 5.0}, 0.0),
        ({"reduction": "mean", "normalizer": 0.0}, 0.0),
    ):
        loss, grad, back = every_way(x, y, **options)
        np.testing.assert_array_equal(loss, expected)
        assert np.ndim(loss) == 0
        for g in (grad, back):
            assert g.shape == x.shape
            assert g.dtype == dtype
            assert (g == 0).all()
    loss, grad, back = every_way(x, y, reduction="none")
    assert loss.shape == (rows,)
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert (back == 0).all()


@every("ignored", [-101, -99, -1, 0, 1, 2**31, 2**63 - 1, -(2**63)])
def test_any_ignore_index(backend, ignored):
    """The given value marks ignored rows, and −100 is then out of range."""
    x = sample(3, 4)[0]
    kinds = [np.int64, *([np.uint64] if ignored >= 0 else [])]
    for kind in kinds:
        y = np.array([2, ignored, 2, ignored]).astype(kind)
        losses = pyce.cross_entropy(x, y, ignore_index=ignored, reduction="none")
        assert (losses[1::2] == 0).all()
        assert (losses[::2] > 0).all()
    with pytest.raises(IndexError, match="row 0 is -100"):
        pyce.cross_entropy(x, np.full(4, -100), ignore_index=ignored)


@every("classes", [3, 100, 300, 2100])
def test_whichever_row_is_ignored(backend, classes):
    """Lanes of an ignored row keep nothing of the rows that used them before."""
    rows = 36
    x, y = sample(classes, rows)
    x = x.astype(np.float32)
    options = {"reduction": "none", "label_smoothing": 0.1}
    losses, grads = pyce.cross_entropy_with_grad(x, y, **options)
    for row in range(rows):
        others = np.delete(np.arange(rows), row)
        target = y.copy()
        target[row] = -100
        loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
        assert loss[row] == 0
        assert (grad[row] == 0).all()
        near(loss[others], losses[others], np.float32)
        near(grad[others], grads[others], np.float32)


def test_one_weighted_class_with_ignored_rows(backend):
    y = np.array([0, -100, 0])
    for reduction in ("mean", "sum"):
        options = {"weight": [2.0], "reduction": reduction}
        loss, grad = pyce.cross_entropy_with_grad(np.zeros((3, 1)), y, **options)
        assert loss == 0
        assert (grad == 0).all()


def test_no_rows_as_lists(backend):
    """An empty list has no dtype of its own, and is valid as labels."""
    loss, grad = pyce.cross_entropy_with_grad(np.zeros((0, 3)), [], reduction="none")
    assert loss.shape == (0,)
    assert grad.shape == (0, 3)
    with pytest.raises(TypeError, match="class indices"):
        pyce.cross_entropy(np.zeros((0, 3)), np.zeros(0))
    with pytest.raises(TypeError, match="class indices"):
        pyce.cross_entropy(np.zeros((0, 3)), np.zeros(0).view(np.recarray))


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 0, 4)])
def test_no_rows_with_probabilities(backend, shape):
    x = np.zeros(shape)
    loss, grad = pyce.cross_entropy_with_grad(x, x)
    assert np.isnan(loss)
    assert grad.shape == shape
    assert pyce.cross_entropy(x, x, reduction="sum") == 0
    assert pyce.cross_entropy(x, x, reduction="none").shape == shape[:-1]
    assert pyce.softmax(x).shape == shape
    assert pyce.logsumexp(x).shape == shape[:-1]
