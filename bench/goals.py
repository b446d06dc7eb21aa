"""The project's goals, and which of them a run meets: `python bench/goals.py FILE`.

A goal is a limit of a ratio of two medians, measured in one process on the same buffers. Many goals
are about other libraries, so that they need a file of `python -m pyce bench --peers`. The goals are
those of the instruction set that the C backend ran on; a run on one processor has its own. Goals
that FILE has no times for are left out. Prints a table, or with --json a file that `python -m pyce
report` shows on its page. To add a goal, add a line to `EVERYWHERE`, `GOALS` or `ONE_THREAD`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pyce import _cli
from pyce._bench import results
from pyce._bench.report.goal_files import Line, content_of
from pyce._bench.results import Item, Run

Figure = Callable[[Run, str], float]

LLM = ("2048x32000", "1024x50257", "512x128256", "256x262144")
OURS = "pyce c"


class Goal(NamedTuple):
    about: str
    workloads: tuple[str, ...]
    figure: Figure
    limit: float
    at_least: bool = False  # else at most


def lines(run: Run) -> list[Line]:
    """Every goal of the run's instruction set and threads, on each of its workloads that it has."""
    found = []
    for goal in goals_of(run.machine):
        for workload in goal.workloads:
            try:
                figure = goal.figure(run, workload)
            except (KeyError, ValueError):
                continue  # the run lacks one of the two times
            met = figure >= goal.limit if goal.at_least else figure <= goal.limit
            limit = f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"
            found.append(Line(goal.about, workload, figure, limit, met))
    return found


def _ratio(
    candidate: str, reference: str, operation: str = "fused", of: str | None = None
) -> Figure:
    """Time of one candidate over that of another, on the same workload or on the workload `of`."""

    def figure(run: Run, workload: str) -> float:
        other = run.items[of or workload, operation, reference]
        return run.items[workload, operation, candidate].seconds / other.seconds

    return figure


def _over_floor(operation: str = "fused") -> Figure:
    def figure(run: Run, workload: str) -> float:
        over = run.items[workload, operation, OURS].over_floor
        if over is None:
            raise KeyError("no floor")
        return over

    return figure


def _fused(run: Run, workload: str) -> dict[str, Item]:
    return {
        candidate: item
        for (name, operation, candidate), item in run.items.items()
        if name == workload and operation == "fused"
    }


def _over_peers(run: Run, workload: str) -> float:
    """Time of the fastest other library over that of the C backend."""
    here = _fused(run, workload)
    best = min(item.seconds for item in here.values() if item.about["kind"] == "peer")
    return float(best / here[OURS].seconds)


def _over_torch(run: Run, workload: str, operation: str = "fused") -> float:
    """Time of PyTorch's own loss, eager or compiled, over that of `pyce.torch`."""
    eager, compiled, ours = (
        run.items[workload, operation, name].seconds
        for name in ("torch", "torch.compile", "pyce torch")
    )
    return min(eager, compiled) / ours


def _over_jax(run: Run, workload: str, operation: str = "fused") -> float:
    """Time of Optax's loss under JAX over that of `pyce.jax`."""
    optax, ours = (
        run.items[workload, operation, name].seconds for name in ("JAX + optax", "pyce jax")
    )
    return optax / ours


def _forward_over_jax(run: Run, workload: str) -> float:
    return _over_jax(run, workload, "forward")


def _forward_over_torch(run: Run, workload: str) -> float:
    return _over_torch(run, workload, "forward")


def _over_plain(run: Run, workload: str) -> float:
    """Time over that of the plain call plus a read of the target at the speed of the floor."""
    here = _fused(run, workload)
    extra: float = here[OURS].about["target_bytes"] / here["floor"].rate
    return here[OURS].seconds / (here["pyce c, plain"].seconds + extra)


def _nanoseconds(run: Run, workload: str) -> float:
    """Nanoseconds that the C backend takes for an element, on one thread."""
    item = run.items[workload, "fused", f"{OURS}, 1 thread"]
    return item.seconds / int(item.about["elements"]) * 1e9


