"""`selective_log_softmax`: chosen log-probabilities and the entropy."""

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest

import pyce


def entropy_of(soft):
    return (soft.p * soft.minus_log_p).sum()


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("regime", ["random", "spread25", "confident30", "offset-1e4"])
def test_chosen_log_probabilities_and_entropy(backend, regime, dtype):
    for classes in (1, 2, 17, 100, 2100):
        x, y, _ = cases.Case(regime, classes, 5).make(dtype)
        soft = oracle.softmax_rows(x)
        got, entropy = pyce.selective_log_softmax(x, y, return_entropy=True)
        rows = np.arange(5)
        assert got.dtype == entropy.dtype == x.dtype
        assert oracle.ulp_error(got, -soft.minus_log_p[rows, y]).max() <= 2
        np.testing.assert_array_equal(got, pyce.selective_log_softmax(x, y))
        assert oracle.ulp_error(entropy, entropy_of(soft)).max() <= 8
        several = np.stack([y, (y + 1) % classes, y, np.full(5, classes - 1)], axis=1)
        got = pyce.selective_log_softmax(x, several)
        exact = -soft.minus_log_p[rows[:, None], several]
        assert oracle.ulp_error(got, exact).max() <= 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_temperature(backend, dtype):
    x = np.random.default_rng(0).normal(size=(6, 40)) * 5
    x = x.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    y = np.arange(6)
    wide = x.astype(np.float64)
    for t in (0.5, 3.0):
        soft = oracle.softmax_rows(wide / t)
        got, entropy = pyce.selective_log_softmax(x, y, temperature=t, return_entropy=True)
        assert got.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert oracle.ulp_error(got, -soft.minus_log_p[np.arange(6), y]).max() <= 2
        assert oracle.ulp_error(entropy, entropy_of(soft)).max() <= 8


def test_any_axis_any_layout_and_several_blocks(backend, monkeypatch):
    from pyce import _selective

    monkeypatch.setattr(_selective, "_BLOCK", 50)
    x = np.random.default_rng(0).normal(size=(3, 11, 4)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 11, (3, 4, 2))
    log_probs = np.moveaxis(pyce.log_softmax(x.astype(np.float64), axis=1), 1, -1)
    expected = np.take_along_axis(log_probs, y, axis=-1)
    for logits, axis in ((x, 1), (x[:, ::-1][:, ::-1], -2), (np.asfortranarray(x), 1)):
        np.testing.assert_allclose(
            pyce.selective_log_softmax(logits, y, axis=axis), expected, rtol=1e-6
        )
        got, entropy = pyce.selective_log_softmax(logits, y[..., 0], axis=axis, return_entropy=True)
        np.testing.assert_allclose(got, expected[..., 0], rtol=1e-6)
        assert entropy.shape == (3, 4)
    assert pyce.selective_log_softmax(x[0, :, 0], 3).shape == ()
    assert pyce.selective_log_softmax(np.zeros((0, 3)), []).shape == (0,)


def test_rows_without_an_answer(backend):
    x = np.zeros((5, 3), np.float32)
    x[0, 1], x[1, 1], x[2], x[3, 0] = np.nan, np.inf, -np.inf, -np.inf
    got, entropy = pyce.selective_log_softmax(x, [[0, 1]] * 5, return_entropy=True)
    assert np.isnan(got[:3]).all()
    assert np.isnan(entropy[:3]).all()
    np.testing.assert_allclose(got[3], [-np.inf, -np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(entropy[3:], [np.log(2), np.log(3)], rtol=1e-6)


def test_bad_arguments(backend):
    x = np.zeros((2, 3))
    for index, value in (([0, 3], 3), ([0, -1], -1), ([0, -100], -100)):
        message = rf"index at \(1,\) is {value}, outside the valid range 0..2 for 3 classes"
        with pytest.raises(IndexError, match=message):
            pyce.selective_log_softmax(x, index)
    for index in ([0, 1, 2], 0, [[[0]], [[1]]]):
        with pytest.raises(ValueError, match=r"does not fit logits of shape \(2, 3\)"):
            pyce.selective_log_softmax(x, index)
    with pytest.raises(TypeError, match="index has masked elements"):
        pyce.selective_log_softmax(x, np.ma.masked_equal([0, 1], 1))
    with pytest.raises(TypeError, match="index must be integers, got float64"):
        pyce.selective_log_softmax(x, [0.0, 1.0])
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be"):
            pyce.selective_log_softmax(x, [0, 1], temperature=temperature)
