"""Rows with an infinite factor, for the backends in Python; `csrc/infinite.c` is the same in C.

The loss and the gradient of a row are multiplied by its sample weight, by w_y if its target is a
label without smoothing, and the gradient also by grad_loss/denominator. If one of these is
infinite, a formula would compute inf − inf and 0·inf. So the backends get 1 or −1 in its place, and
afterwards their results are multiplied by infinity, where a number that is 0 stays 0.
"""

from __future__ import annotations

import math
from copy import copy

import numpy as np

from pyce._compensated import product
from pyce._dtypes import compute_dtype
from pyce._problem import Problem
from pyce._types import Array

# The first factor of the gradients of such rows, so that none becomes 0 when it is rounded to
# a half type.
_LARGE = 2.0**64


class Factors:
    """The factors of the rows of a problem without infinities.

    problem, scale: the problem and the factors of the rows' gradients, float64 (rows,) or (1,), as
    they are given, or copies in which these factors are finite. `add_infinities` does the rest.
    """

    def __init__(self, p: Problem, scale: Array | None) -> None:
        self.problem, self.scale = p, scale
        self._of_loss: Array | None = None
        self._of_grad: Array | None = None
        of_rows = p.labels is not None and p.smoothing == 0.0
        # With one class, p is 1 and the weight of probabilities has no effect.
        weight = p.weight if of_rows or p.classes == 1 else None
        given = [p.sample_weight, weight, scale]
        if all(_is_finite(values) for values in given if values is not None):
            return
        with np.errstate(all="ignore"):
            self.problem = copy(p)
            s = np.ones(p.rows) if p.sample_weight is None else p.sample_weight
            w = np.ones(p.rows)
            if weight is not None:
                self.problem.weight = _finite(weight)
                if p.labels is not None:
                    w = weight[np.clip(p.labels, 0, p.classes - 1)]
            if p.sample_weight is not None:
                self.problem.sample_weight = _finite(s)
            some = (s != 0.0) & (w != 0.0)
            valid = p.valid()
            if valid is not None:
                some &= valid
            self._of_loss = some & (np.isinf(s) | np.isinf(w))
            self._sign = np.copysign(1.0, s) * np.copysign(1.0, w)
            self._is_positive = of_rows and p.classes > 1
            if scale is not None:
                scale = np.broadcast_to(scale, w.shape)
                of_row = scale * w  # with the sample weight
                self._of_grad = some & np.isinf(of_row)
                self._of_grad &= self._of_loss | np.isinf(scale)
                scale = np.where(some & np.isnan(of_row), np.nan, scale)
                self.scale = np.where(self._of_grad, np.copysign(_LARGE, scale), scale)

    def add_infinities(self, losses: Array | None) -> None:
        """Multiply the results of the rows: `losses`, float64 (rows,), and the gradient."""
        p = self.problem
        with np.errstate(all="ignore"):
            if losses is not None and self._of_loss is not None and self._of_loss.any():
                rows = self._of_loss
                loss = losses[rows].astype(compute_dtype(p.dtype_name)).astype(np.float64)
                if self._is_positive:  # even if it is rounded to 0
                    loss = np.where(loss == 0.0, self._sign[rows], loss)
                losses[rows] = product(loss, np.inf)
            if p.grad is not None and self._of_grad is not None and self._of_grad.any():
                rows = self._of_grad.reshape(p.positions)
                gradient = np.moveaxis(p.grad, p.axis, -1)
                values = gradient[rows].astype(np.float64)
                gradient[rows] = product(values, np.inf).astype(p.grad.dtype)


def _is_finite(values: Array) -> bool:
    return math.isfinite(values[0]) if values.size == 1 else bool(np.isfinite(values).all())


def _finite(values: Array) -> Array:
    """1 or −1 in place of infinities."""
    return np.where(np.isinf(values), np.copysign(1.0, values), values)
