"""Look for significant slow-downs between two files of bench from the same kind of machine.

BASE is a file, or a folder of which the newest file from this kind of machine is taken. The exit
status is 1 if a backend of pyce became slower. --confirm measures again what seems slower, which
must be done on the machine of NEW, and counts only what is slower again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyce import _cli, _machine
from pyce._cli import Unusable

if TYPE_CHECKING:
    from pyce._bench.results import Run
    from pyce._bench.significance import Change


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", metavar="BASE", type=Path, help="the earlier file, or a folder of files")
    add("new", metavar="NEW", type=Path, help="the later file")
    add("--confirm", action="store_true", help="measure again what seems slower")
    add("--all", action="store_true", help="also list what did not change")
    add("--json", action="store_true", help="print the changes as JSON")


def main(options: argparse.Namespace) -> int:
    _cli.require("compare", "scipy")
    from pyce._bench import results, significance

    new = results.load(options.new)
    base = _newest(options.base, new) if os.path.isdir(options.base) else results.load(options.base)
    if base.machine["kind"] != new.machine["kind"]:
        raise Unusable(
            f"{base.path} is from another kind of machine ({base.machine['kind']}) than "
            f"{new.path} ({new.machine['kind']})"
        )
    found = significance.compare(base, new)
    if not found:
        raise Unusable(f"{base.path} and {new.path} have nothing in common")
    if options.confirm:
        found = confirmed(found, base, partial(_measured_again, new))
    slower = [change for change in found if change.verdict == "slower"]
    if options.json:
        print(json.dumps({"base": str(base.path), "changes": [_plain(c) for c in found]}))
    else:
        _show(base, found, options.all)
    return _cli.FAILED if slower else _cli.FINE


def _newest(folder: Path, new: Run) -> Run:
    """The newest file in the folder from the kind of machine of `new`."""
    from pyce._bench import results

    found = [results.load(path) for path in sorted(folder.glob("*.json"))]
    fit = [run for run in found if run.machine["kind"] == new.machine["kind"]]
    if not fit:
        raise Unusable(
            f"no file in {folder} is from this kind of machine ({new.machine['kind']}); "
            f"`python -m pyce bench --output {folder / 'FILE.json'}` writes one"
        )
    return max(fit, key=lambda run: run.when)


def confirmed(found: list[Change], base: Run, measure: Callable[[list[str]], Run]) -> list[Change]:
    """The changes, with "not confirmed" for those that a second measurement does not show."""
    from dataclasses import replace

    from pyce._bench import significance

    suspects = [change.key for change in found if change.verdict == "slower"]
    if not suspects:
        return found
    workloads = list(dict.fromkeys(workload for workload, _, _ in suspects))
    print(f"measuring again: {', '.join(workloads)}", file=sys.stderr)
    again = {c.key for c in significance.compare(base, measure(workloads)) if c.verdict == "slower"}
    return [
        replace(change, verdict="not confirmed")
        if change.verdict == "slower" and change.key not in again
        else change
        for change in found
    ]


def again(new: Run) -> list[str]:
    """The options of `bench` that measure the same candidates as a run."""
    own = [item.about for item in new.items.values() if item.about["kind"] == "backend"]
    names = dict.fromkeys(about["backend"] for about in own if about["backend"])
    counts = dict.fromkeys(str(about["threads"]) for about in own)
    # Other libraries take turns with the backends and affect their times.
    peers = ["--peers"] if new.candidates("variant", "peer") else []
    isa = ["--isa", new.machine["isa"]] if _machine.widest_isa(new.machine) else []
    return ["--backend", ",".join(names), "--threads", ",".join(counts), *isa, *peers]


def _measured_again(new: Run, workloads: list[str]) -> Run:
    from pyce._bench import results

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "again.json"
        command = [sys.executable, "-m", "pyce", "bench", "--json", "--output", str(output)]
        command += again(new)
        for name in workloads:
            command += ["--exactly", name]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise Unusable(f"measuring again ended with status {done.returncode}")
        run = results.load(output)
        run.items  # noqa: B018  read before the file is removed
        return run


def _plain(change: Change) -> dict[str, object]:
    workload, operation, candidate = change.key
    return {
        "workload": workload,
        "operation": operation,
        "candidate": candidate,
        "ratio": None if math.isnan(change.ratio) else change.ratio,
        "p": change.p,
        "verdict": change.verdict,
    }


def _show(base: Run, found: list[Change], everything: bool) -> None:
    rows = [
        (*change.key, f"{change.ratio:.2f}", f"{change.p:.1g}", change.verdict)
        for change in sorted(found, key=lambda c: -math.inf if math.isnan(c.ratio) else -c.ratio)
        if everything or change.verdict not in ("same", "unknown") or math.isnan(change.ratio)
    ]
    if rows:
        _cli.table(
            "Changes: ratio of the time after to the time before",
            ("workload", "operation", "", "ratio", "p", "verdict"),
            rows,
            left=3,
        )
    counts = {
        verdict: sum(change.verdict == verdict for change in found)
        for verdict in ("slower", "not confirmed", "faster", "same", "unknown")
    }
    counted = ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)
    before = " ".join(filter(None, (base.path.name, "of", base.when[:10], base.commit)))
    print(_cli.line(f"against {before}: {counted}"))
    if counts["unknown"]:
        print(
            "unknown: too few blocks for a verdict, because a single call takes long, or times "
            "that are not positive numbers"
        )
