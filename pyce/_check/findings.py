"""The comparisons of a check, and the failures that it found."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyce._check.oracle import Array
from pyce._selection import Selection

# Upper ends of a histogram's bins, in ULP. A correctly rounded result is within half a unit.
EDGES = (0.5, 1, 2, 4, 10, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, np.inf)
# How an infinite error is written, since JSON has no infinity.
INFINITE = 1e300


@dataclass(kw_only=True)
class Failure:
    """A promise that is broken."""

    check: str  # "accuracy", "bytes", …
    backend: str  # with its instruction set
    dtype: str
    case: str
    what: str
    got: str
    expected: str
    error: float | None = None  # in ULP, if the error is too large
    limit: float | None = None

    def __str__(self) -> str:
        text = f"{self.backend}, {self.dtype}, {self.case}: {self.what}"
        if self.error is not None:
            size = "infinitely wrong" if self.error >= INFINITE else f"{self.error:.4g} ULP off"
            text += f" {size}, at most {self.limit:g} promised"
        return f"{text}: got {self.got}, expected {self.expected}"


@dataclass
class Findings:
    """Everything that a check has compared so far.

    failures  the broken promises
    numbers   how many results have been compared
    peaks     {(dtype, row of the table, candidate, kind): largest error in ULP}
    spread    the same keys, for losses and gradients: all errors, until `take_statistics`
    held      {promise: [how often it held, how often it was broken]}
    """

    failures: list[Failure] = field(default_factory=list)
    numbers: int = 0
    peaks: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    spread: dict[tuple[str, str, str, str], list[Array]] = field(default_factory=dict)
    held: dict[str, list[int]] = field(default_factory=dict)

    def compare(self, check: str, failure: Failure | None, numbers: int = 0) -> None:
        """Count one comparison, and keep its failure if there is one."""
        self.held.setdefault(check, [0, 0])[failure is not None] += 1
        self.numbers += numbers
        if failure:
            self.failures.append(failure)

    def same(
        self, check: str, selection: Selection, dtype: str, case: str, mine: str, other: str
    ) -> None:
        """Count one comparison of two results by the SHA-256 of their bytes."""
        failure = None
        if mine != other:
            got, expected = (f"SHA-256 {name}" for name in (mine, other))
            failure = Failure(
                check="bytes",
                backend=str(selection),
                dtype=dtype,
                case=case,
                what=f"not {check}",
                got=got,
                expected=expected,
            )
        self.compare(check, failure)

    @contextmanager
    def guarded(self, check: str, selection: Selection, dtype: str, case: str) -> Iterator[None]:
        """Record an unexpected exception as a failure, and continue with the other checks."""
        try:
            yield
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            failure = Failure(
                check=check,
                backend=str(selection),
                dtype=dtype,
                case=case,
                what="raised",
                got=got,
                expected="a result",
            )
            self.compare(check, failure)

    def take_statistics(self, dtype: str, row: str) -> dict[str, dict[str, Any]]:
        """{candidate: {kind: statistics of its errors}}; the errors themselves are dropped."""
        found: dict[str, dict[str, Any]] = {}
        for key in [key for key in self.spread if key[:2] == (dtype, row)]:
            errors = np.concatenate(self.spread.pop(key))
            found.setdefault(key[2], {})[key[3]] = statistics(errors)
        return found


def statistics(errors: Array) -> dict[str, Any]:
    """Count, part of correctly rounded results, quantiles, and a histogram over `EDGES`.

    The figures are None if there are no errors: where every exact result is subnormal.
    """
    counts = np.bincount(np.searchsorted(EDGES, errors), minlength=len(EDGES))
    errors = np.minimum(errors, INFINITE)
    some = errors.size > 0
    return {
        "numbers": errors.size,
        "right": float((errors <= 0.5).mean()) if some else None,
        "median": float(np.median(errors)) if some else None,
        "99.9%": float(np.quantile(errors, 0.999, method="higher")) if some else None,
        "max": float(errors.max()) if some else None,
        "histogram": counts.tolist(),
    }


def error_text(value: float | None) -> str:
    """An error with two decimals, or as a power of ten from 1000 on; a dash for None."""
    if value is None:
        return "–"
    if value >= INFINITE:
        return "∞"
    return f"{value:.2f}" if value < 1000 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of the bytes of all arrays, in little-endian order on every machine."""
    hashed = hashlib.sha256()
    for array in arrays:
        found = np.ascontiguousarray(array)
        if sys.byteorder == "big":
            found = found.byteswap()
        hashed.update(found.tobytes())
    return hashed.hexdigest()
