"""The table of cases: logits, targets and options that all backends are tested with."""

from __future__ import annotations

from functools import cache

import numpy as np
import oracle

from pyce._check.regimes import REGIMES, TARGETS, Case

__all__ = ["CASES", "FLOATS", "REGIMES", "TARGETS", "Case", "reference", "sixty_digits"]

# Both sides of every vector width, unrolled loop and block.
CLASSES = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129),
    *(255, 256, 257, 511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4097),
)
HUGE_CLASSES = (50257, 262144)

FLOATS = ("float32", "float64")


def _rows(classes):
    """A number of rows that keeps cases small, with more rows than lanes where classes are few."""
    return max(2, min(37, 9000 // classes))


def _case(regime, classes, target="labels", options=()):
    return Case(regime, classes, _rows(classes), target, frozenset(options))


def _table():
    # Every number of classes in some regimes; every regime with some classes for each kernel.
    for classes in CLASSES:
        for regime in ("random", "spread25", "confident30"):
            yield _case(regime, classes)
    for regime in REGIMES:
        if regime not in ("random", "spread25", "confident30"):
            for classes in (3, 10, 100, 1030, 2500):
                yield _case(regime, classes)
    # Enough rows for rare combinations of roundings where a row has few elements.
    for regime in ("confident30", "runner-up", "spread25", "wrong60", "offset-1e4", "constant0.3"):
        for classes in (4, 10, 33):
            yield Case(regime, classes, 2000)
    for classes, rows in ((65, 1000), (100, 1000), (1000, 300), (2500, 100)):
        yield Case("runner-up", classes, rows)
    for classes, rows in zip(HUGE_CLASSES, (2, 1), strict=True):
        for regime in ("random", "confident60", "constant0.3"):
            yield Case(regime, classes, rows)
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
    # Many equal terms, whose rounding errors accumulate.
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
    # Enough rows for rare combinations of roundings of weights, targets and smoothing.
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
