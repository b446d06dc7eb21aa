"""Softmax cross-entropy: the loss, the loss with its gradient, and the backward pass alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce._backends import current
from pyce._problem import Problem
from pyce._types import Array


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Softmax cross-entropy of logits against class indices or probabilities.

    A *row* is one sample: the C values along the class axis at one position. With
    lse = log Σ_c exp(x_c), a row's loss is

    - for a class index y, weight[y] · (lse − x_y);
    - for probabilities t, Σ_c weight_c · t_c · (lse − x_c), where 0 · ∞ counts as 0;
    - with smoothing ε, (1 − ε) · the above + ε/C · Σ_c weight_c · (lse − x_c);

    times its `sample_weight`.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64 of any shape with at least one dimension. Any strides
        and byte order. Half types are computed in float32.
    target : array_like
        Class indices of any integer dtype, shaped like `logits` without the class axis; or
        probabilities, floating and of the logits' shape (they need not add up to 1).
    axis : int
        The class axis.
    weight : array_like, optional
        Weight of each class, shape (C,), real numbers; used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row, shaped like index targets; likewise.
    ignore_index : int
        Rows with this class index count for nothing: loss 0, gradient 0, logits never read.
    label_smoothing : float
        ε in [0, 1]: how much of the target is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the weighted losses by Σ weight[y] · sample_weight over the rows
        that count (index targets) or Σ sample_weight (probabilities). With no row that counts it
        is NaN. "none" gives the losses of the rows, in the shape of index targets.
    normalizer : float, optional
        Replaces the denominator of "mean", as gradient accumulation needs; the loss of a batch
        without a row that counts is then 0.
    return_lse : bool
        Also return lse, which `cross_entropy_backward` takes.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 logits, else float32, in nats. An array for "none".
    lse : ndarray of float64
        In the shape of index targets; 0 for ignored rows. Only with `return_lse`.

    Raises
    ------
    TypeError
        Logits that are not floating; a floating target shaped like indices.
    ValueError
        Shapes that do not fit, no classes, 0-d logits, an unknown reduction, ε outside [0, 1].
    IndexError
        A class index outside 0..C−1 that is not `ignore_index`; it names the first such row.

    Examples
    --------
    >>> logits = [[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]]
    >>> print(round(float(pyce.cross_entropy(logits, [1, 2])), 4))
    0.287
    >>> print(pyce.cross_entropy(logits, [1, -100], reduction="none").round(4))
    [0.4644 0.    ]

    Notes
    -----
    A row that holds NaN or +inf, or nothing but −inf, has the loss NaN. −inf off the target is a
    class of probability exactly 0; at the target it makes the loss +inf. float32 and float64
    losses are within 2 units in the last place of the exact value, however confident the model.

    The semantics of weights, smoothing and the mean are those of
    ``torch.nn.functional.cross_entropy`` and ONNX SoftmaxCrossEntropyLoss, but the class axis is
    the last one unless said otherwise, as in NumPy.
    """
    p = arguments.loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
    )
    if not return_lse:
        return _run(p, "forward")
    p.lse = np.empty(p.rows)
    return _run(p, "forward"), p.lse.reshape(p.positions)


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    """Softmax cross-entropy and its gradient, fused: one pass over the logits in memory.

    The parameters that are not listed are those of `cross_entropy`.

    Parameters
    ----------
    out : ndarray, optional
        Where to write the gradient: the logits' shape and dtype, C-contiguous and writable. It may
        be exactly `logits` (in place); no other overlap with an argument is allowed. A new array
        of this size costs more in page faults than the gradient itself.

    Returns
    -------
    loss : numpy scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        ∂(Σ loss)/∂logits in the logits' shape and dtype: for a row with softmax p,
        s · w_y · (p_c − [c = y]) for a class index and s · (p_c · Σ_k w_k t_k − w_c t_c) for
        probabilities, where w are the class weights and s is the row's share in the reduction (for
        "none", 1 or its sample weight). `out` if that was given.
    lse : ndarray of float64
        Only with `return_lse`.

    Raises
    ------
    TypeError
        As `cross_entropy`; also for an `out` of another dtype or that is no array.
    ValueError
        As `cross_entropy`; also for an `out` of another shape, or that can't be written to, or that
        shares memory with an argument.
    IndexError
        As `cross_entropy`. After any error `out` is as it was.

    Examples
    --------
    >>> logits = np.array([[1.0, 2.0, 0.5]])
    >>> loss, grad = pyce.cross_entropy_with_grad(logits, [1], out=logits)
    >>> print(grad.round(2), grad is logits)
    [[ 0.23 -0.37  0.14]] True

    Notes
    -----
    Every normal number of the gradient is within 4 units in the last place, the target's too: it
    is summed from the other classes, never computed as p − 1.
    """
    p = arguments.loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
    )
    others = (
        (target, p.labels if p.probs is None else p.probs),
        (weight, p.weight),
        (sample_weight, p.sample_weight),
    )
    p.grad = arguments.output(out, p.logits, logits, others)
    if not return_lse:
        return _run(p, "forward_backward"), arguments.delivered(p.grad, out)
    p.lse = np.empty(p.rows)
    loss = _run(p, "forward_backward")
    return loss, arguments.delivered(p.grad, out), p.lse.reshape(p.positions)