def _head_over_torch(ours: str) -> Figure:
    """Time of PyTorch's faster way, with all logits or in chunks, over that of `ours`."""

    def figure(run: Run, workload: str) -> float:
        times = {
            candidate: item.seconds
            for (name, operation, candidate), item in run.items.items()
            if (name, operation) == (workload, "head-fused")
        }
        fastest = min(times[name] for name in ("torch", "torch chunked") if name in times)
        return fastest / times[ours]

    return figure


def _head_memory(run: Run, workload: str) -> float:
    """MiB that loss and gradients of the C backend add to arrays and gradients."""
    added = run.items[workload, "head-fused", OURS].about.get("memory")
    if added is None:
        raise KeyError("no memory")
    return float(added / 2**20)


def _over_own(run: Run, workload: str) -> float:
    """Time of the backend that "auto" selects over that of the fastest backend."""
    chosen = f"pyce {run.machine['backend']}"
    here = _fused(run, workload)
    own = [
        item.seconds
        for name, item in here.items()
        if item.about["kind"] == "backend" and "," not in name
    ]
    return here[chosen].seconds / min(own)


LARGE = (
    "1024x1000",
    "8192x100",
    "65536x10",
    "1000000x3",
    *LLM,
    "1x16777216",
    "8x21x512x512-axis1",
)
OTHER_TARGETS = tuple(
    f"{shape}-{target}"
    for shape in ("1024x1000", "2048x32000")
    for target in ("probabilities", "smoothing", "weight")
)
OTHERS = (
    *("64x10", "128x1000", "1024x1000", "8192x100", "65536x10", "1000000x3", "1x16777216"),
    *("8x21x512x512-axis1", "1024x1000-bfloat16", "1024x1000-float16", "1024x1000-float64"),
)
SMALL = (
    *("64x10-bfloat16", "64x10-float16", "64x10-float64", "64x10-probabilities", "256x1000"),
    *("2x5x64x64-axis1", "2x64x64x5", "2x256x256x2"),
)
IN_CACHE = ("1024x1000", "8192x100", "32x32000")
HALVES = ("2048x32000-bfloat16", "2048x32000-float16")

PEERS = "fused, times faster than the best peer"
FLOOR = "fused, time over the copy floor"

HEAD = ("head-1024x768x50257",)

# On every instruction set.
EVERYWHERE = (
    Goal("pyce.jax, times faster than Optax", LLM, _over_jax, 3, True),
    Goal("pyce.jax, times faster than Optax", OTHERS, _over_jax, 1, True),
    Goal(
        "pyce.jax without a gradient, times faster than Optax", OTHERS, _forward_over_jax, 1, True
    ),
    Goal("head, loss alone, in products", HEAD, _over_floor("head-forward"), 1.15),
    Goal("head, loss and gradients, in products", HEAD, _over_floor("head-fused"), 3.3),
    Goal("head, columns left out, in products", HEAD, _over_floor("head-filtered"), 1.7),
    Goal("head, MiB added to arrays and gradients", HEAD, _head_memory, 64),
    Goal("head, times faster than PyTorch's best", HEAD, _head_over_torch(OURS), 1.4, True),
    Goal(
        "head, pyce.torch, times faster than PyTorch's best",
        HEAD,
        _head_over_torch("pyce torch"),
        1.4,
        True,
    ),
    Goal("in place over out of place", LLM, _ratio("pyce c, in place", OURS), 1.05),
    Goal("the backend chosen over the fastest", ("64x10", "128x1000", *LARGE), _over_own, 1.1),
    Goal("two threads over one", LARGE, _ratio(OURS, "pyce c, 1 thread"), 1.05),
    Goal("pyce.torch, times faster than PyTorch's best", OTHERS + SMALL, _over_torch, 1, True),
    Goal(
        "pyce.torch without a gradient, times faster than PyTorch's best",
        ("64x10", "64x10-probabilities", "256x1000"),
        _forward_over_torch,
        1,
        True,
    ),
)

