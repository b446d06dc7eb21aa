"""Put measured tables into Markdown files: `python bench/readme_tables.py FILE…`.

Each table replaces the text between its markers, `<!-- bench:begin -->` and `<!-- bench:end -->`.
A file may have each pair of markers once:

    bench-headline  how many times as fast as the other libraries pyce is
    bench-torch     training steps of PyTorch, with its own loss and with pyce's
    bench           loss and gradient in float32, and the goals that are missed
    bench-full      every workload with index targets, and every goal
    accuracy        the largest errors in float32
    accuracy-full   the largest errors in float32 and float64
    language-model  the report of `examples/language_model.py`, with a copy of its picture
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import goals

from pyce import _cli
from pyce._bench import results
from pyce._bench.formats import duration, ratio
from pyce._bench.report.goal_files import Line
from pyce._bench.results import Item, Run
from pyce._check import promises, regimes
from pyce._check.check import FLOATS
from pyce._check.findings import error_text
from pyce._cli import Unusable

BENCH = Path("bench/results/peers.json")
ACCURACY = Path("bench/results/accuracy.json")
LANGUAGE_MODEL = Path("bench/results/language-model")
TITLES = {"fused": "Loss and gradient", "forward": "Loss alone"}
KINDS = ("loss", "gradient")


# ---------------------------------------------------------------------------------------------
# Speed


def peers_markdown(run: Run, full: bool = True) -> str:
    """Tables of pyce and other libraries for each operation, an explanation, and the goals.

    Unless `full`, only of loss and gradient in float32.
    """
    operations = TITLES if full else {"fused": TITLES["fused"]}
    items = [
        item
        for item in run.items.values()
        if item.about["operation"] in operations
        and item.about["target"] == "index"
        and "," not in item.about["candidate"]
        and (full or item.about["dtype"] == "float32")
    ]
    names = list(dict.fromkeys(item.about["candidate"] for item in items))
    names = [name for name in names if name != "floor"]
    parts = [_how(run.machine, names)]
    for operation, title in operations.items():
        rows: dict[str, dict[str, Item]] = {}
        for item in items:
            if item.about["operation"] == operation:
                row = f"{item.about['workload']}, {item.about['stands_for']}"
                rows.setdefault(row, {})[item.about["candidate"]] = item
        if rows:
            parts.append(f"**{title}**\n\n" + _table(rows, names))
    lines = goals.lines(run)
    if lines and full:
        parts.append("**Goals**, with missed ones in bold\n\n" + _goals(lines))
    elif lines:
        parts.append(_missed(lines))
    return "\n\n".join(parts) + "\n"


MANY = 32_000  # classes


def headline(run: Run) -> str:
    """How many times as fast as other libraries pyce is, for loss and gradient in float32."""
    times: dict[bool, list[float]] = {True: [], False: []}
    names: dict[str, None] = {}
    for item in run.items.values():
        about = item.about
        if (about["kind"], about["operation"], about["dtype"]) == ("peer", "fused", "float32"):
            ours = run.items[about["workload"], "fused", goals.OURS].seconds
            many = about["shape"][about["axis"]] >= MANY
            times[many].append(item.seconds / ours)
            names[about["candidate"]] = None
    most, least = max(times[True]), min(times[True] + times[False])
    where = "at every shape measured" if least > 1 else "at most shapes measured"
    return (
        f"Loss and gradient together take less time than in {', '.join(names)} {where} on one "
        f"machine: it is {ratio(min(times[True]))} to {ratio(most)} times as fast with {MANY:,} "
        f"classes and more, and at least {ratio(min(times[False]))} times with fewer.\n"
    )


def torch_markdown(run: Run) -> str:
    """The loss of a training step through PyTorch's autograd: PyTorch's own, and pyce's."""
    columns = ("torch", "torch.compile", "pyce torch")
    lines = [
        "| workload | PyTorch, eager | compiled | `pyce.torch`, eager | times faster |",
        "| --- |" + " ---: |" * 4,
    ]
    for (workload, operation, candidate), item in run.items.items():
        if operation != "fused" or candidate != "pyce torch":
            continue
        eager, compiled, ours = (run.items[workload, operation, name] for name in columns)
        times = min(eager.seconds, compiled.seconds) / ours.seconds
        cells = [f"{workload}, {item.about['stands_for']}"]
        cells += [duration(each.seconds) for each in (eager, compiled, ours)]
        cells.append(ratio(times) if times >= 1 else f"**{ratio(times)}**")
        lines.append("| " + " | ".join(cells) + " |")
    about = f"Measured on {run.machine['processor']} with {run.machine['threads']} threads, torch "
    about += f"{run.machine['versions']['torch']}: loss and `backward()`, medians of calls in turn."
    return about + "\n\n" + "\n".join(lines) + "\n"


