"""Softmax cross-entropy: the loss, the loss with its gradient, and the backward pass alone."""

from __future__ import annotations

from typing import Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from pyce._arguments import delivered, loss_problem, output, real, reals
from pyce._backends import Backend, current
from pyce._dtypes import compute_dtype
from pyce._problem import Problem, axis_in_memory
from pyce._types import Array, LogSumExp, Losses, Reduction, Scalar, ToScalar


@overload
def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[False] = ...,
) -> Scalar: ...


@overload
def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[True],
) -> tuple[Scalar, LogSumExp]: ...


@overload
def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[False] = ...,
) -> Losses: ...


@overload
def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[True],
) -> tuple[Losses, LogSumExp]: ...


@overload
def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: bool = ...,
) -> Scalar | Losses | tuple[Scalar | Losses, LogSumExp]: ...


def cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    lse_square_scale: float = 0.0,
    return_lse: bool = False,
) -> Scalar | Losses | tuple[Scalar | Losses, LogSumExp]:
    """Softmax cross-entropy of logits against class indices or probabilities.

    A row is the C logits x along the class axis at one position. With lse = log Σ_c exp(x_c), class
    weights w, the row's sample weight s and smoothing ε, the loss of a row is

        s · Σ_c b_c · (lse − x_c),    b_c = w_c · ((1 − ε) · t_c + ε/C),

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. Without
    smoothing that is s · w_y · (lse − x_y). A product with a factor of 0 is 0, whatever the other
    factors are: an infinite w_c has no effect where t_c = 0, and a row with s = 0 has the loss 0,
    even if its logits are NaN.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    target : array_like
        Class indices of any integer dtype, in the shape of `logits` without the class axis; or
        probabilities, floating and in the shape of `logits`, which need not add up to 1.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        Weight of each class: real numbers of shape (C,), used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row: real numbers in the shape of `logits` without the class axis, used as
        given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss and its gradient are 0, and its logits are
        not read.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    lse_square_scale : float, default 0.0
        λ of the z-loss: s · v · λ · lse² is added to each row's loss, where v is w_y for a class
        index y, whatever the smoothing, and 1 for probabilities. Any finite number.
    return_lse : bool, default False
        Whether to return lse too, which `cross_entropy_backward` needs.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 logits, else float32. For "none" an array in the shape of
        `logits` without the class axis.
    lse : ndarray of float64
        log Σ_c exp(x_c) of each row, 0 for ignored rows, in the shape of `logits` without the class
        axis. Only with `return_lse`.

    Raises
    ------
    TypeError
        If the logits are not floating, if a floating target is shaped like class indices, or if
        weights are not real numbers.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        if `reduction` is unknown, if `label_smoothing` is outside [0, 1], or if `lse_square_scale`
        is not finite.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.

    Notes
    -----
    A row that contains NaN or +inf, or only −inf, has the loss NaN; no other row is affected. The
    logit −inf is a class of probability 0; at the target it makes the loss +inf.

    float32 and float64 losses are within 2 units in the last place (ULP) of the exact value,
    however confident the model is, because the target's exponential is left out of the sum and
    the logarithm is taken by log1p. With `lse_square_scale` in [0, 1], class indices and no class
    weights, the same holds. In other cases the terms may cancel, or the term with lse may be
    nearly all that is left: the loss is then within 2 ULP of the larger term, where an lse between
    −1 and 1 counts as 1.

    Weights, smoothing and the mean are defined as in ``torch.nn.functional.cross_entropy`` and
    ONNX SoftmaxCrossEntropyLoss. The class axis is the last one unless stated otherwise, as in
    NumPy.

    Examples
    --------
    >>> logits = [[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]]
    >>> print(round(float(pyce.cross_entropy(logits, [1, 2])), 4))
    0.287
    >>> print(pyce.cross_entropy(logits, [1, -100], reduction="none").round(4))
    [0.4644 0.    ]
    """
    p = loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    if not p.contiguous:
        p.in_memory_order()
    if not return_lse:
        return _run(p, with_grad=False)
    p.lse = np.empty(p.rows)
    return _run(p, with_grad=False), p.lse.reshape(p.positions)


