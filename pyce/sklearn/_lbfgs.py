"""L-BFGS without bounds, for `SoftmaxRegression`.

`minimize` takes the steps of SciPy's L-BFGS-B for a problem without bounds: the same memory of 10
steps, line search and stopping rule. It takes less time in two ways. The product of the approximate
inverse Hessian with the gradient is computed in its compact form, which reads the memory twice: for
inner products, and for the weighted sum. And for many coefficients the threads of the fit share
both.

Sources: Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in
limited memory methods" (1994); Byrd, Lu, Nocedal and Zhu, "A limited memory algorithm for bound
constrained optimization" (1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import dtrsv

from pyce._types import Array
from pyce.sklearn._line_search import line_search
from pyce.sklearn._team import Team

MEMORY = 10  # steps, as in SciPy and scikit-learn
EPS = float(np.finfo(float).eps)
# The solver stops if the objective decreases by less than this, relative to its size or to 1.
REDUCTION = 64 * EPS
# Coefficients for each thread: with fewer, a thread takes more time to wake than it saves.
_WORTH = 2**16

# Writes the gradient to its second argument and returns the objective.
Evaluate = Callable[[Array, Array], float]
# Called after each iteration with its number, the objective and the largest derivative.
Progress = Callable[[int, float, float], None]


class Solution(NamedTuple):
    """The coefficients, the number of iterations, and why the solver stopped too early, if so.

    `within` says whether the derivatives are within the tolerance. Without a problem, they may not
    be if a step changed the objective by no more than rounding does.
    """

    x: Array
    iterations: int
    problem: str | None
    within: bool = False


def minimize(
    evaluate: Evaluate, x: Array, *, max_iter: int, tol: float, team: Team, progress: Progress
) -> Solution:
    """A minimum of a smooth function, starting from `x`, flat and in float64, which is changed."""
    gradient, before, gradient_before, d = (np.empty_like(x) for _ in range(4))
    memory = _Memory(len(x), team)

    def along(step: float) -> tuple[float, float]:
        """Set `x` and `gradient` after a step from `before` in the direction `d`."""
        np.multiply(d, step, out=x)
        np.add(x, before, out=x)
        value = evaluate(x, gradient)
        return value, float(np.dot(d, gradient))

    value = evaluate(x, gradient)
    if largest(gradient) <= tol:
        return Solution(x, 0, None, True)
    iteration = 0
    while iteration < max_iter:
        memory.direction(gradient, d)
        slope = float(np.dot(d, gradient))
        found = None
        if slope < 0:
            first = 1.0 if iteration else 1.0 / math.sqrt(float(np.dot(d, d)))
            x, before = before, x
            gradient, gradient_before = gradient_before, gradient
            found = line_search(along, value, slope, first)
            if found is None:
                x, before = before, x
                gradient, gradient_before = gradient_before, gradient
        if found is None:
            if not memory:
                return Solution(x, iteration, "no step decreases the objective")
            memory.clear()
            continue
        iteration += 1
        step, new, new_slope = found
        largest_now = largest(gradient)
        progress(iteration, new, largest_now)
        small = value - new <= REDUCTION * max(abs(value), abs(new), 1.0)
        value = new
        if largest_now <= tol or small:
            return Solution(x, iteration, None, largest_now <= tol)
        if step * (new_slope - slope) > -EPS * step * slope:
            memory.add(x, before, gradient, gradient_before)
        else:
            memory.skip(gradient)
    return Solution(x, iteration, "the maximum number of iterations is reached")


def largest(gradient: Array) -> float:
    """The largest absolute value."""
    return max(float(gradient.max()), -float(gradient.min()))


class _Memory:
    """The last steps s and the changes y of the gradient that belong to them.

    The coefficients are divided into parts, one for each thread. The rows of a part are s and y of
    the step in place 0, s and y of the step in place 1, and so on.
    """

    def __init__(self, size: int, team: Team) -> None:
        parts = max(1, min(team.threads, size // _WORTH))
        bounds = [slice(size * i // parts, size * (i + 1) // parts) for i in range(parts)]
        self._parts = [(b, np.empty((2 * MEMORY, b.stop - b.start))) for b in bounds]
        self._team = team
        self._sy, self._yy = np.empty((MEMORY, MEMORY)), np.empty((MEMORY, MEMORY))
        self.clear()

    def clear(self) -> None:
        self._places = np.empty(0, int)  # of the steps, from the oldest to the newest
        self._inner = np.empty(0)  # the inner products of the rows with the last gradient

    def __bool__(self) -> bool:
        return len(self._places) > 0

    def add(self, x: Array, before: Array, gradient: Array, gradient_before: Array) -> None:
        """Save a step, in place of the oldest one if there are `MEMORY` of them."""
        places = self._places
        if len(places) == MEMORY:
            place, places = places[0], places[1:]
            for matrix in (self._sy, self._yy):
                matrix[:-1, :-1] = matrix[1:, 1:]
        else:
            place = len(places)
        before_inner = self._inner
        n = max(2 * (place + 1), len(before_inner))

        def save(part: slice, rows: Array) -> Array:
            s, y = rows[2 * place], rows[2 * place + 1]
            np.subtract(x[part], before[part], out=s)
            np.subtract(gradient[part], gradient_before[part], out=y)
            return np.append(np.dot(rows[:n], gradient[part]), (np.dot(s, y), np.dot(y, y)))

        *inner, sy, yy = self._sum(save)
        self._inner = np.array(inner)
        # The products of earlier rows with y are differences of their products with gradients.
        change = self._inner[: len(before_inner)] - before_inner
        last = len(places)
        self._sy[:last, last] = change[2 * places]
        self._yy[:last, last] = self._yy[last, :last] = change[2 * places + 1]
        self._sy[last, last], self._yy[last, last] = sy, yy
        self._places = np.append(places, place)

    def skip(self, gradient: Array) -> None:
        """Leave the last step out."""
        n = len(self._inner)
        if n:
            self._inner = self._sum(lambda part, rows: np.dot(rows[:n], gradient[part]))

    def direction(self, gradient: Array, out: Array) -> None:
        """Write −H·gradient, the gradient being that of the last call of `add` or `skip`."""
        if not self:
            np.negative(gradient, out=out)
            return
        n, places = len(self._places), self._places
        of_s, of_y, scale = coefficients(
            self._sy[:n, :n], self._yy[:n, :n], self._inner[2 * places], self._inner[2 * places + 1]
        )
        weights = np.empty(2 * n)
        weights[2 * places], weights[2 * places + 1] = of_s, of_y

        def write(part: slice, rows: Array) -> None:
            target = out[part]
            np.dot(weights, rows[: 2 * n], out=target)
            target -= scale * gradient[part]

        self._team.run([partial(write, *part) for part in self._parts])

    def _sum(self, function: Callable[[slice, Array], Array]) -> Array:
        """The sum over the parts of what `function` returns for each."""
        first, *others = self._team.run([partial(function, *part) for part in self._parts])
        return sum(others, first)


def coefficients(
    sy: Array, yy: Array, s_inner: Array, y_inner: Array
) -> tuple[Array, Array, float]:
    """The weights a, b and γ of −H·g = Σ a_i·s_i + Σ b_i·y_i − γ·g.

    `sy` has the inner products s_i·y_j for i ≤ j, from the oldest step to the newest, `yy` those of
    y_i and y_j, and `s_inner` and `y_inner` those of s_i and y_i with g.
    """
    scale = float(sy[-1, -1] / yy[-1, -1])
    p = dtrsv(sy, s_inner)  # reads the upper triangle only
    q = dtrsv(sy, sy.diagonal() * p + scale * (yy @ p - y_inner), trans=1)
    return -q, scale * p, scale
