"""Arithmetic on single numbers: errors of sums and products, exp, the normaliser, log1p.

A *pair* is a number and the error of its rounding, whose exact sum is meant. Names ending in
`_error` hold the second number. docs/derivation.md derives the formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import (
    Real,
    bits,
    by_dtype,
    fma,
    from_bits,
    jit,
    power_of_two,
    zero_unless,
    zero_where,
)

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
    """a, or 0 where it is not finite; of numbers or of vectors."""
    return zero_unless(a - a == 0.0, a)


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
# exp(z) with z = n·ln 2 + r, |r| ≤ 0.35, is 2ⁿ times a minimax polynomial in r. Adding `magic`,
# which is about 1.5·2²³ (float64: 1.5·2⁵²), rounds to an integer that then stands in the low bits,
# ready to be shifted to the exponent. The coefficients are those of csrc/kernels, whose
# coefficients.py computes them.
#
# Exponentials are saved 2⁶⁰ times too large, so the float32 of a class that is 2⁻¹⁶⁰ times as
# probable as the maximum has all its digits: the loss of a confident row needs them.

_BIAS = 60
BIAS_FACTOR, UNBIAS = 2.0**_BIAS, 2.0**-_BIAS
_ROUND_32, _ROUND_64 = np.float32(1.5 * 2.0**23), 1.5 * 2.0**52
# Added so that the low bits are those of an exponent field.
_FIELD_32, _FIELD_64 = np.float32(127.0), 1023.0
LOG2E_32, LOG2E_64 = np.float32(float.fromhex("0x1.715476p+0")), 1.4426950408889634
# ln 2 rounded, and the rest.
LN2_HIGH_32 = np.float32(float.fromhex("0x1.62e43p-1"))
LN2_LOW_32 = np.float32(float.fromhex("-0x1.05c61p-29"))
LN2_HIGH_64, LN2_LOW_64 = (
    float.fromhex("0x1.62e42fefa39efp-1"),
    float.fromhex("0x1.abc9e3b39803fp-56"),
)
# ln 2 with 20 trailing zeros, so that its products with exponents are exact; and the rest.
LN2_UPPER, LN2_LOWER = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# EXP_32[k − 2] is the coefficient of rᵏ in exp(r) ≈ 1 + r + …, for float32; EXP_64[k − 3] with
# 1 + r + r²/2 + … for float64.
EXP_32 = tuple(
    np.float32(float.fromhex(text))
    for text in (
        "0x1.fffffcp-2",
        "0x1.55549p-3",
        "0x1.5558bcp-5",
        "0x1.123b5cp-7",
        "0x1.6a445ap-10",
    )
)
EXP_64 = tuple(
    float.fromhex(text)
    for text in (
        "0x1.5555555555557p-3",
        "0x1.5555555555556p-5",
        "0x1.11111111100cep-7",
        "0x1.6c16c16c162cbp-10",
        "0x1.a01a01abef415p-13",
        "0x1.a01a01a6dd25ep-16",
        "0x1.71de021a90822p-19",
        "0x1.27e4db564eedfp-22",
        "0x1.af4e196027428p-26",
        "0x1.1f732018166a0p-29",
    )
)
_E2, _E3, _E4, _E5, _E6 = EXP_32
_D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10, _D11, _D12 = EXP_64
_ONE_32 = np.float32(1.0)
# Maxima up to this size are not subtracted; and how far below the maximum exp is 0.
_SHIFT_LIMIT, _RANGE_32, _RANGE_64 = np.float32(256.0), np.float32(126.0), 748.0


@jit
def _exp_float32(x: Any, shift: Any, magic: Any, least: Any) -> Any:
    """exp(x − shift) times the power of two in `magic`, or 0; of numbers or of vectors.

    The arguments but x are those of `_normaliser_float32`. x − shift must be exact. Error ≤ 0.9
    ULP.
    """
    z = x - shift
    t = fma(z, LOG2E_32, magic)
    n = t - magic
    r = fma(n, -LN2_LOW_32, fma(n, -LN2_HIGH_32, z))
    q = fma(fma(fma(fma(_E6, r, _E5), r, _E4), r, _E3), r, _E2)
    q = fma(fma(q, r, _ONE_32), r, _ONE_32)
    # A product, so that NaN remains NaN whatever its bits are.
    return zero_where(t < least, q * power_of_two(t))


@jit
def exp_float64(x: Any, shift: Any, magic: Any, least: Any) -> Any:
    """exp(x − shift) times the power of two in `magic`, or 0; of numbers or of vectors.

    The difference need not be exact: its rounding error is corrected. Error ≤ 0.65 ULP.
    """
    z, error = two_sum(x, -shift)
    t = fma(z, LOG2E_64, magic)
    n = t - magic
    head = fma(n, -LN2_HIGH_64, z)
    r = fma(n, -LN2_LOW_64, head)
    error = error + fma(n, -LN2_LOW_64, head - r)
    q = fma(fma(fma(fma(_D12, r, _D11), r, _D10), r, _D9), r, _D8)
    q = fma(fma(fma(fma(fma(q, r, _D7), r, _D6), r, _D5), r, _D4), r, _D3)
    q = fma(q, r, 0.5) * (r * r)
    q = q + fma(error, r + q, error)
    e = 1.0 + r
    e = e + (((1.0 - e) + r) + q)
    return zero_where(t < least, e * power_of_two(t))


@jit
def _normaliser_float32(m: Any) -> Any:
    """shift, magic and least of `_exp_float32` for rows with maximum m, a number or a vector.

    Shifting by m in every case would cost exp up to 65 ULP, by the rounding of x − m. That
    difference is exact for |m| ≥ 256 and x within 126 of m. For smaller |m| nothing is shifted,
    and a whole number is subtracted from the exponent instead. 0 replaces an infinite maximum.
    """
    m = finite_or_zero(m)
    near = m * m < _SHIFT_LIMIT * _SHIFT_LIMIT
    z = zero_unless(near, m)
    shift = m - z
    n = fma(z, LOG2E_32, _ROUND_32) - _ROUND_32
    magic = _ROUND_32 + _FIELD_32 + np.float32(_BIAS) - n
    return shift, magic, fma(z - _RANGE_32, LOG2E_32, magic)


@jit
def _normaliser_float64(m: Any) -> Any:
    """shift, magic and least of `exp_float64` for rows with maximum m, a number or a vector."""
    shift = finite_or_zero(m)
    magic = (shift - shift) + (_ROUND_64 + _FIELD_64 + _BIAS)
    return shift, magic, magic - _RANGE_64 * LOG2E_64


@jit
def exp_negative(x: Real) -> Real:
    """exp(x) for x ≤ 0 in float64; 0 where it would be subnormal."""
    magic = _ROUND_64 + _FIELD_64
    return exp_float64(x, 0.0, magic, magic - 1022.0)


@jit
def unit_float32(m: Real) -> Real:
    """The factor that makes exp(x − m) of the exponentials of a float32 row with maximum m.

    Error ≤ 2⁻³⁶.
    """
    shift, magic, _ = _normaliser_float32(np.float32(m))
    n = np.float64(magic) - (np.float64(_ROUND_32 + _FIELD_32) + _BIAS)
    difference = finite_or_zero(np.float64(shift) - m)
    r = fma(n, -LN2_LOW_64, fma(n, -LN2_HIGH_64, difference))
    q = fma(fma(fma(fma(_D9, r, _D8), r, _D7), r, _D6), r, _D5)
    q = fma(fma(fma(q, r, _D4), r, _D3), r, 0.5)
    return UNBIAS * (1.0 + fma(r * r, q, r))


exp = by_dtype(_exp_float32, exp_float64)
normaliser = by_dtype(_normaliser_float32, _normaliser_float64)

# ---------------------------------------------------------------------------------------------
# log1p

_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_TWO_52_BITS = 0x4330000000000000


@jit
def _exponent(u: Real) -> Any:
    """k, as an integer and as a float64, with u = 2ᵏ·f, √½ ≤ f < √2, for u ≥ 1.

    Without signed shifts and conversions, for which AVX2 has no vector instructions.
    """
    k = np.int64(np.uint64(bits(u) - _SQRT_HALF_BITS) >> np.uint64(52))
    return k, from_bits(k | _TWO_52_BITS) - 2.0**52


# LOG[k − 1] is the coefficient of zᵏ in log((1 + s)/(1 − s))/s ≈ 2 + …, z = s².
LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_L1, _L2, _L3, _L4, _L5, _L6, _L7 = LOG


@jit
def _log_tail(z: Real) -> Real:
    """(log((1 + s)/(1 − s))/s − 2)/s² for z = s² ≤ 0.03, with the polynomial of FreeBSD's log1p."""
    q = fma(fma(fma(_L7, z, _L6), z, _L5), z, _L4)
    return fma(fma(fma(q, z, _L3), z, _L2), z, _L1)


