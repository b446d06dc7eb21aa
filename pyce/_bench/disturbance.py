"""The processor time that other programs take while candidates are measured."""

from __future__ import annotations

import os
from time import perf_counter
from typing import NamedTuple

# Processors used by others, on average, from which on a run is said to be disturbed.
DISTURBED = 0.2


class OtherPrograms:
    """Measures how many processors other programs use on average, from its creation on.

    On systems other than Linux, and where /proc is hidden, the answer is None.
    """

    def __init__(self) -> None:
        self._begin = _now()

    def processors(self) -> float | None:
        """The mean since the creation, at least 0."""
        begin, end = self._begin, _now()
        if begin is None or end is None or end.clock <= begin.clock:
            return None
        others = (end.busy - begin.busy) - (end.own - begin.own)
        return max(0.0, others / (end.clock - begin.clock))


class _Times(NamedTuple):
    """Seconds: by the clock, of all processors at work, and of this process and its children."""

    clock: float
    busy: float
    own: float


def _now() -> _Times | None:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        user, nice, system, _idle, _waiting, interrupts, soft, stolen = fields
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + interrupts + soft + stolen
    own = sum(os.times()[:4])
    return _Times(perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own)
