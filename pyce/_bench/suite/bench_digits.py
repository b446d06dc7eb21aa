"""A complete training: multinomial logistic regression on scikit-learn's digits, per backend.

Full-batch gradient descent with logits X·W of shape (1347, 10), whose gradient overwrites them, and
W -= r·Xᵀ·grad. Every backend must follow the reference's loss curve and recognise 95 % of the
held-out digits.
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import numpy as np
import pytest

import pyce
from pyce._bench.candidates import Candidate
from pyce._bench.measure import Effort, Timings, in_turn
from pyce._bench.suite.conftest import training_backends
from pyce._bench.suite.plan import Plan
from pyce._bench.workloads import Array

STEPS = 500
RATE = np.float32(0.5)
# One training of the slowest backend takes a second.
EFFORT = Effort(blocks=1, rounds=5, seconds=2.0)


@cache
def digits() -> tuple[Array, Array, Array, Array]:
    """X_train (1347, 65), y_train, X_test (450, 65), y_test: pixels in 0..1 and a bias of 1."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    x = np.hstack([images / 16, np.ones((len(images), 1))]).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, labels, random_state=0)
    return x_train, y_train, x_test, y_test


def train() -> tuple[Array, list[float]]:
    """Train on the selected backend; returns W (65, 10) and the loss of every step."""
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


@pytest.fixture(scope="module")
def measured() -> dict[str, Timings]:
    """{backend: its times}, filled by the first item."""
    return {}


def bench_digits(backend: str, plan: Plan, measured: dict[str, Timings], record: Any) -> None:
    _, _, x_test, y_test = digits()
    names = training_backends(plan)
    threads = pyce.get_num_threads()
    if not measured:
        plan.begin("digits")
        plan.display.doing("digits", 0, "training")
        chosen = {
            name: Candidate(name, "backend", lambda *_: train, threads, name) for name in names
        }
        times = in_turn(dict.fromkeys(names, train), chosen, EFFORT)
        measured.update({name: Timings([samples]) for name, (samples, _) in times.items()})
    with pyce.use_backend("numpy"):
        _, expected = train()
    with pyce.use_backend(backend):
        w, losses = train()
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
        accuracy = pyce.accuracy(x_test @ w, y_test)
        assert accuracy >= 0.95
    info = {
        "workload": "digits",
        "stands_for": f"logistic regression, {STEPS} steps",
        "dtype": "float32",
        "target": "index",
        "operation": "training",
        "candidate": f"pyce {backend}",
        "kind": "backend",
        "backend": backend,
        "threads": threads,
        "isa": pyce.info()["isa"] if backend == "c" else None,
        "blocks": [statistics.median(measured[backend].samples)],
        "over_floor": [],
        "calls": 1,
        "accuracy": accuracy,
        "losses": losses,
    }
    record(measured[backend], "digits training", info)
