"""The page of the report: sentences, tables and the HTML around the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyce
from pyce._bench.formats import duration, listed, memory, ratio
from pyce._bench.report import check_files, plots, summaries
from pyce._bench.report.check_files import Check, Regimes
from pyce._bench.report.goal_files import Line
from pyce._bench.report.picture import Picture
from pyce._bench.report.style import THEME
from pyce._bench.report.summaries import FLOORS, REFERENCE, TITLES, History, Shown
from pyce._bench.results import Item, Run
from pyce._check.findings import error_text
from pyce._cli import write_whole
from pyce._machine import isa_text, processor_text

CHANGED = ("slower", "faster")


@dataclass
class Table:
    """A table; the first `words` columns hold words, the others numbers; `bad` lines are marked."""

    headers: list[str]
    lines: list[list[str]]
    words: int = 1
    title: str = ""
    bad: set[int] = field(default_factory=set)
    aside: bool = False


@dataclass
class Section:
    """A section of the page; `name` is its anchor."""

    title: str
    name: str
    text: str = ""
    items: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass
class Page:
    """The sections in order, and the main facts: as JSON and as sentences."""

    sections: list[Section]
    facts: dict[str, Any]
    sentences: list[str]
    about: str

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]

    def html(self) -> str:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,  # names come from files
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html.j2")
        text: str = template.render(
            page=self, theme=THEME, version=pyce.__version__, printable=printable
        )
        return text

    def write(self, folder: Path) -> list[Path]:
        """Write index.html and the pictures as PNG files into the folder; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "index.html"
        write_whole(page, self.html().encode())
        return [page, *(picture.save(folder, self.about) for picture in self.pictures)]


