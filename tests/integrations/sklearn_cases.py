"""Data of the tests of SoftmaxRegression, and its objective in plain NumPy."""

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.preprocessing import StandardScaler


def scaled(load):
    X, y = load(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X)), y


def synthetic(rows, features, classes, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, features))
    scores = X @ rng.normal(size=(features, classes)) * 0.4
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(1)


DATA = {
    "digits": lambda: scaled(load_digits),
    "iris": lambda: scaled(load_iris),
    "breast cancer": lambda: scaled(load_breast_cancer),
    "synthetic": lambda: synthetic(500, 8, 5),
    "more features than samples": lambda: synthetic(30, 50, 4),
}


def weights_of(y, kind):
    if kind == "none":
        return None
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    weight[::5] = 0
    return weight


def gradient_at(model, X, y, sample_weight=None):
    """The largest derivative at the solution, in float64 by NumPy; with l1_ratio, of the smallest
    sub-gradient."""
    X = X.astype(np.float64)
    classes = np.unique(y)
    weight = np.ones(len(y)) if sample_weight is None else np.array(sample_weight, float)
    if model.class_weight == "balanced":
        counts = np.array([weight[y == c].sum() for c in classes])
        weight = weight * (weight.sum() / len(classes) / counts)[np.searchsorted(classes, y)]
    elif model.class_weight:
        weight = weight * [model.class_weight.get(c, 1.0) for c in y]
    W, b = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(classes) == 2:
        p = 1 / (1 + np.exp(-(X @ W[0] + b[0])))
        residual = (p - (y == classes[1]))[:, None]
    else:
        z = X @ W.T + b
        p = np.exp(z - z.max(1, keepdims=True))
        residual = p / p.sum(1, keepdims=True) - (y[:, None] == classes)
    residual = residual * weight[:, None] / weight.sum()
    strength = 1 / model.C / weight.sum()
    of_w = residual.T @ X + (1 - model.l1_ratio) * strength * W
    l1 = model.l1_ratio * strength
    of_w = np.where(
        W == 0, np.sign(of_w) * np.maximum(np.abs(of_w) - l1, 0), of_w + l1 * np.sign(W)
    )
    return max(np.abs(of_w).max(), np.abs(residual.sum(0)).max() if model.fit_intercept else 0)
