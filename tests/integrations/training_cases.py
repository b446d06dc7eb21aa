"""Models and data of the tests of pyce.training."""

import numpy as np

from pyce.training import HiddenLayerClassifier, LinearClassifier

CLASSIFIERS = {
    "linear": lambda **options: LinearClassifier(6, 4, seed=3, **options),
    "hidden layer": lambda **options: HiddenLayerClassifier(6, 5, 4, seed=3, **options),
}


def batch(rows=9, features=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, features)), rng.integers(0, classes, rows)


def blobs(seed=0, rows=300):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, rows)
    x = rng.normal(size=(rows, 6))
    x[np.arange(rows), y] += 4
    return x, y
