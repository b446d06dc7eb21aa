"""`pyce.torch.cross_entropy` and `CrossEntropyLoss`: arguments, and which way a call takes.

cross_entropy ─ eager ───────────────► _CrossEntropy, an autograd.Function ─┐
              └ traced or intercepted ► pyce::cross_entropy, an operator ───┴► _compute ─► pyce
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn._reduction import get_enum
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pyce.torch import (
    _compute,
    _operators,  # noqa: F401  registers torch.ops.pyce.cross_entropy
)
from pyce.torch._autograd import apply_to_few, apply_to_many
from pyce.torch._compute import SAVE_GRADIENT, SAVE_LSE, SAVE_NOTHING
from pyce.torch._public import publish
from pyce.torch._tensors import (
    DTYPE_NAMES,
    HALF_TYPES,
    PLAIN_TYPES,
    check_tensor,
    is_plain,
    is_served,
    refuse_gradients,
)
from pyce.torch._tracing import (
    dispatch_modes,
    forward_mode,
    is_compiling,
    saved_tensors_hooks,
    tracing_state,
    transforms_active,
)

# The function that torch.nn.functional.cross_entropy calls, and that `patched` replaces.
_torch_loss = torch._C._nn.cross_entropy_loss
_STRIDED = torch.strided
# For float16 logits of at most this many elements, the forward pass saves the gradient in float32.
_WIDENED = 1 << 16
# At most this many logits live as long as the graph.
_FEW = 1 << 16


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    lse_square_scale: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` on pyce's kernels.

    The loss of a row is weight[y] · (lse − x_y) for a class index y, and
    Σ_c weight_c · t_c · (lse − x_c) for probabilities t, with lse = log Σ_c exp(x_c).

    Parameters
    ----------
    input : Tensor
        Logits of shape (C,), (N, C) or (N, C, d1, …): the class axis is the second, or the only
        one. float32, float64, bfloat16 or float16, on the CPU, with any strides.
    target : Tensor
        Class indices of any integer dtype and of shape (), (N,) or (N, d1, …); or probabilities of
        a floating dtype and of the shape of `input`.
    weight : Tensor, optional
        Weight of each class, of shape (C,) and of a floating dtype.
    size_average, reduce : None
        Deprecated in PyTorch. Any value except None raises `ValueError`.
    ignore_index : int
        Rows with this class index have loss 0 and gradient 0 and do not count in the mean. For
        class indices only.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the losses by Σ weight[y] over the rows that are not ignored, for
        probabilities by the number of rows.
    label_smoothing : float
        ε in [0, 1]: probabilities t are replaced by (1 − ε) · t + ε/C, and class indices by the
        same of their one-hot vectors.
    lse_square_scale : float
        λ of the z-loss: λ · lse² is added to each row's loss, times weight[y] for a class index y,
        whatever the smoothing. Any finite number.

    Returns
    -------
    Tensor
        The loss in nats: a scalar, or for "none" a tensor of the shape of index targets. It has the
        dtype of `input`, or float32 for half types under autocast, as in PyTorch. It is
        differentiable any number of times with respect to `input`, and with respect to `target` if
        that holds probabilities.

    Raises
    ------
    TypeError
        If an argument is not a tensor or a dtype is not supported.
    ValueError
        If a tensor is sparse, nested or not on the CPU; if shapes do not match; if `size_average`
        or `reduce` is given; if `reduction` is unknown; if `label_smoothing` is outside [0, 1]; if
        `lse_square_scale` is not finite; if `ignore_index` is given with probabilities.
    IndexError
        If a class index is out of range. The message names the first such row.
    NotImplementedError
        If `weight`, or a number that is given as a tensor, requires a gradient.

    Notes
    -----
    PyTorch's own function runs under the transforms of `torch.func`, which need more than a
    gradient, in forward-mode differentiation, and for distributed tensors (`DTensor`). A call uses
    at most as many threads as `torch.get_num_threads` says, whatever OMP_NUM_THREADS is, and as the
    other limits that `pyce.get_num_threads` lists allow.

    The gradient of float16 logits is multiplied by the gradient of the loss before it is rounded:
    losses are scaled in float16 training, and gradients that are rounded before the scaling are 0
    too early.

    The semantics are those of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html, except
    that `target` may have any integer dtype and `weight` any floating dtype.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]], requires_grad=True)
    >>> loss = pyce.torch.cross_entropy(logits, torch.tensor([1, 2]))
    >>> loss.backward()
    >>> print(round(loss.item(), 4), [round(v, 3) for v in logits.grad[0].tolist()])
    0.287 [0.116, -0.186, 0.07]
    """
    if size_average is not None or reduce is not None:
        raise ValueError("size_average and reduce are not supported: say reduction= instead")
    traced = is_compiling()
    if not traced and has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            lse_square_scale=lse_square_scale,
        )
    plain = type(input) in PLAIN_TYPES and type(target) in PLAIN_TYPES
    if not (
        plain
        and input.is_cpu
        and target.is_cpu
        and input.layout is target.layout is _STRIDED
        and not (input.is_nested or target.is_nested)
    ):
        check_tensor(input, "input")
        check_tensor(target, "target")
        plain = is_plain(input) and is_plain(target)
    if weight is not None:
        check_tensor(weight, "weight")
        if weight.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("no gradient is computed for weight: detach it")
        plain = plain and is_plain(weight)
    if type(label_smoothing) is not float or type(lse_square_scale) is not float:
        refuse_gradients(label_smoothing=label_smoothing, lse_square_scale=lse_square_scale)
    if ignore_index >= 0 and target.dtype in DTYPE_NAMES:
        raise ValueError("ignore_index is for class indices, and target holds probabilities")
    if transforms_active() or (not traced and forward_mode()) or not (plain or is_served(input)):
        numbers = get_enum(reduction), ignore_index, label_smoothing
        loss = _torch_loss(input, *_as_pytorch_takes(input, target, weight), *numbers)
        if target.is_floating_point() and not torch.is_autocast_enabled("cpu"):
            loss = loss.to(input.dtype)  # PyTorch promotes it with the target
        if lse_square_scale == 0.0:
            return loss
        return loss + _lse_square(input, target, weight, reduction, ignore_index, lse_square_scale)
    save = SAVE_NOTHING
    dtype = input.dtype
    float32_loss = dtype in HALF_TYPES and torch.is_autocast_enabled("cpu")
    intercepted = traced or not plain or dispatch_modes() or tracing_state() is not None
    of_target = target.requires_grad
    if (of_target or input.requires_grad) and torch.is_grad_enabled():
        narrow = dtype is torch.float16 and (intercepted or input.numel() > _WIDENED)
        save = SAVE_LSE if of_target or narrow else SAVE_GRADIENT
    options = (reduction, ignore_index, label_smoothing, save, float32_loss, lse_square_scale)
    if intercepted:
        return torch.ops.pyce.cross_entropy(input, target, weight, *options)[0]
    if save is SAVE_NOTHING:
        return _compute.forward(input, target, weight, *options)[0]
    few = input.numel() <= _FEW and lse_square_scale == 0.0
    if save is SAVE_GRADIENT and few and saved_tensors_hooks() is None:
        return apply_to_few(input, target, weight, options)
    return apply_to_many(input, target, weight, options)[0]


