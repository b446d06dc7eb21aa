"""Markers of candidates, and figures of several panels, for the other modules of this folder."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

from pyce._bench.report.style import PAPER, SHADE, figure, look, words
from pyce._bench.report.summaries import FLOORS, TITLES, Shown

WIDTH = 10.0  # inches of every picture


def markers(name: str, names: list[str], size: float = 6.5) -> dict[str, Any]:
    color, marker = look(name, names)
    return {
        "marker": marker,
        "markersize": size,
        "color": color,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.5,
        "label": words(name),
    }


def floors(shown: Shown) -> str:
    return " or ".join(dict.fromkeys(FLOORS[operation] for operation in shown.operations))


def workload_lines(
    shown: Shown, operations: list[str], height: float, counts: list[int] | None = None
) -> tuple[Any, list[Any]]:
    """A figure with a panel for each operation and a line for each workload.

    `counts` gives the height of each line; the default is 1.
    """
    counts = counts or [1] * len(shown.workloads)
    ends = [0, *accumulate(counts)]
    made = figure(WIDTH, 1.6 + height * ends[-1])
    panels = list(made.subplots(1, len(operations), sharey=True, squeeze=False)[0])
    middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
    panels[0].set_yticks(middles, [words(name) for name in shown.workloads])
    panels[0].set_ylim(ends[-1] - 0.4, -0.6)
    for panel, operation in zip(panels, operations, strict=True):
        panel.set_title(TITLES[operation])
        panel.tick_params(axis="y", length=0)
        for above, below in list(pairwise(ends))[::2]:
            panel.axhspan(above - 0.5, below - 0.5, color=SHADE, linewidth=0, zorder=0)
    return made, panels


def grid(titles: list[str], height: float = 1.85) -> tuple[Any, list[Any]]:
    """A figure with a small panel for each title, three or four in a line."""
    columns = min(len(titles), 4 if len(titles) > 3 else 3)
    lines = math.ceil(len(titles) / columns)
    made = figure(WIDTH, 1.1 + height * lines)
    panels = list(made.subplots(lines, columns, squeeze=False).flat)
    for panel, name in zip(panels, titles, strict=False):
        panel.set_title(words(name, 27), fontsize=8.5)
        panel.tick_params(labelsize=7.5)
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    return made, panels[: len(titles)]


def lowest(panels: list[Any]) -> list[Any]:
    last = panels[-1].get_subplotspec().rowspan.start
    return [panel for panel in panels if panel.get_subplotspec().rowspan.start == last]
