"""The learning rate range test of Leslie Smith."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyce._arguments import index_number, real
from pyce._extras import advice
from pyce._types import Array
from pyce.training._state import restored

# A change of the loss counts if it exceeds this many times the noise. Of curves of 100 equal losses
# with noise of any distribution, fewer than one in 500 gets a suggestion.
_NOISES = 3.0


@dataclass(frozen=True, eq=False, repr=False)
class LRCurve:
    """The result of `lr_find`: the loss as a function of the learning rate, and suggested rates.

    Attributes
    ----------
    rates, losses, smoothed : ndarray of float64, shape (steps,)
        For each step its rate, the loss that `step` returned, and the smoothed loss. If the run
        ended early, the last element belongs to the step that ended it.
    ended : {"at the last rate", "diverged", "not finite"}
        Why the run ended; "not finite" means that a loss was NaN or infinite.
    steepest : float or None
        The rate at which the smoothed loss falls fastest per decade, suggested for training. None
        if the loss does not fall by more than its noise, or if there are too few steps to tell.
    before_rise : float or None
        The rate at which the smoothed loss is lowest, before it rises. It is the largest rate that
        trains; a tenth of it is a common choice. None if the loss does not fall, or does not rise
        after that.

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
    The smoothed loss lags behind the loss by some steps (nine, with the smoothing 0.9), so both
    rates are more often too high than too low. Noise is estimated from the second differences of
    the losses. The first tenth of the steps is left out, since the smoothed loss is an average of
    few losses there.
    """

    rates: Array
    losses: Array
    smoothed: Array
    ended: str

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest, or None."""
        return self._suggestions[0]

    @property
    def before_rise(self) -> float | None:
        """The rate at which the smoothed loss is lowest, before it rises, or None."""
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
        # A constant loss changes by rounding only.
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
        """Plot the losses and the smoothed loss against the rate, and mark both suggestions.

        Parameters
        ----------
        to : matplotlib Axes, str or path
            The axes to draw on, or the file to save a new figure to; its suffix sets the format.

        Returns
        -------
        matplotlib Axes
            The axes that were drawn on.

        Raises
        ------
        ImportError
            If `to` is a file and matplotlib is not installed: pip install 'pyce-kernels[training]'.
        TypeError
            If `to` is neither axes nor a path.
        OSError
            If the file cannot be written.

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
                raise ImportError(f"LRCurve.plot needs matplotlib: {advice('training')}") from None
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = self._draw(figure.add_subplot())
            figure.savefig(to, dpi=144)
            return axes
        if not hasattr(to, "semilogx"):
            raise TypeError(f"plot needs a path or matplotlib Axes, got {type(to).__name__}")
        return self._draw(to)

    def _draw(self, axes: Any) -> Any:
        from matplotlib.colors import to_hex

        # The colours of the current color cycle, which may differ when the figure is saved.
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
        """Limit the y axis, so that losses that diverge leave room for where the loss falls."""
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
    """The learning rate range test: train with a rate that grows until the loss diverges.

    Step i = 0, …, n − 1 has the rate start · (end/start)^(i/(n−1)). The loss after k steps is
    smoothed to s_k = m_k/(1 − βᵏ) with m_k = β·m_{k−1} + (1 − β)·loss_k and m_0 = 0, as in Adam.
    The run ends early if a loss is NaN or infinite, or if the smoothed loss exceeds both
    the first loss and `divergence` times the lowest smoothed loss. Exceptions that `step` raises
    are passed on.

    Parameters
    ----------
    step : callable
        `step(lr)` makes one training step with the rate `lr` on a batch of its choice, and returns
        the loss before the step: a number, a NumPy scalar or a PyTorch tensor of one element.
    start, end : float
        The first and the last rate, 0 < start < end.
    num_iter : int
        Maximum number of steps, at least 2. 100 steps or more are recommended.
    state : optional
        The objects that `step` changes: a NumPy array; an object with `state_dict()` and
        `load_state_dict()`, such as the models and optimizers of this module and of PyTorch; or
        lists, tuples and dicts of these. They are restored when the run ends, also by an exception:
        arrays in place from copies, objects from deep copies of their state dicts. None restores
        nothing.
    smoothing : float
        β in [0, 1).
    divergence : float
        At least 1; infinite to continue until the last rate.

    Returns
    -------
    LRCurve
        Rates, losses and two suggested rates.

    Raises
    ------
    TypeError
        If `step` does not return one number, or if `state` cannot be restored.
    ValueError
        If an argument is out of its range, or if an array of `state` is read-only.

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
    Source: Leslie N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186,
    2015. NumPy's warnings of overflow and of invalid values are suppressed during the run, since it
    continues until the loss overflows.
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
    with restored([] if state is None else state), np.errstate(over="ignore", invalid="ignore"):
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
        # `divergence * lowest`, generalized to negative losses.
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
