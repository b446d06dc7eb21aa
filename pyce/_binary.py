"""Cross-entropy of independent yes/no questions: the Bernoulli loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._backends import current
from pyce._dtypes import compute_dtype, dtype_name
from pyce._types import Array

# Elements that are looked at together: small beside the caches, large beside NumPy's call overhead.
_BLOCK = 1 << 16


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
    compute = compute_dtype(name)
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
    if array.dtype.kind not in "fiub" and dtype_name(array.dtype) is None:
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