def _as_pytorch_takes(
    input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Target and weight in the dtypes that PyTorch's own function requires.

    It smooths probabilities in their own dtype, so those with fewer digits are widened.
    """
    if target.is_floating_point():
        target = target.to(torch.promote_types(input.dtype, target.dtype))
    elif not (target.is_complex() or target.dtype is torch.bool):
        target = target.long()
    if weight is not None and weight.is_floating_point():
        is_single = torch.is_autocast_enabled("cpu") and input.dtype is not torch.float64
        weight = weight.to(torch.float32 if is_single else input.dtype)
    return target, weight


def _lse_square(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    lse_square_scale: float,
) -> Tensor:
    """The term that `lse_square_scale` adds to the loss, in operations of PyTorch."""
    axis = 1 if input.dim() > 1 else 0
    term = lse_square_scale * input.logsumexp(axis) ** 2
    factor = torch.ones_like(term)
    if not target.is_floating_point():
        index = target.long()
        ignored = index == ignore_index
        if weight is not None:
            factor = weight.to(term.dtype)[torch.where(ignored, 0, index)]
        factor = torch.where(ignored, 0.0, factor)
        term = torch.where(factor == 0, 0.0, term * factor)
    if reduction == "none":
        return term
    return term.sum() if reduction == "sum" else term.sum() / factor.sum()


def is_left_to_pytorch(input: Tensor) -> bool:
    """Whether `cross_entropy` calls PyTorch's own function for these logits."""
    return transforms_active() or (not is_compiling() and forward_mode()) or not is_served(input)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc]
    """`torch.nn.CrossEntropyLoss` on pyce's kernels, with the same state.

    The loss of a row is weight[y] · (lse − x_y) for a class index y, and
    Σ_c weight_c · t_c · (lse − x_c) for probabilities t, with lse = log Σ_c exp(x_c).

    Parameters
    ----------
    weight : Tensor, optional
        Weight of each class, of shape (C,) and of a floating dtype. It is a buffer: it is moved and
        saved with the module.
    size_average, reduce : None
        Deprecated in PyTorch. Any value except None raises `ValueError`.
    ignore_index : int
        Rows with this class index have loss 0 and gradient 0 and do not count in the mean. For
        class indices only.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the losses by Σ weight[y] over the rows that are not ignored, for
        probabilities by the number of rows.
    label_smoothing : float
        ε in [0, 1]: probabilities t are replaced by (1 − ε) · t + ε/C, and class indices by the
        same of their one-hot vectors.
    lse_square_scale : float
        λ of the z-loss: λ · lse² is added to each row's loss, times weight[y] for a class index y,
        whatever the smoothing. Any finite number.

    Raises
    ------
    ValueError
        If `size_average` or `reduce` is given. The other arguments are checked when the module is
        called.

    Examples
    --------
    >>> criterion = pyce.torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> print(round(criterion(torch.zeros(4, 10), torch.arange(4)).item(), 4))  # log 10
    2.3026
    """

    # Not in the state of a module that leaves it out, which is the state of PyTorch's module.
    lse_square_scale: float = 0.0

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        lse_square_scale: float = 0.0,
    ) -> None:
        if size_average is not None or reduce is not None:
            raise ValueError("size_average and reduce are not supported: say reduction= instead")
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        if lse_square_scale != 0.0:
            self.lse_square_scale = lse_square_scale

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss with the options of the module.

        Parameters
        ----------
        input : Tensor
            Logits of shape (C,), (N, C) or (N, C, d1, …): the class axis is the second, or the only
            one. float32, float64, bfloat16 or float16, on the CPU, with any strides.
        target : Tensor
            Class indices of any integer dtype and of shape (), (N,) or (N, d1, …); or probabilities
            of a floating dtype and of the shape of `input`.

        Returns
        -------
        Tensor
            The loss in nats: a scalar, or for the reduction "none" a tensor of the shape of index
            targets, in the dtype of `input` (float32 for half types under autocast).

        Raises
        ------
        TypeError
            If an argument is not a tensor or a dtype is not supported.
        ValueError
            If a tensor is sparse, nested or not on the CPU; if shapes do not match; if an option of
            the module is out of its range.
        IndexError
            If a class index is out of range. The message names the first such row.
        NotImplementedError
            If the weight of the module requires a gradient.

        Examples
        --------
        >>> criterion = pyce.torch.CrossEntropyLoss(reduction="none")
        >>> criterion(torch.zeros(2, 10), torch.tensor([3, -100])).tolist()
        [2.3025851249694824, 0.0]
        """
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            lse_square_scale=self.lse_square_scale,
        )


publish(cross_entropy, CrossEntropyLoss)
