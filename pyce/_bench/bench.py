"""Measure the backends on the tracked workloads, and the floor: the time of a copy of the logits.

Without options, measures the quick workloads, in about ten minutes on two processors. Prints a
table and writes a file for `python -m pyce report`, `python -m pyce compare` and
pytest-benchmark's own tools. Ctrl-C ends the session early and keeps what has been measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyce
from pyce import _cli, _machine
from pyce._bench.formats import duration, ratio
from pyce._bench.progress import Progress
from pyce._cli import Unusable
from pyce._selection import held_to

if TYPE_CHECKING:
    from pyce._bench.results import Item, Run

OUTPUT = Path("pyce-bench.json")
DTYPES = ("float16", "bfloat16", "float32", "float64")
OPERATIONS = ("forward", "fused", "backward", "head-forward", "head-fused", "head-filtered")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--list", action="store_true", help="list the workloads and stop")
    add("--full", action="store_true", help="every workload, not only the quick ones")
    add(
        "-w",
        "--workload",
        action="append",
        metavar="NAME",
        help="only the workload of this name, or those whose name or description begins so or is "
        "matched by a pattern like "
        "'*x1000*'; may be given more than once",
    )
    add("--dtype", type=_cli.listed(DTYPES), help="only these: " + ",".join(DTYPES))
    add("--operation", type=_cli.listed(OPERATIONS), help="only these: " + ",".join(OPERATIONS))
    add(
        "--isa",
        metavar="NAME",
        help="hold the C backend to this instruction set, for example avx2 on a processor with "
        "AVX-512; Numba and other libraries use all that the processor has",
    )
    add("-b", "--backend", type=_cli.names, help="only these backends, for example c,numpy")
    add(
        "--threads",
        type=_counts,
        help="numbers of threads to measure, for example 1,2,4 (default: 1 and all)",
    )
    add(
        "--peers",
        action="store_true",
        help="also PyTorch, JAX and scikit-learn if installed, and variants of the C backend",
    )
    add("--exactly", action="append", metavar="NAME", help=argparse.SUPPRESS)  # for `compare`
    add("-o", "--output", type=Path, default=OUTPUT, help=f"file to write (default: {OUTPUT})")
    add("--json", action="store_true", help="print the file's content and nothing else")


def _counts(text: str) -> list[int]:
    try:
        found = list(dict.fromkeys(int(name) for name in _cli.names(text)))
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of threads")
    return found


def main(options: argparse.Namespace) -> int:
    from pyce._bench.workloads import WORKLOADS

    if options.list:
        rows = [(w.name, w.stands_for, "quick" if w.quick else "full") for w in WORKLOADS]
        if options.json:
            print(json.dumps([dict(zip(("name", "for", "set"), row, strict=True)) for row in rows]))
        else:
            _cli.table("Workloads", ("name", "stands for", "set"), rows, left=3)
        return _cli.FINE
    _cli.require("bench", "pytest", "pytest_benchmark")
    _cli.info()
    isas = pyce.info()["isas"]
    if options.isa is not None and options.isa not in isas:
        raise Unusable(
            f"--isa {options.isa}: the C backend runs {', '.join(isas)} here"
            if isas
            else f"--isa {options.isa}: {pyce.info()['backends']['c']}"
        )
    with held_to(options.isa):
        return _bench(options)


def _bench(options: argparse.Namespace) -> int:
    plan, digits = _plan(options)
    _cli.writable(options.output)
    # Into a temporary file: an existing output stays until there are results to replace it.
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / OUTPUT
        status, failures = _measure(plan, digits, measured)
        try:
            if measured.exists():
                _keep(measured, options)
        finally:
            for text in failures:
                print(text, file=sys.stderr)
        if not measured.exists():
            if status == _cli.INTERRUPTED:
                raise KeyboardInterrupt
            raise Unusable("nothing was measured")
    if status == _cli.INTERRUPTED:
        print("pyce: interrupted; the results so far are above", file=sys.stderr)
    return status


def _keep(measured: Path, options: argparse.Namespace) -> None:
    """Write the results to the output file, and print them."""
    content = measured.read_text(encoding="utf-8")
    try:
        _cli.write(options.output, content)
    finally:
        if options.json:
            print(content)
        else:
            _show(measured)
    if not options.json:
        output = _cli.line(str(options.output))
        print(f"written: {output}; `python -m pyce report {output}` draws pictures")


def _plan(options: argparse.Namespace) -> tuple[Any, bool]:
    """The plan of the options, and whether the training on digits is part of it."""
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
        try:
            pyce.set_num_threads(count)
        except ValueError as error:  # beyond 64 bits
            raise Unusable(str(error)) from None
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
    """A pytest plugin that holds the plan and collects failures instead of printing them."""

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
    """Run the suite; returns the exit status and the texts of the failures."""
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
        Progress(plan, digits) as plan.display,
        warnings.catch_warnings(),
    ):
        # The command itself says so if nothing was measured before Ctrl-C.
        warnings.filterwarnings("ignore", message=".*no benchmarks have been run")
        status = pytest.main(arguments, plugins=[_Named(session)])
    for reason in dict.fromkeys(session.skips):
        print(f"left out: {reason}", file=sys.stderr)
    statuses = {
        pytest.ExitCode.OK: _cli.FINE,
        pytest.ExitCode.INTERRUPTED: _cli.INTERRUPTED,
        pytest.ExitCode.TESTS_FAILED: _cli.FAILED,
    }
    return statuses.get(pytest.ExitCode(status), _cli.UNUSABLE), session.failures


@contextmanager
def _without_other_plugins() -> Iterator[None]:
    """Load no other pytest plugins, which might reorder the items or run them in parallel."""
    before = dict(os.environ)
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Named:
    """Registers the session under the name that the suite looks up."""

    def __init__(self, session: _Session) -> None:
        self.session = session

    def pytest_addhooks(self, pluginmanager: Any) -> None:
        pluginmanager.register(self.session, "pyce-bench")


# ---------------------------------------------------------------------------------------------
# The table


def _show(measured: Path) -> None:
    from pyce._bench import results

    run = results.load(measured)
    show_times(run)
    for item in run.items.values():
        if "accuracy" in item.about:
            print(
                f"{item.about['stands_for']} on digits, {item.about['candidate']}: "
                f"{duration(item.seconds)}, held-out accuracy {item.about['accuracy']:.2%}"
            )


# What a user should know of each floor: its operations, and what it is.
_FLOORS = (
    (("forward",), "one read of the logits"),
    (("fused", "backward"), "a copy of the logits to the gradient"),
    (
        ("head-forward", "head-fused", "head-filtered"),
        "one product of the hidden states with the weight; loss and gradients need three",
    ),
)


def show_times(run: Run) -> None:
    """Print a line for each workload, operation and number of threads, a column for each candidate.

    Variants of a backend are only in the report.
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
    widest = _machine.widest_isa(run.machine)
    held = f" (C held to {run.machine['isa']}, the processor has {widest})" if widest else ""
    rows = []
    for (workload, operation, threads), items in lines.items():
        cells = [_cell(items.get(name)) for name in names]
        rows.append((workload, operation, str(threads), *cells))
    if rows:
        _cli.table(
            "Median time, and its ratio to the floor" + held,
            ("workload", "operation", "threads", *names),
            rows,
            left=2,
        )
        measured = {operation for _, operation, _ in lines}
        for operations, what in _FLOORS:
            those = [name for name in operations if name in measured]
            if those:
                print(f"floor of {' and '.join(those)}: {what}")
    if run.disturbed:
        print(f"Note: {run.disturbed}")


def _cell(item: Item | None) -> str:
    if item is None:
        return ""
    over = item.over_floor
    floors = f" ({ratio(over)})" if over and item.about["kind"] != "floor" else ""
    return duration(item.seconds) + floors
