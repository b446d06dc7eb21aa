"""The pictures of what bench measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

from pyce._bench.report.figures import FLOORS, TITLES, History, Shown
from pyce._bench.report.looks import (
    FASTER,
    GRID,
    INK,
    MUTED,
    PAPER,
    SHADE,
    SLOWER,
    Picture,
    drawing,
    figure,
    legend,
    logarithmic,
    look,
    sized,
    words,
)
from pyce._bench.terminal import ratio, readable

WIDTH = 10.0  # inches of every picture


def draw(shown: Shown) -> list[Picture]:
    """Those that the run has figures for."""
    made: list[Picture] = []
    with drawing():
        if shown.places:
            made += [roofline(shown), over_floor(shown), *speed_ups(shown)]
        if len(shown.thread_counts) > 2:
            made += [scaling_curves(shown)]
        elif shown.thread_counts:
            made += [scaling_pairs(shown)]
        if shown.training:
            made += [digits(shown)]
    return made


def draw_history(histories: Iterable[History]) -> dict[str, list[Picture]]:
    """{kind of machine: a picture for each backend}, where there is more than one run."""
    made = {}
    with drawing():
        for number, history in enumerate(histories, start=1):
            if len(history.runs) > 1:
                drawn = (
                    history_of(history, name, f"history-{number}-{place}")
                    for place, name in enumerate(history.backends, start=1)
                )
                made[history.kind] = [picture for picture in drawn if picture]
    return made


def _markers(name: str, names: list[str], size: float = 6.5) -> dict[str, Any]:
    color, marker = look(name, names)
    return {
        "marker": marker,
        "markersize": size,
        "color": color,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.5,
        "label": words(name),
    }


# ---------------------------------------------------------------------------------------------
# Roofline


def roofline(shown: Shown) -> Picture:
    """Throughput against size: a panel for each operation, the floor as the roof."""
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
    panels[-1].xaxis.set_major_formatter(lambda value, _: sized(value))
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
        "Bytes that must be moved, per second: higher is better. The thick line is the floor, what "
        "a copy (or, for the loss alone, a read) of the same buffers reaches: nothing can be in "
        "the grey above it for long, but where targets are probabilities: these must be read, too, "
        "and the floor does not. Lines join the float32 workloads with index targets; small hollow "
        "marks are other dtypes and targets. Dotted: where what is touched fills a cache of one "
        "processor; dashed: what memory alone gives.",
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
        panel.plot(*roof, color=INK, linewidth=2.2, label=f"floor ({_floors(shown)})", zorder=3)
    for name in shown.names:
        marks = _markers(name, shown.names)
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
    """One point for each size: a copy does not know what it copies."""
    rates: dict[float, list[float]] = {}
    for size, rate in zip(*points, strict=True):
        rates.setdefault(size, []).append(rate)
    sizes = sorted(rates)
    return sizes, [statistics.median(rates[size]) for size in sizes]


def _floors(shown: Shown) -> str:
    return " or ".join(dict.fromkeys(FLOORS[operation] for operation in shown.operations))


def _caches(panel: Any, shown: Shown, operation: str) -> None:
    """Lines where logits, and the gradient with them, fill a cache."""
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
    """The workloads above the uppermost panel; one name for those too near to each other."""
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


# ---------------------------------------------------------------------------------------------
# One line for each workload


def _lines(
    shown: Shown, operations: list[str], height: float, counts: list[int] | None = None
) -> tuple[Any, list[Any]]:
    """A figure with a panel for each operation and a line for each workload.

    A line is 1 high, or what `counts` says.
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


def over_floor(shown: Shown) -> Picture:
    """Points: time over the floor's, the limit."""
    made, panels = _lines(shown, shown.operations, 0.34)
    step = 0.56 / max(1, len(shown.names) - 1)  # apart, where they take equally long
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
            marks = _markers(name, shown.names, 6.5)
            marks["zorder"] = 9 - number  # ours on top
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
        "How far from the limit",
        f"Points for each workload and operation: how many times as long as the floor each backend "
        f"and library takes. The nearest to the floor takes {ratio(best)} times as long; "
        f"{len(lost)} are ringed because another is faster than {shown.ours}.",
        "Time over the floor's time on the same buffers, in the same turns: further left is "
        "better, 1 is the limit. A ring: somebody else is faster than "
        f"{shown.ours} there.",
        made,
    )


