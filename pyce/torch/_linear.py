"""`pyce.torch.linear_cross_entropy` and `LinearCrossEntropyLoss`: which way a call takes.

linear_cross_entropy ─ eager ──► _LinearCrossEntropy, an autograd.Function ──┐
                     ├ traced ─► pyce::linear_cross_entropy, an operator ────┴► _linear_compute
                     └ torch.func, derivatives of probabilities, weights of more than two
                       dimensions ─► composed: linear, then cross_entropy
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pyce.torch import _linear_compute
from pyce.torch._linear_autograd import apply, composed
from pyce.torch._linear_compute import Options, Tensors
from pyce.torch._linear_layer import NO_GRADIENTS, Needs
from pyce.torch._public import publish
from pyce.torch._tensors import (
    DTYPE_NAMES,
    check_tensor,
    is_plain,
    is_served,
    refuse_gradients,
)
from pyce.torch._tracing import (
    dispatch_modes,
    forward_mode,
    is_compiling,
    tracing_state,
    transforms_active,
)

_OPTIONAL = ("linear_bias", "weight", "sample_weight")


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Tensor | None = None,
    normalizer: float | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    chunk_bytes: int | None = None,
    filter_tolerance: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.linear_cross_entropy` without holding all logits.

    The loss of a row with hidden state h is that of `cross_entropy` with the logits

        x = κ · tanh(z/κ),    z = α · (W · h + β),    or x = z without `softcap`.

    The logits exist in chunks of rows. If a gradient will be needed, those of a chunk replace its
    logits, and the products for the gradients of `input` and `linear_weight` follow at once; one
    that is not needed takes no product.

    Parameters
    ----------
    input : Tensor
        The hidden states, of shape (..., D): float32, float64, bfloat16 or float16, on the CPU.
        Half types are multiplied as float32, chunk by chunk.
    linear_weight : Tensor
        W, of shape (C, D), in the dtype of `input`. Or of shape (C, d1, …, D), for an input (N, D)
        and logits (N, C, d1, …), all of which are then held.
    target : Tensor
        Class indices of any integer dtype and of shape (...), or (N, d1, …); or probabilities,
        floating and of shape (..., C), or (N, C, d1, …).
    linear_bias : Tensor, optional
        β, of shape (C,), or (C, d1, …), in the dtype of `input`.
    weight : Tensor, optional
        Weight of each class in the loss, of shape (C,) and of a floating dtype.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the losses by Σ weight[y] · sample_weight over the rows that are
        not ignored, for probabilities by Σ sample_weight over all rows.
    ignore_index : int, optional
        Rows with this class index have loss 0 and gradient 0, do not count in the mean, and take no
        time. None means −100. For class indices only.
    label_smoothing : float
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Its `batch_chunk_size` is the most rows of a chunk. Its other fields choose between
        algorithms of PyTorch and have no effect.
    sample_weight : Tensor, optional
        Weight of each row, of the shape of index targets.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    softcap : float, optional
        κ, from 1e-20 to 1e20: bounds the logits to (−κ, κ). None for no bound.
    logit_scale : float
        α, any finite number: the factor of the product.
    lse_square_scale : float
        λ of the z-loss: λ · lse² is added to each row's loss, times weight[y] for a class index y.
        Any finite number.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time, by default 64 MiB; at least one row of them
        always does.
    filter_tolerance : float, optional
        δ in [0, 1]: leaves columns out of the products for the gradients. The elements that are
        left out of the gradient of a row with respect to its logits have sizes that add up to at
        most δ/2 of the sum of all its sizes. The loss and the gradient of `linear_bias` are exact.
        None or 0 for none.
    return_lse : bool
        Whether to return lse too.

    Returns
    -------
    loss : Tensor
        In nats: a scalar, or for "none" a tensor of the shape of index targets. It has the dtype of
        `input`, or float32 for other dtypes than float64 under autocast.
    lse : Tensor
        log Σ_c exp(x_c) of each row in float64, 0 for ignored rows, without a gradient. Only with
        `return_lse`.

    Raises
    ------
    TypeError
        If an argument is not a tensor, if a dtype is not supported, or if the dtypes of `input`,
        `linear_weight` and `linear_bias` differ: under autocast, half types and float32 may.
    ValueError
        If a tensor is sparse, nested or not on the CPU; if shapes do not match; if `reduction` is
        unknown; if `label_smoothing` or `filter_tolerance` is outside [0, 1]; if `softcap` is
        outside its range; if `chunk_bytes` or the chunk size of `options` is not positive; if
        `logit_scale` or `lse_square_scale` is not finite; if `ignore_index` is given with
        probabilities.
    IndexError
        If a class index is out of range. The message names the first such row.
    NotImplementedError
        If `weight`, `sample_weight`, or a number that is given as a tensor, requires a gradient.

    Notes
    -----
    Second derivatives, derivatives with respect to probabilities, the transforms of `torch.func`
    and forward-mode differentiation compute all logits at once, and without `filter_tolerance`. For
    the reduction "none", the gradients depend on those of the losses, so that the backward pass
    computes the logits again, one product more.

    Under autocast no tensor is converted: half types and float32 are multiplied as float32.

    The semantics are those of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear_cross_entropy.html.

    Examples
    --------
    >>> hidden, head = torch.randn(6, 4, requires_grad=True), torch.nn.Linear(4, 10, bias=False)
    >>> labels = torch.arange(6)
    >>> loss = pyce.torch.linear_cross_entropy(hidden, head.weight, labels)
    >>> loss.backward()
    >>> print(torch.allclose(loss, pyce.torch.cross_entropy(head(hidden), labels)))
    True
    """
    traced = is_compiling()
    given = input, linear_weight, target, linear_bias, weight, sample_weight
    if not traced and has_torch_function_variadic(*given):
        return handle_torch_function(
            linear_cross_entropy,
            given,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            sample_weight=sample_weight,
            normalizer=normalizer,
            softcap=softcap,
            logit_scale=logit_scale,
            lse_square_scale=lse_square_scale,
            chunk_bytes=chunk_bytes,
            filter_tolerance=filter_tolerance,
            return_lse=return_lse,
        )
    with_grad = torch.is_grad_enabled()
    tensors = Tensors(input, linear_weight, linear_bias, target, weight, sample_weight)
    plain = True
    for name, tensor in zip(Tensors._fields, tensors, strict=True):
        if tensor is None and name in _OPTIONAL:
            continue
        check_tensor(tensor, name)
        assert tensor is not None
        plain = plain and is_plain(tensor)
        if name in ("weight", "sample_weight") and tensor.requires_grad and with_grad:
            raise NotImplementedError(f"no gradient is computed for {name}: detach it")
    refuse_gradients(
        label_smoothing=label_smoothing,
        normalizer=normalizer,
        softcap=softcap,
        logit_scale=logit_scale,
        lse_square_scale=lse_square_scale,
    )
    soft = target.dtype in DTYPE_NAMES
    if soft and ignore_index is not None:
        raise ValueError("ignore_index is for class indices, and target holds probabilities")
    chosen = Options(
        reduction,
        -100 if ignore_index is None else ignore_index,
        label_smoothing,
        normalizer,
        softcap,
        logit_scale,
        lse_square_scale,
        chunk_bytes,
        None if options is None else _rows_of_chunk(options),
        filter_tolerance,
        torch.is_autocast_enabled("cpu"),
    )
    by_pytorch = transforms_active() or (not traced and forward_mode()) or not is_served(input)
    if by_pytorch or linear_weight.dim() > 2 or (target.requires_grad and with_grad):
        if not traced:
            chosen.check()
            _check_composed(tensors, chosen.autocast)
        loss, lse = composed(tensors, chosen)
        return (loss, lse) if return_lse else loss
    needs = NO_GRADIENTS
    if with_grad:
        bias = linear_bias is not None and linear_bias.requires_grad
        needs = Needs(input.requires_grad, linear_weight.requires_grad, bias)
    if traced or not plain or dispatch_modes() or tracing_state() is not None:
        loss, lse = torch.ops.pyce.linear_cross_entropy(*tensors, *chosen, *needs)[:2]
    elif any(needs):
        loss, lse = apply(*tensors, chosen, needs)
    else:
        loss, lse, _ = _linear_compute.forward(tensors, chosen, needs)
    return (loss, lse) if return_lse else loss


