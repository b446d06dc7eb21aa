"""The plan of a session, and the results of the current workload."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyce
from pyce._bench import candidates
from pyce._bench.candidates import Candidate
from pyce._bench.head import HeadData
from pyce._bench.measure import Effort, Outcome, Outcomes, measure
from pyce._bench.workloads import HEAD_OPERATIONS, OPERATIONS, WORKLOADS, Data, Workload


class Display(Protocol):
    """Shows the progress of a session."""

    def doing(self, workload: str, part: float, what: str) -> None:
        """`part` (0 to 1) of the workload is done, and `what` comes next."""

    def done(self, workload: str) -> None: ...


class Silent:
    def doing(self, workload: str, part: float, what: str) -> None: ...

    def done(self, workload: str) -> None: ...


def _default_candidates() -> list[Candidate]:
    own = pyce.get_num_threads()
    return candidates.backends(pyce.backends(), [own, 1] if own > 1 else [own])


@dataclass
class Plan:
    """The workloads, operations and candidates of a session, in the order of measuring."""

    workloads: list[Workload] = field(default_factory=lambda: [w for w in WORKLOADS if w.quick])
    operations: tuple[str, ...] = (*OPERATIONS, *HEAD_OPERATIONS)
    candidates: list[Candidate] = field(default_factory=_default_candidates)
    effort: Effort = field(default_factory=Effort)
    display: Display = field(default_factory=Silent)
    _outcomes: dict[str, Outcomes | Exception] = field(default_factory=dict)
    _current: str | None = None

    def items(self) -> list[tuple[Workload, str, Candidate]]:
        return [
            (workload, operation, candidate)
            for workload in self.workloads
            for operation in self.operations
            for candidate in self.candidates
            if candidate.does(workload, operation)
        ]

    def workload(self, name: str) -> Workload:
        return next(workload for workload in self.workloads if workload.name == name)

    def candidate(self, name: str) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def outcome(self, workload: Workload, operation: str, candidate: Candidate) -> Outcome:
        """The result of an item; its first call for a workload measures the whole workload."""
        name = workload.name
        if name not in self._outcomes:
            self.begin(name)
            self._outcomes = {name: self._measure(workload)}
        outcomes = self._outcomes[name]
        if isinstance(outcomes, Exception):
            return outcomes
        return outcomes[operation, candidate.name]

    def begin(self, name: str | None) -> None:
        """End the previous workload, if any, and begin the next; None if there is no other."""
        if self._current is not None:
            self.display.done(self._current)
        self._current = name

    def _measure(self, workload: Workload) -> Outcomes | Exception:
        def tell(part: float, what: str) -> None:
            self.display.doing(workload.name, part, what)

        tell(0, "making the arrays")
        effort = self.effort
        if workload.is_long:
            blocks = min(3, effort.blocks)
            effort = replace(effort, blocks=blocks, rounds=blocks, most=6 * effort.most)
        try:
            data = Data(workload) if workload.features is None else HeadData(workload)
        except ImportError as error:
            return error
        operations = [name for name in self.operations if name in workload.operations]
        return measure(data, operations, self.candidates, effort, tell)


def about(workload: Workload) -> dict[str, Any]:
    """The part of an item's `extra_info` that describes its workload."""
    return {
        "workload": workload.name,
        "stands_for": workload.stands_for,
        "shape": list(workload.shape),
        "dtype": workload.dtype,
        "target": workload.target,
        "axis": workload.axis,
        "features": workload.features,
        "elements": workload.size,
    }
