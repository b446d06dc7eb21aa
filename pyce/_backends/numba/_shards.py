"""The kernels for rows whose classes are cut into shards: `partial_rows` and `complete_rows`.

They are simple loops over the classes, in float64 for logits of any dtype. The state of a row after
the classes of a shard are STATE numbers: the largest logit m_s; the logit at the label, 0 where
that is in another shard; and as pairs the sum of the exponentials of the other classes, relative to
m_s, and both sums of the soft-target term. With m the largest of all m_s, that of the shard k, and
e_s = exp(m_s − m):

    R            = R_k + Σ_{s≠k} (1 + R_s)·e_s
    Σ b·(m − x)  = Σ_s (Σ_{c of s} b_c·(m_s − x_c) + (m − m_s)·Σ_{c of s} b_c)

where 0 replaces an m_s that is not finite in the second formula. Exponentials and R are 2⁶⁰ times
too large, as in `_math`. What follows from the sums is the work of `_lanes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyce._backends.numba._jit import (
    U0,
    U1,
    U2,
    U4,
    Index,
    Real,
    U,
    fma,
    jit,
    jit_allocating,
)
from pyce._backends.numba._lanes import (
    FACTOR,
    FACTOR_ERROR,
    LABEL_EXP,
    LABEL_GRADIENT,
    LABEL_LOGIT,
    LEAST,
    MAGIC,
    MAX,
    REST,
    REST_ERROR,
    SHIFT,
    SOFT_COST,
    SOFT_COST_ERROR,
    SOFT_TOTAL,
    SOFT_TOTAL_ERROR,
    WIDTH,
    begin,
    class_gradient,
    coefficient_float64,
    cost_float64,
    finalize,
    gradient_terms,
    read_rows,
    scratch,
    smoothing,
)
from pyce._backends.numba._math import (
    BIAS_FACTOR,
    UNBIAS,
    exp_float64,
    finite_or_zero,
    normaliser,
    scale_pair,
    two_sum,
)
from pyce._types import Array

# The numbers of a row's state.
STATE = 8
_MAXIMUM, _LABEL, _REST, _TOTAL, _COST = U0, U1, U2, U4, U(6)
_NUMBERS = U(STATE)


class ShardJob(NamedTuple):
    """The rows of a shard, in flat, contiguous arrays; any array except x may be empty.

    The fields that `Job` has as well have the same meaning.
    """

    x: Array  # float64, empty: the dtype of the lanes
    logits: Array  # float32 or float64 (rows, own)
    grad: Array  # of that shape and dtype
    labels: Array  # counted from the first of all classes
    probs: Array  # float32 or float64 (rows, own); if own is 0, of one number
    weight: Array  # empty, as the next two
    sample_weight: Array
    saved_lse: Array
    scale: Array  # float64 (1,)
    losses: Array
    lse: Array  # empty
    smoothing: Array
    state: Array  # float64 (rows, STATE), written by `partial_rows`
    states: Array  # float64 (shards, rows, STATE), read by `complete_rows`
    ignore_index: Index
    first: Index  # the first class of the shard, and the number of its classes
    own: Index
    rows: Index
    shards: Index
    bounds: Array  # int64 (shards + 1,): the first class of each shard


@jit_allocating
def shards_scratch(job: Any) -> Any:
    """Scratch memory of both kernels."""
    return scratch(job)


@jit
def _add(pair: Any, value: Real, value_error: Real) -> Any:
    """The sum of two pairs. Where it is infinite it has no error."""
    total, error = two_sum(pair[0], value)
    return total, pair[1] + (finite_or_zero(error) + value_error)


@jit
def _put(state: Array, at: Index, pair: Any) -> None:
    state[at] = pair[0]
    state[at + U1] = pair[1]


@jit
def _soft_sums(job: Any, begin_at: Index, end_at: Index, m: Real, k: Any) -> Any:
    """Σ b and Σ b·(m − x) of some logits, as pairs."""
    total, cost = (0.0, 0.0), (0.0, 0.0)
    t = 0.0
    for c in range(begin_at, end_at):
        if job.probs.size:
            t = np.float64(job.probs[c])
        b, b_error = coefficient_float64(t, 1.0, k)
        of_class, error = cost_float64(b, b_error, m, np.float64(job.logits[c]))
        total = _add(total, b, b_error)
        cost = _add(cost, of_class, error)
    return total, cost


@jit
def partial_rows(begin_row: Index, end_row: Index, job: Any, room: Any) -> None:
    """Write the states of rows begin_row to end_row."""
    k = smoothing(job)
    own, logits = U(job.own), job.logits
    soft = job.probs.size > 0 or k.off_value != 0.0
    for row in range(U(begin_row), U(end_row)):
        state = job.state[row * _NUMBERS : (row + U1) * _NUMBERS]
        for i in range(_NUMBERS):
            state[i] = 0.0
        if job.labels.size and job.labels[row] == job.ignore_index:
            continue
        first, last = row * own, (row + U1) * own
        m = -np.inf
        for c in range(first, last):
            x = np.float64(logits[c])
            if x > m or x != x:
                m = x
        shift, magic, least = normaliser(m)
        rest = (0.0, 0.0)
        at_maximum = 0.0
        for c in range(first, last):
            x = np.float64(logits[c])
            if x == m:
                at_maximum += 1.0
            else:
                rest = _add(rest, exp_float64(x, shift, magic, least), 0.0)
        if at_maximum > 1.0:
            rest = _add(rest, (at_maximum - 1.0) * BIAS_FACTOR, 0.0)
        state[_MAXIMUM] = m
        _put(state, _REST, rest)
        if job.labels.size:
            label = job.labels[row]
            if job.first <= label < job.first + job.own:
                state[_LABEL] = np.float64(logits[first + U(label - job.first)])
        if soft:
            total, cost = _soft_sums(job, first, last, finite_or_zero(m), k)
            _put(state, _TOTAL, total)
            _put(state, _COST, cost)


@jit
def _combine(job: Any, row: Index, v: Index, s: Array, a: Array) -> None:
    """Fill the sums of lane v, whose maximum is in s, from the states of a row."""
    m = s[MAX + v]
    rest, total, cost = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    has_maximum = False
    for shard in range(U(job.shards)):
        at = (shard * U(job.rows) + row) * _NUMBERS
        state = job.states[at : at + _NUMBERS]
        of_shard = state[_MAXIMUM]
        if of_shard == m and not has_maximum:
            has_maximum = True
            rest = _add(rest, state[_REST], state[_REST + U1])
        elif of_shard != -np.inf:
            value, error = _add((state[_REST], state[_REST + U1]), BIAS_FACTOR, 0.0)
            _, magic, least = normaliser(m)
            e = exp_float64(of_shard, m, magic, least) * UNBIAS
            value, error = scale_pair(value, error, e)
            rest = _add(rest, value, finite_or_zero(error))
        total = _add(total, state[_TOTAL], state[_TOTAL + U1])
        cost = _add(cost, state[_COST], state[_COST + U1])
        top = finite_or_zero(of_shard)
        value, error = cost_float64(state[_TOTAL], state[_TOTAL + U1], m, top)
        cost = _add(cost, value, error)
        if job.labels.size:
            label = job.labels[row]
            if job.bounds[shard] <= label < job.bounds[shard + U1]:
                a[LABEL_LOGIT + v] = state[_LABEL]
    a[REST + v], a[REST_ERROR + v] = rest
    a[SOFT_TOTAL + v], a[SOFT_TOTAL_ERROR + v] = total
    a[SOFT_COST + v], a[SOFT_COST_ERROR + v] = cost


@jit
def _write_row(job: Any, row: Index, v: Index, s: Array, a: Array, k: Any) -> None:
    """The gradient of the own classes of a row, which is in lane v."""
    own, logits, grad = U(job.own), job.logits, job.grad
    soft = job.probs.size > 0 or k.off_value != 0.0
    m, shift, magic, least = s[MAX + v], s[SHIFT + v], s[MAGIC + v], s[LEAST + v]
    factor, factor_error = a[FACTOR + v], a[FACTOR_ERROR + v]
    terms = gradient_terms(a, v)
    first = row * own
    t = 0.0
    for c in range(first, first + own):
        x = np.float64(logits[c])
        e = exp_float64(x, shift, magic, least)
        if soft:
            if job.probs.size:
                t = np.float64(job.probs[c])
            grad[c] = class_gradient(e, terms, t, 1.0, x == m, k)
        else:
            grad[c] = fma(e, factor, e * factor_error)
    if job.labels.size:
        label = job.labels[row]
        if job.first <= label < job.first + job.own:
            grad[first + U(label - job.first)] = a[LABEL_GRADIENT + v]


@jit
def complete_rows(begin_row: Index, end_row: Index, job: Any, room: Any) -> None:
    """Losses of rows begin_row to end_row from their states, and the gradient if it has memory."""
    k = smoothing(job)
    s, a, label, ignored = room
    own, end = U(job.own), U(end_row)
    for row in range(U(begin_row), end, WIDTH):
        n = min(WIDTH, end - row)
        any_ignored = read_rows(a, label, ignored, row, n, job)
        for v in range(n):
            m = -np.inf
            for shard in range(U(job.shards)):
                of_shard = job.states[(shard * U(job.rows) + row + v) * _NUMBERS]
                if of_shard > m or of_shard != of_shard:
                    m = of_shard
            s[MAX + v] = m
        begin(s, a, n, True)
        for v in range(n):
            _combine(job, row + v, v, s, a)
            shift, magic, least = s[SHIFT + v], s[MAGIC + v], s[LEAST + v]
            a[LABEL_EXP + v] = exp_float64(a[LABEL_LOGIT + v], shift, magic, least)
        any_ignored = finalize(s, a, ignored, any_ignored, row=row, n=n, k=k, job=job)
        if job.grad.size == 0:
            continue
        for v in range(n):
            if any_ignored and ignored[v]:
                job.grad[(row + v) * own : (row + v + U1) * own] = 0.0
            else:
                _write_row(job, row + v, v, s, a, k)
