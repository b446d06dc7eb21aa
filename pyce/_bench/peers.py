"""Adapters to other libraries: the calls that their users would make for the same work.

An adapter takes the `Data` of a workload with index targets, and returns two calls that read the
same buffers, with the class axis and reduction of the data: the forward call returns the loss, the
fused call (loss, gradient). The adapter raises ImportError if the library is not installed, and
`Unsupported` if it cannot do the work. It is called again for each block, with the same numbers in
other memory, and must not compile again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

import pyce
from pyce._bench.calls import Call
from pyce._bench.workloads import Data, Workload

Calls = tuple[Call, Call]


class Unsupported(Exception):
    """The library cannot do the work of this workload."""


def torch_eager(data: Data) -> Calls:
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(pyce.get_num_threads())
    return _torch_calls(data, torch, cross_entropy)


def torch_on_pyce(data: Data) -> Calls:
    """`pyce.torch`, called as PyTorch's own losses are: through its tensors and autograd."""
    import torch

    from pyce.torch import cross_entropy

    torch.set_num_threads(pyce.get_num_threads())
    return _torch_calls(data, torch, cross_entropy)


def torch_compiled(data: Data) -> Calls:
    import torch

    torch.set_num_threads(pyce.get_num_threads())
    return _torch_calls(data, torch, _compiled(data.workload))


@lru_cache(maxsize=1)
def _compiled(workload: Workload) -> Any:
    import torch
    from torch.nn.functional import cross_entropy

    torch.compiler.reset()  # or a second shape would be compiled for all shapes
    return torch.compile(cross_entropy, dynamic=False)


def _torch_calls(data: Data, torch: Any, loss_of: Any) -> Calls:
    x = data.logits
    if data.workload.dtype == "bfloat16":
        leaf = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    else:
        leaf = torch.from_numpy(x)
    target = torch.from_numpy(data.target)
    # PyTorch expects the classes on axis 1: images that have them last are in channels-last memory.
    if images := x.ndim > 2 and data.workload.axis == -1:
        leaf = leaf.movedim(-1, 1)
    reduction = data.options.get("reduction", "mean")
    leaf.requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return loss_of(leaf, target, reduction=reduction)

    def fused() -> Any:
        leaf.grad = None
        loss = loss_of(leaf, target, reduction=reduction)
        loss.backward()
        return loss.detach(), leaf.grad.movedim(1, -1) if images else leaf.grad

    return forward, fused


def jax_optax(data: Data) -> Calls:
    """JAX with Optax's loss. JAX always uses as many threads as there are processors."""
    from optax import losses

    return _jax_calls(data, losses.softmax_cross_entropy_with_integer_labels)


def jax_on_pyce(data: Data) -> Calls:
    """JAX with `pyce.jax`'s loss, called as Optax's is."""
    from pyce.jax import softmax_cross_entropy_with_integer_labels

    return _jax_calls(data, softmax_cross_entropy_with_integer_labels)


def _jax_calls(data: Data, losses_of: Callable[..., Any]) -> Calls:
    import jax

    jax.config.update("jax_enable_x64", True)
    forward, fused = _jitted(losses_of, data.workload.axis, data.options.get("reduction", "mean"))
    x = jax.device_put(data.logits, may_alias=True)
    target = jax.device_put(data.target, may_alias=True)
    return (
        lambda: jax.block_until_ready(forward(x, target)),
        lambda: jax.block_until_ready(fused(x, target)),
    )


@cache
def _jitted(losses_of: Callable[..., Any], axis: int, reduction: str) -> tuple[Any, Any]:
    import jax

    def loss(x: Any, target: Any) -> Any:
        losses = losses_of(x, target, axis=axis)
        return losses.sum() if reduction == "sum" else losses.mean()

    return jax.jit(loss), jax.jit(jax.value_and_grad(loss))


def sklearn_half_multinomial(data: Data) -> Calls:
    """The loss inside scikit-learn's LogisticRegression and gradient boosting; writes to `grad`."""
    from sklearn._loss import HalfMultinomialLoss

    if data.logits.ndim != 2 or data.workload.dtype not in ("float32", "float64"):
        raise Unsupported("two dimensions, float32 or float64 only")
    rows, classes = data.logits.shape
    loss = HalfMultinomialLoss(n_classes=classes)
    losses = np.empty(rows, data.logits.dtype)
    arguments = {
        "y_true": data.target.astype(data.logits.dtype),
        "raw_prediction": data.logits,
        "sample_weight": np.full(rows, 1 / rows, data.logits.dtype),  # makes the sum the mean
        "loss_out": losses,
        "n_threads": pyce.get_num_threads(),
    }

    def forward() -> Any:
        return loss.loss(**arguments).sum(dtype=np.float64)

    def fused() -> Any:
        loss.loss_gradient(**arguments, gradient_out=data.grad)
        return losses.sum(dtype=np.float64), data.grad

    return forward, fused


PEERS: dict[str, Callable[[Data], Calls]] = {
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "JAX + optax": jax_optax,
    "scikit-learn": sklearn_half_multinomial,
}
