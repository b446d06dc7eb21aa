"""Tiles of float32 logits with index targets and no smoothing, the common case.

The formulas are those of `_lanes`, with one coefficient in each row. Each step is done for
all blocks of a tile before the next, which gives the processor many short chains of operations
instead of one long one. Rows whose loss or gradient may be NaN, whose weight is 0, or whose
factor is too small for float32, are left to `_lanes`; the others are regular.

With e_c the exponential of class c, m the maximum and o the label, one division gives
1/(e_m·S), from it 1/S and (S − e_m)/e_m, the argument of log1p, where S is the sum of all e.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import (
    U0,
    Index,
    U,
    by_dtype,
    fma,
    jit,
    jit_allocating,
    zero_unless,
    zero_where,
)
from pyce._backends.numba._lanes import WIDTH, fields, zeros
from pyce._backends.numba._math import (
    BIAS_FACTOR,
    EXP_32,
    LN2_HIGH_32,
    LN2_HIGH_64,
    LN2_LOW_32,
    LOG2E_32,
    exp,
    log1p_short,
    normaliser,
)
from pyce._backends.numba._vectors import (
    LANES,
    all_true,
    choose,
    larger,
    load,
    load_labels,
    narrow,
    spread,
    store,
    widen,
)
from pyce._types import Array

# Up to so many classes, vectors of labels are compared with each class; above, the number at each
# label is read and written by itself.
_COMPARED = 12
# Factors below this are subnormal or nearly so in float32.
_LEAST_FACTOR = np.float32(2.0**-125)
_INFINITE, _ONE = np.float32(np.inf), np.float32(1.0)
_E2, _E3, _E4, _E5, _E6 = EXP_32

# Fields of `reals`, float32. The label is −1 in rows that are ignored; MAX_E and LABEL_E are
# exponentials, and FACTOR times an exponential is the gradient.
_MAX, _SHIFT, _MAGIC, _LEAST, _MAX_E = fields(5)
_LABEL, _LABEL_X, _LABEL_E, _LABEL_GRADIENT, _FACTOR = fields(10)[5:]
# Fields of `doubles`: e_m to 2⁻²⁷, (S − e_m)/e_m, log1p of that, the weight of the row's loss, and
# the same of its gradient.
_EXACT_E, _QUOTIENT, _LOG, _WEIGHT, _SCALE = fields(5)


@jit_allocating
def index_scratch(job: Any) -> Any:
    """Scratch memory of `index_tile`: reals, doubles, the places of the labels in the tile, and
    which rows are regular."""
    reals = zeros(job.x, int(_FACTOR + WIDTH))
    doubles = zeros(job.smoothing, int(_SCALE + WIDTH))
    doubles[_WEIGHT : _WEIGHT + WIDTH] = 1.0
    doubles[_SCALE : _SCALE + WIDTH] = job.scale[0] if job.scale.size == 1 else 1.0
    return reals, doubles, np.zeros(WIDTH, np.uintp), np.ones(WIDTH, np.bool_)


@jit
def _read_weights(doubles: Array, row: Index, n: Index, job: Any) -> None:
    """The weights of rows row:row+n, and the factors of their gradients; those of ignored rows are
    of no use. job.scale contains the sample weights."""
    for v in range(n):
        y = job.labels[row + v]
        w = 1.0
        if job.weight.size and y != job.ignore_index:
            w = job.weight[U(y)]
        doubles[_WEIGHT + v] = doubles[_SCALE + v] = w
    if job.sample_weight.size:
        for v in range(n):
            doubles[_WEIGHT + v] *= job.sample_weight[row + v]
    if job.scale.size > 1:
        for v in range(n):
            doubles[_SCALE + v] *= job.scale[row + v]
    elif job.scale.size:
        for v in range(n):
            doubles[_SCALE + v] *= job.scale[U0]
    else:  # no gradient: the factor tells which rows are regular
        for v in range(n):
            doubles[_SCALE + v] = doubles[_WEIGHT + v]


@jit
def _begin(tile: Array, reals: Array, doubles: Array, classes: Index, n: Index) -> None:
    """The maxima, their normalisers and exponentials."""
    for v in range(U0, n, LANES):
        first = v * classes
        m = load(tile, first)
        for i in range(first + LANES, first + classes * LANES, LANES):
            m = larger(load(tile, i), m)
        store(reals, _MAX + v, m)
    for v in range(U0, n, LANES):
        m = load(reals, _MAX + v)
        shift, magic, least = normaliser(m)
        store(reals, _SHIFT + v, shift)
        store(reals, _MAGIC + v, magic)
        store(reals, _LEAST + v, least)
        store(reals, _MAX_E + v, exp(m, shift, magic, least))
        # 2⁶⁰·(1 + r + r²·q): only r must be more exact than float32.
        z = m - shift
        k = fma(z, LOG2E_32, magic) - magic
        r = fma(k, -LN2_LOW_32, fma(k, -LN2_HIGH_32, z))
        q = fma(fma(fma(fma(_E6, r, _E5), r, _E4), r, _E3), r, _E2)
        exact = fma(widen(k), -LN2_HIGH_64, widen(z))
        rest = fma(exact * exact, widen(q), exact)
        store(doubles, _EXACT_E + v, (rest + 1.0) * BIAS_FACTOR)


@jit
def _exponentials(
    tile: Array, reals: Array, place: Array, classes: Index, n: Index, compare: bool
) -> None:
    """Exponentials instead of logits, but 0 at the labels; logit and exponential of each label."""
    if not compare:
        for v in range(n):
            reals[_LABEL_X + v] = tile[place[v]]
    for v in range(U0, n, LANES):
        shift, magic, least = (
            load(reals, _SHIFT + v),
            load(reals, _MAGIC + v),
            load(reals, _LEAST + v),
        )
        first = v * classes
        if not compare:
            for i in range(first, first + classes * LANES, LANES):
                store(tile, i, exp(load(tile, i), shift, magic, least))
            continue
        label = load(reals, _LABEL + v)
        label_x = label_e = c = label - label
        for i in range(first, first + classes * LANES, LANES):
            x = load(tile, i)
            e = exp(x, shift, magic, least)
            here = c == label
            label_x, label_e = choose(here, x, label_x), choose(here, e, label_e)
            store(tile, i, zero_where(here, e))
            c = c + 1.0
        store(reals, _LABEL_X + v, label_x)
        store(reals, _LABEL_E + v, label_e)
    if not compare:
        for v in range(n):
            reals[_LABEL_E + v] = tile[place[v]]
            tile[place[v]] = 0.0


@jit
def _factors(tile: Array, reals: Array, doubles: Array, classes: Index, n: Index) -> None:
    """The sums over classes; from them the factors, the gradients at labels, and (S − e_m)/e_m."""
    for v in range(U0, n, LANES):
        rest = spread(0.0)
        first = v * classes
        for i in range(first, first + classes * LANES, LANES):
            rest = rest + widen(load(tile, i))
        m, exact_e = load(reals, _MAX + v), load(doubles, _EXACT_E + v)
        top = m == load(reals, _LABEL_X + v)
        less = rest - widen(zero_where(top, load(reals, _MAX_E + v)))
        others = less + widen(zero_where(top, load(reals, _LABEL_E + v)))
        total = others + exact_e
        both = 1.0 / (exact_e * total)
        factor = exact_e * both * load(doubles, _SCALE + v)
        store(doubles, _QUOTIENT + v, others * total * both)
        store(reals, _FACTOR + v, narrow(factor))
        gradient = 0.0 - (less + zero_where(top, exact_e)) * factor
        store(reals, _LABEL_GRADIENT + v, narrow(gradient))


@jit
def _find_regular(reals: Array, regular: Array, row: Index, n: Index, saved_lse: Array) -> Any:
    """Mark the rows whose sum and saved lse are finite and whose factor is not too small.

    Are all of them?
    """
    every = True
    for v in range(U0, n, LANES):
        m, factor = load(reals, _MAX + v), load(reals, _FACTOR + v)
        factor = factor + (m - m)
        size = larger(factor, -factor)
        size = choose(load(reals, _LABEL + v) < 0.0, spread(_ONE), size)
        every &= all_true(size > _LEAST_FACTOR) & all_true(size < _INFINITE)
    if saved_lse.size:
        for v in range(n):
            every &= saved_lse[row + v] - saved_lse[row + v] == 0.0
    if not every:
        for v in range(n):
            size = abs(reals[_FACTOR + v] + (reals[_MAX + v] - reals[_MAX + v]))
            regular[v] = reals[_LABEL + v] < 0.0 or _LEAST_FACTOR < size < _INFINITE
            if saved_lse.size:
                regular[v] &= saved_lse[row + v] - saved_lse[row + v] == 0.0
    return every


@jit
def _losses(reals: Array, doubles: Array, row: Index, n: Index, job: Any) -> None:
    for v in range(n):
        doubles[_LOG + v] = log1p_short(doubles[_QUOTIENT + v])
    if job.losses.size:
        for v in range(n):
            gap = np.float64(reals[_MAX + v]) - np.float64(reals[_LABEL_X + v])
            loss = (gap + doubles[_LOG + v]) * doubles[_WEIGHT + v]
            job.losses[row + v] = loss if reals[_LABEL + v] >= 0.0 else 0.0
    if job.lse.size:
        for v in range(n):
            lse = np.float64(reals[_MAX + v]) + doubles[_LOG + v]
            job.lse[row + v] = lse if reals[_LABEL + v] >= 0.0 else 0.0


@jit
def _gradient(
    tile: Array, reals: Array, place: Array, classes: Index, n: Index, compare: bool
) -> None:
    """The gradient instead of exponentials; 0 in rows that are ignored."""
    for v in range(U0, n, LANES):
        label, at_label = load(reals, _LABEL + v), load(reals, _LABEL_GRADIENT + v)
        factor = zero_where(label < 0.0, load(reals, _FACTOR + v))
        first = v * classes
        if not compare:
            for i in range(first, first + classes * LANES, LANES):
                store(tile, i, load(tile, i) * factor)
            continue
        c = label - label
        for i in range(first, first + classes * LANES, LANES):
            store(tile, i, choose(c == label, at_label, load(tile, i) * factor))
            c = c + 1.0
    if not compare:
        for v in range(n):
            if reals[_LABEL + v] >= 0.0:
                tile[place[v]] = reals[_LABEL_GRADIENT + v]


@jit
def _index_tile_float32(
    tile: Array, room: Any, classes: Index, row: Index, n: Index, job: Any
) -> Any:
    """Replace the logits of rows row:row+n by their gradient, and write losses and lse.

    Lanes past the last row count as ignored. Are all rows regular? The results of the others are of
    no use.
    """
    reals, doubles, place, regular = room
    compare = classes <= U(_COMPARED)
    all_valid = True
    for v in range(U0, n, LANES):
        if v + LANES <= n:
            store(reals, _LABEL + v, load_labels(job.labels, row + v, job.ignore_index))
        else:
            for i in range(v, v + LANES):
                reals[_LABEL + i] = -1.0
            for i in range(v, n):
                y = job.labels[row + i]
                if y != job.ignore_index:
                    reals[_LABEL + i] = y
        all_valid &= all_true(load(reals, _LABEL + v) > -1.0)
    if not all_valid:
        # The logits of an ignored row must not matter.
        for v in range(U0, n, LANES):
            valid = load(reals, _LABEL + v) > -1.0
            first = v * classes
            for i in range(first, first + classes * LANES, LANES):
                store(tile, i, zero_unless(valid, load(tile, i)))
    if not compare:
        for v in range(n):
            y = U0 if reals[_LABEL + v] < 0.0 else U(job.labels[row + v])
            place[v] = (v // LANES * classes + y) * LANES + v % LANES
    _begin(tile, reals, doubles, classes, n)
    _exponentials(tile, reals, place, classes, n, compare)
    # The only row of a part may have another factor than the one that `index_scratch` knew.
    if job.weight.size or job.sample_weight.size or job.scale.size > 1 or n == 1:
        _read_weights(doubles, row, n, job)
    _factors(tile, reals, doubles, classes, n)
    every = _find_regular(reals, regular, row, n, job.saved_lse)
    if job.losses.size or job.lse.size:
        _losses(reals, doubles, row, n, job)
    if job.grad.size:
        _gradient(tile, reals, place, classes, n, compare)
    return every


@jit
def _restore_regular_float32(
    tile: Array, saved: Array, room: Any, classes: Index, row: Index, n: Index, job: Any
) -> None:
    """Give regular rows their results again, after `_lanes` has computed all rows of a tile.

    saved is the tile that `index_tile` left. So a row has the same bits whatever its neighbours
    are.
    """
    reals, doubles, _, regular = room
    for v in range(n):
        valid = reals[_LABEL + v] >= 0.0
        m, log = np.float64(reals[_MAX + v]), doubles[_LOG + v]
        rest = doubles[_QUOTIENT + v]
        # Whatever the factor of the gradient is; log1p does not show NaN.
        if not valid or (m - m) + (rest - rest) == 0.0:
            w = doubles[_WEIGHT + v]
            if job.losses.size and not valid:
                job.losses[row + v] = 0.0
            elif job.losses.size and w - w == 0.0 and w != 0.0:
                job.losses[row + v] = (m - np.float64(reals[_LABEL_X + v]) + log) * w
            if job.lse.size:
                job.lse[row + v] = m + log if valid else 0.0
        if regular[v] and job.grad.size:
            first = v // LANES * classes * LANES + v % LANES
            for i in range(first, first + classes * LANES, LANES):
                tile[i] = saved[i]


@jit
def _index_tile_float64(
    tile: Array, room: Any, classes: Index, row: Index, n: Index, job: Any
) -> bool:
    return False


@jit
def _restore_regular_float64(
    tile: Array, saved: Array, room: Any, classes: Index, row: Index, n: Index, job: Any
) -> None:
    """`index_tile` computes no row of float64."""


restore_regular = by_dtype(_restore_regular_float32, _restore_regular_float64)
index_tile = by_dtype(_index_tile_float32, _index_tile_float64)
