"""Measure the backends on the tracked workloads, beside the floor: what a copy of the logits takes.

Without options: the workloads of a few minutes. Prints a table and writes a file that
`python -m pyce report`, `python -m pyce compare` and pytest-benchmark's own tools read. Ctrl-C ends
it early; what was measured by then is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyce
from pyce._bench import terminal
from pyce._bench.terminal import Unusable, ratio, readable

if TYPE_CHECKING:
    from pyce._bench.results import Item, Run

OUTPUT = Path("pyce-bench.json")
DTYPES = ("float16", "bfloat16", "float32", "float64")
OPERATIONS = ("forward", "fused", "backward")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--list", action="store_true", help="list the workloads and stop")
    add("--full", action="store_true", help="every workload, not only the quick ones")
    add(
        "-w",
        "--workload",
        action="append",
        metavar="NAME",
        help="only workloads of this name (its beginning, a pattern like '*x1000*', or what they "
        "stand for); may be given again",
    )
    add("--dtype", type=terminal.listed(DTYPES), help="only these: " + ",".join(DTYPES))
    add("--operation", type=terminal.listed(OPERATIONS), help="only these: " + ",".join(OPERATIONS))
    add("-b", "--backend", type=terminal.names, help="only these backends, for example c,numpy")
    add(
        "--threads",
        type=_counts,
        help="numbers of threads to measure, for example 1,2,4 (default: 1 and all)",
    )
    add(
        "--peers",
        action="store_true",
        help="also PyTorch, JAX and scikit-learn where installed, and variants of the C backend",
    )
    add("--goals", action="store_true", help="compare with the project's goals, too")
    add("--exactly", action="append", metavar="NAME", help=argparse.SUPPRESS)  # for `compare`
    add(
        "--baseline",
        type=Path,
        metavar="FOLDER",
        help="also keep the figures there, for `compare`: without single rounds and host names",
    )
    add("-o", "--output", type=Path, default=OUTPUT, help=f"file to write (default: {OUTPUT})")
    add("--json", action="store_true", help="print the file's content and nothing else")


def _counts(text: str) -> list[int]:
    try:
        found = list(dict.fromkeys(int(name) for name in terminal.names(text)))
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of threads")
    return found


def main(options: argparse.Namespace) -> int:
    from pyce._bench.workloads import WORKLOADS

    if options.list:
        rows = [(w.name, w.stands_for, "quick" if w.quick else "full") for w in WORKLOADS]
        if options.json:
            print(json.dumps([dict(zip(("name", "for", "set"), row, strict=True)) for row in rows]))
        else:
            terminal.table("Workloads", ("name", "stands for", "set"), rows, left=3)
        return terminal.FINE
    terminal.require("bench", "pytest", "pytest_benchmark")
    terminal.info()
    plan, digits = _plan(options)
    terminal.writable(options.output)
    if options.baseline:
        terminal.writable(options.baseline / "its-name.json")
    # Measured into a file of its own: what was there before stays until there is something better.
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / OUTPUT
        status, failures = _measure(plan, digits, measured)
        try:
            if measured.exists():
                _keep(measured, options, status)
        finally:
            for text in failures:
                print(text, file=sys.stderr)
        if not measured.exists():
            if status == terminal.INTERRUPTED:
                raise KeyboardInterrupt
            raise Unusable("nothing was measured")
    if status == terminal.INTERRUPTED:
        print("pyce: interrupted; what was measured by then is above", file=sys.stderr)
    return status


def _keep(measured: Path, options: argparse.Namespace, status: int) -> None:
    """Show what was measured, and write it where it was asked for."""
    from pyce._bench import baseline

    content = measured.read_text(encoding="utf-8")
    try:
        terminal.write(options.output, content)
    finally:
        if options.json:
            print(content)
        else:
            _show(measured, options.goals)
    if not options.json:
        print(f"written: {options.output}; `python -m pyce report {options.output}` draws it")
    if options.baseline and status == terminal.FINE:
        print(f"baseline: {baseline.keep(measured, options.baseline)}", file=sys.stderr)


def _plan(options: argparse.Namespace) -> tuple[Any, bool]:
    """The plan, and whether the digits are trained on, too."""
    from pyce._bench import candidates, peers
    from pyce._bench.suite.plan import Plan
    from pyce._bench.workloads import WORKLOADS, matching

    named = [*(options.workload or ()), *(options.exactly or ())]
    digits = "digits" in named or not (named or options.operation or options.dtype)
    wanted = [name for name in options.workload or () if name != "digits"]
    try:
        chosen = matching(wanted) if named else [w for w in WORKLOADS if w.quick or options.full]
    except ValueError as error:
        raise Unusable(str(error)) from None
    chosen += [w for w in WORKLOADS if w.name in (options.exactly or ())]
    chosen = [w for w in chosen if w.dtype in (options.dtype or DTYPES)]
    if not chosen and not digits:
        raise Unusable("no workload is left to measure")
    available = pyce.backends()
    for name in options.backend or ():
        if name not in available:
            reason = pyce.info()["backends"].get(name, "no such backend")
            raise Unusable(f"{name}: {reason}; available: {', '.join(available)}")
    own = pyce.get_num_threads()
    threads = options.threads or ([own, 1] if own > 1 else [own])
    for count in threads:
        before = pyce.get_num_threads()
        pyce.set_num_threads(count)
        runs = pyce.get_num_threads()
        pyce.set_num_threads(before)
        if runs < count:
            raise Unusable(f"{count} threads: this process may use {runs}")
    who = candidates.backends(options.backend or available, threads)
    if options.peers:
        who += candidates.variants() + candidates.others(list(peers.PEERS))
    plan = Plan(workloads=chosen, candidates=who)
    if options.operation:
        plan.operations = tuple(o for o in OPERATIONS if o in options.operation)
    return plan, digits


class _Session:
    """The plugin that gives pytest the plan, and reports in the place of its terminal."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.failures: list[str] = []
        self.skips: list[str] = []

    def pytest_sessionstart(self, session: Any) -> None:
        session.config.pluginmanager.unregister(name="terminalreporter")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid}\n{report.longreprtext}")
        elif report.skipped:
            self.skips.append(report.longrepr[2].removeprefix("Skipped: "))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)


