"""Minimising a smooth function plus λ·Σ|x_i|, for the elastic net of `SoftmaxRegression`.

The method is the projected scaled sub-gradient method in the variant of Gafni and Bertsekas, a
relative of OWL-QN. An iteration moves the coefficients that are not 0 along the L-BFGS direction of
these coefficients alone, and the others along the negative sub-gradient. Every coefficient that
would change its sign, or leave the side of 0 to which its sub-gradient leads, is set to 0. The step
is halved until the objective decreases sufficiently. Near the solution the signs no longer change,
and the steps are those of L-BFGS on the coefficients that are not 0.

Setting coefficients to 0 can turn the L-BFGS direction into one that does not decrease the
objective, except by steps so short that the solver would stop far from the solution. Therefore
coefficients which a step along the negative sub-gradient would set to 0 take this step, and all of
them do if a few steps along the L-BFGS direction fail. For that step the method always decreases
the objective. A step that hardly does ends the solver only if the next one, without saved steps,
hardly does either.

Source: Schmidt, "Graphical model structure learning with L1-regularization" (2010), chapter 2;
Bertsekas, "Projected Newton methods for optimization problems with simple constraints" (1982).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dnrm2

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
_QUICK = 8  # of one along the L-BFGS direction
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
    component of the smallest sub-gradient exceeds `tol` in magnitude, or if two steps in turn
    change the objective by no more than rounding does.
    """

    def total(x: Array, gradient: Array) -> float:
        return evaluate(x, gradient) + penalty * float(np.abs(x[:penalised]).sum())

    gradient, new_gradient, new = (np.empty_like(x) for _ in range(3))
    memory = _Memory(len(x))
    value = total(x, gradient)

    def search(d: Array, evaluations: int) -> float | None:
        """Set `new` and `new_gradient` after a step in the direction `d`; None if none is found."""
        step = 1.0
        for _ in range(evaluations):
            np.multiply(d, step, out=new)
            np.add(new, x, out=new)
            new[:penalised][new[:penalised] * signs <= 0] = 0
            new_value = total(new, new_gradient)
            change = float(np.dot(slope, new - x))  # may be above 0 where slope·d is not
            if change < 0 and new_value <= value + _DECREASE * change:
                return new_value
            step /= 2
        return None

    stalled = False  # whether the last step hardly changed the objective
    for iteration in range(max_iter + 1):
        slope = _sub_gradient(x, gradient, penalty, penalised)
        size = largest(slope)
        if iteration:
            progress(iteration, value, size)
        if size <= tol:
            return Solution(x, iteration, None, True)
        if iteration == max_iter:
            break
        scale = memory.scale() if memory else 1.0 / float(dnrm2(slope))
        simple = -scale * slope
        free = x != 0
        free[:penalised] &= (x + simple)[:penalised] * x[:penalised] > 0
        free[penalised:] = True
        signs = np.where(x != 0, np.sign(x), -np.sign(slope))[:penalised]
        new_value = None
        if memory:
            new_value = search(memory.direction(slope, simple, free), _QUICK)
        if new_value is None:
            new_value = search(simple, _MOST_EVALUATIONS)
        if new_value is None:
            return Solution(x, iteration, "no step decreases the objective")
        small = value - new_value <= REDUCTION * max(abs(value), abs(new_value), 1.0)
        if small and stalled:
            return Solution(new, iteration + 1, None)
        stalled = small
        memory.add(new - x, new_gradient - gradient)
        if small:
            memory.clear()
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

    def scale(self) -> float:
        """The length of a step along the negative gradient, by the last saved step."""
        s, y = self._rows[:, self._places[-1]]
        return float(np.dot(s, y) / np.dot(y, y))

    def direction(self, slope: Array, simple: Array, free: Array) -> Array:
        """−H·slope of the free coefficients, and `simple` of the others."""
        of_free = slope[free]
        s, y = self._rows[:, self._places][:, :, free]
        curved = np.einsum("ij,ij->i", s, y) > EPS * np.einsum("ij,ij->i", y, y)
        s, y = s[curved], y[curved]
        if not len(s):
            return simple
        of_s, of_y, scale = coefficients(s @ y.T, y @ y.T, s @ of_free, y @ of_free)
        d = simple.copy()
        d[free] = of_s @ s + of_y @ y - scale * of_free
        return d
