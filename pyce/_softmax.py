"""Softmax, its logarithm, and the logarithm of its denominator."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce._backends import current
from pyce._types import Array, LogSumExp


def softmax(x: npt.ArrayLike, axis: SupportsIndex = -1, out: Array | None = None) -> Array:
    """exp(x_c) / Σ_k exp(x_k) along an axis.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Where to write the result: an array in the shape and dtype of `x`, C-contiguous and
        writable. It may be exactly `x` (in place) and must not overlap it otherwise.

    Returns
    -------
    ndarray
        In the shape and dtype of `x`; `out` if that was given. No element is above 1. Every normal
        number is within 4 units in the last place of the exact value, and a row's sum is within C/2
        units of its largest element of 1. A row, that is the C classes at one position, is NaN if
        it contains NaN or +inf, or only −inf.

    Raises
    ------
    TypeError
        If `x` is not floating, or if `out` is not an array of its dtype.
    ValueError
        If there are no classes or no dimensions, if `axis` is out of range, or if `out` has another
        shape, cannot be written to, is not C-contiguous or overlaps `x` without being `x`.

    Notes
    -----
    The definition is that of ``scipy.special.softmax`` and ``torch.softmax``.

    Examples
    --------
    >>> print(pyce.softmax([1.0, 2.0, 0.5]).round(3))
    [0.231 0.629 0.14 ]
    """
    backend = current()
    array, k, result = _checked(x, axis, out)
    backend.softmax(array, k, result)
    return arguments.delivered(result, out)


def log_softmax(x: npt.ArrayLike, axis: SupportsIndex = -1, out: Array | None = None) -> Array:
    """x_c − log Σ_k exp(x_k) along an axis: the logarithm of the softmax.

    With the maximum m of a row, it is computed as (x_c − m) − log1p(q), where 1 + q is the sum of
    exp(x_k − m). Both terms are at most 0, so that nothing cancels.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Where to write the result: an array in the shape and dtype of `x`, C-contiguous and
        writable. It may be exactly `x` (in place) and must not overlap it otherwise.

    Returns
    -------
    ndarray
        In the shape and dtype of `x`; `out` if that was given. No element is above 0, and every
        normal number is within 4 units in the last place of the exact value, also where a class has
        nearly all of the probability. A row, that is the classes at one position, is NaN if it
        contains NaN or +inf, or only −inf.

    Raises
    ------
    TypeError
        If `x` is not floating, or if `out` is not an array of its dtype.
    ValueError
        If there are no classes or no dimensions, if `axis` is out of range, or if `out` has another
        shape, cannot be written to, is not C-contiguous or overlaps `x` without being `x`.

    Notes
    -----
    The definition is that of ``scipy.special.log_softmax`` and ``torch.log_softmax``.

    Examples
    --------
    >>> print(pyce.log_softmax([40.0, 0.0]))  # the first is −exp(−40), and not 0
    [-4.24835426e-18 -4.00000000e+01]
    """
    backend = current()
    array, k, result = _checked(x, axis, out)
    backend.log_softmax(array, k, result)
    return arguments.delivered(result, out)


@overload
def logsumexp(
    x: npt.ArrayLike, axis: SupportsIndex = ..., keepdims: Literal[False] = ...
) -> np.float64 | LogSumExp: ...


@overload
def logsumexp(
    x: npt.ArrayLike, axis: SupportsIndex = ..., *, keepdims: Literal[True]
) -> LogSumExp: ...


@overload
def logsumexp(
    x: npt.ArrayLike, axis: SupportsIndex = ..., keepdims: bool = ...
) -> np.float64 | LogSumExp: ...


def logsumexp(
    x: npt.ArrayLike, axis: SupportsIndex = -1, keepdims: bool = False
) -> np.float64 | LogSumExp:
    """log Σ_c exp(x_c) along an axis, computed without overflow.

    With the maximum m of a row, it is m + log1p(q), where 1 + q is the sum of exp(x_c − m).

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Half types are computed in float32. Python numbers are float64.
    axis : int, default -1
        The class axis.
    keepdims : bool, default False
        Whether to keep the class axis, with length 1.

    Returns
    -------
    numpy.float64 or ndarray of float64
        In the shape of `x` without the class axis; a scalar if that has no dimensions. A row, that
        is the classes at one position, gives NaN if it contains NaN, +inf if it contains +inf, and
        −inf if it contains only −inf.

    Raises
    ------
    TypeError
        If `x` is not floating.
    ValueError
        If there are no classes or no dimensions, or if `axis` is out of range.

    Notes
    -----
    The definition is that of ``scipy.special.logsumexp`` and ``torch.logsumexp``.

    The absolute error for float64 is at most 2 units in the last place of 1 or of the result, the
    larger of the two in magnitude. For float32 and half types it is about 2⁻²⁴ (6·10⁻⁸)
    and at most 2⁻²³, although the result is float64, because the exponentials may have the
    precision of float32. A result near 0, as for normalised log-probabilities, then has few digits:
    convert `x` to float64 to have them.

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
    if result.ndim:
        return result
    scalar: np.float64 = result.reshape(-1)[0]
    return scalar


def _checked(x: Any, axis: Any, out: Any) -> tuple[Array, int, Array]:
    """The input, its class axis and the array for the result."""
    array, _ = arguments.floating(x, "x")
    k = arguments.class_axis(axis, array.shape, "x")
    return array, k, arguments.output(out, array, x, (), "x")
