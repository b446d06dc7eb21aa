"""Losses from log-probabilities and probabilities, the Bernoulli loss, and accuracy.

What stands beside the softmax kernels: one look-up per row or one NumPy pass over row blocks. They
are the same whichever backend is selected, but for the Bernoulli loss, which has kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._arguments import Array, Problem
from pyce._backends import current

# Elements that are looked at together: small beside the caches, large beside NumPy's call overhead.
_BLOCK = 1 << 16


@_fpenv.default
def nll_loss(
    log_probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> Any:
    """Negative log likelihood: the loss from log-probabilities, as `log_softmax` gives them.

    A row's loss is −weight[y] · log_probs[y], or −Σ_c weight_c · t_c · log_probs_c for
    probabilities t, with 0 · ∞ = 0. The parameters that are not listed, reductions, dtypes and
    errors are those of `cross_entropy`.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities, floating and shaped as the logits of `cross_entropy`. They are taken as
        they are, whether or not a row's probabilities add up to 1.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 log-probabilities, else float32.

    Examples
    --------
    >>> print(round(float(pyce.nll_loss(np.log([[0.25, 0.75]]), [1])), 4))
    0.2877
    """
    p = arguments.loss_problem(
        log_probs,
        target,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        normalizer,
    )
    return _from_logs(p, lambda values: np.negative(values, dtype=np.float64))


@_fpenv.default
def log_loss(
    probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    eps: float | None = None,
) -> Any:
    """The loss from probabilities: −Σ_c t_c · log probs_c, averaged over the rows.

    0 · log 0 counts as 0, and probability 0 on the true class gives +inf. The parameters that are
    not listed, reductions, dtypes and errors are those of `cross_entropy`.

    Parameters
    ----------
    probs : array_like
        Probabilities, floating and shaped as the logits of `cross_entropy`. They are taken as they
        are, whether or not a row adds up to 1; a negative one gives NaN where it counts.
    eps : float, optional
        In [0, 0.5): clip the probabilities to [eps, 1 − eps] first. Nothing is clipped otherwise.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 probabilities, else float32.

    Raises
    ------
    ValueError
        As `cross_entropy`; also for `eps` outside [0, 0.5).

    Examples
    --------
    >>> print(round(float(pyce.log_loss([[0.25, 0.75]], [1])), 4))
    0.2877
    >>> print(pyce.log_loss([[1.0, 0.0]], [1]))
    inf
    """
    if eps is not None and not 0.0 <= arguments.real(eps, "eps") < 0.5:
        raise ValueError(f"eps must lie in [0, 0.5), got {eps!r}")
    p = arguments.loss_problem(
        probs,
        target,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        normalizer,
    )

    def surprise(values: Array) -> Array:
        wide = values.astype(np.float64)
        if eps is not None:
            wide = np.clip(wide, eps, 1.0 - eps)
        return np.negative(np.log(wide))

    return _from_logs(p, surprise)


def _from_logs(p: Problem, minus_log: Any) -> Any:
    """Row losses Σ_c b_c · minus_log(values_c), then the reduction.

    b is the one-hot target, the probabilities, or their smoothed form, times the class weights.
    """
    p.check_labels()
    if p.reduction == "none":
        p.losses = np.empty(p.rows, np.float64 if p.dtype_name == "float64" else np.float32)
    values = np.moveaxis(p.logits, p.axis, -1)
    losses = np.zeros(p.rows)
    with np.errstate(all="ignore"):
        if p.labels is not None:
            _add_labels(p, values, minus_log, losses)
        if p.probs is not None or p.smoothing:
            _add_all_classes(p, values, minus_log, losses)
        if p.sample_weight is not None:
            losses *= p.sample_weight
    keep = p.keep()
    if keep is not None:
        losses[~keep] = 0.0
    loss = p.reduce(losses)
    return loss if p.losses is None else p.losses.reshape(p.positions)


def _add_labels(p: Problem, values: Array, minus_log: Any, losses: Array) -> None:
    assert p.labels is not None
    inside = np.where(p.labels == p.ignore_index, 0, p.labels)
    at_label = np.take_along_axis(values, inside.reshape(*p.positions, 1), axis=-1).reshape(-1)
    share = 1.0 - p.smoothing
    factor = share if p.weight is None else share * p.weight[inside]
    losses += _product(np.broadcast_to(factor, losses.shape), minus_log(at_label))


def _add_all_classes(p: Problem, values: Array, minus_log: Any, losses: Array) -> None:
    probs = None if p.probs is None else np.moveaxis(p.probs, p.axis, -1)
    weight = np.ones(1) if p.weight is None else p.weight
    for index, start, stop in arguments.row_blocks(p.logits.shape, p.axis, _BLOCK):
        block = minus_log(values[index].reshape(-1, p.classes))
        share = np.full(block.shape, p.smoothing / p.classes)
        if probs is not None:
            target = probs[index].reshape(-1, p.classes).astype(np.float64)
            share = share + (1.0 - p.smoothing) * target
        losses[start:stop] += _product(share * weight, block).sum(axis=-1)


def _product(share: Array, loss: Array) -> Array:
    return np.multiply(share, loss, out=np.zeros(loss.shape), where=share != 0)


@_fpenv.default
def binary_cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
) -> Any:
    """Cross-entropy of independent yes/no questions, from logits.

    With softplus(x) = log(1 + exp(x)), the loss of an element with the logit x and the target t is
    weight · (pos_weight · t · softplus(−x) + (1 − t) · softplus(x)), where 0 · ∞ counts as 0.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64 of any shape.
    target : array_like
        Probabilities of "yes", real numbers of the logits' shape.
    weight : array_like, optional
        Weights of the elements; broadcast to the logits' shape.
    pos_weight : array_like, optional
        How much more a "yes" counts; likewise.
    reduction : {"mean", "sum", "none"}
        The mean is over all elements, whatever the weights; NaN for no elements.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 logits, else float32, within 4 units in the last place. An array in the
        logits' shape for "none".

    Raises
    ------
    TypeError
        Logits that are not floating; targets and weights that are no real numbers.
    ValueError
        Shapes that do not fit, an unknown reduction.

    Examples
    --------
    >>> print(round(float(pyce.binary_cross_entropy([0.0, 2.0], [1, 1])), 4))
    0.41
    """
    return _bernoulli(logits, target, weight, pos_weight, reduction, with_grad=False)[0]


@_fpenv.default
def binary_cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
) -> Any:
    """`binary_cross_entropy` and its gradient.

    Parameters and errors are those of `binary_cross_entropy`.

    Returns
    -------
    loss : numpy scalar or ndarray
        As from `binary_cross_entropy`.
    grad : ndarray
        ∂(Σ loss)/∂logits in the logits' shape and dtype: with p = 1/(1 + exp(−x)),
        s · weight · ((1 − t) · p − pos_weight · t · (1 − p)), where s is 1 divided by the number of
        elements for "mean", else 1.

    Examples
    --------
    >>> loss, grad = pyce.binary_cross_entropy_with_grad([0.0, 2.0], [1, 1], reduction="sum")
    >>> print(grad.round(4))
    [-0.5    -0.1192]
    """
    return _bernoulli(logits, target, weight, pos_weight, reduction, with_grad=True)


def _bernoulli(
    logits: Any, target: Any, weight: Any, pos_weight: Any, reduction: Any, with_grad: bool
) -> tuple[Any, Array | None]:
    x, name = arguments.floating(logits, "logits")
    t = _broadcast(target, x.shape, "target", exact=True)
    w = None if weight is None else _broadcast(weight, x.shape, "weight")
    pw = None if pos_weight is None else _broadcast(pos_weight, x.shape, "pos_weight")
    arguments.reduction_name(reduction)
    compute = arguments.compute_dtype(name)
    result = np.float64 if name == "float64" else np.float32
    losses = np.empty(x.shape, result) if reduction == "none" else None
    grad = np.empty(x.shape, x.dtype) if with_grad else None
    scale = 1.0 / x.size if reduction == "mean" and x.size else 1.0

    backend = current()
    total = 0.0
    # nditer walks any strides, broadcasts, casts, and hands over flat pieces: whole arrays where
    # they are contiguous and of the compute dtype, buffers where they are not.
    inputs = [a for a in (x, t, w, pw) if a is not None]
    outputs = [a for a in (losses, grad) if a is not None]
    iterate: Any = np.nditer
    pieces = iterate(
        [*inputs, *outputs],
        flags=["external_loop", "buffered", "grow_inner", "zerosize_ok"],
        op_flags=[["readonly", "nbo", "aligned", "contig"]] * len(inputs)
        + [["writeonly", "nbo", "aligned", "contig"]] * len(outputs),
        op_dtypes=[compute] * (len(inputs) + len(outputs)),
        casting="same_kind" if name != "bfloat16" else "unsafe",
        order="C",
        buffersize=_BLOCK,
    )
    with pieces, np.errstate(over="ignore", under="ignore"):
        for piece in pieces:
            arrays = iter(piece if isinstance(piece, tuple) else (piece,))
            px, pt = next(arrays), next(arrays)
            if not px.size:
                continue
            total += backend.binary_cross_entropy(
                px,
                pt,
                None if w is None else next(arrays),
                None if pw is None else next(arrays),
                None if losses is None else next(arrays),
                None if grad is None else next(arrays),
                scale,
            )
    if losses is not None:
        return losses, grad
    if reduction == "mean":
        total = total / x.size if x.size else math.nan
    return result(total), grad


def _broadcast(value: Any, shape: tuple[int, ...], what: str, exact: bool = False) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" and arguments.dtype_name(array.dtype) is None:
        raise TypeError(f"{what} must be real numbers, got {array.dtype}")
    if array.dtype.kind in "iub":
        array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    try:
        if exact and array.shape != shape:
            raise ValueError
        return np.broadcast_to(array, shape)
    except ValueError:
        fit = "does not fit" if exact else "does not broadcast to"
        raise ValueError(f"{what} of shape {array.shape} {fit} logits of shape {shape}") from None


@_fpenv.default
def accuracy(
    logits: Any, target: Any, *, axis: int = -1, top_k: int = 1, ignore_index: int = -100
) -> float:
    """The fraction of rows whose target is among the `top_k` classes of the largest logits.

    Of equal logits the lower class counts as the larger, as in `numpy.argmax`. A row whose logit at
    the target is NaN is wrong.

    Parameters
    ----------
    logits : array_like
        As in `cross_entropy`; probabilities or other scores do as well.
    target : array_like
        Class indices, or one-hot rows (any real dtype, the logits' shape; the largest value marks
        the class).
    axis : int
        The class axis.
    top_k : int
        At least 1. More than C counts every row as right.
    ignore_index : int
        Rows with this class index are left out.

    Returns
    -------
    float
        NaN when no row counts.

    Raises
    ------
    TypeError
        As `cross_entropy`.
    ValueError
        As `cross_entropy`; also for `top_k` below 1.
    IndexError
        As `cross_entropy`.

    Examples
    --------
    >>> logits = [[1.0, 2.0, 0.5], [3.0, 0.2, 0.1]]
    >>> print(pyce.accuracy(logits, [1, 2]), pyce.accuracy(logits, [1, 2], top_k=3))
    0.5 1.0
    """
    k = arguments.index_number(top_k, "top_k")
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}")
    x, _ = arguments.floating(logits, "logits")
    class_axis = arguments.class_axis(axis, x.shape)
    t = np.asarray(target)
    if (t.shape == x.shape and t.dtype.kind in "iubf") or arguments.dtype_name(t.dtype):
        t = np.argmax(t, axis=class_axis) if t.shape == x.shape else t
    p = arguments.loss_problem(x, t, axis, None, None, ignore_index, 0.0, "sum", None)
    p.check_labels()
    assert p.labels is not None
    values = np.moveaxis(p.logits, p.axis, -1)
    classes = np.arange(p.classes)
    right = np.zeros(p.rows, bool)
    inside = np.where(p.labels == p.ignore_index, 0, p.labels).reshape(-1, 1)
    for index, start, stop in arguments.row_blocks(p.logits.shape, p.axis, _BLOCK):
        block = values[index].reshape(-1, p.classes)
        label = inside[start:stop]
        at_label = np.take_along_axis(block, label, axis=-1)
        ahead = (block > at_label) | ((block == at_label) & (classes < label))
        # NaN compares as neither, so a row with NaN at the target must be told apart.
        known = at_label[:, 0] == at_label[:, 0]
        right[start:stop] = (np.count_nonzero(ahead, axis=-1) < k) & known
    keep = p.keep()
    if keep is not None:
        right = right[keep]
    return float(np.mean(right)) if right.size else math.nan
