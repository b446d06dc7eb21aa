"""The kernel for many contiguous classes: vector lanes are neighbouring classes of one row.

Three passes over a row: the maximum; exponentials, their sum and the soft-target term, in blocks of
BLOCK classes; the gradient, from exponentials that the second pass left in `grad`. Rows up to some
thousand classes go through each pass in groups, so that the rows of a group are lanes of
`finalize`.

Scratch memory is some 80 KiB per thread, whatever the number of classes. The row is read before its
gradient is written, so grad may be x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyce._backends.numba._jit import (
    U0,
    U1,
    Index,
    Real,
    U,
    bits,
    by_dtype,
    fma,
    from_bits,
    jit,
    jit_allocating,
)
from pyce._backends.numba._lanes import (
    EXPONENT,
    FACTOR,
    FACTOR_ERROR,
    LABEL_EXP,
    LABEL_GRADIENT,
    LABEL_LOGIT,
    LANES,
    LOG,
    LOG_ERROR,
    LOWEST,
    MAX,
    MAX_64,
    MAX_EXP,
    REST,
    REST_ERROR,
    SHIFT,
    SOFT_COST,
    SOFT_TOTAL,
    TIES,
    begin,
    class_gradient,
    coefficient_float32,
    coefficient_float64,
    cost_float32,
    cost_float64,
    finalize,
    gradient_terms,
    log_probability,
    read_rows,
    scratch,
    smoothing,
    zeros,
)
from pyce._backends.numba._math import exp, finite_or_zero, two_sum
from pyce._backends.numba._sums import BLOCK, sum_float32, sum_float64, sum_terms
from pyce._types import Array


class SoftTarget(NamedTuple):
    """Workspace for one block of classes, float64 (BLOCK,) each; the last two of size PARTIAL."""

    target: Array  # target probabilities; stay 0 without them
    weight: Array  # class weights; stay 1 without them
    coefficients: Array
    coefficient_errors: Array
    costs: Array
    cost_errors: Array
    partial: Array
    partial_errors: Array


@jit
def _maximum_float32(x: Array, first: Index, stop: Index) -> Any:
    """The maximum of x[first:stop]; NaN may count as the largest or the smallest."""
    best = np.int32(-(2**31))
    for c in range(first, stop):
        i = bits(x[c])
        # From sign and magnitude to two's complement: integers in the order of the floats.
        best = max(best, np.int32(i ^ (np.int32(i >> 31) & np.int32(0x7FFFFFFF))))
    return from_bits(np.int32(best ^ (np.int32(best >> 31) & np.int32(0x7FFFFFFF))))


@jit
def _maximum_float64(x: Array, first: Index, stop: Index) -> Real:
    best = -(2**63)
    for c in range(first, stop):
        i = bits(x[c])
        best = max(best, i ^ ((i >> 63) & 0x7FFFFFFFFFFFFFFF))
    return from_bits(best ^ ((best >> 63) & 0x7FFFFFFFFFFFFFFF))


_maximum = by_dtype(_maximum_float32, _maximum_float64)


@jit
def _add_pair(a: Array, field: Index, v: Index, value: Any) -> None:
    """Add a pair to the pair in `field` of lane v."""
    total, error = two_sum(a[field + v], value[0])
    a[field + v] = total
    a[field + LANES + v] += value[1] + finite_or_zero(error)


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
def _row_sums(
    x: Array,
    grad: Array,
    probs: Array,
    weight: Array,
    first: Index,
    classes: Index,
    soft: bool,
    store: bool,
    k: Any,
    block: Array,
    terms: Array,
    work: Any,
    s: Array,
    a: Array,
    v: Index,
) -> None:
    """The sums over the row x[first:first+classes] into lane v of a.

    If `store` is set, the exponentials go to grad. block and terms (BLOCK,) are workspace.
    """
    m, shift, lowest, exponent = s[MAX + v], s[SHIFT + v], s[LOWEST + v], s[EXPONENT + v]
    zero = x.dtype.type(0.0)
    a[REST + v], a[REST_ERROR + v], a[TIES + v] = 0.0, 0.0, 0.0
    for j in range(U0, classes, U(BLOCK)):
        n = min(U(BLOCK), classes - j)
        if soft:
            for c in range(n):
                block[c] = x[first + j + c]
            _copy(work.target, probs, first + j, n)
            _copy(work.weight, weight, j, n)
            total, cost = _soft_target_sums(block, n, a[MAX_64 + v], k, work)
            _add_pair(a, SOFT_TOTAL, v, total)
            _add_pair(a, SOFT_COST, v, cost)
        ties = np.int32(0)
        for c in range(n):
            z = x[first + j + c]
            e = exp(z, shift, lowest, exponent)
            block[c] = e
            terms[c] = zero if z == m else e
            ties = np.int32(ties + (1 if z == m else 0))
        a[TIES + v] += ties
        _add_pair(a, REST, v, sum_terms(terms, n, work.partial, work.partial_errors))
        if store:
            for c in range(n):
                grad[first + j + c] = block[c]


@jit
def _off_target_row_float32(
    g: Array, first: Index, stop: Index, factor: Real, factor_error: Real
) -> None:
    """Replace exponentials g[first:stop] by the gradient for b = 0: times the pair `factor`."""
    if not 1e-25 < abs(factor) < 1e25:
        for c in range(first, stop):
            g[c] = np.float64(g[c]) * factor
        return
    # Neither part underflows: two float32 have the digits that are needed.
    high = np.float32(factor)
    low = np.float32(factor - high)
    for c in range(first, stop):
        g[c] = fma(g[c], high, g[c] * low)


@jit
def _off_target_row_float64(
    g: Array, first: Index, stop: Index, factor: Real, factor_error: Real
) -> None:
    for c in range(first, stop):
        g[c] = fma(g[c], factor, g[c] * factor_error)


_off_target_row = by_dtype(_off_target_row_float32, _off_target_row_float64)


@jit
def _soft_target_row(
    grad: Array,
    probs: Array,
    weight: Array,
    first: Index,
    classes: Index,
    k: Any,
    block: Array,
    work: Any,
    a: Array,
    v: Index,
) -> None:
    """Replace exponentials grad[first:first+classes], the row in lane v, by the gradient."""
    row, max_exp = gradient_terms(a, v), a[MAX_EXP + v]
    targets, weights = work.target, work.weight
    for j in range(U0, classes, U(BLOCK)):
        n = min(U(BLOCK), classes - j)
        _copy(targets, probs, first + j, n)
        _copy(weights, weight, j, n)
        for c in range(n):
            block[c] = grad[first + j + c]
        for c in range(n):
            e = block[c]
            block[c] = class_gradient(e, row, targets[c], weights[c], e == max_exp, k)
        for c in range(n):
            grad[first + j + c] = block[c]


@jit
def _log_softmax_row(x: Array, out: Array, first: Index, stop: Index, a: Array, v: Index) -> None:
    """out[first:stop] = log-softmax of the row in lane v."""
    m, log, log_error = a[MAX_64 + v], a[LOG + v], a[LOG_ERROR + v]
    for c in range(first, stop):
        out[c] = log_probability(np.float64(x[c]), m, log, log_error)


@jit_allocating
def rows(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a job with inner = 1."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    outer, classes = job.outer, job.classes
    k = smoothing(job)
    soft = probs.size > 0 or k.off_value != 0.0
    labelled = job.labels.size > 0
    size = U(classes)
    s, a, label, ignored = scratch(job)
    block, terms = zeros(x, BLOCK), zeros(x, BLOCK)
    room = np.zeros((8, BLOCK))
    room[1] = 1.0
    work = SoftTarget(
        target=room[0],
        weight=room[1],
        coefficients=room[2],
        coefficient_errors=room[3],
        costs=room[4],
        cost_errors=room[5],
        partial=room[6],
        partial_errors=room[7],
    )
    group = U(max(1, min(32, 8192 // classes)))
    last = U(outer * (piece + 1) // pieces)
    for row in range(U(outer * piece // pieces), last, group):
        n = min(group, last - row)
        any_ignored = read_rows(a, label, ignored, row, n, job)
        for v in range(n):
            if not (any_ignored and ignored[v]):
                s[MAX + v] = _maximum(x, (row + v) * size, (row + v + U1) * size)
        begin(s, a, n, soft)
        for v in range(n):
            first = (row + v) * size
            if any_ignored and ignored[v]:
                continue
            if labelled:
                a[LABEL_LOGIT + v] = x[first + label[v]]
            store = grad.size > 0 and not job.log_softmax
            _row_sums(
                x,
                grad=grad,
                probs=probs,
                weight=weight,
                first=first,
                classes=size,
                soft=soft,
                store=store,
                k=k,
                block=block,
                terms=terms,
                work=work,
                s=s,
                a=a,
                v=v,
            )
            if labelled and store:
                a[LABEL_EXP + v] = grad[first + label[v]]
        any_ignored = finalize(s, a, ignored, any_ignored, row, n, k, job)
        if grad.size == 0:
            continue
        for v in range(n):
            first = (row + v) * size
            if job.log_softmax:
                _log_softmax_row(x, grad, first, first + size, a, v)
            elif any_ignored and ignored[v]:
                grad[first : first + size] = 0.0
            else:
                if soft:
                    _soft_target_row(
                        grad,
                        probs=probs,
                        weight=weight,
                        first=first,
                        classes=size,
                        k=k,
                        block=block,
                        work=work,
                        a=a,
                        v=v,
                    )
                else:
                    factor, factor_error = a[FACTOR + v], a[FACTOR_ERROR + v]
                    _off_target_row(grad, first, first + size, factor, factor_error)
                if labelled:
                    grad[first + label[v]] = a[LABEL_GRADIENT + v]