def _how(machine: dict[str, Any], names: list[str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    floor = "numpy.copyto of the logits to the gradient, on one thread"
    if machine["isa"]:
        floor = (
            "the faster of a parallel memcpy and a parallel non-temporal copy of the logits to the "
            "gradient (for the loss alone: reading the logits)"
        )
    return (
        f"Measured on {machine['processor']} with {machine['threads']} threads"
        + (f", {machine['isa']}, {machine['compiler']}" if machine["isa"] else "")
        + f"; {versions}. Medians of candidates that take turns on the same buffers. In brackets: "
        f"the ratio to the time of {names[0] if names else 'pyce'}, in bold if it is below 1. The "
        f"floor is {floor}. pyce's backends and scikit-learn write the gradient to a given array; "
        "the others, including pyce torch, return a new one."
    )


def _goals(lines: list[Line]) -> str:
    rows = ["| goal | workload | limit | measured |", "| --- | --- | ---: | ---: |"]
    for line in lines:
        figure = ratio(line.figure) if line.met else f"**{ratio(line.figure)}**"
        rows.append(f"| {line.about} | {line.workload} | {line.limit} | {figure} |")
    return "\n".join(rows)


def _missed(lines: list[Line]) -> str:
    """The number of goals that are met, and a list of the others."""
    missed: dict[str, list[str]] = {}
    for line in lines:
        if not line.met:
            figure = f"{line.workload} {ratio(line.figure)} ({line.limit})"
            missed.setdefault(line.about, []).append(figure)
    met = len(lines) - sum(map(len, missed.values()))
    text = f"**Goals**: {met} of {len(lines)} are met."
    if missed:
        text += " Missed: " + "; ".join(
            f"{about}: {', '.join(figures)}" for about, figures in missed.items()
        )
        text += "."
    return text


def _table(rows: dict[str, dict[str, Item]], names: list[str]) -> str:
    lines = [
        "| " + " | ".join(["workload", "floor", *names]) + " |",
        "| --- |" + " ---: |" * (len(names) + 1),
    ]
    for workload, row in rows.items():
        floor, ours = row["floor"].seconds, row[names[0]]
        over = ours.over_floor or ours.seconds / floor
        cells = [workload, duration(floor)]
        for name in names:
            if name not in row:
                cells.append("–")
                continue
            time = row[name].seconds
            if name == names[0]:
                cells.append(f"{duration(time)} ({ratio(over)} × floor)")
                continue
            times_ours = f"{ratio(time / ours.seconds)} ×"
            times_ours = f"**{times_ours}**" if time < ours.seconds else times_ours
            cells.append(f"{duration(time)} ({times_ours})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# Accuracy


def accuracy_markdown(found: dict[str, Any], dtypes: Sequence[str] = FLOATS) -> str:
    """The largest errors of a file of `python -m pyce check`, in the promised regimes."""
    bounds = promises.LIMITS["cross-entropy"]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in found["versions"].items()
        if name in ("torch", "numpy")
    )
    shapes = ", ".join(f"{rows}×{classes}" for rows, classes in found["shapes"])
    parts = [
        f"Largest errors in units in the last place, loss / gradient, over {shapes}; those beyond "
        f"{bounds['loss']:g} / {bounds['gradient']:g} in bold; – where all exact results are "
        f"subnormal. {versions}."
    ]
    for dtype in dtypes:
        by_regime = found["results"][dtype]
        names = list(next(iter(by_regime.values())))
        lines = [f"| {dtype} | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        for regime in regimes.PROMISED:
            if regime in by_regime:
                cells = [_cell(by_regime[regime][name]) for name in names]
                lines.append("| " + " | ".join([regimes.TITLES[regime], *cells]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(about: dict[str, Any]) -> str:
    figures = []
    for kind in KINDS:
        most = about[kind]["max"]
        beyond = most is not None and most > promises.LIMITS["cross-entropy"][kind]
        figures.append(f"**{error_text(most)}**" if beyond else error_text(most))
    return " / ".join(figures)


# ---------------------------------------------------------------------------------------------
# The language model

_PICTURE = "language-model.png"
_ALT = (
    "The curves of the training loss coincide. Their differences begin at the last bit of "
    "a float32 and grow like those of a training with one bit changed. Bars show how long a step "
    "takes with each loss, and how much of it the loss."
)


def language_model_markdown(measured: Path, page: Path) -> str:
    """The report in the folder `measured`; its picture is copied next to `page`."""
    try:
        report = (measured / "report.md").read_text(encoding="utf-8")
        picture = (measured / _PICTURE).read_bytes()
    except OSError as error:
        raise Unusable(f"can't read {error.filename}: {error.strerror}") from None
    copy = page.parent / "pictures" / _PICTURE
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(picture)
    return f"{report}\n![{_ALT}](pictures/{_PICTURE})\n"


# ---------------------------------------------------------------------------------------------
# The files


def replace(page: Path, name: str, content: str) -> None:
    """Replace the text between the markers of that name in `page`."""
    begin, end = _markers(name)
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise Unusable(f"{page.name} must have the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{content}\n{end}{after}", encoding="utf-8")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def main(options: argparse.Namespace) -> int:
    blocks: dict[str, Callable[[], str]] = {
        "bench-headline": lambda: headline(results.load(options.bench)),
        "bench-torch": lambda: torch_markdown(results.load(options.bench)),
        "bench": lambda: peers_markdown(results.load(options.bench), full=False),
        "bench-full": lambda: peers_markdown(results.load(options.bench)),
        "accuracy": lambda: accuracy_markdown(results.read(options.accuracy), FLOATS[:1]),
        "accuracy-full": lambda: accuracy_markdown(results.read(options.accuracy)),
        "language-model": lambda: language_model_markdown(options.language_model, page),
    }
    for page in options.pages:
        text = page.read_text(encoding="utf-8")
        found = [name for name in blocks if any(marker in text for marker in _markers(name))]
        if not found:
            raise Unusable(f"{page.name} must have the lines {_markers('bench')[0]} … of a block")
        for name in found:
            replace(page, name, blocks[name]())
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/readme_tables.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("pages", nargs="+", type=Path, metavar="FILE", help="a Markdown file with markers")
    add("--bench", type=Path, default=BENCH, help="written by bench --peers (default: %(default)s)")
    add("--accuracy", type=Path, default=ACCURACY, help="written by check (default: %(default)s)")
    add(
        "--language-model",
        type=Path,
        default=LANGUAGE_MODEL,
        metavar="FOLDER",
        help="written by examples/language_model.py (default: %(default)s)",
    )
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
