"""Regimes of logits and kinds of targets that the backends are compared on.

`case.make(dtype)` generates the arrays of a `Case`, always the same. bfloat16 needs ml_dtypes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Make = Callable[[np.random.Generator, Array, int, int, Any], Array]

# ---------------------------------------------------------------------------------------------
# Regimes: `Make` (random generator, labels, rows, classes, dtype) -> float64 logits


def _normal(scale: float = 1.0, offset: float = 0.0) -> Make:
    return lambda rng, y, n, c, dtype: rng.normal(size=(n, c)) * scale + offset


def _uniform(low: float, high: float) -> Make:
    return lambda rng, y, n, c, dtype: rng.uniform(low, high, (n, c))


def _ahead(margin: float) -> Make:
    """The target `margin` above the largest other logit, or below the smallest if negative."""

    def make(rng: np.random.Generator, y: Array, n: int, c: int, dtype: Any) -> Array:
        x = rng.normal(size=(n, c))
        edge = x.max(1) if margin > 0 else x.min(1)
        x[np.arange(n), y] = edge + margin
        return x

    return make


def _runner_up(rng: np.random.Generator, y: Array, n: int, c: int, dtype: Any) -> Array:
    """The target far above the others, and one other class far above the rest: most of 1 - p."""
    x = rng.normal(size=(n, c))
    second = (y + rng.integers(1, max(c, 2), n)) % c
    x[np.arange(n), second] = x.max(1) + np.log(c) + rng.uniform(3, 12, n)
    x[np.arange(n), y] = x.max(1) + rng.uniform(10, 50, n)
    return x


def _lowest(dtype: Any) -> float:
    """The lowest finite number."""
    if np.dtype(dtype).name == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).min)
    return float(np.finfo(dtype).min)


def _masked(value: float | None, part: float = 0.4) -> Make:
    """Part of the classes, never the target, at `value`; None is the lowest finite number."""

    def make(rng: np.random.Generator, y: Array, n: int, c: int, dtype: Any) -> Array:
        x = rng.normal(size=(n, c)) * 3
        mask = rng.random((n, c)) < part
        mask[np.arange(n), y] = False
        x[mask] = _lowest(dtype) if value is None else value
        return x

    return make


def _constant(value: float) -> Make:
    return lambda rng, y, n, c, dtype: np.full((n, c), value)


def _climbing(rng: np.random.Generator, y: Array, n: int, c: int, dtype: Any) -> Array:
    """Sorted logits: the largest is first in even rows and last in odd rows."""
    x = np.sort(rng.uniform(-30, 30, (n, c)), axis=1)
    x[::2] = x[::2, ::-1]
    return x


REGIMES: dict[str, Make] = {
    "random": _normal(),
    "spread25": _uniform(-25, 25),
    "spread140": _uniform(-140, 0),
    "spread800": _uniform(-800, 10),
    "small": _normal(1e-4),
    "confident10": _ahead(10),
    "confident17": _ahead(17),
    "confident30": _ahead(30),
    "confident60": _ahead(60),
    "confident80": _ahead(80),
    "confident100": _ahead(100),
    "runner-up": _runner_up,
    "wrong20": _ahead(-20),
    "wrong60": _ahead(-60),
    "offset100": _normal(3, 100),
    "offset-250": _normal(5, -250),
    "offset256": _normal(5, 256),
    "offset512": _normal(5, 512),
    "offset-2048": _normal(5, -2048),
    "offset1e4": _normal(5, 1e4),
    "offset-1e4": _normal(5, -1e4),
    "offset1e8": _normal(40, 1e8),
    "offset-1e8": _normal(40, -1e8),
    "offset1e16": _normal(40, 1e16),
    "offset-1e16": _normal(40, -1e16),
    "offset1e30": _normal(0.3, 1e30),
    "offset-1e30": _normal(0.3, -1e30),
    "masked-1e9": _masked(-1e9),
    "masked-min": _masked(None),
    "masked-inf": _masked(-np.inf),
    "alone-1e9": _masked(-1e9, 1.0),
    "alone-min": _masked(None, 1.0),
    "alone-inf": _masked(-np.inf, 1.0),
    "constant0.3": _constant(0.3),
    "constant-7000.1": _constant(-7000.1),
    "constant0": _constant(0.0),
    "climbing": _climbing,
}

# Titles in tables. The regimes that the promise names come first.
TITLES = {
    "random": "random",
    "spread25": "spread ±25",
    "confident10": "confident by 10",
    "confident30": "confident by 30",
    "confident80": "confident by 80",
    "confident100": "confident by 100",
    "runner-up": "with a runner-up",
    "wrong60": "wrong by 60",
    "offset-1e4": "offset −10⁴",
    "offset1e8": "offset 10⁸",
    "offset1e30": "offset 10³⁰",
    "masked-1e9": "masked with −10⁹",
    "masked-min": "masked with finfo.min",
    "masked-inf": "masked with −inf",
}
PROMISED = tuple(TITLES)
TITLES |= {
    "spread140": "spread −140…0",
    "spread800": "spread −800…10",
    "small": "nearly equal",
    "confident17": "confident by 17",
    "confident60": "confident by 60",
    "wrong20": "wrong by 20",
    "offset100": "offset 100",
    "offset-250": "offset −250",
    "offset256": "offset 256",
    "offset512": "offset 512",
    "offset-2048": "offset −2048",
    "offset1e4": "offset 10⁴",
    "offset-1e8": "offset −10⁸",
    "offset1e16": "offset 10¹⁶",
    "offset-1e16": "offset −10¹⁶",
    "offset-1e30": "offset −10³⁰",
    "alone-1e9": "all others at −10⁹",
    "alone-min": "all others at finfo.min",
    "alone-inf": "all others at −inf",
    "constant0.3": "all 0.3",
    "constant-7000.1": "all −7000.1",
    "constant0": "all 0",
    "climbing": "sorted",
}

# ---------------------------------------------------------------------------------------------
# Targets: (random generator, labels, logits) -> target


def _labels(rng: np.random.Generator, y: Array, x: Array, dtype: Any) -> Array:
    return y


def _probabilities(rng: np.random.Generator, y: Array, x: Array, dtype: Any) -> Array:
    t: Array = rng.exponential(size=x.shape) ** 3
    t = t / t.sum(1, keepdims=True)
    return t.astype(dtype)


def _unnormalised(rng: np.random.Generator, y: Array, x: Array, dtype: Any) -> Array:
    return rng.uniform(0, 1.5, x.shape).astype(dtype)


def _one_hot(rng: np.random.Generator, y: Array, x: Array, dtype: Any) -> Array:
    marked: Array = np.arange(x.shape[1]) == y[:, None]
    return marked.astype(dtype)


TARGETS = {
    "labels": _labels,
    "probabilities": _probabilities,
    "unnormalised": _unnormalised,
    "one-hot": _one_hot,
}


@dataclass(frozen=True)
class Case:
    regime: str
    classes: int
    rows: int
    target: str = "labels"
    options: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts = [self.regime, f"{self.rows}x{self.classes}", self.target, *sorted(self.options)]
        return "-".join(parts)

    def make(self, dtype: Any) -> tuple[Array, Array, dict[str, Any]]:
        """Logits (rows, classes) of `dtype`, the target, and keyword arguments for the loss."""
        dtype = np.dtype(dtype)
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        y = rng.integers(0, self.classes, self.rows)
        x = REGIMES[self.regime](rng, y, self.rows, self.classes, dtype)
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        wide = np.float64 if dtype == np.float64 else np.float32
        target = TARGETS[self.target](rng, y, x, wide)
        kwargs: dict[str, Any] = {}
        if "weight" in self.options:
            kwargs["weight"] = rng.uniform(0.1, 3, self.classes)
        if "sample_weight" in self.options:
            kwargs["sample_weight"] = rng.uniform(0.1, 3, self.rows)
        if "ignore" in self.options:
            target = np.where(rng.random(self.rows) < 0.3, -100, target)
        if "smoothing" in self.options:
            kwargs["label_smoothing"] = 0.1
        if "all-smoothing" in self.options:
            kwargs["label_smoothing"] = 1.0
        return x, target, kwargs
