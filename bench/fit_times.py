"""Fits of `SoftmaxRegression` and `LogisticRegression`: `python bench/fit_times.py [--write PAGE]`.

Both are fitted in turn, in one process, with the same parameters. Prints the medians of the times,
the iterations, the objective where each ended (by plain NumPy in float64), and by how much their
probabilities differ; `--write` puts the table between the markers of a page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import readme_tables
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pyce import _cli, _machine
from pyce._bench.formats import duration, ratio
from pyce._bench.workloads import Array
from pyce.sklearn import SoftmaxRegression

HEAD = (
    "data",
    "dtype",
    "LogisticRegression",
    "iterations",
    "SoftmaxRegression",
    "iterations",
    "times as fast",
    "for an iteration",
    "objective, LogisticRegression",
    "SoftmaxRegression",
    "largest difference of probabilities",
)
# Until even the digits as they are, whose features differ much in scale, have converged.
MAX_ITER = 1000


def digits() -> tuple[Array, Array]:
    return load_digits(return_X_y=True)  # type: ignore[no-any-return]


def standardised() -> tuple[Array, Array]:
    X, y = digits()
    return StandardScaler().fit_transform(X), y


def synthetic(rows: int, features: int, classes: int) -> tuple[Array, Array]:
    """Labels drawn from a softmax of linear scores, so that the model fits and errs."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features))
    scores = X @ rng.normal(0, 0.3, (features, classes))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(1)


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "digits, 1797 × 64, 10 classes": digits,
    "digits, standardised": standardised,
    "synthetic, 200,000 × 50, 10 classes": lambda: synthetic(200_000, 50, 10),
    "synthetic, 200,000 × 50, 100 classes": lambda: synthetic(200_000, 50, 100),
}


def objective(model: Any, X: Array, y: Array) -> float:
    X = X.astype(np.float64)
    W, b = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    z = X @ W.T + b
    z -= z.max(1, keepdims=True)
    lse = np.log(np.exp(z).sum(1))
    label = np.searchsorted(model.classes_, y)
    losses = lse - z[np.arange(len(y)), label]
    return float(losses.mean() + (W * W).sum() / (2 * model.C * len(y)))


def measure(name: str, dtype: type[np.floating[Any]], rounds: int) -> list[str]:
    X, y = DATA[name]()
    X = np.ascontiguousarray(X, dtype)
    models = [LogisticRegression(max_iter=MAX_ITER), SoftmaxRegression(max_iter=MAX_ITER)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for model, seconds in zip(models, times, strict=True):
            time.sleep(0.1)  # idle threads of BLAS spin a while
            start = time.perf_counter()
            model.fit(X, y)
            if number:  # the first one warms
                seconds.append(time.perf_counter() - start)
    theirs, ours = map(statistics.median, times)
    steps = [int(model.n_iter_[0]) for model in models]
    ends = [objective(model, X, y) for model in models]
    apart = np.abs(models[0].predict_proba(X) - models[1].predict_proba(X)).max()
    faster = ratio(theirs / ours)
    return [
        name,
        np.dtype(dtype).name,
        duration(theirs),
        str(steps[0]),
        duration(ours),
        str(steps[1]),
        f"{faster} ×" if ours < theirs else f"**{faster} ×**",
        f"{ratio(theirs / steps[0] / (ours / steps[1]))} ×",
        f"{ends[0]:.8f}",
        f"{ends[1]:.8f}",
        f"{apart:.0e}",
    ]


def table(rounds: int) -> str:
    about = _machine.fingerprint()
    libraries = ", ".join(f"{n} {version(n)}" for n in ("numpy", "scipy", "scikit-learn"))
    lines = [
        f"Measured on {about['processor']} with {about['threads']} threads, "
        f"{about['isa'] or 'no C'}; {libraries}. Medians of {rounds} fits of each; "
        f"max_iter={MAX_ITER}, everything else as it is by default. Bold where `SoftmaxRegression` "
        "takes longer.",
        "",
        f"| {' | '.join(HEAD)} |",
        "| --- | --- |" + " ---: |" * (len(HEAD) - 2),
    ]
    for name in DATA:
        for dtype in (np.float64, np.float32):
            print(name, np.dtype(dtype), file=sys.stderr, flush=True)
            lines.append(f"| {' | '.join(measure(name, dtype, rounds))} |")
    return "\n".join(lines) + "\n"


def main(options: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # float32 may not get to the tolerance
        text = table(options.rounds)
    print(text)
    if options.write:
        readme_tables.replace(options.write, "fit-times", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python bench/fit_times.py", description=__doc__)
    made.add_argument("--rounds", type=int, default=7, help="fits of each (default: %(default)s)")
    made.add_argument("--write", type=Path, metavar="FILE", help="a page with the markers")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
