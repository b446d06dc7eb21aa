"""The reference backend: NumPy alone, in float64, block by block.

A row x (classes,) with the maximum m, attained `ties` times, is known by

    rest = Σ_{x_c < m} exp(x_c − m) + (ties − 1),    S = Σ_c exp(x_c − m) = 1 + rest

and with the target's coefficients b_c = w_c·((1 − ε)·t_c + ε/C), A = Σ_c b_c, everything follows
without a difference of nearly equal numbers:

    lse      = m + log1p(rest)
    loss     = Σ_c b_c·(m − x_c) + A·log1p(rest)
    p_c      = exp(x_c − m)/S
    gradient = A·p_c − b_c, but (A − b_c) − A·rest/S where x_c = m and b_c > A/2: for a one-hot
               target that is A·(p_c − 1) without the cancellation

For float32 and half types, float64 leaves nothing to be desired. For float64 logits the same
formulas are carried out in pairs of float64, so that little more than one rounding remains.

Error against exact arithmetic: loss ≤ 2 ULP; gradient ≤ 4 ULP of the larger of A·p_c and b_c, for
index targets without smoothing of the gradient itself. Half types: the float32 result rounded once.

Memory: blocks of some thousand elements, longer rows in pieces, below 1 MiB in all; and 32 bytes
per row. A block is read before it is written, so an output may be the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyce import _fpenv
from pyce._arguments import Array, Problem, compute_dtype, row_blocks

NAME = "numpy"
CHECKS_LABELS = False

# Elements of a block, such that all its temporaries together (8 in float64, 21 with pairs) stay
# below 1 MiB.
_BLOCK = 2**14
_BLOCK_OF_PAIRS = 3 * 2**11
# exp of anything lower is 0 in float64.
_LOWEST = -746.0


# ---------------------------------------------------------------------------------------------
# Numbers of twice the precision


class Pair:
    """An unevaluated sum hi + lo of float64 arrays, with the arithmetic of Dekker and Knuth.

    Where hi is infinite, lo comes out as NaN and means 0.
    """

    __slots__ = ("hi", "lo")
    __array_ufunc__ = None  # array + pair is the pair's business

    def __init__(self, hi: Any, lo: Any = 0.0) -> None:
        self.hi = hi
        self.lo = lo

    def __add__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        s = self.hi + b.hi
        t = s - self.hi
        return Pair(s, (self.hi - (s - t)) + (b.hi - t) + (self.lo + b.lo))

    def __mul__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        a1, a2 = _halves(self.hi)
        b1, b2 = _halves(b.hi)
        p = self.hi * b.hi
        lost = a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)
        return Pair(p, lost + (self.hi * b.lo + self.lo * b.hi))

    def __truediv__(self, other: Number) -> Pair:
        b = other if isinstance(other, Pair) else Pair(other)
        quotient = self.hi / b.hi
        return Pair(quotient, _value(self - b * quotient) / b.hi)

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


def _halves(a: Any) -> tuple[Any, Any]:
    """a as the sum of its leading 26 bits and the rest, whose products are exact to 2⁻¹⁰⁵."""
    a = np.asarray(a, dtype=np.float64)
    high = (a.view(np.int64) & -(2**27)).view(np.float64)
    return high, a - high


def _value(number: Number) -> Any:
    if isinstance(number, Pair):
        return number.hi + np.where(np.isfinite(number.lo), number.lo, 0.0)
    return number


def _zero(number: Number, where: Array) -> Number:
    """`number` with zeros at some places."""
    if isinstance(number, Pair):
        return Pair(_zero(number.hi, where), _zero(number.lo, where))
    return np.where(where, 0.0, number)


def _sum(number: Number) -> Number:
    """The sum along the last axis.

    Of pairs: all numbers of a row are cut in two at one place, such that their leading parts add
    up without rounding (Rump's ExtractVector).
    """
    if not isinstance(number, Pair):
        return number.sum(axis=-1)
    largest = np.abs(number.hi).max(axis=-1, keepdims=True)
    unit = np.where(largest > 2.0**900, 2.0**100, 1.0)  # lest the sums below overflow
    hi, lo = number.hi / unit, _value(Pair(0.0, number.lo / unit))
    cut = np.ldexp(2.0, np.frexp(largest / unit * hi.shape[-1])[1])
    lead = (cut + hi) - cut
    lead = np.where(np.isfinite(lead), lead, hi)
    unit = unit[..., 0]
    return Pair(lead.sum(axis=-1) * unit, ((hi - lead) + lo).sum(axis=-1) * unit)


# NumPy's exp and log1p are each wrong by up to 0.7 ULP: together with what rounds after them, more
# than a loss may be.
_LOG2E = 1.4426950408889634
_LN2, _LN2_LO = 0.6931471803691238, 1.9082149292705877e-10  # few bits, and the rest
_TAYLOR = [1.0 / math.factorial(k) for k in range(13, 1, -1)]


def _exp(x: Pair, less: float = 0.0) -> Pair:
    """exp(x) − less, less 0 or 1, for x ≤ 700. Error ≤ 0.2 ULP, less 1 ≤ 0.5."""
    hi = np.maximum(x.hi, _LOWEST)
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
    result: Pair = Pair(total * power, ((r - total) + q) * power) + (power - less)
    return result


def _log1p(x: Pair) -> Pair:
    """log(1 + x), x ≥ 0: NumPy's and a step of Newton's."""
    rounded = _value(x)
    log = np.log1p(rounded)
    return Pair(log, _value(x - _exp(Pair(log), 1.0)) / (1.0 + rounded))


# ---------------------------------------------------------------------------------------------
# One block of rows


def _block(x: Array) -> int:
    return _BLOCK_OF_PAIRS if x.dtype == np.float64 else _BLOCK


class _Rows:
    """Softmax of a block of rows `x` (..., classes), of any dtype and strides.

    maximum, rest, log_total: (rows,), m, rest and log1p(rest). For rows with NaN, with +inf or of
    only −inf the last two are NaN.
    """

    rest: Number
    log_total: Number

    def __init__(self, x: Array) -> None:
        self._x = x
        self._last: tuple[slice, Number, Number] | None = None
        self._exact = x.dtype == np.float64
        self.maximum = np.max([_float64(x[..., cut]).max(axis=1) for cut in self.cuts()], axis=0)
        self.rest = self.number(np.zeros(self.maximum.shape))
        ties = np.full(self.maximum.shape, -1.0)
        for cut in self.cuts():
            d, e = self.shifted(cut)
            top = _value(d) == 0.0
            self.rest = self.rest + _sum(_zero(e, top))
            ties += np.count_nonzero(top, axis=1)
        self.rest = self.rest + ties
        self.log_total = (_log1p if self._exact else np.log1p)(self.rest)

    def number(self, value: Any) -> Number:
        """`value` in the precision that the logits' dtype asks for."""
        return Pair(value) if self._exact else value

    def cuts(self) -> Iterator[slice]:
        """The class axis in pieces short enough for a block."""
        classes, width = self._x.shape[-1], _block(self._x)
        return (slice(i, min(i + width, classes)) for i in range(0, classes, width))

    def shifted(self, cut: slice) -> tuple[Number, Number]:
        """x − m and exp(x − m) at the classes of `cut`, (rows, width), not to be changed."""
        if self._last is not None and self._last[0] == cut:
            return self._last[1:]
        self._last = None
        d: Number = self.number(_float64(self._x[..., cut])) - self.maximum[:, np.newaxis]
        if isinstance(d, Pair):
            d.lo[~(d.hi >= _LOWEST)] = 0.0
            e: Number = _exp(d)
        else:
            e = np.exp(d)
        self._last = cut, d, e
        return d, e

    def spoil(self, where: Array) -> None:
        """Make NaN of some rows."""
        self.rest = self.rest + np.where(where, np.nan, 0.0)

    def lse(self) -> Array:
        m = self.maximum
        lse: Array = np.where(np.isfinite(m), _value(m + self.log_total), m)
        return lse


class _LossRows(_Rows):
    """Rows `start` to `stop` of a problem, which are its block `index`, with their targets.

    total: (rows,), A = Σ_c b_c.
    """

    total: Number

    def __init__(self, p: Problem, index: tuple[Any, ...], start: int, stop: int) -> None:
        super().__init__(np.moveaxis(p.logits, p.axis, -1)[index])
        self._weight = p.weight
        self._certain = self.number(1.0) - p.smoothing
        self._even = self.number(p.smoothing) / p.classes
        self._dense = p.labels is None or p.smoothing > 0.0
        self._probs: Array | None = None
        if p.labels is not None:
            # A row that is ignored gets any class: its results will be overwritten.
            self._labels = np.clip(p.labels[start:stop], 0, p.classes - 1)
            w = np.ones(stop - start) if p.weight is None else p.weight[self._labels]
            self._spike = self._certain * w
            spread: Number = float(p.classes)
            if p.weight is not None and self._dense:
                cuts = [_sum(self.number(p.weight[np.newaxis, cut])) for cut in self.cuts()]
                spread = sum(cuts, self.number(0.0))
            self.total = self._even * spread + self._spike
        elif p.probs is not None:
            self._probs = np.moveaxis(p.probs, p.axis, -1)[index]
            self.total = self.number(np.zeros(stop - start))
            for cut in self.cuts():
                self.total = self.total + _sum(self._coefficients(cut))

    def _coefficients(self, cut: slice) -> Number:
        """b at the classes of `cut`, (rows, width); for labels (width,) and without the spikes."""
        b = self._even
        if self._probs is not None:
            b = self._certain * _float64(self._probs[..., cut]) + b
        return b * (np.ones(cut.stop - cut.start) if self._weight is None else self._weight[cut])

    def losses(self, scale: Array | float) -> Array:
        """Float64 (rows,), multiplied by `scale` (rows,)."""
        loss: Number = self.total * self.log_total
        # A coefficient of 0 makes nothing of an infinite −log p.
        if self._probs is None:
            at_label = np.take_along_axis(self._x, self._labels.reshape(*self._x.shape[:-1], 1), -1)
            gap = self.number(self.maximum) - _float64(at_label)[:, 0]
            loss = loss + _zero(self._spike * gap, _value(self._spike) == 0.0)
        if self._dense:
            for cut in self.cuts():
                b = self._coefficients(cut)
                loss = loss + _sum(_zero(b * -self.shifted(cut)[0], _value(b) == 0.0))
        losses: Array = _value(loss * scale)
        return losses

    def gradient(self, cut: slice, scale: Array) -> Array:
        """Float64 (rows, width), multiplied by `scale` (rows,)."""
        d, e = self.shifted(cut)
        top = _value(d) == 0.0
        factor = self.total * scale / (1.0 + self.rest)
        product = e * factor[:, np.newaxis]
        b = self._coefficients(cut) if self._dense else self.number(np.zeros(top.shape[1]))
        if self._dense:
            product = product - b * scale[:, np.newaxis]
        g: Array = _value(product)
        # Anew where b is large: at the labels, or where the target is for certain a maximum.
        if self._probs is None:
            column = self._labels - cut.start
            row = np.flatnonzero((column >= 0) & (column < top.shape[1]))
            column = column[row]
            b = b[column] + self._spike[row]
        else:
            half = 0.5 * np.abs(_value(self.total))
            row, column = np.nonzero(top & (np.abs(_value(b)) > half[:, np.newaxis]))
            b = b[row, column]
        total, rest, scale = self.total[row], self.rest[row], scale[row]
        g[row, column] = np.where(
            top[row, column] & (np.abs(_value(b)) > 0.5 * np.abs(_value(total))),
            _value((total - b - total * rest / (1.0 + rest)) * scale),
            _value(e[row, column] * factor[row] - b * scale),
        )
        return g


def _float64(x: Array) -> Array:
    """A copy of x (..., width) as float64 (rows, width)."""
    return x.astype(np.float64, order="C").reshape(-1, x.shape[-1])


def _store(out: Array, values: Array) -> None:
    """Write float64 (rows, width) to `out` (..., width): half types are float32 rounded again."""
    dtype = compute_dtype(out.dtype.name)
    out[...] = values.astype(dtype, copy=False).reshape(out.shape)


# ---------------------------------------------------------------------------------------------
# Softmax cross-entropy


@_fpenv.default
def forward(p: Problem) -> Any:
    losses = np.zeros(p.rows)
    _run(p, losses)
    return p.reduce(losses)


def forward_backward(p: Problem) -> Any:
    return forward(p)  # which writes p.grad where there is one


@_fpenv.default
def backward(p: Problem) -> None:
    """From the logits anew: a float64 lse of large logits does not hold the digits promised.

    Of the saved lse only this is used: where it is not finite, the gradient is NaN.
    """
    _run(p, None)


def _run(p: Problem, losses: Array | None) -> None:
    """Write p.grad where there is one and, with float64 (rows,) for `losses`, these and p.lse."""
    keep = p.keep()
    scale = None if p.grad is None else p.row_scale()
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _block(p.logits)):
        drop: Array | slice = slice(0) if keep is None else ~keep[start:stop]
        with np.errstate(all="ignore"):
            rows = _LossRows(p, index, start, stop)
            if losses is not None:
                share = 1.0 if p.sample_weight is None else p.sample_weight[start:stop]
                loss, lse = rows.losses(share), rows.lse()
                loss[drop] = lse[drop] = 0.0
                losses[start:stop] = loss
                if p.lse is not None:
                    p.lse[start:stop] = lse
            elif p.lse is not None:
                rows.spoil(~np.isfinite(p.lse[start:stop]))
            if p.grad is not None and scale is not None:
                out = np.moveaxis(p.grad, p.axis, -1)[index]
                for cut in rows.cuts():
                    g = rows.gradient(cut, scale[start:stop])
                    g[drop] = 0.0
                    _store(out[..., cut], g)


