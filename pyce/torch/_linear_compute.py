"""Loss of a linear layer and its gradients, computed chunk by chunk: `forward` and `backward`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyce import _arguments as arguments
from pyce import _fpenv, _threads
from pyce._backends import current
from pyce._linear_chunks import (
    CHUNK_BYTES,
    FILTERED_ROWS,
    Results,
    checked_scales,
    kept_columns,
    problem_of_rows,
)
from pyce._problem import Problem
from pyce._types import Array
from pyce.torch._linear_layer import NO_GRADIENTS, Layer, Needs, Part
from pyce.torch._tensors import DTYPE_NAMES, as_array, check_memory

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Tensors(NamedTuple):
    """The tensors of a call, as `linear_cross_entropy` describes them."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None


class Options(NamedTuple):
    """The arguments that are not tensors, as `linear_cross_entropy` describes them.

    `chunk_rows` is the most rows of a chunk, from PyTorch's options. With `autocast`, the dtypes of
    input, weight and bias may differ, and the loss is float32.
    """

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    normalizer: float | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    lse_square_scale: float = 0.0
    chunk_bytes: int | None = None
    chunk_rows: int | None = None
    filter_tolerance: float | None = None
    autocast: bool = False

    def check(self) -> None:
        """Raise for a number out of its range, except those that `cross_entropy` checks."""
        checked_scales(self.softcap, self.logit_scale, self.chunk_bytes)
        arguments.finite(self.lse_square_scale, "lse_square_scale")
        if self.filter_tolerance is not None:
            arguments.fraction(self.filter_tolerance, "filter_tolerance")
        if self.chunk_rows is not None:
            arguments.positive_number(self.chunk_rows, "options.batch_chunk_size")

    def dtype_of_loss(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the loss for an input of `dtype`."""
        return torch.float32 if self.autocast and dtype is not torch.float64 else dtype


def check_layer(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, mixed: bool
) -> None:
    """Raise unless shapes and dtypes of a layer match; dtypes may differ if `mixed`."""
    if linear_weight.dim() != 2 or linear_weight.shape[0] == 0:
        raise ValueError(
            "linear_weight must have the shape (C, D) with at least one class, got "
            f"{tuple(linear_weight.shape)}"
        )
    if input.dim() == 0 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"input of shape {tuple(input.shape)} does not fit linear_weight of shape "
            f"{tuple(linear_weight.shape)}: expected (..., {linear_weight.shape[1]}), because "
            "linear_weight has the shape (C, D)"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(
            f"linear_bias of shape {tuple(linear_bias.shape)} does not fit linear_weight of shape "
            f"{tuple(linear_weight.shape)}: expected {tuple(linear_weight.shape[:1])}"
        )
    for tensor, name in (
        (input, "input"),
        (linear_weight, "linear_weight"),
        (linear_bias, "linear_bias"),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in DTYPE_NAMES:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
            )
        is_alike = tensor.dtype is input.dtype
        if mixed:
            is_alike = (tensor.dtype is torch.float64) == (input.dtype is torch.float64)
        if not is_alike:
            raise TypeError(
                f"input is {DTYPE_NAMES[input.dtype]}, but {name} is {DTYPE_NAMES[tensor.dtype]}: "
                "they must be alike, except half types and float32 under autocast"
            )


class Head:
    """The arguments of a call, checked: the problem of all rows, without logits, and the layer."""

    def __init__(self, tensors: Tensors, options: Options, needs: Needs) -> None:
        input, linear_weight, linear_bias, target, weight, sample_weight = tensors
        options.check()
        check_layer(input, linear_weight, linear_bias, options.autocast)
        for tensor, name in zip(tensors[:3], Tensors._fields, strict=False):
            if tensor is not None:
                check_memory(tensor, name)
        self.positions = positions = input.shape[:-1]
        classes = linear_weight.shape[0]
        if target.shape not in (positions, (*positions, classes)):
            raise ValueError(
                f"target of shape {tuple(target.shape)} does not fit input of shape "
                f"{tuple(input.shape)} and linear_weight of shape {tuple(linear_weight.shape)}: "
                f"expected {tuple(positions)} for class indices, {(*positions, classes)} for "
                "probabilities"
            )
        wide = np.float64 if input.dtype is torch.float64 else np.float32
        of_rows = None if sample_weight is None else as_array(sample_weight, "sample_weight")
        self.full = full = arguments.loss_problem(
            np.broadcast_to(wide(0), (*positions, classes)),
            as_array(target, "target"),
            axis=-1,
            weight=None if weight is None else as_array(weight, "weight"),
            sample_weight=of_rows,
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
            reduction=options.reduction,
            normalizer=options.normalizer,
            lse_square_scale=options.lse_square_scale,
            what="the logits",
        )
        full.check_labels()
        valid = full.valid()
        self.rows = None if valid is None else torch.from_numpy(np.flatnonzero(valid))
        self.tolerance = options.filter_tolerance or 0.0
        chunk_rows = options.chunk_rows
        if self.tolerance and any(needs):
            chunk_rows = min(FILTERED_ROWS, chunk_rows or FILTERED_ROWS)
        self.layer = Layer(
            input.detach().reshape(full.rows, linear_weight.shape[1]),
            linear_weight.detach(),
            None if linear_bias is None else linear_bias.detach(),
            softcap=options.softcap,
            logit_scale=options.logit_scale,
            rows=self.rows,
            chunk_bytes=options.chunk_bytes or CHUNK_BYTES,
            chunk_rows=chunk_rows,
            needs=needs,
        )
        self.losses = np.zeros(full.rows, wide)
        self.lse = np.zeros(full.rows)
        self.results = Results(full, self.losses, self.lse)

    def problem(self, part: Part, chunk: Tensor) -> tuple[Problem, slice | Array]:
        """The problem of the rows of a chunk, and these rows for NumPy."""
        some = part if isinstance(part, slice) else part.numpy()
        return problem_of_rows(self.full, some, chunk.numpy()), some


# Arithmetic of pyce needs the default environment; PyTorch's products have the caller's.
@_fpenv.default
def _prepare(head: Head, grad_loss: float | None) -> None:
    head.results.prepare(grad_loss)


_kept_columns = _fpenv.default(kept_columns)


@_fpenv.default
def _evaluate(head: Head, part: Part, chunk: Tensor) -> None:
    """Write losses and lse of a chunk; its gradient, if it is needed, replaces the logits."""
    some = part if isinstance(part, slice) else part.numpy()
    with np.errstate(all="ignore"), _threads.at_most(torch.get_num_threads()):
        head.results.evaluate(current(), chunk.numpy(), some)


@_fpenv.default
def _differentiate(head: Head, part: Part, chunk: Tensor, factors: Array, lse: Array) -> None:
    """Replace the logits of a chunk by their gradient, times a factor for each row."""
    p, some = head.problem(part, chunk)
    p.grad_loss, p.lse, p.grad, p.losses = factors[some], lse[some], p.logits, None
    with np.errstate(all="ignore"), _threads.at_most(torch.get_num_threads()):
        current().backward(p)


@_fpenv.default
def _reduced(head: Head) -> Array:
    loss = head.results.loss()
    return np.asarray(loss).reshape(head.positions if head.full.reduction == "none" else ())


def _add(head: Head, part: Part, gradient: Tensor) -> None:
    head.layer.uncap(gradient)
    kept = None
    if head.tolerance:
        found = _kept_columns(gradient.numpy(), head.tolerance)
        kept = None if found is None else torch.from_numpy(found)
    head.layer.add(part, gradient, kept)


def forward(tensors: Tensors, options: Options, needs: Needs) -> tuple[Tensor, Tensor, Gradients]:
    """The loss, lse, and the gradients of the loss, as `Layer.gradients` returns them.

    For the reduction "none" there are no gradients: they depend on those of the rows' losses.
    """
    with_grad = any(needs) and options.reduction != "none"
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        head = Head(tensors, options, needs if with_grad else NO_GRADIENTS)
        _prepare(head, options.logit_scale if with_grad else None)
        for part, chunk in head.layer.chunks():
            _evaluate(head, part, chunk)
            if with_grad:
                _add(head, part, chunk)
        loss = torch.from_numpy(_reduced(head)).to(options.dtype_of_loss(tensors.input.dtype))
        return loss, torch.from_numpy(head.lse.reshape(head.positions)), head.layer.gradients()


def backward(
    grad_loss: Tensor, lse: Tensor, tensors: Tensors, options: Options, needs: Needs
) -> Gradients:
    """The gradients for the reduction "none", from the saved lse: logits are computed again."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        head = Head(tensors, options, needs)
        factors = as_array(grad_loss.double().reshape(-1), "the gradient of the loss")
        factors = factors * options.logit_scale
        saved = as_array(lse.reshape(-1), "lse")
        for part, chunk in head.layer.chunks():
            _differentiate(head, part, chunk, factors, saved)
            _add(head, part, chunk)
        of_input, of_weight, of_bias = (
            g if g is None or t is None else g.to(t.dtype).reshape(t.shape)
            for g, t in zip(head.layer.gradients(), tensors[:3], strict=True)
        )
        return of_input, of_weight, of_bias
