"""Times of fits of `SoftmaxRegression` and of scikit-learn's `LogisticRegression`.

    python bench/fit_times.py [--write PAGE]

The two take turns in one process, with the same solver and parameters: L-BFGS, the default of both,
and Newton's method for few coefficients. Prints a table for each solver: the medians of the times,
the numbers of iterations, the final objectives (computed by NumPy in float64), and the largest
difference of the probabilities. `--write` puts the tables between the markers `fit-times-ISA` of a
page, ISA being the instruction set in use. Takes about seven minutes on two processors.
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
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

import pyce
from pyce import _cli
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
    "per iteration",
    "objective, LogisticRegression",
    "SoftmaxRegression",
    "largest difference of probabilities",
)
# Enough for the unscaled digits, whose features differ much in scale, to converge.
MAX_ITER = 1000
MOST_FITS, LEAST_FITS = 11, 3  # of each, after the first one, which is not timed


def digits() -> tuple[Array, Array]:
    return load_digits(return_X_y=True)  # type: ignore[no-any-return]


def standardised() -> tuple[Array, Array]:
    X, y = digits()
    return StandardScaler().fit_transform(X), y


def synthetic(rows: int, features: int, classes: int) -> tuple[Array, Array]:
    """Labels drawn from a softmax of linear scores: the model is right, but not always correct."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features))
    scores = X @ rng.normal(0, 0.3, (features, classes))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(1)


def unscaled(rows: int, features: int, classes: int) -> tuple[Array, Array]:
    """`synthetic` with features whose scales go from 0.01 to 100."""
    X, y = synthetic(rows, features, classes)
    return X * np.logspace(-2, 2, features), y


def text(rows: int, features: int, classes: int) -> tuple[Any, Array]:
    """Sparse rows of norm 1 with about 60 values each, as those of TF-IDF."""
    rng = np.random.default_rng(0)
    X = sparse.random(rows, features, 60 / features, "csr", random_state=0)
    X = normalize(X)
    scores = X @ rng.normal(0, 3, (features, classes))
    return X, (scores + rng.gumbel(0, 0.3, scores.shape)).argmax(1)


Data = Callable[[], tuple[Any, Array]]
DATA: dict[str, dict[str, Data]] = {
    "lbfgs": {
        "digits, 1797 × 64, 10 classes": digits,
        "digits, standardised": standardised,
        "synthetic, 100 × 10, 3 classes": lambda: synthetic(100, 10, 3),
        "synthetic, 1500 × 768, 20 classes": lambda: synthetic(1500, 768, 20),
        "synthetic, 300 × 10,000, 5 classes": lambda: synthetic(300, 10_000, 5),
        "synthetic, 10,000 × 20, 2 classes": lambda: synthetic(10_000, 20, 2),
        "synthetic, 200,000 × 50, 10 classes": lambda: synthetic(200_000, 50, 10),
        "synthetic, 50,000 × 50, 100 classes": lambda: synthetic(50_000, 50, 100),
        "unscaled, 20,000 × 30, 2 classes": lambda: unscaled(20_000, 30, 2),
        "unscaled, 20,000 × 30, 3 classes": lambda: unscaled(20_000, 30, 3),
        "sparse, 1755 × 5108, 17 classes": lambda: text(1755, 5108, 17),
        "sparse, 4809 × 40,000, 17 classes": lambda: text(4809, 40_000, 17),
    },
    "newton-cholesky": {
        "synthetic, 100 × 10, 3 classes": lambda: synthetic(100, 10, 3),
        "synthetic, 10,000 × 20, 2 classes": lambda: synthetic(10_000, 20, 2),
        "synthetic, 200,000 × 50, 3 classes": lambda: synthetic(200_000, 50, 3),
        "unscaled, 20,000 × 30, 2 classes": lambda: unscaled(20_000, 30, 2),
        "unscaled, 20,000 × 30, 3 classes": lambda: unscaled(20_000, 30, 3),
        "unscaled, 20,000 × 20, 10 classes": lambda: unscaled(20_000, 20, 10),
    },
}


def objective(model: Any, X: Any, y: Array) -> float:
    X = X.astype(np.float64)
    W, b = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    z = X @ W.T + b
    if z.shape[1] == 1:  # of two classes, the logit of the second minus that of the first
        z = np.hstack([np.zeros_like(z), z])
    z -= z.max(1, keepdims=True)
    lse = np.log(np.exp(z).sum(1))
    label = np.searchsorted(model.classes_, y)
    losses = lse - z[np.arange(len(y)), label]
    return float(losses.mean() + (W * W).sum() / (2 * model.C * len(y)))


def measure(data: Data, solver: str, dtype: type[np.floating[Any]], seconds: float) -> list[str]:
    """Times and results of fits in turn, for about that many seconds."""
    X, y = data()
    X = X.astype(dtype)  # C-contiguous, or CSR
    models = [kind(max_iter=1, solver=solver) for kind in (LogisticRegression, SoftmaxRegression)]
    for model in models:
        model.fit(X, y).set_params(max_iter=MAX_ITER)
    samples: list[list[float]] = [[], []]
    begin = time.perf_counter()
    while len(samples[0]) < MOST_FITS and (
        len(samples[0]) < LEAST_FITS or time.perf_counter() - begin < seconds
    ):
        for model, sample in zip(models, samples, strict=True):
            time.sleep(0.1)  # idle threads of BLAS spin for a while
            start = time.perf_counter()
            model.fit(X, y)
            sample.append(time.perf_counter() - start)
    theirs, ours = map(statistics.median, samples)
    steps = [int(model.n_iter_[0]) for model in models]
    p, q = (model.predict_proba(X) for model in models)
    return [
        np.dtype(dtype).name,
        duration(theirs),
        str(steps[0]),
        duration(ours),
        str(steps[1]),
        f"{ratio(theirs / ours)} ×" if ours < theirs else f"**{ratio(theirs / ours)} ×**",
        f"{ratio(theirs / steps[0] / (ours / steps[1]))} ×",
        *(f"{objective(model, X, y):.8f}" for model in models),
        f"{np.abs(p - q).max():.0e}",
    ]


def tables(seconds: float) -> str:
    libraries = ", ".join(f"{n} {version(n)}" for n in ("numpy", "scipy", "scikit-learn"))
    parts = [
        f"{readme_tables.measured_now()}; {libraries}. Medians of {LEAST_FITS} "
        f"to {MOST_FITS} fits of each; max_iter={MAX_ITER}, otherwise with default parameters. "
        "Ratios are in bold if `SoftmaxRegression` takes longer."
    ]
    for solver, data in DATA.items():
        lines = [f"| {' | '.join(HEAD)} |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
        for name, load in data.items():
            for dtype in (np.float64, np.float32):
                print(solver, name, np.dtype(dtype), file=sys.stderr, flush=True)
                lines.append(f"| {name} | {' | '.join(measure(load, solver, dtype, seconds))} |")
        parts.append(f'`solver="{solver}"`\n\n' + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(options: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # float32 may not reach the tolerance
        text = tables(options.seconds)
    print(text)
    if options.write:
        readme_tables.replace(options.write, f"fit-times-{pyce.info()['isa']}", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python bench/fit_times.py", description=__doc__)
    made.add_argument(
        "--seconds", type=float, default=3, help="for each row of a table (default: %(default)s)"
    )
    made.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the markers")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
