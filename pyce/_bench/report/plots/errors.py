"""The errors that check found, in units in the last place (ULP)."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

from pyce._bench.formats import power_of_ten
from pyce._bench.report.check_files import KINDS, Check, Regimes, candidates, label
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import WIDTH
from pyce._bench.report.style import INK, SHADE, figure, legend, look, words
from pyce._check.findings import error_text


def histogram(check: Check, regimes: Regimes, dtype: str, file: str) -> Picture:
    """The distribution of the errors over all regimes, as bars."""
    names, edges = candidates(regimes), check.edges
    made = figure(WIDTH, 6.6)
    panels = list(made.subplots(2, 1))
    labels = [label(name) for name in names]
    width = 0.84 / max(1, len(names))
    beyond = {}
    for panel, kind in zip(panels, KINDS, strict=True):
        bound = bisect_left(edges, check.limit(kind)) + 1  # the bins before are within it
        lowest = 1.0
        for number, name in enumerate(names):
            some = [
                by[name][kind]["histogram"] for by in regimes.values() if kind in by.get(name, {})
            ]
            counts = [sum(column) for column in zip(*some, strict=True)]
            total = max(1, sum(counts))
            beyond[name, kind] = sum(counts[bound:]) / total
            parts = [count / total for count in counts]
            lowest = min([lowest, *(part for part in parts if part)])
            at = [i - 0.42 + width * (number + 0.5) for i in range(len(edges))]
            color, _ = look(labels[number], labels)
            panel.bar(at, parts, width * 0.92, color=color, label=words(labels[number]))
        panel.axvline(bound - 0.5, color=INK, linewidth=2)
        panel.text(
            bound - 0.42,
            0.97,
            f"promised: at most {check.limit(kind):g} ULP",
            transform=panel.get_xaxis_transform(),
            va="top",
        )
        ticks = ["nearest\nnumber"]
        for low, high in pairwise(edges):
            ticks.append(
                f"> {power_of_ten(low)}" if math.isinf(high) else f"≤ {power_of_ten(high)}"
            )
        panel.set_xticks(range(len(edges)), ticks, fontsize=8)
        panel.set_yscale("log")
        panel.set_ylim(lowest / 3, 2)
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(lambda value, _: _percent(value))
        panel.set_ylabel("part of the results (logarithmic)")
        panel.set_title(f"{kind}, {dtype}")
        panel.grid(axis="y")
    panels[-1].set_xlabel("error in ULP")
    legend(made, panels)
    said = ", ".join(
        f"{label(name)} {_percent(max(beyond[name, kind] for kind in KINDS))}" for name in names
    )
    return Picture(
        file,
        f"Errors, {dtype}",
        f"Bars: the part of the losses and gradients in {dtype} with each error in units in the "
        f"last place, for each backend and library. Beyond the promised error: {said}.",
        "Distribution of the errors against exact results, over all regimes. Results within ½ ULP "
        "are correctly rounded.",
        made,
    )


def _percent(value: float) -> str:
    if value == 0:
        return "none"
    return f"{100 * value:.9f}".rstrip("0").rstrip(".") + " %"


def largest(check: Check, regimes: Regimes, dtype: str, file: str) -> Picture:
    """The largest error of each regime."""
    names = candidates(regimes)
    labels = [label(name) for name in names]
    made = figure(WIDTH, 1.5 + 0.34 * len(regimes))
    panels = list(made.subplots(1, 2, sharey=True))
    apart = 0.6 / max(1, len(names) - 1)
    worst = {}
    for panel, kind in zip(panels, KINDS, strict=True):
        for number, name in enumerate(names):
            found = [
                (value, line - 0.3 + apart * number)
                for line, by in enumerate(regimes.values())
                if (value := by.get(name, {}).get(kind, {}).get("max")) is not None
            ]
            worst[name, kind] = max((value for value, _ in found), default=0.0)
            color, marker = look(labels[number], labels)
            panel.plot(
                [min(max(value, 0.05), 1e17) for value, _ in found],
                [y for _, y in found],
                linestyle="none",
                marker=marker,
                markersize=6,
                color=color,
                markeredgewidth=0,
                label=words(labels[number]),
            )
        for line, by in enumerate(regimes.values()):
            if all(kinds.get(kind, {}).get("max") is None for kinds in by.values()):
                panel.text(
                    0.5,
                    line,
                    "all subnormal",
                    va="center",
                    fontsize=8,
                    transform=panel.get_yaxis_transform(),
                )
        panel.axvline(check.limit(kind), color=INK, linewidth=2, zorder=1, label="promised at most")
        panel.set_xscale("log")
        panel.set_xlim(left=0.04)
        panel.minorticks_off()
        panel.xaxis.set_major_formatter(lambda value, _: power_of_ten(value))
        panel.set_yticks(range(len(regimes)), [words(check.title(name)) for name in regimes])
        panel.set_ylim(len(regimes) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel("largest error in ULP (logarithmic)")
        panel.set_title(f"{kind}, {dtype}")
        panel.grid(axis="x")
        for line in range(0, len(regimes), 2):
            panel.axhspan(line - 0.5, line + 0.5, color=SHADE, linewidth=0, zorder=0)
    legend(made, panels)
    said = "; ".join(
        f"{label(name)} {' and '.join(error_text(worst[name, kind]) for kind in KINDS)}"
        for name in names
    )
    return Picture(
        file,
        f"Largest errors, {dtype}",
        f"Points for each regime: the largest error of loss and gradient in {dtype}, in units in "
        f"the last place, for each backend and library. The largest over all regimes: {said}.",
        "The largest error of each regime: further left is better; the promised errors are left of "
        "the thick line.",
        made,
    )
