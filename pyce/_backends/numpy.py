"""The reference backend: NumPy alone, in float64, block by block.

docs/derivation.md has the symbols and the derivation. The pivot of a row is a class k with the
largest logit, x_k = m, and the exponentials are e_c = exp(x_c − m), so that e_k = 1:

    R   = Σ_{c≠k} e_c,    S = Σ_c e_c = 1 + R
    b_c = w_c·((1 − ε)·t_c + ε/C),    A = Σ_c b_c

    lse = m + log1p(R)
    ℓ   = s·(Σ_c b_c·(m − x_c) + A·log1p(R))
    p_c = e_c/S
    g_c = s·G·(A·p_c − b_c)
    g_c = s·G·((A − b_c) − A·R/S)    where x_c = m and b_c > A/2

With lse_square_scale λ, and w = w_y or, without a label, 1:

    ℓ   += s·λ·w·lse²
    g_c += s·G·2λ·w·lse·p_c

No step is a difference of nearly equal numbers: where a one-hot target is a maximum, the last line
is −s·G·A·R/S, that is A·(p_c − 1) without cancellation.

A product with a factor b_c or s that is exactly 0 is 0, whatever the other factor is: a row without
coefficients has the loss and the gradient 0 even if its logits are NaN.

With float32 and half-type logits, float64 arithmetic makes no error that counts. With float64
logits the same formulas are computed in pairs of float64 (`pyce._compensated`), so that little more
than the last rounding remains.

Error against exact arithmetic: loss ≤ 2 ULP; gradient ≤ 4 ULP of the larger of A·p_c and b_c, and
of the gradient itself for index targets without smoothing. Half types: the float32 result, rounded
once.

Memory: blocks of a few thousand elements, and pieces of longer rows, below 1 MiB in total; and 32
bytes per row. A block is read before it is written, so an output may be the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyce import _fpenv
from pyce._compensated import (
    LOWEST,
    Number,
    Pair,
    exp,
    log1p,
    product,
    rounded,
    row_sum,
    zero_where,
)
from pyce._dtypes import compute_dtype
from pyce._factors import Factors
from pyce._problem import Problem, ShardedProblem, at_classes, row_blocks
from pyce._types import Array, Scalar

NAME = "numpy"
CHECKS_LABELS = False
at_addresses = None  # reads NumPy arrays only
scale_at = None
selective = None

# Elements of a block, such that all its temporaries together (8 in float64, 21 with pairs) stay
# below 1 MiB.
_BLOCK = 2**14
_BLOCK_OF_PAIRS = 3 * 2**11
_SMALLEST = np.finfo(np.float64).smallest_normal


# ---------------------------------------------------------------------------------------------
# One block of rows


def _block(x: Array) -> int:
    return _BLOCK_OF_PAIRS if x.dtype == np.float64 else _BLOCK


class _Rows:
    """The softmax of a block of rows `x` (..., classes), of any dtype and strides.

    maximum, rest, log_sum: (rows,), m, R and log S = log1p(R). The last two are NaN for rows that
    contain NaN or +inf, or only −inf.
    """

    rest: Number
    log_sum: Number

    def __init__(self, x: Array) -> None:
        self._x = x
        self._last: tuple[slice, Number, Number] | None = None
        self._in_pairs = x.dtype == np.float64
        self.maximum = np.max([_float64(x[..., cut]).max(axis=1) for cut in self.cuts()], axis=0)
        self.rest = self.number(np.zeros(self.maximum.shape))
        ties = np.full(self.maximum.shape, -1.0)  # classes with x_c = m, without the pivot
        for cut in self.cuts():
            d, e = self.exponentials(cut)
            at_maximum = rounded(d) == 0.0
            self.rest = self.rest + row_sum(zero_where(at_maximum, e))
            ties += np.count_nonzero(at_maximum, axis=1)
        self.rest = self.rest + ties
        self.log_sum = (log1p if self._in_pairs else np.log1p)(self.rest)

    def number(self, value: Any) -> Number:
        """`value` in the precision of the arithmetic: a pair for float64 logits."""
        return Pair(value) if self._in_pairs else value

    def cuts(self) -> Iterator[slice]:
        """The class axis in pieces short enough for a block."""
        classes, width = self._x.shape[-1], _block(self._x)
        return (slice(i, min(i + width, classes)) for i in range(0, classes, width))

    def exponentials(self, cut: slice) -> tuple[Number, Number]:
        """x_c − m and e_c at the classes of `cut`, (rows, width), which must not be changed."""
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

    def set_nan(self, mask: Array) -> None:
        """Make the gradients of some rows NaN."""
        self.rest = self.rest + np.where(mask, np.nan, 0.0)

    def lse(self) -> Array:
        """Float64 (rows,)."""
        m = self.maximum
        lse: Array = np.where(np.isfinite(m), rounded(m + self.log_sum), m)
        return lse


class _LossRows(_Rows):
    """Rows `start` to `stop` of a problem, which are its block `index`, with their targets.

    total, _lse_term: (rows,), A and λ·w·lse; the latter is None if λ is 0. For labels, b is ε/C·w_c
    at all classes, the soft-target term, and in addition (1 − ε)·w_y at the label.
    nothing: (rows,), whether s is 0, or all b and λ·w are.
    """

    total: Number
    nothing: Array

    def __init__(self, p: Problem, index: tuple[Any, ...], start: int, stop: int) -> None:
        super().__init__(np.moveaxis(p.logits, p.axis, -1)[index])
        self._weight = p.weight
        smoothing = _smoothing(p)
        self._on_value = self.number(1.0) - smoothing
        self._off_value = self.number(smoothing) / p.classes
        self._soft = p.labels is None or smoothing > 0.0
        self._probs: Array | None = None
        if p.labels is not None:
            # The labels of ignored rows become any class: the rows' results are overwritten.
            self._labels = np.clip(p.labels[start:stop], 0, p.classes - 1)
            w = np.ones(stop - start) if p.weight is None else p.weight[self._labels]
            self._b_label = product(self._on_value, w)
            self.nothing = rounded(self._b_label) == 0.0
            if self._soft and np.any(rounded(self._off_value) != 0.0):
                self.nothing &= p.weight is not None and not p.weight.any()
            weights: Number = float(p.classes)
            if p.weight is not None and self._soft:
                cuts = [row_sum(self.number(p.weight[np.newaxis, cut])) for cut in self.cuts()]
                weights = sum(cuts, self.number(0.0))
            self.total = self._off_value * weights + self._b_label
            scale = product(self.number(p.lse_square_scale), w)
        elif p.probs is not None:
            self._probs = np.moveaxis(p.probs, p.axis, -1)[index]
            self.total = self.number(np.zeros(stop - start))
            self.nothing = np.ones(stop - start, bool)
            for cut in self.cuts():
                b = self._b(cut)
                self.total = self.total + row_sum(b)
                self.nothing &= ~np.any(rounded(b) != 0.0, axis=1)
            scale = self.number(np.full(stop - start, p.lse_square_scale))
        self._lse_term: Number | None = None
        if p.lse_square_scale:
            self.nothing &= rounded(scale) == 0.0
            self._lse_term = product(scale, self.maximum + self.log_sum)
        if p.sample_weight is not None:
            self.nothing |= p.sample_weight[start:stop] == 0.0

    def _b(self, cut: slice) -> Number:
        """b at the classes of `cut`, (rows, width); for labels its soft-target term, (width,)."""
        b = self._off_value
        if self._probs is not None:
            b = product(self._on_value, _float64(self._probs[..., cut])) + b
        return product(
            b, np.ones(cut.stop - cut.start) if self._weight is None else self._weight[cut]
        )

    def losses(self, sample_weight: Array | float) -> Array:
        """ℓ, float64 (rows,)."""
        # An infinite A makes the loss infinite even if log S, which is positive, is rounded to 0.
        infinite = np.isinf(rounded(self.total))
        loss: Number = self.total * (self.log_sum + np.where(infinite, _SMALLEST, 0.0))
        # A term with b_c = 0 is 0 even if x_c is infinite, and at the maximum even if b_c is.
        if self._probs is None:
            at_label = at_classes(self._x, self._labels).astype(np.float64)
            below = self.number(self.maximum) - at_label
            loss = loss + product(self._b_label, below)
        if self._soft:
            for cut in self.cuts():
                b = self._b(cut)
                below = -self.exponentials(cut)[0]
                loss = loss + row_sum(product(b, below))
        if self._lse_term is not None:
            loss = loss + product(self._lse_term, self.maximum + self.log_sum)
        losses: Array = rounded(loss * sample_weight)
        return losses

    def gradient(self, cut: slice, scale: Array) -> Array:
        """g at the classes of `cut`, float64 (rows, width); `scale` is s·G, (rows,)."""
        d, e = self.exponentials(cut)
        at_maximum = rounded(d) == 0.0
        factor = self.total * scale / (1.0 + self.rest)
        lse_factor: Number = None
        if self._lse_term is not None:
            lse_factor = product(self._lse_term * 2.0, scale) / (1.0 + self.rest)
            factor = factor + lse_factor
        difference = e * factor[:, np.newaxis]
        b = self._b(cut) if self._soft else self.number(np.zeros(at_maximum.shape[1]))
        if self._soft:
            difference = difference - b * scale[:, np.newaxis]
        g: Array = rounded(difference)
        # The elements with a large b are computed again: of labels the one at the label, of
        # probabilities those at a maximum with b_c > A/2.
        if self._probs is None:
            column = self._labels - cut.start
            row = np.flatnonzero((column >= 0) & (column < at_maximum.shape[1]))
            column = column[row]
            b = b[column] + self._b_label[row]
        else:
            half = 0.5 * np.abs(rounded(self.total))
            row, column = np.nonzero(at_maximum & (np.abs(rounded(b)) > half[:, np.newaxis]))
            b = b[row, column]
        total, rest, scale = self.total[row], self.rest[row], scale[row]
        others = total - b if self._soft else 0.0  # Σ b of the other classes
        sure = (others - total * rest / (1.0 + rest)) * scale
        unsure = e[row, column] * factor[row] - b * scale
        if lse_factor is not None:
            sure = sure + lse_factor[row]
        g[row, column] = np.where(
            at_maximum[row, column] & (np.abs(rounded(b)) > 0.5 * np.abs(rounded(total))),
            rounded(sure),
            rounded(unsure),
        )
        return g


def _smoothing(p: Problem) -> float:
    """Label smoothing. That of a single class gives back to the label what it takes from it."""
    return p.smoothing if p.classes > 1 or p.labels is None else 0.0


def _float64(x: Array) -> Array:
    """A copy of x (..., width) as float64 (rows, width)."""
    return x.astype(np.float64, order="C").reshape(-1, x.shape[-1])


def _store(out: Array, values: Array) -> None:
    """Write float64 (rows, width) to `out` (..., width), by way of float32 for half types."""
    dtype = compute_dtype(out.dtype.name)
    out[...] = values.astype(dtype, copy=False).reshape(out.shape)


# ---------------------------------------------------------------------------------------------
# Softmax cross-entropy


@_fpenv.default
def forward(p: Problem) -> Scalar | None:
    losses = np.zeros(p.rows)
    return _run(p, losses)


def forward_backward(p: Problem) -> Scalar | None:
    return forward(p)  # which writes p.grad if it is not None


@_fpenv.default
def backward(p: Problem) -> None:
    """Computes everything from the logits: a float64 lse of large logits has too few digits.

    The saved lse only makes the gradients NaN of rows where it is not finite.
    """
    _run(p, None)


def _run(p: Problem, losses: Array | None) -> Scalar | None:
    """Write p.grad unless it is None, and in the forward p.lse and the float64 `losses` (rows,).

    Then the losses are written to p.losses, or their sum or mean is returned.
    """
    given, valid, denominator = p, p.valid(), p.denominator()
    factors = Factors(p, None if p.grad is None else p.row_scale(denominator), denominator)
    p, scale = factors.problem, factors.scale
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _block(p.logits)):
        ignored = np.zeros(stop - start, bool) if valid is None else ~valid[start:stop]
        with np.errstate(all="ignore"):
            rows = _LossRows(p, index, start, stop)
            nothing = rows.nothing | ignored
            if losses is not None:
                s = 1.0 if p.sample_weight is None else p.sample_weight[start:stop]
                loss, lse = rows.losses(s), rows.lse()
                loss[nothing] = lse[ignored] = 0.0
                losses[start:stop] = loss
                if p.lse is not None:
                    p.lse[start:stop] = lse
            elif p.lse is not None:
                rows.set_nan(~np.isfinite(p.lse[start:stop]))
            if p.grad is not None and scale is not None:
                out = np.moveaxis(p.grad, p.axis, -1)[index]
                for cut in rows.cuts():
                    g = rows.gradient(cut, scale[start:stop])
                    g[nothing] = 0.0
                    _store(out[..., cut], g)
    if factors.extreme:
        return factors.finish(losses)
    return None if losses is None else given.reduce(losses, denominator)


# ---------------------------------------------------------------------------------------------
# Rows whose classes are cut into shards
#
# With m_s and R_s those of the classes of a shard s, and m = m_k the largest of all:
#
#     R            = R_k + Σ_{s≠k} (1 + R_s)·exp(m_s − m)
#     Σ b_c·(m − x_c) = Σ_s (Σ_{c of s} b_c·(m_s − x_c) + (m − m_s)·Σ_{c of s} b_c)
#
# A state has m_s, R_s, the logit at the label (0 where it is in another shard), both sums over the
# b of the soft-target term, and the number of those that are not 0; R_s and the sums as two
# numbers each, whose sum they are.

_STATE = 9


class _ShardRows(_LossRows):
    """Rows of the own shard, with the states of all shards if these are given.

    They are the rows `start` to `stop`, and the block `index` of the logits. Without states,
    maximum, rest and the sums are those of the own shard.
    """

    def __init__(
        self,
        p: ShardedProblem,
        index: tuple[Any, ...],
        start: int,
        stop: int,
        states: list[Array] | None,
    ) -> None:
        self._x = p.logits[index]
        self._last = None
        self._in_pairs = p.logits.dtype == np.float64
        self._weight = None
        smoothing = _smoothing(p)
        self._on_value = self.number(1.0) - smoothing
        self._off_value = self.number(smoothing) / p.classes
        self._soft = p.labels is None or smoothing > 0.0
        self._probs = None if p.probs is None else p.probs[index]
        first, last = p.bounds[p.own : p.own + 2]
        rows = stop - start
        self._label_x = np.zeros(rows)
        if p.labels is not None:
            labels = p.labels[start:stop].astype(np.int64)
            self._labels = labels - first  # those of other shards are out of range
            self._b_label: Number = self._on_value * np.ones(rows)
            here = np.flatnonzero((labels >= first) & (labels < last))
            if here.size:
                at = np.unravel_index(here, self._x.shape[:-1])
                self._label_x[here] = self._x[(*at, self._labels[here])].astype(np.float64)
        if states is None:
            self._measure(rows)
            return
        states = [state[start:stop] for state in states]
        self._combine(p, states)
        if p.sample_weight is not None:
            self.nothing |= p.sample_weight[start:stop] == 0.0
        if p.labels is not None:
            for state, low, high in zip(states, p.bounds, p.bounds[1:], strict=False):
                self._label_x = np.where(
                    (labels >= low) & (labels < high), state[:, 1], self._label_x
                )

    def _measure(self, rows: int) -> None:
        classes = self._x.shape[-1]
        self.maximum = np.full(rows, -np.inf)
        self.rest = self.soft_sum = self.soft_loss = self.number(np.zeros(rows))
        self.coefficients = np.zeros(rows)
        if classes == 0:
            return
        _Rows.__init__(self, self._x)
        if not self._soft:
            return
        # Relative to 0 where no logit is finite.
        top = np.where(np.isfinite(self.maximum), self.maximum, 0.0)[:, np.newaxis]
        for cut in self.cuts():
            b = self._b(cut) * np.ones((rows, 1))
            below = self.number(top) - _float64(self._x[..., cut])
            self.soft_sum = self.soft_sum + row_sum(b)
            self.soft_loss = self.soft_loss + row_sum(product(b, below))
            self.coefficients += np.count_nonzero(rounded(b), axis=-1)

    def state(self) -> Array:
        """Float64 (rows, _STATE)."""
        columns: list[Any] = [self.maximum, self._label_x, self.coefficients]
        for number in (self.rest, self.soft_sum, self.soft_loss):
            columns += [number.hi, number.lo] if self._in_pairs else [number, 0.0]
        return np.stack(np.broadcast_arrays(*columns), axis=1)

    def _combine(self, p: ShardedProblem, states: list[Array]) -> None:
        maxima = np.stack([state[:, 0] for state in states])
        self.maximum = m = np.max(maxima, axis=0)
        # Of several shards with the maximum, the first one's is left out of R.
        top = np.argmax(maxima, axis=0)
        zero = self.number(np.zeros(m.shape))
        self.rest = self._soft_loss = soft_sum = zero
        coefficients = np.zeros(m.shape)
        for s, state in enumerate(states):
            rest, shard_sum, shard_loss = (
                Pair(state[:, i], state[:, i + 1]) if self._in_pairs else state[:, i]
                for i in (3, 5, 7)
            )
            d = self.number(state[:, 0]) - m
            if isinstance(d, Pair):
                d.lo = np.where(d.hi >= LOWEST, d.lo, 0.0)
            e = exp(d) if isinstance(d, Pair) else np.exp(d)
            others = zero_where(state[:, 0] == -np.inf, (rest + 1.0) * e)
            is_top = top == s
            self.rest = self.rest + zero_where(is_top, others) + zero_where(~is_top, rest)
            finite = np.where(np.isfinite(state[:, 0]), state[:, 0], 0.0)
            further = product(self.number(m) - finite, shard_sum)
            self._soft_loss = self._soft_loss + shard_loss + further
            soft_sum = soft_sum + shard_sum
            coefficients += state[:, 2]
        self.set_nan(m == -np.inf)
        self.log_sum = (log1p if self._in_pairs else np.log1p)(self.rest)
        self.nothing = np.zeros(m.shape, bool)
        if p.labels is None:
            self.total = soft_sum
            self.nothing = coefficients == 0.0
        else:
            self.total = self._off_value * float(p.classes) + self._b_label
        self._lse_term = None
        if p.lse_square_scale:
            self.nothing[:] = False
            self._lse_term = (self.number(m) + self.log_sum) * p.lse_square_scale

    def losses(self, sample_weight: Array | float) -> Array:
        infinite = np.isinf(rounded(self.total))
        loss: Number = self.total * (self.log_sum + np.where(infinite, _SMALLEST, 0.0))
        if self._probs is None:
            loss = loss + product(self._b_label, self.number(self.maximum) - self._label_x)
        if self._soft:
            loss = loss + self._soft_loss
        if self._lse_term is not None:
            loss = loss + product(self._lse_term, self.maximum + self.log_sum)
        losses: Array = rounded(loss * sample_weight)
        return losses


@_fpenv.default
def partial(p: ShardedProblem, state: Array) -> None:
    """Write the states of the rows after the classes of the own shard; see `Backend`."""
    p.check_labels()
    of_rows = state.reshape(p.rows, _STATE)
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _block(p.logits)):
        with np.errstate(all="ignore"):
            of_rows[start:stop] = _ShardRows(p, index, start, stop, None).state()


def state_size(p: ShardedProblem, classes: int) -> int:
    """The numbers of a row's state; see `Backend`."""
    return _STATE


