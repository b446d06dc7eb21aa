"""The operators pyce::cross_entropy and pyce::cross_entropy_backward.

torch.compile, torch.export and other mechanisms that look at PyTorch's operators must see one.
Eager calls do not use them: to call an operator written in Python takes longer than everything else
in a small batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyce.torch import _autograd, _compute
from pyce.torch._compute import SAVE_GRADIENT, SAVE_LSE
from pyce.torch._tensors import class_axis_in_memory

# Exported programs hold the names of the operators and of their arguments.
_OPTIONS = "Tensor? weight, str reduction, int ignore_index, float label_smoothing"
# Last and with a default: most programs do not name it.
_LSE_SQUARE = "float lse_square_scale=0.0"


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The loss and the saved tensor, which is empty if nothing is saved."""
    loss, saved = _compute.forward(*inputs)
    return loss, loss.new_empty((0,), dtype=torch.float32) if saved is None else saved


def _forward_fake(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    save: str,
    float32_loss: bool,
    lse_square_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes of what `_forward` returns."""
    axis = 1 if input.dim() > 1 else 0
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    loss = input.new_empty(
        rows if reduction == "none" else (), dtype=torch.float32 if float32_loss else input.dtype
    )
    if save == SAVE_GRADIENT:
        return loss, _gradient_fake(input.float() if input.dtype is torch.float16 else input)
    return loss, (
        input.new_empty(rows, dtype=torch.float64)
        if save == SAVE_LSE
        else input.new_empty((0,), dtype=torch.float32)
    )


def _set_up(ctx: Any, inputs: Any, output: Any) -> None:
    input, target, weight, *options = inputs
    _autograd.save(ctx, input, target, weight, options, output[1])


def _differentiate(ctx: Any, *gradients: Any) -> Any:
    return *_autograd.backward(ctx, *gradients), *(None,) * 7


def _backward_fake(grad_loss: Tensor, input: Tensor, *others: Any) -> Tensor:
    return _gradient_fake(input)


def _gradient_fake(input: Tensor) -> Tensor:
    """A gradient in the memory layout that `_compute` gives it."""
    if class_axis_in_memory(input) is None:
        return torch.empty_like(input, memory_format=torch.contiguous_format)
    return torch.empty_like(input)


# The layout of the gradient follows from the strides of the logits that were traced: compiled code
# must pass logits with these strides.
_TAGS = (getattr(torch.Tag, "needs_exact_strides", None) or torch.Tag.needs_fixed_stride_order,)

_forward_op = torch.library.custom_op(
    "pyce::cross_entropy",
    _forward,
    mutates_args=(),
    tags=_TAGS,
    schema=f"(Tensor input, Tensor target, {_OPTIONS}, str save, bool float32_loss, {_LSE_SQUARE}) "
    "-> (Tensor, Tensor)",
)
_forward_op.register_fake(_forward_fake)
_forward_op.register_autograd(_differentiate, setup_context=_set_up)
_backward_op = torch.library.custom_op(
    "pyce::cross_entropy_backward",
    _compute.backward,
    mutates_args=(),
    tags=_TAGS,
    schema="(Tensor grad_loss, Tensor input, Tensor target, Tensor lse, "
    f"{_OPTIONS}, {_LSE_SQUARE}) -> Tensor",
)
_backward_op.register_fake(_backward_fake)
