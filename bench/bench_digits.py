"""A real case: multinomial logistic regression on scikit-learn's digits, once per backend.

Full-batch gradient descent. Logits X·W (1347, 10), the gradient over them, W -= r·Xᵀ·grad.
Every backend must follow the reference's loss curve and recognise 95 % of the held-out digits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pyce

STEPS = 500
RATE = np.float32(0.5)


@cache
def digits():
    """X_train (1347, 65), y_train, X_test (450, 65), y_test: pixels in 0..1 and a bias of 1."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    x = np.hstack([images / 16, np.ones((len(images), 1))]).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, labels, random_state=0)
    return x_train, y_train, x_test, y_test


def train():
    """Returns W (65, 10) and the loss of every step, on the backend selected."""
    x, y, _, _ = digits()
    w = np.zeros((x.shape[1], 10), np.float32)
    logits = np.empty((len(x), 10), np.float32)
    losses = []
    for _ in range(STEPS):
        np.matmul(x, w, out=logits)
        loss, grad = pyce.cross_entropy_with_grad(logits, y, out=logits)
        w -= RATE * (x.T @ grad)
        losses.append(float(loss))
    return w, losses


@cache
def reference_losses():
    with pyce.use_backend("numpy"):
        return train()[1]


@pytest.mark.parametrize("backend", pyce.backends())
def bench_digits(benchmark, measured, backend):
    _, _, x_test, y_test = digits()
    with pyce.use_backend(backend):
        w, losses = train()
        np.testing.assert_allclose(losses, reference_losses(), rtol=1e-6)
        accuracy = pyce.accuracy(x_test @ w, y_test)
        assert accuracy >= 0.95
        benchmark.extra_info.update(
            workload="digits",
            stands_for=f"logistic regression, {STEPS} steps",
            backend=backend,
            operation="training",
            accuracy=accuracy,
            losses=losses,
        )
        measured(train)
