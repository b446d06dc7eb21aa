"""The fraction of rows that are right, in compiled code; it is the same on every backend."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyce.numba._errors import LabelError


@register_jitable
def labels_of_one_hot(target, sizes):
    """The class of the largest value of each row, as `numpy.argmax` finds it, of a flat array."""
    outer, classes, inner = sizes
    labels = np.empty(outer * inner, np.int64)
    for o in range(outer):
        for i in range(inner):
            first = o * classes * inner + i
            best = 0
            for c in range(classes):
                value = target[first + c * inner]
                if value != value:  # the first NaN
                    best = c
                    break
                if value > target[first + best * inner]:
                    best = c
            labels[o * inner + i] = best
    return labels


@register_jitable
def fraction_right(x, labels, sizes, top_k, ignore_index):
    """`pyce.accuracy` of flat arrays: logits (outer, classes, inner) and labels (outer, inner)."""
    outer, classes, inner = sizes
    for row in range(labels.size):
        label = labels[row]
        if label != ignore_index and (label < 0 or label >= classes):
            raise LabelError(row, label, classes, ignore_index)
    valid, right = 0, 0
    for o in range(outer):
        for i in range(inner):
            label = labels[o * inner + i]
            if label == ignore_index:
                continue
            valid += 1
            first = o * classes * inner + i
            at_label = x[first + label * inner]
            ahead = 0
            for c in range(classes):
                value = x[first + c * inner]
                # Of equal logits, the one of the lower class counts as the larger.
                ahead += value > at_label or (value == at_label and c < label)
            # Comparisons with NaN are false, so nothing is ahead of a NaN at the target.
            right += at_label == at_label and ahead < top_k
    return right / valid if valid else np.nan
