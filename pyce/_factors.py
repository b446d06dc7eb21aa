"""Rows with an extreme factor, for the backends in Python and for the linear functions.

`csrc/factors.c` is the same in C.

The loss and the gradient of a row are multiplied by its sample weight, by w_y if its target is a
label without smoothing, and the gradient also by grad_loss/denominator. If one of these is
infinite, a formula would compute inf − inf and 0·inf; if one is very large or small, a product of
factors could overflow or underflow although the result does not. So the backends get 1 or −1 in the
place of an extreme class weight, and as sample weight and factor of the gradient the product of the
extreme factors, computed with an exponent of its own, as far as it fits. Afterwards their results
are multiplied by the rest, a power of two or infinity, where a number that is 0 stays 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

import numpy as np

from pyce._compensated import Pair, precise_sum, rounded
from pyce._dtypes import compute_dtype
from pyce._problem import Problem, row_blocks
from pyce._types import Array, Scalar

# Factors beyond are extreme: those between 2^_LEAST and the limit of the compute type are not.
_LEAST, _MOST_OF_DOUBLE, _MOST_OF_FLOAT = -200, 200, 36
# Limits of the exponents of the products that the backends get. No result of theirs underflows that
# is normal after the multiplication by the rest, and none overflows that is finite then. The two
# terms of soft targets, which are subtracted, are finite in float32, as is the product with a
# derivative of λ·lse² for the largest float.
_LEAST_PRODUCT, _MOST_PRODUCT = -400, 400
_MOST_OF_FLOATS, _MOST_OF_SOFT_FLOATS, _MOST_WITH_LSE = 180, 100, 40
_INFINITE = 2**31 - 1  # as an exponent
_BLOCK = 2**13  # elements of a gradient that are multiplied together


class _Numbers(NamedTuple):
    """value·2^exponent, value being a pair of which |hi| is 0, not finite, or in [1/2, 1)."""

    value: Pair
    exponent: Array

    def times(self, other: Array | _Numbers) -> _Numbers:
        b = other if isinstance(other, _Numbers) else _numbers(other)
        return _normalised(self.value * b.value, self.exponent + b.exponent)

    def over(self, other: _Numbers) -> _Numbers:
        return _normalised(self.value / other.value, self.exponent - other.exponent)

    def floats(self, exponent: Array | int = 0) -> Array:
        """Float64, times 2^exponent."""
        return _scaled(rounded(self.value), self.exponent + exponent)


def _scaled(values: Array, exponent: Array) -> Array:
    result: Array = np.ldexp(values, np.clip(exponent, -10_000, 10_000).astype(np.intc))
    return result


def _normalised(value: Pair, exponent: Array) -> _Numbers:
    hi, more = np.frexp(value.hi)
    lo = np.where(np.isfinite(value.lo), np.ldexp(value.lo, -more), 0.0)
    return _Numbers(Pair(hi, lo), np.where(np.isfinite(hi) & (hi != 0.0), exponent + more, 0))


def _numbers(values: Array | float) -> _Numbers:
    return _normalised(Pair(np.asarray(values, np.float64), 0.0), np.zeros((), np.int64))


class Factors:
    """The factors of the rows of a problem without those that are extreme.

    problem, scale: the problem and the factors of the rows' gradients, float64 (rows,) or (1,), as
    they are given, or copies without extreme factors. Where there are some, `extreme` is true and
    `finish` does the rest. `denominator` is that of the mean. A loss of 0 that was computed
    `from_logits` was rounded.
    """

    def __init__(
        self, p: Problem, scale: Array | None, denominator: float, *, from_logits: bool = True
    ) -> None:
        self.problem, self.scale = p, scale
        self.extreme = False
        self._is_positive = (
            from_logits and p.labels is not None and p.smoothing == 0.0 and p.classes > 1
        )
        self._most = _MOST_OF_DOUBLE if p.dtype_name == "float64" else _MOST_OF_FLOAT
        of_rows = p.labels is not None and p.smoothing == 0.0
        # With one class, p is 1 and the weight of probabilities has no effect.
        weight = p.weight if of_rows or p.classes == 1 else None
        with np.errstate(all="ignore"):
            of_all = 1.0 if isinstance(p.grad_loss, np.ndarray) else float(p.grad_loss)
            takes_scale = (
                not 2.0**-900 < abs(denominator) < 2.0**900
                or (of_all != 0.0 and not 2.0**-900 < abs(of_all) < 2.0**900)
                or (
                    of_all != 0.0
                    and not 2.0**_LEAST <= abs(of_all / denominator) <= 2.0**self._most
                )
            )
            # Backends may convert the class weights of soft targets to float32.
            soft = 0
            if p.weight is not None and not of_rows and p.classes > 1:
                largest = np.max(np.abs(p.weight), where=np.isfinite(p.weight), initial=0.0)
                if self._any_extreme(largest) or 0.0 < largest < 2.0**-60:
                    soft = int(np.frexp(largest)[1])
                    if p.labels is None and p.lse_square_scale:
                        # λ·lse² has no class weight. λ does not exceed 1 when it is divided, too.
                        soft = max(soft, int(np.frexp(p.lse_square_scale)[1]))
            given = [p.sample_weight, weight]
            if scale is not None:
                given.append(p.grad_loss if isinstance(p.grad_loss, np.ndarray) else None)
            some = any(values is not None and self._any_extreme(values) for values in given)
            if (some or takes_scale or soft) and p.any_valid():
                self._replace(weight, denominator, takes_scale, soft)

    def _is_extreme(self, values: Array) -> Array:
        size = np.abs(values)
        found: Array = (size > 2.0**self._most) | ((size < 2.0**_LEAST) & (size > 0.0))
        return found

    def _any_extreme(self, values: Array) -> bool:
        # Most weights are positive: then their extremes tell, without an array of their size.
        if values.size == 0:
            return False
        if values.min() >= 2.0**_LEAST and values.max() <= 2.0**self._most:
            return False
        return bool(self._is_extreme(values).any())

    def _replace(
        self, weight: Array | None, denominator: float, takes_scale: bool, soft: int
    ) -> None:
        p = self.problem
        self.extreme = True
        self._denominator = _denominator(p, denominator)
        self.problem = q = copy(p)
        s = np.ones(p.rows) if p.sample_weight is None else p.sample_weight
        w = np.ones(p.rows)
        if weight is not None:
            q.weight = self._signs(weight)
            if p.labels is not None:
                w = weight[np.clip(p.labels, 0, p.classes - 1)]
        # Rows with a coefficient that is not 0.
        some = (s != 0.0) & (w != 0.0)
        valid = p.valid()
        if valid is not None:
            some &= valid
        replaced = self._is_extreme(w)
        product = _numbers(s).times(np.where(replaced, np.abs(w), 1.0))
        if soft and p.weight is not None:
            q.weight = np.ldexp(p.weight, -soft)
            if p.labels is None:
                q.lse_square_scale = float(np.ldexp(p.lse_square_scale, -soft))
            product = _Numbers(product.value, product.exponent + soft)
        others = np.where(replaced, 0, np.frexp(w)[1])
        # The losses of the rows get no power of two, so that none of them is lost.
        of_loss, left = _within(product, others, 0, 0)
        q.sample_weight = np.where(some, of_loss, np.where(s == 0.0, 0.0, 1.0))
        self._left_of_loss = np.where(some, left, 0)
        self._sign = np.copysign(1.0, s) * np.copysign(1.0, w)
        if self.scale is None:
            return
        grad_losses = p.grad_loss if isinstance(p.grad_loss, np.ndarray) else np.ones(1)
        of_all = p.grad_loss if not isinstance(p.grad_loss, np.ndarray) else 1.0
        product = product.times(grad_losses).times(_numbers(of_all).over(self._denominator))
        is_soft = p.labels is None or p.smoothing > 0.0
        most = _MOST_OF_SOFT_FLOATS if is_soft else _MOST_OF_FLOATS
        most = _MOST_WITH_LSE if p.lse_square_scale else most
        most = _MOST_PRODUCT if p.dtype_name == "float64" else most
        of_grad, left = _within(product, others, _LEAST_PRODUCT, most)
        of_grad = np.where((grad_losses == 0.0) | (of_all == 0.0), 0.0, of_grad)  # even 0 · inf
        some &= (
            takes_scale
            | (soft != 0)
            | replaced
            | self._is_extreme(s)
            | self._is_extreme(grad_losses)
        )
        self.scale = np.where(some, of_grad, self.scale)
        self._left_of_grad = np.where(some, left, 0)

    def _signs(self, values: Array) -> Array:
        """1 or −1 in place of extreme factors."""
        return np.where(self._is_extreme(values), np.copysign(1.0, values), values)

    def finish(self, losses: Array | None) -> Scalar | None:
        """Complete the results of a problem with `extreme` factors.

        Multiplies the gradient by what is left. `losses` are float64 (rows,): writes them to
        `losses` of the problem, or returns their sum or mean in the loss's dtype.
        """
        p = self.problem
        with np.errstate(all="ignore"):
            if p.grad is not None:
                self.finish_gradient(p.grad, p.axis)
            if losses is None:
                return None
            infinite = self._left_of_loss == _INFINITE
            if infinite.any():
                loss = losses[infinite].astype(compute_dtype(p.dtype_name)).astype(np.float64)
                if self._is_positive:  # even if it is rounded to 0
                    loss = np.where(loss == 0.0, self._sign[infinite], loss)
                losses[infinite] = loss
            if p.losses is not None:
                p.losses[...] = _multiplied(losses, self._left_of_loss)
                return None
            # Relative to the largest loss.
            finite = np.isfinite(losses) & (losses != 0.0) & ~infinite
            exponents = np.frexp(losses)[1] + self._left_of_loss
            largest = int(np.max(exponents, where=finite, initial=-(2**31)))
            largest = 0 if largest == -(2**31) else largest
            left = np.where(infinite, _INFINITE, self._left_of_loss - largest)
            total = precise_sum(_multiplied(losses, left))
            d = self._denominator
            quotient = np.float64(total) / rounded(d.value)
            to: type[Scalar] = compute_dtype(p.dtype_name).type
            return to(_scaled(quotient, largest - d.exponent))

    def finish_gradient(self, grad: Array, axis: int, rows: slice | Array = slice(None)) -> None:
        """Multiply the gradient of all or some rows by what is left, a block at a time."""
        compute = compute_dtype(self.problem.dtype_name)
        of_rows = self._left_of_grad[rows]
        gradient = np.moveaxis(grad, axis, -1)
        for index, start, stop in row_blocks(grad.shape, axis, _BLOCK):
            left = of_rows[start:stop, np.newaxis]
            if not left.any():
                continue
            for part in _pieces(gradient[index]):
                values = _multiplied(part.astype(np.float64).reshape(stop - start, -1), left)
                part[...] = values.astype(compute).reshape(part.shape)


def _pieces(of_rows: Array) -> Iterator[Array]:
    """Views of rows (..., C) with some of their classes each."""
    width = max(1, _BLOCK // max(1, of_rows[..., 0].size))
    classes = of_rows.shape[-1]
    return (of_rows[..., i : i + width] for i in range(0, classes, width))


def _within(n: _Numbers, others: Array, least: int, most: int) -> tuple[Array, Array]:
    """Factors for the backends, and the exponents of what is left of `n`.

    The exponents of the products with the other factors, whose exponents are `others`, are at least
    `least` and at most `most`.
    """
    exponent = n.exponent + others
    left = exponent - np.clip(exponent, least, most)
    values = rounded(n.value)
    left = np.where(np.isfinite(values) & (values != 0.0), left, 0)
    infinite = np.isinf(values)
    with_limit = np.copysign(_scaled(np.ones(values.shape), most - others), values)
    factors = np.where(infinite, with_limit, n.floats(-left))
    return factors, np.where(infinite, _INFINITE, left)


def _multiplied(values: Array, exponents: Array) -> Array:
    """values·2^exponents; 0 and NaN remain what they are."""
    infinite = np.where((values == 0.0) | np.isnan(values), values, np.copysign(np.inf, values))
    return np.where(exponents == _INFINITE, infinite, _scaled(values, exponents))


def _denominator(p: Problem, found: float) -> _Numbers:
    """The denominator with an exponent of its own.

    That of a mean is computed again if it may have overflowed or lost digits.
    """
    number = _numbers(found)
    if p.reduction != "mean" or p.normalizer is not None or 2.0**-900 < abs(found) < 2.0**900:
        return number
    s = np.ones(p.rows) if p.sample_weight is None else p.sample_weight
    terms = _numbers(s)
    if p.labels is not None:
        valid = p.labels != p.ignore_index
        s = np.where(valid, s, 0.0)
        w = np.ones(p.rows) if p.weight is None else p.weight[np.where(valid, p.labels, 0)]
        terms = _numbers(np.where(w == 0.0, 0.0, s)).times(np.where(s == 0.0, 0.0, w))
    if not np.isfinite(terms.value.hi).all():
        return number
    largest = int(np.max(terms.exponent, where=terms.value.hi != 0.0, initial=-(2**31)))
    largest = 0 if largest == -(2**31) else largest
    total = _numbers(precise_sum(terms.floats(-largest)))
    return _Numbers(total.value, total.exponent + largest)
