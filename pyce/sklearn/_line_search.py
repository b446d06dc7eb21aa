"""The line search of Moré and Thuente, with the parameters of L-BFGS-B.

It finds a step for which the objective decreases sufficiently and the derivative along the
direction is small compared with that at the start. Source: Moré and Thuente, "Line search
algorithms with guaranteed sufficient decrease" (1994), whose symbols are used, and MINPACK-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_MOST_EVALUATIONS = 50  # as in scikit-learn; the other numbers are those of L-BFGS-B
_DECREASE = 1e-3
_CURVATURE = 0.9
_INTERVAL = 0.1  # relative length of an interval that is not searched any further
_LONGEST = 1e10


class _Point(NamedTuple):
    """A step, the objective there, and its derivative along the direction."""

    step: float
    value: float
    slope: float


def line_search(
    along: Callable[[float], tuple[float, float]], value: float, slope: float, step: float
) -> _Point | None:
    """The last point that was evaluated, or None if 50 evaluations were not enough.

    `along` evaluates the objective and its derivative after a step, `value` and `slope` are those
    at the start, and `step` is the first to try.
    """
    start = best = other = _Point(0.0, value, slope)
    bracketed, first_stage = False, True
    width, width_before = _LONGEST, 2 * _LONGEST
    low, high, longest = 0.0, 5 * step, _LONGEST
    for _ in range(_MOST_EVALUATIONS):
        now = _Point(step, *along(step))
        if not (math.isfinite(now.value) and math.isfinite(now.slope)):
            longest = step  # the scores overflow
            step = best.step + 0.1 * (step - best.step)
            continue
        bound = start.value + step * _DECREASE * start.slope
        first_stage = first_stage and (now.value > bound or now.slope < 0)
        enough = now.value <= bound
        if (
            (enough and abs(now.slope) <= -_CURVATURE * start.slope)
            or (bracketed and (step <= low or step >= high or high - low <= _INTERVAL * high))
            or (step == longest and enough and now.slope <= _DECREASE * start.slope)
        ):
            return now
        # In the first stage, the function minus its bound is searched instead.
        tilt = _DECREASE * start.slope if first_stage and best.value >= now.value > bound else 0.0
        step, bracketed = _next_step(
            _tilted(best, tilt), _tilted(other, tilt), _tilted(now, tilt), bracketed, low, high
        )
        if now.value - now.step * tilt > best.value - best.step * tilt:
            other = now
        else:
            if (now.slope - tilt) * math.copysign(1.0, best.slope - tilt) < 0:
                other = best
            best = now
        if bracketed:
            if abs(other.step - best.step) >= 0.66 * width_before:
                step = best.step + 0.5 * (other.step - best.step)
            width, width_before = abs(other.step - best.step), width
            low, high = sorted((best.step, other.step))
        else:
            low = step + 1.1 * (step - best.step)
            high = step + 4 * (step - best.step)
        step = min(max(step, 0.0), longest)
        if bracketed and (step <= low or step >= high or high - low <= _INTERVAL * high):
            step = best.step
    return None


def _tilted(p: _Point, tilt: float) -> _Point:
    """The point of the function minus `tilt` times the step."""
    return _Point(p.step, p.value - p.step * tilt, p.slope - tilt)


def _next_step(
    x: _Point, y: _Point, p: _Point, bracketed: bool, low: float, high: float
) -> tuple[float, bool]:
    """The next step, and whether an interval is known that has a minimum.

    x is the best point so far, y the other end of the interval, p the last point.
    """
    if p.value > x.value:  # the minimum is between x and p
        cubic, quadratic = _cubic(x, p), _quadratic(x, p)
        if abs(cubic - x.step) > abs(quadratic - x.step):
            cubic += (quadratic - cubic) / 2
        return cubic, True
    if p.slope * math.copysign(1.0, x.slope) < 0:  # here too
        cubic, secant = _cubic(p, x), _secant(p, x)
        return (cubic if abs(cubic - p.step) > abs(secant - p.step) else secant), True
    if abs(p.slope) < abs(x.slope):
        # The cubic may have its minimum on the other side, or none.
        cubic, secant = _cubic(p, x), _secant(p, x)
        if not (cubic - p.step) * (p.step - x.step) > 0:
            cubic = high if p.step > x.step else low
        if bracketed:
            step = cubic if abs(cubic - p.step) < abs(secant - p.step) else secant
            bound = p.step + 0.66 * (y.step - p.step)
            return (min(bound, step) if p.step > x.step else max(bound, step)), True
        step = cubic if abs(cubic - p.step) > abs(secant - p.step) else secant
        return min(max(step, low), high), False
    if bracketed:
        return _cubic(p, y), True
    return (high if p.step > x.step else low), False


def _cubic(a: _Point, b: _Point) -> float:
    """The minimum of the cubic with the values and slopes at a and b, NaN if it has none."""
    theta = 3 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope
    size = max(abs(theta), abs(a.slope), abs(b.slope))
    square = (theta / size) ** 2 - (a.slope / size) * (b.slope / size)
    gamma = math.copysign(size * math.sqrt(max(0.0, square)), b.step - a.step)
    numerator = (gamma - a.slope) + theta
    denominator = ((gamma - a.slope) + gamma) + b.slope
    if denominator == 0:
        return math.nan
    return a.step + numerator / denominator * (b.step - a.step)


def _quadratic(a: _Point, b: _Point) -> float:
    """The minimum of the parabola with the values at a and b and the slope at a."""
    chord = (a.value - b.value) / (b.step - a.step)
    return a.step + a.slope / (chord + a.slope) / 2 * (b.step - a.step)


def _secant(a: _Point, b: _Point) -> float:
    """The minimum of the parabola with the slopes at a and b."""
    return a.step + a.slope / (a.slope - b.slope) * (b.step - a.step)