# ---------------------------------------------------------------------------------------------
# Softmax and its kin


@_fpenv.default
def softmax(x: Array, axis: int, out: Array) -> None:
    view, out = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index, _, _ in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            rows = _Rows(view[index])
            factor = rows.number(1.0) / (1.0 + rows.rest)
            for cut in rows.cuts():
                _store(out[index][..., cut], _value(rows.shifted(cut)[1] * factor[:, np.newaxis]))


@_fpenv.default
def log_softmax(x: Array, axis: int, out: Array) -> None:
    view, out = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index, _, _ in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            rows = _Rows(view[index])
            log_total = rows.log_total[:, np.newaxis]
            for cut in rows.cuts():
                _store(out[index][..., cut], _value(rows.shifted(cut)[0] - log_total))


@_fpenv.default
def logsumexp(x: Array, axis: int, out: Array) -> None:
    view = np.moveaxis(x, axis, -1)
    for index, start, stop in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            out[start:stop] = _Rows(view[index]).lse()


# ---------------------------------------------------------------------------------------------
# Binary cross-entropy


@_fpenv.default
def binary_cross_entropy(
    x: Array,
    t: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array | None,
    grad: Array | None,
    scale: float,
) -> float:
    """With positive = weight·pos_weight·t and negative = weight·(1 − t):

        loss     = positive·softplus(−x) + negative·softplus(x)
        gradient = scale·(negative·sigmoid(x) − positive·sigmoid(−x))

    q = exp(−|x|) gives softplus(±x) = max(±x, 0) + log1p(q), sigmoid(±x) = 1/(1 + q) or q/(1 + q).
    """
    number: Any = Pair if x.dtype == np.float64 else np.asarray
    sums = []
    for start in range(0, x.size, _block(x)):
        here = slice(start, start + _block(x))
        with np.errstate(all="ignore"):
            v = x[here].astype(np.float64)
            positive = number(t[here].astype(np.float64))
            negative = 1.0 - positive
            if pos_weight is not None:
                positive = positive * pos_weight[here]
            if weight is not None:
                positive, negative = positive * weight[here], negative * weight[here]
            q = np.exp(-np.abs(v))
            rest = np.log1p(q)
            term = 0.0
            for coefficient, sign in ((positive, -1.0), (negative, 1.0)):
                cost = number(np.maximum(sign * v, 0.0)) + rest
                # A coefficient of 0 makes nothing of an infinite cost.
                none = (_value(coefficient) == 0.0) & np.isinf(_value(cost))
                term = _zero(coefficient * cost, none) + term
            term = _value(term)
            sums.append(term.sum())
            if loss is not None:
                loss[here] = term
            if grad is not None:
                for_negative = number(np.where(v < 0.0, q, 1.0)) / (number(1.0) + q)
                for_positive = number(np.where(v < 0.0, 1.0, q)) / (number(1.0) + q)
                grad[here] = _value((negative * for_negative - positive * for_positive) * scale)
    return float(np.sum(sums))
