"""A linear classifier on frozen features: time and memory against scikit-learn's.

    python examples/frozen_features.py
    python examples/frozen_features.py --samples 5000 --classes 100
    python examples/frozen_features.py --help

The features are synthetic and have the shape of those of an image encoder for ImageNet: 512 float32
numbers for each image, 1000 classes. `SoftmaxRegression` of pyce and `LogisticRegression` of
scikit-learn are fitted with the same parameters, each in a process of its own, whose largest memory
is measured. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pyce.sklearn import SoftmaxRegression

Array = np.ndarray[Any, np.dtype[Any]]
HEAD = (
    "classifier",
    "iterations",
    "time of a fit",
    "for an iteration",
    "memory of the features",
    "memory added by the fit",
    "accuracy on 2000 samples",
)


def features(samples: int, size: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """float32 features around the mean of their class, and the labels."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, size), np.float32)
    y = rng.integers(0, classes, samples)
    X = rng.standard_normal((samples, size), np.float32)
    X *= 4.5
    for start in range(0, samples, 1024):  # no second array of the size of X
        X[start : start + 1024] += means[y[start : start + 1024]]
    return X, y


def peak() -> int | None:
    """The largest resident memory of this process so far, in bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def megabytes(size: float | None) -> str:
    return "–" if size is None else f"{size / 1e6:.0f} MB"


def fit(name: str, options: argparse.Namespace) -> list[str]:
    """A row of the table: fit one of the classifiers in this process."""
    X, y = features(options.samples, options.features, options.classes)
    common = {"max_iter": options.max_iter, "C": options.C}
    model = (
        SoftmaxRegression(verbose=1, **common) if name == "pyce" else LogisticRegression(**common)
    )
    few = min(2000, len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        type(model)(max_iter=1).fit(
            X[: 2 * few : 2], y[: 2 * few : 2] % 3
        )  # first calls, libraries
        before = peak()
        start = perf_counter()
        model.fit(X, y)
        seconds = perf_counter() - start
    after = peak()
    steps = int(model.n_iter_[0])
    return [
        type(model).__name__,
        str(steps),
        f"{seconds:.1f} s",
        f"{seconds / max(1, steps):.2f} s",
        megabytes(X.nbytes),
        megabytes(None if before is None or after is None else after - before),
        f"{model.score(X[:few], y[:few]):.3f}",
    ]


def main(options: argparse.Namespace) -> int:
    if options.only:
        print("| " + " | ".join(fit(options.only, options)) + " |", flush=True)
        return 0
    scores = options.samples * options.classes * 4
    print(
        f"{options.samples} × {options.features} float32 features, {options.classes} classes; "
        f"an array of all scores would take {megabytes(scores)}.\n",
        flush=True,
    )
    rows = []
    for name in ("sklearn", "pyce"):
        arguments = [
            f"--{key.replace('_', '-')}={value}" for key, value in vars(options).items() if value
        ]
        run = subprocess.Popen(
            [sys.executable, __file__, *arguments, f"--only={name}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.stdout is not None
        line = ""
        for line in run.stdout:
            if not line.startswith("|"):
                print(line, end="", flush=True)
        if run.wait():
            return run.returncode
        rows.append(line.strip())
    print("\n| " + " | ".join(HEAD) + " |\n| --- |" + " ---: |" * (len(HEAD) - 1))
    print("\n".join(rows))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python examples/frozen_features.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--samples", type=int, default=50_000, help="default: %(default)s")
    made.add_argument("--features", type=int, default=512, help="default: %(default)s")
    made.add_argument("--classes", type=int, default=1000, help="default: %(default)s")
    made.add_argument("--max-iter", type=int, default=20, help="default: %(default)s")
    made.add_argument("--C", type=float, default=1.0, help="default: %(default)s")
    made.add_argument("--only", choices=["pyce", "sklearn"], help="fit one, in this process")
    return made


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
