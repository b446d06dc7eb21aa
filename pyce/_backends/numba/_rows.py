"""The kernel for many contiguous classes: vector lanes are neighbouring classes of one row.

Three passes over a row: the maximum; exponentials, their sum and the soft-target term, in blocks of
BLOCK classes; the gradient, from exponentials that the second pass has saved. Rows up to some
thousand classes go through each pass in groups, so that the rows of a group are lanes of
`finalize`.

Scratch memory is some 100 KiB per thread, and a row of at most SAVED bytes. The row is read before
its gradient is written, so grad may be x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyce._backends.numba._jit import (
    U0,
    U1,
    U2,
    U3,
    U4,
    Index,
    Real,
    U,
    by_dtype,
    fma,
    jit,
    jit_allocating,
    stream_fence,
)
from pyce._backends.numba._lanes import (
    FACTOR,
    FACTOR_ERROR,
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
    REST,
    REST_ERROR,
    SHIFT,
    SOFT_COST,
    SOFT_TOTAL,
    WIDTH,
    begin,
    class_gradient,
    coefficient_float32,
    coefficient_float64,
    cost_float32,
    cost_float64,
    finalize,
    gradient_terms,
    leave_out_maximum,
    log_probability,
    read_rows,
    scratch,
    smoothing,
    softmax_factors,
    zeros,
)
from pyce._backends.numba._math import exp, finite_or_zero, two_sum
from pyce._backends.numba._sums import BLOCK, sum_float32, sum_float64
from pyce._backends.numba._vectors import (
    LANES,
    any_equal,
    before_alignment,
    larger,
    largest,
    load,
    prefetch,
    spread,
    store,
    stream,
    stream_copy,
    total,
    widen,
)
from pyce._types import Array

# Elements of the rows that are worked on together: they stay in the nearest cache.
UNIT = 4096
# Classes whose exponentials are computed and then added up, from the nearest cache. The last part
# of a row has up to twice as many.
PART = U(2048)
# Exponentials of a row that are saved, in bytes; those of a longer row are saved in the gradient.
SAVED = 2**21
# Classes in a step of the loops over a row. Rows have at least as many.
STEP = U4 * LANES
L = LANES


class Workspace(NamedTuple):
    """Scratch memory of `rows`.

    In the dtype of the logits, except that `sums` is float64. The arrays from `target` on are for
    one block of classes of the soft-target term, float64 (BLOCK,) each.
    """

    part: Array  # (2·PART,): exponentials that are not needed again
    saved: Array  # those of the rows of a group; empty if a row is too long
    block: Array  # (BLOCK,)
    tail: Array  # (STEP,)
    mask: Array  # (2·LANES,): zeros, then ones
    sums: Array  # (2·LANES,)
    target: Array  # target probabilities; stay 0 without them
    weight: Array  # class weights; stay 1 without them
    coefficients: Array
    coefficient_errors: Array
    costs: Array
    cost_errors: Array
    partial: Array
    partial_errors: Array


@jit
def _maximum(x: Array, first: Index, n: Index) -> Any:
    """The maximum of x[first:first+n], n ≥ STEP; of numbers and NaN, any of them."""
    a, b = load(x, first), load(x, first + L)
    c, d = load(x, first + U2 * L), load(x, first + U3 * L)
    for i in range(first + STEP, first + n, STEP):
        # The last steps overlap.
        i = min(i, first + n - STEP)
        a, b = larger(load(x, i), a), larger(load(x, i + L), b)
        c, d = larger(load(x, i + U2 * L), c), larger(load(x, i + U3 * L), d)
    return largest(larger(larger(a, b), larger(c, d)))


@jit
def _find(x: Array, first: Index, n: Index, value: Any) -> Any:
    """The first i with x[first+i] = value, or n."""
    wanted = spread(value)
    i = U0
    while i + L <= n and not any_equal(load(x, first + i), wanted):
        i += L
    while i < n and x[first + i] != value:
        i += U1
    return i


@jit
def _any_nan(x: Array, first: Index, n: Index) -> bool:
    found = False
    for c in range(first, first + n):
        found |= x[c] != x[c]
    return found


@jit
def _exp_step(x: Array, i: Index, e: Array, j: Index, norm: Any) -> None:
    """e[j:j+STEP] = exponentials of x[i:i+STEP]."""
    shift, magic, least = norm
    a, b = load(x, i), load(x, i + L)
    c, d = load(x, i + U2 * L), load(x, i + U3 * L)
    a, b = exp(a, shift, magic, least), exp(b, shift, magic, least)
    c, d = exp(c, shift, magic, least), exp(d, shift, magic, least)
    store(e, j, a)
    store(e, j + L, b)
    store(e, j + U2 * L, c)
    store(e, j + U3 * L, d)


@jit
def _exponentials(
    x: Array, first: Index, n: Index, e: Array, at: Index, norm: Any, room: Array, ahead: Index
) -> None:
    """e[at:at+n] = exponentials of x[first:first+n], n ≥ STEP; e may be x, at = first.

    room (STEP,) is workspace. Numbers that are `ahead` behind those are prefetched, unless it is 0.
    """
    # The last step overlaps the one before it, which may replace what it reads.
    last = n - STEP
    for i in range(U0, STEP, L):
        store(room, i, load(x, first + last + i))
    if ahead:
        for c in range(U0, last, STEP):
            for i in range(U0, STEP, L):
                prefetch(x, first + c + ahead + i)
            _exp_step(x, first + c, e, at + c, norm)
    else:
        for c in range(U0, last, STEP):
            _exp_step(x, first + c, e, at + c, norm)
    _exp_step(room, U0, e, at + last, norm)


@jit
def _sum_float32(e: Array, first: Index, n: Index, mask: Array, partial: Array) -> Any:
    """Σ e[first:first+n] in float64, n ≥ STEP, as a pair.

    mask (2·LANES,) holds as many zeros as ones; partial (2·LANES,) is workspace.
    """
    a, b = spread(0.0), spread(0.0)
    steps, whole = first + n // STEP * STEP, first + n // L * L
    for i in range(first, steps, STEP):
        a, b = a + widen(load(e, i)), b + widen(load(e, i + L))
        a, b = a + widen(load(e, i + U2 * L)), b + widen(load(e, i + U3 * L))
    for i in range(steps, whole, L):
        a = a + widen(load(e, i))
    # The last numbers, without those that a whole vector holds besides.
    b = b + widen(load(e, first + n - L) * load(mask, n % L))
    return total(a + b), 0.0


@jit
def _sum_float64(e: Array, first: Index, n: Index, mask: Array, partial: Array) -> Any:
    a, b = spread(0.0), spread(0.0)
    a_error, b_error = spread(0.0), spread(0.0)
    whole = first + n // (U2 * L) * (U2 * L)
    for i in range(first, whole, U2 * L):
        a, error = two_sum(a, load(e, i))
        a_error = a_error + error
        b, error = two_sum(b, load(e, i + L))
        b_error = b_error + error
    if first + n - whole >= L:
        a, error = two_sum(a, load(e, whole))
        a_error = a_error + error
    b, error = two_sum(b, load(e, first + n - L) * load(mask, n % L))
    a, other = two_sum(a, b)
    a_error = a_error + (b_error + (error + other))
    store(partial, U0, a)
    store(partial, L, a_error)
    width = L
    while width > U1:
        width = width >> U1
        for c in range(width):
            partial[c], error = two_sum(partial[c], partial[width + c])
            partial[L + c] += partial[L + width + c] + error
    return partial[U0], partial[L]


_sum = by_dtype(_sum_float32, _sum_float64)


@jit
def _add_pair(a: Array, field: Index, v: Index, value: Any) -> None:
    """Add a pair to the pair in `field` of lane v."""
    total, error = two_sum(a[field + v], value[0])
    a[field + v] = total
    a[field + WIDTH + v] += value[1] + finite_or_zero(error)


@jit
def _copy(to: Array, values: Array, first: Index, n: Index) -> None:
    """to[:n] = values[first:first+n], unless values is empty."""
    if values.size:
        for c in range(n):
            to[c] = values[first + c]


@jit
def _soft_target_sums_float32(block: Array, n: Index, m: Real, k: Any, work: Any) -> Any:
    """Σ b and Σ b·(m − x) over logits block[:n], as pairs."""
    for c in range(n):
        b = coefficient_float32(work.target[c], work.weight[c], k)
        work.coefficients[c] = b
        work.costs[c] = cost_float32(b, m, np.float64(block[c]))
    total = sum_float32(work.coefficients, n, work.partial, work.partial_errors)
    return total, sum_float32(work.costs, n, work.partial, work.partial_errors)


@jit
def _soft_target_sums_float64(block: Array, n: Index, m: Real, k: Any, work: Any) -> Any:
    for c in range(n):
        b, b_error = coefficient_float64(work.target[c], work.weight[c], k)
        cost, cost_error = cost_float64(b, b_error, m, block[c])
        work.coefficients[c] = b
        work.coefficient_errors[c] = b_error
        work.costs[c] = cost
        work.cost_errors[c] = cost_error
    partial, partial_errors = work.partial, work.partial_errors
    total, error = sum_float64(work.coefficients, n, partial, partial_errors)
    total_error = error + sum_float32(work.coefficient_errors, n, partial, partial_errors)[0]
    cost, error = sum_float64(work.costs, n, partial, partial_errors)
    cost_error = error + sum_float32(work.cost_errors, n, partial, partial_errors)[0]
    return (total, total_error), (cost, cost_error)


_soft_target_sums = by_dtype(_soft_target_sums_float32, _soft_target_sums_float64)


@jit
def _add_soft_target(x: Array, probs: Array, weight: Array, row: Any, k: Any, work: Any) -> None:
    """Add the soft-target term of a row to the sums of its lane."""
    first, classes, v, a = row.first, row.classes, row.lane, row.a
    for j in range(U0, classes, U(BLOCK)):
        n = min(U(BLOCK), classes - j)
        block = work.block
        for c in range(n):
            block[c] = x[first + j + c]
        _copy(work.target, probs, first + j, n)
        _copy(work.weight, weight, j, n)
        b, cost = _soft_target_sums(block, n, a[MAX_64 + v], k, work)
        _add_pair(a, SOFT_TOTAL, v, b)
        _add_pair(a, SOFT_COST, v, cost)


@jit
def _add_exponentials(x: Array, e: Array, row: Any, pivot: Index, work: Any, ahead: Index) -> None:
    """Compute the exponentials of a row and add those of all classes but `pivot` to its lane.

    They are stored in e from `begin` on, unless e is empty.
    """
    s, a, first, classes, v = row.s, row.a, row.first, row.classes, row.lane
    norm = (s[SHIFT + v], s[MAGIC + v], s[LEAST + v])
    j = U0
    while j < classes:
        n = classes - j if classes - j < U2 * PART else PART
        to, at = (e, row.begin + j) if e.size else (work.part, U0)
        _exponentials(x, first + j, n, e=to, at=at, norm=norm, room=work.tail, ahead=ahead)
        if j <= pivot < j + n:
            saved = to[at + pivot - j]
            to[at + pivot - j] = 0.0
            part = _sum(to, at, n, work.mask, work.sums)
            to[at + pivot - j] = saved
        else:
            part = _sum(to, at, n, work.mask, work.sums)
        _add_pair(a, REST, v, part)
        j += n


@jit
def _scale(
    e: Array, at: Index, g: Array, first: Index, n: Index, f: Real, error: Real, past_caches: bool
) -> None:
    """g[first:first+n] = e[at:at+n] times the pair (f, error) in their dtype, n ≥ STEP.

    g may be e, with first = at, unless it is written past the caches.
    """
    # The last vector overlaps the one before it.
    last = load(e, at + n - L)
    last = fma(last, f, last * error)
    i = U0
    if past_caches:
        a = load(e, at)
        store(g, first, fma(a, f, a * error))
        i = before_alignment(g, first)
        while i + STEP <= n:
            a, b = load(e, at + i), load(e, at + i + L)
            c, d = load(e, at + i + U2 * L), load(e, at + i + U3 * L)
            stream(g, first + i, fma(a, f, a * error))
            stream(g, first + i + L, fma(b, f, b * error))
            stream(g, first + i + U2 * L, fma(c, f, c * error))
            stream(g, first + i + U3 * L, fma(d, f, d * error))
            i += STEP
    else:
        while i + STEP <= n:
            a, b = load(e, at + i), load(e, at + i + L)
            c, d = load(e, at + i + U2 * L), load(e, at + i + U3 * L)
            store(g, first + i, fma(a, f, a * error))
            store(g, first + i + L, fma(b, f, b * error))
            store(g, first + i + U2 * L, fma(c, f, c * error))
            store(g, first + i + U3 * L, fma(d, f, d * error))
            i += STEP
    while i + L <= n:
        a = load(e, at + i)
        store(g, first + i, fma(a, f, a * error))
        i += L
    store(g, first + n - L, last)


@jit
def _write_float32(
    e: Array,
    at: Index,
    g: Array,
    first: Index,
    n: Index,
    a: Array,
    v: Index,
    softmax: bool,
    past_caches: bool,
) -> None:
    """g[first:first+n] = e[at:at+n] times FACTOR of lane v, n ≥ STEP; see `_scale`."""
    factor = a[FACTOR + v]
    if not 1e-25 < abs(factor) < 1e25:  # it may underflow in float32, and its product may not
        for c in range(n):
            g[first + c] = np.float64(e[at + c]) * factor
        return
    f, error = np.float32(factor), np.float32(0.0)
    if softmax:  # with no error of the factor: the probabilities of a row add up to 1
        error = np.float32(factor - np.float64(f))
    _scale(e, at, g, first, n, f, error, past_caches)


@jit
def _write_float64(
    e: Array,
    at: Index,
    g: Array,
    first: Index,
    n: Index,
    a: Array,
    v: Index,
    softmax: bool,
    past_caches: bool,
) -> None:
    _scale(e, at, g, first, n, a[FACTOR + v], a[FACTOR_ERROR + v], past_caches)


_write = by_dtype(_write_float32, _write_float64)


@jit
def _soft_target_row(
    e: Array,
    g: Array,
    probs: Array,
    weight: Array,
    row: Any,
    to: Index,
    k: Any,
    work: Any,
) -> None:
    """g[to:to+classes] = the gradient of a row, whose exponentials are e[begin:begin+classes]."""
    a, v, first, begin, classes = row.a, row.lane, row.first, row.begin, row.classes
    terms, max_exp = gradient_terms(a, v), a[MAX_EXP + v]
    targets, weights, block = work.target, work.weight, work.block
    for j in range(U0, classes, U(BLOCK)):
        n = min(U(BLOCK), classes - j)
        _copy(targets, probs, first + j, n)
        _copy(weights, weight, j, n)
        for c in range(n):
            block[c] = e[begin + j + c]
        for c in range(n):
            x = block[c]
            block[c] = class_gradient(x, terms, targets[c], weights[c], x == max_exp, k)
        for c in range(n):
            g[to + j + c] = block[c]


@jit
def _log_softmax_row(x: Array, out: Array, first: Index, stop: Index, a: Array, v: Index) -> None:
    """out[first:stop] = log-softmax of the row in lane v."""
    m, log, log_error = a[MAX_64 + v], a[LOG + v], a[LOG_ERROR + v]
    for c in range(first, stop):
        out[c] = log_probability(np.float64(x[c]), m, log, log_error)


class Row(NamedTuple):
    """A row and its lane in the fields of `_lanes`."""

    s: Array
    a: Array
    first: Index  # index of its first class
    begin: Index  # index of its first exponential
    classes: Index
    lane: Index


@jit
def _group(classes: Index) -> Any:
    """The number of rows that are worked on together."""
    return max(U1, min(WIDTH, U(UNIT) // U(classes)))


@jit_allocating
def rows_scratch(job: Any) -> Any:
    """Scratch memory of `rows`: that of `_lanes`, and a `Workspace`."""
    soft = np.zeros((8, BLOCK))
    soft[1] = 1.0
    mask = zeros(job.x, 2 * LANES)
    mask[LANES:] = 1.0
    saved = _group(job.classes) * U(job.classes)
    if job.grad.size == 0 or job.log_softmax or saved * U(job.x.itemsize) > U(SAVED):
        saved = U0
    work = Workspace(
        part=zeros(job.x, 2 * PART),
        saved=zeros(job.x, saved),
        block=zeros(job.x, BLOCK),
        tail=zeros(job.x, STEP),
        mask=mask,
        sums=np.zeros(2 * LANES),
        target=soft[0],
        weight=soft[1],
        coefficients=soft[2],
        coefficient_errors=soft[3],
        costs=soft[4],
        cost_errors=soft[5],
        partial=soft[6],
        partial_errors=soft[7],
    )
    return scratch(job), work


@jit
def rows(begin_row: Index, end_row: Index, job: Any, room: Any) -> None:
    """Rows begin_row to end_row of a job with inner = 1; room is from `rows_scratch`."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    k = smoothing(job)
    soft = probs.size > 0 or k.off_value != 0.0
    labelled = job.labels.size > 0
    softmax = not labelled and probs.size == 0
    size = U(job.classes)
    (s, a, label, ignored), work = room
    group = _group(size)
    saved = work.saved
    in_grad = saved.size == 0
    exponentials = grad if in_grad else saved
    if job.log_softmax:
        exponentials = grad[:0]
    ahead = U0 if in_grad else group * size
    # Small rows are written past the caches together, as they begin and end within cache lines.
    staged = job.past_caches and group > U1 and not in_grad
    past_caches = job.past_caches and not staged and not in_grad
    end = U(end_row)
    for row in range(U(begin_row), end, group):
        n = min(group, end - row)
        any_ignored = read_rows(a, label, ignored, row, n, job)
        for v in range(n):
            if not (any_ignored and ignored[v]):
                s[MAX + v] = _maximum(x, (row + v) * size, size)
        begin(s, a, n, soft)
        for v in range(n):
            first = (row + v) * size
            if any_ignored and ignored[v]:
                continue
            at = first if in_grad else v * size
            one = Row(s=s, a=a, first=first, begin=at, classes=size, lane=v)
            if soft:
                _add_soft_target(x, probs, weight, one, k, work)
            pivot = size
            if labelled:
                a[LABEL_LOGIT + v] = x[first + label[v]]
            if labelled and x[first + label[v]] == s[MAX + v]:
                pivot = label[v]
            elif soft or not labelled:
                pivot = _find(x, first, size, s[MAX + v])
            # Before exponentials replace the logits, of which grad may be the memory.
            infinite = job.lse.size and s[MAX + v] == np.inf and not _any_nan(x, first, size)
            _add_exponentials(x, exponentials, one, pivot, work, ahead)
            if pivot == size:
                leave_out_maximum(a, v)
            if infinite:
                a[REST + v] = a[REST_ERROR + v] = 0.0  # the lse is ∞, not NaN
            if labelled and exponentials.size:
                a[LABEL_EXP + v] = exponentials[at + label[v]]
        any_ignored = finalize(s, a, ignored, any_ignored, row=row, n=n, k=k, job=job)
        if grad.size == 0:
            continue
        if softmax:
            softmax_factors(s, a, n)
        to = saved if staged else grad
        for v in range(n):
            first = (row + v) * size
            if job.log_softmax:
                _log_softmax_row(x, grad, first, first + size, a, v)
                continue
            at = first if in_grad else v * size
            place = at if staged else first
            if any_ignored and ignored[v]:
                to[place : place + size] = 0.0
                continue
            if soft:
                one = Row(s=s, a=a, first=first, begin=at, classes=size, lane=v)
                _soft_target_row(exponentials, to, probs, weight, row=one, to=place, k=k, work=work)
            else:
                _write(exponentials, at, to, place, size, a, v, softmax, past_caches)
            if labelled:
                to[place + label[v]] = a[LABEL_GRADIENT + v]
        if staged:
            stream_copy(saved, U0, grad, row * size, n * size)
    if job.past_caches:
        stream_fence()
