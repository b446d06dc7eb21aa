"""`python -m bench [--full] [--list] [-k EXPRESSION]`: measure, then show the table and pictures.

Writes bench/results/latest.json and pictures beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from bench import measure, report
from bench.workloads import WORKLOADS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the backends.")
    parser.add_argument("--full", action="store_true", help="every workload, not only the quick")
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    parser.add_argument("-k", metavar="EXPRESSION", help="only matching items, as in pytest")
    options = parser.parse_args()
    if options.list:
        rows = [(w.name, "quick" if w.quick else "full", w.stands_for) for w in WORKLOADS]
        report.show("Workloads", ("name", "set", "stands for"), rows)
        return 0
    measure.RESULTS.mkdir(exist_ok=True)
    latest = measure.RESULTS / "latest.json"
    latest.unlink(missing_ok=True)
    arguments = [str(Path(__file__).parent), "--benchmark-quiet", f"--benchmark-json={latest}"]
    arguments += ["--full"] if options.full else []
    arguments += ["-k", options.k] if options.k else []
    status = pytest.main(arguments)
    if latest.exists() and latest.stat().st_size:
        report.main([])
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
