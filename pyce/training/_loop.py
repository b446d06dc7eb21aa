"""Mini-batches, the training loop, and the loss and accuracy of a model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np

import pyce
from pyce._arguments import as_array, positive_number
from pyce._types import Array

# Samples that `evaluate` computes at a time, which limits the memory of the logits.
_ROWS = 1024
# The class index of ignored rows, the default of pyce.cross_entropy.
_IGNORED = -100


class Model(Protocol):
    """The methods that `train` and `evaluate` call."""

    def logits(self, x: Any) -> Array: ...

    def loss_and_gradients(
        self, x: Any, y: Any, *, label_smoothing: float = 0.0
    ) -> tuple[Any, list[Array]]: ...


class Optimizer(Protocol):
    lr: float

    def step(self, gradients: Any) -> None: ...


@dataclass
class History:
    """Loss and accuracy of a model after each epoch of a training.

    Attributes
    ----------
    loss, accuracy : list of float
        Mean loss without label smoothing, and accuracy, of the training data after each epoch.
    held_out_loss, held_out_accuracy : list of float
        The same of the held-out data; empty if there are none.

    Examples
    --------
    >>> from pyce.training import History
    >>> History().loss
    []
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    held_out_accuracy: list[float] = field(default_factory=list)


def _samples(x: Any, y: Any) -> tuple[Array, Array]:
    x, y = as_array(x, "x"), as_array(y, "y")
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise ValueError(f"x of shape {x.shape} and y of shape {y.shape} differ in length")
    return x, y


def minibatches(x: Any, y: Any, size: int, seed: Any = None) -> Iterator[tuple[Array, Array]]:
    """Iterate over all samples in random order, in batches; the last batch may be smaller.

    Parameters
    ----------
    x, y : array_like
        Samples of shape (N, …) and targets of shape (N, …), of any dtype.
    size : int
        Number of samples of a batch, at least 1.
    seed : int or numpy.random.Generator, optional
        Seed of the order. Calls with the same int give the same order; calls with one generator
        give different orders.

    Returns
    -------
    iterator of (ndarray, ndarray)
        Batches of `x` and `y`. They are copies.

    Raises
    ------
    TypeError
        If `size` is not an integer.
    ValueError
        If the lengths of `x` and `y` differ, or `size` is below 1.

    Examples
    --------
    >>> from pyce.training import minibatches
    >>> [len(y) for x, y in minibatches(np.zeros((10, 2)), np.arange(10), size=4)]
    [4, 4, 2]
    """
    x, y = _samples(x, y)
    size = positive_number(size, "size")
    order = np.random.default_rng(seed).permutation(len(x))

    def batches() -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(order), size):
            some = order[start : start + size]
            yield x[some], y[some]

    return batches()


def evaluate(model: Model, x: Any, y: Any) -> tuple[float, float]:
    """The mean loss and the accuracy of a model, computed 1024 samples at a time.

    The loss is the mean of log Σ_c exp(z_c) − z_y over the rows, with the logits z. Exceptions that
    the model raises are passed on.

    Parameters
    ----------
    model : LinearClassifier, HiddenLayerClassifier, or any object with `logits(x)`
        The model to evaluate.
    x : array_like
        Samples of shape (N, …), of a dtype that the model takes.
    y : array_like
        Class indices of an integer dtype and of shape (N,), of which rows with −100 are ignored; or
        probabilities of a floating dtype and of shape (N, classes).

    Returns
    -------
    loss : float
        The mean loss in nats; NaN if all rows are ignored.
    accuracy : float
        The fraction of the rows whose target has the largest logit; NaN if all rows are ignored.

    Raises
    ------
    TypeError
        If the dtype of `y` is not supported.
    ValueError
        If shapes do not match.
    IndexError
        If a class index is out of range. The message names the first such row of its 1024 samples.

    Examples
    --------
    >>> from pyce.training import LinearClassifier, evaluate
    >>> loss, accuracy = evaluate(LinearClassifier(2, 3, seed=0), np.zeros((5, 2)), [0, 0, 1, 2, 0])
    >>> print(round(loss, 4), accuracy)
    1.0986 0.6
    """
    x, y = _samples(x, y)
    loss, right, counted = 0.0, 0.0, 0
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        logits, target = model.logits(x[part]), y[part]
        count = len(target) if target.ndim > 1 else int(np.count_nonzero(target != _IGNORED))
        loss += float(pyce.cross_entropy(logits, target, reduction="sum"))
        if count:
            right += count * pyce.accuracy(logits, target)
        counted += count
    return (loss / counted, right / counted) if counted else (math.nan, math.nan)


