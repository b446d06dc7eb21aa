"""Every candidate x operation x workload of the plan, each checked before it is measured."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

import pyce
from pyce._bench.candidates import Candidate
from pyce._bench.measure import FLOOR_OF, Figures, Wrong
from pyce._bench.suite.plan import Plan, about
from pyce._bench.workloads import Workload


def bench_loss(workload: str, operation: str, candidate: str, plan: Plan, record: Any) -> None:
    _measured(plan.workload(workload), operation, plan.candidate(candidate), plan, record)


def _measured(
    workload: Workload, operation: str, candidate: Candidate, plan: Plan, record: Any
) -> None:
    outcome = plan.outcome(workload, operation, candidate)
    if isinstance(outcome, Exception):
        reason = str(outcome).strip() or type(outcome).__name__
        if isinstance(outcome, Wrong) or (candidate.kind != "peer" and not _missing(outcome)):
            pytest.fail(f"{candidate.name}: {reason}", pytrace=False)
        pytest.skip(f"{candidate.name}: {reason.splitlines()[0]}")
    assert isinstance(outcome, Figures)
    backend = candidate.backend
    info = {
        **about(workload),
        "operation": operation,
        "candidate": candidate.name,
        "kind": candidate.kind,
        "backend": backend,
        "threads": candidate.threads,
        "isa": (candidate.isa or pyce.info()["isa"]) if backend == "c" else None,
        "bytes": workload.bytes_moved(operation, FLOOR_OF[operation], candidate.kind == "floor"),
        "target_bytes": workload.target_bytes,
        "blocks": [statistics.median(block) for block in outcome.blocks],
        "over_floor": outcome.over_floor,
        "calls": outcome.calls,
    }
    record(outcome, f"{workload.name} {operation}", info)


def _missing(outcome: Exception) -> bool:
    """Whether something is not installed that only this workload needs."""
    return isinstance(outcome, ImportError)
