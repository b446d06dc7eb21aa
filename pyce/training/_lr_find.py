"""Leslie Smith's learning-rate range test."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pyce._arguments import index_number, real
from pyce.training._state import kept

Array = npt.NDArray[Any]

# A loss that falls or rises by less than so many times its noise does neither. Of 100 equal losses
# with noise of any distribution, fewer than one curve in 500 gets a suggestion.
_NOISES = 3.0


@dataclass(frozen=True, eq=False, repr=False)
class LRCurve:
    """What `lr_find` found: the loss against the learning rate, and the rates that it suggests.

    Attributes
    ----------
    rates, losses, smoothed : ndarray of float64
        One number for each step that was made: its rate, the loss as `step` returned it, and the
        smoothed loss. Where the run ended early, the last are those that ended it.
    ended : {"at the last rate", "diverged", "not finite"}
        Why there are no more steps; "not finite" is a loss that was NaN or infinite.
    steepest : float or None
        The rate at which the smoothed loss falls fastest per decade: one to train with. None where
        the loss does not fall by more than its noise, or there are too few steps to tell.
    before_rise : float or None
        The last rate before the smoothed loss turns up: the edge of what trains; people take a
        tenth of it. None where the loss does not fall, or does not turn up again.

    Examples
    --------
    >>> from pyce.training import lr_find
    >>> w = np.ones(3)
    >>> def step(lr):
    ...     loss = w @ w
    ...     w[:] -= lr * 2 * w
    ...     return loss
    >>> curve = lr_find(step, start=1e-4, end=10, state=w)
    >>> curve.ended, curve.steepest < curve.before_rise
    ('diverged', True)

    Notes
    -----
    The smoothed loss comes after the loss by some steps (nine, with the smoothing 0.9), so both
    rates are rather too high than too low. Noise is measured by the second differences of the
    losses; the first tenth of the steps is left out, for there the smoothing has nothing to smooth.
    """

    rates: Array
    losses: Array
    smoothed: Array
    ended: str

    @property
    def steepest(self) -> float | None:
        return self._suggestions[0]

    @property
    def before_rise(self) -> float | None:
        return self._suggestions[1]

    @cached_property
    def _suggestions(self) -> tuple[float | None, float | None]:
        finite = int(np.isfinite(self.losses).sum())
        if not finite:
            return None, None
        skipped = finite // 10
        smoothed = self.smoothed[skipped:finite]
        low = int(np.argmin(smoothed))
        high = int(np.argmax(smoothed[: low + 1]))
        bends = np.diff(self.losses[: skipped + low + 1], 2)
        if len(bends) < 3:
            return None, None
        noise = math.sqrt(np.sum(bends**2) / (6 * (len(bends) - 2)))
        # Of a constant loss, rounding is all that changes.
        least = max(_NOISES * noise, 1e-6 * abs(smoothed[high]))
        if smoothed[high] - smoothed[low] <= least:
            return None, None
        logs = np.log(self.rates[skipped:finite])
        slopes = np.gradient(smoothed, logs)[high : low + 1]
        steepest = float(self.rates[skipped + high + int(np.argmin(slopes))])
        rises = self.ended != "at the last rate" or max(smoothed[low:]) - smoothed[low] > least
        return steepest, float(self.rates[skipped + low]) if rises else None

    def __repr__(self) -> str:
        first, last = self.rates[[0, -1]]
        return (
            f"<LRCurve of {len(self.rates)} steps from {first:.3g} to {last:.3g}, ended "
            f"{self.ended}: steepest {_short(self.steepest)}, before_rise "
            f"{_short(self.before_rise)}>"
        )

    def plot(self, to: Any) -> Any:
        """Draw the losses and the smoothed loss against the rate, both suggestions marked.

        Parameters
        ----------
        to : matplotlib Axes, str or path
            Where to draw; or the file to save a picture of its own to, whose ending says its kind.

        Returns
        -------
        matplotlib Axes
            What was drawn on.

        Raises
        ------
        ImportError
            Where matplotlib is needed and not installed: pip install 'pyce[training]'.
        TypeError
            For a `to` that is neither.

        Examples
        --------
        >>> from pyce.training import lr_find
        >>> losses = iter(range(20, 0, -1))
        >>> curve = lr_find(lambda lr: next(losses), num_iter=20)
        >>> curve.plot("curve.png").get_xscale()
        'log'
        """
        if isinstance(to, (str, os.PathLike)):
            try:
                from matplotlib.figure import Figure
            except ImportError:
                raise ImportError(
                    "LRCurve.plot needs matplotlib: pip install 'pyce[training]'"
                ) from None
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = self._draw(figure.add_subplot())
            figure.savefig(to, dpi=144)
            return axes
        if not hasattr(to, "semilogx"):
            raise TypeError(f"plot needs a path or matplotlib Axes, got {type(to).__name__}")
        return self._draw(to)

    def _draw(self, axes: Any) -> Any:
        from matplotlib.colors import to_hex

        # The caller's colours, as they are now and not when the picture is saved.
        blue, *colors = (to_hex(f"C{place}") for place in range(3))
        axes.semilogx(self.rates, self.losses, ".", color=blue, alpha=0.35, label="loss")
        axes.semilogx(self.rates, self.smoothed, color=blue, linewidth=2, label="smoothed loss")
        marks = (
            (self.steepest, "o", "steepest descent"),
            (self.before_rise, "s", "before it rises"),
        )
        for color, (rate, marker, what) in zip(colors, marks, strict=True):
            if rate is not None:
                loss = self.smoothed[np.searchsorted(self.rates, rate)]
                label = f"{what}: {rate:.2g}"
                axes.axvline(rate, color=color, linestyle=":", linewidth=1)
                axes.plot([rate], [loss], marker, color=color, markersize=8, label=label)
        self._limit(axes)
        axes.set_xlabel("learning rate (logarithmic)")
        axes.set_ylabel("loss")
        axes.legend()
        return axes

    def _limit(self, axes: Any) -> None:
        """What diverges would leave no room for where the loss falls."""
        finite = np.isfinite(self.losses)
        if finite.any():
            low = self.losses[finite].min()
            high = self.smoothed[finite][: -1 if self.ended == "diverged" else None].max()
            if low < high:
                axes.set_ylim(low - 0.05 * (high - low), high + 0.2 * (high - low))


def _short(rate: float | None) -> str:
    return "None" if rate is None else f"{rate:.3g}"


def lr_find(
    step: Callable[[float], Any],
    start: float = 1e-7,
    end: float = 10.0,
    num_iter: int = 100,
    *,
    state: Any = None,
    smoothing: float = 0.9,
    divergence: float = 4.0,
) -> LRCurve:
    """The learning-rate range test: train with a rate that grows until the loss diverges.

    Step i of n is made with the rate start · (end/start)^(i/(n−1)). The loss is smoothed to
    sᵢ = mᵢ/(1 − βⁱ) with mᵢ = β·mᵢ₋₁ + (1 − β)·lossᵢ, as Adam smooths gradients. The run ends early
    where a loss is NaN or infinite, and where the smoothed loss exceeds both the first loss and
    `divergence` times the lowest smoothed loss.

    Parameters
    ----------
    step : callable
        `step(lr)` makes one training step with that rate, on a batch of its own choice, and returns
        the loss before it: a number, a NumPy scalar, a PyTorch tensor of one element.
    start, end : float
        The first and the last rate; 0 < start < end.
    num_iter : int
        How many steps, at least 2. From 100 on, the curve says enough.
    state : optional
        What `step` changes, to be as it was afterwards, however the run ends: a NumPy array; an
        object with `state_dict()` and `load_state_dict()`, as the models and the optimizer here and
        PyTorch's have; or lists, tuples and dicts of such. Arrays are copied and written back in
        place; state dicts are copied deeply. Nothing is restored without it.
    smoothing : float
        β, in [0, 1).
    divergence : float
        At least 1; infinite to go to the end.

    Returns
    -------
    LRCurve
        Rates, losses, and the two suggestions, each None where the curve does not show it.

    Raises
    ------
    TypeError
        When `step` does not return one number; a `state` that can't be restored.
    ValueError
        For arguments outside of their ranges; a `state` that is read-only. Whatever `step` raises
        goes through. The state is restored in every case.

    Examples
    --------
    >>> from pyce.training import SGD, LinearClassifier, lr_find
    >>> model = LinearClassifier(features=3, classes=3, seed=0)
    >>> optimizer = SGD(model.parameters, lr=0.0)
    >>> def step(lr):
    ...     loss, gradients = model.loss_and_gradients(np.eye(3), [2, 0, 1])
    ...     optimizer.lr = lr
    ...     optimizer.step(gradients)
    ...     return loss
    >>> curve = lr_find(step, start=1e-3, end=100, state=[model, optimizer])
    >>> 0.1 < curve.steepest < 30
    True

    Notes
    -----
    Leslie N. Smith: Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, 2015.
    NumPy's warnings of overflow are silent meanwhile: it is what the run looks for.
    """
    if not callable(step):
        raise TypeError(f"step must be callable, got {type(step).__name__}")
    start, end = real(start, "start"), real(end, "end")
    if not 0 < start < end < math.inf:
        raise ValueError(f"start and end must be 0 < start < end, got {start!r} and {end!r}")
    num_iter = index_number(num_iter, "num_iter")
    if num_iter < 2:
        raise ValueError(f"num_iter must be at least 2, got {num_iter}")
    if not 0 <= real(smoothing, "smoothing") < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing!r}")
    if not real(divergence, "divergence") >= 1:
        raise ValueError(f"divergence must be at least 1, got {divergence!r}")
    with kept([] if state is None else state), np.errstate(over="ignore", invalid="ignore"):
        return _run(step, np.geomspace(start, end, num_iter), smoothing, divergence)


def _run(
    step: Callable[[float], Any], rates: Array, smoothing: float, divergence: float
) -> LRCurve:
    losses: list[float] = []
    smoothed: list[float] = []
    mean, lowest, ended = 0.0, math.inf, "at the last rate"
    for i, rate in enumerate(rates.tolist(), start=1):
        losses.append(_number(step(rate)))
        mean = smoothing * mean + (1 - smoothing) * losses[-1]
        smoothed.append(mean / (1 - smoothing**i))
        if not math.isfinite(losses[-1]):
            ended = "not finite"
            break
        lowest = min(lowest, smoothed[-1])
        # As `divergence * lowest`, for negative losses too.
        if divergence < math.inf and smoothed[-1] > max(
            losses[0], lowest + (divergence - 1) * abs(lowest)
        ):
            ended = "diverged"
            break
    return LRCurve(rates[: len(losses)], np.array(losses), np.array(smoothed), ended)


def _number(loss: Any) -> float:
    try:
        return float(loss.item() if hasattr(loss, "item") else loss)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"step must return its loss as one number, got {type(loss).__name__}"
        ) from None
