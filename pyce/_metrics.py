"""Measures of a classifier that are not its loss, the same whichever backend is selected."""

from __future__ import annotations

import math
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._dtypes import dtype_name
from pyce._problem import row_blocks
from pyce._types import Array

# Elements compared at a time: few enough for the caches, many enough to hide NumPy's overhead.
_BLOCK = 1 << 16


@_fpenv.default
def accuracy(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    top_k: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
) -> float:
    """The fraction of rows whose target is among the `top_k` classes with the largest logits.

    A row is the C values along the class axis at one position. Of equal logits, the one of the
    lower class counts as the larger, as in `numpy.argmax`. A row whose logit at the target is NaN
    is wrong.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order; also probabilities or other scores. Python numbers are float64.
    target : array_like
        Class indices of any integer dtype, in the shape of `logits` without the class axis; or
        one-hot rows of any real dtype in the shape of `logits`, whose largest value is at the
        class.
    axis : int, default -1
        The class axis.
    top_k : int, default 1
        At least 1. If it is C or more, every row counts as right, unless its logit at the target
        is NaN.
    ignore_index : int, default -100
        Rows with this class index are left out.

    Returns
    -------
    float
        NaN if no row is left.

    Raises
    ------
    TypeError
        If `logits` are not floating, or if a floating target is shaped like class indices.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        or if `top_k` is below 1.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.

    Notes
    -----
    The definition is that of ``sklearn.metrics.top_k_accuracy_score``, except for ties.

    Examples
    --------
    >>> logits = [[1.0, 2.0, 0.5], [3.0, 0.2, 0.1]]
    >>> print(pyce.accuracy(logits, [1, 2]), pyce.accuracy(logits, [1, 2], top_k=3))
    0.5 1.0
    """
    k = arguments.positive_number(top_k, "top_k")
    x, _ = arguments.floating(logits, "logits")
    class_axis = arguments.class_axis(axis, x.shape)
    t = arguments.as_array(target, "target")
    if t.shape == x.shape and (t.dtype.kind in "iubf" or dtype_name(t.dtype)):
        target = _largest(t, class_axis)
    p = arguments.loss_problem(
        x,
        target,
        axis=axis,
        weight=None,
        sample_weight=None,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        reduction="sum",
        normalizer=None,
    )
    p.check_labels()
    assert p.labels is not None
    values = np.moveaxis(p.logits, p.axis, -1)
    classes = np.arange(p.classes)
    right = np.zeros(p.rows, bool)
    # Ignored rows get any class: they are left out of the mean.
    labels = np.where(p.labels == p.ignore_index, 0, p.labels).reshape(-1, 1)
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _BLOCK):
        block = values[index].reshape(-1, p.classes)
        label = labels[start:stop]
        at_label = np.take_along_axis(block, label, axis=-1)
        ahead = (block > at_label) | ((block == at_label) & (classes < label))
        # Comparisons with NaN are false, so nothing is ahead of a NaN at the target.
        not_nan = at_label[:, 0] == at_label[:, 0]
        right[start:stop] = (np.count_nonzero(ahead, axis=-1) < k) & not_nan
    valid = p.valid()
    if valid is not None:
        right = right[valid]
    return float(np.mean(right)) if right.size else math.nan


def _largest(array: Array, axis: int) -> Array:
    """numpy.argmax, which would copy the whole array unless `axis` is the last in memory."""
    if array.size <= _BLOCK:
        return np.asarray(np.argmax(array, axis=axis))
    view = np.moveaxis(array, axis, -1)
    *positions, classes = view.shape
    found = np.empty(math.prod(positions), np.int64)
    for index, start, stop in row_blocks(array.shape, axis, _BLOCK):
        found[start:stop] = np.argmax(view[index].reshape(-1, classes), axis=1)
    return found.reshape(positions)
