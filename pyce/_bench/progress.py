"""The progress of a session of measurements, on a terminal or line by line."""

from __future__ import annotations

import sys
import time
from typing import Any


def expected_seconds(plan: Any, digits: bool) -> dict[str, float]:
    """A rough estimate for each workload, from its size and the slowest backend."""
    found = {}
    for workload in plan.workloads:
        slow = any(c.backend == "numpy" for c in plan.candidates)
        operations = len(set(plan.operations) & set(workload.operations))
        calls = workload.size * (3e-8 if slow else 3e-9) * operations
        if workload.dtype in ("float16", "float64"):
            calls *= 3
        arrays = workload.size * 1e-8 * plan.effort.blocks
        turns = 0.6 * len(plan.candidates) ** 0.5 * operations
        if workload.features is not None:
            products = 1e-11 * workload.size * workload.features  # seconds of one
            calls = 10 * operations * products * len(plan.candidates)
        found[workload.name] = 0.5 + calls + arrays + turns
    if digits:
        found["digits"] = 8.0
    return found


class Progress:
    """Shows the part that is done and the time left: a bar on a terminal, otherwise lines."""

    def __init__(self, plan: Any, digits: bool) -> None:
        self._expected = expected_seconds(plan, digits)
        self._begin = time.perf_counter()
        self._finished = 0.0
        self._number = 0
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            try:
                self._open()
            except ImportError:
                self._rich = None
        return self

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        self._rich = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn(
                "{task.percentage:3.0f} %  {task.fields[left]}  {task.fields[doing]}"
            ),
            console=Console(stderr=True),
            transient=True,
        )
        self._rich.start()
        total = sum(self._expected.values())
        self._task = self._rich.add_task("measuring", total=total, left="", doing="")

    def __exit__(self, *_: object) -> None:
        if self._rich:
            self._rich.stop()

    def remaining(self, finished: float) -> str:
        """The time left, from the estimate and the ratio of elapsed to estimated time so far."""
        total = sum(self._expected.values())
        elapsed = time.perf_counter() - self._begin
        pace = elapsed / finished if finished > 0.05 * total else 1.0
        left = max(0, round((total - finished) * pace))
        return f"{left // 60}:{left % 60:02} left"

    def doing(self, workload: str, part: float, what: str) -> None:
        finished = self._finished + part * self._expected[workload]
        if self._rich:
            self._rich.update(
                self._task,
                completed=finished,
                description=workload,
                left=self.remaining(finished),
                doing=what,
            )

    def done(self, workload: str) -> None:
        self._finished += self._expected[workload]
        self._number += 1
        if not self._rich:
            print(
                f"[{self._number}/{len(self._expected)}] {workload}, "
                f"{self.remaining(self._finished)}",
                file=sys.stderr,
                flush=True,
            )
