"""Throughput against the size of the logits: a roofline plot, with the floor as the roof."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from pyce._bench.formats import listed, memory
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import WIDTH, floors, markers
from pyce._bench.report.style import INK, MUTED, PAPER, SHADE, figure, legend, logarithmic, words
from pyce._bench.report.summaries import FLOORS, TITLES, Shown


def roofline(shown: Shown) -> Picture:
    """A panel for each operation, with a line for each candidate and one for the floor."""
    operations = shown.operations
    about = {workload: next(iter(_items(shown, workload))).about for workload in shown.workloads}
    size = {w: a["elements"] * _itemsize(a) for w, a in about.items()}
    usual = [w for w, a in about.items() if a["dtype"] == "float32" and a["target"] == "index"]
    usual = sorted(usual or size, key=lambda w: size[w])
    made = figure(WIDTH, 1.3 + 3.0 * len(operations))
    panels = made.subplots(len(operations), 1, sharex=True, squeeze=False)[:, 0]
    for panel, operation in zip(panels, operations, strict=True):
        _roof(panel, shown, operation, size, usual)
    logarithmic(panels[-1].xaxis, min(size.values()) / 1.8, max(size.values()) * 1.8)
    panels[-1].xaxis.set_major_locator(_powers_of_two(size.values()))
    panels[-1].xaxis.set_major_formatter(lambda value, _: memory(value))
    panels[-1].set_xlabel("size of the logits (logarithmic)")
    _name_sizes(panels[0], size, usual)
    legend(made, panels, 6)
    most = max(i.rate for here in shown.places.values() for i in here.values()) / 1e9
    return Picture(
        "roofline",
        "Throughput against size",
        f"Throughput in gigabytes a second against the size of the logits, both logarithmic, for "
        f"{listed(TITLES[o] for o in operations)}, with a line for each backend and library "
        f"under the line of the floor. The highest is {most:.0f} GB/s.",
        "Bytes that must be moved, per second: higher is better. The thick line is the floor: a "
        "copy (for the loss alone, a read) of the same buffers. Only operations with probabilities "
        "as targets can be above it, because the floor does not read the targets. Lines join the "
        "float32 workloads with index targets; small hollow markers are other dtypes and targets. "
        "Dotted lines: the arrays fill a cache of one processor; dashed lines: the bandwidth of "
        "memory.",
        made,
    )


def _items(shown: Shown, workload: str) -> Iterable[Any]:
    for (name, _), here in shown.places.items():
        if name == workload:
            yield from here.values()


def _itemsize(about: dict[str, Any]) -> int:
    return {"float16": 2, "bfloat16": 2, "float64": 8}.get(about["dtype"], 4)


def _powers_of_two(sizes: Iterable[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    sizes = list(sizes)
    low, high = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    step = max(1, math.ceil((high - low) / 9))
    return FixedLocator([2.0**i for i in range(low, high + 1, step)])


def _roof(
    panel: Any, shown: Shown, operation: str, size: dict[str, float], usual: list[str]
) -> None:
    def points(name: str, workloads: Iterable[str]) -> tuple[list[float], list[float]]:
        found = [
            (size[w], shown.places[w, operation][name].rate / 1e9)
            for w in workloads
            if name in shown.places.get((w, operation), {})
        ]
        return [x for x, _ in found], [y for _, y in found]

    rates = [
        item.rate / 1e9
        for (_, done), here in shown.places.items()
        if done == operation
        for item in here.values()
    ]
    low, high = min(rates) / 1.6, max(rates) * 2
    logarithmic(panel.yaxis, low, high)
    roof = _by_size(points("floor", shown.workloads))
    if roof[0]:
        panel.fill_between(roof[0], roof[1], [high] * len(roof[0]), color=SHADE, linewidth=0)
        panel.plot(*roof, color=INK, linewidth=2.2, label=f"floor ({floors(shown)})", zorder=3)
    for name in shown.names:
        marks = markers(name, shown.names)
        panel.plot(*points(name, usual), linewidth=1.1, zorder=4, **marks)
        others = points(name, [w for w in shown.workloads if w not in usual])
        marks.update(markersize=4, markerfacecolor="none", markeredgecolor=marks["color"])
        marks.update(label=None, markeredgewidth=0.9)
        panel.plot(*others, linestyle="none", zorder=4, **marks)
    _caches(panel, shown, operation)
    memory = (shown.run.machine.get("bandwidth") or {}).get(FLOORS[operation], 0) / 1e9
    if low < memory < high:
        panel.axhline(memory, color=MUTED, linestyle="--", linewidth=1, zorder=2)
        _halo(
            panel.text(
                0.005,
                memory,
                f" memory {memory:.0f} GB/s",
                transform=panel.get_yaxis_transform(),
                va="bottom",
                color=MUTED,
                fontsize=8,
            )
        )
    panel.grid(axis="y")
    panel.set_ylabel("GB/s (logarithmic)")
    panel.set_title(f"{TITLES[operation]}; floor: {FLOORS[operation]}", loc="left", pad=6)


def _by_size(points: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    """One point for each size: the median of all workloads of this size."""
    rates: dict[float, list[float]] = {}
    for size, rate in zip(*points, strict=True):
        rates.setdefault(size, []).append(rate)
    sizes = sorted(rates)
    return sizes, [statistics.median(rates[size]) for size in sizes]


def _caches(panel: Any, shown: Shown, operation: str) -> None:
    """Mark the sizes at which the logits, with the gradient if it is written, fill a cache."""
    arrays = 1 if operation == "forward" else 2
    for level, count in (shown.run.machine.get("caches") or {}).items():
        if level in ("L2", "L3"):
            panel.axvline(count / arrays, color=MUTED, linestyle=":", linewidth=1.2, zorder=1)
            _halo(
                panel.text(
                    count / arrays,
                    0.03,
                    f" {words(level)} full",
                    transform=panel.get_xaxis_transform(),
                    color=MUTED,
                    fontsize=8,
                    clip_on=True,
                )
            )


def _halo(text: Any) -> None:
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])


def _name_sizes(panel: Any, size: dict[str, float], usual: list[str]) -> None:
    """Name the workloads above the first panel; neighbours that are too close share a label."""
    groups: list[list[str]] = []
    wide = math.log10(max(size.values()) / min(size.values()) * 3.3) / 42
    for name in usual:
        if groups and math.log10(size[name] / size[groups[-1][0]]) < wide:
            groups[-1].append(name)
        else:
            groups.append([name])
    for group in groups:
        more = f" + {len(group) - 1}" if len(group) > 1 else ""
        panel.text(
            size[group[0]],
            1.13,
            words(group[0], 24) + more,
            transform=panel.get_xaxis_transform(),
            rotation=35,
            fontsize=7,
            color=MUTED,
            va="bottom",
            rotation_mode="anchor",
        )
