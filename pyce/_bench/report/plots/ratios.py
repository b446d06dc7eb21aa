"""Ratios of times: over the floor, and of other candidates over the preferred backend."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from pyce._bench.formats import listed, ratio
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import markers, workload_lines
from pyce._bench.report.style import INK, SLOWER, legend, logarithmic, look, words
from pyce._bench.report.summaries import Shown


def over_floor(shown: Shown) -> Picture:
    """Time over the floor's: a point for each candidate, a line for each workload."""
    made, panels = workload_lines(shown, shown.operations, 0.34)
    step = 0.56 / max(1, len(shown.names) - 1)  # so that equal times do not overlap
    offset = {name: step * number - 0.28 for number, name in enumerate(shown.names)}
    values = [v for p in shown.places for n in shown.names if (v := shown.over_floor(p, n))]
    lost = {(loss.workload, loss.operation) for loss in shown.losses}
    for panel, operation in zip(panels, shown.operations, strict=True):
        for number, name in enumerate(shown.names):
            found = [
                (value, line + offset[name])
                for line, workload in enumerate(shown.workloads)
                if (value := shown.over_floor((workload, operation), name))
            ]
            marks = markers(name, shown.names, 6.5)
            marks["zorder"] = 9 - number  # the preferred backend on top
            panel.plot(*_columns(found), linestyle="none", **marks)
        where = [
            (shown.over_floor((workload, operation), shown.ours), line + offset[shown.ours])
            for line, workload in enumerate(shown.workloads)
            if (workload, operation) in lost
        ]
        panel.plot(
            *_columns(where),
            linestyle="none",
            marker="o",
            markersize=12,
            color="none",
            markeredgecolor=SLOWER,
            markeredgewidth=1.6,
            label=f"another is faster than {words(shown.ours)}",
        )
        panel.axvline(1, color=INK, linewidth=2, label="floor", zorder=1)
        if values:
            logarithmic(panel.xaxis, min(0.9, min(values) / 1.2), max(values) * 1.3, 5)
        panel.grid(axis="x")
        panel.set_xlabel("time / floor's time (log.)")
    legend(made, panels)
    best = min(values, default=1)
    return Picture(
        "over-floor",
        "Time over the floor",
        f"Points for each workload and operation: the time of each backend and library over the "
        f"floor's time. The smallest ratio is {ratio(best)}; "
        f"{len(lost)} are ringed because another is faster than {shown.ours}.",
        "Time over the floor's time on the same buffers, in the same rounds: further left is "
        "better, 1 is the limit. A ring marks where another candidate is faster than "
        f"{shown.ours}.",
        made,
    )


def _columns(pairs: Iterable[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    pairs = list(pairs)
    return [a for a, _ in pairs], [b for _, b in pairs]


def _compared(shown: Shown) -> tuple[list[str], list[str]]:
    """The candidates that `speed_ups` compares with ours, and the operations with a panel."""
    others = [
        name
        for name in shown.names
        if name != shown.ours
        and any(
            here[name].about["kind"] == "peer" or here[name].about["backend"] == "numpy"
            for here in shown.places.values()
            if name in here
        )
    ]
    operations = [
        operation
        for operation in shown.operations
        if any(shown.ratio((w, operation), name) for w in shown.workloads for name in others)
    ]
    peers = [name for name in others if not name.startswith("pyce ")]
    if peers:  # other libraries have no separate backward: that panel would show NumPy only
        operations = [o for o in operations if o != "backward"]
    return others, operations


def _label_bar(panel: Any, bar: Any, value: float, y: float) -> None:
    """Write the ratio behind its bar; one below 1 is hatched, and its number bold."""
    if value < 1:
        bar.set(hatch="//////", edgecolor=INK, linewidth=0.6)
    panel.text(
        max(value, 1),
        y,
        f" {ratio(value)}" + (" slower" if value < 1 else ""),
        va="center_baseline",
        fontsize=6.5,
        fontweight="bold" if value < 1 else "normal",
        color=SLOWER if value < 1 else INK,
        zorder=3,
    )


def speed_ups(shown: Shown) -> list[Picture]:
    """Times of the others over ours: bars to the right of 1 if ours is faster, else to the left."""
    others, operations = _compared(shown)
    if not operations:
        return []
    bars_of = [
        [name for name in others if any(shown.ratio((w, o), name) for o in operations)]
        for w in shown.workloads
    ]
    counts = [len(names) + 1 for names in bars_of]  # with the height of a bar between workloads
    above = [0, *accumulate(counts)]
    made, panels = workload_lines(shown, operations, 0.125, counts)
    values, lost = [], 0
    for panel, operation in zip(panels, operations, strict=True):
        for name in others:
            found = [
                (value, above[line] + bars_of[line].index(name) + 0.5)
                for line, workload in enumerate(shown.workloads)
                if (value := shown.ratio((workload, operation), name))
            ]
            lost += sum(value < 1 for value, _ in found)
            values += [value for value, _ in found]
            color, _ = look(name, shown.names)
            bars = panel.barh(
                [y for _, y in found],
                [value - 1 for value, _ in found],
                0.92,
                left=1,
                color=color,
                zorder=2,
            )
            # The legend must not show the first bar, which may be hatched.
            marks = {"marker": "s", "markersize": 8, "color": color, "label": words(name)}
            panel.plot([], [], linestyle="none", **marks)
            for bar, (value, y) in zip(bars, found, strict=True):
                _label_bar(panel, bar, value, y)
        panel.axvline(1, color=INK, linewidth=1.5, zorder=3)
        panel.set_xlabel(f"time of the other / time of {words(shown.ours, 20)} (log.)")
    for panel in panels:
        logarithmic(panel.xaxis, min(0.8, min(values) / 1.15), max(values) * 2.2, 6)
        panel.grid(axis="x")
    legend(made, panels)
    picture = Picture(
        "speed-up",
        f"{shown.ours} and the others",
        f"Bars for each workload: time of {listed(others)} over the time of {shown.ours}, "
        f"from {ratio(min(values))} to {ratio(max(values))}. {lost} of {len(values)} bars "
        "are to the left of 1, where it is slower.",
        f"Time of the others over the time of {shown.ours}. Bars to the right of 1: {shown.ours} "
        "is faster; hatched bars to the left, with bold numbers: it is slower.",
        made,
    )
    return [picture]
