"""Softmax regression by mini-batches, compiled whole: pyce inside a function of Numba.

    python examples/compiled_training.py
    python examples/compiled_training.py --epochs 200 --batch 32

One function, compiled by `numba.njit`, has all epochs: it draws the batches, multiplies, calls
`pyce.cross_entropy_with_grad`, and updates the weights. The same function runs in Python as well,
which calls NumPy and pyce for each step. Both start from the same weights and take the same
batches, so that their losses can be compared. The data are scikit-learn's 8×8 images of digits.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numba
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

import pyce
import pyce.numba  # makes pyce known to Numba, also where pyce is not installed

Array = npt.NDArray[np.float32]


def train(
    images: Array,
    labels: npt.NDArray[np.int64],
    held_out: Array,
    held_out_labels: npt.NDArray[np.int64],
    weights: Array,
    orders: npt.NDArray[np.int64],
    batch: int,
    rate: float,
    report_every: int,
) -> npt.NDArray[np.float64]:
    """Train `weights` (features, classes) in place; the mean loss of each epoch.

    `images` and `held_out` are (samples, features), and `orders` (epochs, samples) has the samples
    of each epoch in the order in which they are taken. Every `report_every` epochs, one line of
    progress is printed; 0 prints none.
    """
    samples, features = images.shape
    classes = weights.shape[1]
    inputs = np.empty((batch, features), images.dtype)
    targets = np.empty(batch, labels.dtype)
    gradient = np.empty((batch, classes), images.dtype)
    velocity = np.zeros_like(weights)
    step = np.float32(rate)
    losses = np.zeros(len(orders))
    for epoch in range(len(orders)):
        steps = samples // batch
        for i in range(steps):
            for k in range(batch):
                sample = orders[epoch, i * batch + k]
                inputs[k] = images[sample]
                targets[k] = labels[sample]
            logits = np.dot(inputs, weights)
            loss, _ = pyce.cross_entropy_with_grad(logits, targets, out=gradient)
            velocity = np.float32(0.9) * velocity + np.dot(inputs.T, gradient)
            weights -= step * velocity
            losses[epoch] += loss / steps
        if report_every and (epoch + 1) % report_every == 0:
            right = pyce.accuracy(np.dot(held_out, weights), held_out_labels)
            print("epoch", epoch + 1, "loss", losses[epoch], "accuracy", right)
    return losses


train_compiled = numba.njit(train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=100)
    add("--batch", type=int, default=64)
    add("--rate", type=float, default=0.05)
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    # Values 0 to 16, and a constant feature for the bias.
    images = np.column_stack([images / 16, np.ones(len(images))]).astype(np.float32)
    labels = labels.astype(np.int64)
    rng = np.random.default_rng(0)
    split = rng.permutation(len(images))
    first, rest = split[:1400], split[1400:]
    data = images[first], labels[first], images[rest], labels[rest]
    orders = np.array([rng.permutation(len(first)) for _ in range(options.epochs)])

    def run(function: object, orders: npt.NDArray[np.int64], report: int) -> tuple[object, float]:
        weights = np.zeros((images.shape[1], 10), np.float32)
        begin = perf_counter()
        losses = function(*data, weights, orders, options.batch, options.rate, report)  # type: ignore[operator]
        return losses, perf_counter() - begin

    print("compiling ...", flush=True)
    _, compiling = run(train_compiled, orders[:1], 0)
    print(f"{compiling:.1f} s; training, compiled:", flush=True)
    compiled, compiled_time = run(train_compiled, orders, max(1, options.epochs // 10))
    in_python, python_time = run(train, orders, 0)
    np.testing.assert_allclose(compiled, in_python, rtol=1e-3)
    steps = options.epochs * (len(first) // options.batch)
    print("the same losses when called from Python")
    print(f"compiled    {compiled_time:7.3f} s, {compiled_time / steps * 1e6:6.2f} µs a step")
    print(f"from Python {python_time:7.3f} s, {python_time / steps * 1e6:6.2f} µs a step")
    print(f"            {python_time / compiled_time:7.2f} times as long")


if __name__ == "__main__":
    main()
