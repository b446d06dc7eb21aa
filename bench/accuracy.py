"""Errors in units in the last place (ULP): `python -m bench.accuracy [--readme README.md]`.

Loss and gradient of every backend, and of PyTorch where it is installed, against the tests' oracle
(double-double arithmetic) in the regimes that the promise names. Prints a table; writes
accuracy.json, accuracy.md and a picture for each dtype to bench/results. With `--readme`: puts the
last table between the markers in that file and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import pyce
from bench import measure, peers, report
from bench.workloads import Array

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cases
import oracle

DTYPES = ("float32", "float64")
KINDS = ("loss", "gradient")
BOUNDS = {"loss": 2, "gradient": 4}
REGIMES = {
    "random": "random",
    "spread25": "spread ±25",
    "confident10": "confident by 10",
    "confident30": "confident by 30",
    "confident80": "confident by 80",
    "confident100": "confident by 100",
    "runner-up": "with a runner-up",
    "wrong60": "wrong by 60",
    "offset-1e4": "offset −10⁴",
    "offset1e8": "offset 10⁸",
    "offset1e30": "offset 10³⁰",
    "masked-1e9": "masked with −10⁹",
    "masked-min": "masked with finfo.min",
    "masked-inf": "masked with −inf",
}
SHAPES = ((3000, 10), (100, 1000), (3, 32000))

# Upper ends of the histogram's bins. The nearest number to the truth is within ½.
EDGES = (0.5, 1, 2, 4, 10, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, np.inf)
TORCH = "PyTorch"

# {dtype: {regime: {candidate: {kind: statistics}}}}
Results = dict[str, dict[str, dict[str, dict[str, Any]]]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--readme", type=Path, help="the file with the markers")
    options = parser.parse_args()
    saved = measure.RESULTS / "accuracy.json"
    if options.readme:
        text = markdown(json.loads(saved.read_text(encoding="utf-8")), DTYPES[:1])
        report.replace(options.readme, "accuracy", text)
        return
    found = {"versions": peers.versions(), "results": compute()}
    measure.RESULTS.mkdir(exist_ok=True)
    saved.write_text(json.dumps(found, indent=1), encoding="utf-8")
    (measure.RESULTS / "accuracy.md").write_text(markdown(found), encoding="utf-8")
    print_table(found["results"])
    report.draw_with_matplotlib(lambda: [draw(found, dtype) for dtype in DTYPES])


# ---------------------------------------------------------------------------------------------
# Measuring


def compute() -> Results:
    names = candidates()
    results: Results = {}
    for dtype in DTYPES:
        for regime in REGIMES:
            progress(f"{dtype}, {REGIMES[regime]}")
            errors: dict[str, dict[str, list[Array]]] = {
                name: {kind: [] for kind in KINDS} for name in names
            }
            for rows, classes in SHAPES:
                x, labels, _ = cases.Case(regime, classes, rows).make(dtype)
                exact = oracle.reference(x, labels, reduction="none")
                for name in names:
                    pair = (exact.loss, exact.grad)
                    for kind, got, right in zip(KINDS, answer(name, x, labels), pair, strict=True):
                        error = oracle.ulp_error(got, right)
                        normal = ~(np.abs(right.hi) < oracle.smallest_normal(dtype))
                        errors[name][kind].append(error[normal])
            results.setdefault(dtype, {})[regime] = {
                name: {kind: statistics(np.concatenate(errors[name][kind])) for kind in KINDS}
                for name in names
            }
    progress("")
    return results


def progress(text: str) -> None:
    """What is being done, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:60}\r{text}", end="", file=sys.stderr, flush=True)


def candidates() -> list[str]:
    try:
        import torch  # noqa: F401
    except ImportError:
        return pyce.backends()
    return [*pyce.backends(), TORCH]


def answer(name: str, x: Array, labels: Array) -> tuple[Array, Array]:
    """Loss of each row, and gradient of their sum."""
    if name != TORCH:
        with pyce.use_backend(name):
            loss, grad = pyce.cross_entropy_with_grad(x, labels, reduction="none")
            return loss, grad
    import torch

    leaf = torch.from_numpy(x).requires_grad_()
    losses = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(labels), reduction="none")
    losses.sum().backward()
    assert leaf.grad is not None
    return losses.detach().numpy(), leaf.grad.numpy()


def statistics(errors: Array) -> dict[str, Any]:
    """How errors are spread; none at all where the truth is below the normal numbers."""
    counts = np.bincount(np.searchsorted(EDGES, errors), minlength=len(EDGES))
    some = errors.size > 0
    return {
        "numbers": errors.size,
        "right": float((errors <= 0.5).mean()) if some else None,
        "median": float(np.median(errors)) if some else None,
        "99.9%": float(np.quantile(errors, 0.999, method="higher")) if some else None,
        "max": float(errors.max()) if some else None,
        "histogram": counts.tolist(),
    }


# ---------------------------------------------------------------------------------------------
# Tables


