"""The tables of a README: `python -m pyce._bench.readme README.md` puts them between its markers.

They are those of the last `make bench-peers`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyce._bench import goals, results, terminal
from pyce._bench.results import Item, Run
from pyce._bench.terminal import Unusable, ratio, readable

PEERS = Path("bench/results/peers.json")
TITLES = {"fused": "Loss and gradient", "forward": "Loss alone"}


def main(options: argparse.Namespace) -> int:
    replace(options.readme, "bench", peers_markdown(results.load(options.bench)))
    return terminal.FINE


def peers_markdown(run: Run) -> str:
    """The comparison with the peers as Markdown: a table for each operation, and how to read it."""
    items = [
        item
        for item in run.items.values()
        if item.about["target"] == "index" and "," not in item.about["candidate"]
    ]
    losses = [item for item in items if item.about["operation"] in TITLES]
    names = list(dict.fromkeys(item.about["candidate"] for item in losses))
    names = [name for name in names if name != "floor"]
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
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
    for operation, title in TITLES.items():
        rows: dict[str, dict[str, Item]] = {}
        for item in losses:
            if item.about["operation"] == operation:
                row = f"{item.about['workload']}, {item.about['stands_for']}"
                rows.setdefault(row, {})[item.about["candidate"]] = item
        if rows:
            parts.append(f"**{title}**\n\n" + _table(rows, names))
    lines = goals.lines(run)
    if lines:
        parts.append("**Goals**, those that are missed in bold\n\n" + _goals(lines))
    return "\n\n".join(parts) + "\n"


def _goals(lines: list[goals.Line]) -> str:
    rows = ["| goal | workload | limit | measured |", "| --- | --- | ---: | ---: |"]
    for line in lines:
        figure = ratio(line.figure) if line.met else f"**{ratio(line.figure)}**"
        rows.append(f"| {line.about} | {line.workload} | {line.limit} | {figure} |")
    return "\n".join(rows)


def _table(rows: dict[str, dict[str, Item]], names: list[str]) -> str:
    lines = [
        "| " + " | ".join(["workload", "floor", *names]) + " |",
        "| --- |" + " ---: |" * (len(names) + 1),
    ]
    for workload, row in rows.items():
        floor, ours = row["floor"].seconds, row[names[0]].seconds
        cells = [workload, readable(floor)]
        for name in names:
            if name not in row:
                cells.append("–")
                continue
            time = row[name].seconds
            if name == names[0]:
                cells.append(f"{readable(ours)} ({ratio(ours / floor)} × floor)")
                continue
            times_ours = f"{ratio(time / ours)} ×"
            times_ours = f"**{times_ours}**" if time < ours else times_ours
            cells.append(f"{readable(time)} ({times_ours})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace(readme: Path, name: str, content: str) -> None:
    """Replace what stands between the markers of that name in `readme`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise Unusable(f"{readme.name} must have the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n\n{content}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyce._bench.readme", description=__doc__)
    parser.add_argument("readme", type=Path, help="the file with the markers")
    parser.add_argument("--bench", type=Path, default=PEERS, help=f"(default: {PEERS})")
    sys.exit(terminal.run(main, parser.parse_args()))
