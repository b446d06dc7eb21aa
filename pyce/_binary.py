"""Cross-entropy of independent yes/no questions: the Bernoulli loss."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._backends import current
from pyce._dtypes import compute_dtype
from pyce._types import Array, Losses, Reduction, Scalar, ToScalar

# Elements computed at a time where arrays have to be copied: few enough for the caches, many enough
# to hide NumPy's overhead.
_BLOCK = 1 << 16


@overload
def binary_cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: ToScalar = ...,
) -> Scalar: ...


@overload
def binary_cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: Literal["none"],
) -> Losses: ...


@overload
def binary_cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: Reduction = ...,
) -> Scalar | Losses: ...


@_fpenv.default
def binary_cross_entropy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = None,
    pos_weight: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Scalar | Losses:
    """Cross-entropy of independent yes/no questions, from logits.

    With softplus(x) = log(1 + exp(x)), weight w and positive weight v, the loss of an element with
    the logit x and the target t is

        w · (v · t · softplus(−x) + (1 − t) · softplus(x)),

    where a product with a factor of 0 is 0, even if another factor is infinite or NaN: pos_weight =
    inf of a label without positives has no effect.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape, any strides and either byte order. Half
        types are computed in float32. Python numbers are float64.
    target : array_like
        Probabilities of "yes": real numbers in the shape of `logits`, boolean ones too.
    weight : array_like, optional
        Weights of the elements: real numbers, broadcast to the shape of `logits` and converted to
        the dtype of the loss.
    pos_weight : array_like, optional
        Additional weights of "yes": real numbers, broadcast to the shape of `logits` and converted
        to the dtype of the loss.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, whatever the weights, and is NaN for no elements.
        "none" returns the loss of each element.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 logits, else float32; within 4 units in the last place of the
        exact value. For "none" an array in the shape of `logits`.

    Raises
    ------
    TypeError
        If `logits` are not floating, or if the target or weights are not real numbers.
    ValueError
        If shapes do not fit, or if `reduction` is unknown.

    Notes
    -----
    The definition is that of ``torch.nn.functional.binary_cross_entropy_with_logits``.

    Examples
    --------
    >>> print(round(float(pyce.binary_cross_entropy([0.0, 2.0], [1, 1])), 4))
    0.41
    """
    return _run(logits, target, weight, pos_weight, reduction, with_grad=False)[0]


@overload
def binary_cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: ToScalar = ...,
) -> tuple[Scalar, Array]: ...


@overload
def binary_cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: Literal["none"],
) -> tuple[Losses, Array]: ...


@overload
def binary_cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = ...,
    pos_weight: npt.ArrayLike | None = ...,
    reduction: Reduction = ...,
) -> tuple[Scalar | Losses, Array]: ...


@_fpenv.default
def binary_cross_entropy_with_grad(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = None,
    pos_weight: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[Scalar | Losses, Array]:
    """Cross-entropy of independent yes/no questions and its gradient, from logits.

    With softplus(x) = log(1 + exp(x)), weight w and positive weight v, the loss of an element with
    the logit x and the target t is

        w · (v · t · softplus(−x) + (1 − t) · softplus(x)),

    where a product with a factor of 0 is 0, even if another factor is infinite or NaN: pos_weight =
    inf of a label without positives has no effect.

    With p = 1/(1 + exp(−x)) and D the number of elements for "mean", else 1, its gradient is

        w/D · ((1 − t) · p − v · t · (1 − p)).

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape, any strides and either byte order. Half
        types are computed in float32. Python numbers are float64.
    target : array_like
        Probabilities of "yes": real numbers in the shape of `logits`, boolean ones too.
    weight : array_like, optional
        Weights of the elements: real numbers, broadcast to the shape of `logits` and converted to
        the dtype of the loss.
    pos_weight : array_like, optional
        Additional weights of "yes": real numbers, broadcast to the shape of `logits` and converted
        to the dtype of the loss.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, whatever the weights, and is NaN for no elements.
        "none" returns the loss of each element.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 logits, else float32; within 4 units in the last place of the
        exact value. For "none" an array in the shape of `logits`.
    grad : ndarray
        The derivative of the sum of `loss` with respect to `logits`, in their shape and dtype.

    Raises
    ------
    TypeError
        If `logits` are not floating, or if the target or weights are not real numbers.
    ValueError
        If shapes do not fit, or if `reduction` is unknown.

    Notes
    -----
    The definition is that of ``torch.nn.functional.binary_cross_entropy_with_logits``.

    Examples
    --------
    >>> loss, grad = pyce.binary_cross_entropy_with_grad([0.0, 2.0], [1, 1], reduction="sum")
    >>> print(grad.round(4))
    [-0.5    -0.1192]
    """
    loss, grad = _run(logits, target, weight, pos_weight, reduction, with_grad=True)
    assert grad is not None
    return loss, grad


def _run(
    logits: Any, target: Any, weight: Any, pos_weight: Any, reduction: Any, *, with_grad: bool
) -> tuple[Scalar | Losses, Array | None]:
    x, name = arguments.floating(logits, "logits")
    t = arguments.broadcast(target, x.shape, "target", exact=True)
    w = None if weight is None else arguments.broadcast(weight, x.shape, "weight")
    v = None if pos_weight is None else arguments.broadcast(pos_weight, x.shape, "pos_weight")
    arguments.reduction_name(reduction)
    compute = compute_dtype(name)
    losses = np.empty(x.shape, compute) if reduction == "none" else None
    grad = np.empty(x.shape, x.dtype) if with_grad else None
    scale = 1.0 / x.size if reduction == "mean" and x.size else 1.0

    backend = current()
    total = 0.0
    # nditer handles any strides, broadcasts, casts, and yields flat pieces: whole arrays where they
    # are contiguous and of the compute dtype, buffers where they are not.
    inputs = [a for a in (x, t, w, v) if a is not None]
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
    with pieces:
        for piece in pieces:
            arrays = iter(piece if isinstance(piece, tuple) else (piece,))
            px, pt = next(arrays), next(arrays)
            if not px.size:
                continue
            total += backend.binary_cross_entropy(
                px,
                pt,
                None if w is None else next(arrays),
                None if v is None else next(arrays),
                None if losses is None else next(arrays),
                None if grad is None else next(arrays),
                scale,
            )
    if losses is not None:
        return losses, grad
    if reduction == "mean":
        total = total / x.size if x.size else math.nan
    to: type[Scalar] = compute.type
    return to(total), grad