@overload
def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[False] = ...,
    out: Array | None = ...,
) -> tuple[Scalar, Array]: ...


@overload
def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[True],
    out: Array | None = ...,
) -> tuple[Scalar, Array, LogSumExp]: ...


@overload
def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[False] = ...,
    out: Array | None = ...,
) -> tuple[Losses, Array]: ...


@overload
def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: Literal[True],
    out: Array | None = ...,
) -> tuple[Losses, Array, LogSumExp]: ...


@overload
def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    return_lse: bool = ...,
    out: Array | None = ...,
) -> tuple[Scalar | Losses, Array] | tuple[Scalar | Losses, Array, LogSumExp]: ...


def cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    lse_square_scale: float = 0.0,
    return_lse: bool = False,
    out: Array | None = None,
) -> tuple[Scalar | Losses, Array] | tuple[Scalar | Losses, Array, LogSumExp]:
    """Softmax cross-entropy and its gradient, computed in one pass over the logits in memory.

    A row is the C logits x along the class axis at one position. With lse = log Σ_c exp(x_c), class
    weights w, the row's sample weight s and smoothing ε, the loss of a row is

        s · Σ_c b_c · (lse − x_c),    b_c = w_c · ((1 − ε) · t_c + ε/C),

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. Without
    smoothing that is s · w_y · (lse − x_y). A product with a factor of 0 is 0, whatever the other
    factors are: an infinite w_c has no effect where t_c = 0, and a row with s = 0 has the loss 0,
    even if its logits are NaN.

    With p_c = exp(x_c − lse), A = Σ_c b_c, and D the denominator of the mean (1 for "sum" and
    "none"), the gradient of a row is

        s/D · (A · p_c − b_c),

    which is s/D · w_y · (p_c − [c = y]) for a class index y without smoothing. With
    `lse_square_scale` λ, s/D · 2 · v · λ · lse · p_c is added, as described there.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    target : array_like
        Class indices of any integer dtype, in the shape of `logits` without the class axis; or
        probabilities, floating and in the shape of `logits`, which need not add up to 1.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        Weight of each class: real numbers of shape (C,), used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row: real numbers in the shape of `logits` without the class axis, used as
        given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss and its gradient are 0, and its logits are
        not read.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    lse_square_scale : float, default 0.0
        λ of the z-loss: s · v · λ · lse² is added to each row's loss, where v is w_y for a class
        index y, whatever the smoothing, and 1 for probabilities. Any finite number.
    return_lse : bool, default False
        Whether to return lse too, which `cross_entropy_backward` needs.
    out : ndarray, optional
        Where to write the gradient: an array in the shape and dtype of `logits`, C-contiguous and
        writable. It may be exactly `logits` (in place) and must not overlap any argument otherwise.
        The page faults of a large new array take longer than the gradient itself.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 logits, else float32. For "none" an array in the shape of
        `logits` without the class axis.
    grad : ndarray
        The derivative of the sum of `loss` with respect to `logits`, in their shape and dtype;
        `out` if that was given. A new array is C-contiguous, unless the logits are contiguous with
        the class axis moved to the last or first place: then it has their memory layout.
    lse : ndarray of float64
        log Σ_c exp(x_c) of each row, 0 for ignored rows, in the shape of `logits` without the class
        axis. Only with `return_lse`.

    Raises
    ------
    TypeError
        If the logits are not floating, if a floating target is shaped like class indices, if
        weights are not real numbers, or if `out` is not an array of the logits' dtype.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        if `reduction` is unknown, if `label_smoothing` is outside [0, 1], if `lse_square_scale` is
        not finite, or if `out` has another shape, cannot be written to, is not C-contiguous or
        shares memory with an argument.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row. After any error `out` is as it was.

    Notes
    -----
    A row that contains NaN or +inf, or only −inf, has the loss and the gradient NaN; no other row
    is affected. The logit −inf is a class of probability 0, whose gradient is 0; at the target it
    makes the loss +inf, and the gradient stays finite.

    float32 and float64 losses are within 2 units in the last place (ULP) of the exact value,
    however confident the model is, because the target's exponential is left out of the sum and the
    logarithm is taken by log1p. Every normal number of the gradient is within 4 ULP, the target's
    too, which is computed as the sum over the other classes and not as p − 1. With soft targets,
    smoothing or `lse_square_scale`, A · p_c, b_c and the term with lse may cancel, and the error is
    within 4 ULP of the largest of them. For this bound, A is computed from the absolute values of
    the weights, and an lse between −1 and 1 counts as 1.

    Weights, smoothing and the mean are defined as in ``torch.nn.functional.cross_entropy`` and
    ONNX SoftmaxCrossEntropyLoss. The class axis is the last one unless stated otherwise, as in
    NumPy.

    Examples
    --------
    >>> logits = np.array([[1.0, 2.0, 0.5]])
    >>> loss, grad = pyce.cross_entropy_with_grad(logits, [1], out=logits)
    >>> print(grad.round(2), grad is logits)
    [[ 0.23 -0.37  0.14]] True
    """
    p = loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    # The gradient must share memory with none of these: each as it was passed and as it is used.
    inputs = (
        (target, p.labels if p.probs is None else p.probs),
        (weight, p.weight),
        (sample_weight, p.sample_weight),
    )
    grad = _set_gradient(p, out, logits, inputs)
    if not return_lse:
        return _run(p, with_grad=True), delivered(grad, out)
    p.lse = np.empty(p.rows)
    loss = _run(p, with_grad=True)
    return loss, delivered(grad, out), p.lse.reshape(p.positions)