def figure_of(value: float | None) -> str:
    """Two decimals, or a power of ten for what is far out; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 1000 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def print_table(results: Results) -> None:
    for dtype, regimes in results.items():
        rows = []
        for regime, by_name in regimes.items():
            for name, kinds in by_name.items():
                row = [REGIMES[regime], name]
                for kind in KINDS:
                    about = kinds[kind]
                    right = "–" if about["right"] is None else f"{about['right']:.1%}"
                    row += [right, *(figure_of(about[k]) for k in ("median", "99.9%", "max"))]
                rows.append(row)
        headers = ["regime", "", *("loss ≤ ½", "median", "99.9 %", "max")]
        headers += ["gradient ≤ ½", "median", "99.9 %", "max"]
        report.show(f"Errors in ULP, {dtype}; ≤ ½ is the nearest number", headers, rows)


def markdown(found: dict[str, Any], dtypes: Sequence[str] = DTYPES) -> str:
    """The largest errors as Markdown."""
    results: Results = {dtype: found["results"][dtype] for dtype in dtypes}
    names = list(next(iter(results["float32"].values())))
    versions = ", ".join(
        f"{n} {v}" for n, v in found["versions"].items() if n in ("torch", "numpy")
    )
    shapes = ", ".join(f"{rows}×{classes}" for rows, classes in SHAPES)
    parts = [
        f"Largest errors in units in the last place, loss / gradient, over {shapes}; those beyond "
        f"{BOUNDS['loss']} / {BOUNDS['gradient']} in bold; – where the truth is below the normal "
        f"numbers. {versions}."
    ]
    for dtype, regimes in results.items():
        lines = [
            f"| {dtype} | " + " | ".join(names) + " |",
            "| --- |" + " ---: |" * len(names),
        ]
        for regime, by_name in regimes.items():
            cells = [REGIMES[regime]]
            for name in names:
                pair = [(by_name[name][kind]["max"], BOUNDS[kind]) for kind in KINDS]
                cells.append(
                    " / ".join(
                        f"**{figure_of(v)}**" if v is not None and v > bound else figure_of(v)
                        for v, bound in pair
                    )
                )
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------
# The picture


def draw(found: dict[str, Any], dtype: str) -> None:
    """Above: how many results have which error, in all regimes. Below: each regime's largest."""
    from matplotlib import pyplot

    regimes = found["results"][dtype]
    names = list(next(iter(regimes.values())))
    figure, axes = pyplot.subplots(
        2, 2, figsize=(13, 10), layout="constrained", height_ratios=(1, 1.2)
    )
    for column, kind in enumerate(KINDS):
        draw_histogram(axes[0][column], regimes, names, kind)
        draw_largest(axes[1][column], regimes, names, kind)
    axes[1][1].tick_params(labelleft=False)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"Errors in units in the last place (ULP), {dtype}; further left is better")
    path = measure.RESULTS / ("accuracy.png" if dtype == "float32" else f"accuracy_{dtype}.png")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"picture: {path}")


def look(name: str) -> tuple[str, str]:
    return report.LOOKS.get(name, report.OTHER_LOOK)


def draw_histogram(panel: Any, regimes: Any, names: list[str], kind: str) -> None:
    width = 0.84 / len(names)
    for number, name in enumerate(names):
        counts = np.sum([by_name[name][kind]["histogram"] for by_name in regimes.values()], axis=0)
        share = counts / counts.sum()
        at = np.arange(len(EDGES)) - 0.42 + width * (number + 0.5)
        panel.bar(at, share, width, color=look(name)[0])
    bound = EDGES.index(BOUNDS[kind]) + 0.5
    panel.axvline(bound, color="black", linewidth=2)
    panel.text(bound + 0.1, 0.97, f"{BOUNDS[kind]} ULP", transform=panel.get_xaxis_transform())
    panel.texts[-1].set_verticalalignment("top")
    words = ["nearest\nnumber"]
    for low, high in pairwise(EDGES):
        words.append(f"> {tick(low)}" if np.isinf(high) else f"≤ {tick(high)}")
    panel.set_xticks(range(len(EDGES)), words, fontsize=8)
    panel.set_yscale("log")
    panel.set_ylim(1e-7, 2)
    panel.set_ylabel("share of all results (logarithmic)")
    panel.set_xlabel("error in ULP")
    panel.set_title(f"{kind}: how many results have which error")
    style(panel, "y")


def draw_largest(panel: Any, regimes: Any, names: list[str], kind: str) -> None:
    from matplotlib.ticker import FuncFormatter

    for number, name in enumerate(names):
        offset = 0.2 * (number - (len(names) - 1) / 2)  # side by side where they are equal
        points = [
            (about[name][kind]["max"], line + offset)
            for line, about in enumerate(regimes.values())
            if about[name][kind]["max"] is not None
        ]
        color, marker = look(name)
        panel.plot(
            [min(max(x, 0.05), 1e17) for x, _ in points],
            [y for _, y in points],
            linestyle="none",
            marker=marker,
            markersize=7,
            color=color,
            label=name if name == TORCH else f"pyce {name}",
        )
    for line, about in enumerate(regimes.values()):
        if all(about[name][kind]["max"] is None for name in names):
            panel.text(0.5, line, "below the normal numbers", va="center", fontsize=8)
            panel.texts[-1].set_transform(panel.get_yaxis_transform())
    panel.axvline(BOUNDS[kind], color="black", linewidth=2, zorder=1, label="promised at most")
    panel.set_xscale("log")
    panel.set_xlim(left=0.04)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    panel.set_yticks(range(len(regimes)), [REGIMES[name] for name in regimes])
    panel.set_ylim(len(regimes) - 0.4, -0.6)
    panel.set_xlabel("largest error in ULP (logarithmic)")
    panel.set_title(f"{kind}: the largest error of each regime")
    style(panel, "both")


def tick(value: float) -> str:
    if 0.01 < value < 1000:
        return f"{value:g}"
    digits = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
    return "10" + str(round(np.log10(value))).translate(digits)


def style(panel: Any, axis: str) -> None:
    panel.grid(axis=axis, color="#dddddd")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
