"""Put measured tables between the markers of a README: `python -m pyce._bench.readme README.md`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyce._bench import promises, regimes, terminal
from pyce._bench.check import FLOATS, figure_of
from pyce._bench.terminal import Unusable

KINDS = ("loss", "gradient")


def markdown(found: dict[str, Any], dtypes: Sequence[str] = FLOATS) -> str:
    """The largest errors that `python -m pyce check -o` wrote down, in the regimes promised."""
    bounds = promises.LIMITS["cross-entropy"]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in found["versions"].items()
        if name in ("torch", "numpy")
    )
    shapes = ", ".join(f"{rows}×{classes}" for rows, classes in found["shapes"])
    parts = [
        f"Largest errors in units in the last place, loss / gradient, over {shapes}; those beyond "
        f"{bounds['loss']:g} / {bounds['gradient']:g} in bold; – where the truth is below the "
        f"normal numbers. {versions}."
    ]
    for dtype in dtypes:
        results = found["results"][dtype]
        names = list(next(iter(results.values())))
        lines = [f"| {dtype} | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        for regime in regimes.PROMISED:
            if regime in results:
                cells = [_cell(results[regime][name]) for name in names]
                lines.append("| " + " | ".join([regimes.TITLES[regime], *cells]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(about: dict[str, Any]) -> str:
    figures = []
    for kind in KINDS:
        most = about[kind]["max"]
        beyond = most is not None and most > promises.LIMITS["cross-entropy"][kind]
        figures.append(f"**{figure_of(most)}**" if beyond else figure_of(most))
    return " / ".join(figures)


def replace(readme: Path, name: str, content: str) -> None:
    """Replace what stands between the markers of that name in `readme`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise Unusable(f"{readme.name} must have the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n\n{content}\n{end}{after}", encoding="utf-8")


def main(options: argparse.Namespace) -> int:
    try:
        found = json.loads(options.accuracy.read_text(encoding="utf-8"))
        replace(options.readme, "accuracy", markdown(found, FLOATS[:1]))
    except OSError as error:
        raise Unusable(f"{error.filename}: {error.strerror}") from None
    return terminal.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m pyce._bench.readme", description=__doc__)
    made.add_argument("readme", type=Path, help="the file with the markers")
    made.add_argument(
        "--accuracy",
        type=Path,
        default=Path("bench/results/accuracy.json"),
        help="what `python -m pyce check -o` wrote (default: %(default)s)",
    )
    return made


if __name__ == "__main__":
    sys.exit(terminal.run(main, parser().parse_args()))