def cross_entropy_backward(
    grad_loss: npt.ArrayLike,
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    lse: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    lse_square_scale: float = 0.0,
    out: Array | None = None,
) -> Array:
    """The gradient of `cross_entropy` with respect to the logits, from the lse of the forward pass.

    A row is the C logits x along the class axis at one position. With p_c = exp(x_c − lse), class
    weights w, the row's sample weight s, smoothing ε, target probabilities t (for a class index y,
    1 at y and 0 elsewhere), b_c = w_c · ((1 − ε) · t_c + ε/C), A = Σ_c b_c and D the denominator of
    the mean (1 for "sum" and "none"), the gradient of a row is

        grad_loss · s/D · (A · p_c − b_c).

    With `lse_square_scale` λ, grad_loss · s/D · 2 · v · λ · lse · p_c is added, as described there.

    Parameters
    ----------
    grad_loss : array_like
        The derivative of the final result with respect to the loss (the chain rule): a number for
        "mean" and "sum", an array in the shape of the losses for "none".
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    target : array_like
        Class indices of any integer dtype, in the shape of `logits` without the class axis; or
        probabilities, floating and in the shape of `logits`, which need not add up to 1.
    lse : array_like
        What ``cross_entropy(..., return_lse=True)`` returned for these logits.
    axis : int, default -1
        The class axis. This and the following parameters, except `out`, must be those of the
        forward pass.
    weight : array_like, optional
        Weight of each class: real numbers of shape (C,), used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row: real numbers in the shape of `logits` without the class axis, used as
        given.
    ignore_index : int, default -100
        A row with this class index is ignored: its gradient is 0, and its logits are not read.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss. "mean" divides by Σ weight[y] · sample_weight over the rows that are not
        ignored for class indices, and by Σ sample_weight for probabilities.
    normalizer : float, optional
        Replaces the denominator of "mean".
    lse_square_scale : float, default 0.0
        λ of the z-loss: s · v · λ · lse² is added to each row's loss, where v is w_y for a class
        index y, whatever the smoothing, and 1 for probabilities. Any finite number.
    out : ndarray, optional
        Where to write the gradient: an array in the shape and dtype of `logits`, C-contiguous and
        writable. It may be exactly `logits` (in place) and must not overlap any argument otherwise.
        The page faults of a large new array take longer than the gradient itself.

    Returns
    -------
    grad : ndarray
        In the shape and dtype of `logits`; `out` if that was given. A new array is C-contiguous,
        unless the logits are contiguous with the class axis moved to the last or first place: then
        it has their memory layout.

    Raises
    ------
    TypeError
        If the logits are not floating, if a floating target is shaped like class indices, if
        weights or `lse` are not real numbers, if `grad_loss` is an array for "mean" or "sum", or if
        `out` is not an array of the logits' dtype.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        if `reduction` is unknown, if `label_smoothing` is outside [0, 1], if `lse_square_scale` is
        not finite, or if `out` has another shape, cannot be written to, is not C-contiguous or
        shares memory with an argument.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row. After any error `out` is as it was.

    Notes
    -----
    A row that is ignored or whose coefficients s · w_c · t_c are all 0 has the gradient 0, whatever
    its logits and its `grad_loss` are.

    Every normal number of the gradient is within 4 units in the last place of the exact value, the
    target's too; with soft targets, smoothing or `lse_square_scale`, where A · p_c, b_c and the
    term with lse may cancel, of the largest of them. A row that contains NaN or +inf, or only −inf,
    has the gradient NaN, and so has a row whose lse is not finite. If a row's lse is not that of
    its logits, its gradient has no meaning.

    The formula is the derivative of ``torch.nn.functional.cross_entropy`` and ONNX
    SoftmaxCrossEntropyLoss. The class axis is the last one unless stated otherwise, as in NumPy.

    Examples
    --------
    >>> logits, labels = np.array([[1.0, 2.0, 0.5]]), [1]
    >>> loss, lse = pyce.cross_entropy(logits, labels, return_lse=True)
    >>> print(pyce.cross_entropy_backward(10.0, logits, labels, lse).round(2))
    [[ 2.31 -3.71  1.4 ]]
    """
    p = loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    if p.reduction == "none":
        p.grad_loss = reals(grad_loss, p.positions, "grad_loss").reshape(-1)
    else:
        p.grad_loss = real(grad_loss, "grad_loss")
    p.lse = reals(lse, p.positions, "lse").reshape(-1)
    # The gradient must share memory with none of these: each as it was passed and as it is used.
    inputs = (
        (target, p.labels if p.probs is None else p.probs),
        (weight, p.weight),
        (sample_weight, p.sample_weight),
        (lse, p.lse),
        (grad_loss, p.grad_loss),
    )
    grad = _set_gradient(p, out, logits, inputs)
    _checked_backend(p).backward(p)
    return delivered(grad, out)