# For each instruction set, on all threads. Absolute times depend on the processor; the only one is
# that of plain C, to which no other library has a counterpart.
GOALS: dict[str, tuple[Goal, ...]] = {
    "avx512": (
        Goal(FLOOR, LLM, _over_floor(), 1.25),
        Goal(PEERS, LLM, _over_peers, 7, True),
        Goal("forward, time over reading once", LLM, _over_floor("forward"), 1.5),
        Goal(FLOOR, ("1024x1000",), _over_floor(), 2),
        Goal(PEERS, ("1024x1000",), _over_peers, 3, True),
        Goal(FLOOR, ("8192x100",), _over_floor(), 2.6),
        Goal(PEERS, ("8192x100",), _over_peers, 2.5, True),
        Goal(PEERS, ("65536x10",), _over_peers, 7, True),
        Goal(PEERS, ("1000000x3",), _over_peers, 8, True),
        Goal(PEERS, ("64x10",), _over_peers, 1.5, True),
        Goal(PEERS, ("1x16777216",), _over_peers, 5, True),
        Goal(FLOOR, ("8x21x512x512-axis1",), _over_floor(), 2),
        Goal("half types over float32", HALVES, _ratio(OURS, OURS, of="2048x32000"), 0.65),
        Goal(
            "float64 over float32",
            ("2048x32000-float64",),
            _ratio(OURS, OURS, of="2048x32000"),
            2.5,
        ),
        Goal("other targets over plain ones and their bytes", OTHER_TARGETS, _over_plain, 1.3),
        Goal("Numba over C", LARGE, _ratio("pyce numba", OURS), 2),
        Goal("pyce.torch, times faster than PyTorch's best", LLM, _over_torch, 5, True),
        Goal("AVX2 over AVX-512", LARGE, _ratio("pyce c, avx2", OURS), 1.7),
    ),
    "avx2": (
        Goal(FLOOR, LLM, _over_floor(), 1.2),
        Goal(PEERS, LARGE, _over_peers, 3, True),
        Goal(PEERS, ("64x10",), _over_peers, 1.5, True),
        Goal("Numba over C", ("128x1000", *LARGE), _ratio("pyce numba", OURS), 1.6),
        Goal("pyce.torch, times faster than PyTorch's best", LLM, _over_torch, 1, True),
    ),
    "scalar": (Goal("nanoseconds an element on one thread", IN_CACHE, _nanoseconds, 1.5),),
}

# For each instruction set, of a run on one processor: JAX cannot be held to fewer threads than
# the process has processors.
_OVER_JAX = "fused on one thread, times faster than JAX"
_JAX = _ratio("JAX + optax", OURS)
ONE_THREAD: dict[str, tuple[Goal, ...]] = {
    "avx2": (
        Goal(_OVER_JAX, ("1024x1000", "32x32000"), _JAX, 1.9, True),
        Goal(_OVER_JAX, ("8192x100",), _JAX, 1.6, True),
        Goal(_OVER_JAX, ("65536x10",), _JAX, 2.6, True),
        Goal(_OVER_JAX, ("1000000x3",), _JAX, 7, True),
    ),
}


def goals_of(machine: dict[str, Any]) -> tuple[Goal, ...]:
    """The goals of a run on the machine of this fingerprint."""
    isa = machine["isa"] or ""
    if machine["threads"] == 1:
        return ONE_THREAD.get(isa, ())
    return (*GOALS.get(isa, ()), *EVERYWHERE)


def main(options: argparse.Namespace) -> int:
    found = lines(results.load(options.file))
    if options.json:
        print(json.dumps(content_of(found), indent=1, ensure_ascii=False))
        return _cli.FINE
    rows = [
        (line.about, line.workload, line.limit, line.measured, "" if line.met else "missed")
        for line in found
    ]
    _cli.table("Goals", ("goal", "workload", "limit", "measured", ""), rows, left=2)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/goals.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("file", type=Path, metavar="FILE", help="a file of `python -m pyce bench`")
    made.add_argument("--json", action="store_true", help="print the goals as JSON, for the report")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
