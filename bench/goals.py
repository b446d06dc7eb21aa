"""The project's goals, and which of them a run meets: `python bench/goals.py FILE`.

A goal is a limit of a ratio of two medians, measured in one process on the same buffers. Many goals
are about other libraries, so that they need a file of `python -m pyce bench --peers`. Goals that
FILE has no times for are left out. Prints a table, or with --json a file that `python -m pyce
report` shows on its page. To add a goal, add a line to `GOALS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pyce import _cli
from pyce._bench import results
from pyce._bench.formats import ratio
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
    """Every goal, on each of its workloads that the run has."""
    found = []
    for goal in GOALS:
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


def _over_torch(run: Run, workload: str) -> float:
    """Time of PyTorch's own loss, eager or compiled, over that of `pyce.torch`."""
    here = _fused(run, workload)
    best = min(here["torch"].seconds, here["torch.compile"].seconds)
    return best / here["pyce torch"].seconds


def _over_plain(run: Run, workload: str) -> float:
    """Time over that of the plain call plus a read of the target at the speed of the floor."""
    here = _fused(run, workload)
    extra: float = here[OURS].about["target_bytes"] / here["floor"].rate
    return here[OURS].seconds / (here["pyce c, plain"].seconds + extra)


def _over_own(run: Run, workload: str) -> float:
    """Time of the backend that "auto" selects over that of the fastest backend."""
    here = _fused(run, workload)
    own = [
        item.seconds
        for name, item in here.items()
        if item.about["kind"] == "backend" and "," not in name
    ]
    return here[OURS].seconds / min(own)


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
HALVES = ("2048x32000-bfloat16", "2048x32000-float16")

GOALS = (
    Goal("fused, time over the copy floor", LLM, _over_floor(), 1.25),
    Goal("fused, times faster than the best peer", LLM, _over_peers, 7, True),
    Goal("in place over out of place", LLM, _ratio("pyce c, in place", OURS), 1.05),
    Goal("forward, time over reading once", LLM, _over_floor("forward"), 1.5),
    Goal("fused, time over the copy floor", ("1024x1000",), _over_floor(), 2),
    Goal("fused, times faster than the best peer", ("1024x1000",), _over_peers, 3, True),
    Goal("fused, time over the copy floor", ("8192x100",), _over_floor(), 2.6),
    Goal("fused, times faster than the best peer", ("8192x100",), _over_peers, 2.5, True),
    Goal("fused, times faster than the best peer", ("65536x10",), _over_peers, 7, True),
    Goal("fused, times faster than the best peer", ("1000000x3",), _over_peers, 8, True),
    Goal("fused, times faster than the best peer", ("64x10",), _over_peers, 1.5, True),
    Goal("fused, times faster than the best peer", ("1x16777216",), _over_peers, 5, True),
    Goal("fused, time over the copy floor", ("8x21x512x512-axis1",), _over_floor(), 2),
    Goal("half types over float32", HALVES, _ratio(OURS, OURS, of="2048x32000"), 0.65),
    Goal(
        "float64 over float32",
        ("2048x32000-float64",),
        _ratio(OURS, OURS, of="2048x32000"),
        2.5,
    ),
    Goal("other targets over plain ones and their bytes", OTHER_TARGETS, _over_plain, 1.3),
    Goal("Numba over C", LARGE, _ratio("pyce numba", OURS), 2),
    Goal("the backend chosen over the fastest", ("64x10", "128x1000", *LARGE), _over_own, 1.1),
    Goal("two threads over one", LARGE, _ratio(OURS, "pyce c, 1 thread"), 1.05),
    Goal("pyce.torch, times faster than PyTorch's best", LLM, _over_torch, 5, True),
    Goal("pyce.torch, times faster than PyTorch's best", OTHERS, _over_torch, 1, True),
    Goal("AVX2 over AVX-512", LARGE, _ratio("pyce c, avx2", OURS), 1.7),
)


def main(options: argparse.Namespace) -> int:
    found = lines(results.load(options.file))
    if options.json:
        print(json.dumps(content_of(found), indent=1, ensure_ascii=False))
        return _cli.FINE
    rows = [
        (line.about, line.workload, line.limit, ratio(line.figure), "" if line.met else "missed")
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
