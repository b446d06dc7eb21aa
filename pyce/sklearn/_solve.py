"""One solution of the objective: the choice of the solver, its progress and its warning."""

from __future__ import annotations

import time
import warnings
from numbers import Real
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from pyce._types import Array
from pyce.sklearn._lbfgs import Progress, Solution, minimize
from pyce.sklearn._newton import minimize_newton
from pyce.sklearn._objective import Objective
from pyce.sklearn._orthants import minimize_l1
from pyce.sklearn._team import Team

LBFGS, NEWTON = "lbfgs", "newton-cholesky"


def solve(
    objective: Objective,
    start: Array,
    *,
    C: float,
    l1_ratio: float,
    solver: str,
    total: float,
    max_iter: int,
    tol: float,
    team: Team,
    progress: Progress,
) -> Solution:
    """The minimum of the mean loss plus the penalty, from `start`, a flat vector that is changed.

    `total` is the sum of the weights. If rounding in float32 ends the solver before it reaches its
    tolerance, it continues in float64. If Newton's method finds no step, L-BFGS takes its place
    until it reaches the tolerance or does not get any further.
    """
    strength = 1.0 / (C * total)
    objective.ridge = (1 - l1_ratio) * strength

    def run(solver: str, start: Array, before: int) -> Solution:
        options: Any = {
            "max_iter": max_iter - before,
            "tol": tol,
            "progress": lambda iteration, *figures: progress(before + iteration, *figures),
        }
        if solver == NEWTON:
            solution = minimize_newton(objective, objective.hessian, start, **options)
        elif l1_ratio * strength == 0:
            solution = minimize(objective, start, team=team, **options)
        else:
            solution = minimize_l1(
                objective,
                start,
                penalty=l1_ratio * strength,
                penalised=objective.penalised,
                **options,
            )
        return solution._replace(iterations=before + solution.iterations)

    def may_continue() -> bool:
        return not solution.within and solution.iterations < max_iter

    solution = run(solver, start, 0)
    if solver == NEWTON and solution.problem is not None and may_continue():
        # Where probabilities round to 0 and 1, as they may at a warm start, the second derivatives
        # with respect to intercepts are so small that every step is too long.
        solution = run(LBFGS, solution.x, solution.iterations)
        if may_continue():
            solution = run(NEWTON, solution.x, solution.iterations)
    if may_continue() and objective.widen():
        solution = run(solver, solution.x, solution.iterations)
    return solution


def warn_unless_converged(solution: Solution, stacklevel: int = 3) -> None:
    """Warn if the solver stopped before it reached its tolerance."""
    if solution.problem is not None:
        warnings.warn(
            f"the solver did not converge in {solution.iterations} iterations: {solution.problem}\n"
            "More of them (max_iter), or features of the same scale, can help.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


class Printer:
    """Prints the progress of a fit: at most one line a second, or, if verbose > 1, all lines."""

    def __init__(self, verbose: int, max_iter: int, prefix: str = "") -> None:
        self._verbose, self._max_iter, self._prefix = verbose, max_iter, prefix
        self._start = self._last = time.perf_counter()
        self._waiting = ""

    def __call__(self, iteration: int, objective: float, derivative: float) -> None:
        if not self._verbose:
            return
        now = time.perf_counter()
        self._waiting = (
            f"{self._prefix}iteration {iteration} of at most {self._max_iter}: objective "
            f"{objective:.6g}, largest derivative {derivative:.2g}, {now - self._start:.1f} s"
        )
        if self._verbose > 1 or now - self._last >= 1:
            self._last = now
            self.end()

    def end(self) -> None:
        """Print the last line, unless it was printed."""
        if self._waiting:
            print(self._waiting, flush=True)
        self._waiting = ""


def check_C(value: float, name: str = "C") -> None:
    """Raise ValueError unless the value is an inverse strength of a penalty."""
    if not (isinstance(value, Real) and value > 0):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")


def check_l1_ratio(value: float, name: str = "l1_ratio") -> None:
    """Raise ValueError unless the value is a share of the penalty."""
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_solver(value: Any, l1_ratios: Any) -> None:
    """Raise ValueError unless the value is a solver that can minimise such a penalty."""
    if not (isinstance(value, str) and value in (LBFGS, NEWTON)):
        raise ValueError(f"solver must be {LBFGS!r} or {NEWTON!r}, got {value!r}")
    if value == NEWTON and np.any(l1_ratios):
        raise ValueError(f"solver={NEWTON!r} requires an l1_ratio of 0, got {l1_ratios!r}")


def unflatten(
    flat: Array, features: int, columns: tuple[int, ...], dtype: Any
) -> tuple[Array, Array]:
    """W, (classes, features), and the intercepts, which are 0 if the vector has none."""
    both = flat.reshape(-1, *columns or (1,)).T.astype(dtype, order="C")
    intercept = both[:, features].copy() if both.shape[1] > features else np.zeros(len(both), dtype)
    return both[:, :features].copy(), intercept