def train(
    model: Model,
    x: Any,
    y: Any,
    optimizer: Optimizer,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    label_smoothing: float = 0.0,
    held_out: tuple[Any, Any] | None = None,
    schedule: Callable[[float], float] | None = None,
    seed: Any = None,
    progress: bool | TextIO = True,
) -> History:
    """Train a classifier on mini-batches, and evaluate it after each epoch.

    Exceptions that the model, the optimizer or `schedule` raise are passed on.

    Parameters
    ----------
    model : LinearClassifier, HiddenLayerClassifier, or any object with the same methods
        The model, trained in place.
    x : array_like
        Samples of shape (N, …), of a dtype that the model takes.
    y : array_like
        Class indices of an integer dtype and of shape (N,), of which rows with −100 are ignored; or
        probabilities of a floating dtype and of shape (N, classes).
    optimizer : SGD, or any object with `step(gradients)`
        The optimizer of the parameters of the model. `schedule` sets its attribute `lr`.
    epochs : int
        Number of passes over the samples, at least 1.
    batch_size : int
        Number of samples of a batch, at least 1; the last batch of an epoch may be smaller.
    label_smoothing : float
        Label smoothing of the loss in training, in [0, 1]. Evaluation is without.
    held_out : (array_like, array_like), optional
        Samples and targets that are not trained on, to evaluate the model on as well.
    schedule : callable, optional
        `schedule(done)` returns the learning rate for the fraction of the training that is done, in
        [0, 1). It is set as `lr` of the optimizer before each batch. For example,
        `lambda done: rate * (1 - done)` decreases linearly to 0.
    seed : int or numpy.random.Generator, optional
        Seed of the order of the samples.
    progress : bool or text stream
        Where to print a line for each epoch: standard error (True), nowhere (False), or a stream.
        On a terminal, the line counts batches while the epoch runs.

    Returns
    -------
    History
        Loss and accuracy after each epoch.

    Raises
    ------
    TypeError
        If a number is not an integer, if `held_out` is not a pair, or if `progress` is neither a
        bool nor a stream. Nothing is trained then.
    ValueError
        If there are no samples, if the lengths of samples and targets differ, or if a number is
        below 1. Nothing is trained then. In a batch: if shapes do not match, or if
        `label_smoothing` is outside [0, 1].
    IndexError
        If a class index is out of range. The message names the row in its batch.

    Examples
    --------
    >>> from pyce.training import SGD, HiddenLayerClassifier, train
    >>> x, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), [0, 1, 1, 0]
    >>> model = HiddenLayerClassifier(2, 16, 2, seed=0)
    >>> optimizer = SGD(model.parameters, lr=0.5, momentum=0.9)
    >>> train(model, x, y, optimizer, epochs=50, progress=False).accuracy[-1]
    1.0
    """
    x, y = _samples(x, y)
    epochs, batch_size = (
        positive_number(epochs, "epochs"),
        positive_number(batch_size, "batch_size"),
    )
    if not len(x):
        raise ValueError("there are no samples to train on")
    if not (held_out is None or (isinstance(held_out, (tuple, list)) and len(held_out) == 2)):
        raise TypeError("held_out must be two arrays, x and y")
    others = None if held_out is None else _samples(*held_out)
    rng = np.random.default_rng(seed)
    history = History()
    batches = math.ceil(len(x) / batch_size)
    with _Display(progress, epochs, batches) as display:
        for epoch in range(1, epochs + 1):
            for number, (some, target) in enumerate(minibatches(x, y, batch_size, rng), start=1):
                display.batch(epoch, number)
                if schedule is not None:
                    done = (epoch - 1 + (number - 1) / batches) / epochs
                    optimizer.lr = schedule(done)
                _, gradients = model.loss_and_gradients(
                    some, target, label_smoothing=label_smoothing
                )
                optimizer.step(gradients)
            loss, accuracy = evaluate(model, x, y)
            history.loss.append(loss)
            history.accuracy.append(accuracy)
            if others is not None:
                loss, accuracy = evaluate(model, *others)
                history.held_out_loss.append(loss)
                history.held_out_accuracy.append(accuracy)
            display.epoch(epoch, history)
    return history


class _Display:
    """Prints a line for each epoch; on a terminal, it counts batches while the epoch runs."""

    def __init__(self, progress: bool | TextIO, epochs: int, batches: int) -> None:
        self.stream = (sys.stderr if progress else None) if isinstance(progress, bool) else progress
        if not (self.stream is None or hasattr(self.stream, "write")):
            raise TypeError(f"progress must be True, False or a text stream, got {progress!r}")
        self.live = self.stream is not None and getattr(self.stream, "isatty", bool)()
        self.epochs, self.batches = epochs, batches
        self.shown, self.next = 0, 0.0

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self._print("\r" + " " * self.shown + "\r")

    def batch(self, epoch: int, number: int) -> None:
        now = time.monotonic()
        if self.live and now >= self.next:
            self.next = now + 0.1
            text = f"{self._head(epoch)}: batch {number}/{self.batches}"
            self._print(f"\r{text}{' ' * (self.shown - len(text))}")
            self.shown = len(text)

    def epoch(self, epoch: int, history: History) -> None:
        loss, accuracy = f"loss {history.loss[-1]:.4f}", f"accuracy {history.accuracy[-1]:.4f}"
        if history.held_out_loss:
            loss += f", held out {history.held_out_loss[-1]:.4f}"
            accuracy += f", held out {history.held_out_accuracy[-1]:.4f}"
        text = f"{self._head(epoch)}: {loss}; {accuracy}"
        start = "\r" if self.shown else ""
        self._print(f"{start}{text}{' ' * (self.shown - len(text))}\n")
        self.shown = 0

    def _head(self, epoch: int) -> str:
        return f"epoch {epoch:{len(str(self.epochs))}}/{self.epochs}"

    def _print(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()
