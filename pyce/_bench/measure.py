"""Measure candidates in turn, in one process, on the same buffers, in blocks.

All candidates of a workload take turns (A B C A B C …), so that a disturbance affects all of them.
The floors take turns with them: the time of one read of the logits, or of one copy of them to the
gradient. All of this is repeated in blocks, each with its arrays in other memory, because bandwidth
differs more from buffer to buffer than from round to round. The median of a block is one
observation; the rounds of a block are not independent of each other.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, sleep

import numpy as np

from pyce._bench import memory
from pyce._bench.calls import Call
from pyce._bench.candidates import Candidate
from pyce._bench.floors import shortest
from pyce._bench.head import HeadData
from pyce._bench.workloads import Data

# Seconds to wait after a candidate whose idle threads spin for some milliseconds: they would take
# processor time from the next candidate.
REST = 0.02
# Least seconds of a round, far above the resolution of the clock.
ROUND = 2e-4
# Seconds of calls before each round that are not counted: they wake threads and bring the caches to
# the state that the candidate itself leaves. A call of TOO_LONG needs no warm-up.
WARM_UP = 2e-3
TOO_LONG = 0.05
# Relative error allowed to other libraries. It detects wrong results and does not judge accuracy.
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    blocks  : number of blocks, each with its arrays in other memory
    rounds  : most rounds of a candidate in a block
    seconds : most seconds of a candidate in a block, but at least one round
    most    : most seconds of a candidate in total, but at least one block
    """

    blocks: int = 10
    rounds: int = 6
    seconds: float = 0.04
    most: float = 1.0


@dataclass
class Timings:
    """The times of one candidate and operation.

    blocks     : seconds per call: a list for each block, with an element for each round
    over_floor : for each block, the median ratio of a call's time to the floor's time in the same
                 round with the same number of threads
    calls      : number of calls in a round
    memory     : for a head, the bytes that a call adds at most, without the gradients; else None
    """

    blocks: list[list[float]] = field(default_factory=list)
    over_floor: list[float] = field(default_factory=list)
    calls: int = 1
    memory: int | None = None

    @property
    def samples(self) -> list[float]:
        return [seconds for block in self.blocks for seconds in block]


class Wrong(Exception):
    """A result that differs from the reference's."""


# The times of a candidate, or the reason why there are none.
Outcome = Timings | Exception
Outcomes = dict[tuple[str, str], Outcome]  # {(operation, candidate's name)}


def measure(
    data: Data | HeadData,
    operations: Sequence[str],
    candidates: Sequence[Candidate],
    effort: Effort,
    tell: Callable[[float, str], None] = lambda part, doing: None,
) -> Outcomes:
    """Check each candidate on each operation, and measure those that are right.

    `tell` is called before each step, with the part that is done and the name of the step.
    """
    outcomes: Outcomes = {}
    spent: dict[tuple[str, str], float] = {}
    added: dict[tuple[str, str], int | None] = {}
    steps = effort.blocks * len(operations)
    for block in range(effort.blocks):
        if block:
            data.renew()
        for number, operation in enumerate(operations):
            part = (block * len(operations) + number) / steps
            calls: dict[str, Call] = {}
            chosen: dict[str, Candidate] = {}
            for candidate in candidates:
                key = operation, candidate.name
                if isinstance(outcomes.get(key), Exception):
                    continue
                if not candidate.does(data.workload, operation) or spent.get(key, 0) > effort.most:
                    continue
                tell(part, f"{operation}, {candidate.name}")
                with candidate.selected():
                    try:
                        call = candidate.call(data, operation)
                        if block == 0 and candidate.result and candidate.kind != "floor":
                            added[key] = _check(data, call, operation, candidate)
                        else:
                            call()
                    except Exception as error:  # other libraries may raise anything
                        outcomes[key] = error
                        continue
                calls[candidate.name] = call
                # The threads of BLAS spin too.
                spins = candidate.spins or isinstance(data, HeadData)
                chosen[candidate.name] = replace(candidate, spins=spins)
            times = in_turn(calls, chosen, effort)
            floors = {c.threads: times[c.name][0] for c in chosen.values() if c.kind == "floor"}
            for name, (samples, repeats) in times.items():
                key = operation, name
                timings = outcomes.setdefault(key, Timings(memory=added.get(key)))
                assert isinstance(timings, Timings)
                timings.blocks.append(samples)
                timings.calls = repeats
                spent[key] = spent.get(key, 0) + sum(samples) * repeats
                floor = floors.get(chosen[name].threads)
                if floor:
                    pairs = zip(samples, floor, strict=False)
                    timings.over_floor.append(statistics.median(a / b for a, b in pairs))
    return outcomes


def in_turn(
    calls: dict[str, Call], chosen: dict[str, Candidate], effort: Effort
) -> dict[str, tuple[list[float], int]]:
    """For each of `calls`: seconds per call of every round, and the number of calls in a round."""
    repeats: dict[str, int] = {}
    rounds: dict[str, int] = {}
    warm_ups: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        with chosen[name].selected():
            time = shortest(call)
            time = min(time, shortest(call)) if time < TOO_LONG else time
        repeats[name] = max(1, round(ROUND / max(time, 1e-8)))
        warm_ups[name] = 0 if time > TOO_LONG else max(1, round(WARM_UP / max(time, 1e-7)))
        rounds[name] = max(1, min(effort.rounds, int(effort.seconds / (time * repeats[name]))))
        if time > effort.most / 2:
            samples[name], rounds[name] = [time], 0  # one call is long enough to count
    for name in calls:
        if chosen[name].kind == "floor":
            # Every round of another candidate needs one of the floor.
            rounds[name] = max(rounds.values())
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(max(rounds.values(), default=0)):
            for name, call in calls.items():
                if turn >= rounds[name]:
                    continue
                with chosen[name].selected():
                    for _ in range(warm_ups[name]):
                        call()
                    begin = perf_counter()
                    for _ in range(repeats[name]):
                        call()
                    samples[name].append((perf_counter() - begin) / repeats[name])
                if chosen[name].spins:
                    sleep(REST)
    finally:
        if collecting:
            gc.enable()
    return {name: (samples[name], repeats[name]) for name in calls}


def _check(data: Data | HeadData, call: Call, operation: str, candidate: Candidate) -> int | None:
    """Raise `Wrong` unless the candidate's loss and gradient equal the reference's.

    Returns the memory that the call adds, for `Timings.memory`.
    """
    dtype = data.workload.dtype
    tolerance = TOLERANCE[dtype] if candidate.kind == "peer" else None
    data.clear()
    added = None
    if isinstance(data, HeadData):
        if not data.workload.is_long or candidate.kind != "peer":
            call()  # BLAS touches some MiB for good in the first call
        result, added = memory.added(call)
        if added is not None and isinstance(result, tuple):
            new = (grad for grad in result[1] if not isinstance(grad, np.ndarray))
            added = max(0, added - sum(grad.nbytes for grad in new))
    else:
        result = call()
    try:
        alone = operation.endswith("forward")
        if operation != "backward":
            loss = result if alone else result[0]
            # PyTorch rounds the losses of half types to their dtype.
            rounded = getattr(getattr(loss, "dtype", None), "itemsize", 0) == 2
            data.check_loss(loss, TOLERANCE[dtype] if rounded else tolerance)
        if not alone:
            grad = result if operation == "backward" else result[1]
            data.check_grad(grad, operation, tolerance)
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Wrong("; ".join(lines[:4])) from None
    return added
