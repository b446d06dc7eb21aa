"""Tables and pictures of what was measured: `python -m bench.report [--readme README.md]`.

Without arguments: bench/results/latest.json as a table, and pictures of it beside the file. With
`--readme`: puts the comparison with the peers between the markers in that file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import goals
from bench.measure import FLOOR_OF, OPERATIONS, RESULTS, readable

# Okabe and Ito's colours, told apart by the colour-blind too; the shapes say the same.
LOOKS = {"c": ("#0072B2", "o"), "numba": ("#E69F00", "s"), "numpy": ("#009E73", "^")}
OTHER_LOOK = ("#CC79A7", "D")

# {workload: {(backend, operation): {"seconds": median, **extra_info}}}
Results = dict[str, dict[tuple[str, str], dict[str, Any]]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--readme", type=Path, help="the file with the markers")
    options = parser.parse_args(arguments)
    if options.readme:
        measured = json.loads((RESULTS / "peers.json").read_text())
        replace(options.readme, "bench", peers_markdown(measured))
        return
    results = load(RESULTS / "latest.json")
    print_table(results)
    draw_with_matplotlib(lambda: draw(results))


def load(path: Path) -> Results:
    """pytest-benchmark's JSON file, by workload; the median of each item counts."""
    results: Results = {}
    for item in json.loads(path.read_text())["benchmarks"]:
        about = {"seconds": item["stats"]["median"], **item["extra_info"]}
        key = (about["backend"], about["operation"])
        results.setdefault(about["workload"], {})[key] = about
    return results


# ---------------------------------------------------------------------------------------------
# Tables


def print_table(results: Results) -> None:
    rows = []
    for items in results.values():
        for (backend, operation), about in items.items():
            floor = items.get(("floor", FLOOR_OF.get(operation, "")))
            reference = items.get(("numpy", operation))
            time = about["seconds"]
            rows.append(
                (
                    about["workload"],
                    operation,
                    about.get("how", backend),
                    readable(time),
                    f"{about['bytes'] / time / 1e9:.1f}" if "bytes" in about else "",
                    ratio(time / floor["seconds"]) if floor else "",
                    ratio(reference["seconds"] / time) if reference else "",
                )
            )
    headers = ("workload", "operation", "backend", "time", "GB/s", "x floor", "x numpy")
    show("Time over the floor: 1 is the limit. x numpy: how many times as fast", headers, rows)
    for items in results.values():
        for about in items.values():
            if "accuracy" in about:
                print(f"digits, {about['backend']}: held-out accuracy {about['accuracy']:.2%}")


def ratio(value: float) -> str:
    """Three digits, but never an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def show(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, the first column only where it changes; with rich if that is installed."""
    cells, before = [], None
    for row in rows:
        cells.append(["" if row[0] == before else row[0], *row[1:]])
        before = row[0]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in [headers, *cells]) for i in range(len(headers))]
        print(title)
        for row in [headers, *cells]:
            print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(title=title)
    figures = ("time", "GB/s", "x floor", "x numpy", "median", "99.9 %", "max")
    for header in headers:
        table.add_column(header, justify="right" if header in figures else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 112)
    console.print(table)


