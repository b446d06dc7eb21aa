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
    for rows, count in ((0, 2), (3, 0)):
        nothing = np.zeros((rows, count), int)
        hidden, weight = np.zeros((rows, 5)), np.zeros((11, 5))
        for got, entropy in (
            pyce.selective_log_softmax(np.zeros((rows, 11)), nothing, return_entropy=True),
            pyce.linear_selective_log_softmax(hidden, weight, nothing, return_entropy=True),
        ):
            assert got.shape == nothing.shape
            np.testing.assert_allclose(entropy, np.full(rows, np.log(11)))


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_from_hidden_states(backend, dtype, monkeypatch):
    """`linear_selective_log_softmax` against float64 logits, in chunks of rows and of classes."""
    monkeypatch.setattr("pyce._linear_chunks._FORWARD_CLASSES", 7)
    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    h, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((3, 4, 9), (50, 9), (50,)))
    index = rng.integers(0, 50, (3, 4, 3))
    z = h.astype(np.float64) @ w.astype(np.float64).T
    for options, x in (
        ({}, z),
        (
            {"linear_bias": b, "softcap": 4.0, "logit_scale": 0.7, "temperature": 2.0},
            2.0 * np.tanh(0.7 * (z + b.astype(np.float64)) / 4.0),
        ),
        ({"temperature": 0.5}, 2.0 * z),
    ):
        soft = pyce.log_softmax(x)
        chosen = np.take_along_axis(soft, index, axis=-1)
        entropy = -(np.exp(soft) * soft).sum(axis=-1)
        tolerance = {"rtol": 1e-12 if dtype == np.float64 else 2e-5}
        for chunk in (1, 1500, None):
            call = {**options, "chunk_bytes": chunk}
            got = pyce.linear_selective_log_softmax(h, w, index[..., 0], **call)
            assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
            np.testing.assert_allclose(got, chosen[..., 0], **tolerance)
            got, h_of = pyce.linear_selective_log_softmax(
                h, w, index[..., 0], return_entropy=True, **call
            )
            np.testing.assert_allclose(got, chosen[..., 0], **tolerance)
            np.testing.assert_allclose(h_of, entropy, **tolerance)
            got, h_of = pyce.linear_selective_log_softmax(h, w, index, return_entropy=True, **call)
            np.testing.assert_allclose(got, chosen, **tolerance)
            np.testing.assert_allclose(h_of, entropy, **tolerance)
            alone = pyce.linear_selective_log_softmax(h, w, index, **call)
            np.testing.assert_array_equal(alone, got)


def test_bad_arguments_of_hidden_states(backend):
    h, w = np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)
    for error, match, index, options in (
        (IndexError, r"index at \(1,\) is 3, outside the valid range 0..2", [0, 3], {}),
        (IndexError, r"index at \(0,\) is -1, outside", [-1, 0], {}),
        (ValueError, r"index of shape \(3,\) does not fit input of shape \(2, 4\)", [0, 1, 2], {}),
        (TypeError, "index must be integers, got float64", [0.0, 1.0], {}),
        (ValueError, "temperature must be positive", [0, 1], {"temperature": 0.0}),
        (ValueError, "softcap must be positive", [0, 1], {"softcap": -1.0}),
    ):
        with pytest.raises(error, match=match):
            pyce.linear_selective_log_softmax(h, w, index, **options)
