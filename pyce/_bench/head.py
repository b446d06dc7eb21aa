"""The last layer of a language model with its loss: the arrays, and the calls that are measured.

The floor of every operation is one product of the hidden states with the weight. Loss and gradients
take three products, if nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

import pyce
from pyce._bench.calls import Call
from pyce._bench.peers import Unsupported
from pyce._bench.workloads import Array, Workload, aligned

# `filter_tolerance` of the operation "head-filtered".
FILTER = 2.0**-10
# One class in this many is a word of the text.
_VOCABULARY_PER_TEXT = 12
# Relative errors allowed to pyce's own results: those of float32 products.
_EXACT = 2e-5
# Rows and classes of which gradients are compared with the reference.
_SAMPLE = 64

Gradients = tuple[Any, Any]


class HeadData:
    """The arrays of a head, always the same, and the reference's results for them.

    input, weight : float32, (N, D) and (C, D), 64-byte aligned
    labels        : int64, (N,)
    grads         : arrays for the gradients of `input` and `weight`
    logits        : an array (N, C) for candidates that hold all logits

    The states have the statistics of a model that has learnt its text: the text uses one class in
    twelve, by Zipf's law; the model gives the others about 10⁻⁶ of the probability, and its loss is
    about one nat.
    """

    def __init__(self, workload: Workload) -> None:
        assert workload.features is not None
        rng = np.random.default_rng(0)
        (rows, classes), features = workload.shape, workload.features
        self.workload = workload
        words = rng.permutation(classes)[: max(1, classes // _VOCABULARY_PER_TEXT)]
        self.labels: Array = words[(len(words) ** rng.random(rows)).astype(np.int64) - 1]
        weight = rng.standard_normal((classes, features), np.float32)
        weight *= np.float32(features**-0.5)
        # One feature tells the words of the text from all others.
        weight[:, 0] = -1.0
        weight[words, 0] = 0.0
        hidden = 10.0 * weight[self.labels] + 2.0 * rng.standard_normal((rows, features))
        hidden[:, 0] = 16.0
        self.input: Array = hidden.astype(np.float32)
        self.weight: Array = weight
        self.renew()

    def renew(self) -> None:
        """Move the same numbers to other memory."""
        self.input, self.weight = _moved(self.input), _moved(self.weight)
        self.grads: tuple[Array, Array] = (np.empty(0), np.empty(0))  # free the old arrays first
        self.logits: Array = self.grads[0]
        self.grads = _zeros(self.input.shape), _zeros(self.weight.shape)
        self.logits = _zeros(self.workload.shape)

    def clear(self) -> None:
        """Fill the gradients with NaN, so that those of another candidate do not pass."""
        for grad in self.grads:
            grad.fill(np.nan)

    @cached_property
    def _expected(self) -> tuple[float, tuple[Array, Array], Gradients]:
        """Loss, sampled rows and classes, and their gradients: straightforward, in float64."""
        hidden, weight = self.input.astype(np.float64), self.weight.astype(np.float64)
        rows = np.arange(len(hidden))
        p = hidden @ weight.T
        p -= p.max(axis=1, keepdims=True)
        losses = -p[rows, self.labels]
        np.exp(p, out=p)
        sums = p.sum(axis=1)
        losses += np.log(sums)
        p /= sums[:, np.newaxis]
        p[rows, self.labels] -= 1.0
        p /= len(rows)
        some = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)
        classes = np.linspace(0, len(weight) - 1, _SAMPLE).astype(np.int64)
        classes = np.concatenate([self.labels[some], classes])
        grads = p[some] @ weight, p[:, classes].T @ hidden
        return float(losses.mean()), (some, classes), grads

    def check_loss(self, loss: float, tolerance: float | None = None) -> None:
        """Raise AssertionError unless `loss` equals the reference's to 2e-5 or `tolerance`."""
        expected, _, _ = self._expected
        np.testing.assert_allclose(float(loss), expected, rtol=tolerance or _EXACT, err_msg="loss")

    def check_grad(self, grads: Gradients, operation: str, tolerance: float | None = None) -> None:
        """Raise AssertionError unless samples of both gradients equal the reference's.

        The norm of the difference is compared with 2e-5 or `tolerance` of the gradient's norm, for
        "head-filtered" with its filter tolerance.
        """
        _, indices, expected = self._expected
        limit = FILTER if operation == "head-filtered" else tolerance or _EXACT
        for name, grad, index, right in zip(
            ("input", "weight"), grads, indices, expected, strict=True
        ):
            found = np.asarray(grad)
            assert not np.isnan(found.max()), f"the gradient of {name} has NaN"
            error = np.linalg.norm(found[index] - right) / np.linalg.norm(right)
            assert error <= limit, f"the gradient of {name} differs by {error:.1e} of its norm"


