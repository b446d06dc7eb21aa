"""Draw time and error of `linear_cross_entropy_with_grad` against tolerance.

    PYTHONPATH=.:examples python docs/drawings/filter_tolerance.py PICTURE.svg

The hidden states are those of the model that examples/language_model.py
trained and saved, on text that it has not seen. The times are in units of one
product of the hidden states with the head.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyce
import torch
from language_model import load, machine, split
from matplotlib.ticker import NullLocator
from perplexity import hidden_states
from pyce._bench.report.picture import standalone, themed
from pyce._bench.report.style import THEME, drawing, figure

TOLERANCES = [2.0**power for power in range(-16, 0, 2)]
NAME = "filter-tolerance"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def states(path: Path, count: int) -> tuple[np.ndarray, ...]:
    """Hidden states (count, D), the head (C, D) and the labels (count,)."""
    model, settings, coding = load(path)
    tokens = coding.encode(b"\n".join(split(settings)[1]))[: count + 1]
    parts = hidden_states(model, torch.tensor(tokens), settings.context, 4096)
    hidden, labels = (
        torch.cat(part).numpy() for part in zip(*parts, strict=True)
    )
    return hidden, model.head.detach().numpy(), labels


def measure(
    hidden: np.ndarray,
    head: np.ndarray,
    labels: np.ndarray,
    tolerances: Sequence[float],
    rounds: int,
) -> dict:
    """Times and errors of each tolerance, 0 first; calls in turn, medians."""
    tolerances = [0.0, *tolerances]
    logits = np.empty((len(hidden), len(head)), hidden.dtype)
    out = np.empty_like(hidden), np.empty_like(head), None

    def call(tolerance: float) -> None:
        pyce.linear_cross_entropy_with_grad(
            hidden, head, labels, filter_tolerance=tolerance, out=out
        )

    calls: dict[float | None, Callable[[], object]] = {
        None: lambda: np.matmul(hidden, head.T, out=logits),
        **{one: lambda one=one: call(one) for one in tolerances},
    }
    seconds: dict[float | None, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, function in calls.items():
            began = perf_counter()
            function()
            if number:  # the first one is not counted
                seconds[name].append(perf_counter() - began)
    product = median(seconds[None])
    exact: list[np.ndarray] = []
    found: dict = {"tolerances": tolerances, "product": product}
    found |= {"times": [], "input": [], "linear_weight": []}
    for tolerance in tolerances:
        call(tolerance)
        exact = exact or [part.copy() for part in out[:2]]
        found["times"].append(median(seconds[tolerance]) / product)
        names = ("input", "linear_weight")
        for name, part, right in zip(names, out, exact, strict=False):
            error = np.linalg.norm(part - right) / np.linalg.norm(right)
            found[name].append(float(error))
    return found


def power_of_two(value: float, _: int | None = None) -> str:
    """A label of an axis; the style of the pictures parses no formulas."""
    return "2" + f"{math.log2(value):.0f}".translate(SUPERSCRIPTS)


def draw(found: dict) -> str:
    """The picture as SVG that follows the light or dark theme of the page.

    An error of 0 has no place on a logarithmic axis and is left out.
    """
    colors = {name: light for name, (light, _) in THEME.items()}
    tolerances = found["tolerances"][1:]
    with drawing():
        picture = figure(7, 5.4)
        times, errors = picture.subplots(2, 1, sharex=True)
        exact = found["times"][0]
        times.axhline(3, color=colors["grey"], linestyle=":")
        times.text(tolerances[0], 3, "three products", va="bottom")
        times.axhline(exact, color=colors["vermillion"], label="exact")
        times.plot(
            tolerances,
            found["times"][1:],
            "o-",
            color=colors["blue"],
            label="with filter_tolerance",
        )
        times.set(ylim=(0, None), ylabel="time, in products")
        times.set_title("Time of loss and gradients", loc="left")
        errors.plot(
            tolerances, tolerances, color=colors["muted"], label="tolerance"
        )
        for name, color, marker in (
            ("linear_weight", "green", "s"),
            ("input", "orange", "^"),
        ):
            errors.plot(
                tolerances,
                [error or math.nan for error in found[name][1:]],
                marker + "-",
                color=colors[color],
                label=f"gradient of {name}",
            )
        errors.set_xscale("log", base=2)
        errors.set_yscale("log", base=2)
        errors.set_xticks(tolerances)
        for axis in (errors.xaxis, errors.yaxis):
            axis.set_major_formatter(power_of_two)
            axis.set_minor_locator(NullLocator())
        errors.set(xlabel="filter_tolerance", ylabel="relative error")
        errors.set_title("Error of the gradients, ‖G̃ − G‖/‖G‖", loc="left")
        for panel in (times, errors):
            panel.grid(True)
            panel.legend(loc="best")
        picture.supxlabel(found["machine"], color=colors["muted"], size=8)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        picture.savefig(
            stream, format="svg", facecolor="none", metadata=nothing
        )
    alt = "Time and error against the tolerance"
    return standalone(themed(stream.getvalue(), NAME, alt))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("picture", type=Path, help="the SVG file to write")
    add(
        "--model",
        type=Path,
        default=Path("bench/results/language-model/model.pt"),
        help="saved by examples/language_model.py (default: %(default)s)",
    )
    add("--rows", type=int, default=2048, help="positions (default: 2048)")
    add("--rounds", type=int, default=7, help="calls of each (default: 7)")
    options = parser.parse_args()
    arrays = states(options.model, options.rows)
    found = measure(*arrays, TOLERANCES, options.rounds)
    found["machine"] = f"measured on {machine().partition(';')[0]}"
    options.picture.write_text(draw(found), encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
