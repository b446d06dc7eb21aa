"""Times over the floor's from run to run, with the changes marked."""

from __future__ import annotations

import math
from typing import Any

from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import grid, lowest
from pyce._bench.report.style import FASTER, GRID, PAPER, SLOWER, logarithmic, words
from pyce._bench.report.summaries import TITLES, History

# Operation: colour, marker, line.
_OPERATIONS = {
    "fused": ("#0072b2", "o", "-"),
    "forward": ("#e69f00", "s", "--"),
    "backward": ("#009e73", "^", ":"),
}


def history_of(history: History, name: str, file: str) -> Picture | None:
    """Time over the floor's of one backend in every run: a small panel for each workload."""
    workloads = list(dict.fromkeys(w for w, o in history.places if history.series((w, o), name)))
    if not workloads:
        return None
    made, panels = grid(workloads, 1.9)
    slower = faster = 0
    for panel, workload in zip(panels, workloads, strict=True):
        ends = []
        for operation, (color, marker, line) in _OPERATIONS.items():
            place = workload, operation
            series = history.series(place, name)
            if not series:
                continue
            ends += [end for one in series.values() for end in one]
            panel.errorbar(
                list(series),
                [one.middle for one in series.values()],
                [
                    [one.middle - one.low for one in series.values()],
                    [one.high - one.middle for one in series.values()],
                ],
                color=color,
                marker=marker,
                linestyle=line,
                markersize=4.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.5,
                linewidth=1.2,
                elinewidth=1.2,
                label=TITLES[operation],
            )
            for number, verdict in history.verdicts(place, name).items():
                slower += verdict == "slower"
                faster += verdict == "faster"
                _mark(panel, number, series[number].middle, verdict)
        _limits(panel, ends)
        panel.set_xlim(-0.4, len(history.runs) - 0.6)
        panel.set_xticks(_thinned(len(history.runs)), [])
        panel.grid(color=GRID)
    _label_runs(panels, history.labels)
    made.supylabel("time / floor's time (logarithmic); lower is better", fontsize=9)
    _history_legend(made, panels)
    return Picture(
        file,
        f"{name}, run by run",
        f"A panel for each workload: time over the floor's of {name} in {len(history.runs)} "
        f"runs, with intervals. Points that are marked: {slower} slower than the run before, "
        f"{faster} faster.",
        "Medians of the time over the floor's and their 95 % intervals (the range if a run has "
        "fewer than six blocks). A triangle up: significantly slower than the run before, by a "
        "test corrected for the number of comparisons; a triangle down: faster.",
        made,
        aside=name != history.backends[0],
    )


def _mark(panel: Any, number: int, at: float, verdict: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    up = verdict == "slower"
    inches = ScaledTranslation(0, (11 if up else -11) / 72, panel.figure.dpi_scale_trans)
    panel.plot(
        [number],
        [at],
        marker="^" if up else "v",
        markersize=7.5,
        color=SLOWER if up else FASTER,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        linestyle="none",
        transform=panel.transData + inches,
        zorder=5,
        clip_on=False,
    )


def _limits(panel: Any, ends: list[float]) -> None:
    """Set the limits wide enough that noise looks small, with room for the triangles."""
    low, high = min(ends) / 1.2, max(ends) * 1.2
    wider = max(1.0, 2.0 / (high / low)) ** 0.5
    logarithmic(panel.yaxis, low / wider, high * wider, 5)


def _thinned(count: int, most: int = 12) -> range:
    return range(0, count, max(1, math.ceil(count / most)))


def _label_runs(panels: list[Any], labels: list[str]) -> None:
    """Label the runs below the lowest panels."""
    some = _thinned(len(labels))
    for panel in lowest(panels):
        panel.set_xticks(some, [words(labels[i], 20) for i in some], rotation=90, fontsize=7)


def _history_legend(made: Any, panels: list[Any]) -> None:
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for label, marker, color in (
        ("slower than before", "^", SLOWER),
        ("faster than before", "v", FASTER),
    ):
        handles[label] = Line2D([], [], linestyle="none", marker=marker, color=color, markersize=7)
    made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
