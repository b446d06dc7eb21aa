"""Put measured tables into Markdown files: `python bench/readme_tables.py FILE…`.

Each table replaces the text between its markers, for example `<!-- accuracy:begin -->` and
`<!-- accuracy:end -->`. A file may have each pair of markers once:

    accuracy             the largest errors in float32
    accuracy-full        the largest errors in float32 and float64
    language-model       the report of `examples/language_model.py`, with a copy of its picture
    bench-headline-ISA   how many times as fast as the other libraries pyce is
    bench-torch-ISA      training steps of PyTorch, with its own loss and with pyce's
    bench-ISA            loss and gradient in float32, and the goals that are missed
    bench-full-ISA       every workload with index targets, and every goal
    bench-head-ISA       the largest head of a language model
    bench-head-full-ISA  every head, and the goals for heads

ISA is the instruction set that the C backend ran on, for example avx2. The last six come from the
newest file of bench with that instruction set, those of heads also from one of heads alone. A table
of speed or accuracy without a file stays as it is. Tables of speed state when, at which commit and
on which machine they were measured.
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import goals

from pyce import _cli, _machine
from pyce._bench import results
from pyce._bench.formats import duration, memory, ratio
from pyce._bench.head import FILTER
from pyce._bench.report.goal_files import Line
from pyce._bench.results import Item, Run
from pyce._check import promises, regimes
from pyce._check.check import FLOATS
from pyce._check.findings import error_text
from pyce._cli import Unusable
from pyce._machine import isa_text, processor_text, widest_isa

RESULTS = Path("bench/results")
PEERS, ONE_THREAD, HEADS = "peers*.json", "one-thread*.json", "head*.json"
ACCURACY = RESULTS / "accuracy.json"
LANGUAGE_MODEL = RESULTS / "language-model"
# The instruction sets of the markers, by the names that headings use.
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "scalar": "plain C"}
TITLES = {"fused": "Loss and gradient", "forward": "Loss alone"}
KINDS = ("loss", "gradient")


# ---------------------------------------------------------------------------------------------
# Speed


def measured_on(machine: dict[str, Any], when: str, commit: str) -> str:
    """The beginning of a sentence about figures: date, commit, processor, settings."""
    parts = [f"Measured on {when[:10]}", *([f"at commit {commit}"] if commit else [])]
    parts.append(f"on {processor_text(machine)} with {_threads(machine)}, {isa_text(machine)}")
    return " ".join(parts)


def measured_now() -> str:
    """`measured_on` for figures that this process has measured."""
    from pytest_benchmark import utils

    commit_info: Any = utils.get_commit_info
    today = datetime.date.today().isoformat()
    return measured_on(_machine.fingerprint(), today, results.short_commit(commit_info()))


def _threads(machine: dict[str, Any]) -> str:
    count = machine["threads"]
    return f"{count} thread" + ("s" if count > 1 else "")


def _measured(run: Run) -> str:
    return measured_on(run.machine, run.when, run.commit)


def peers_markdown(run: Run, one: Run | None = None, full: bool = True) -> str:
    """Tables of pyce and other libraries for each operation, an explanation, and the goals.

    `one` is a run on one processor, of which only the goals are shown. Unless `full`, only of loss
    and gradient in float32.
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
    parts = [_how(run, names)]
    for operation, title in operations.items():
        rows: dict[str, dict[str, Item]] = {}
        for item in items:
            if item.about["operation"] == operation:
                row = f"{item.about['workload']}, {item.about['stands_for']}"
                rows.setdefault(row, {})[item.about["candidate"]] = item
        if rows:
            parts.append(f"**{title}**\n\n" + _table(rows, names))
    parts += _goals("Goals", _lines(run), full)
    if one:
        parts += _goals(f"Goals on one processor. {_measured(one)}", goals.lines(one), full)
    return "\n\n".join(parts) + "\n"


def _lines(run: Run, head: bool = False) -> list[Line]:
    """The goals of a run for heads of language models, or those for everything else."""
    return [line for line in goals.lines(run) if line.workload.startswith("head-") == head]


HEAD_COLUMNS = {
    "head-forward": "loss",
    "head-fused": "loss and gradients",
    "head-filtered": "the same, columns left out",
}
HEAD_ROWS = {
    "pyce c": "`pyce`, C backend",
    "pyce numba": "`pyce`, Numba",
    "pyce numpy": "`pyce`, NumPy",
    "pyce torch": "`pyce.torch`",
    "torch": "PyTorch, all logits",
    "torch chunked": "PyTorch, in chunks",
    "three products": "the three products alone",
    "floor": "one product alone",
}