def peers_markdown(measured: dict[str, Any]) -> str:
    """The comparison with the peers as Markdown: a table for each operation, and how to read it."""
    records = [
        r
        for r in measured["results"]
        if r.get("target", "index") == "index" and "," not in r["candidate"]
    ]
    names = list(dict.fromkeys(r["candidate"] for r in records if r["candidate"] != "floor"))
    machine = measured["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    floor = "numpy.copyto of the logits to the gradient, on one thread"
    if machine["isa"]:
        floor = (
            "the faster of a parallel memcpy and a parallel non-temporal copy of the logits to the "
            "gradient (for the loss alone: reading the logits)"
        )
    parts = [
        f"Measured on {machine['processor']} with {machine['threads']} threads"
        + (f", {machine['isa']}, {machine['compiler']}" if machine["isa"] else "")
        + f"; {versions}. Medians of the candidates called in turn on the same buffers. "
        f"In brackets: how many times as long as {names[0] if names else 'pyce'}; bold where it "
        f"takes less. The floor is {floor}. pyce and scikit-learn write the gradient to a "
        "given array; the others return a new one."
    ]
    titles = {"fused": "Loss and gradient", "forward": "Loss alone"}
    for operation, title in titles.items():
        times: dict[str, dict[str, float]] = {}
        for r in records:
            if r["operation"] == operation:
                row = times.setdefault(f"{r['workload']}, {r['stands_for']}", {})
                row[r["candidate"]] = r["seconds"]
        parts.append(f"**{title}**\n\n" + _markdown_table(times, names))
    parts.append("**Goals**, those that are missed in bold\n\n" + _goals_table(measured))
    return "\n\n".join(parts) + "\n"


def _goals_table(measured: dict[str, Any]) -> str:
    rows = ["| goal | workload | limit | measured |", "| --- | --- | ---: | ---: |"]
    for line in goals.lines(measured):
        figure = ratio(line.figure) if line.met else f"**{ratio(line.figure)}**"
        rows.append(f"| {line.about} | {line.workload} | {line.limit} | {figure} |")
    return "\n".join(rows)


def _markdown_table(times: dict[str, dict[str, float]], names: list[str]) -> str:
    lines = [
        "| " + " | ".join(["workload", "floor", *names]) + " |",
        "| --- |" + " ---: |" * (len(names) + 1),
    ]
    for workload, row in times.items():
        cells = [workload, readable(row["floor"])]
        ours = row[names[0]]
        for name in names:
            if name not in row:
                cells.append("–")
            elif name == names[0]:
                cells.append(f"{readable(ours)} ({ratio(ours / row['floor'])} × floor)")
            else:
                times_ours = f"{ratio(row[name] / ours)} ×"
                times_ours = f"**{times_ours}**" if row[name] < ours else times_ours
                cells.append(f"{readable(row[name])} ({times_ours})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace(readme: Path, name: str, content: str) -> None:
    """Replace what stands between the markers of that name in `readme`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{readme.name} must have the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n\n{content}\n{end}{after}", encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# Pictures


def draw_with_matplotlib(drawing: Callable[[], object]) -> None:
    """Draw to files, if matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no pictures")
        return
    matplotlib.use("Agg")
    drawing()


def draw(results: Results) -> None:
    losses = {name: items for name, items in results.items() if name != "digits"}
    if losses:
        draw_throughput(losses)
        draw_over_floor(losses)
    if "digits" in results:
        draw_digits(results["digits"])


def _panels(results: Results) -> tuple[Any, Any, list[str]]:
    """A figure with one panel for each operation and one line for each workload."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3, sharey=True, figsize=(13, 2 + 0.5 * len(results)), layout="constrained"
    )
    for panel, operation in zip(axes, OPERATIONS, strict=True):
        panel.set_title(f"{operation} (floor: {FLOOR_OF[operation]})")
        panel.grid(axis="x", color="#dddddd")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(results)), list(results))
    axes[0].set_ylim(len(results) - 0.4, -0.6)
    found = {backend for items in results.values() for backend, _ in items}
    return figure, axes, [b for b in [*LOOKS, *(found - {*LOOKS, "floor"})] if b in found]


def _save(figure: Any, axes: Any, name: str) -> None:
    from matplotlib import pyplot

    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    path = RESULTS / name
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"picture: {path}")


def draw_throughput(results: Results) -> None:
    """Bars, and figures at the right: what each backend moves per second; a line: the floor."""
    figure, axes, backends = _panels(results)
    height = 0.8 / max(1, len(backends))
    for panel, operation in zip(axes, OPERATIONS, strict=True):
        margin = panel.get_yaxis_transform()  # across: 0 to 1; down: the lines
        for number, backend in enumerate(backends):
            where = [
                (line - 0.4 + height * (number + 0.5), items[backend, operation])
                for line, items in enumerate(results.values())
                if (backend, operation) in items
            ]
            rates = [about["bytes"] / about["seconds"] / 1e9 for _, about in where]
            color = LOOKS.get(backend, OTHER_LOOK)[0]
            lines = [y for y, _ in where]
            panel.barh(lines, rates, height, color=color, label=backend)
            for y, rate in zip(lines, rates, strict=True):
                panel.text(1.01, y, f"{rate:.1f}", transform=margin, va="center", fontsize=7)
        where = [
            (line, items["floor", FLOOR_OF[operation]])
            for line, items in enumerate(results.values())
            if ("floor", FLOOR_OF[operation]) in items
        ]
        panel.vlines(
            [about["bytes"] / about["seconds"] / 1e9 for _, about in where],
            [line - 0.42 for line, _ in where],
            [line + 0.42 for line, _ in where],
            color="black",
            linewidth=2,
            label="floor",
        )
        panel.set_xlabel("GB/s, read and written")
    figure.suptitle("Throughput: bytes that must be moved per second, further right is better")
    _save(figure, axes, "throughput.png")


def draw_over_floor(results: Results) -> None:
    """Points: time over the floor's time, the limit; logarithmic."""
    from matplotlib.ticker import FuncFormatter

    figure, axes, backends = _panels(results)
    for panel, operation in zip(axes, OPERATIONS, strict=True):
        for backend in backends:
            where = [
                (line, items[backend, operation]["seconds"], items["floor", FLOOR_OF[operation]])
                for line, items in enumerate(results.values())
                if (backend, operation) in items and ("floor", FLOOR_OF[operation]) in items
            ]
            color, marker = LOOKS.get(backend, OTHER_LOOK)
            panel.plot(
                [time / floor["seconds"] for _, time, floor in where],
                [line for line, _, _ in where],
                linestyle="none",
                marker=marker,
                markersize=8,
                color=color,
                label=backend,
            )
        panel.axvline(1, color="black", linewidth=2, label="floor", zorder=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlabel("time / time of the floor (logarithmic)")
    figure.suptitle("How far from the limit: time over the floor's, further left is better")
    _save(figure, axes, "over_floor.png")


def draw_digits(items: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The loss of every training step, and how far each backend's is from the reference's."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    reference = items.get(("numpy", "training"))
    # In this order, so that each can be seen over the one before.
    styles = {"numpy": ("-", 6), "numba": ("--", 3.5), "c": (":", 2)}
    found = [backend for backend, _ in items]
    for backend in [b for b in styles if b in found] + [b for b in found if b not in styles]:
        about = items[backend, "training"]
        style, width = styles.get(backend, ("-.", 2))
        color = LOOKS.get(backend, OTHER_LOOK)[0]
        label = f"{backend}: {readable(about['seconds'])}, {about['accuracy']:.1%} right"
        left.plot(about["losses"], style, linewidth=width, color=color, label=label)
        if reference and about is not reference:
            apart = [
                abs(a - b) / b for a, b in zip(about["losses"], reference["losses"], strict=True)
            ]
            right.plot(apart, ".", markersize=4, color=color, label=backend)
    left.set_ylabel("training loss (nats)")
    left.set_title("Digits: loss, training time, held-out accuracy")
    right.set_ylabel("relative difference of the loss")
    right.set_title("Difference from the NumPy reference")
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.grid(color="#dddddd")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(top=panel.get_ylim()[1] * 1.15)  # room for the legend
        panel.legend(frameon=False, loc="upper right")
    path = RESULTS / "digits.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