@_fpenv.default
def complete(p: ShardedProblem, states: list[Array]) -> Scalar | None:
    """Loss and gradient of the own shard from the states of all; see `Backend`."""
    p.check_labels()
    losses, valid, denominator = np.zeros(p.rows), p.valid(), p.denominator()
    factors = Factors(p, None if p.grad is None else p.row_scale(denominator), denominator)
    sample_weight, scale = factors.problem.sample_weight, factors.scale
    states = [state.reshape(p.rows, _STATE) for state in states]
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _block(p.logits)):
        ignored = np.zeros(stop - start, bool) if valid is None else ~valid[start:stop]
        with np.errstate(all="ignore"):
            rows = _ShardRows(p, index, start, stop, states)
            nothing = rows.nothing | ignored
            loss = rows.losses(1.0 if sample_weight is None else sample_weight[start:stop])
            loss[nothing] = 0.0
            losses[start:stop] = loss
            if p.grad is not None and scale is not None:
                for cut in rows.cuts():
                    g = rows.gradient(cut, scale[start:stop])
                    g[nothing] = 0.0
                    _store(p.grad[index][..., cut], g)
    return factors.finish(losses) if factors.extreme else p.reduce(losses, denominator)


# ---------------------------------------------------------------------------------------------
# Softmax, log-softmax, logsumexp


