"""The kernel for few classes, or a class axis that is not the last: vector lanes are rows.

A tile holds up to `width` rows as (classes, width): row v is a lane, so a step over one class is a
vector operation. With inner = 1, copying rows to a tile transposes them; with larger `inner` a
class of neighbouring rows is contiguous already.

Scratch memory is a tile of at most 64 KiB and the fields of `_lanes`, per thread. A tile is read
before its gradient is written, so grad may be x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import (
    U0,
    U1,
    U4,
    U16,
    Index,
    U,
    jit,
    jit_allocating,
    transpose_4_16,
    transpose_16_4,
    transpose_16_16,
)
from pyce._backends.numba._lanes import (
    LABEL_EXP,
    LABEL_GRADIENT,
    LABEL_LOGIT,
    LOG,
    LOG_ERROR,
    MAX,
    MAX_64,
    TARGET,
    WEIGHT,
    add_exponentials,
    add_soft_target,
    begin,
    collect,
    finalize,
    log_probability,
    off_target_gradient,
    read_rows,
    scratch,
    smoothing,
    soft_target_gradient,
    zeros,
)
from pyce._types import Array

# Up to this many classes, contiguous rows are faster in tiles than in `_rows`.
FEW_CLASSES = 256


@jit
def _locate(row: Index, n: Index, classes: Index, inner: Index, at: Array) -> None:
    """at[v] = index of the first class of row `row + v`, v < n."""
    if inner == U1:
        for v in range(n):
            at[v] = (row + v) * classes
        return
    i = row % inner
    first = row // inner * classes * inner
    for v in range(n):
        at[v] = first + i
        i += U1
        if i == inner:
            i = U0
            first += classes * inner


@jit
def _transpose(
    source: Array,
    i: Index,
    rows: Index,
    row: Index,
    target: Array,
    j: Index,
    columns: Index,
    column: Index,
) -> None:
    """target[j + c·column + v] = source[i + v·row + c] for v < rows, c < columns; one is ≥ 16.

    It works in squares of 16, of which the last ones overlap their neighbours. If the other number
    is less than 16, it is taken to be 4 or 16: the caller provides the memory that is read and
    written beyond, and a row of the target is written after the excess of the row before.
    """
    if columns <= U4:
        for v in range(U0, rows, U16):
            v = min(v, rows - U16)
            transpose_16_4(source, i + v * row, row, target, j + v, column)
    elif rows <= U4:
        for c in range(U0, columns, U16):
            c = min(c, columns - U16)
            transpose_4_16(source, i + c, row, target, j + c * column, column)
    else:
        for v in range(U0, rows, U16):
            v = min(v, max(rows, U16) - U16)
            for c in range(U0, columns, U16):
                c = min(c, max(columns, U16) - U16)
                transpose_16_16(source, i + v * row + c, row, target, j + c * column + v, column)


@jit
def _transposed_classes(classes: Index) -> Index:
    """The number of classes for which `_transpose` reads and writes memory."""
    return U4 if classes <= U4 else max(classes, U16)


@jit
def _load(
    x: Array,
    at: Array,
    inner: Index,
    classes: Index,
    n: Index,
    tile: Array,
    lanes: Index,
) -> None:
    """tile[c·lanes + v] = x[at[v] + c·inner] for v < n, and 0 for n ≤ v < lanes."""
    if inner >= U16:
        for c in range(classes):
            i = at[0] + c * inner
            for v in range(n):
                tile[c * lanes + v] = x[i + v]
    elif inner == U1 and n >= U16 and at[n - U1] + _transposed_classes(classes) <= U(x.size):
        _transpose(x, at[0], n, classes, tile, U0, classes, lanes)
    else:
        for v in range(n):
            i = at[v]
            for c in range(classes):
                tile[c * lanes + v] = x[i + c * inner]
    if n < lanes:
        for c in range(classes):
            for v in range(n, lanes):
                tile[c * lanes + v] = 0.0


@jit
def _store(
    tile: Array,
    lanes: Index,
    at: Array,
    inner: Index,
    classes: Index,
    n: Index,
    x: Array,
) -> None:
    """x[at[v] + c·inner] = tile[c·lanes + v] for v < n."""
    if inner >= U16:
        for c in range(classes):
            i = at[0] + c * inner
            for v in range(n):
                x[i + v] = tile[c * lanes + v]
    else:
        # The last rows, in which `_transpose` would write beyond row n.
        tail = (_transposed_classes(classes) - U1) // classes
        first = U0
        if inner == U1 and n >= U16 + tail:
            first = n - tail
            _transpose(tile, U0, classes, lanes, x, at[0], first, classes)
        for v in range(first, n):
            i = at[v]
            for c in range(classes):
                x[i + c * inner] = tile[c * lanes + v]


@jit
def _load_soft_target(
    a: Array, c: Index, n: Index, at: Array, inner: Index, probs: Array, weight: Array
) -> None:
    """Target probabilities of class c, and its weight, into lanes 0..n of a."""
    if probs.size:
        if inner >= U16:
            i = at[0] + c * inner
            for v in range(n):
                a[TARGET + v] = probs[i + v]
        else:
            for v in range(n):
                a[TARGET + v] = probs[at[v] + c * inner]
    if weight.size:
        for v in range(n):
            a[WEIGHT + v] = weight[c]


@jit
def _log_softmax_step(tile: Array, j: Index, a: Array, n: Index) -> None:
    """Replace logits tile[j:j+n] of one class by their log-softmax."""
    for v in range(n):
        x = np.float64(tile[j + v])
        tile[j + v] = log_probability(x, a[MAX_64 + v], a[LOG + v], a[LOG_ERROR + v])


@jit_allocating
def tiles(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a job."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    outer, classes, inner, width = job.outer, job.classes, job.inner, job.width
    k = smoothing(job)
    soft = probs.size > 0 or k.off_value != 0.0
    labelled = job.labels.size > 0
    size, stride, lanes = U(classes), U(inner), U(width)
    s, a, label, ignored = scratch(job)
    tile = zeros(x, width * max(classes, 16))
    at = np.empty(width, np.uintp)
    # If `inner` is large enough for whole runs to be copied, a tile lies within one outer index.
    span = inner if inner >= 16 else outer * inner
    per_span = (span + width - 1) // width
    count = outer * inner // span * per_span
    for number in range(count * piece // pieces, count * (piece + 1) // pieces):
        position = number % per_span * width
        row = U(number // per_span * span + position)
        n = U(min(width, span - position))
        _locate(row, n, size, stride, at)
        _load(x, at, stride, size, n, tile, lanes)
        any_ignored = read_rows(a, label, ignored, row, n, job)
        if labelled:
            for v in range(n):
                a[LABEL_LOGIT + v] = tile[label[v] * lanes + v]
        for v in range(lanes):
            s[MAX + v] = tile[v]
        for c in range(U1, size):
            for v in range(lanes):
                z = tile[c * lanes + v]
                s[MAX + v] = z if z > s[MAX + v] else s[MAX + v]
        begin(s, a, lanes, soft)
        for c in range(size):
            if soft:
                _load_soft_target(a, c, n, at, stride, probs, weight)
                add_soft_target(tile, c * lanes, a, n, k)
            add_exponentials(tile, c * lanes, s, lanes)
        collect(s, a, lanes)
        if labelled:
            for v in range(n):
                a[LABEL_EXP + v] = tile[label[v] * lanes + v]
        any_ignored = finalize(s, a, ignored, any_ignored, row, n, k, job)
        if grad.size == 0:
            continue
        if job.log_softmax:
            _load(x, at, stride, size, n, tile, lanes)
        for c in range(size):
            if job.log_softmax:
                _log_softmax_step(tile, c * lanes, a, n)
            elif soft:
                _load_soft_target(a, c, n, at, stride, probs, weight)
                soft_target_gradient(tile, c * lanes, a, n, k)
            else:
                off_target_gradient(tile, c * lanes, a, n)
        if labelled:
            for v in range(n):
                tile[label[v] * lanes + v] = a[LABEL_GRADIENT + v]
        if any_ignored:
            for v in range(n):
                if ignored[v]:
                    for c in range(size):
                        tile[c * lanes + v] = 0.0
        _store(tile, lanes, at, stride, size, n, grad)
