"""Loss and gradient of tensors, computed by pyce's functions on the memory of the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyce
from pyce import _arguments as arguments
from pyce import _threads
from pyce._backends import current
from pyce._types import Array, Reduction
from pyce.torch._tensors import (
    DTYPE_NAMES,
    HALF_TYPES,
    as_array,
    class_axis_in_memory,
    contiguous_address,
    empty_gradient,
    in_memory_order,
    memory_address,
)

# The tensor that the forward pass saves for the backward pass. The words are arguments of the
# operator pyce::cross_entropy and stand in exported programs.
SAVE_NOTHING = "nothing"
SAVE_GRADIENT = "gradient"  # ∂(Σ loss)/∂logits, which the backward pass only scales
SAVE_LSE = "lse"  # log-sum-exp of the rows, from which the backward pass computes the gradient

# Places in the options of a call, a tuple of the arguments of `forward` behind its tensors. To make
# a named tuple would take longer than to compute a loss of a few numbers.
IGNORE_INDEX, SAVE, LSE_SQUARE_SCALE = 1, 3, 5

_REDUCTIONS = arguments.REDUCTIONS
# A scalar of each dtype of logits, and one of the dtype in which their loss is computed: to imitate
# a tensor takes less time than to describe it.
_SCALARS = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in DTYPE_NAMES}
_LOSSES = {
    dtype: _SCALARS[torch.float64 if dtype is torch.float64 else torch.float32]
    for dtype in DTYPE_NAMES
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
    lse_square_scale: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """The loss, and the tensor that `save` names (SAVE_NOTHING and so on).

    The loss has the dtype of the logits, or is float32 with `float32_loss`. The gradient of float16
    logits is float32: it is rounded when it has been scaled. A gradient has the memory layout of
    the logits if these are contiguous with the class axis last or first, as they are in
    channels-last memory, and is C-contiguous otherwise.
    """
    dtype = input.dtype
    half = "" if float32_loss else HALF_TYPES.get(dtype, "")
    x = input
    if save == SAVE_GRADIENT and dtype is torch.float16:
        x = input.float()
    at_addresses = current().at_addresses if lse_square_scale == 0.0 else None
    axis = None if at_addresses is None else class_axis_in_memory(x)
    if at_addresses is not None and axis is not None:
        t = _in_memory_of(x, target)
        weights = None if weight is None else _class_weights(weight, x)
        memory = None
        if weight is None or weights is not None:
            memory = _memory(x, t, axis, weights, reduction, ignore_index, label_smoothing)
        if memory is not None:
            rounded = half if reduction != "none" and save != SAVE_LSE else ""
            like = _SCALARS[dtype] if rounded else _LOSSES[x.dtype]
            if reduction != "none":
                loss = torch.empty_like(like)
            else:
                loss = _empty_rows(input, target, like.dtype)
            saved = None
            lse = grad = 0
            if save == SAVE_GRADIENT:
                saved = empty_gradient(x)
                grad = saved.data_ptr()
            elif save == SAVE_LSE:
                saved = _empty_rows(input, target, torch.float64)
                lse = saved.data_ptr()
            if at_addresses(loss.data_ptr(), lse, grad, rounded, 1.0, 0, *memory):
                return loss.to(dtype) if half and not rounded else loss, saved
    loss, saved = _forward_of_arrays(
        x, target, weight, reduction, ignore_index, label_smoothing, save, lse_square_scale
    )
    return loss.to(dtype) if half else loss, saved


def _forward_of_arrays(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    save: str,
    lse_square_scale: float,
) -> tuple[Tensor, Tensor | None]:
    """`forward` for any arguments, by pyce's functions on NumPy arrays, which check them.

    The loss is float32, or float64 for float64 logits.
    """
    x, t, axis = _in_memory_order(input, target)
    arrays = as_array(x, "input"), as_array(t, "target")
    options: dict[str, Any] = {
        "axis": axis,
        "weight": None if weight is None else as_array(weight, "weight"),
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "lse_square_scale": lse_square_scale,
    }
    saved = None
    with _threads.at_most(torch.get_num_threads()), _logits_called_input(arrays, options):
        if save == SAVE_GRADIENT:
            saved = empty_gradient(x, contiguous=True)
            out = as_array(saved, "the gradient")
            array, _ = pyce.cross_entropy_with_grad(*arrays, **options, out=out)
            if x is not input:
                saved = saved.movedim(axis, 1)
        elif save == SAVE_LSE:
            array, lse = pyce.cross_entropy(*arrays, **options, return_lse=True)
            saved = torch.from_numpy(lse)
        else:
            array = pyce.cross_entropy(*arrays, **options)
    return torch.from_numpy(np.asarray(array)), saved


@contextmanager
def _logits_called_input(arrays: tuple[Array, Array], options: dict[str, Any]) -> Iterator[None]:
    """Raise the errors of arguments with the name that the logits have in `pyce.torch`."""
    try:
        yield
    except (TypeError, ValueError):
        try:
            arguments.loss_problem(
                *arrays, **options, sample_weight=None, normalizer=None, what="input"
            )
        except (TypeError, ValueError) as error:
            raise error from None
        raise


def backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    weight: Tensor | None,
    reduction: Reduction,
    ignore_index: int,
    label_smoothing: float,
    lse_square_scale: float = 0.0,
) -> Tensor:
    """grad_loss · ∂loss/∂input from the saved log-sum-exp, in a layout as that of `forward`."""
    rows = None
    factor = 1.0
    if reduction == "none":
        rows = grad_loss.to(torch.float64).resolve_neg().contiguous()
    else:
        factor = float(grad_loss.item())
    at_addresses = current().at_addresses if lse_square_scale == 0.0 else None
    axis = None if at_addresses is None else class_axis_in_memory(input)
    if at_addresses is not None and axis is not None:
        t = _in_memory_of(input, target)
        weights = None if weight is None else _class_weights(weight, input)
        memory = None
        if weight is None or weights is not None:
            memory = _memory(input, t, axis, weights, reduction, ignore_index, label_smoothing)
        if memory is not None:
            gradient = empty_gradient(input)
            factors = 0 if rows is None else rows.data_ptr()
            lses = contiguous_address(lse)
            if at_addresses(0, lses, gradient.data_ptr(), "", factor, factors, *memory):
                return gradient
    x, t, axis = _in_memory_order(input, target)
    gradient = empty_gradient(x, contiguous=True)
    with _threads.at_most(torch.get_num_threads()):
        pyce.cross_entropy_backward(
            factor if rows is None else rows.numpy(),
            as_array(x, "input"),
            as_array(t, "target"),
            lse.numpy(),
            axis=axis,
            weight=None if weight is None else as_array(weight, "weight"),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            lse_square_scale=lse_square_scale,
            out=as_array(gradient, "the gradient"),
        )
    return gradient if x is input else gradient.movedim(axis, 1)


def scaled(gradient: Tensor, grad_loss: Tensor) -> Tensor | None:
    """A saved gradient times the number in `grad_loss`, whose elements are one in memory.

    The product is in the memory of `gradient`, except that a saved float32 gradient of float16
    logits is rounded to float16. None if the number is not finite.
    """
    scale_at = current().scale_at
    if scale_at is not None and type(grad_loss) is Tensor and not grad_loss.is_neg():
        dtype = grad_loss.dtype
        product = gradient
        if dtype is torch.float16:
            product = torch.empty_like(gradient, dtype=dtype)
        if scale_at(
            DTYPE_NAMES[product.dtype],
            gradient.numel(),
            gradient.data_ptr(),
            product.data_ptr(),
            grad_loss.data_ptr(),
            DTYPE_NAMES[dtype],
            torch.get_num_threads,
        ):
            return product
    number = grad_loss[(0,) * grad_loss.dim()].item()
    if number == 1.0:
        return gradient
    return gradient.mul_(number) if math.isfinite(number) else None


def _in_memory_order(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
    """Logits and target with the class axis where it is in the logits' memory, and that place.

    If their shapes do not match, they are returned as they are, for the error message.
    """
    x, axis = in_memory_order(input)
    if x is not input:
        if target.shape == input.shape:
            # Probabilities are copied to the memory order of the logits unless they are in it.
            return x, target.movedim(1, axis).contiguous(), axis
        if target.shape == _rows(input, 1):
            return x, target, axis
    return input, target, 1 if input.dim() > 1 else 0


def _in_memory_of(x: Tensor, t: Tensor) -> Tensor:
    """The target, or a copy in the memory order of the logits if it holds probabilities in another.

    The logits are contiguous, perhaps with the class axis elsewhere.
    """
    if t.shape != x.shape or x.is_contiguous() or t.stride() == x.stride():
        return t
    return torch.empty_like(x, dtype=t.dtype).copy_(t)


def _rows(x: Tensor, axis: int) -> torch.Size:
    """The shape of the losses of the rows."""
    return x.shape[:axis] + x.shape[axis + 1 :]


def _empty_rows(x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a number for each row."""
    if t.dtype is torch.int64:  # labels: contiguous and of this shape, which is quicker
        return torch.empty_like(t, dtype=dtype)
    return x.new_empty(_rows(x, 1 if x.dim() > 1 else 0), dtype=dtype)


