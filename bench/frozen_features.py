"""Put the table of examples/frozen_features.py into a page: `python bench/frozen_features.py PAGE`.

It replaces the text between the markers `frozen-features`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import readme_tables

from pyce import _cli

EXAMPLE = Path(__file__).parents[1] / "examples" / "frozen_features.py"


def main(options: argparse.Namespace) -> int:
    table = []
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if line.startswith("|"):
                table.append(line)
    if run.returncode:
        return run.returncode
    text = f"{readme_tables.measured_now()}.\n\n{''.join(table)}"
    readme_tables.replace(options.page, "frozen-features", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python bench/frozen_features.py", description=__doc__)
    made.add_argument("page", type=Path, metavar="PAGE", help="a Markdown file with the markers")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