def _columns(pairs: Iterable[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    pairs = list(pairs)
    return [a for a, _ in pairs], [b for _, b in pairs]


def speed_ups(shown: Shown) -> list[Picture]:
    """Bars from 1: how many times as fast as each of the others ours is; to the left, it loses."""
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
    if peers:  # those have no backward alone, which would be a panel for NumPy's alone
        operations = [o for o in operations if o != "backward"]
    if not operations:
        return []
    bars_of = [
        [name for name in others if any(shown.ratio((w, o), name) for o in operations)]
        for w in shown.workloads
    ]
    counts = [len(names) + 1 for names in bars_of]  # a bar's height between two workloads
    above = [0, *accumulate(counts)]
    made, panels = _lines(shown, operations, 0.125, counts)
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
            # Not the bars' own: the first may be hatched.
            marks = {"marker": "s", "markersize": 8, "color": color, "label": words(name)}
            panel.plot([], [], linestyle="none", **marks)
            for bar, (value, y) in zip(bars, found, strict=True):
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
        panel.axvline(1, color=INK, linewidth=1.5, zorder=3)
        panel.set_xlabel(f"time of the other / time of {words(shown.ours, 20)} (logarithmic)")
    for panel in panels:
        logarithmic(panel.xaxis, min(0.8, min(values) / 1.15), max(values) * 2.2, 6)
        panel.grid(axis="x")
    legend(made, panels)
    picture = Picture(
        "speed-up",
        f"{shown.ours} beside the others",
        f"Bars for each workload: how many times as fast as {listed(others)} {shown.ours} is, "
        f"from {ratio(min(values))} to {ratio(max(values))} times. {lost} of {len(values)} bars "
        "point left of 1, where it is slower.",
        f"How many times as long as {shown.ours} the others take. Bars to the right of 1: "
        f"{shown.ours} is faster; hatched bars to the left, in bold: it is slower.",
        made,
    )
    return [picture]


# ---------------------------------------------------------------------------------------------
# Threads


def scaling_pairs(shown: Shown) -> Picture:
    """For two numbers of threads: what the more of them bring, a line for each workload."""
    few, many = (*shown.thread_counts, *shown.thread_counts)[:2]
    operations = [o for o in shown.operations if any(p[1] == o for p in shown.scaling)]
    made, panels = _lines(shown, operations, 0.36)
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
            marks = _markers(name, shown.names, 6)
            if name == "floor":
                marks.update(marker="d", label=f"floor ({_floors(shown)})")
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
        "What threads bring",
        f"For each workload, how many times as fast {listed(names)} are with {many} threads as "
        f"with {few}: from {ratio(min(values))} to {ratio(max(values))}; {many / few:g} would be "
        "ideal.",
        f"How many times as fast {many} threads are as {few}: further right is better, dashed is "
        "ideal. Where a copy gains nothing either, memory is the limit; small work is not shared "
        "at all.",
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
    made, panels = _grid(workloads)
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
            marks = _markers(name, shown.names, 4.5)
            if name == "floor":
                marks.update(marker="d", label=f"floor ({FLOORS[operation]})")
            panel.plot(list(here[name]), list(here[name].values()), linewidth=1.3, **marks)
        logarithmic(panel.xaxis, counts[0] / 1.15, counts[-1] * 1.15)
        panel.set_xticks(counts[:: max(1, math.ceil(len(counts) / 8))])
        logarithmic(panel.yaxis, low, high)
        panel.set_yticks([2.0**i for i in range(20) if low <= 2**i <= high])
        panel.grid()
    for panel in _lowest(panels):
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
        "What threads bring",
        f"A panel for each workload: speed-up of {TITLES[operation]} over {_threads(counts[0])}, "
        f"for {listed(str(c) for c in counts)} threads, with the ideal line. At its best "
        f"{shown.ours} is {ratio(best[0])} times as fast, on {best[1]}.",
        f"Speed-up of {TITLES[operation]} over {_threads(counts[0])}: nearer to the dashed line is "
        "better. Where the copy, too, leaves that line, memory is the limit.",
        made,
    )


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _grid(titles: list[str], height: float = 1.85) -> tuple[Any, list[Any]]:
    """Small panels, three or four in a line, as many as titles."""
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


def _lowest(panels: list[Any]) -> list[Any]:
    last = panels[-1].get_subplotspec().rowspan.start
    return [panel for panel in panels if panel.get_subplotspec().rowspan.start == last]


# ---------------------------------------------------------------------------------------------
# Digits


def digits(shown: Shown) -> Picture:
    """The loss of every training step, and how far each backend's is from the reference's."""
    made = figure(WIDTH, 4)
    left, right = made.subplots(1, 2)
    items = shown.training
    reference = items.get("numpy")
    # In this order, so that each can be seen over the one before.
    styles = {"numpy": ("-", 6), "numba": ("--", 3.5), "c": (":", 2)}
    names = [f"pyce {backend}" for backend in items]
    for backend in [b for b in styles if b in items] + [b for b in items if b not in styles]:
        item = items[backend]
        style, width = styles.get(backend, ("-.", 2))
        color, marker = look(f"pyce {backend}", names)
        label = f"{words(backend)}: {readable(item.seconds)}, {item.about['accuracy']:.1%} right"
        losses = item.about["losses"]
        left.plot(losses, style, linewidth=width, color=color, label=label)
        if reference and item is not reference:
            pairs = zip(losses, reference.about["losses"], strict=False)
            apart = [abs(a - b) / b for a, b in pairs]
            right.plot(
                apart,
                linestyle="none",
                marker=marker,
                markersize=2.2,
                markeredgewidth=0,
                color=color,
                label=words(backend),
            )
    left.set_ylabel("training loss (nats)")
    left.set_title("loss, training time, held-out accuracy")
    right.set_ylabel("relative difference of the loss")
    right.set_title("difference from the NumPy reference")
    right.ticklabel_format(axis="y", style="plain")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.grid()
        panel.set_ylim(0, panel.get_ylim()[1] * 1.2)  # room for the legend
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="upper right", markerscale=2.5)
    text = "; ".join(
        f"{name} took {readable(item.seconds)} and got {item.about['accuracy']:.1%} right"
        for name, item in items.items()
    )
    return Picture(
        "digits",
        "Training on digits",
        f"Training loss by step, one curve for each backend, on top of each other; {text}.",
        "Logistic regression on scikit-learn's digits. The curves lie on each other, as they "
        "should; at the right, what is between them.",
        made,
    )