@_fpenv.default
def softmax(x: Array, axis: int, out: Array) -> None:
    view, out = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index, _, _ in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            rows = _Rows(view[index])
            factor = rows.number(1.0) / (1.0 + rows.rest)
            for cut in rows.cuts():
                p = rounded(rows.exponentials(cut)[1] * factor[:, np.newaxis])
                _store(out[index][..., cut], p)


@_fpenv.default
def log_softmax(x: Array, axis: int, out: Array) -> None:
    view, out = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index, _, _ in row_blocks(x.shape, axis, _block(x)):
        with np.errstate(all="ignore"):
            rows = _Rows(view[index])
            log_sum = rows.log_sum[:, np.newaxis]
            for cut in rows.cuts():
                _store(out[index][..., cut], rounded(rows.exponentials(cut)[0] - log_sum))


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
    """With positive = v·t and negative = 1 − t, where v is the positive weight:

        ℓ = w·(positive·softplus(−x) + negative·softplus(x))
        g = scale·w·(negative·σ(x) − positive·σ(−x))

    u = exp(−|x|) gives softplus(±x) = max(±x, 0) + log1p(u), and σ(±x) = 1/(1 + u) or u/(1 + u).
    Products with a coefficient of 0 are 0.
    """
    number: Any = Pair if x.dtype == np.float64 else np.asarray
    sums = []
    for start in range(0, x.size, _block(x)):
        here = slice(start, start + _block(x))
        with np.errstate(all="ignore"):
            logits = x[here].astype(np.float64)
            positive = number(t[here].astype(np.float64))
            negative = 1.0 - positive
            if pos_weight is not None:
                positive = product(positive, pos_weight[here].astype(np.float64))
            w = 1.0 if weight is None else weight[here].astype(np.float64)
            # Both coefficients are 0, or the weight is.
            nothing = (rounded(positive) == 0.0) & (rounded(negative) == 0.0) | (w == 0.0)
            u = np.exp(-np.abs(logits))
            log1p_u = np.log1p(u)
            losses = number(np.zeros(logits.shape))
            for coefficient, sign in ((positive, -1.0), (negative, 1.0)):
                softplus = number(np.maximum(sign * logits, 0.0)) + log1p_u
                losses = losses + product(coefficient, softplus)
            losses = rounded(zero_where(nothing, losses * w))
            sums.append(losses.sum())
            if loss is not None:
                loss[here] = losses
            if grad is not None:
                sigmoid = number(np.where(logits < 0.0, u, 1.0)) / (number(1.0) + u)
                sigmoid_of_minus = number(np.where(logits < 0.0, 1.0, u)) / (number(1.0) + u)
                slope = product(negative, sigmoid) - product(positive, sigmoid_of_minus)
                grad[here] = rounded(zero_where(nothing, slope * w * scale))
    return float(np.sum(sums))
