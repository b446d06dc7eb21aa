"""Times of fits of `SoftmaxRegression` and of scikit-learn's `LogisticRegression`.

    python bench/fit_times.py [--write PAGE]

`LogisticRegression` is fitted with its default solver, L-BFGS, whose steps `SoftmaxRegression`
takes too, and with Newton's method. The three take turns in one process, with the same parameters.
Prints the medians of their times, the numbers of iterations, the final objectives (computed by
NumPy in float64), and the largest difference of the probabilities of the two with L-BFGS. `--write`
puts the table between the markers `fit-times-ISA` of a page, ISA being the instruction set in use.
"""

from __future__ import annotations

import argparse
import datetime
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
from pytest_benchmark import utils
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

import pyce
from pyce import _cli, _machine
from pyce._bench import results
from pyce._bench.formats import duration, ratio
from pyce._bench.workloads import Array
from pyce.sklearn import SoftmaxRegression

HEAD = (
    "data",
    "dtype",
    "LogisticRegression",
    "iterations",
    "newton-cholesky",
    "iterations",
    "SoftmaxRegression",
    "iterations",
    "times as fast",
    "per iteration",
    "times as fast as newton-cholesky",
    "objective, LogisticRegression",
    "newton-cholesky",
    "SoftmaxRegression",
    "largest difference of probabilities",
)
# Enough for the unscaled digits, whose features differ much in scale, to converge.
MAX_ITER = 1000
# Newton's method is fitted with at most this many coefficients. It computes the matrix of second
# derivatives, whose elements take (classes · features)² · rows multiplications: with 5000
# coefficients and 200,000 rows a fit would take many minutes.
NEWTON_SIZE = 1000


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


def text(rows: int, features: int, classes: int) -> tuple[Any, Array]:
    """Sparse rows of norm 1 with about 60 values each, as those of TF-IDF."""
    rng = np.random.default_rng(0)
    X = sparse.random(rows, features, 60 / features, "csr", random_state=0)
    X = normalize(X)
    scores = X @ rng.normal(0, 3, (features, classes))
    return X, (scores + rng.gumbel(0, 0.3, scores.shape)).argmax(1)


DATA: dict[str, Callable[[], tuple[Any, Array]]] = {
    "digits, 1797 × 64, 10 classes": digits,
    "digits, standardised": standardised,
    "synthetic, 100 × 10, 3 classes": lambda: synthetic(100, 10, 3),
    "synthetic, 1500 × 768, 20 classes": lambda: synthetic(1500, 768, 20),
    "synthetic, 300 × 10,000, 5 classes": lambda: synthetic(300, 10_000, 5),
    "synthetic, 10,000 × 20, 2 classes": lambda: synthetic(10_000, 20, 2),
    "synthetic, 200,000 × 50, 10 classes": lambda: synthetic(200_000, 50, 10),
    "synthetic, 200,000 × 50, 100 classes": lambda: synthetic(200_000, 50, 100),
    "sparse, 1755 × 5108, 17 classes": lambda: text(1755, 5108, 17),
    "sparse, 4809 × 40,000, 17 classes": lambda: text(4809, 40_000, 17),
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


def measure(name: str, dtype: type[np.floating[Any]], rounds: int) -> list[str]:
    X, y = DATA[name]()
    X = X.astype(dtype)  # C-contiguous, or CSR
    models = {
        "lbfgs": LogisticRegression(max_iter=MAX_ITER),
        "newton": LogisticRegression(max_iter=MAX_ITER, solver="newton-cholesky"),
        "pyce": SoftmaxRegression(max_iter=MAX_ITER),
    }
    if X.shape[1] * len(np.unique(y)) > NEWTON_SIZE:
        del models["newton"]
    samples: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for solver, model in models.items():
            time.sleep(0.1)  # idle threads of BLAS spin for a while
            start = time.perf_counter()
            model.fit(X, y)
            if number:  # the first fit is a warm-up
                samples[solver].append(time.perf_counter() - start)
    times = {solver: statistics.median(seconds) for solver, seconds in samples.items()}
    steps = {solver: int(model.n_iter_[0]) for solver, model in models.items()}
    ends = {solver: f"{objective(model, X, y):.8f}" for solver, model in models.items()}
    probabilities = [models[solver].predict_proba(X) for solver in ("lbfgs", "pyce")]
    per_step = times["lbfgs"] / steps["lbfgs"] / (times["pyce"] / steps["pyce"])
    return [
        name,
        np.dtype(dtype).name,
        *(
            cell
            for solver in ("lbfgs", "newton", "pyce")
            for cell in (
                (duration(times[solver]), str(steps[solver])) if solver in models else ("–", "–")
            )
        ),
        _faster(times["lbfgs"], times["pyce"]),
        f"{ratio(per_step)} ×",
        _faster(times["newton"], times["pyce"]) if "newton" in models else "–",
        *(ends.get(solver, "–") for solver in ("lbfgs", "newton", "pyce")),
        f"{np.abs(probabilities[0] - probabilities[1]).max():.0e}",
    ]


def _faster(theirs: float, ours: float) -> str:
    text = f"{ratio(theirs / ours)} ×"
    return text if ours < theirs else f"**{text}**"


def table(rounds: int) -> str:
    about = _machine.fingerprint()
    today = datetime.date.today().isoformat()
    commit_info: Any = utils.get_commit_info
    commit = results.short_commit(commit_info())
    libraries = ", ".join(f"{n} {version(n)}" for n in ("numpy", "scipy", "scikit-learn"))
    lines = [
        f"{readme_tables.measured_on(about, today, commit)}; {libraries}. Medians of {rounds} fits "
        f"of each; max_iter={MAX_ITER}, otherwise with default parameters, but for the solver "
        f"newton-cholesky, which is fitted with at most {NEWTON_SIZE} coefficients. Ratios are in "
        "bold if `SoftmaxRegression` takes longer.",
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # float32 may not reach the tolerance
        text = table(options.rounds)
    print(text)
    if options.write:
        readme_tables.replace(options.write, f"fit-times-{pyce.info()['isa']}", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python bench/fit_times.py", description=__doc__)
    made.add_argument(
        "--rounds", type=int, default=7, help="number of fits of each (default: %(default)s)"
    )
    made.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the markers")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
