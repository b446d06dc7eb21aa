"""Minimising a smooth function plus λ·Σ|x_i|, for the elastic net of `SoftmaxRegression`.

The method is the projected scaled sub-gradient method in the variant of Gafni and Bertsekas, a
relative of OWL-QN. An iteration moves the coefficients that are not 0 along the L-BFGS direction of
these coefficients alone, and the others along the negative sub-gradient. Every coefficient that
would change its sign, or leave the side of 0 to which its sub-gradient leads, is set to 0. The step
is halved until the objective decreases sufficiently. Near the solution the signs no longer change,
and the steps are those of L-BFGS on the coefficients that are not 0.

Source: Schmidt, "Graphical model structure learning with L1-regularization" (2010), chapter 2.
"""

from __future__ import annotations

import numpy as np

from pyce._types import Array
from pyce.sklearn._lbfgs import (
    EPS,
    MEMORY,
    REDUCTION,
    Evaluate,
    Progress,
    Solution,
    coefficients,
    largest,
)

_MOST_EVALUATIONS = 50  # of a line search
_DECREASE = 1e-4  # sufficient decrease of a line search


def minimize_l1(
    evaluate: Evaluate,
    x: Array,
    *,
    penalty: float,
    penalised: int,
    max_iter: int,
    tol: float,
    progress: Progress,
) -> Solution:
    """A minimum of a smooth function plus `penalty` times the first values' absolute sum.

    Starts from `x`, flat and in float64; its first `penalised` values have the penalty. Stops if no
    component of the smallest sub-gradient exceeds `tol` in magnitude.
    """

    def total(x: Array, gradient: Array) -> float:
        return evaluate(x, gradient) + penalty * float(np.abs(x[:penalised]).sum())

    gradient, new_gradient, new = (np.empty_like(x) for _ in range(3))
    memory = _Memory(len(x))
    value = total(x, gradient)
    small = False  # whether the last step hardly changed the objective
    for iteration in range(max_iter + 1):
        slope = _sub_gradient(x, gradient, penalty, penalised)
        size = largest(slope)
        if iteration:
            progress(iteration, value, size)
        if size <= tol or small:
            return Solution(x, iteration, None)
        if iteration == max_iter:
            break
        free = x != 0
        free[penalised:] = True
        signs = np.where(free, np.sign(x), -np.sign(slope))[:penalised]
        while True:
            d = memory.direction(slope, free)
            step = 1.0 if memory else 1.0 / float(np.linalg.norm(slope))
            for _ in range(_MOST_EVALUATIONS):
                np.multiply(d, step, out=new)
                new += x
                new[:penalised][new[:penalised] * signs <= 0] = 0
                new_value = total(new, new_gradient)
                if new_value <= value + _DECREASE * float(np.dot(slope, new - x)):
                    break
                step /= 2
            else:
                if not memory:
                    return Solution(x, iteration, "no step decreases the objective")
                memory.clear()
                continue
            break
        small = value - new_value <= REDUCTION * max(abs(value), abs(new_value), 1.0)
        memory.add(new - x, new_gradient - gradient)
        x, new = new, x
        gradient, new_gradient = new_gradient, gradient
        value = new_value
    return Solution(x, max_iter, "the maximum number of iterations is reached")


def _sub_gradient(x: Array, gradient: Array, penalty: float, penalised: int) -> Array:
    """The smallest sub-gradient: where x is 0, what the penalty does not outweigh."""
    slope = gradient.copy()
    x, g = x[:penalised], slope[:penalised]
    g[...] = np.where(x == 0, g - np.clip(g, -penalty, penalty), g + penalty * np.sign(x))
    return slope


class _Memory:
    """The last steps and the changes of the gradient that belong to them."""

    def __init__(self, size: int) -> None:
        self._rows = np.empty((2, MEMORY, size))  # steps; changes of the gradient
        self.clear()

    def clear(self) -> None:
        self._places: list[int] = []  # from the oldest to the newest

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, step: Array, change: Array) -> None:
        """Save a step along which the gradient increases."""
        if not np.dot(step, change) > EPS * np.dot(change, change):
            return
        full = len(self._places) == MEMORY
        place = self._places.pop(0) if full else len(self._places)
        self._rows[:, place] = step, change
        self._places.append(place)

    def direction(self, slope: Array, free: Array) -> Array:
        """−H·slope of the free coefficients, and a multiple of −slope of the others."""
        d = -slope
        if not self._places:
            return d
        of_free = slope[free]
        s, y = self._rows[:, self._places][:, :, free]
        curved = np.einsum("ij,ij->i", s, y) > EPS * np.einsum("ij,ij->i", y, y)
        s, y = s[curved], y[curved]
        if not len(s):
            return d
        of_s, of_y, scale = coefficients(s @ y.T, y @ y.T, s @ of_free, y @ of_free)
        d *= scale
        d[free] += of_s @ s + of_y @ y
        return d
