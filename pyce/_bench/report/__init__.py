"""Draw pictures, and make one page, of what bench and check wrote.

Several files of bench are a history; the newest is shown in full. Each picture is written as PNG,
too. The page needs nothing beside it: it can be sent and printed as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pyce._bench import terminal
from pyce._bench.terminal import Unusable

if TYPE_CHECKING:
    from pyce._bench.report.checks import Check
    from pyce._bench.results import Run

OUTPUT = Path("pyce-report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="a file of bench, or of check -o")
    add(
        "-o",
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FOLDER",
        help=f"folder to write index.html and the pictures to (default: {OUTPUT}/)",
    )
    add("--json", action="store_true", help="print what was written and the notable facts as JSON")


def main(options: argparse.Namespace) -> int:
    runs, checks = load(options.files)
    terminal.require("report", "matplotlib", "jinja2", *(["scipy"] if len(runs) > 1 else []))
    from pyce._bench.report import page

    made = page.make(runs, checks)
    try:
        written = made.write(options.output)
    except OSError as error:
        raise Unusable(f"can't write to {options.output}: {error.strerror}") from None
    if options.json:
        print(json.dumps({"written": [str(path) for path in written], **made.facts}, indent=1))
    else:
        for sentence in made.sentences:
            print(page.printable(sentence))
        print(f"written: {written[0]} and {len(written) - 1} pictures beside it")
    return terminal.FINE


def load(paths: list[Path]) -> tuple[list[Run], list[Check]]:
    """The files of bench, oldest first, and those of check; `Unusable` for any other."""
    from pyce._bench import results
    from pyce._bench.report import checks

    runs, found = [], []
    for path in dict.fromkeys(paths):
        content = results.read(path)
        if checks.is_check(content):
            found.append(checks.Check(path, content))
        elif results.is_run(content):
            if not content["benchmarks"]:
                raise Unusable(f"{path} holds no figures")
            runs.append(results.Run(path, content))
        else:
            raise Unusable(
                f"{path} was written by neither `python -m pyce bench` nor `python -m pyce check`"
            )
    return sorted(runs, key=lambda run: run.when), found
