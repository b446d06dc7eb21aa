"""The backward pass: of eager calls through an autograd.Function, and of the operator.

The forward pass saves one of two things (`SAVE_GRADIENT`, `SAVE_LSE`), and the backward pass
follows from it:

- the gradient of the summed loss. The backward pass multiplies it by the gradient of the loss, in
  place where nothing else needs the saved tensor.
- log-sum-exp of the rows, with the logits. The backward pass computes the gradient from them, with
  the gradient of the loss inside: float16 gradients are then rounded after the scaling and not
  before, and probabilities that require a gradient get theirs.

What PyTorch has to differentiate again is computed by `_Formulas` in PyTorch's own operations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyce.torch import _compute
from pyce.torch._compute import IGNORE_INDEX, LSE_SQUARE_SCALE, SAVE, SAVE_LSE
from pyce.torch._tensors import is_plain
from pyce.torch._tracing import (
    dispatch_modes,
    forward_mode,
    graph_is_retained,
    is_batched,
    is_compiling,
    saved_tensors_hooks,
    transforms_active,
)


class _CrossEntropyOfMany(torch.autograd.Function):  # type: ignore[misc]
    """`_compute.forward` with its derivatives.

    The saved tensor is an output as well, although no caller gets it: gradients of gradients then
    go through it, and the forward pass need not save the logits for them.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any
    ) -> Any:
        outputs = _compute.forward(input, target, weight, *options)
        save(ctx, input, target, weight, options, outputs[1])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_saved: Tensor | None) -> Any:
        of_input, of_target = backward(ctx, grad_loss, grad_saved)
        return of_input, of_target, None, None


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """`_compute.forward` of few logits, where PyTorch's part of a call takes most of the time.

    There is one output, and the saved tensors are an attribute. Gradients of gradients go through
    the logits, which live as long as the graph: too long if they are many.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any
    ) -> Tensor:
        loss, gradient = _compute.forward(input, target, weight, *options)
        try:
            versions = _versions(target, weight)
        except RuntimeError:  # of `torch.inference_mode`, as PyTorch says when they are saved
            ctx.save_for_backward(target, weight)
            return loss
        ctx.state = gradient, target, weight, options, versions, input, input._version
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, None, None, None]:
        state = ctx.state
        if state is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time, after its saved tensors were "
                "freed: the first backward pass needs retain_graph=True"
            )
        retained = graph_is_retained()
        if not retained:
            ctx.state = None
        gradient, target, weight, options, versions, input, version = state
        if versions != _versions(target, weight) or (
            torch.is_grad_enabled() and version != input._version
        ):
            raise RuntimeError(
                "a tensor that the gradient of the loss needs has been modified by an inplace "
                "operation: the target, the weight, or for second derivatives the logits"
            )
        if not retained and _is_eager(grad_loss):
            return _in_place(gradient, target, grad_loss, options[IGNORE_INDEX]), None, None, None
        if torch.is_grad_enabled():
            gradient = _Gradient.apply(input, gradient, target, weight, options)
        return _product(gradient, target, grad_loss, options[IGNORE_INDEX]), None, None, None


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    """The saved gradient as a function of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        gradient: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: Any,
    ) -> Tensor:
        output = gradient.view_as(gradient)
        ctx.options = options
        ctx.save_for_backward(output, target, weight)
        return output

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient, target, weight = ctx.saved_tensors
        formulas = _Formulas(gradient, target, weight, *ctx.options[:SAVE])
        second = formulas.curvature(gradient, direction, None)
        return second, None, None, None, None


# autograd.Function.apply also handles torch.func's transforms, for which `cross_entropy` calls
# PyTorch's own function; its base class does not, and is faster.
apply_to_many = super(torch.autograd.Function, _CrossEntropyOfMany).apply
apply_to_few = super(torch.autograd.Function, _CrossEntropy).apply
# The engine calls these; PyTorch's own method would look the function up again in every pass.
_CrossEntropyOfMany._backward_cls.apply = _CrossEntropyOfMany.backward
_CrossEntropy._backward_cls.apply = _CrossEntropy.backward


def _versions(target: Tensor, weight: Tensor | None) -> tuple[int, int]:
    """Numbers that change when a tensor is modified in place."""
    return target._version, 0 if weight is None else weight._version


def save(
    ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any, saved: Any
) -> None:
    """Save in `ctx` what `backward` needs.

    `options` are those of `_compute.forward`.
    """
    ctx.set_materialize_grads(False)
    ctx.options = options
    if saved_tensors_hooks() is not None:
        ctx.has_hooks = True
    if options[SAVE] == SAVE_LSE:
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(saved, target, weight, input)
    elif options[LSE_SQUARE_SCALE] != 0.0:  # second derivatives need the logits then
        ctx.save_for_backward(saved, target, weight, input)
    else:
        ctx.save_for_backward(saved, target, weight)


