"""`python -m pyce` prints what pyce is running on."""

from __future__ import annotations

import argparse
import json
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyce", description="Show the backends, instruction sets and threads in use."
    )
    parser.add_argument("--json", action="store_true", help="print pyce.info() as JSON")
    options = parser.parse_args(arguments)

    from pyce._info import describe, info

    try:
        print(json.dumps(info()) if options.json else describe())
    except ValueError as error:
        print(f"pyce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
