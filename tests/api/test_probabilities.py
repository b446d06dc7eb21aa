"""`nll_loss` and `log_loss`: the losses from log-probabilities and from probabilities."""

import math

import mpmath
import numpy as np
import pytest
from every import every
from samples import by_dtype, sample

import pyce

KWARGS = {
    "plain": {},
    "weight": {"weight": np.linspace(0.5, 2, 5)},
    "sample_weight": {"sample_weight": np.linspace(0.5, 2, 7)},
    "smoothing": {"label_smoothing": 0.1},
    "normalizer": {"normalizer": 3.0},
    "everything": {
        "weight": np.linspace(0.5, 2, 5),
        "sample_weight": np.linspace(0.5, 2, 7),
        "label_smoothing": 0.1,
    },
}


@every("reduction", ["mean", "sum", "none"])
@every("kwargs", KWARGS)
@every("soft", [False, True])
@every("axis", [0, 1])
def test_three_ways_to_the_same_loss(backend, axis, soft, kwargs, reduction):
    x, y = sample()
    y[2] = -100
    target = np.random.default_rng(1).random(x.shape) if soft else y
    if axis == 0:
        x, target = x.T, target.T
    options = {"axis": axis, "reduction": reduction, **KWARGS[kwargs]}
    expected = pyce.cross_entropy(x, target, **options)
    p = pyce.softmax(x, axis=axis)
    from_logs = pyce.nll_loss(np.log(p), target, **options)
    from_probs = pyce.log_loss(p, target, **options)
    for got in (from_logs, from_probs):
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(got, expected, rtol=1e-13)


@by_dtype
def test_dtypes_of_the_losses(backend, dtype):
    p = np.full((3, 4), 0.25, dtype)
    result = np.float64 if dtype == np.float64 else np.float32
    for call, loss in ((pyce.log_loss, math.log(4)), (pyce.nll_loss, -0.25)):
        for reduction in ("mean", "none"):
            got = call(p, [0, 1, 2], reduction=reduction)
            assert got.dtype == result
            np.testing.assert_array_equal(got, result(loss))


def test_log_loss_of_zero(backend):
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    # 0 log 0 = 0: a certain and correct prediction has loss 0.
    t = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(pyce.log_loss(p, t, reduction="none"), [0, np.log(2)])
    np.testing.assert_array_equal(pyce.log_loss(p, [0, 1], reduction="none"), [0, np.log(2)])
    # Probability 0 at the target has infinite loss: nothing is clipped unless requested.
    np.testing.assert_array_equal(pyce.log_loss(p, [1, 2], reduction="none"), [np.inf, np.inf])
    assert pyce.log_loss(p, [0, 2]) == np.inf
    assert np.isfinite(pyce.log_loss(np.array([[1 - 1e-300, 1e-300]]), [1]))


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-17, 1e-15, 1e-7, 0.01, 0.4])
def test_log_loss_clips_on_request(backend, eps):
    """Against numbers without rounding: 1 − eps has few digits of a small eps."""
    p = np.array([0.0, 1.0, 1.0 - 2.0**-53, 0.3, 0.7, 2.0, -1.0, np.nan])
    got = pyce.log_loss(np.stack([p, 1 - p], axis=1), np.zeros(8, int), eps=eps, reduction="none")
    assert np.isnan(got[-1])
    assert (got[:-1] >= 0.0).all()
    with mpmath.workdps(400):
        for found, given in zip(got.tolist(), p.tolist()[:-1], strict=False):
            clipped = min(max(mpmath.mpf(given), eps), 1 - mpmath.mpf(eps))
            if not clipped:
                assert found == math.inf
                continue
            exact = -mpmath.log(clipped)
            assert abs(found - exact) <= 2 * np.spacing(float(exact)), given


def test_probabilities_are_taken_as_they_are(backend):
    """They are not rescaled; a negative one with a weight gives NaN."""
    p = np.array([[2.0, 2.0], [0.25, 0.25], [-0.5, 1.0], [1.0, -0.5]])
    got = pyce.log_loss(p, [0, 0, 0, 0], reduction="none")
    np.testing.assert_array_equal(got, [-np.log(2), np.log(4), np.nan, 0.0])
    t = [[1.0, 0.0]] * 4
    np.testing.assert_array_equal(pyce.log_loss(p, t, reduction="none"), got)


def test_nll_loss_of_minus_infinity(backend):
    """A class with coefficient 0 may have any log-probability."""
    for other in (-np.inf, np.inf, np.nan):
        log_p = np.array([[-0.5, other]])
        assert pyce.nll_loss(log_p, [0]) == 0.5
        assert pyce.nll_loss(log_p, [[1.0, 0.0]]) == 0.5
        assert pyce.nll_loss(log_p, [1], weight=[1.0, 0.0], reduction="none") == 0
    assert pyce.nll_loss([[-0.5, -np.inf]], [1]) == np.inf
    assert pyce.nll_loss([[-0.5, -np.inf]], [[0.5, 0.5]]) == np.inf


def test_log_loss_against_scikit_learn_by_hand(backend):
    """Of three rows: -(log 0.9 + log 0.8 + log 0.35) / 3."""
    p = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.25, 0.4, 0.35]]
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.35)) / 3
    np.testing.assert_allclose(pyce.log_loss(p, [0, 1, 2]), expected, rtol=1e-15)


@pytest.mark.parametrize("call", [pyce.nll_loss, pyce.log_loss])
def test_ignored_rows_of_the_other_losses(backend, call):
    p = np.array([[0.5, 0.5], [np.nan, np.nan], [0.25, 0.75]])
    y = np.array([0, -100, 1])
    np.testing.assert_array_equal(call(p, y), call(p[[0, 2]], y[[0, 2]]))
    assert call(p, y, reduction="none")[1] == 0
    assert np.isnan(call(p, [-100] * 3))
    assert call(p, [-100] * 3, normalizer=2.0) == 0
    assert call(p, [-100] * 3, reduction="sum") == 0
