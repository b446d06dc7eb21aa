"""The kernel for binary cross-entropy: loss and gradient of flat arrays, in float64.

With positive = pos_weight·t, negative = 1 − t, q = exp(−|x|):

    loss     = weight·(positive·softplus(−x) + negative·softplus(x))
    gradient = scale·weight·(negative·sigmoid(x) − positive·sigmoid(−x))
    softplus(v) = max(v, 0) + log1p(q),  sigmoid = 1/(1 + q) or q/(1 + q)

A product with a coefficient of 0 is 0, whatever the other factor is.

One pass over memory, in blocks of BLOCK elements, with 33 KiB of scratch memory per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import Index, Real, U, fma, jit, jit_allocating
from pyce._backends.numba._math import (
    EXPONENT_64,
    LOWEST_64,
    exp_float64,
    finite_or_zero,
    log1p,
    product_or_zero,
    scale_pair,
    scale_pair_or_zero,
    two_product,
    two_sum,
)
from pyce._backends.numba._sums import BLOCK, PARTIAL, sum_float32


@jit
def _softplus_cost(b: Real, b_error: Real, x: Real, log: Real, log_error: Real) -> Any:
    """b·(max(x, 0) + log) as a pair, of pairs b and log; 0 if one of them is 0."""
    cost, error = two_sum(max(x, 0.0), log)
    value, value_error = two_product(b, cost)
    value = 0.0 if (b == 0.0) | (cost == 0.0) else value
    value_error = fma(b, error + log_error, fma(b_error, cost, value_error))
    return value, finite_or_zero(value_error)


@jit_allocating
def bernoulli(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a `BernoulliJob`."""
    logit, loss, slope = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    positive, positive_error = np.empty(BLOCK), np.empty(BLOCK)
    negative, negative_error = np.empty(BLOCK), np.empty(BLOCK)
    weight = np.ones(BLOCK)
    partial = np.empty(PARTIAL)
    blocks = job.sums.size
    for block in range(blocks * piece // pieces, blocks * (piece + 1) // pieces):
        first = U(block) * U(BLOCK)
        n = min(U(BLOCK), U(job.x.size) - first)
        for i in range(n):
            logit[i] = job.x[first + i]
            positive[i] = job.target[first + i]
            positive_error[i] = 0.0
            negative[i], negative_error[i] = two_sum(1.0, -positive[i])
        if job.pos_weight.size:
            for i in range(n):
                positive[i], positive_error[i] = scale_pair_or_zero(
                    positive[i], 0.0, np.float64(job.pos_weight[first + i])
                )
        if job.weight.size:
            for i in range(n):
                weight[i] = job.weight[first + i]
        for i in range(n):
            x, u, v, w = logit[i], positive[i], negative[i], weight[i]
            nothing = (w == 0.0) | ((u == 0.0) & (v == 0.0))
            q = exp_float64(-abs(x), 0.0, LOWEST_64, EXPONENT_64)
            log, log_error, _ = log1p(q)
            first_cost, first_error = _softplus_cost(u, positive_error[i], -x, log, log_error)
            other_cost, other_error = _softplus_cost(v, negative_error[i], x, log, log_error)
            cost, error = two_sum(first_cost, other_cost)
            error = finite_or_zero(error + (first_error + other_error))
            cost, error = scale_pair(cost, error, w)
            loss[i] = 0.0 if nothing else cost + finite_or_zero(error)
            likely, unlikely = 1.0 / (1.0 + q), q / (1.0 + q)
            g = product_or_zero(v, unlikely if x < 0.0 else likely)
            g -= product_or_zero(u, likely if x < 0.0 else unlikely)
            slope[i] = 0.0 if nothing else g * w * job.scale
        if job.losses.size:
            for i in range(n):
                job.losses[first + i] = loss[i]
        if job.grad.size:
            for i in range(n):
                job.grad[first + i] = slope[i]
        job.sums[block] = sum_float32(loss, n, partial, partial)[0]
