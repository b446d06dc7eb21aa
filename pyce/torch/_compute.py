"""Loss and gradient of tensors, computed by pyce's functions on the memory of the tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyce
from pyce import _arguments as arguments
from pyce import _threads
from pyce._backends import current
from pyce._types import Reduction
from pyce.torch._tensors import DTYPE_NAMES, HALF_TYPES, address_of, as_array, empty_gradient

# What the forward pass saves for the backward pass. The words are arguments of the operator
# pyce::cross_entropy and stand in exported programs.
SAVE_NOTHING = "nothing"
SAVE_GRADIENT = "gradient"  # ∂(Σ loss)/∂logits, which the backward pass only scales
SAVE_LSE = "lse"  # log-sum-exp of the rows, from which the backward pass computes the gradient

# For each dtype of logits its name, and a scalar of the dtype in which the loss is computed.
_DTYPES = {
    dtype: (
        name,
        torch.empty(
            (), dtype=torch.float64 if dtype is torch.float64 else torch.float32, device="cpu"
        ),
    )
    for dtype, name in DTYPE_NAMES.items()
}


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    save: str,
    float32_loss: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss, and the tensor that `save` names.

    The loss has the dtype of the logits, or is float32 with `float32_loss`.
    """
    if (
        save != SAVE_LSE
        and target.dtype is torch.int64
        and input.is_contiguous()
        and target.is_contiguous()
    ):
        found = _at_addresses(
            input,
            target,
            weight,
            reduction,
            ignore_index,
            label_smoothing,
            with_gradient=save == SAVE_GRADIENT,
            float32_loss=float32_loss,
        )
        if found is not None:
            return found
    x = as_array(input)
    options: dict[str, Any] = {
        "axis": 1 if x.ndim > 1 else 0,
        "weight": None if weight is None else as_array(weight),
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    saved = None
    with _threads.at_most(torch.get_num_threads()):
        if save == SAVE_GRADIENT:
            saved = empty_gradient(input)
            loss, _ = pyce.cross_entropy_with_grad(
                x, as_array(target), **options, out=as_array(saved)
            )
        elif save == SAVE_LSE:
            loss, lse = pyce.cross_entropy(x, as_array(target), **options, return_lse=True)
            saved = torch.from_numpy(lse)
        else:
            loss = pyce.cross_entropy(x, as_array(target), **options)
    loss = torch.from_numpy(np.asarray(loss))
    return loss.to(torch.float32 if float32_loss else input.dtype), saved


def backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    weight: Tensor | None,
    reduction: Reduction,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """grad_loss · ∂loss/∂input from the saved log-sum-exp."""
    gradient = empty_gradient(input)
    x = as_array(input)
    factor = grad_loss.to(torch.float64)
    with _threads.at_most(torch.get_num_threads()):
        pyce.cross_entropy_backward(
            factor.numpy() if reduction == "none" else factor.item(),
            x,
            as_array(target),
            lse.numpy(),
            axis=1 if x.ndim > 1 else 0,
            weight=None if weight is None else as_array(weight),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            out=as_array(gradient),
        )
    return gradient


def _at_addresses(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    *,
    with_gradient: bool,
    float32_loss: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """What `forward` returns for contiguous tensors and int64 labels; None if it cannot be used.

    The backend gets addresses instead of NumPy arrays: to make the arrays of a small batch takes as
    long as to compute its loss. It checks the values of the labels, and everything else is checked
    here. An invalid argument gives None, and the general way raises the error for it.
    """
    at_addresses = current().at_addresses
    shape = input.shape
    dtype = input.dtype
    known = _DTYPES.get(dtype)
    if len(shape) == 2:
        inner = 1
        fits = target.dim() == 1 and target.numel() == shape[0]
    else:
        inner = math.prod(shape[2:])
        fits = len(shape) > 2 and target.shape == shape[:1] + shape[2:]
    logits = address_of(input, input.nbytes)
    labels = address_of(target, target.nbytes)
    if (
        at_addresses is None
        or not fits
        or not (logits and labels)
        or known is None
        or input.is_neg()
        or target.is_neg()
        or reduction not in arguments.REDUCTIONS
        or not (label_smoothing == 0.0 or _is_fraction(label_smoothing))
        or not (ignore_index == -100 or _is_index(ignore_index))
    ):
        return None
    weights = 0
    if weight is not None:
        if (
            weight.dtype not in DTYPE_NAMES
            or weight.shape != shape[1:2]
            or weight.is_neg()
            or not weight.is_contiguous()
            or not address_of(weight, weight.nbytes)
        ):
            return None
        weight = weight.double()
        weights = weight.data_ptr()
    gradient = empty_gradient(input) if with_gradient else None
    dtype_name, like = known
    loss = torch.empty_like(like) if reduction != "none" else like.new_empty(shape[:1] + shape[2:])
    done = at_addresses(
        dtype=dtype_name,
        reduction=reduction,
        outer=shape[0],
        classes=shape[1],
        inner=inner,
        logits=logits,
        labels=labels,
        weight=weights,
        grad=gradient.data_ptr() if gradient is not None else 0,
        smoothing=float(label_smoothing),
        ignore_index=ignore_index,
        loss=loss.data_ptr(),
        most_threads=torch.get_num_threads,
    )
    if not done:
        return None
    return loss if float32_loss or dtype not in HALF_TYPES else loss.to(dtype), gradient


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def _is_index(value: Any) -> bool:
    return type(value) is int and arguments.INDEX_LIMIT.min <= value <= arguments.INDEX_LIMIT.max
