"""The kernel for binary cross-entropy: loss and gradient of flat arrays, in float64.

With positive = weight·pos_weight·t, negative = weight·(1 − t), q = exp(−|x|):

    loss     = positive·softplus(−x) + negative·softplus(x), softplus(v) = max(v, 0) + log1p(q)
    gradient = scale·(negative·sigmoid(x) − positive·sigmoid(−x)), sigmoid = 1/(1 + q) or q/(1 + q)

One pass over memory, in blocks of BLOCK elements, with 30 KiB of scratch memory per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import Index, Real, U, fma, jit, jit_allocating
from pyce._backends.numba._math import (
    exp_negative,
    finite_or_zero,
    log1p,
    scale_pair,
    two_product,
    two_sum,
)
from pyce._backends.numba._sums import BLOCK, PARTIAL, sum_float32
from pyce._types import Array


@jit
def _softplus_cost(b: Real, b_error: Real, x: Real, log: Real, log_error: Real) -> Any:
    """b·(max(x, 0) + log) as a pair, of pairs b and log; 0 if b = 0, also for x = inf."""
    cost, error = two_sum(max(x, 0.0), log)
    value, value_error = two_product(b, cost)
    value = 0.0 if b == 0.0 and cost == np.inf else value
    value_error = fma(b, error + log_error, fma(b_error, cost, value_error))
    return value, finite_or_zero(value_error)


@jit
def _scale_pairs(a: Array, a_error: Array, values: Array, first: Index, n: Index) -> None:
    """Multiply the pairs in a[:n] and a_error[:n] by values[first:first+n], unless it is empty."""
    if values.size:
        for i in range(n):
            a[i], a_error[i] = scale_pair(a[i], a_error[i], np.float64(values[first + i]))


@jit_allocating
def bernoulli_scratch(job: Any) -> Any:
    """Scratch memory of `bernoulli`."""
    return np.empty((7, BLOCK)), np.empty(PARTIAL)


@jit
def bernoulli(begin_block: Index, end_block: Index, job: Any, room: Any) -> None:
    """Blocks of BLOCK elements of a `BernoulliJob`; room is from `bernoulli_scratch`."""
    fields, partial = room
    logit, loss, slope = fields[0], fields[1], fields[2]
    positive, positive_error = fields[3], fields[4]
    negative, negative_error = fields[5], fields[6]
    for block in range(U(begin_block), U(end_block)):
        first = block * U(BLOCK)
        n = min(U(BLOCK), U(job.x.size) - first)
        for i in range(n):
            logit[i] = job.x[first + i]
            positive[i] = job.target[first + i]
            positive_error[i] = 0.0
            negative[i], negative_error[i] = two_sum(1.0, -positive[i])
        _scale_pairs(positive, positive_error, job.pos_weight, first, n)
        _scale_pairs(positive, positive_error, job.weight, first, n)
        _scale_pairs(negative, negative_error, job.weight, first, n)
        for i in range(n):
            x, u, v = logit[i], positive[i], negative[i]
            q = exp_negative(-abs(x))
            log, log_error, _ = log1p(q)
            first_cost, first_error = _softplus_cost(u, positive_error[i], -x, log, log_error)
            other_cost, other_error = _softplus_cost(v, negative_error[i], x, log, log_error)
            cost, error = two_sum(first_cost, other_cost)
            loss[i] = cost + finite_or_zero(error + (first_error + other_error))
            likely, unlikely = 1.0 / (1.0 + q), q / (1.0 + q)
            g = v * (unlikely if x < 0.0 else likely) - u * (likely if x < 0.0 else unlikely)
            slope[i] = g * job.scale
        if job.losses.size:
            for i in range(n):
                job.losses[first + i] = loss[i]
        if job.grad.size:
            for i in range(n):
                job.grad[first + i] = slope[i]
        job.sums[block] = sum_float32(loss, n, partial, partial)[0]