def cross_entropy_backward(
    grad_loss: Any,
    logits: Any,
    target: Any,
    lse: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    out: Any = None,
) -> Array:
    """The gradient of `cross_entropy` from the lse that its forward saved.

    The parameters that are not listed are those of `cross_entropy`, and must be the ones that the
    forward was called with.

    Parameters
    ----------
    grad_loss : array_like
        What the gradient is multiplied by (the chain rule): a number for "mean" and "sum", an
        array in the shape of index targets for "none".
    lse : array_like
        What ``cross_entropy(..., return_lse=True)`` gave for the same logits.
    out : ndarray, optional
        As for `cross_entropy_with_grad`.

    Returns
    -------
    grad : ndarray
        grad_loss · ∂loss/∂logits, in the logits' shape and dtype; `out` if that was given.

    Raises
    ------
    TypeError
        As `cross_entropy_with_grad`; also for a `grad_loss` that is an array for "mean" or "sum".
    ValueError
        As `cross_entropy_with_grad`; also for a `grad_loss` or `lse` of another shape.
    IndexError
        As `cross_entropy`. After any error `out` is as it was.

    Examples
    --------
    >>> logits, labels = np.array([[1.0, 2.0, 0.5]]), [1]
    >>> loss, lse = pyce.cross_entropy(logits, labels, return_lse=True)
    >>> print(pyce.cross_entropy_backward(10.0, logits, labels, lse).round(2))
    [[ 2.31 -3.71  1.4 ]]

    Notes
    -----
    As accurate as `cross_entropy_with_grad`. A row whose lse is not finite gets NaN; from one that
    is not the lse of its logits come numbers without a meaning, in that row alone.
    """
    p = arguments.loss_problem(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
    )
    if p.reduction == "none":
        p.grad_loss = arguments.reals(grad_loss, p.positions, "grad_loss").reshape(-1)
    else:
        p.grad_loss = arguments.real(grad_loss, "grad_loss")
    p.lse = arguments.reals(lse, p.positions, "lse").reshape(-1)
    others = (
        (target, p.labels if p.probs is None else p.probs),
        (weight, p.weight),
        (sample_weight, p.sample_weight),
        (lse, p.lse),
        (grad_loss, p.grad_loss),
    )
    p.grad = arguments.output(out, p.logits, logits, others)
    backend = current()
    if not backend.CHECKS_LABELS:
        p.check_labels()
    backend.backward(p)
    return arguments.delivered(p.grad, out)


def _run(p: Problem, direction: str) -> Any:
    """Allocate row losses if asked for, run, and give them their shape."""
    if p.reduction == "none":
        p.losses = np.empty(p.rows, np.float64 if p.dtype_name == "float64" else np.float32)
    backend = current()
    if not backend.CHECKS_LABELS:
        p.check_labels()
    loss = backend.forward(p) if direction == "forward" else backend.forward_backward(p)
    return loss if p.losses is None else p.losses.reshape(p.positions)
