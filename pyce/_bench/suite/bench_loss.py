"""Every candidate, operation and workload of the plan; each is checked before it is measured."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

import pyce
from pyce._bench.floors import FLOOR_OF
from pyce._bench.measure import Timings
from pyce._bench.suite.plan import Plan, about


def bench_loss(workload: str, operation: str, candidate: str, plan: Plan, record: Any) -> None:
    work, who = plan.workload(workload), plan.candidate(candidate)
    outcome = plan.outcome(work, operation, who)
    if isinstance(outcome, Exception):
        reason = f"{candidate}: {str(outcome).strip() or type(outcome).__name__}"
        # Neither a failure of another library nor a missing one is an error of pyce.
        if who.kind == "peer" or isinstance(outcome, ImportError):
            pytest.skip(reason.splitlines()[0])
        pytest.fail(reason, pytrace=False)
    assert isinstance(outcome, Timings)
    info = {
        **about(work),
        "operation": operation,
        "candidate": candidate,
        "kind": who.kind,
        "backend": who.backend,
        "threads": who.threads,
        "isa": (who.isa or pyce.info()["isa"]) if who.backend == "c" else None,
        "bytes": work.bytes_moved(operation, FLOOR_OF[operation], who.kind == "floor"),
        "target_bytes": work.target_bytes,
        "blocks": [statistics.median(block) for block in outcome.blocks],
        "over_floor": outcome.over_floor,
        "calls": outcome.calls,
        "memory": outcome.memory,
    }
    record(outcome, f"{workload} {operation}", info)
