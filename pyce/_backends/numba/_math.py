"""Arithmetic on single numbers: errors of sums and products, exp, the normaliser, log1p.

A *pair* is a number and the error of its rounding, whose exact sum is meant. Names ending in
`_error` hold the second number. docs/derivation.md derives the formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import Real, bits, by_dtype, fma, from_bits, jit

# ---------------------------------------------------------------------------------------------
# Pairs


@jit
def two_sum(a: Real, b: Real) -> Any:
    """a + b as a pair (Knuth). The error is NaN if the sum overflows."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jit
def two_product(a: Real, b: Real) -> Any:
    """a·b as a pair."""
    p = a * b
    return p, fma(a, b, -p)


@jit
def scale_pair(a: Real, a_error: Real, factor: Real) -> Any:
    """The pair (a, a_error) times a number."""
    p, p_error = two_product(a, factor)
    return p, fma(a_error, factor, p_error)


@jit
def finite_or_zero(a: Real) -> Real:
    """a, or 0 if it is not finite."""
    return a if a - a == 0.0 else 0.0


@jit
def product_or_zero(a: Real, b: Real) -> Real:
    """a·b, and 0 if one of them is 0, whatever the other is."""
    return 0.0 if (a == 0.0) | (b == 0.0) else a * b


@jit
def scale_pair_or_zero(a: Real, a_error: Real, factor: Real) -> Any:
    """`scale_pair`, and 0 if a or the factor is 0, whatever the other is."""
    p, p_error = scale_pair(a, a_error, factor)
    zero = (a == 0.0) | (factor == 0.0)
    return 0.0 if zero else p, 0.0 if zero else finite_or_zero(p_error)


# ---------------------------------------------------------------------------------------------
# exp
#
# exp(z) with z = n·ln 2 + r, |r| ≤ 0.35, is 2ⁿ times a minimax polynomial in r. Adding 1.5·2²³
# (float64: 1.5·2⁵²) rounds to an integer that then stands in the low bits, ready to be shifted to
# the exponent. Exponentials are kept 2⁶⁰ times too large, so the float32 of a class that is 2⁻¹⁶⁰
# times as probable as the maximum has all its digits: the loss of a confident row needs them.

_BIAS = 60
UNBIAS = 2.0**-_BIAS
_ROUND_32, _ROUND_64 = np.float32(1.5 * 2.0**23), 1.5 * 2.0**52
_LOG2E_32, _LOG2E_64 = np.float32(1.4426950408889634), 1.4426950408889634
# ln 2 with few bits, and the rest.
_LN2_32, LN2_64 = np.float32(0.69317626953125), 0.6931471803691238
_LN2_REST_32, _LN2_REST_64 = np.float32(-2.908897130469058e-05), 1.9082149292705877e-10
_P3_32, _P4_32, _P5_32, _P6_32 = (
    np.float32(c) for c in (0.16666571, 0.041666547, 0.008364116, 0.0013927354)
)
_P3_64, _P4_64, _P5_64 = 0.1666666666666667, 0.04166666666666667, 0.008333333333325985
_P6_64, _P7_64, _P8_64 = 0.0013888888888883642, 0.00019841269875342141, 2.4801587325920163e-05
_P9_64, _P10_64, _P11_64 = 2.7557254740405416e-06, 2.7557273171941026e-07, 2.5105490906986696e-08
_P12_64 = 2.091488256348507e-09
_ZERO_32, _HALF_32, _ONE_32 = np.float32(0.0), np.float32(0.5), np.float32(1.0)

# exp of anything lower is 0 in float64; and the exponent that scales by nothing.
LOWEST_64, EXPONENT_64 = -745.2, 1023.0


@jit
def _exp_float32(x: Any, shift: Any, lowest: Any, exponent: Any) -> Any:
    """exp(x − shift)·2^(exponent − 127), but 0 if x − shift < lowest. Error ≤ 0.7 ULP.

    x − shift must be exact, and lowest such that n + exponent with n = round((x − shift)/ln 2)
    lies between 1 and 254.
    """
    z = x - shift
    under = z < lowest
    z = lowest if under else z  # NaN stays
    t = fma(z, _LOG2E_32, _ROUND_32)
    n = t - _ROUND_32
    r = fma(n, -_LN2_REST_32, fma(n, -_LN2_32, z))
    q = fma(fma(fma(fma(_P6_32, r, _P5_32), r, _P4_32), r, _P3_32), r, _HALF_32)
    e = _ONE_32 + fma(r * r, q, r)
    return _ZERO_32 if under else e * from_bits(np.int32(bits(t + exponent) << np.int32(23)))


