"""The arithmetic of `pyce._compensated` against exact fractions and 40 digits."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from pyce._compensated import Pair, exp, log1p, precise_sum, rounded, row_sum, split, two_sum

RNG = np.random.default_rng(20)


def numbers(count, exponents=30):
    """Floats of either sign and of many magnitudes."""
    return RNG.standard_normal(count) * 2.0 ** RNG.integers(-exponents, exponents, count)


def pairs(count):
    hi = numbers(count)
    return Pair(hi, hi * 2.0**-54 * RNG.uniform(-1, 1, count))


def exact(number, i):
    if isinstance(number, Pair):
        return Fraction(float(number.hi[i])) + Fraction(float(number.lo[i]))
    return Fraction(float(number[i]))


def test_two_sum_is_exact():
    a, b = numbers(1000), numbers(1000)
    total, error = two_sum(a, b)
    np.testing.assert_array_equal(total, a + b)
    for i in range(a.size):
        assert exact(total, i) + exact(error, i) == exact(a, i) + exact(b, i)


def test_split_is_exact():
    a = numbers(1000)
    leading, rest = split(a)
    np.testing.assert_array_equal(leading + rest, a)
    assert all(math.frexp(v)[0] * 2**26 % 1 == 0 for v in leading)
    assert (np.abs(rest) <= np.abs(a) * 2.0**-25).all()


@pytest.mark.parametrize("operation", ["+", "-", "*", "/"])
def test_operations_of_pairs(operation):
    """Relative to the operands for sums, which may cancel, and to the result otherwise."""
    a, b = pairs(1000), pairs(1000)
    apply = eval(f"lambda a, b: a {operation} b")
    result = apply(a, b)
    for i in range(1000):
        x, y = exact(a, i), exact(b, i)
        size = abs(x) + abs(y) if operation in "+-" else abs(apply(x, y))
        assert abs(exact(result, i) - apply(x, y)) <= size * Fraction(1, 2**100)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinite_pairs(infinite):
    with np.errstate(invalid="ignore"):
        assert rounded(Pair(np.array([infinite])) + 1.0)[0] == infinite
        assert np.isnan(rounded(Pair(np.array([infinite])) - infinite)[0])


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 100_000])
def test_precise_sum(count):
    values = numbers(count, 10)
    wanted = math.fsum(values)
    largest = max(np.abs(values), default=0.0)
    assert abs(precise_sum(values) - wanted) <= math.ulp(wanted) + count * largest * 2.0**-100


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1.0, np.inf], np.inf),
        ([np.inf, -np.inf], np.nan),
        ([np.nan, 1.0], np.nan),
        ([1.7e308, 1.7e308], np.inf),
        ([5e-324, 5e-324], 1e-323),
    ],
)
def test_precise_sum_of_extremes(values, wanted):
    np.testing.assert_equal(precise_sum(np.array(values)), wanted)


@pytest.mark.parametrize("scale", [1.0, 2.0**-500, 2.0**920])
def test_row_sum_of_pairs(scale):
    a = pairs(4 * 500)
    a = Pair(a.hi.reshape(4, 500) * scale, a.lo.reshape(4, 500) * scale)
    total = row_sum(a)
    for i in range(4):
        row = Pair(a.hi[i], a.lo[i])
        terms = [exact(row, j) for j in range(500)]
        error = abs(exact(total, i) - sum(terms))
        assert error <= max(map(abs, terms)) * Fraction(1, 2**90)


def units(value, wanted):
    """The distance in units in the last place, of a pair or of a float64."""
    unit = mpmath.mpf(math.ulp(float(wanted)))
    return abs((value - wanted) / unit)


@pytest.mark.parametrize(("minus", "bound"), [(0.0, 0.2), (1.0, 0.7)])
def test_exp(minus, bound):
    x = Pair(np.concatenate([RNG.uniform(-700, 700, 1000), numbers(1000, 40) % 1.0]))
    x.lo = x.hi * 2.0**-54 * RNG.uniform(-1, 1, x.hi.size)
    result = exp(x, minus)
    with mpmath.workdps(40):
        for i in range(x.hi.size):
            at = mpmath.mpf(x.hi[i]) + mpmath.mpf(x.lo[i])
            wanted = mpmath.expm1(at) if minus else mpmath.exp(at)
            assert units(mpmath.mpf(result.hi[i]) + mpmath.mpf(result.lo[i]), wanted) <= bound


def test_log1p():
    x = Pair(np.abs(numbers(2000, 60)))
    x.lo = x.hi * 2.0**-54 * RNG.uniform(-1, 1, x.hi.size)
    result = log1p(x)
    with mpmath.workdps(40):
        for i in range(x.hi.size):
            wanted = mpmath.log1p(mpmath.mpf(x.hi[i]) + mpmath.mpf(x.lo[i]))
            assert units(mpmath.mpf(result.hi[i]) + mpmath.mpf(result.lo[i]), wanted) <= 0.5
