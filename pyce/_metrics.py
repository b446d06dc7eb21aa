"""How often predictions are right, the same whichever backend is selected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._dtypes import dtype_name
from pyce._problem import row_blocks

# Elements that are looked at together: small beside the caches, large beside NumPy's call overhead.
_BLOCK = 1 << 16


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
    if (t.shape == x.shape and t.dtype.kind in "iubf") or dtype_name(t.dtype):
        t = np.argmax(t, axis=class_axis) if t.shape == x.shape else t
    p = arguments.loss_problem(
        x,
        t,
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
    inside = np.where(p.labels == p.ignore_index, 0, p.labels).reshape(-1, 1)
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _BLOCK):
        block = values[index].reshape(-1, p.classes)
        label = inside[start:stop]
        at_label = np.take_along_axis(block, label, axis=-1)
        ahead = (block > at_label) | ((block == at_label) & (classes < label))
        # NaN compares as neither, so a row with NaN at the target must be told apart.
        known = at_label[:, 0] == at_label[:, 0]
        right[start:stop] = (np.count_nonzero(ahead, axis=-1) < k) & known
    valid = p.valid()
    if valid is not None:
        right = right[valid]
    return float(np.mean(right)) if right.size else math.nan