def _set_gradient(
    p: Problem, out: Array | None, logits: object, others: tuple[tuple[object, object], ...]
) -> Array:
    """Set `p.grad`; returns it with the class axis where it is in the caller's logits.

    The arguments are those of `output`. Nothing is written.
    """
    if p.contiguous:
        p.grad = output(out, p.logits, logits, others)
        return p.grad
    axis = p.axis
    if out is None:
        p.in_memory_order()
        p.grad = np.empty(p.logits.shape, p.logits.dtype)
        return np.moveaxis(p.grad, p.axis, axis)
    p.grad = output(out, p.logits, logits, others)
    return p.grad


def _checked_backend(p: Problem) -> Backend:
    """The selected backend, which can begin at once: nothing is an error any more."""
    backend = current()
    if not backend.CHECKS_LABELS:
        p.check_labels()
    if p.contiguous or p.grad is None or p.labels is None:
        return backend
    x = p.logits
    if axis_in_memory(x.shape, x.strides, p.axis, x.itemsize) is not None:
        # To copy the logits into the gradient's layout and to continue in place is faster than to
        # read the one layout and write the other. Errors come first, since they must leave `out`.
        p.check_labels()
        np.copyto(p.grad, x)
        p.logits = p.grad
        p.contiguous = True
    return backend


def _run(p: Problem, *, with_grad: bool) -> Scalar | Losses:
    """The loss in its shape, from the selected backend."""
    if p.reduction == "none":
        p.losses = np.empty(p.rows, compute_dtype(p.dtype_name))
    backend = _checked_backend(p)
    loss = backend.forward_backward(p) if with_grad else backend.forward(p)
    if p.losses is not None:
        return p.losses.reshape(p.positions)
    assert loss is not None
    return loss