def printable(text: str) -> str:
    """The text with characters that HTML does not allow replaced."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def make(runs: list[Run], found: list[Check], lines: list[Line]) -> Page:
    """The page of runs (oldest first), checks, and goals; of at least one run or check."""
    shown = Shown(runs[-1]) if runs else None
    histories = summaries.histories(runs)
    facts, sentences = _facts(shown, histories, lines, found)
    sections = [Section("Summary", "summary", items=sentences)]
    if shown:
        sections += [_machine(shown), *_bench(shown, lines)]
    sections += [_check(check, number) for number, check in enumerate(found, start=1)]
    sections += _history(histories)
    if shown:
        sections += [_all_figures(shown), _method()]
    about = "Accuracy" if not shown else _about(shown.run)
    return Page([section for section in sections if section], facts, sentences, about)


def _about(run: Run) -> str:
    """The machine and the day of a measurement, on one line."""
    threads = run.machine["threads"]
    several = f"{threads} thread" + ("s" if threads != 1 else "")
    parts = (processor_text(run.machine), several, isa_text(run.machine), run.when[:10])
    return ", ".join(filter(None, parts))


# ---------------------------------------------------------------------------------------------
# Summary


def _facts(
    shown: Shown | None, histories: list[History], lines: list[Line], found: list[Check]
) -> tuple[dict[str, Any], list[str]]:
    facts: dict[str, Any] = {}
    said: list[str] = []
    if shown:
        run = shown.run
        facts["measured"] = {
            "file": run.path.name,
            "kind": run.machine["kind"],
            "version": run.machine["pyce"],
            "commit": run.commit,
            "when": run.when,
            "workloads": shown.workloads,
        }
        said += _of_floor(shown, facts)
        facts["losses"] = [loss._asdict() for loss in shown.losses]
        rivals = [name for name in shown.names if name != shown.ours]
        if shown.losses:
            worst = shown.losses[0]
            places = {(loss.workload, loss.operation) for loss in shown.losses}
            said.append(
                f"Another candidate is faster than {shown.ours} in {len(places)} of "
                f"{len(shown.places)} cases; the largest difference is {worst.faster}, "
                f"{ratio(worst.ratio)} times as fast, for {worst.workload}, "
                f"{TITLES[worst.operation]}."
            )
        elif rivals and shown.places:
            said.append(f"{shown.ours} is at least as fast as {listed(rivals)} in all cases.")
        missed = [line for line in lines if not line.met]
        facts["goals"] = {
            "met": len(lines) - len(missed),
            "missed": [line._asdict() for line in missed],
        }
        if lines:
            said.append(f"{len(lines) - len(missed)} of {len(lines)} goals are met.")
        facts["changes"] = [
            {"since": history.runs[-2].path.name, **_plain(change)}
            for history in histories
            if history.runs[-1] is run and history.changes
            for change in history.changes[-1]
            if change.verdict in CHANGED
        ]
        for history in histories:
            where = f"{history.kind}: " if len(histories) > 1 else ""
            said += [where + sentence for sentence in _of_changes(history)]
    facts["checks"] = [
        {"file": check.path.name, "verdict": check.verdict, "failures": check.failures}
        for check in found
    ]
    for check in found:
        said.append(f"Accuracy ({check.path.name}): " + _broken(check))
    return facts, said


def _of_floor(shown: Shown, facts: dict[str, Any]) -> list[str]:
    overs = {
        place: value
        for place in shown.places
        if (value := shown.over_floor(place, shown.ours)) is not None
    }
    if not overs:
        return []
    best, worst = min(overs, key=overs.__getitem__), max(overs, key=overs.__getitem__)
    facts["over_floor"] = {
        name: {"workload": place[0], "operation": place[1], "ratio": overs[place]}
        for name, place in (("best", best), ("worst", worst))
    }
    least, most = (
        f"{ratio(overs[place])} ({place[0]}, {TITLES[place[1]]})" for place in (best, worst)
    )
    several = least if best == worst else f"{least} to {most}"
    return [
        f"{shown.ours} takes {several} times as long as the floor, which is a copy of the logits "
        "to the gradient, or one read of them for the loss alone."
    ]


def _plain(change: Any) -> dict[str, Any]:
    names = dict(zip(("workload", "operation", "candidate"), change.key, strict=True))
    return {**names, "ratio": change.ratio, "p": change.p, "verdict": change.verdict}


def _of_changes(history: History) -> list[str]:
    if len(history.runs) < 2:
        return []
    counts = {v: sum(c.verdict == v for c in history.changes[-1]) for v in (*CHANGED, "unknown")}
    before, after = history.last_two()
    text = f"From {before} to {after}: {counts['slower']} items are significantly slower and "
    text += f"{counts['faster']} faster, of {len(history.changes[-1])} compared"
    if counts["unknown"]:
        text += f"; {counts['unknown']} have too few blocks for a verdict"
    return [f"{text}."]


# ---------------------------------------------------------------------------------------------
# Sections


def _machine(shown: Shown) -> Section:
    run, about = shown.run, shown.run.machine
    bandwidth = ", ".join(
        f"{words} {value / 1e9:.1f} GB/s" for words, value in (about.get("bandwidth") or {}).items()
    )
    caches = (f"{name} {memory(size)}" for name, size in (about.get("caches") or {}).items())
    lines = [
        ["processor", processor_text(about)],
        ["logical processors", str(about["processors"])],
        ["caches of a processor", ", ".join(caches)],
        ["memory", bandwidth],
        ["system", about["system"]],
        ["instruction set", isa_text(about)],
        ["threads", str(about["threads"])],
        ["compiler", str(about["compiler"] or "")],
        ["pyce", about["pyce"] + (f", commit {run.commit}" if run.commit else "")],
        ["libraries", ", ".join(f"{name} {v}" for name, v in about["versions"].items())],
        ["measured", run.when.replace("T", " ")[:19]],
        ["other programs", run.disturbed],
        ["file", run.path.name],
        ["kind of machine", about["kind"]],
    ]
    return Section(
        "Machine", "machine", tables=[Table(["", ""], [line for line in lines if line[1]], 2)]
    )


def _bench(shown: Shown, lines: list[Line]) -> list[Section]:
    drawn = {picture.name: picture for picture in plots.draw(shown)}
    sections = []
    for name, title in (
        ("roofline", "Throughput"),
        ("over-floor", "Time over the floor"),
        ("speed-up", "Comparison with other candidates"),
        ("threads", "Threads"),
        ("digits", "Training on digits"),
    ):
        if name in drawn:
            sections.append(Section(title, name, pictures=[drawn[name]]))
        if name == "speed-up" and shown.places:
            sections.append(_losses(shown))
    if shown.heads:
        sections.append(_heads(shown))
    if lines:
        sections.append(_goals(lines))
    return sections


def _losses(shown: Shown) -> Section:
    text = f"All workloads and operations for which another candidate is faster than {shown.ours}."
    if not shown.losses:
        text += " There are none."
    lines = [
        [
            loss.workload,
            TITLES[loss.operation],
            loss.faster,
            f"{ratio(loss.ratio)} × as fast",
            *(
                duration(shown.places[loss.workload, loss.operation][name].seconds)
                for name in (loss.faster, shown.ours)
            ),
        ]
        for loss in shown.losses
    ]
    headers = ["workload", "operation", "faster", "by", "its time", f"{shown.ours}'s time"]
    tables = [Table(headers, lines, 3)] if lines else []
    return Section("Where other candidates are faster", "losses", text, tables=tables)


def _heads(shown: Shown) -> Section:
    cells = []
    for item in shown.heads:
        about = item.about
        over, added = item.over_floor, about.get("memory")
        cells.append(
            [
                about["workload"],
                summaries.HEAD_TITLES[about["operation"]],
                "one product" if about["kind"] == "floor" else about["candidate"],
                duration(item.seconds),
                ratio(over) if over else "",
                memory(added) if added is not None else "",
            ]
        )
    headers = ["workload", "operation", "", "time", "× one product", "memory added"]
    text = (
        "The product of hidden states with the weight of a vocabulary, and the loss of the logits. "
        "The memory is the most that a call adds, without the gradients."
    )
    return Section("Language-model head", "heads", text, tables=[Table(headers, cells, 3)])


def _goals(lines: list[Line]) -> Section:
    cells: list[list[str]] = []
    bad: set[int] = set()
    for number, line in enumerate(lines):
        word = "met"
        if not line.met:
            bad.add(number)
            word = f"missed by {_missed(line)}"
        cells.append([line.about, line.workload, word, line.limit, line.measured])
    table = Table(["goal", "workload", "", "limit", "measured"], cells, 3, bad=bad)
    text = f"{len(lines) - len(bad)} of {len(lines)} are met."
    return Section("Goals", "goals", text, tables=[table])


def _missed(line: Line) -> str:
    limit = float(line.limit.split()[-1])
    return f"{ratio(100 * abs(line.figure / limit - 1))} %"


def _check(check: Check, number: int) -> Section:
    machine = check.machine
    about = [f"{check.path.name}: {_broken(check)}"]
    if machine:
        about.append(
            f"pyce {machine.get('pyce', '')} on {machine.get('processor', '')}, "
            f"{machine.get('isa') or 'no C extension'}."
        )
    tables = []
    for part, title in ((check.results, "Largest errors"), (check.targets, "Other targets")):
        for dtype, regimes in part.items():
            tables.append(_errors(check, regimes, f"{title}, {dtype}"))
    return Section(
        "Accuracy" if number == 1 else f"Accuracy ({number})",
        f"accuracy-{number}",
        " ".join(about),
        items=check.failures,
        pictures=plots.draw_errors(check, number),
        tables=tables,
    )


def _broken(check: Check) -> str:
    if not check.failures:
        return "every promise holds."
    many = len(check.failures)
    return f"{many} promise{'s are' if many > 1 else ' is'} broken."


def _errors(check: Check, regimes: Regimes, title: str) -> Table:
    names = check_files.candidates(regimes)
    lines = []
    for regime, by_name in regimes.items():
        cells = [check.title(regime)]
        for name in names:
            values = [by_name.get(name, {}).get(kind, {}).get("max") for kind in check_files.KINDS]
            cells.append(" / ".join(map(error_text, values)))
        lines.append(cells)
    headers = ["loss / gradient, ULP", *(check_files.label(name) for name in names)]
    return Table(headers, lines, title=title, aside=True)


def _history(histories: list[History]) -> list[Section]:
    drawn = plots.draw_history(histories)
    sections = []
    several = [history for history in histories if len(history.runs) > 1]
    for number, history in enumerate(several, start=1):
        lines = [
            [str(i), label, run.when.replace("T", " ")[:16], run.path.name]
            for i, (label, run) in enumerate(zip(history.labels, history.runs, strict=True), 1)
        ]
        tables = [Table(["run", "version, commit", "measured", "file"], lines, 4, "Runs")]
        tables += _changes(history)
        tables.append(_over_runs(history))
        sections.append(
            Section(
                "History" + (f" ({number})" if len(several) > 1 else ""),
                f"history-{number}",
                f"{len(history.runs)} runs on machines of the kind {history.kind}. Each is "
                "compared with the one before by an exact Mann–Whitney test of the blocks' seconds "
                "and of their times over the floor's, corrected for the number of comparisons "
                "(Holm, 5 %). A change must show in both, and exceed the spread of the others.",
                pictures=drawn.get(history.kind, []),
                tables=tables,
            )
        )
    alone = [history for history in histories if len(history.runs) == 1]
    if alone and len(histories) > 1:
        lines = [[h.kind, h.labels[0], h.runs[0].when[:10], h.runs[0].path.name] for h in alone]
        table = Table(["kind of machine", "version, commit", "measured", "file"], lines, 4)
        text = "Single runs on other kinds of machines, without a run to compare with."
        sections.append(Section("Other machines", "others", text, tables=[table]))
    return sections


def _changes(history: History) -> list[Table]:
    headers = ["to run", "workload", "operation", "", "times as long", "p", ""]
    pairs = [(str(number), changes) for number, changes in enumerate(history.changes, start=2)]
    if history.since_first:
        pairs.append((f"1 to {len(history.runs)}", history.since_first))
    lines: list[list[str]] = []
    bad: set[int] = set()
    for name, changes in pairs:
        for change in sorted(changes, key=lambda change: -change.ratio):
            if change.verdict in CHANGED:
                if change.verdict == "slower":
                    bad.add(len(lines))
                workload, operation, candidate = change.key
                lines.append(
                    [
                        name,
                        workload,
                        TITLES[operation],
                        candidate,
                        f"{ratio(change.ratio)} × before",
                        f"{change.p:.1g}",
                        change.verdict,
                    ]
                )
    title = "Significant changes" if lines else "No significant changes"
    return [Table(headers if lines else [], lines, 4, title, bad)]


def _over_runs(history: History) -> Table:
    lines = []
    for place in history.places:
        for name in history.backends:
            series = history.series(place, name)
            if not series:
                continue
            cells = []
            for number, shown in enumerate(history.shown):
                item = shown.places.get(place, {}).get(name)
                over = f"{ratio(series[number].middle)} × floor, " if number in series else ""
                cells.append(f"{over}{item.rate / 1e9:.3g} GB/s" if item else "–")
            lines.append([place[0], TITLES[place[1]], name, *cells])
    headers = ["workload", "operation", "", *(f"{i}: {x}" for i, x in enumerate(history.labels, 1))]
    return Table(headers, lines, 3, "Figures of all runs", aside=True)


def _all_figures(shown: Shown) -> Section:
    tables = []
    for operation in summaries.OPERATIONS:
        items = [i for i in shown.run.items.values() if i.about["operation"] == operation]
        if items:
            title = f"{TITLES[operation].capitalize()}, floor: {FLOORS[operation]}"
            tables.append(_figures(shown, items, title))
    if shown.training:
        lines = [
            [name, duration(item.seconds), f"{item.about['accuracy']:.2%}"]
            for name, item in shown.training.items()
        ]
        tables.append(
            Table(["backend", "time", "held-out accuracy"], lines, title="Digits", aside=True)
        )
    text = "All items of the file, with variants of the C backend and other numbers of threads."
    return Section("All figures", "figures", text, tables=tables)


def _figures(shown: Shown, items: Iterable[Item], title: str) -> Table:
    lines: list[list[str]] = []
    bad: set[int] = set()
    lost = {(loss.workload, loss.operation, loss.faster) for loss in shown.losses}
    for item in items:
        about = item.about
        place = about["workload"], about["operation"]
        here = shown.places.get(place, {})
        over = interval = ""
        if about["kind"] != "floor" and about["over_floor"]:
            found = summaries.interval(about["over_floor"])
            over, interval = ratio(found.middle), f"{ratio(found.low)}–{ratio(found.high)}"
        cells = [
            about["workload"],
            about["stands_for"],
            about["candidate"],
            str(about["threads"]),
            duration(item.seconds),
            f"{item.rate / 1e9:.3g}",
            over,
            interval,
        ]
        for name in (shown.ours, REFERENCE):
            cells.append(ratio(item.seconds / here[name].seconds) if name in here else "")
        if (*place, summaries.name_of(item)) in lost and here.get(summaries.name_of(item)) is item:
            bad.add(len(lines))
        lines.append(cells)
    headers = ["workload", "stands for", "", "threads", "time", "GB/s", "× floor", "95 %"]
    headers += [f"× {shown.ours}", f"× {REFERENCE}"]
    return Table(headers, lines, 3, title, bad, aside=True)


def _method() -> Section:
    return Section(
        "How it was measured",
        "method",
        "In one process, all candidates take turns (A B C A B C) on the same buffers; in blocks, "
        "each with its arrays in other memory, since bandwidth differs more from buffer to buffer "
        "than from round to round. Every result is compared with the reference before it is timed. "
        "The floor is the faster of a parallel memcpy and a parallel non-temporal copy (for the "
        "loss alone, a read), measured in the same rounds. Times are medians of rounds; times over "
        "the floor's are medians of blocks, with order statistics as intervals, which assume "
        "nothing about the distribution. GB/s count the bytes that must be moved.",
    )