def _rows_of_chunk(options: Any) -> int | None:
    """`batch_chunk_size` of PyTorch's options."""
    try:
        rows: int | None = options.batch_chunk_size
    except AttributeError:
        raise TypeError(
            f"options must be a LinearCrossEntropyOptions, got {type(options).__name__}"
        ) from None
    return rows


def _check_composed(tensors: Tensors, autocast: bool) -> None:
    """Raise unless shapes and dtypes match, for a weight of any number of dimensions."""
    input, linear_weight, linear_bias, target = tensors[:4]
    if linear_weight.dim() <= 2:
        _linear_compute.check_layer(input, linear_weight, linear_bias, autocast)
        logits, positions = (*input.shape[:-1], linear_weight.shape[0]), input.shape[:-1]
    else:
        shape = linear_weight.shape
        if input.dim() != 2:
            raise ValueError(
                f"input of shape {tuple(input.shape)} does not fit linear_weight of shape "
                f"{tuple(shape)}: expected (N, {shape[-1]})"
            )
        if linear_bias is not None and linear_bias.shape != shape[:-1]:
            raise ValueError(
                f"linear_bias of shape {tuple(linear_bias.shape)} does not fit linear_weight of "
                f"shape {tuple(shape)}: expected {tuple(shape[:-1])}"
            )
        bias = None if linear_bias is None else linear_bias.reshape(-1)
        flat = linear_weight.reshape(math.prod(shape[:-1]), shape[-1])
        _linear_compute.check_layer(input, flat, bias, autocast)
        logits = (input.shape[0], *shape[:-1])
        positions = torch.Size((input.shape[0], *shape[1:-1]))
    if target.shape not in (positions, logits):
        raise ValueError(
            f"target of shape {tuple(target.shape)} does not fit input of shape "
            f"{tuple(input.shape)} and linear_weight of shape {tuple(linear_weight.shape)}: "
            f"expected {tuple(positions)} for class indices, {logits} for probabilities"
        )


