"""Floating-point arithmetic that keeps its rounding errors, for NumPy arrays of float64.

A `Pair` is the unevaluated sum of a float64 and a much smaller float64, which together have about
106 significant bits. `precise_sum` and `row_sum` add up any number of terms with an error that does
not grow with their number.

Sources: D. E. Knuth, The Art of Computer Programming 2, 4.2.2 (`two_sum`); T. J. Dekker, A
floating-point technique for extending the available precision, Numer. Math. 18, 1971 (`split`,
products); S. M. Rump, T. Ogita and S. Oishi, Accurate floating-point summation I, SIAM J. Sci.
Comput. 31, 2008 (`ExtractVector`, the sums).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyce._types import Array


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b as the rounded sum and its error, which together are exactly a + b."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def split(a: Any) -> tuple[Any, Any]:
    """a as the sum of its leading 26 bits and the rest, whose products are exact to 2⁻¹⁰⁵."""
    a = np.asarray(a, dtype=np.float64)
    leading = (a.view(np.int64) & -(2**27)).view(np.float64)
    return leading, a - leading


class Pair:
    """An unevaluated sum hi + lo of float64 arrays or floats.

    Where hi is infinite, lo is NaN and counts as 0.
    """

    __slots__ = ("hi", "lo")
    __array_ufunc__ = None  # so that array + pair calls the pair's __radd__

    def __init__(self, hi: Any, lo: Any = 0.0) -> None:
        self.hi = hi
        self.lo = lo

    def __add__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        total, error = two_sum(self.hi, b.hi)
        return Pair(total, error + (self.lo + b.lo))

    def __mul__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        a1, a2 = split(self.hi)
        b1, b2 = split(b.hi)
        product = self.hi * b.hi
        error = a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)
        return Pair(product, error + (self.hi * b.lo + self.lo * b.hi))

    def __truediv__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        quotient = self.hi / b.hi
        return Pair(quotient, rounded(self - b * quotient) / b.hi)

    def __neg__(self) -> Pair:
        return Pair(-self.hi, -self.lo)

    def __sub__(self, other: Number) -> Pair:
        return self.__add__(-other)

    def __rsub__(self, other: Number) -> Pair:
        return (-self).__add__(other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> Pair:
        return Pair(self.hi[key], self.lo[key] if np.ndim(self.lo) else self.lo)


Number = Any  # a Pair, an array or a float


def product(a: Number, b: Number) -> Number:
    """a·b, and 0 where one of them is 0, whatever the other is."""
    return zero_where((rounded(a) == 0.0) | (rounded(b) == 0.0), a * b)


def rounded(number: Number) -> Any:
    """The float64 nearest to a pair; anything else as it is."""
    if isinstance(number, Pair):
        return number.hi + np.where(np.isfinite(number.lo), number.lo, 0.0)
    return number


def zero_where(mask: Array, number: Number) -> Number:
    """`number` with zeros where `mask` is true."""
    if isinstance(number, Pair):
        return Pair(zero_where(mask, number.hi), zero_where(mask, number.lo))
    return np.where(mask, 0.0, number)


# ---------------------------------------------------------------------------------------------
# Sums


# Numbers that are added up together, and the largest exponent of the sum of their sizes for which
# the power of two that cuts them is finite.
_SUMMED, _MOST = 2**13, 1022


def _cut(largest: Any, count: int) -> Any:
    """A power of two such that `(cut + v) - cut`, for `count` numbers v up to `largest`, are their
    leading parts: multiples of one unit, whose sum is exact.
    """
    return np.ldexp(2.0, np.frexp(count * largest)[1])


def precise_sum(values: Array) -> float:
    """The sum of flat float64 values, whatever their number, with an error of one or two roundings.

    Only blocks of them are copied.
    """
    # Methods, since NumPy's functions of the same names take three times as long for short arrays.
    blocks = [values[i : i + _SUMMED] for i in range(0, values.size, _SUMMED)]
    with np.errstate(all="ignore"):
        sizes = [float(np.abs(block).max()) for block in blocks]
        exponent = math.frexp(max(sizes, default=0.0) * values.size)[1]
        if exponent > _MOST or not all(size < math.inf for size in sizes):
            return float(values.sum())
        cut = math.ldexp(2.0, exponent)
        total = rest = 0.0
        for block in blocks:
            leading = (cut + block) - cut
            total += float(leading.sum())  # without rounding
            rest += float((block - leading).sum())
        # The error of the sum of the rest is below the rounding of the result.
        return total + rest


def row_sum(number: Number) -> Number:
    """The sum along the last axis: NumPy's of an array, a precise one of pairs."""
    if not isinstance(number, Pair):
        return number.sum(axis=-1)
    largest = np.abs(number.hi).max(axis=-1, keepdims=True)
    unit = np.where(largest > 2.0**900, 2.0**100, 1.0)  # keeps the sums below from overflowing
    hi, lo = number.hi / unit, rounded(Pair(0.0, number.lo / unit))
    cut = _cut(largest / unit, hi.shape[-1])
    leading = (cut + hi) - cut
    leading = np.where(np.isfinite(leading), leading, hi)
    unit = unit[..., 0]
    return Pair(leading.sum(axis=-1) * unit, ((hi - leading) + lo).sum(axis=-1) * unit)


# ---------------------------------------------------------------------------------------------
# exp and log1p. NumPy's have errors up to 0.7 ULP each, too much for a loss within 2 ULP.

LOWEST = -746.0  # exp of anything lower is 0 in float64
_LOG2E = 1.4426950408889634
# ln 2 in two parts. The first has 21 trailing zero bits, so that its product with n is exact.
_LN2, _LN2_LO = 0.6931471803691238, 1.9082149292705877e-10
_TAYLOR = [1.0 / math.factorial(k) for k in range(13, 1, -1)]


def exp(x: Pair, minus: float = 0.0) -> Pair:
    """exp(x) − minus, where minus is 0 or 1 and x ≤ 700. Error ≤ 0.2 ULP; ≤ 0.7 ULP for minus 1.

    With n = round(x/ln 2) and r = x − n·ln 2, exp(x) = 2ⁿ·(1 + r + r²/2 + … + r¹³/13!).
    """
    hi = np.maximum(x.hi, LOWEST)
    n = np.rint(hi * _LOG2E)
    hi, lo = hi - n * _LN2, x.lo - n * _LN2_LO
    r = hi + lo
    lo += hi - r
    q = np.full_like(r, _TAYLOR[0])
    for c in _TAYLOR[1:]:
        q *= r
        q += c
    q *= r * r
    q += lo + lo * r
    power = np.ldexp(1.0, n.astype(np.intc))
    total = r + q
    result: Pair = Pair(total * power, ((r - total) + q) * power) + (power - minus)
    return result


def log1p(x: Pair) -> Pair:
    """log(1 + x) for x ≥ 0: NumPy's, corrected by one step of Newton's method."""
    value = rounded(x)
    log = np.log1p(value)
    return Pair(log, rounded(x - exp(Pair(log), 1.0)) / (1.0 + value))
