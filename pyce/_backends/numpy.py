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

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyce import _fpenv
from pyce._compensated import LOWEST, Number, Pair, exp, log1p, rounded, row_sum, zero_where
from pyce._dtypes import compute_dtype
from pyce._problem import Problem, row_blocks
from pyce._types import Array

NAME = "numpy"
CHECKS_LABELS = False
at_addresses = None  # memory is NumPy's arrays only

# Elements of a block, such that all its temporaries together (8 in float64, 21 with pairs) stay
# below 1 MiB.
_BLOCK = 2**14
_BLOCK_OF_PAIRS = 3 * 2**11


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
            top = rounded(d) == 0.0
            self.rest = self.rest + row_sum(zero_where(top, e))
            ties += np.count_nonzero(top, axis=1)
        self.rest = self.rest + ties
        self.log_total = (log1p if self._exact else np.log1p)(self.rest)

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
            d.lo[~(d.hi >= LOWEST)] = 0.0
            e: Number = exp(d)
        else:
            e = np.exp(d)
        self._last = cut, d, e
        return d, e

    def spoil(self, where: Array) -> None:
        """Make NaN of some rows."""
        self.rest = self.rest + np.where(where, np.nan, 0.0)

    def lse(self) -> Array:
        m = self.maximum
        lse: Array = np.where(np.isfinite(m), rounded(m + self.log_total), m)
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
                cuts = [row_sum(self.number(p.weight[np.newaxis, cut])) for cut in self.cuts()]
                spread = sum(cuts, self.number(0.0))
            self.total = self._even * spread + self._spike
        elif p.probs is not None:
            self._probs = np.moveaxis(p.probs, p.axis, -1)[index]
            self.total = self.number(np.zeros(stop - start))
            for cut in self.cuts():
                self.total = self.total + row_sum(self._coefficients(cut))

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
            loss = loss + zero_where(rounded(self._spike) == 0.0, self._spike * gap)
        if self._dense:
            for cut in self.cuts():
                b = self._coefficients(cut)
                loss = loss + row_sum(zero_where(rounded(b) == 0.0, b * -self.shifted(cut)[0]))
        losses: Array = rounded(loss * scale)
        return losses

    def gradient(self, cut: slice, scale: Array) -> Array:
        """Float64 (rows, width), multiplied by `scale` (rows,)."""
        d, e = self.shifted(cut)
        top = rounded(d) == 0.0
        factor = self.total * scale / (1.0 + self.rest)
        product = e * factor[:, np.newaxis]
        b = self._coefficients(cut) if self._dense else self.number(np.zeros(top.shape[1]))
        if self._dense:
            product = product - b * scale[:, np.newaxis]
        g: Array = rounded(product)
        # Anew where b is large: at the labels, or where the target is for certain a maximum.
        if self._probs is None:
            column = self._labels - cut.start
            row = np.flatnonzero((column >= 0) & (column < top.shape[1]))
            column = column[row]
            b = b[column] + self._spike[row]
        else:
            half = 0.5 * np.abs(rounded(self.total))
            row, column = np.nonzero(top & (np.abs(rounded(b)) > half[:, np.newaxis]))
            b = b[row, column]
        total, rest, scale = self.total[row], self.rest[row], scale[row]
        g[row, column] = np.where(
            top[row, column] & (np.abs(rounded(b)) > 0.5 * np.abs(rounded(total))),
            rounded((total - b - total * rest / (1.0 + rest)) * scale),
            rounded(e[row, column] * factor[row] - b * scale),
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
    valid = p.valid()
    scale = None if p.grad is None else p.row_scale()
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _block(p.logits)):
        drop: Array | slice = slice(0) if valid is None else ~valid[start:stop]
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
                _store(out[index][..., cut], rounded(rows.shifted(cut)[1] * factor[:, np.newaxis]))


@_fpenv.default
def log_softmax(x: Array, axis: int, out: Array) -> None:
    view, out = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index, _, _ in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            rows = _Rows(view[index])
            log_total = rows.log_total[:, np.newaxis]
            for cut in rows.cuts():
                _store(out[index][..., cut], rounded(rows.shifted(cut)[0] - log_total))


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
                none = (rounded(coefficient) == 0.0) & np.isinf(rounded(cost))
                term = zero_where(none, coefficient * cost) + term
            term = rounded(term)
            sums.append(term.sum())
            if loss is not None:
                loss[here] = term
            if grad is not None:
                for_negative = number(np.where(v < 0.0, q, 1.0)) / (number(1.0) + q)
                for_positive = number(np.where(v < 0.0, 1.0, q)) / (number(1.0) + q)
                grad[here] = rounded((negative * for_negative - positive * for_positive) * scale)
    return float(np.sum(sums))
