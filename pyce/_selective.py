"""The log-probabilities of chosen classes, and the entropy."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._backends import Backend, current
from pyce._compensated import split, two_sum
from pyce._dtypes import compute_dtype
from pyce._loss import cross_entropy
from pyce._problem import row_blocks
from pyce._types import Array, Losses

# Elements of the rows that are worked on together: a cache holds them and their softmax.
_BLOCK = 2**16
# The longest rows whose maxima are found faster column by column, and whose entropy in blocks.
_SHORT = 64


@overload
def selective_log_softmax(
    logits: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    temperature: float = ...,
    return_entropy: Literal[False] = ...,
) -> Losses: ...


@overload
def selective_log_softmax(
    logits: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    temperature: float = ...,
    return_entropy: Literal[True],
) -> tuple[Losses, Losses]: ...


@overload
def selective_log_softmax(
    logits: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    temperature: float = ...,
    return_entropy: bool = ...,
) -> Losses | tuple[Losses, Losses]: ...


@_fpenv.default
def selective_log_softmax(
    logits: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Losses | tuple[Losses, Losses]:
    """The log-softmax at one or several classes of each row, and the entropy of each row.

    A row is the C logits x along the class axis at one position. With the temperature T and
    lse = log Σ_c exp(x_c/T), the results for a class y are

        log p_y = x_y/T − lse,    H = −Σ_c p_c · log p_c.

    No array of the size of the logits is allocated.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Python numbers are float64.
    index : array_like
        Class indices of any integer dtype, in 0..C−1: one for each row, in the shape of `logits`
        without the class axis; or k for each row, in that shape with k appended.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        T, positive and finite. With another than 1, the computation is in float64.
    return_entropy : bool, default False
        Whether to return H too, in nats.

    Returns
    -------
    log_probs : ndarray
        In the shape of `index`; float64 for float64 logits, else float32.
    entropy : ndarray
        In the shape of `logits` without the class axis and the same dtype. Only with
        `return_entropy`.

    Raises
    ------
    TypeError
        If the logits are not floating, or if `index` is not of integers.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        or if `temperature` is not positive and finite.
    IndexError
        If an index is not in 0..C−1; the message names the first.

    Notes
    -----
    For one class in each row, a float32 or float64 result is within 2 units in the last place of
    the exact value, also where that class has nearly all of the probability; for several, within 4.
    The entropy is within 8 if it is at least 1000 times the smallest normal number. A row that
    contains NaN or +inf, or only −inf, gives NaN.

    The name is that of TRL's function, ``trl.trainer.utils.selective_log_softmax``.

    Examples
    --------
    >>> logits = np.array([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]])
    >>> print(pyce.selective_log_softmax(logits, [1, 2]).round(4))
    [-0.4644 -0.1096]
    >>> print(pyce.selective_log_softmax(logits, [[0, 1], [1, 2]]).round(4))
    [[-1.4644 -0.4644]
     [-2.9096 -0.1096]]
    """
    x, name = arguments.floating(logits, "logits")
    k = arguments.class_axis(axis, x.shape)
    positions = x.shape[:k] + x.shape[k + 1 :]
    at = class_indices(index, positions, x.shape[k], f"logits of shape {x.shape}")
    t = arguments.positive(temperature, "temperature")
    dtype = compute_dtype(name)
    log_probs = np.empty(at.shape, dtype)
    entropy = np.empty(positions, dtype)
    rows = by_rows(at, positions)
    result = log_probs.reshape(rows.shape)
    run(current(), np.moveaxis(x, k, -1), rows, t, result, entropy if return_entropy else None)
    return (log_probs, entropy) if return_entropy else log_probs


def class_indices(index: Any, positions: tuple[int, ...], classes: int, what: str) -> Array:
    """One or several class indices for each position, checked. `what` names their counterpart."""
    at = arguments.as_array(index, "index")
    if at.size == 0 and at.dtype.kind == "f" and not hasattr(index, "dtype"):
        at = at.astype(np.int64)
    if at.dtype.kind not in "iu":
        raise TypeError(f"index must be integers, got {at.dtype}")
    if at.shape[: len(positions)] != positions or at.ndim > len(positions) + 1:
        raise ValueError(
            f"index of shape {at.shape} does not fit {what}: expected "
            f"{positions}, or that with a dimension appended"
        )
    bad = (at < 0) | (at >= classes)
    if bad.any():
        first = np.unravel_index(np.argmax(bad), at.shape)
        where = f" at {tuple(int(i) for i in first)}" if first else ""
        raise IndexError(
            f"index{where} is {at[first]}, outside the valid range 0..{classes - 1} "
            f"for {classes} classes"
        )
    return at


def by_rows(at: Array, positions: tuple[int, ...]) -> Array:
    """Checked class indices as int64 (rows, k)."""
    several = at.ndim == len(positions) + 1
    shape = math.prod(positions), at.shape[-1] if several else 1
    return at.reshape(shape).astype(np.int64, copy=False)


def run(
    backend: Backend, x: Array, rows: Array, t: float, result: Array, entropy: Array | None
) -> None:
    """Write `result` (rows, k), and `entropy` (rows,), of logits x (..., classes).

    In the default floating-point environment.
    """
    flat = None if entropy is None else entropy.reshape(-1)
    several = rows.shape[1] != 1
    if backend.selective is not None:
        if t != 1.0 or (several and x.dtype.itemsize == 2):
            backend.selective(x, t, np.ascontiguousarray(rows), result, flat, None, None)
            return
        if flat is not None and x.dtype != np.float32 and x.shape[-1] > _SHORT:
            # Otherwise blocks take less time: the softmax of float32 is float32.
            backend.selective(x, t, None, None, flat, None, None)
            flat = None
    if t == 1.0 and flat is None and not several:
        # The rows need no arrays of their own: one call, without blocks.
        labels = rows.reshape(x.shape[:-1])
        losses = cross_entropy(x, labels, reduction="none", ignore_index=-1)
        np.negative(losses.reshape(-1), out=result[:, 0])
        return
    for index, start, stop in row_blocks(x.shape, x.ndim - 1, _BLOCK):
        block = x[index].reshape(stop - start, x.shape[-1])
        error = None
        if t != 1.0:
            block, error = quotients(block, t)
        p = None
        if flat is not None or error is not None:
            p = softmax(backend, block)
        found = _log_probs(block, rows[start:stop])
        if p is not None and error is not None:
            found += np.take_along_axis(error, rows[start:stop], axis=1) - mean(p, error)
        result[start:stop] = found
        if p is None or flat is None:
            continue
        # The entropy is the cross-entropy of the rows against their own softmax.
        h = cross_entropy(block, p, reduction="none")
        if error is not None:
            # ∂H/∂(x_c/T) = −p_c·(log p_c + H), with 0·log 0 = 0.
            log_p = np.log(np.where(p == 0.0, 1.0, p))
            h -= mean(p, (log_p + h[:, np.newaxis]) * error)[:, 0]
        flat[start:stop] = h


def quotients(x: Array, t: float) -> tuple[Array, Array | None]:
    """(x − m)/T of rows x (n, classes) with the maxima m, and what rounding left out of it.

    Both are float64. Together they have 75 bits or more, so that log p keeps its digits where x/T
    is large or overflows. The second is None unless x is float64: for other logits the first is
    exact enough.
    """
    below = x.astype(np.float64)
    if x.dtype != np.float64:
        below -= _maxima(below)
        below /= t
        return below, None
    divisor, exponent = math.frexp(t)  # T = divisor·2^exponent
    if exponent > 0:
        below *= 2.0**-exponent  # first, since a difference of logits may overflow
    error: Array
    below, error = two_sum(below, -_maxima(below))
    if exponent < 0:
        below /= 2.0**exponent
        error /= 2.0**exponent
    quotient = below / divisor
    # The remainder below − quotient·divisor, in place: of products of halves, which are exact.
    d1, d2 = split(divisor)
    q1, q2 = split(quotient)
    below -= q1 * d1
    q1 *= d2
    below -= q1
    below -= q2 * d1
    q2 *= d2
    below -= q2
    below += error
    below /= divisor
    if not np.isfinite(below.sum()):
        below[~np.isfinite(below)] = 0.0
    return quotient, below


def _maxima(x: Array) -> Array:
    """The maximum of each row, (n, 1)."""
    if x.shape[1] > _SHORT:
        whole: Array = x.max(axis=1, keepdims=True)
        return whole
    # NumPy takes as long for a row of 10 numbers as for one of 100.
    most = x[:, 0].copy()
    for column in x.T[1:]:
        np.maximum(most, column, out=most)
    return most[:, np.newaxis]


def mean(p: Array, values: Array) -> Array:
    """Σ_c p_c · values_c of rows, (n, 1)."""
    result: Array = np.einsum("nc,nc->n", p, values)[:, np.newaxis]
    return result


def probabilities(
    backend: Backend, x: Array, t: float, with_log: bool
) -> tuple[Array, Array | None]:
    """The softmax of rows x (n, classes) divided by T, and its logarithm, float64, on request.

    Without a temperature, the softmax is in the dtype of the computation.
    """
    if t != 1.0 and backend.selective is not None:
        p = np.empty(x.shape)
        log_p = np.empty(x.shape) if with_log else None
        backend.selective(x, t, None, None, None, p, log_p)
        return p, log_p
    error = None
    with np.errstate(all="ignore"):
        if t != 1.0:
            x, error = quotients(x, t)
        p = softmax(backend, x)
        log_p = None
        if with_log:
            wide = x.astype(compute_dtype(x.dtype.name), copy=False)
            log_p = np.empty(wide.shape, wide.dtype)
            backend.log_softmax(wide, 1, log_p)
            log_p = log_p.astype(np.float64, copy=False)
        if error is not None:
            error -= mean(p, error)  # of log p
            p += p * error
            if log_p is not None:
                log_p += error
    return p, log_p


def softmax(backend: Backend, x: Array) -> Array:
    """The softmax of rows x (n, classes), in the dtype of the computation."""
    x = x.astype(compute_dtype(x.dtype.name), copy=False)
    p = np.empty(x.shape, x.dtype)
    backend.softmax(x, 1, p)
    return p


def _log_probs(x: Array, index: Array) -> Array:
    """Log-probabilities (n, k) of rows x (n, classes) at the classes `index` (n, k)."""
    if index.shape[1] == 1:
        one: Array = -cross_entropy(x, index[:, 0], reduction="none", ignore_index=-1)
        return one[:, np.newaxis]
    # log p_y = (x_y − m) + log p_m, two terms of one sign. A NaN counts as the maximum.
    top = np.argmax(x, axis=1)
    most = -cross_entropy(x, top, reduction="none", ignore_index=-1).astype(np.float64)
    rows = np.arange(len(x))[:, np.newaxis]
    below = x[rows, index].astype(np.float64) - x[rows, top[:, np.newaxis]].astype(np.float64)
    result: Array = below + most[:, np.newaxis]
    return result
