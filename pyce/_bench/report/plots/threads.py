"""The speed-up that more threads bring, for each workload."""

from __future__ import annotations

import math

from pyce._bench.formats import listed, ratio
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import floors, grid, lowest, markers, workload_lines
from pyce._bench.report.style import INK, MUTED, legend, logarithmic, look
from pyce._bench.report.summaries import FLOORS, TITLES, Shown


def scaling_pairs(shown: Shown) -> Picture:
    """For two numbers of threads: the speed-up of the larger, a line for each workload."""
    few, many = (*shown.thread_counts, *shown.thread_counts)[:2]
    operations = [o for o in shown.operations if any(p[1] == o for p in shown.scaling)]
    made, panels = workload_lines(shown, operations, 0.36)
    names = [n for n in [*shown.names, "floor"] if any(n in by for by in shown.scaling.values())]
    step = 0.66 / len(names)
    values = [v[many] for by in shown.scaling.values() for v in by.values() if many in v]
    for panel, operation in zip(panels, operations, strict=True):
        for number, name in enumerate(names):
            found = [
                (
                    shown.scaling[workload, operation][name][many],
                    line - 0.33 + step * (number + 0.5),
                )
                for line, workload in enumerate(shown.workloads)
                if many in shown.scaling.get((workload, operation), {}).get(name, {})
            ]
            color, _ = look(name, shown.names)
            lines = [y for _, y in found]
            panel.hlines(lines, 1, [x for x, _ in found], color=color, linewidth=1.5)
            marks = markers(name, shown.names, 6)
            if name == "floor":
                marks.update(marker="d", label=f"floor ({floors(shown)})")
            panel.plot([x for x, _ in found], lines, linestyle="none", **marks)
        panel.axvline(1, color=INK, linewidth=1.2, zorder=1)
        panel.axvline(many / few, color=INK, linestyle="--", linewidth=1.2, zorder=1, label="ideal")
        low, high = min(0.7, *values), max(many / few, *values)
        logarithmic(panel.xaxis, low / 1.1, high * 1.15, 6)
        panel.grid(axis="x")
        panel.set_xlabel(f"speed-up, {many} threads over {few} (log.)")
    legend(made, panels)
    return Picture(
        "threads",
        "Speed-up by threads",
        f"For each workload, the speed-up of {listed(names)} with {many} threads over "
        f"{few}: from {ratio(min(values))} to {ratio(max(values))}; {many / few:g} would be "
        "ideal.",
        f"Speed-up with {many} threads over {few}: further right is better, the dashed line is "
        "ideal. Memory is the limit where a copy gains nothing either; small work runs on one "
        "thread.",
        made,
    )


def scaling_curves(shown: Shown) -> Picture:
    """For several numbers of threads: a small panel for each workload, with the ideal line."""
    operation = next(o for o in shown.operations if any(p[1] == o for p in shown.scaling))
    workloads = [w for w in shown.workloads if (w, operation) in shown.scaling]
    counts = shown.thread_counts
    values = [
        value
        for w in workloads
        for by_threads in shown.scaling[w, operation].values()
        for value in by_threads.values()
    ]
    low, high = min(0.8, *values) / 1.1, max(counts) / min(counts) * 1.3
    made, panels = grid(workloads)
    for panel, workload in zip(panels, workloads, strict=False):
        here = shown.scaling[workload, operation]
        panel.plot(
            counts,
            [count / counts[0] for count in counts],
            color=MUTED,
            linestyle="--",
            linewidth=1,
            label="ideal",
        )
        for name in [n for n in ["floor", *reversed(shown.names)] if n in here]:
            marks = markers(name, shown.names, 4.5)
            if name == "floor":
                marks.update(marker="d", label=f"floor ({FLOORS[operation]})")
            panel.plot(list(here[name]), list(here[name].values()), linewidth=1.3, **marks)
        logarithmic(panel.xaxis, counts[0] / 1.15, counts[-1] * 1.15)
        panel.set_xticks(counts[:: max(1, math.ceil(len(counts) / 8))])
        logarithmic(panel.yaxis, low, high)
        panel.set_yticks([2.0**i for i in range(20) if low <= 2**i <= high])
        panel.grid()
    for panel in lowest(panels):
        panel.set_xlabel("threads (log.)", fontsize=8.5)
    made.supylabel(f"speed-up over {_threads(counts[0])} (logarithmic)", fontsize=9)
    legend(made, panels)
    best = max(
        (by[shown.ours][max(by[shown.ours])], w)
        for w in workloads
        if shown.ours in (by := shown.scaling[w, operation])
    )
    return Picture(
        "threads",
        "Speed-up by threads",
        f"A panel for each workload: speed-up of {TITLES[operation]} over {_threads(counts[0])}, "
        f"for {listed(str(c) for c in counts)} threads, with the ideal line. At its best "
        f"{shown.ours} is {ratio(best[0])} times as fast, on {best[1]}.",
        f"Speed-up of {TITLES[operation]} over {_threads(counts[0])}: closer to the dashed line is "
        "better. Memory is the limit where the copy leaves that line too.",
        made,
    )


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