def head_markdown(run: Run, full: bool = True) -> str:
    """For each head, a table of the candidates' times and memory; the goals only if `full`.

    Unless `full`, only of the head with the most logits.
    """
    heads: dict[str, dict[tuple[str, str], Item]] = {}
    for (workload, operation, candidate), item in run.items.items():
        if operation in HEAD_COLUMNS:
            heads.setdefault(workload, {})[operation, candidate] = item
    if not full:
        largest = max(heads, key=lambda name: _some(heads[name]).about["elements"])
        heads = {largest: heads[largest]}
    machine = run.machine
    parts = [
        f"{_measured(run)}; numpy {machine['versions']['numpy']}"
        + (f", torch {machine['versions']['torch']}" if "torch" in machine["versions"] else "")
        + ". Medians of calls in turn, float32. In brackets: the ratio to one product of the "
        "hidden states with the weight, by NumPy. Memory: the most that loss and gradients add to "
        f"arrays and gradients. Columns are left out with "
        f"`filter_tolerance=2**{math.log2(FILTER):.0f}`."
        + (f" {run.disturbed}" if run.disturbed else "")
    ]
    parts += [_head_table(items) for items in heads.values()]
    if full:
        parts += _goals("Goals", _lines(run, head=True), full)
    return "\n\n".join(parts) + "\n"


def _some(items: dict[tuple[str, str], Item]) -> Item:
    return next(iter(items.values()))


def _head_table(items: dict[tuple[str, str], Item]) -> str:
    about = _some(items).about
    rows, classes = about["shape"]
    title = f"{rows}×{about['features']}×{classes}, {about['stands_for']}"
    lines = [
        "| " + " | ".join([title, *HEAD_COLUMNS.values(), "memory"]) + " |",
        "| --- |" + " ---: |" * (len(HEAD_COLUMNS) + 1),
    ]
    for name, words in HEAD_ROWS.items():
        row = {operation: items.get((operation, name)) for operation in HEAD_COLUMNS}
        if name == "floor":
            row |= {"head-fused": None, "head-filtered": None}
        if any(row.values()):
            fused = row["head-fused"]
            added = fused.about.get("memory") if fused else None
            cells = [words, *map(_in_products, row.values())]
            cells.append("–" if added is None else memory(added))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_products(item: Item | None) -> str:
    if item is None:
        return "–"
    over = item.over_floor
    return duration(item.seconds) + (f" ({ratio(over)})" if over else "")


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
        f"**{ISAS[run.machine['isa']]}**: loss and gradient together take less time than in "
        f"{', '.join(names)} {where}. pyce is {ratio(min(times[True]))} to {ratio(most)} times as "
        f"fast with {MANY:,} classes and more, and at least {ratio(min(times[False]))} times with "
        f"fewer. {_measured(run)}.\n"
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
    about = f"{_measured(run)}; torch {run.machine['versions']['torch']}. Loss and `backward()`, "
    about += "medians of calls in turn."
    return about + "\n\n" + "\n".join(lines) + "\n"


def _how(run: Run, names: list[str]) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    floor = "numpy.copyto of the logits to the gradient, on one thread"
    if machine["isa"]:
        floor = (
            "the faster of a parallel memcpy and a parallel non-temporal copy of the logits to the "
            "gradient (for the loss alone: a read of the logits)"
        )
    others = ""
    if widest_isa(machine):
        others = "The Numba backend and the other libraries use all that the processor has. "
    return (
        f"{_measured(run)}"
        + (f", {machine['compiler']}" if machine["isa"] else "")
        + f"; {versions}. {others}"
        + "Medians of candidates that take turns on the same buffers. In brackets: "
        f"the ratio to the time of {names[0] if names else 'pyce'}, in bold if it is below 1. The "
        f'floor is {floor}; "× floor" is the median of the ratios of both times in the same round, '
        "not the quotient of the two medians. pyce's backends and scikit-learn write the gradient "
        "to a given array; the others, including pyce torch, return a new one."
        + (f" {run.disturbed}" if run.disturbed else "")
    )


