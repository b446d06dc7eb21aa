"""The kernel for few classes, or a class axis that is not the last: vector lanes are rows.

A tile holds up to WIDTH rows as (blocks, classes, LANES): LANES rows are a block, and a class of a
block is a vector. With inner = 1, copying rows to a tile transposes them, four classes at a time;
with larger `inner` a class of neighbouring rows is contiguous already.

Scratch memory is two tiles of at most 64 KiB each and the fields of `_lanes` and `_index_tiles`,
per thread. A tile is read before its gradient is written, so grad may be x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyce._backends.numba._index_tiles import index_scratch, index_tile, restore_regular
from pyce._backends.numba._jit import (
    U0,
    U1,
    U2,
    U3,
    U4,
    U8,
    U16,
    Index,
    U,
    by_dtype,
    fma,
    jit,
    jit_allocating,
    stream_fence,
    zero_where,
)
from pyce._backends.numba._lanes import (
    FACTOR,
    FACTOR_ERROR,
    LABEL,
    LABEL_EXP,
    LABEL_GRADIENT,
    LABEL_LOGIT,
    LEAST,
    LOG,
    LOG_ERROR,
    MAGIC,
    MAX,
    MAX_64,
    MAX_EXP,
    PIVOT,
    REST,
    REST_ERROR,
    SHIFT,
    TARGET,
    WEIGHT,
    WIDTH,
    add_soft_target,
    begin,
    finalize,
    log_probability,
    read_rows,
    scratch,
    smoothing,
    soft_target_gradient,
    softmax_factors,
    zeros,
)
from pyce._backends.numba._math import exp, two_sum
from pyce._backends.numba._vectors import (
    ALIGNMENT,
    LANES,
    choose,
    larger,
    load,
    load_fours,
    misalignment,
    narrow,
    prefetch,
    spread,
    store,
    store_fours,
    stream,
    stream_copy,
    widen,
)
from pyce._types import Array

# Below this many classes, contiguous rows are faster in tiles than in `_rows`, which needs as many.
LEAST_ROW = 64
# As LEAST_ROW, of float32 logits that `_index_tiles` knows.
LEAST_INDEX_ROW = 200


class Tile(NamedTuple):
    """Scratch memory of `tiles`, in the dtype of the logits except for `at`."""

    numbers: Array  # (blocks, classes, LANES), flat; first logits, then exponentials, then results
    # (width·classes + LANES,): results that are written past the caches, or are put back later
    results: Array
    staged: Array  # (4·LANES,): rows that are not written as four classes
    at: Array  # uintp (WIDTH,): index of a row's first class in x


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
def _place(v: Index, c: Index, classes: Index) -> Any:
    """The index of row v and class c in a tile."""
    return (v // LANES * classes + c) * LANES + v % LANES


@jit
def _next_four(c: Index, classes: Index) -> Any:
    """The class after c at which the next four begin: the last four overlap those before them."""
    return c + U4 if c + U8 <= classes else max(c + U1, classes - U4)


@jit
def _load(x: Array, at: Array, inner: Index, classes: Index, n: Index, tile: Array) -> None:
    """Copy rows x[at[v] + c·inner], v < n, to a tile, and 0 to the other rows of its blocks."""
    done = U0
    if inner >= U16:
        done = n // LANES * LANES
        for c in range(classes):
            i = at[0] + c * inner
            for v in range(U0, done, LANES):
                store(tile, v * classes + c * LANES, load(x, i + v))
                # There are more streams than the processor follows by itself.
                prefetch(x, i + n + v)
    elif inner == U1:
        # Fewer than four classes are read as four: the next row, or what is beyond the array.
        beyond = U4 - classes if classes < U4 else U0
        while done + LANES <= n and at[done] + LANES * classes + beyond <= U(x.size):
            four: Index = U0
            while four < classes and (four + U4 <= classes or four == U0):
                a, b, c, d = load_fours(x, at[done] + four, classes)
                i = done * classes + four * LANES
                store(tile, i, a)
                store(tile, i + LANES, b)
                store(tile, i + U2 * LANES, c)
                store(tile, i + U3 * LANES, d)
                four = _next_four(four, classes)
            done += LANES
    for v in range(done, (n + LANES - U1) // LANES * LANES):
        for c in range(classes):
            tile[_place(v, c, classes)] = x[at[v] + c * inner] if v < n else x.dtype.type(0.0)


@jit
def _four(tile: Array, i: Index) -> Any:
    """Four classes of a block."""
    return (
        load(tile, i),
        load(tile, i + LANES),
        load(tile, i + U2 * LANES),
        load(tile, i + U3 * LANES),
    )


@jit
def _store(
    tile: Any, inner: Index, classes: Index, n: Index, x: Array, base: Index, past_caches: bool
) -> None:
    """x[at[v] + c·inner − base] = row v, class c of the tile, for v < n."""
    numbers, staged, at = tile.numbers, tile.staged, tile.at
    done = U0
    if inner >= U16:
        done = n // LANES * LANES
        i = at[0] - base
        aligned = misalignment(x, i) == U0 and inner * U(x.itemsize) % U(ALIGNMENT) == U0
        for c in range(classes):
            if past_caches and aligned:
                for v in range(U0, done, LANES):
                    stream(x, i + v, load(numbers, v * classes + c * LANES))
            else:
                for v in range(U0, done, LANES):
                    store(x, i + v, load(numbers, v * classes + c * LANES))
            i += inner
    elif inner == U1 and classes >= U4:
        while done + LANES <= n:
            four: Index = U0
            first = at[done] - base
            while four + U4 <= classes:
                vectors = _four(numbers, done * classes + four * LANES)
                store_fours(x, first + four, classes, vectors)
                four = _next_four(four, classes)
            done += LANES
    elif inner == U1:
        # Rows are written as four numbers, each before the next, which replaces the excess: up to
        # three numbers, which must not be beyond the tile.
        while done + LANES <= n:
            vectors = _four(numbers, done * classes)
            first = at[done] - base
            if done + LANES + U3 > n:
                store_fours(staged, U0, U4, vectors)
                for v in range(LANES):
                    for c in range(classes):
                        x[first + v * classes + c] = staged[v * U4 + c]
            else:
                store_fours(x, first, classes, vectors)
            done += LANES
    for v in range(done, n):
        for c in range(classes):
            x[at[v] + c * inner - base] = numbers[_place(v, c, classes)]


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
def _maxima(tile: Array, s: Array, a: Array, classes: Index, n: Index, every: bool) -> None:
    """The maxima of the rows of a tile, the logits at their labels, and their pivots.

    A row's pivot is the label if that is a maximum, else some maximum if `every`.
    """
    for v in range(U0, n, LANES):
        first = v * classes
        stop = first + classes * LANES
        label = load(s, LABEL + v)
        m = at_label = load(tile, first)
        c = label - label
        for i in range(first + LANES, stop, LANES):
            c = c + 1.0
            x = load(tile, i)
            m = larger(x, m)
            at_label = choose(c == label, x, at_label)
        store(s, MAX + v, m)
        store(a, LABEL_LOGIT + v, widen(at_label))
        none = label - label - 1.0
        pivot = choose(at_label == m, label, none)
        if every:
            c = none
            for i in range(first, stop, LANES):
                c = c + 1.0
                pivot = choose(load(tile, i) == m, larger(c, pivot), pivot)
        store(s, PIVOT + v, pivot)


@jit
def _infinite_maxima(tile: Array, s: Array, classes: Index, n: Index) -> None:
    """Let the lse of rows with maximum ∞ be ∞, unless they contain NaN: without exponentials."""
    for v in range(n):
        if s[MAX + v] == np.inf:
            nan = False
            for c in range(classes):
                x = tile[_place(v, c, classes)]
                nan |= x != x
            if not nan:
                for c in range(classes):
                    tile[_place(v, c, classes)] = -np.inf
                s[PIVOT + v] = 0.0


@jit
def _sums_float32(tile: Array, s: Array, a: Array, classes: Index, n: Index) -> None:
    """Exponentials of a tile, and their sums without the pivots, into REST and LABEL_EXP."""
    for v in range(U0, n, LANES):
        shift, magic, least = load(s, SHIFT + v), load(s, MAGIC + v), load(s, LEAST + v)
        label, pivot = load(s, LABEL + v), load(s, PIVOT + v)
        rest = spread(0.0)
        at_label = c = label - label
        first = v * classes
        for i in range(first, first + classes * LANES, LANES):
            e = exp(load(tile, i), shift, magic, least)
            store(tile, i, e)
            at_label = choose(c == label, e, at_label)
            rest = rest + widen(zero_where(c == pivot, e))
            c = c + 1.0
        store(a, LABEL_EXP + v, widen(at_label))
        # See `leave_out_maximum`.
        inside = zero_where(spread(-1.0) < widen(pivot), load(a, MAX_EXP + v))
        store(a, REST + v, rest - inside)


@jit
def _sums_float64(tile: Array, s: Array, a: Array, classes: Index, n: Index) -> None:
    for v in range(U0, n, LANES):
        shift, magic, least = load(s, SHIFT + v), load(s, MAGIC + v), load(s, LEAST + v)
        label, pivot = load(s, LABEL + v), load(s, PIVOT + v)
        rest, rest_error = spread(0.0), spread(0.0)
        at_label = c = label - label
        first = v * classes
        for i in range(first, first + classes * LANES, LANES):
            e = exp(load(tile, i), shift, magic, least)
            store(tile, i, e)
            at_label = choose(c == label, e, at_label)
            rest, error = two_sum(rest, zero_where(c == pivot, e))
            rest_error = rest_error + error
            c = c + 1.0
        store(a, LABEL_EXP + v, at_label)
        rest, error = two_sum(rest, -zero_where(spread(-1.0) < pivot, load(a, MAX_EXP + v)))
        store(a, REST + v, rest)
        store(a, REST_ERROR + v, rest_error + error)


_sums = by_dtype(_sums_float32, _sums_float64)


@jit
def _gradient_float32(
    tile: Array, s: Array, a: Array, classes: Index, n: Index, softmax: bool
) -> None:
    """Exponentials times FACTOR; LABEL_GRADIENT at the labels, of which `softmax` has none."""
    small = False
    for v in range(n):
        small |= not 1e-25 < abs(a[FACTOR + v]) < 1e25
    for v in range(U0, n, LANES):
        first = v * classes
        wide = load(a, FACTOR + v)
        square = wide * wide
        factor = narrow(wide)
        if softmax:
            # With no error of the factor: the probabilities of a row add up to 1.
            factor_error = narrow(wide - widen(factor))
            for i in range(first, first + classes * LANES, LANES):
                e = load(tile, i)
                g = fma(e, factor, e * factor_error)
                if small:
                    g = choose(spread(1e-50) < square, g, narrow(widen(e) * wide))
                store(tile, i, g)
            continue
        label, at_label = load(s, LABEL + v), narrow(load(a, LABEL_GRADIENT + v))
        c = label - label
        for i in range(first, first + classes * LANES, LANES):
            e = load(tile, i)
            g = e * factor
            if small:
                # Factors that underflow in float32 have products that do not: lane by lane.
                product = narrow(widen(e) * wide)
                g = choose(square < 1e50, choose(spread(1e-50) < square, g, product), product)
            store(tile, i, choose(c == label, at_label, g))
            c = c + 1.0


@jit
def _gradient_float64(
    tile: Array, s: Array, a: Array, classes: Index, n: Index, softmax: bool
) -> None:
    for v in range(U0, n, LANES):
        first = v * classes
        factor, error = load(a, FACTOR + v), load(a, FACTOR_ERROR + v)
        label, at_label = load(s, LABEL + v), load(a, LABEL_GRADIENT + v)
        c = label - label
        for i in range(first, first + classes * LANES, LANES):
            e = load(tile, i)
            g = fma(e, factor, e * error)
            store(tile, i, choose(c == label, at_label, g))
            c = c + 1.0


_gradient = by_dtype(_gradient_float32, _gradient_float64)


@jit
def _log_softmax(tile: Array, a: Array, classes: Index, n: Index) -> None:
    """Replace the logits of a tile by their log-softmax."""
    for v in range(n):
        m, log, log_error = a[MAX_64 + v], a[LOG + v], a[LOG_ERROR + v]
        for c in range(classes):
            i = _place(v, c, classes)
            tile[i] = log_probability(np.float64(tile[i]), m, log, log_error)


@jit_allocating
def tiles_scratch(job: Any) -> Any:
    """Scratch memory of `tiles`: that of `_lanes`, and a `Tile`."""
    tile = Tile(
        # Fewer than four classes are loaded as four.
        numbers=zeros(job.x, job.width * job.classes + 4 * LANES),
        results=zeros(job.x, job.width * job.classes + LANES),
        staged=zeros(job.x, 4 * LANES),
        at=np.empty(WIDTH, np.uintp),
    )
    return scratch(job), index_scratch(job), tile


@jit
def _write(tile: Any, inner: Index, classes: Index, n: Index, job: Any) -> None:
    """Store a tile of results to the gradient."""
    if job.past_caches and inner == U1:
        first = tile.at[0]
        begin = misalignment(job.grad, first) // U(job.x.itemsize)
        _store(tile, inner, classes, n, tile.results, first - begin, False)
        stream_copy(tile.results, begin, job.grad, first, n * classes)
    else:
        _store(tile, inner, classes, n, job.grad, U0, job.past_caches)


@jit
def tiles(begin_row: Index, end_row: Index, job: Any, room: Any) -> None:
    """Rows begin_row to end_row of a job; room is from `tiles_scratch`."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    size, stride = U(job.classes), U(job.inner)
    k = smoothing(job)
    soft = probs.size > 0 or k.off_value != 0.0
    labelled = job.labels.size > 0
    softmax = not labelled and probs.size == 0
    (s, a, label, ignored), for_index, tile = room
    numbers, at = tile.numbers, tile.at
    plain = labelled and not soft and k.lse_square_scale == 0.0
    plain = plain and U(x.itemsize) == U4  # float32
    # If `inner` is large enough for whole runs to be copied, a tile lies within one outer index.
    span = stride if stride >= U16 else U(job.outer) * stride
    row: Index = U(begin_row)
    end = U(end_row)
    while row < end:
        n: Index = min(U(job.width), min(end - row, span - row % span))
        if n > LANES:
            n = n // LANES * LANES
        lanes = (n + LANES - U1) // LANES * LANES
        _locate(row, n, size, stride, at)
        _load(x, at=at, inner=stride, classes=size, n=n, tile=numbers)
        if plain:
            if index_tile(numbers, for_index, size, row, n, job):
                if grad.size:
                    _write(tile, stride, size, n, job)
                row += n
                continue
            for j in range(lanes * size):
                tile.results[j] = numbers[j]
            _load(x, at=at, inner=stride, classes=size, n=n, tile=numbers)
        any_ignored = read_rows(a, label, ignored, row, n, job)
        if labelled:
            for v in range(n):
                s[LABEL + v] = label[v]
        _maxima(numbers, s, a, classes=size, n=lanes, every=soft or not labelled)
        if job.lse.size:
            _infinite_maxima(numbers, s, size, n)
        begin(s, a, lanes, soft)
        if soft:
            for c in range(size):
                _load_soft_target(a, c, n, at=at, inner=stride, probs=probs, weight=weight)
                for v in range(U0, n, LANES):
                    i = v * size + c * LANES
                    add_soft_target(numbers[i : i + LANES], a, v, min(LANES, n - v), k)
        _sums(numbers, s, a, size, lanes)
        any_ignored = finalize(s, a, ignored, any_ignored, row=row, n=n, k=k, job=job)
        if grad.size:
            if job.log_softmax:
                _load(x, at=at, inner=stride, classes=size, n=n, tile=numbers)
                _log_softmax(numbers, a, size, n)
            elif soft:
                for c in range(size):
                    _load_soft_target(a, c, n, at=at, inner=stride, probs=probs, weight=weight)
                    for v in range(U0, n, LANES):
                        i = v * size + c * LANES
                        soft_target_gradient(numbers[i : i + LANES], a, v, min(LANES, n - v), k)
                for v in range(n):
                    if labelled:
                        numbers[_place(v, label[v], size)] = a[LABEL_GRADIENT + v]
            else:
                if softmax:
                    softmax_factors(s, a, lanes)
                _gradient(numbers, s, a, size, lanes, softmax)
            if any_ignored:
                for v in range(n):
                    if ignored[v]:
                        for c in range(size):
                            numbers[_place(v, c, size)] = 0.0
        if plain:
            restore_regular(numbers, tile.results, for_index, size, row, n, job)
        if grad.size:
            _write(tile, stride, size, n, job)
        row += n
    if job.past_caches:
        stream_fence()