# ---------------------------------------------------------------------------------------------
# History

# Operation: colour, marker, line.
_OPERATIONS = {
    "fused": ("#0072b2", "o", "-"),
    "forward": ("#e69f00", "s", "--"),
    "backward": ("#009e73", "^", ":"),
}


def history_of(history: History, name: str, file: str) -> Picture | None:
    """A small panel for each workload: time over the floor's, run after run, of one backend."""
    workloads = list(dict.fromkeys(w for w, o in history.places if history.series((w, o), name)))
    if not workloads:
        return None
    made, panels = _grid(workloads, 1.9)
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
        f"A panel for each workload: time over the floor's of {name} over {len(history.runs)} "
        f"runs, with intervals. Points that are marked: {slower} slower than the run before, "
        f"{faster} faster.",
        "Medians of time over the floor's and their 95 % intervals (the range, where a run has "
        "fewer than six blocks). A triangle up: slower than the run before, beyond noise by a "
        "test corrected for how many are compared; a triangle down: faster.",
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
    """So wide that noise does not look like news, with room for the marks."""
    low, high = min(ends) / 1.2, max(ends) * 1.2
    wider = max(1.0, 2.0 / (high / low)) ** 0.5
    logarithmic(panel.yaxis, low / wider, high * wider, 5)


def _thinned(count: int, most: int = 12) -> range:
    return range(0, count, max(1, math.ceil(count / most)))


def _label_runs(panels: list[Any], labels: list[str]) -> None:
    """Names of the runs under the lowest panels."""
    some = _thinned(len(labels))
    for panel in _lowest(panels):
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


def listed(names: Iterable[str], last: str = "and") -> str:
    some = list(names)
    return f" {last} ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)
