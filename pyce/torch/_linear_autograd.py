"""Derivatives of `linear_cross_entropy`: an autograd.Function for eager calls, and operators.

For "mean" and "sum", the forward pass computes the gradients of the loss, and the backward pass
multiplies them by the gradient of the loss. For "none", the forward pass saves lse, and the
backward pass computes the logits again. What PyTorch has to differentiate again is computed by
`composed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyce.torch import _linear_compute
from pyce.torch._autograd import is_differentiated
from pyce.torch._cross_entropy import cross_entropy
from pyce.torch._linear_compute import Gradients, Options, Tensors
from pyce.torch._linear_layer import NO_GRADIENTS, Needs
from pyce.torch._tensors import is_plain
from pyce.torch._tracing import (
    dispatch_modes,
    graph_is_retained,
    is_batched,
    is_compiling,
    saved_tensors_hooks,
    transforms_active,
)

# The arguments of an operator: six tensors, what `Options` has, what `Needs` has.
_TENSORS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
    "Tensor? sample_weight"
)
_OPTIONS = (
    "str reduction, int ignore_index, float label_smoothing, float? normalizer, float? softcap, "
    "float logit_scale, float lse_square_scale, int? chunk_bytes, int? chunk_rows, "
    "float? filter_tolerance, bool autocast, bool needs_input, bool needs_weight, bool needs_bias"
)
_COUNT = len(Options._fields)


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """`_linear_compute.forward` with its derivatives."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, options, needs = inputs
        loss, lse, gradients = _linear_compute.forward(Tensors(*tensors), options, needs)
        _save(ctx, tensors, options, needs, lse, gradients)
        return loss, lse

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None) -> Any:
        return *_backward(ctx, grad_loss), None, None, None, None, None


apply = super(torch.autograd.Function, _LinearCrossEntropy).apply


