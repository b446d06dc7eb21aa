"""Softmax, its logarithm, and the logarithm of its denominator."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce._backends import current
from pyce._types import Array


def softmax(x: Any, axis: int = -1, out: Any = None) -> Array:
    """exp(x_c) / Σ_k exp(x_k) along `axis`.

    Parameters
    ----------
    x : array_like
        Floating as the logits of `cross_entropy`.
    axis : int
        The class axis.
    out : ndarray, optional
        Where to write the result, as in `cross_entropy_with_grad`; it may be `x`.

    Returns
    -------
    ndarray
        In x's shape and dtype; `out` if that was given. Every normal number is within 4 units in
        the last place. A row that holds NaN or +inf, or nothing but −inf, is NaN throughout.

    Raises
    ------
    TypeError
        Values that are not floating; an unfit `out`.
    ValueError
        No classes, 0-d arrays, an axis out of range; an unfit `out`.

    Examples
    --------
    >>> print(pyce.softmax([1.0, 2.0, 0.5]).round(3))
    [0.231 0.629 0.14 ]
    """
    backend = current()
    array, k, result = _matrix(x, axis, out)
    backend.softmax(array, k, result)
    return arguments.delivered(result, out)


def log_softmax(x: Any, axis: int = -1, out: Any = None) -> Array:
    """x_c − log Σ_k exp(x_k) along `axis`, the logarithm of the softmax; never above 0.

    Parameters, errors and rows that are not finite as in `softmax`.

    Returns
    -------
    ndarray
        In x's shape and dtype; `out` if that was given. Right to 4 units in the last place also
        where a class has nearly all the probability, since log1p of the rest is what is computed.

    Examples
    --------
    >>> print(pyce.log_softmax([40.0, 0.0]))  # the first is −exp(−40), and not 0
    [-4.24835426e-18 -4.00000000e+01]
    """
    backend = current()
    array, k, result = _matrix(x, axis, out)
    backend.log_softmax(array, k, result)
    return arguments.delivered(result, out)


def logsumexp(x: Any, axis: int = -1, keepdims: bool = False) -> Any:
    """log Σ_c exp(x_c) along `axis`, computed without overflow.

    Parameters
    ----------
    x : array_like
        Floating as the logits of `cross_entropy`.
    axis : int
        The class axis.
    keepdims : bool
        Keep the class axis, with length 1.

    Returns
    -------
    numpy.float64 or ndarray
        float64 whatever the dtype of `x`, in its shape without the class axis. NaN gives NaN, +inf
        gives +inf, a row of only −inf gives −inf.

    Raises
    ------
    TypeError
        Values that are not floating.
    ValueError
        No classes, 0-d arrays, an axis out of range.

    Examples
    --------
    >>> print(pyce.logsumexp([1000.0, 1000.0]))  # 1000 + log 2
    1000.6931471805599
    """
    array, _ = arguments.floating(x, "x")
    k = arguments.class_axis(axis, array.shape, "x")
    shape = array.shape[:k] + ((1,) if keepdims else ()) + array.shape[k + 1 :]
    result = np.empty(shape)
    current().logsumexp(array, k, result.reshape(-1))
    return result if result.ndim else result[()]


def _matrix(x: Any, axis: Any, out: Any) -> tuple[Array, int, Array]:
    array, _ = arguments.floating(x, "x")
    k = arguments.class_axis(axis, array.shape, "x")
    return array, k, arguments.output(out, array, x, ())
