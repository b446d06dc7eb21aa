"""`selective_log_softmax`: chosen log-probabilities and the entropy."""

import math

import cases
import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest
from samples import by_dtype, by_float

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


def exact_rows(x, t):
    """log p (N, C) and the entropies of rows of floats with the temperature t, mpf."""
    found = []
    with mpmath.workdps(60):
        for row in x.astype(np.float64).tolist():
            top = row.index(max(row))
            z = [(mpmath.mpf(v) - mpmath.mpf(row[top])) / mpmath.mpf(t) for v in row]
            e = [mpmath.exp(v) for v in z]
            log_sum = mpmath.log1p(mpmath.fsum(e[:top] + e[top + 1 :]))
            log_p = [v - log_sum for v in z]
            terms = [w * v for v, w in zip(log_p, e, strict=True) if w]
            found.append((log_p, -mpmath.fsum(terms) / mpmath.fsum(e)))
    return [log_p for log_p, _ in found], [h for _, h in found]


def check(found, exact, ulp):
    """Within `ulp` units in the last place, also below the normal numbers; infinite beyond them."""
    info = np.finfo(found.dtype)
    for value, right in zip(found.ravel().tolist(), exact, strict=True):
        if math.isinf(value):
            assert abs(right) > float(info.max), right
            assert value * float(mpmath.sign(right)) > 0.0
            continue
        size = max(abs(found.dtype.type(right)), info.smallest_normal)
        with mpmath.workdps(60):
            assert abs(mpmath.mpf(value) - right) <= ulp * float(np.spacing(size)), (value, right)


def check_temperature(x, t, entropies=True):
    """Each class alone, all of them, and the entropy, against exact numbers of the given logits."""
    log_p, h = exact_rows(x, t)
    classes = x.shape[1]
    for y in range(classes):
        got = pyce.selective_log_softmax(x, np.full(len(x), y), temperature=t)
        check(got, [row[y] for row in log_p], 2)
    every_class = np.broadcast_to(np.arange(classes), x.shape)
    got, entropy = pyce.selective_log_softmax(x, every_class, temperature=t, return_entropy=True)
    assert got.dtype == entropy.dtype == (np.float64 if x.dtype == np.float64 else np.float32)
    check(got, [v for row in log_p for v in row], 4)
    if entropies:
        check(entropy, h, 8)


TEMPERATURES = (0.3, 0.7, 3.0, 1e-3, 1e3, 0.5, 2.0**20)


@by_dtype
def test_temperature(backend, dtype):
    rng = np.random.default_rng(0)
    for t in TEMPERATURES:
        normal = rng.normal(size=(2, 7))
        ahead = np.eye(7)[:2]
        # A probability below the normal numbers would leave few digits of the entropy.
        for far in (10.0, 30.0, 100.0):
            x = normal + min(far * t, 6e4) * ahead
            check_temperature(x.astype(dtype), t)
        for x in (normal * 5, normal - 60.0 * ahead, normal + 1e4, 50.0 * normal + 1e4):
            check_temperature(x.astype(dtype), t, entropies=False)
        lowest = float(ml_dtypes.finfo(dtype).min)
        for masked in (-math.inf, lowest, -1e4):
            x = np.where(ahead, masked, normal).astype(dtype)
            check_temperature(x, t, entropies=t >= 0.3)


@by_float
def test_a_temperature_and_large_offsets(backend, dtype):
    """Logits that differ in their last digits: none of them is lost by the division."""
    rng = np.random.default_rng(1)
    check_temperature(np.array([[1e6, 1e6 + 1]], dtype), 3.0)
    for offset in (1e6, -1e6, 1e30):
        x = np.full((2, 5), offset, dtype)
        x += rng.integers(0, 9, x.shape).astype(dtype) * np.spacing(dtype.type(offset))
        for t in (0.3, 0.7, 3.0, float(np.ptp(x)) / 5, float(np.ptp(x)) / 40):
            check_temperature(x, t)


@by_float
def test_temperatures_of_any_size(backend, dtype):
    """Also where x/T overflows, or the difference of two logits."""
    most = float(np.finfo(dtype).max)
    x = np.array(
        [[1.0, 2.0, 2.0, -3.0], [most, -most, most / 2, 0.0], [1e30, 1e30, -1e30, 0.0]], dtype
    )
    small = np.array([[5e-324, 0.0, 1e-320, 0.0], [1e-310, 2e-310, 3e-300, 0.0]])
    for t in (5e-324, 1e-320, 1e-300, 1e-40, 1e-10, 1.9, 2.1, 1e38, 1e300, 1.7e308):
        check_temperature(x, t)
        if dtype == np.float64:
            check_temperature(small, t)
    one = pyce.selective_log_softmax(np.full((2, 1), 1e30, dtype), [0, 0], temperature=1e-320)
    np.testing.assert_array_equal(one, [0.0, 0.0])


@by_float
def test_bad_rows_with_a_temperature(backend, dtype):
    x = np.array([[0.0, math.nan], [math.inf, 1.0], [-math.inf] * 2, [0.0, -math.inf]], dtype)
    for t in (1e-320, 0.7, 1e300):
        got, entropy = pyce.selective_log_softmax(
            x, [[0, 1]] * 4, temperature=t, return_entropy=True
        )
        assert np.isnan(got[:3]).all()
        assert np.isnan(entropy[:3]).all()
        np.testing.assert_array_equal(got[3], [0.0, -math.inf])
        assert entropy[3] == 0.0


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


@by_float
def test_hidden_states_and_small_temperatures(backend, dtype):
    """x/T overflows, and the results are finite, or infinite where that is right."""
    h = np.array([[1.0, 2.0], [0.5, 0.0], [1.0, 1.0]], dtype)
    w = np.array([[3.0, 1.0], [3.0, 1.0], [0.0, 2.0], [-1.0, 0.5]], dtype)
    x = h @ w.T
    y, every_class = np.array([0, 3, 2]), np.broadcast_to(np.arange(4), (3, 4))
    for options, logits in (({}, x), ({"softcap": 30.0}, 30.0 * np.tanh(x / dtype.type(30.0)))):
        for t in (1e-320, 1e-40, 1e300):
            call = {"temperature": t, "chunk_bytes": 1, **options}
            got = pyce.linear_selective_log_softmax(h, w, y, **call)
            log_p, entropy = exact_rows(logits.astype(np.float64), t)
            right = [[dtype.type(v) for v in row] for row in log_p]
            np.testing.assert_allclose(got, [row[i] for row, i in zip(right, y, strict=True)], 1e-5)
            got, of_rows = pyce.linear_selective_log_softmax(
                h, w, every_class, return_entropy=True, **call
            )
            np.testing.assert_allclose(got, right, 1e-5)
            np.testing.assert_allclose(of_rows, [float(v) for v in entropy], 1e-5)
    # A class that is masked has the probability 0.
    bias = np.array([0.0, 0.0, -math.inf, 0.0], dtype)
    got = pyce.linear_selective_log_softmax(h, w, y, linear_bias=bias, temperature=1e-320)
    np.testing.assert_allclose(got, [-math.log(2.0), -math.inf, -math.inf], 1e-6)


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
