"""`python -m pyce` shows the settings in use; its sub-commands measure, check, report and train."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

import pyce
from pyce import _cli

# Sub-command: its module, which has `add_arguments` and `main`, and what it does.
COMMANDS = {
    "bench": ("pyce._bench.bench", "measure the backends, and other libraries for comparison"),
    "check": (
        "pyce._check.check",
        "compare every backend with exact results, in units in the last place",
    ),
    "report": ("pyce._bench.report", "make pictures and a page from the files of bench and check"),
    "compare": (
        "pyce._bench.compare",
        "look for significant slow-downs between files of bench",
    ),
    "demo": ("pyce._bench.demo", "find learning rates and train two classifiers on images"),
}


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph of a description to the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(part, width, indent) for part in text.split("\n\n"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m pyce",
        description="Without a command: show the backends, instruction sets and threads in use.",
    )
    made.add_argument("--json", action="store_true", help="print pyce.info() as JSON")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (path, about) in COMMANDS.items():
        module = importlib.import_module(path)
        sub = commands.add_parser(
            name,
            help=about,
            description=module.__doc__,
            formatter_class=_Paragraphs,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.main)
    made.set_defaults(run=show)
    return made


def show(options: argparse.Namespace) -> int:
    from pyce._info import describe

    with _cli.reporting_without_c():
        about = _cli.info()
        print(json.dumps(about) if options.json else describe())
    return _cli.FINE


def main(arguments: list[str] | None = None) -> int:
    return _cli.run(_run, arguments)


def _run(arguments: list[str] | None) -> int:
    if not hasattr(pyce, "info"):
        raise _cli.Unusable(
            f"{pyce.__file__} is of another distribution, pyce, which was installed over this one: "
            "pip uninstall pyce pyce-kernels, then install pyce-kernels again"
        )
    options = parser().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