@jit
def exp_float64(x: Real, shift: Real, lowest: Real, exponent: Real) -> Real:
    """exp(x − shift)·2^(exponent − 1023), but 0 if x − shift < lowest. Error ≤ 0.54 ULP.

    The difference need not be exact: its rounding error is corrected.
    """
    z, error = two_sum(x, -shift)
    under = z < lowest
    z = lowest if under else z
    error = 0.0 if under else error  # NaN if z is infinite
    t = fma(z, _LOG2E_64, _ROUND_64)
    n = t - _ROUND_64
    head = fma(n, -LN2_64, z)
    r = fma(n, -_LN2_REST_64, head)
    error += fma(n, -_LN2_REST_64, head - r)
    q = fma(fma(fma(fma(_P12_64, r, _P11_64), r, _P10_64), r, _P9_64), r, _P8_64)
    q = fma(fma(fma(fma(fma(q, r, _P7_64), r, _P6_64), r, _P5_64), r, _P4_64), r, _P3_64)
    q = fma(q, r, 0.5) * (r * r)
    q += fma(error, r + q, error)
    e = 1.0 + r
    e += ((1.0 - e) + r) + q
    return 0.0 if under else e * from_bits(bits(t + exponent) << 52)


@jit
def _normaliser_float32(m: Any) -> Any:
    """shift, lowest and exponent of `_exp_float32` for a row with maximum m.

    Shifting by m in every case would cost exp up to 65 ULP, by the rounding of x − m. That
    difference is exact for |m| > 512 and x within 128 of m. For smaller |m| nothing is shifted,
    and a whole number is subtracted from the exponent instead.
    """
    far = abs(m) > np.float32(512.0)
    shift = m if far else _ZERO_32
    z = _ZERO_32 if far else m
    n = fma(z, _LOG2E_32, _ROUND_32) - _ROUND_32
    return shift, z - np.float32(128.0), np.float32(127 + _BIAS) - n


@jit
def _normaliser_float64(m: Real) -> Any:
    """shift, lowest and exponent of `exp_float64` for a row with maximum m."""
    return m, LOWEST_64, EXPONENT_64 + _BIAS


@jit
def unit_float32(m: Real) -> Real:
    """The factor that makes exp(x − m) of the exponentials of a float32 row with maximum m.

    Error ≤ 2⁻³⁶.
    """
    shift, _, exponent = _normaliser_float32(np.float32(m))
    n = np.float64(exponent) - (127.0 + _BIAS)
    difference = finite_or_zero(np.float64(shift) - m)
    r = fma(n, -_LN2_REST_64, fma(n, -LN2_64, difference))
    q = fma(fma(fma(fma(_P9_64, r, _P8_64), r, _P7_64), r, _P6_64), r, _P5_64)
    q = fma(fma(fma(q, r, _P4_64), r, _P3_64), r, 0.5)
    return UNBIAS * (1.0 + fma(r * r, q, r))


exp = by_dtype(_exp_float32, exp_float64)
normaliser = by_dtype(_normaliser_float32, _normaliser_float64)

# ---------------------------------------------------------------------------------------------
# log1p

_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


@jit
def _log_tail(z: Real) -> Real:
    """(log((1 + s)/(1 − s))/s − 2)/s² for z = s² ≤ 0.03, with the polynomial of FreeBSD's log1p."""
    q = fma(fma(0.1479819860511658591, z, 0.1531383769920937332), z, 0.1818357216161805012)
    q = fma(fma(q, z, 0.2222219843214978396), z, 0.2857142874366239149)
    return fma(fma(q, z, 0.3999999999940941908), z, 0.6666666666666735130)


@jit
def log1p(v: Real) -> Any:
    """log(1 + v) for v ≥ 0: the result as a pair, and 1/(1 + v). Error ≤ 0.3 ULP."""
    u, error = two_sum(1.0, v)
    inverse = 1.0 / u
    k = (bits(u) - _SQRT_HALF_BITS) >> 52
    n = np.float64(k)
    # u = 2ᵏ·(1 + f), √½ ≤ 1 + f < √2. For k = 0, f is v itself.
    f = v if k == 0 else from_bits(bits(u) - (k << 52)) - 1.0
    error = 0.0 if k == 0 else error * inverse
    s = f / (2.0 + f)
    z = s * s
    q = _log_tail(z)
    half = 0.5 * f * f
    tail = (fma(s, fma(z, q, half), fma(n, _LN2_REST_64, error))) - half
    head, rest = two_sum(n * LN2_64, f)
    value, value_error = two_sum(head, rest + tail)
    return value, value_error, inverse


@jit
def log1p_short(v: Real) -> Real:
    """log(1 + v) for v ≥ 0 in float64, for results that are rounded to float32."""
    u = 1.0 + v
    k = (bits(u) - _SQRT_HALF_BITS) >> 52
    f = v if k == 0 else from_bits(bits(u) - (k << 52)) - 1.0
    t = f / (2.0 + f)
    return fma(np.float64(k), LN2_64, t * fma(t * t, _log_tail(t * t), 2.0))