@jit
def log1p(v: Real) -> Any:
    """log(1 + v) for v ≥ 0: the result as a pair, and 1/(1 + v). Error ≤ 0.3 ULP."""
    u, error = two_sum(1.0, v)
    inverse = 1.0 / u
    k, n = _exponent(u)
    # u = 2ᵏ·(1 + f), √½ ≤ 1 + f < √2. For k = 0, f is v itself.
    f = v if k == 0 else from_bits(bits(u) - (k << 52)) - 1.0
    error = 0.0 if k == 0 else error * inverse
    s = f / (2.0 + f)
    z = s * s
    q = _log_tail(z)
    half = 0.5 * f * f
    tail = (fma(s, fma(z, q, half), fma(n, LN2_LOWER, error))) - half
    head, rest = two_sum(n * LN2_UPPER, f)
    value, value_error = two_sum(head, rest + tail)
    return value, value_error, inverse


@jit
def log1p_short(v: Real) -> Real:
    """log(1 + v) for v ≥ 0 in float64, for results that are rounded to float32."""
    u = 1.0 + v
    k, n = _exponent(u)
    f = v if k == 0 else from_bits(bits(u) - (k << 52)) - 1.0
    t = f / (2.0 + f)
    return fma(n, LN2_HIGH_64, t * fma(t * t, _log_tail(t * t), 2.0))
