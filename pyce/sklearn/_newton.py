"""Newton's method for `SoftmaxRegression`, for few features and classes.

Each iteration solves a linear system with the matrix of second derivatives, by Cholesky's
factorisation. The matrix is scaled to a diagonal of ones before, so that the scale of the features
has no effect on rounding. A step is halved until the objective decreases sufficiently, or until the
largest derivative is at most half of what it was, which shows progress also where rounding hides a
decrease of the objective.

Source: Nocedal and Wright, "Numerical optimization" (2006), sections 3.1 and 3.4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from pyce._types import Array
from pyce.sklearn._lbfgs import EPS, REDUCTION, Evaluate, Progress, Solution, largest

_MOST_EVALUATIONS = 30  # of a line search
_DECREASE = 1e-4  # sufficient decrease of a line search
# Added to the ones of the diagonal. Without it, a direction in which the objective is flat,
# such as the difference of two equal features without a penalty, would have an arbitrary step.
_DAMPING = 64 * EPS


def minimize_newton(
    evaluate: Evaluate,
    hessian: Callable[[Array], Array],
    x: Array,
    *,
    max_iter: int,
    tol: float,
    progress: Progress,
) -> Solution:
    """A minimum of a convex function, starting from `x`, flat and in float64.

    `hessian` returns the matrix of second derivatives, which is changed. Stops if no derivative
    exceeds `tol` in magnitude, or if a step changes neither the objective nor the derivatives by
    more than rounding does.
    """
    gradient, new, new_gradient = (np.empty_like(x) for _ in range(3))
    value = evaluate(x, gradient)
    size = largest(gradient)
    if size <= tol:
        return Solution(x, 0, None, True)
    for iteration in range(1, max_iter + 1):
        d = _direction(hessian(x), gradient)
        slope = float(np.dot(d, gradient))
        step = 1.0
        for _ in range(_MOST_EVALUATIONS):
            np.multiply(d, step, out=new)
            np.add(new, x, out=new)
            new_value = evaluate(new, new_gradient)
            new_size = largest(new_gradient)
            halved = new_size <= 0.5 * size
            if halved or new_value <= value + _DECREASE * step * slope:
                break
            step /= 2
        else:
            return Solution(x, iteration - 1, "no step decreases the objective")
        small = value - new_value <= REDUCTION * max(abs(value), abs(new_value), 1.0)
        x, new = new, x
        gradient, new_gradient = new_gradient, gradient
        value, size = new_value, new_size
        progress(iteration, value, size)
        if size <= tol or (small and not halved):
            return Solution(x, iteration, None, size <= tol)
    return Solution(x, max_iter, "the maximum number of iterations is reached")


def _direction(matrix: Array, gradient: Array) -> Array:
    """−H⁻¹·gradient, H being the matrix, damped more if its factorisation requires it."""
    diagonal = matrix.diagonal()
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix *= scale
    matrix *= scale[:, None]
    damping = _DAMPING
    while True:
        np.fill_diagonal(matrix, 1.0 + damping)
        try:
            factor = cho_factor(matrix, lower=True, check_finite=False)
        except LinAlgError:
            damping *= 100  # of ones and numbers between −1 and 1: with enough of it, it succeeds
            continue
        d: Array = cho_solve(factor, scale * gradient, check_finite=False)
        return -scale * d