def backward(
    ctx: Any, grad_loss: Tensor | None, grad_saved: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and target, from those of the loss and of the saved tensor."""
    saved = ctx.saved_tensors
    logits = None
    if len(saved) == 4:
        if ctx.options[SAVE] == SAVE_LSE:
            return (None, None) if grad_loss is None else _from_lse(ctx, grad_loss, *saved)
        *saved, logits = saved
    gradient, target, weight = saved
    product = None
    ignore_index = ctx.options[IGNORE_INDEX]
    if grad_saved is None:  # nearly always
        if grad_loss is not None:
            product = scaled(ctx, gradient, target, grad_loss, ignore_index)
        return product, None
    formulas = _Formulas(gradient, target, weight, *_of_formulas(ctx.options))
    second = formulas.curvature(gradient, grad_saved, logits)
    if grad_loss is None:
        return second, None
    product = scaled(ctx, gradient, target, grad_loss, ignore_index)  # may overwrite `gradient`
    return product + second, None


def _of_formulas(options: Any) -> Any:
    """The last arguments of `_Formulas`: reduction, label, smoothing and `lse_square_scale`."""
    return *options[:SAVE], options[LSE_SQUARE_SCALE]


def _from_lse(
    ctx: Any,
    grad_loss: Tensor,
    lse: Tensor,
    target: Tensor,
    weight: Tensor | None,
    input: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and target, from the saved log-sum-exp."""
    options = _of_formulas(ctx.options)
    of_input = of_target = None
    if is_differentiated(grad_loss):
        if ctx.needs_input_grad[0]:
            of_input = _Formulas(input, target, weight, *options).gradient(input, grad_loss)
    elif ctx.needs_input_grad[0]:
        needs_operator = is_compiling() or dispatch_modes() or not is_plain(input)
        run = torch.ops.pyce.cross_entropy_backward if needs_operator else _compute.backward
        of_input = run(grad_loss, input, target, lse, weight, *options)
    if ctx.needs_input_grad[1]:
        formulas = _Formulas(input, target, weight, *options)
        of_target = formulas.gradient_of_target(input, grad_loss)
    return of_input, of_target


def is_differentiated(grad_loss: Tensor) -> bool:
    """Whether the backward pass must be in operations that PyTorch can differentiate and batch."""
    if torch.is_grad_enabled():
        return True
    if is_compiling():
        return False
    return bool(transforms_active() or forward_mode() or is_batched(grad_loss))


def _is_eager(grad_loss: Tensor) -> bool:
    """Whether the backward pass is neither differentiated nor traced, batched or intercepted."""
    return not (
        torch.is_grad_enabled()
        or is_compiling()
        or dispatch_modes()
        or transforms_active()
        or forward_mode()
        or is_batched(grad_loss)
    )


def scaled(
    ctx: Any, gradient: Tensor, target: Tensor, grad_loss: Tensor, ignore_index: int
) -> Tensor:
    """grad_loss · gradient, in the memory of `gradient` where nothing else needs it.

    It is 0 for an ignored row, whatever the gradient of its loss.
    """
    if (
        graph_is_retained()
        or type(gradient) is not Tensor
        or hasattr(ctx, "has_hooks")
        or not _is_eager(grad_loss)
    ):
        return _product(gradient, target, grad_loss, ignore_index)
    gradient = gradient.detach_()  # of the graph for gradients of gradients
    return _in_place(gradient, target, grad_loss, ignore_index)


def _in_place(gradient: Tensor, target: Tensor, grad_loss: Tensor, ignore_index: int) -> Tensor:
    """`_product` in the memory of `gradient`, if nothing differentiates, batches or traces it."""
    if grad_loss.dim() and (any(grad_loss.stride()) or not grad_loss.numel()):
        factor = grad_loss
        if not target.is_floating_point():
            # As int64: PyTorch compares uint8 with a number that it reduces modulo 256.
            factor = factor.masked_fill(target.long() == ignore_index, 0.0)
        if _is_finite(factor):
            return gradient.mul_(factor.unsqueeze(1))
        return _product(gradient, target, grad_loss, ignore_index)
    # One number for all rows: PyTorch expresses a sum of the rows' losses by strides of 0.
    scaled = _compute.scaled(gradient, grad_loss)
    return _product(gradient, target, grad_loss, ignore_index) if scaled is None else scaled


def _product(gradient: Tensor, target: Tensor, grad_loss: Tensor, ignore_index: int) -> Tensor:
    """grad_loss · gradient in operations that PyTorch can differentiate, batch and trace."""
    axis = 1 if gradient.dim() > 1 else 0
    factor = grad_loss.unsqueeze(axis) if grad_loss.dim() else grad_loss
    if not target.is_floating_point():
        factor = torch.where(target.long().unsqueeze(axis) == ignore_index, 0.0, factor)
    return _times(gradient, factor, axis).to(gradient.dtype)


def _times(gradient: Tensor, factor: Tensor, axis: int) -> Tensor:
    """gradient · factor, where 0 · inf is 0, and so is a row of 0 · NaN: it has no coefficients."""
    product = gradient * factor
    if _is_finite(factor):
        return product
    zero = gradient == 0
    zero = zero & factor.isinf() | zero.all(axis, keepdim=True) & factor.isnan()
    return torch.where(zero, 0.0, product)


def _is_finite(factor: Tensor) -> bool:
    """Whether the numbers are known to be finite. They are read where nothing traces the call."""
    if type(factor) is not Tensor or not _is_eager(factor):
        return False
    return math.isfinite(factor.sum().item())


class _Formulas:
    """The gradients in PyTorch's own differentiable operations, where speed does not matter.

    With the target t of a row (smoothed, times the class weights), its sum T, the softmax p and the
    factor s of the row in the reduction (1, or 1 over the denominator of the mean), the gradient is
    g = s · (T · p − t). `lse_square_scale` λ adds 2 · λ · v · lse to T, with the weight v of the
    label, or 1 for probabilities.
    """

    def __init__(
        self,
        like: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        lse_square_scale: float = 0.0,
    ) -> None:
        self.axis = axis = 1 if like.dim() > 1 else 0
        classes = like.shape[axis]
        self.dtype = dtype = like.dtype if like.dtype is torch.float64 else torch.float32
        shape = [1] * like.dim()
        shape[axis] = classes
        weights = (
            like.new_ones(classes, dtype=dtype) if weight is None else weight.detach().to(dtype)
        )
        self.weights = weights.reshape(shape)
        self.on_value = 1.0 - label_smoothing
        off_value = label_smoothing / classes
        factor: Any = 1.0
        self.lse_square_scale = lse_square_scale
        self.lse_factor: Any = 2.0 * lse_square_scale  # 2 · λ · v
        self.ignored = None
        if target.is_floating_point():
            self.target = self.weights * (self.on_value * target.to(dtype) + off_value)
            if reduction == "mean":
                factor = 1.0 / max(1, like.numel() // classes)
        else:
            index = target.long().unsqueeze(axis)
            self.ignored = index == ignore_index
            valid = (~self.ignored).to(dtype)
            index = torch.where(self.ignored, 0, index)
            weight_of_row = self.weights.expand(like.shape).gather(axis, index) * valid
            if lse_square_scale:
                self.lse_factor = self.lse_factor * weight_of_row
            self.target = (self.weights * off_value * valid).scatter_add(
                axis, index, self.on_value * weight_of_row
            )
            if reduction == "mean":
                factor = torch.where(self.ignored, 0.0, 1.0 / weight_of_row.sum())
        self.factor = factor
        self.total = self.target.sum(axis, keepdim=True)

    def gradient(self, input: Tensor, grad_loss: Tensor) -> Tensor:
        """grad_loss · ∂loss/∂input."""
        x = self._of_valid(input.to(self.dtype))
        total = self.total
        if self.lse_square_scale:
            total = total + self.lse_factor * x.logsumexp(self.axis, keepdim=True)
        p = x.softmax(self.axis)
        gradient = self.factor * (total * p - self.target)
        return _times(gradient, self._of_rows(grad_loss), self.axis).to(input.dtype)

    def gradient_of_target(self, input: Tensor, grad_loss: Tensor) -> Tensor:
        """grad_loss · ∂loss/∂target, for probabilities."""
        log_p = input.to(self.dtype).log_softmax(self.axis)
        factor = self._of_rows(grad_loss) * (-self.factor * self.on_value)
        return (factor * self.weights * log_p).to(input.dtype)

    def curvature(self, gradient: Tensor, direction: Tensor, logits: Tensor | None) -> Tensor:
        """∂⟨gradient, direction⟩/∂input = s · T · p · (direction − ⟨p, direction⟩).

        It needs the gradient and not the logits: s · T · p = gradient + s · t. It is 0 for a row
        without a target, T = 0. With λ, which needs the logits, s · 2 · λ · v · ⟨p, direction⟩ · p
        is added.
        """
        if logits is not None:
            x = self._of_valid(logits.to(self.dtype))
            p = x.softmax(self.axis)
            direction = self._of_valid(direction.to(self.dtype))
            mean = (p * direction).sum(self.axis, keepdim=True)
            total = self.total + self.lse_factor * x.logsumexp(self.axis, keepdim=True)
            second = self.factor * p * (total * (direction - mean) + self.lse_factor * mean)
            return second.to(gradient.dtype)
        p = gradient.to(self.dtype) + self.factor * self.target
        total = self.factor * self.total
        direction = self._of_valid(direction.to(self.dtype))
        mean = (p * direction).sum(self.axis, keepdim=True) / torch.where(total == 0, 1.0, total)
        return (p * (direction - mean)).to(gradient.dtype)

    def _of_rows(self, grad_loss: Tensor) -> Tensor:
        """The gradient of the loss, in a shape that broadcasts against the logits."""
        row = grad_loss.to(self.dtype)
        return self._of_valid(
            row.unsqueeze(self.axis) if row.dim() or self.target.dim() == 1 else row
        )

    def _of_valid(self, values: Tensor) -> Tensor:
        """The values, and 0 for ignored rows: 0 · NaN would be NaN."""
        return values if self.ignored is None else torch.where(self.ignored, 0.0, values)