def _measure(plan: Any, digits: bool, output: Path) -> tuple[int, list[str]]:
    """Run the suite; the exit status, and what failed."""
    import pytest

    suite = Path(__file__).parent / "suite"
    session = _Session(plan)
    arguments = [str(suite / "bench_loss.py")] if plan.workloads else []
    arguments += [str(suite / "bench_digits.py")] if digits else []
    arguments += [
        f"-c{suite / 'pytest.ini'}",
        f"--rootdir={suite}",
        f"--benchmark-json={output}",
        "--benchmark-quiet",
        "-ppytest_benchmark.plugin",
        *("-qq", "--no-header", "--capture=no", "-pno:warnings"),
    ]
    with (
        _without_other_plugins(),
        progress(plan, digits) as plan.display,
        warnings.catch_warnings(),
    ):
        # That nothing was measured before Ctrl-C is said in our words.
        warnings.filterwarnings("ignore", message=".*no benchmarks have been run")
        status = pytest.main(arguments, plugins=[_Named(session)])
    for reason in dict.fromkeys(session.skips):
        print(f"left out: {reason}", file=sys.stderr)
    statuses = {
        pytest.ExitCode.OK: terminal.FINE,
        pytest.ExitCode.INTERRUPTED: terminal.INTERRUPTED,
        pytest.ExitCode.TESTS_FAILED: terminal.FAILED,
    }
    return statuses.get(pytest.ExitCode(status), terminal.UNUSABLE), session.failures


@contextmanager
def _without_other_plugins() -> Iterator[None]:
    """Those that are installed might reorder the items, or run them in parallel."""
    before = dict(os.environ)
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Named:
    """Registers the session under the name that the suite asks for."""

    def __init__(self, session: _Session) -> None:
        self.session = session

    def pytest_addhooks(self, pluginmanager: Any) -> None:
        pluginmanager.register(self.session, "pyce-bench")


# ---------------------------------------------------------------------------------------------
# Progress


