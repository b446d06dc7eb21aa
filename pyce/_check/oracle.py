"""Exact results of softmax cross-entropy, by code that shares nothing with pyce.

`reference` computes in double-double arithmetic (pairs of float64, about 31 digits), vectorised
with NumPy alone, for any number of classes. It never computes 1 - p, but sums the other classes.
`ulp_error` is the error of a result in units in the last place (ULP). The tests compare the oracle
with the textbook formulas in 60 digits and more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# ---------------------------------------------------------------------------------------------
# Double-double arithmetic


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded sum a + b, and its exact rounding error (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded product a * b, and its exact rounding error (Dekker); |a|, |b| < 2**996."""
    product = a * b
    c = 134217729.0 * a
    a1 = c - (c - a)
    a2 = a - a1
    c = 134217729.0 * b
    b1 = c - (c - b)
    b2 = b - b1
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


class DD:
    """An array of unevaluated sums hi + lo of float64, |lo| <= ulp(hi)/2."""

    __slots__ = ("hi", "lo")

    def __init__(self, hi: Any, lo: Any = None) -> None:
        self.hi: Array = np.asarray(hi, dtype=np.float64)
        self.lo: Array = np.zeros_like(self.hi) if lo is None else np.asarray(lo, dtype=np.float64)

    def __add__(self, other: Any) -> DD:
        other = as_dd(other)
        s, e = two_sum(self.hi, other.hi)
        t, f = two_sum(self.lo, other.lo)
        s, e = two_sum(s, e + t)
        return DD(*two_sum(s, e + f))

    def __neg__(self) -> DD:
        return DD(-self.hi, -self.lo)

    def __sub__(self, other: Any) -> DD:
        return self + -as_dd(other)

    def __mul__(self, other: Any) -> DD:
        other = as_dd(other)
        p, e = two_product(self.hi, other.hi)
        return DD(*two_sum(p, e + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: Any) -> DD:
        other = as_dd(other)
        q1 = self.hi / other.hi
        r = self - other * q1
        q2 = r.hi / other.hi
        r = r - other * q2
        total: DD = DD(*two_sum(q1, q2)) + r.hi / other.hi
        return total

    __radd__ = __add__
    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> DD:
        return DD(self.hi[key], self.lo[key])

    def reshape(self, *shape: Any) -> DD:
        return DD(self.hi.reshape(*shape), self.lo.reshape(*shape))

    def moveaxis(self, source: int, destination: int) -> DD:
        return DD(
            np.moveaxis(self.hi, source, destination), np.moveaxis(self.lo, source, destination)
        )

    def scaled(self, power: Any) -> DD:
        """self * 2**power, exact unless it underflows."""
        return DD(np.ldexp(self.hi, power), np.ldexp(self.lo, power))

    def where(self, condition: Array, otherwise: Any) -> DD:
        other = as_dd(otherwise)
        return DD(np.where(condition, self.hi, other.hi), np.where(condition, self.lo, other.lo))

    def sum(self, axis: int = -1) -> DD:
        """The sum along an axis, by pairwise summation."""
        terms = self.moveaxis(axis, -1)
        if terms.hi.shape[-1] == 0:
            return DD(np.zeros(terms.hi.shape[:-1]))
        while (n := terms.hi.shape[-1]) > 1:
            half = n // 2
            pairs = terms[..., :half] + terms[..., half : 2 * half]
            if n % 2:
                last = pairs[..., :1] + terms[..., -1:]
                pairs.hi[..., :1], pairs.lo[..., :1] = last.hi, last.lo
            terms = pairs
        return terms[..., 0]


def as_dd(value: Any) -> DD:
    return value if isinstance(value, DD) else DD(value)


def _constant(exact: Fraction) -> DD:
    hi = float(exact)
    return DD(hi, float(exact - Fraction(hi)))


LN2 = _constant(Fraction("0.693147180559945309417232121458176568075500134360255254120680"))
_INVERSE_FACTORIALS = [_constant(Fraction(1, math.factorial(k))) for k in range(14)]


def expm1_small(r: DD) -> DD:
    """exp(r) - 1 for |r| < 0.006 by the Taylor series."""
    tail = np.zeros_like(r.hi)
    for k in range(13, 7, -1):  # below 2**-53 of the result: float64 is enough
        tail = (tail + _INVERSE_FACTORIALS[k].hi) * r.hi
    total = DD(tail)
    for k in range(7, 1, -1):
        total = (total + _INVERSE_FACTORIALS[k]) * r
    return total * r + r


def exp(x: DD, power: int = 0) -> DD:
    """exp(x) 2**power for |x| < 1100, with a relative error of about 2**-95."""
    n = np.rint(x.hi / LN2.hi)
    q = expm1_small((x - LN2 * n).scaled(-6))
    for _ in range(6):
        q = q.scaled(1) + q * q
    return (q + 1.0).scaled(n.astype(np.int64) + power)


def log(x: DD) -> DD:
    """log(x) for normal x > 0, with an absolute error of about 2**-95."""
    y = DD(np.log(x.hi))
    for _ in range(2):
        y = y + x * exp(-y) - 1.0
    return y


def log1p(x: DD) -> DD:
    """log(1 + x) for x >= 0, with a relative error of about 2**-95."""
    small = x.hi < 2.0**-9
    safe = x.where(~small, 1.0)
    y = DD(np.log1p(safe.hi))
    for _ in range(2):
        y = y + (safe + 1.0) * exp(-y) - 1.0
    r = x.where(small, 0.0)
    series = DD(np.zeros_like(x.hi))
    for k in range(13, 0, -1):
        series = (DD(1.0) / float(k) - series) * r
    return series.where(small, y)


# ---------------------------------------------------------------------------------------------
# Softmax and the loss in double-double


# Probabilities are kept times 2**RAISED: a gradient below the normal numbers is then rounded once.
RAISED = 128


@dataclass
class Softmax:
    """Softmax and related quantities of logits (rows, classes)."""

    raised_p: DD  # probabilities times 2**RAISED
    raised_one_minus_p: DD
    minus_log_p: DD  # inf for -inf logits
    lse: DD  # (rows,)
    invalid: Array  # (rows,): NaN, +inf or only -inf

    @property
    def p(self) -> DD:
        return self.raised_p.scaled(-RAISED)


def softmax_rows(x: Array) -> Softmax:
    x = np.array(x, dtype=np.float64)
    invalid = np.isnan(x).any(1) | (x == np.inf).any(1) | (x == -np.inf).all(1)
    x[invalid] = 0.0
    rows = np.arange(len(x))
    top = x.argmax(1)
    m = x[rows, top][:, None]
    with np.errstate(all="ignore"):
        hi, lo = two_sum(x, -m)
    d = DD(hi, np.where(np.isfinite(lo), lo, 0.0))
    underflows = d.hi < -1000.0  # exp underflows in float64 too
    e = exp(d.where(~underflows, 0.0), RAISED).where(~underflows, 0.0)
    without_top = DD(e.hi.copy(), e.lo.copy())
    without_top.hi[rows, top] = without_top.lo[rows, top] = 0.0
    rest = without_top.sum()
    total = (rest + 2.0**RAISED)[:, None]
    others = total - e
    others.hi[rows, top], others.lo[rows, top] = rest.hi, rest.lo
    log_total = log1p(rest.scaled(-RAISED))
    minus_log_p = log_total[:, None] - d.where(np.isfinite(d.hi), 0.0)
    minus_log_p = minus_log_p.where(np.isfinite(d.hi), np.inf)
    total = total.scaled(-RAISED)
    return Softmax(e / total, others / total, minus_log_p, log_total + DD(m[:, 0]), invalid)


@dataclass
class Bernoulli:
    loss: DD  # each flat
    grad: DD
    terms: Array  # size at which the unit of the gradient's error is taken


@dataclass
class Reference:
    loss: DD
    lse: DD  # one for each row; 0 for ignored rows
    grad: DD  # the logits' shape
    terms: Array  # size at which the unit of the gradient's error is taken, the logits' shape
    soft: Softmax  # of the rows in C order; ignored rows have logits 0


def reference(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    grad_loss: Any = 1.0,
    lse_square_scale: float = 0.0,
) -> Reference:
    """Loss, lse and gradient of softmax cross-entropy, with the parameters of `pyce`.

    A row has the loss sum_c b_c (-log p_c) and the gradient p sum(b) - b with
    b_c = w_c ((1 - eps) t_c + eps/C). `lse_square_scale` z adds z w_y lse^2, for
    probabilities z lse^2.
    """
    target = np.asarray(target)
    moved = np.moveaxis(np.asarray(logits).astype(np.float64), axis, -1)
    positions, classes = moved.shape[:-1], moved.shape[-1]
    x = moved.reshape(-1, classes)
    count = len(x)
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    sw = np.ones(count)
    if sample_weight is not None:
        sw = np.asarray(sample_weight, np.float64).reshape(-1)
    hard = target.dtype.kind in "iu"
    if hard:
        y = np.array([int(v) for v in target.reshape(-1)], dtype=object)
        valid = np.array([v != ignore_index for v in y], dtype=bool)
        y = np.where(valid, y, 0).astype(np.int64)
        t = DD((np.arange(classes) == y[:, None]).astype(np.float64))
        denominator = (DD(w[y]) * sw)[valid].sum()
    else:
        valid = np.ones(count, dtype=bool)
        t = DD(np.moveaxis(target.astype(np.float64), axis, -1).reshape(-1, classes))
        denominator = DD(sw).sum()
    if label_smoothing:
        t = t * DD(*two_sum(1.0, -label_smoothing)) + DD(label_smoothing) / float(classes)
    b = t * w
    soft = softmax_rows(np.where(valid[:, None], x, 0.0))

    losses, infinite = _costs(b, soft)
    lse_term = DD(w[y] if hard else np.ones(count)) * lse_square_scale * soft.lse
    if lse_square_scale:
        losses = losses + lse_term * soft.lse
    losses = losses.where(~infinite, np.inf).where(~soft.invalid, np.nan)
    with np.errstate(all="ignore"):
        losses = _times(losses, DD(sw)).where(valid, 0.0)

    grad, terms = _slopes(b, soft)
    if hard and not label_smoothing:
        terms = np.abs(grad.scaled(-RAISED).hi)
    if lse_square_scale:
        added = soft.raised_p * (lse_term * 2.0)[:, None]
        grad = grad + added
        terms = np.maximum(terms, np.abs(added.scaled(-RAISED).hi))

    if reduction == "mean" and normalizer is not None:
        denominator = DD(float(normalizer))
    elif reduction != "mean":
        denominator = DD(1.0)
    with np.errstate(all="ignore"):
        loss = losses.reshape(positions)
        if reduction != "none":
            loss = losses.sum() if np.isfinite(losses.hi).all() else DD(losses.hi.sum())
            if reduction == "mean" and normalizer is not None and not valid.any():
                loss = DD(0.0)
            elif np.isfinite(loss.hi) and denominator.hi != 0.0:
                loss = loss / denominator
            else:
                loss = DD(loss.hi / denominator.hi)
        factors = np.broadcast_to(np.asarray(grad_loss, np.float64).reshape(-1), (count,))
        scale = DD(factors) * sw / denominator
        small = np.where(np.abs(grad.hi * scale.hi[:, None]) < 1.0, RAISED, 0)
        grad = (grad.scaled(small - RAISED) * scale[:, None]).scaled(-small)
        terms = terms * np.abs(scale.hi[:, None])
    invalid = soft.invalid[:, None]
    grad = grad.where(~invalid, np.nan).where(valid[:, None], 0.0)
    shape = (*positions, classes)
    return Reference(
        loss,
        soft.lse.where(~soft.invalid, np.nan).where(valid, 0.0).reshape(positions),
        grad.reshape(shape).moveaxis(-1, axis),
        np.moveaxis(np.where(valid[:, None], terms, 0.0).reshape(shape), -1, axis),
        soft,
    )


def _costs(b: DD, soft: Softmax) -> tuple[DD, Array]:
    """sum_c b_c (-log p_c) of each row without infinite terms, and whether there are any.

    Terms with b = 0 are 0 even if -log p is infinite.
    """
    zero = b.hi == 0.0
    cost = soft.minus_log_p.where(~zero & np.isfinite(soft.minus_log_p.hi), 0.0)
    infinite = (~zero & ~np.isfinite(soft.minus_log_p.hi)).any(1)
    # Scaling by a power of two keeps products with finfo.min from overflowing.
    huge = np.where(np.abs(cost.hi).max(1, initial=0.0) > 2.0**900, 64, 0)
    return (b * cost.scaled(-huge[:, None])).sum().scaled(huge), infinite


def _slopes(b: DD, soft: Softmax) -> tuple[DD, Array]:
    """(p sum(b) - b) 2**RAISED, and the size of the larger of the two terms.

    It is computed as p (sum(b) - b) - b (1 - p), where sum(b) - b is summed without b.
    """
    rows = np.arange(len(b.hi))
    largest = np.abs(b.hi).argmax(1)
    without = DD(b.hi.copy(), b.lo.copy())
    without.hi[rows, largest] = without.lo[rows, largest] = 0.0
    others = b.sum()[:, None] - b
    rest = without.sum()
    others.hi[rows, largest], others.lo[rows, largest] = rest.hi, rest.lo
    terms = np.maximum(np.abs((soft.p * b.sum()[:, None]).hi), np.abs(b.hi))
    return soft.raised_p * others - b * soft.raised_one_minus_p, terms


def bernoulli(logits: Any, target: Any, weight: Any = 1.0, pos_weight: Any = 1.0) -> Bernoulli:
    """Binary cross-entropy of each element, with the parameters of `pyce.binary_cross_entropy`."""
    arrays = (np.asarray(a, np.float64) for a in (logits, target, weight, pos_weight))
    x, *others = np.broadcast_arrays(*arrays)
    two = np.stack([np.zeros_like(x), x], axis=-1).reshape(-1, 2)
    soft = softmax_rows(two)
    t, w, v = (DD(a.reshape(-1).copy()) for a in others)
    yes, no = w * v * t, w * (DD(1.0) - t)
    loss = yes * soft.minus_log_p[:, 1] + no * soft.minus_log_p[:, 0]
    slopes = no * soft.raised_p[:, 1], yes * soft.raised_p[:, 0]
    terms = np.maximum(*(slope.scaled(-RAISED).hi for slope in slopes))
    return Bernoulli(loss, (slopes[0] - slopes[1]).scaled(-RAISED), terms)


def _times(a: DD, b: DD) -> DD:
    """a * b, where a may be infinite, NaN, or so large that the product must be scaled."""
    finite = np.isfinite(a.hi)
    huge = np.where(finite & (np.abs(a.hi) > 2.0**900), 64, 0)
    product = (a.where(finite, 0.0).scaled(-huge) * b).scaled(huge)
    return product.where(finite, a.hi * b.hi)


# ---------------------------------------------------------------------------------------------
# Measuring

# dtype name: digits of the significand, exponent of the smallest normal number
FORMATS = {
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float32": (24, -126),
    "float64": (53, -1022),
}


def smallest_subnormal(dtype: Any) -> float:
    """The smallest positive number of the dtype."""
    digits, lowest = FORMATS[np.dtype(dtype).name]
    return 2.0 ** (lowest - (digits - 1))


def smallest_normal(dtype: Any) -> float:
    """The smallest normal number of the dtype; smaller numbers have fewer digits."""
    return 2.0 ** FORMATS[np.dtype(dtype).name][1]


def ulp(value: Any, dtype: Any) -> Array:
    """The spacing of `dtype` at |value|; at a power of two, the spacing above it."""
    digits, lowest = FORMATS[np.dtype(dtype).name]
    _, exponent = np.frexp(value)
    exponent = np.where(np.asarray(value) == 0.0, lowest, exponent)
    spacing: Array = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - (digits - 1))
    return spacing


def ulp_error(actual: Any, exact: Any, terms: Array | None = None) -> Array:
    """|actual - exact| in units in the last place of actual's dtype, as float64.

    The unit is taken at |exact|, or at `terms` if that is larger: the size of the terms whose
    difference the result is. A NaN or an infinity in a wrong place has an infinite error.
    """
    actual = np.asarray(actual)
    exact = as_dd(exact)
    got = actual.astype(np.float64)
    if got.shape != exact.hi.shape:
        raise AssertionError(f"shape {got.shape}, expected {exact.hi.shape}")
    size = np.abs(exact.hi) if terms is None else np.maximum(np.abs(exact.hi), terms)
    with np.errstate(all="ignore"):
        error = np.abs((got - exact.hi) - exact.lo)
        error = error / ulp(np.where(np.isfinite(size), size, 1.0), actual.dtype)
    same = (np.isnan(got) & np.isnan(exact.hi)) | (got == exact.hi) & ~np.isfinite(got)
    error = np.where(same, 0.0, error)
    return np.where(np.isfinite(error), error, np.inf)
