"""Read the files of `python -m pyce check -o`.

    {"machine", "versions", "verdict", "failures", "checks", "titles", "edges", "limits",
     "results": {dtype: {regime: {candidate: {"loss" or "gradient": statistics}}}},
     "targets": the same for other kinds of targets}

where statistics are {"numbers", "right", "median", "99.9%", "max", "histogram"}: errors in units in
the last place (ULP), None if there are no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("loss", "gradient")

# {regime: {candidate: {kind: statistics}}}
Regimes = dict[str, dict[str, dict[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Check:
    """One file."""

    path: Path
    content: dict[str, Any]

    @property
    def results(self) -> dict[str, Regimes]:
        found: dict[str, Regimes] = self.content["results"]
        return found

    @property
    def targets(self) -> dict[str, Regimes]:
        found: dict[str, Regimes] = self.content.get("targets") or {}
        return found

    @property
    def machine(self) -> dict[str, Any]:
        about: dict[str, Any] = self.content.get("machine") or {}
        return about

    @property
    def failures(self) -> list[str]:
        return [
            str(failure.get("text", failure)) if isinstance(failure, dict) else str(failure)
            for failure in self.content.get("failures") or ()
        ]

    @property
    def verdict(self) -> str:
        return str(self.content.get("verdict") or ("wrong" if self.failures else "right"))

    @property
    def edges(self) -> list[float]:
        """Upper ends of the histograms' bins, in ULP. A correctly rounded result is within ½."""
        return [*self.content["edges"], float("inf")]

    def limit(self, kind: str) -> float:
        """The largest error that is promised for the loss or the gradient."""
        return float(self.content["limits"]["cross-entropy"][kind])

    def title(self, regime: str) -> str:
        return str(self.content["titles"].get(regime, regime))


def is_check(content: Any) -> bool:
    try:
        bins = len(content["edges"]) + 1
        limits = content["limits"]["cross-entropy"]
        return all(kind in limits for kind in KINDS) and all(
            len(kinds[kind]["histogram"]) == bins and "max" in kinds[kind]
            for table in (content["results"], content.get("targets") or {})
            for regimes in table.values()
            for by_name in regimes.values()
            for kinds in by_name.values()
            for kind in kinds
        )
    except (AttributeError, KeyError, TypeError):
        return False


def candidates(regimes: Regimes) -> list[str]:
    return list(dict.fromkeys(name for by_name in regimes.values() for name in by_name))


def label(candidate: str) -> str:
    """The name of the candidate in the files of bench."""
    return f"pyce {candidate}" if candidate.split("-")[0] in ("c", "numba", "numpy") else candidate
