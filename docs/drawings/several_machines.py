"""Draw bytes and time of a row against the number of ranks.

    PYTHONPATH=.:bench python docs/drawings/several_machines.py PICTURE.svg

The figures are those of a file that `bench/ranks.py --output` wrote.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import ranks
from pyce._bench.report.picture import standalone, themed
from pyce._bench.report.style import THEME, drawing, figure, logarithmic

NAME = "several-machines"
NETWORK = "100 Gbit/s"
# What the network would carry if sums were added up by the network's
# reductions, each of 4 bytes a row: maximum, sum and the label's logit.
REDUCED = 3 * 4


def draw(found: dict[str, Any]) -> str:
    """The picture as SVG that follows the light or dark theme of the page."""
    colors = {name: light for name, (light, _) in THEME.items()}
    costs = ranks.Costs(**found["all threads"])
    speed = ranks.NETWORKS[NETWORK]
    several = ranks.RANKS[1:]
    with drawing():
        picture = figure(7, 7.2)
        sizes, times = picture.subplots(2, 1, sharex=True)
        received = {
            "logits": ("vermillion", lambda n: logits_received(n)),
            "states": ("blue", lambda n: (n - 1) * ranks.state_bytes(n)),
            "three reductions": (
                "grey",
                lambda n: 2 * (n - 1) / n * REDUCED,
            ),
        }
        for label, (color, size) in received.items():
            values = [size(n) for n in several]
            sizes.plot(several, values, color=colors[color], label=label)
        logarithmic(sizes.yaxis, 8, 2e6)
        sizes.set_ylabel("bytes")
        sizes.set_title("Bytes of a row that a rank receives", loc="left")

        parts = [costs.parts(n, ranks.ROWS, speed) for n in several]
        looks = {
            "own logits": ("blue", "own logits"),
            "combining": ("orange", "combining states"),
            "network": ("green", f"states over {NETWORK}"),
            "calls": ("purple", "once for each call"),
        }
        for part, (color, label) in looks.items():
            values = [1e6 * each[part] for each in parts]
            times.plot(several, values, color=colors[color], label=label)
        total = [1e6 * sum(each.values()) for each in parts]
        times.plot(several, total, color=colors["ink"], lw=2, label="sum")
        gathering = [
            1e6 * costs.gathering(n, ranks.ROWS, speed) for n in several
        ]
        times.plot(
            several,
            gathering,
            "--",
            color=colors["vermillion"],
            label=f"gathering logits over {NETWORK}",
        )
        measured = [1e6 * found["ranks"][str(n)] for n in several]
        times.plot(
            several,
            measured,
            "o",
            color=colors["ink"],
            label="measured, without network",
        )
        logarithmic(times.xaxis, 1.8, 570)
        times.set_xticks(several, map(str, several))
        logarithmic(times.yaxis, 0.01, 2 * max(gathering))
        times.set(xlabel="ranks", ylabel="µs")
        times.set_title("Time of a row", loc="left")
        for panel in (sizes, times):
            panel.grid(True)
            panel.legend(loc="best", ncols=2, fontsize=8)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        picture.savefig(
            stream, format="svg", facecolor="none", metadata=nothing
        )
    alt = "Bytes received and time of a row against the number of ranks"
    return standalone(themed(stream.getvalue(), NAME, alt))


def logits_received(count: int) -> int:
    """The bytes of the other ranks' logits."""
    return 4 * (ranks.VOCABULARY - ranks.classes_of(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("picture", type=Path, help="the SVG file to write")
    add(
        "--figures",
        type=Path,
        default=Path("bench/results/ranks.json"),
        help="written by bench/ranks.py (default: %(default)s)",
    )
    options = parser.parse_args()
    found = json.loads(options.figures.read_text(encoding="utf-8"))
    options.picture.write_text(draw(found), encoding="utf-8")


if __name__ == "__main__":
    main()
