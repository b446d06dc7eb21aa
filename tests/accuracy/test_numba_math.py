"""The errors of the Numba backend's exponentials and logarithm, as their docstrings state them."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba")
mpmath = pytest.importorskip("mpmath")

COUNT = 3000


def worst(found, exact, dtype):
    """The largest error of mpmath's numbers `found` in units in the last place of a dtype."""
    units = [float(np.spacing(dtype(abs(float(true))))) for true in exact]
    return max(
        float(abs(value - true)) / unit
        for value, true, unit in zip(found, exact, units, strict=True)
    )


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 0.9), (np.float64, 0.65)])
def test_exponentials(dtype, bound):
    from pyce._backends.numba import _math

    single = dtype is np.float32
    exp = _math._exp_float32 if single else _math.exp_float64
    normaliser = _math._normaliser_float32 if single else _math._normaliser_float64

    @numba.njit
    def exponentials(x, m, out):
        shift, magic, least = normaliser(m)
        for i in range(len(x)):
            out[i] = exp(x[i], shift, magic, least)

    rng = np.random.default_rng(0)
    for m in (0.0, 3.75, 300.0):
        x = (m - rng.uniform(0, 60, COUNT)).astype(dtype)
        out = np.empty_like(x)
        exponentials(x, dtype(m), out)
        # Small float32 maxima are not subtracted, but a whole number from the exponent.
        shift, power = (0.0, -round(m / math.log(2))) if single and m < 256 else (m, 0)
        with mpmath.workdps(40):
            unit = mpmath.mpf(2) ** (power + round(math.log2(_math.BIAS_FACTOR)))
            exact = [unit * mpmath.exp(mpmath.mpf(float(value)) - shift) for value in x]
            error = worst([mpmath.mpf(float(value)) for value in out], exact, dtype)
        assert error <= bound, (m, error)


def test_the_unit_of_exponentials():
    """Times it, the exponential of the maximum is 1: relative to the normaliser's own numbers."""
    from pyce._backends.numba import _math

    @numba.njit
    def units(m, out, shifts, powers):
        for i in range(len(m)):
            shifts[i], magic, _ = _math._normaliser_float32(m[i])
            powers[i] = magic - (_math._ROUND_32 + _math._FIELD_32)
            out[i] = _math.unit_float32(m[i])

    rng = np.random.default_rng(0)
    m = np.concatenate([rng.uniform(-300, 300, COUNT), [0.0, 255.99, -256.0, 1e8, -1e30]])
    m = m.astype(np.float32)
    out, shifts, powers = (np.empty(len(m)) for _ in range(3))
    units(m, out, shifts, powers)
    assert set(shifts[np.abs(m) < 256]) == {0.0}
    with mpmath.workdps(40):
        error = max(
            abs(mpmath.mpf(unit) * mpmath.exp(mpmath.mpf(top) - shift) * mpmath.mpf(2) ** power - 1)
            for unit, top, shift, power in zip(
                *(values.tolist() for values in (out, m, shifts, powers.astype(int))), strict=True
            )
        )
    assert error <= 2.0**-36, float(error)


def test_the_logarithm():
    """The sum of both parts."""
    from pyce._backends.numba import _math

    @numba.njit
    def logarithms(v, out, errors):
        for i in range(len(v)):
            out[i], errors[i], _ = _math.log1p(v[i])

    rng = np.random.default_rng(0)
    v = np.concatenate([np.exp(rng.uniform(-40, 20, COUNT)), rng.uniform(0, 3, COUNT)])
    out, errors = np.empty_like(v), np.empty_like(v)
    logarithms(v, out, errors)
    with mpmath.workdps(40):
        found = [mpmath.mpf(a) + mpmath.mpf(b) for a, b in zip(out, errors, strict=True)]
        error = worst(found, [mpmath.log1p(mpmath.mpf(value)) for value in v], np.float64)
    assert error <= 0.3, error
