"""The one table of cases: what logits, targets and options the backends are held to.

A `Case` is made anew (and the same) for each dtype by `case.make(dtype)`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import oracle

# Every vector width, unroll and block border, from both sides.
CLASSES = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129),
    *(255, 256, 257, 511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4097),
)
HUGE_CLASSES = (50257, 262144)

FLOATS = ("float32", "float64")


# ---------------------------------------------------------------------------------------------
# Regimes: (random generator, labels, rows, classes, dtype) -> float64 logits


def _normal(scale=1.0, offset=0.0):
    return lambda rng, y, n, c, dtype: rng.normal(size=(n, c)) * scale + offset


def _uniform(low, high):
    return lambda rng, y, n, c, dtype: rng.uniform(low, high, (n, c))


def _ahead(margin):
    """The target ahead of every other class by `margin`; behind them if negative."""

    def make(rng, y, n, c, dtype):
        x = rng.normal(size=(n, c))
        edge = x.max(1) if margin > 0 else x.min(1)
        x[np.arange(n), y] = edge + margin
        return x

    return make


def _runner_up(rng, y, n, c, dtype):
    """The target far ahead, and one other class far ahead of the rest: nearly all of 1 - p."""
    x = rng.normal(size=(n, c))
    second = (y + rng.integers(1, max(c, 2), n)) % c
    x[np.arange(n), second] = x.max(1) + np.log(c) + rng.uniform(3, 12, n)
    x[np.arange(n), y] = x.max(1) + rng.uniform(10, 50, n)
    return x


def _masked(value, share=0.4):
    """A share of the classes, never the target, at `value`; 'min' is the smallest finite number."""

    def make(rng, y, n, c, dtype):
        x = rng.normal(size=(n, c)) * 3
        mask = rng.random((n, c)) < share
        mask[np.arange(n), y] = False
        x[mask] = float(ml_dtypes.finfo(dtype).min) if value == "min" else value
        return x

    return make


def _constant(value):
    return lambda rng, y, n, c, dtype: np.full((n, c), value)


def _climbing(rng, y, n, c, dtype):
    """The largest logit last in half of the rows, first in the others."""
    x = np.sort(rng.uniform(-30, 30, (n, c)), axis=1)
    x[::2] = x[::2, ::-1]
    return x


REGIMES: dict[str, Callable[..., Any]] = {
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
    "masked-min": _masked("min"),
    "masked-inf": _masked(-np.inf),
    "alone-1e9": _masked(-1e9, 1.0),
    "alone-min": _masked("min", 1.0),
    "alone-inf": _masked(-np.inf, 1.0),
    "constant0.3": _constant(0.3),
    "constant-7000.1": _constant(-7000.1),
    "constant0": _constant(0.0),
    "climbing": _climbing,
}

# ---------------------------------------------------------------------------------------------
# Targets: (random generator, labels, logits) -> target


def _labels(rng, y, x, dtype):
    return y


def _probabilities(rng, y, x, dtype):
    t = rng.exponential(size=x.shape) ** 3
    return (t / t.sum(1, keepdims=True)).astype(dtype)


def _unnormalised(rng, y, x, dtype):
    return rng.uniform(0, 1.5, x.shape).astype(dtype)


def _one_hot(rng, y, x, dtype):
    return (np.arange(x.shape[1]) == y[:, None]).astype(dtype)


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

    def make(self, dtype):
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


def _rows(classes):
    """Few elements, but more rows than lanes where classes are few, and never a round number."""
    return max(2, min(37, 9000 // classes))


def _case(regime, classes, target="labels", options=()):
    return Case(regime, classes, _rows(classes), target, frozenset(options))


def _table():
    # Every length in the plain regimes; every regime on both sides of the kernels' borders.
    for classes in CLASSES:
        for regime in ("random", "spread25", "confident30"):
            yield _case(regime, classes)
    for regime in REGIMES:
        if regime not in ("random", "spread25", "confident30"):
            for classes in (3, 10, 100, 1030, 2500):
                yield _case(regime, classes)
    # Rows enough for rare roundings to meet, where a row is few numbers.
    for regime in ("confident30", "runner-up", "spread25", "wrong60", "offset-1e4", "constant0.3"):
        for classes in (4, 10, 33):
            yield Case(regime, classes, 2000)
    for classes, rows in ((65, 1000), (100, 1000), (1000, 300), (2500, 100)):
        yield Case("runner-up", classes, rows)
    for classes in HUGE_CLASSES:
        for regime in ("random", "confident60", "constant0.3"):
            yield Case(regime, classes, 2)
    for regime in ("spread25", "runner-up", "wrong60", "offset-1e4", "masked-inf"):
        yield Case(regime, HUGE_CLASSES[1], 1)
    # Kinds of targets and options.
    for classes in (1, 3, 17, 100, 600):
        for target in TARGETS:
            for options in (
                (),
                ("weight",),
                ("sample_weight",),
                ("smoothing",),
                ("all-smoothing", "weight"),
                ("weight", "sample_weight", "smoothing"),
            ):
                if options or target != "labels":
                    yield _case("random", classes, target, options)
        yield _case("random", classes, "labels", ("ignore",))
        yield _case("random", classes, "labels", ("ignore", "weight", "sample_weight"))
        yield _case("spread25", classes, "labels", ("ignore", "weight", "smoothing"))
    for regime in ("confident30", "wrong60", "offset1e4", "masked-1e9", "spread140"):
        for classes in (10, 129):
            yield _case(regime, classes, "labels", ("weight", "sample_weight"))
            yield _case(regime, classes, "labels", ("smoothing",))
            yield _case(regime, classes, "probabilities")
            yield _case(regime, classes, "one-hot")
    # Many equal terms: what their sums lose adds up.
    for classes in (100, 1030, 2100):
        for target in ("probabilities", "unnormalised"):
            yield _case("constant0.3", classes, target)
        yield _case("constant0.3", classes, "labels", ("weight", "smoothing"))
    for regime in ("masked-inf", "masked-min", "alone-inf"):
        for classes in (10, 129):
            yield _case(regime, classes, "one-hot")
    for regime in ("constant0.3", "spread25", "confident30", "offset-1e4"):
        for target, options in (
            ("one-hot", ()),
            ("probabilities", ()),
            ("labels", ("smoothing",)),
            ("labels", ("all-smoothing", "weight")),
        ):
            yield Case(regime, 20_000, 1, target, frozenset(options))
    # Rows enough for the roundings of weights, targets and smoothing to meet.
    for regime, classes, rows, target, options in (
        ("spread25", 4, 15_000, "labels", {"weight"}),
        ("constant0.3", 4, 3000, "probabilities", {"weight", "sample_weight"}),
        ("random", 4, 9000, "probabilities", {"weight", "sample_weight"}),
        ("random", 6, 6001, "probabilities", {"weight", "sample_weight", "smoothing"}),
    ):
        yield Case(regime, classes, rows, target, frozenset(options))


CASES = tuple(_table())


@cache
def reference(case, dtype, reduction="none"):
    """The oracle's answer to a case, computed once for all backends."""
    x, target, kwargs = case.make(dtype)
    return oracle.reference(x, target, reduction=reduction, **kwargs)


@cache
def sixty_digits(regime, classes, rows, dtype):
    """A small case (logits, labels) with its losses and gradients by mpmath alone."""
    x, y, _ = Case(regime, classes, rows).make(dtype)
    losses, grads = [], []
    for row, label in zip(x, y, strict=True):
        digits = oracle.digits_for(row)
        loss, _, grad, _ = oracle.textbook(row, np.arange(classes) == label, digits=digits)
        losses.append(loss)
        grads += grad
    return x, y, oracle.split(losses), oracle.split(grads).reshape(x.shape)
