"""Rows with NaN or infinities, and zero coefficients that multiply them."""

import numpy as np
import oracle
import pytest
from every import every
from samples import by_classes, by_dtype, by_float, every_way, log_probs, near, sample

import pyce


@every("classes", [3, 10, 100, 700])
@by_dtype
@every("soft", [False, True])
@every("axis", [0, 1])
@pytest.mark.parametrize("poison", ["nan", "inf", "all -inf", "nan at target", "nan last"])
def test_a_bad_row_stays_alone(backend, dtype, classes, soft, axis, poison):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    clean = x.copy()
    bad = np.zeros(35, bool)
    bad[[0, 16, 33]] = True
    off = (y + 1) % classes
    if poison == "nan":
        x[bad, off[bad]] = np.nan
    elif poison == "inf":
        x[bad, off[bad]] = np.inf
        x[16] = np.inf
    elif poison == "all -inf":
        x[bad] = -np.inf
    elif poison == "nan at target":
        x[bad, y[bad]] = np.nan
    else:
        x[16, 0] = np.inf
        x[bad, -1] = np.nan
    target = np.eye(classes, dtype=np.float32)[y] if soft else y
    if axis == 0:
        x, clean = np.ascontiguousarray(x.T), np.ascontiguousarray(clean.T)
        target = np.ascontiguousarray(target.T) if soft else target
    options = {"axis": axis, "reduction": "none"}
    loss, grad, back = every_way(x, target, **options)
    right, right_grad, right_back = every_way(clean, target, **options)
    assert np.isnan(loss[bad]).all()
    np.testing.assert_array_equal(loss[~bad], right[~bad])
    pairs = [(grad, right_grad), (back, right_back)]
    pairs.append((pyce.softmax(x, axis=axis), pyce.softmax(clean, axis=axis)))
    pairs.append((pyce.log_softmax(x, axis=axis), pyce.log_softmax(clean, axis=axis)))
    for got, expected in pairs:
        got, expected = np.moveaxis(got, axis, -1), np.moveaxis(expected, axis, -1)
        assert np.isnan(got[bad].astype(np.float64)).all()
        np.testing.assert_array_equal(got[~bad], expected[~bad])
    assert np.isnan(pyce.cross_entropy(x, target, axis=axis))
    # The logsumexp of infinities is defined.
    expected = {"inf": np.inf, "all -inf": -np.inf}.get(poison, np.nan)
    got = pyce.logsumexp(x, axis=axis)
    np.testing.assert_array_equal(got[bad], expected)
    assert np.isfinite(got[~bad]).all()


@by_classes
@by_dtype
def test_an_lse_that_is_not_finite(backend, dtype, classes):
    """The gradient of its row is NaN, even for finite logits; that of other rows is not."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    for target in (y, np.eye(classes, dtype=np.float32)[y]):
        _, lse = pyce.cross_entropy(x, target, return_lse=True)
        expected = pyce.cross_entropy_backward(1.0, x, target, lse)
        bad = np.isin(np.arange(20), [0, 7, 18])
        lse[bad] = np.nan, np.inf, -np.inf
        got = pyce.cross_entropy_backward(1.0, x, target, lse)
        assert np.isnan(got[bad].astype(np.float64)).all()
        np.testing.assert_array_equal(got[~bad], expected[~bad])


@by_float
def test_a_sample_weight_of_zero_keeps_the_lse(backend, dtype):
    """The loss and the gradient of the row are 0, even of NaN, but the row is not ignored."""
    x, y = sample(rows=4)
    x = x.astype(dtype)
    x[0, 0] = np.nan
    x[1, y[1]] = -np.inf
    s = np.array([0.0, 0.0, 0.0, 1.0])
    loss, grad, back = every_way(x, y, sample_weight=s, reduction="none")
    assert (loss[:3] == 0).all() and loss[3] > 0
    for g in (grad, back):
        assert (g[:3] == 0).all() and (g[3] != 0).all()
    _, lse = pyce.cross_entropy(x, y, sample_weight=s, return_lse=True)
    near(lse, pyce.logsumexp(x), dtype)
    assert (lse[1:] != 0).all()
    assert pyce.cross_entropy(x, y, sample_weight=s) == loss[3]


@by_classes
@by_dtype
def test_minus_infinity_off_the_target(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    mask = np.random.default_rng(6).random(x.shape) < 0.5
    mask[np.arange(35), y] = False
    x[mask] = -np.inf
    loss, grad, back = every_way(x, y, reduction="none")
    assert np.isfinite(loss).all()
    exact = oracle.reference(x, y, reduction="none")
    near(loss, exact.loss.hi, np.float32 if dtype.itemsize < 8 else dtype)
    for g in (grad, back):
        assert (g[mask] == 0).all()
        assert np.isfinite(g.astype(np.float64)).all()
        near(g, exact.grad.hi, dtype)
    assert (pyce.softmax(x)[mask] == 0).all()
    assert (pyce.log_softmax(x)[mask] == -np.inf).all()


@by_classes
@by_dtype
def test_minus_infinity_at_the_target(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    hit = np.zeros(35, bool)
    hit[[1, 15, 16, 34]] = True
    x[hit, y[hit]] = -np.inf
    loss, grad, back = every_way(x, y, reduction="none")
    assert (loss[hit] == np.inf).all()
    assert np.isfinite(loss[~hit]).all()
    p = np.exp(x.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = p - np.eye(classes)[y]
    for g in (grad, back):
        near(g, expected, dtype)
        assert (g[hit, y[hit]] == -1).all()
    assert pyce.cross_entropy(x, y) == np.inf
    assert pyce.cross_entropy(x, y, reduction="sum") == np.inf


@by_classes
@by_float
def test_probability_zero_meets_minus_infinity(backend, dtype, classes):
    """0 · inf is 0; a larger target probability at −inf makes the loss infinite."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    off = (y + 1) % classes
    x[np.arange(20), off] = -np.inf
    t = np.eye(classes)[y]
    hard = pyce.cross_entropy(x, y, reduction="none").astype(np.float64)
    near(pyce.cross_entropy(x, t, reduction="none"), hard, dtype)
    t[5, off[5]] = 0.25
    loss, grad, back = every_way(x, t, reduction="none")
    assert loss[5] == np.inf
    assert np.isfinite(np.delete(loss, 5)).all()
    for g in (grad, back):
        assert np.isfinite(g).all()
        assert g[5, off[5]] == -0.25
    # Smoothing spreads probability over the masked class too.
    assert (pyce.cross_entropy(x, y, label_smoothing=0.1, reduction="none") == np.inf).all()


@by_classes
@by_float
def test_class_weight_zero_meets_minus_infinity(backend, dtype, classes):
    """The coefficient is 0 by the weight: at the label, in probabilities and under smoothing."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    y[:] = 0
    x[:, 0] = -np.inf
    w = np.ones(classes)
    w[0] = 0.0
    for result in every_way(x, y, weight=w, reduction="none"):
        assert (result == 0).all()
    t = np.full(x.shape, 1 / classes, dtype)
    log_p = log_probs(x[:, 1:].astype(np.float64))
    spread = -log_p.sum(1) / classes
    for target, options, expected in (
        (t, {}, spread),
        (y + 1, {"label_smoothing": 0.1}, 0.1 * spread - 0.9 * log_p[:, 0]),
    ):
        loss, grad, back = every_way(x, target, weight=w, reduction="none", **options)
        near(loss, expected, dtype, 1.0)
        for g in (grad, back):
            assert np.isfinite(g).all()
            assert (g[:, 0] == 0).all()