_HAS_MODULE = hasattr(torch.nn, "LinearCrossEntropyLoss")
_Base: Any = torch.nn.LinearCrossEntropyLoss if _HAS_MODULE else torch.nn.Module


class LinearCrossEntropyLoss(_Base):  # type: ignore[misc]
    """`torch.nn.LinearCrossEntropyLoss` without holding all logits, with the same state.

    The module has the linear layer `linear`, and its loss is that of `linear_cross_entropy`. It
    needs PyTorch 2.13 or later, which has the module that it replaces.

    Parameters
    ----------
    in_features : int
        D, the size of the hidden states.
    num_classes : int
        C, the number of classes.
    out_features : tuple of int
        Further dimensions d1, …, of the logits: (N, C, d1, …). With any, all logits are held.
    bias : bool
        Whether the linear layer has a bias.
    device, dtype : optional
        Of the linear layer, as in `torch.nn.Linear`.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the losses by Σ weight[y] over the rows that are not ignored, for
        probabilities by the number of rows.
    weight : Tensor, optional
        Weight of each class in the loss, of shape (C,) and of a floating dtype. It is a buffer: it
        is moved and saved with the module.
    ignore_index : int, optional
        Rows with this class index have loss 0 and gradient 0, do not count in the mean, and take no
        time. None means −100. For class indices only.
    label_smoothing : float
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Its `batch_chunk_size` is the most rows of a chunk. Its other fields choose between
        algorithms of PyTorch and have no effect.
    softcap : float, optional
        κ, from 1e-20 to 1e20: the logits x become κ · tanh(x/κ). None for no bound.
    logit_scale : float
        The factor of the product of `input` and the weight, any finite number.
    lse_square_scale : float
        λ of the z-loss: λ · lse² is added to each row's loss, times weight[y] for a class index y.
        Any finite number.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time, by default 64 MiB; at least one row of them
        always does.
    filter_tolerance : float, optional
        δ in [0, 1]: leaves columns out of the products for the gradients. The elements that are
        left out of the gradient of a row with respect to its logits have sizes that add up to at
        most δ/2 of the sum of all its sizes. None or 0 for none.

    Raises
    ------
    NotImplementedError
        If PyTorch has no such module.
    RuntimeError
        If `weight` is not of shape (C,), or if `label_smoothing` is outside [0, 1]. The other
        arguments are checked when the module is called.

    Examples
    --------
    >>> criterion = pyce.torch.LinearCrossEntropyLoss(4, 10)
    >>> criterion(torch.randn(6, 4), torch.arange(6)).shape
    torch.Size([])
    """

    softcap: float | None
    logit_scale: float
    lse_square_scale: float
    chunk_bytes: int | None
    filter_tolerance: float | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        chunk_bytes: int | None = None,
        filter_tolerance: float | None = None,
    ) -> None:
        if not _HAS_MODULE:
            raise NotImplementedError(
                f"PyTorch {torch.__version__} has no LinearCrossEntropyLoss: use "
                "pyce.torch.linear_cross_entropy with the weight of a torch.nn.Linear"
            )
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.lse_square_scale = lse_square_scale
        self.chunk_bytes = chunk_bytes
        self.filter_tolerance = filter_tolerance

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss with the layer and the options of the module.

        Parameters
        ----------
        input : Tensor
            The hidden states, of shape (..., D), or (N, D) with `out_features`: float32, float64,
            bfloat16 or float16, on the CPU.
        target : Tensor
            Class indices of any integer dtype and of shape (...), or (N, d1, …); or probabilities,
            floating and of shape (..., C), or (N, C, d1, …).

        Returns
        -------
        Tensor
            The loss in nats: a scalar, or for the reduction "none" a tensor of the shape of index
            targets. It has the dtype of `input`, or float32 for other dtypes than float64 under
            autocast.

        Raises
        ------
        TypeError
            If an argument is not a tensor, or if a dtype is not supported or differs from that of
            the layer: under autocast, half types and float32 may.
        ValueError
            If a tensor is sparse, nested or not on the CPU; if shapes do not match; if an option of
            the module is out of its range; if it has an `ignore_index` and the target holds
            probabilities.
        IndexError
            If a class index is out of range. The message names the first such row.
        NotImplementedError
            If the weight of the classes requires a gradient.

        Examples
        --------
        >>> criterion = pyce.torch.LinearCrossEntropyLoss(4, 10, reduction="none")
        >>> criterion(torch.randn(6, 4), torch.arange(6)).shape
        torch.Size([6])
        """
        shape = (self.num_classes, *self.out_features)
        linear = self.linear
        loss = linear_cross_entropy(
            input,
            linear.weight.reshape(*shape, linear.in_features)
            if self.out_features
            else linear.weight,
            target,
            linear_bias=None if linear.bias is None else linear.bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            lse_square_scale=self.lse_square_scale,
            chunk_bytes=self.chunk_bytes,
            filter_tolerance=self.filter_tolerance,
        )
        assert isinstance(loss, Tensor)
        return loss


publish(linear_cross_entropy, LinearCrossEntropyLoss)