def expected_seconds(plan: Any, digits: bool) -> dict[str, float]:
    """What each workload will take, roughly: rounds, and calls of the slowest backend."""
    found = {}
    for workload in plan.workloads:
        slow = any(c.backend == "numpy" for c in plan.candidates)
        calls = workload.size * (3e-8 if slow else 3e-9) * len(plan.operations)
        if workload.dtype in ("float16", "float64"):
            calls *= 3
        arrays = workload.size * 1e-8 * plan.effort.blocks
        turns = 0.6 * len(plan.candidates) ** 0.5 * len(plan.operations)
        found[workload.name] = 0.5 + calls + arrays + turns
    if digits:
        found["digits"] = 8.0
    return found


class progress:
    """The display of what is done, and when all will be; lines where there is no terminal."""

    def __init__(self, plan: Any, digits: bool) -> None:
        self._expected = expected_seconds(plan, digits)
        self._begin = time.perf_counter()
        self._finished = 0.0
        self._number = 0
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> progress:
        if sys.stderr.isatty():
            try:
                self._open()
            except ImportError:
                self._rich = None
        return self

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._rich = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]}  {task.fields[doing]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._rich.start()
        total = sum(self._expected.values())
        self._task = self._rich.add_task("measuring", total=total, left="", doing="")

    def __exit__(self, *_: object) -> None:
        if self._rich:
            self._rich.stop()

    def remaining(self, finished: float) -> str:
        """The time that is left, from what was expected and how long it really takes."""
        total = sum(self._expected.values())
        elapsed = time.perf_counter() - self._begin
        pace = elapsed / finished if finished > 0.05 * total else 1.0
        left = max(0, round((total - finished) * pace))
        return f"{left // 60}:{left % 60:02} left"

    def doing(self, workload: str, part: float, what: str) -> None:
        finished = self._finished + part * self._expected[workload]
        if self._rich:
            self._rich.update(
                self._task,
                completed=finished,
                description=workload,
                left=self.remaining(finished),
                doing=what,
            )

    def done(self, workload: str) -> None:
        self._finished += self._expected[workload]
        self._number += 1
        if not self._rich:
            print(
                f"[{self._number}/{len(self._expected)}] {workload}, "
                f"{self.remaining(self._finished)}",
                file=sys.stderr,
                flush=True,
            )


# ---------------------------------------------------------------------------------------------
# The table


def _show(measured: Path, with_goals: bool) -> None:
    from pyce._bench import goals, results

    run = results.load(measured)
    show_times(run)
    for item in run.items.values():
        if "accuracy" in item.about:
            print(
                f"{item.about['stands_for']} on digits, {item.about['candidate']}: "
                f"{readable(item.seconds)}, held-out accuracy {item.about['accuracy']:.2%}"
            )
    if with_goals:
        lines = [
            (
                goal.about,
                goal.workload,
                goal.limit,
                ratio(goal.figure),
                "" if goal.met else "missed",
            )
            for goal in goals.lines(run)
        ]
        terminal.table("Goals", ("goal", "workload", "limit", "measured", ""), lines, left=2)


def show_times(run: Run) -> None:
    """A line for each workload, operation and number of threads, a column for each candidate.

    Variants of a backend are left to the report.
    """
    names = []
    lines: dict[tuple[str, str, int], dict[str, Item]] = {}
    for (workload, operation, candidate), item in run.items.items():
        if operation == "training" or item.about["kind"] == "variant":
            continue
        name = candidate.split(",")[0]
        if name not in names:
            names.append(name)
        lines.setdefault((workload, operation, item.about["threads"]), {})[name] = item
    rows = []
    for (workload, operation, threads), items in lines.items():
        cells = [_cell(items.get(name)) for name in names]
        rows.append((workload, operation, str(threads), *cells))
    if rows:
        terminal.table(
            "Median time, and how many times the floor's it is: 1 is the limit",
            ("workload", "operation", "threads", *names),
            rows,
            left=2,
        )


def _cell(item: Item | None) -> str:
    if item is None:
        return ""
    over = item.over_floor
    beside = f" ({ratio(over)})" if over and item.about["kind"] != "floor" else ""
    return readable(item.seconds) + beside
