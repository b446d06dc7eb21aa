"""Draw pictures and make one page from files of bench and check.

Several files of bench form a history, of which the newest is shown in full. A file of goals adds a
section. Each picture is also written as a PNG file. The page holds everything that it shows, and
can be sent or printed as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pyce import _cli
from pyce._cli import Unusable

if TYPE_CHECKING:
    from pyce._bench.report.check_files import Check
    from pyce._bench.report.goal_files import Line
    from pyce._bench.results import Run

OUTPUT = Path("pyce-report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a file of bench, of check -o, or of goals",
    )
    add(
        "-o",
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FOLDER",
        help=f"folder to write index.html and the pictures to (default: {OUTPUT}/)",
    )
    add("--json", action="store_true", help="print what was written and the main facts as JSON")


def main(options: argparse.Namespace) -> int:
    runs, checks, goals = load(options.files)
    _cli.require("report", "matplotlib", "jinja2", *(["scipy"] if len(runs) > 1 else []))
    from pyce._bench.report import page

    made = page.make(runs, checks, goals)
    try:
        written = made.write(options.output)
    except OSError as error:
        raise Unusable(f"can't write to {options.output}: {error.strerror}") from None
    if options.json:
        print(json.dumps({"written": [str(path) for path in written], **made.facts}, indent=1))
    else:
        for sentence in made.sentences:
            print(_cli.line(sentence))
        pictures = f"{len(written) - 1} pictures in the same folder"
        print(_cli.line(f"written: {written[0]} and {pictures}"))
    return _cli.FINE


def load(paths: list[Path]) -> tuple[list[Run], list[Check], list[Line]]:
    """The files of bench, oldest first, of check, and of goals; `Unusable` for any other file."""
    from pyce._bench import results
    from pyce._bench.report import check_files, goal_files

    runs: list[Run] = []
    checks: list[Check] = []
    goals: list[Line] = []
    for path in dict.fromkeys(paths):
        content = results.read(path)
        if check_files.is_check(content):
            checks.append(check_files.Check(path, content))
        elif goal_files.is_goals(content):
            goals += goal_files.lines_of(content)
        elif results.is_run(content):
            if not content["benchmarks"]:
                raise Unusable(f"{path} holds no figures")
            runs.append(results.Run(path, content))
        else:
            raise Unusable(
                f"{path} was written by neither `python -m pyce bench` nor `python -m pyce check`"
            )
    if not runs and not checks:
        raise Unusable("there is no file of bench or check to report on")
    return sorted(runs, key=lambda run: run.when), checks, goals