def _memory(
    x: Tensor,
    t: Tensor,
    axis: int,
    weights: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Any:
    """The last arguments of the backend's `at_addresses` for the batch; None if it can't be used.

    It takes logits that are contiguous with the class axis at `axis`, int64 labels or
    probabilities, and the result of `_class_weights`. The backend gets addresses instead of NumPy
    arrays: to make the arrays of a small batch takes as long as to compute its loss. It checks the
    values of the labels, and everything else is checked here. An invalid argument gives None, and
    the way through NumPy raises the error for it.
    """
    shape = x.shape
    dimensions = len(shape)
    if dimensions == 2 and axis:
        outer, classes = shape
        inner = 1
    elif dimensions == 0:
        return None
    elif axis == 1 or dimensions == 1:
        outer, classes, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    else:  # elsewhere than in the shape, and not contiguous, so that there are classes
        classes = shape[1]
        outer, inner = x.numel() // classes, 1
        if axis == 0:
            outer, inner = 1, outer
    dtype = DTYPE_NAMES.get(x.dtype)
    probs_dtype = dtype
    labels = probs = 0
    if t.dtype is torch.int64:
        labels = contiguous_address(t)
        # For matrices, what takes less time than to compare shapes.
        if dimensions == 2 == t.dim() + 1:
            if t.numel() != shape[0]:
                return None
        elif t.shape != _rows(x, 1 if dimensions > 1 else 0):
            return None
    else:
        probs = memory_address(t) if t.stride() == x.stride() else contiguous_address(t)
        probs_dtype = DTYPE_NAMES.get(t.dtype)
        if t.shape != shape:
            return None
    logits = memory_address(x)
    if (
        not (logits and (labels or probs) and dtype and probs_dtype)
        or reduction not in _REDUCTIONS
        or not (label_smoothing == 0.0 or _is_fraction(label_smoothing))
        or not (ignore_index == -100 or _is_index(ignore_index))
    ):
        return None
    return (
        dtype,
        reduction,
        outer,
        classes,
        inner,
        logits,
        labels,
        probs,
        probs_dtype,
        0 if weights is None else weights.data_ptr(),
        float(label_smoothing),
        ignore_index,
        torch.get_num_threads,
    )


def _class_weights(weight: Tensor, x: Tensor) -> Tensor | None:
    """The weights of the classes of `x` as contiguous float64; None if they can't be converted."""
    classes = x.shape[1:2] if x.dim() > 1 else x.shape
    if weight.shape != classes or weight.dtype not in DTYPE_NAMES:
        return None
    return weight.double() if contiguous_address(weight) else None


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def _is_index(value: Any) -> bool:
    return type(value) is int and arguments.INDEX_LIMIT.min <= value <= arguments.INDEX_LIMIT.max
