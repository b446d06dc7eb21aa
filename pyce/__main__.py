"""`python -m pyce` says what pyce runs on; its sub-commands measure, check, report and train."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from pyce._bench import terminal

# Sub-command: what it does. Each is a module of pyce._bench with `add_arguments` and `main`.
COMMANDS = {
    "bench": "measure the backends, and other libraries beside them",
    "check": "compare every backend with exact results, in units in the last place",
    "report": "make pictures and a page of what bench and check wrote",
    "compare": "look for slow-downs beyond noise between two files of bench",
    "demo": "train two classifiers on images, with a learning rate that is found",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m pyce",
        description="Without a command: show the backends, instruction sets and threads in use.",
    )
    made.add_argument("--json", action="store_true", help="print pyce.info() as JSON")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, about in COMMANDS.items():
        module = importlib.import_module(f"pyce._bench.{name}")
        sub = commands.add_parser(
            name,
            help=about,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.main)
    made.set_defaults(run=show)
    return made


def show(options: argparse.Namespace) -> int:
    from pyce._info import describe

    about = terminal.info()
    print(json.dumps(about) if options.json else describe())
    return terminal.FINE


def main(arguments: list[str] | None = None) -> int:
    return terminal.run(_run, arguments)


def _run(arguments: list[str] | None) -> int:
    options = parser().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