def _goals(title: str, lines: list[Line], full: bool) -> list[str]:
    """A table of the goals under a title, or unless `full`, the missed ones; [] without goals."""
    if not lines:
        return []
    if full:
        return [f"**{title}**, with missed ones in bold\n\n{_table_of_goals(lines)}"]
    return [_missed(title, lines)]


def _table_of_goals(lines: list[Line]) -> str:
    rows = ["| goal | workload | limit | measured |", "| --- | --- | ---: | ---: |"]
    for line in lines:
        figure = line.measured if line.met else f"**{line.measured}**"
        rows.append(f"| {line.about} | {line.workload} | {line.limit} | {figure} |")
    return "\n".join(rows)


def _missed(title: str, lines: list[Line]) -> str:
    """The number of goals that are met, and a list of the others."""
    missed: dict[str, list[str]] = {}
    for line in lines:
        if not line.met:
            figure = f"{line.workload} {line.measured} ({line.limit})"
            missed.setdefault(line.about, []).append(figure)
    met = len(lines) - sum(map(len, missed.values()))
    text = f"**{title}**: {met} of {len(lines)} are met."
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
    "takes with each loss, how much of it head and loss take, and how much memory a step adds."
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


def newest(files: Iterable[Path], head: bool = False) -> dict[str, Run]:
    """{instruction set: the newest run of it} of files of bench; with `head`, that has heads."""
    runs = sorted((results.load(path) for path in files), key=lambda run: run.when)
    return {
        run.machine["isa"]: run
        for run in runs
        if not head or any(operation in HEAD_COLUMNS for _, operation, _ in run.items)
    }


def main(options: argparse.Namespace) -> int:
    @cache
    def runs() -> tuple[dict[str, Run], dict[str, Run]]:
        """On all processors, and on one; read only if a page has a table of them."""
        return (
            newest(options.bench or sorted(RESULTS.glob(PEERS))),
            newest(options.one_thread or sorted(RESULTS.glob(ONE_THREAD))),
        )

    @cache
    def heads() -> dict[str, Run]:
        files = [path for names in (HEADS, PEERS) for path in sorted(RESULTS.glob(names))]
        return newest([*(options.head or ()), *(options.bench or ())] or files, head=True)

    fixed: dict[str, Callable[[], str]] = {
        "accuracy": lambda: accuracy_markdown(results.read(options.accuracy), FLOATS[:1]),
        "accuracy-full": lambda: accuracy_markdown(results.read(options.accuracy)),
        "language-model": lambda: language_model_markdown(options.language_model, page),
    }
    by_isa: dict[str, Callable[[Run, Run | None], str]] = {
        "bench-headline": lambda run, _: headline(run),
        "bench-torch": lambda run, _: torch_markdown(run),
        "bench": lambda run, one: peers_markdown(run, one, full=False),
        "bench-full": peers_markdown,
    }
    of_heads = {"bench-head": False, "bench-head-full": True}
    for page in options.pages:
        text = page.read_text(encoding="utf-8")
        found = False
        for name in dict.fromkeys(re.findall(r"<!-- ([a-z0-9-]+):(?:begin|end) -->", text)):
            block, _, isa = name.rpartition("-")
            if name in fixed:
                if name.startswith("accuracy") and not options.accuracy.exists():
                    print(f"{page.name}: {name} stays as it is, without {options.accuracy}")
                else:
                    replace(page, name, fixed[name]())
            elif block in by_isa and isa in ISAS:
                run, one = (each.get(isa) for each in runs())
                if run is None:
                    print(f"{page.name}: {name} stays as it is, without a file of {isa}")
                else:
                    replace(page, name, by_isa[block](run, one))
            elif block in of_heads and isa in ISAS:
                run = heads().get(isa)
                if run is None:
                    print(f"{page.name}: {name} stays as it is, without a file of {isa}")
                else:
                    replace(page, name, head_markdown(run, of_heads[block]))
            else:
                continue
            found = True
        if not found:
            raise Unusable(
                f"{page.name} must have the lines {_markers('bench-avx2')[0]} … of a block"
            )
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/readme_tables.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("pages", nargs="+", type=Path, metavar="FILE", help="a Markdown file with markers")
    add(
        "--bench",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"written by bench --peers; may be given more than once (default: {RESULTS / PEERS})",
    )
    add(
        "--one-thread",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"the same, on one processor (default: {RESULTS / ONE_THREAD})",
    )
    add(
        "--head",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"the same, of heads of language models (default: {RESULTS / HEADS}, and the others)",
    )
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