def _save(
    ctx: Any, tensors: Any, options: Options, needs: Needs, lse: Tensor, gradients: Any
) -> None:
    """Save what `_backward` needs. The inputs serve second derivatives and the reduction "none"."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    ctx.options, ctx.needs = options, needs
    ctx.has_hooks = saved_tensors_hooks() is not None
    if options.reduction == "none":
        gradients = (lse, None, None)
    ctx.save_for_backward(*tensors, *gradients)


def _backward(ctx: Any, grad_loss: Tensor | None) -> Gradients:
    """The gradients of input, weight and bias."""
    if grad_loss is None:
        return None, None, None
    saved = ctx.saved_tensors
    tensors, gradients = Tensors(*saved[:6]), saved[6:]
    options: Options = ctx.options
    none = options.reduction == "none"
    if torch.is_grad_enabled() or (none and is_differentiated(grad_loss)):
        return _differentiated(tensors, options, ctx.needs, grad_loss)
    if none:
        if is_compiling() or dispatch_modes() or not is_plain(tensors.input):
            operator = torch.ops.pyce.linear_cross_entropy_backward
            found = operator(grad_loss, gradients[0], *tensors, *options, *ctx.needs)
            return _wanted(found, ctx.needs)
        return _linear_compute.backward(grad_loss, gradients[0], tensors, options, ctx.needs)
    return scaled(ctx, tensors, gradients, grad_loss)


def _wanted(found: Any, needs: Needs) -> Gradients:
    """Results of an operator, None for those that stand for nothing."""
    of_input, of_weight, of_bias = found
    return (
        of_input if needs.input else None,
        of_weight if needs.weight else None,
        of_bias if needs.bias else None,
    )


def scaled(ctx: Any, tensors: Tensors, gradients: Any, grad_loss: Tensor) -> Gradients:
    """The saved gradients times that of the loss, in their memory where nothing else needs them."""
    separate = (
        graph_is_retained()
        or ctx.has_hooks
        or is_compiling()
        or bool(dispatch_modes())
        or transforms_active()
        or is_batched(grad_loss)
        or type(grad_loss) is not Tensor
    )
    factor: Any = grad_loss if separate else grad_loss.item()
    of_rows = of_layer = factor
    if (separate or not math.isfinite(factor)) and not tensors.target.is_floating_point():
        # An ignored row has the gradient 0, whatever the gradient of the loss.
        valid = tensors.target.long().reshape(-1, 1) != ctx.options.ignore_index
        of_rows = torch.where(valid, grad_loss, 0.0)
        of_layer = torch.where(valid.any(), grad_loss, 0.0)
    found: list[Tensor | None] = []
    for tensor, gradient, is_needed, times in zip(
        tensors[:3], gradients, ctx.needs, (of_rows, of_layer, of_layer), strict=True
    ):
        if not is_needed or tensor is None:
            found.append(None)
            continue
        if separate:
            gradient = gradient * times
        elif factor != 1.0:
            gradient = gradient.mul_(times)
        found.append(gradient.to(tensor.dtype).reshape(tensor.shape))
    of_input, of_weight, of_bias = found
    return of_input, of_weight, of_bias


def _differentiated(
    tensors: Tensors, options: Options, needs: Needs, grad_loss: Tensor
) -> Gradients:
    """The gradients in operations that PyTorch can differentiate and batch."""
    return differentiate(
        lambda x, w, b: composed(Tensors(x, w, b, *tensors[3:]), options)[0],
        tensors[:3],
        needs,
        grad_loss,
    )


def differentiate(
    function: Callable[..., Any], tensors: Any, needs: Any, gradients: Any
) -> tuple[Any, ...]:
    """The derivatives of `function(*tensors)` with respect to the tensors that are needed.

    They have a graph if gradients are enabled.
    """
    has_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = function(*tensors)
        leaves = [t for t, is_needed in zip(tensors, needs, strict=True) if is_needed]
        found = iter(
            torch.autograd.grad(
                outputs, leaves, gradients, create_graph=has_graph, materialize_grads=True
            )
        )
    return tuple(next(found) if is_needed else None for is_needed in needs)


def composed(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """Loss and lse in differentiable operations, with all logits at once.

    The weight may be of shape (C, d1, …, D), as PyTorch allows it: the logits are then of shape
    (N, C, d1, …).
    """
    input, linear_weight, linear_bias, target, weight, sample_weight = tensors
    dtype = input.dtype
    soft = target.is_floating_point()
    if not soft:
        # Ignored rows are not read: NaN in them would reach the gradient of the weight.
        ignored = target.long() == options.ignore_index
        if linear_weight.dim() > 2:
            ignored = ignored.flatten(1).all(1)
        input = torch.where(ignored.unsqueeze(-1), 0.0, input)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    with torch.autocast("cpu", enabled=False):
        logits = layer_logits(
            input, linear_weight, linear_bias, options.softcap, options.logit_scale
        )
        positions = input.shape[:-1] if linear_weight.dim() == 2 else target.shape
        if linear_weight.dim() == 2:
            # Without −1, which is ambiguous in a batch of no rows.
            logits = logits.reshape(math.prod(positions), logits.shape[-1])
        elif target.is_floating_point():
            positions = (target.shape[0], *target.shape[2:])
        if linear_weight.dim() == 2:
            target = target.reshape(logits.shape if soft else logits.shape[:1])
        rows = sample_weight is None and options.normalizer is None
        loss = cross_entropy(
            logits,
            target,
            weight,
            ignore_index=options.ignore_index,
            reduction=options.reduction if rows else "none",
            label_smoothing=options.label_smoothing,
            lse_square_scale=options.lse_square_scale,
        )
        if not rows:
            loss = _reduce(loss, target, weight, sample_weight, logits.shape[1], options)
        if options.reduction == "none":
            loss = loss.reshape(positions)
        lse = logits.detach().logsumexp(1).double()
        if not soft:
            lse = torch.where(target.long() == options.ignore_index, 0.0, lse)
        return loss.to(wide).to(options.dtype_of_loss(dtype)), lse.reshape(positions)


def layer_logits(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> Tensor:
    """The logits (…, C), or (N, C, d1, …) for a weight (C, d1, …, D), in float32 or float64."""
    wide = torch.float64 if input.dtype is torch.float64 else torch.float32
    bias = None if linear_bias is None else linear_bias.reshape(-1).to(wide)
    logits = torch.nn.functional.linear(input.to(wide), linear_weight.flatten(0, -2).to(wide), bias)
    if linear_weight.dim() > 2:
        logits = logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    if logit_scale != 1.0:
        logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _reduce(
    losses: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    classes: int,
    options: Options,
) -> Tensor:
    """The losses with the weights of the rows, reduced."""
    factor = torch.ones_like(losses)
    if sample_weight is not None:
        factor = sample_weight.to(losses.dtype).reshape(losses.shape)
        losses = torch.where(factor == 0, 0.0, losses * factor)
    if options.reduction == "none":
        return losses
    total = losses.sum()
    if options.reduction == "sum":
        return total
    valid = torch.ones_like(losses, dtype=torch.bool)
    if not target.is_floating_point():
        valid = target != options.ignore_index
        if weight is not None:
            index = torch.where(valid, target, 0).long()
            factor = factor * weight.to(losses.dtype)[index]
    if options.normalizer is not None:
        return torch.where(valid.any(), total / options.normalizer, 0.0)
    return total / torch.where(valid, factor, 0.0).sum()


# ---------------------------------------------------------------------------------------------
# Operators: what torch.compile and other mechanisms see


def _or_empty(gradients: Gradients, like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if g is None else g for g in gradients]


def _forward_op(*inputs: Any) -> Any:
    options, needs = _options(inputs[6:])
    loss, lse, gradients = _linear_compute.forward(Tensors(*inputs[:6]), options, needs)
    return loss, lse, *_or_empty(gradients, inputs[0])


def _options(values: Any) -> tuple[Options, Needs]:
    return Options(*values[:_COUNT]), Needs(*values[_COUNT:])


def _forward_fake(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *others: Any
) -> Any:
    options, needs = _options(others[3:])
    none = options.reduction == "none"
    rows = input.shape[:-1]
    loss = input.new_empty(rows if none else (), dtype=options.dtype_of_loss(input.dtype))
    lse = input.new_empty(rows, dtype=torch.float64)
    wide = torch.float64 if input.dtype is torch.float64 else torch.float32
    bfloat16 = torch.bfloat16
    if none:
        needs = NO_GRADIENTS
    return (
        loss,
        lse,
        input.new_empty(
            (math.prod(rows), input.shape[-1]), dtype=bfloat16 if input.dtype is bfloat16 else wide
        )
        if needs.input
        else input.new_empty(0),
        input.new_empty(
            linear_weight.shape, dtype=bfloat16 if linear_weight.dtype is bfloat16 else wide
        )
        if needs.weight
        else input.new_empty(0),
        input.new_empty(linear_weight.shape[:1], dtype=wide) if needs.bias else input.new_empty(0),
    )


def _set_up(ctx: Any, inputs: Any, output: Any) -> None:
    options, needs = _options(inputs[6:])
    ctx.mark_non_differentiable(*output[2:])
    _save(ctx, inputs[:6], options, needs, output[1], output[2:])


def _differentiate_op(ctx: Any, *gradients: Any) -> Any:
    return *_backward(ctx, gradients[0]), *(None,) * (3 + _COUNT + 3)


def _backward_op(*inputs: Any) -> Any:
    grad_loss, lse = inputs[:2]
    tensors, (options, needs) = Tensors(*inputs[2:8]), _options(inputs[8:])
    found = _linear_compute.backward(grad_loss, lse, tensors, options, needs)
    return tuple(_or_empty(found, tensors.input))


def _backward_fake(
    grad_loss: Tensor,
    lse: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    *others: Any,
) -> Any:
    needs = _options(others[3:])[1]
    nothing = input.new_empty(0)
    return (
        torch.empty_like(input, memory_format=torch.contiguous_format) if needs.input else nothing,
        torch.empty_like(linear_weight, memory_format=torch.contiguous_format)
        if needs.weight
        else input.new_empty(0),
        torch.empty_like(linear_bias)
        if needs.bias and linear_bias is not None
        else input.new_empty(0),
    )


_operator = torch.library.custom_op(
    "pyce::linear_cross_entropy",
    _forward_op,
    mutates_args=(),
    schema=f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_operator.register_fake(_forward_fake)
_operator.register_autograd(_differentiate_op, setup_context=_set_up)
_operator_of_backward = torch.library.custom_op(
    "pyce::linear_cross_entropy_backward",
    _backward_op,
    mutates_args=(),
    schema=f"(Tensor grad_loss, Tensor lse, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
_operator_of_backward.register_fake(_backward_fake)