def _moved(array: Array) -> Array:
    to = aligned(array.shape, array.dtype)
    to[...] = array
    return to


def _zeros(shape: tuple[int, ...]) -> Array:
    array = aligned(shape, np.dtype(np.float32))
    array.fill(0)  # so that its pages exist
    return array


# ---------------------------------------------------------------------------------------------
# The calls


def floor(data: HeadData, name: str) -> Call:
    """One product of the hidden states with the weight, by NumPy."""
    return lambda: np.matmul(data.input, data.weight.T, out=data.logits)


def products(data: HeadData, name: str) -> Call:
    """The three products of loss and gradients, and nothing else."""
    to_input, to_weight = data.grads

    def call() -> None:
        np.matmul(data.input, data.weight.T, out=data.logits)
        np.matmul(data.logits, data.weight, out=to_input)
        np.matmul(data.logits.T, data.input, out=to_weight)

    return call


def operation(data: HeadData, name: str) -> Call:
    """The operation of this name, on the backend that is selected when it is called."""
    arrays = data.input, data.weight, data.labels
    if name == "head-forward":
        return lambda: pyce.linear_cross_entropy(*arrays)
    tolerance = FILTER if name == "head-filtered" else None

    def call() -> Any:
        loss, grads = pyce.linear_cross_entropy_with_grad(
            *arrays, filter_tolerance=tolerance, out=(*data.grads, None)
        )
        return loss, grads[:2]

    return call


def torch_all_logits(data: HeadData, name: str) -> Call:
    """PyTorch's usual way: the product, and the loss of all logits."""
    from torch.nn.functional import cross_entropy, linear

    return _torch_call(data, name, lambda x, w, y: cross_entropy(linear(x, w), y))


def torch_chunked(data: HeadData, name: str) -> Call:
    """PyTorch's function for both, in chunks."""
    import torch

    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unsupported(f"PyTorch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    loss_of = torch.nn.functional.linear_cross_entropy
    return _torch_call(data, name, lambda x, w, y: loss_of(x, w, y, options=options))


def torch_on_pyce(data: HeadData, name: str) -> Call:
    from pyce.torch import linear_cross_entropy

    tolerance = FILTER if name == "head-filtered" else None
    return _torch_call(
        data, name, lambda x, w, y: linear_cross_entropy(x, w, y, filter_tolerance=tolerance)
    )


def _torch_call(data: HeadData, name: str, loss_of: Callable[..., Any]) -> Call:
    import torch

    torch.set_num_threads(pyce.get_num_threads())
    leaves = [torch.from_numpy(array) for array in (data.input, data.weight)]
    labels = torch.from_numpy(data.labels)
    if name == "head-forward":
        return lambda: loss_of(*leaves, labels)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def call() -> Any:
        loss = loss_of(*leaves, labels)
        loss.backward()
        grads = tuple(leaf.grad for leaf in leaves)
        for leaf in leaves:
            leaf.grad = None
        return loss.detach(), grads

    return call
