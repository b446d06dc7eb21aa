"""The formulas of a row, for many rows at a time.

A *lane* is a row in `_tiles`, and a group of rows in `_rows` becomes lanes once the sums over their
classes are known. The compiler turns loops over lanes into vector instructions.

Scratch memory is two flat arrays of fields, each field WIDTH numbers long: `s` in the dtype of the
logits, and `a` in float64. `s[MAX + v]` is field MAX of lane v. Fields named ..._ERROR hold the
second number of a pair and directly follow the first.

float32: exponentials are float32, everything else is float64, and errors of float64 operations do
not count. float64: sums and products are pairs. Functions ending in _float32 and _float64 differ in
this alone.
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
    by_dtype,
    fma,
    jit,
    jit_allocating,
)
from pyce._backends.numba._job import Smoothing
from pyce._backends.numba._math import (
    UNBIAS,
    exp,
    finite_or_zero,
    log1p,
    log1p_short,
    normaliser,
    product_or_zero,
    scale_pair,
    scale_pair_or_zero,
    two_product,
    two_sum,
    unit_float32,
)
from pyce._backends.numba._vectors import LANES, load, spread, store, widen
from pyce._types import Array

_SMALLEST = 2.0**-1022  # positive normal number of float64
# Rows at a time. All fields of so many rows stay in the nearest cache.
WIDTH = U(64)


def fields(count: int) -> list[Any]:
    """The places of fields in scratch memory, each WIDTH numbers long."""
    return [U(i) * WIDTH for i in range(count)]


# Fields of s: the maximum, and the normaliser of exponentials; in `_tiles` the label, −1 without,
# and the class that is left out of the sum, −1 if there is none.
MAX, SHIFT, MAGIC, LEAST, LABEL, PIVOT = fields(6)

# Fields of a.
(
    REST,  # sum of the exponentials without the pivot's; R after `finalize`
    REST_ERROR,
    SOFT_TOTAL,  # Σ b of the soft-target term: target probabilities, or ε/C of smoothing
    SOFT_TOTAL_ERROR,
    SOFT_COST,  # Σ b·(m − x) of that term
    SOFT_COST_ERROR,
    MAX_64,  # m
    TARGET,  # target probabilities of one class
    WEIGHT,  # class weights of that class
    LABEL_WEIGHT,  # class weight of the label; without labels 0, for softmax 1
    _LSE_WEIGHT,  # w of the term λ·w·lse²: class weight of the label; without labels 1
    LABEL_LOGIT,
    LABEL_EXP,
    _SAMPLE_WEIGHT,
    _SCALE,  # factor of the gradient
    _NAN,  # NaN if the saved lse is not finite, else 0
    _LOSS,
    _LSE,
    LOG,  # log1p(R), R relative to the exponential of the maximum
    LOG_ERROR,
    FACTOR,  # scale·(A + 2λ·w·lse)/S: exponentials times this are scale·(A + 2λ·w·lse)·p
    FACTOR_ERROR,
    _COMPLEMENT,  # scale·(A·R − 2λ·w·lse)/S
    _ON_TERM,  # b of the label without the soft-target term
    _ON_TERM_ERROR,
    MAX_EXP,  # the exponential of the maximum
    LABEL_GRADIENT,
    _TOTAL,  # A = Σ b
    _TOTAL_ERROR,
) = fields(29)
_S_SIZE, _A_SIZE = int(PIVOT + WIDTH), int(_TOTAL_ERROR + WIDTH)

# ---------------------------------------------------------------------------------------------
# Sums over classes


@jit
def begin(s: Array, a: Array, n: Index, soft: bool) -> None:
    """Initialise the sums of lanes 0..n, whose maximum is in s.

    `soft` says whether there is a soft-target term.
    """
    # Whole vectors: lanes past the last row hold numbers that nobody reads.
    for v in range(U0, n, LANES):
        m = load(s, MAX + v)
        shift, magic, least = normaliser(m)
        store(s, SHIFT + v, shift)
        store(s, MAGIC + v, magic)
        store(s, LEAST + v, least)
        store(a, MAX_64 + v, widen(m))
        store(a, MAX_EXP + v, widen(exp(m, shift, magic, least)))
        store(a, REST + v, spread(0.0))
        store(a, REST_ERROR + v, spread(0.0))
    if soft:
        for v in range(n):
            a[SOFT_TOTAL + v] = 0.0
            a[SOFT_TOTAL_ERROR + v] = 0.0
            a[SOFT_COST + v] = 0.0
            a[SOFT_COST_ERROR + v] = 0.0


@jit
def leave_out_maximum(a: Array, v: Index) -> None:
    """Subtract the exponential of the maximum from the sum of lane v, which contains it.

    This loses digits of a sum that is small without it, which are needed only if the label is the
    maximum. Otherwise the loss is at least the distance between the two.
    """
    rest, error = two_sum(a[REST + v], -a[MAX_EXP + v])
    a[REST + v] = rest
    a[REST_ERROR + v] += error


# ---------------------------------------------------------------------------------------------
# The soft-target term: target probabilities, or what smoothing gives to every class


@jit
def coefficient_float32(t: Real, weight: Real, k: Any) -> Real:
    """b = weight·((1 − ε)·t + ε/C); 0 if a factor is, whatever the other is."""
    t = 0.0 if k.on_value == 0.0 else t
    return product_or_zero(weight, fma(t, k.on_value, k.off_value))


@jit
def coefficient_float64(t: Real, weight: Real, k: Any) -> Any:
    """b = weight·((1 − ε)·t + ε/C) as a pair; 0 if a factor is, whatever the other is."""
    u, u_error = scale_pair_or_zero(k.on_value, k.on_error, t)
    u, error = two_sum(u, k.off_value)
    return scale_pair_or_zero(u, u_error + (error + k.off_error), weight)


@jit
def cost_float32(b: Real, m: Real, x: Real) -> Real:
    """b·(m − x); 0 if b = 0, also for x = −inf, and if x = m, also for an infinite b."""
    return product_or_zero(b, m - x)


@jit
def cost_float64(b: Real, b_error: Real, m: Real, x: Real) -> Any:
    """b·(m − x) as a pair; 0 if b = 0 or x = m, as `cost_float32`."""
    gap, gap_error = two_sum(m, -x)
    cost, error = two_product(b, gap)
    error = finite_or_zero(error + fma(b, gap_error, b_error * gap))
    return 0.0 if (b == 0.0) | (gap == 0.0) else cost, 0.0 if b == 0.0 else error


@jit
def _add_soft_target_float32(logits: Array, a: Array, first: Index, n: Index, k: Any) -> None:
    """Add b and b·(m − x) of one class, logits[:n], to the lanes of a from `first` on."""
    for i in range(n):
        v = first + i
        b = coefficient_float32(a[TARGET + v], a[WEIGHT + v], k)
        a[SOFT_TOTAL + v] += b
        a[SOFT_COST + v] += cost_float32(b, a[MAX_64 + v], np.float64(logits[i]))


@jit
def _add_soft_target_float64(logits: Array, a: Array, first: Index, n: Index, k: Any) -> None:
    for i in range(n):
        v = first + i
        b, b_error = coefficient_float64(a[TARGET + v], a[WEIGHT + v], k)
        cost, cost_error = cost_float64(b, b_error, a[MAX_64 + v], logits[i])
        total, error = two_sum(a[SOFT_TOTAL + v], b)
        a[SOFT_TOTAL + v] = total
        a[SOFT_TOTAL_ERROR + v] += error + b_error
        total, error = two_sum(a[SOFT_COST + v], cost)
        a[SOFT_COST + v] = total
        a[SOFT_COST_ERROR + v] += finite_or_zero(error) + cost_error


add_soft_target = by_dtype(_add_soft_target_float32, _add_soft_target_float64)

# ---------------------------------------------------------------------------------------------
# Loss and factors of the gradient from the sums


@jit
def _distance(log: Real, total: Real) -> Real:
    """log S, positive even if it is rounded to 0, so that A = ∞ makes the loss infinite."""
    return log + _SMALLEST if abs(total) == np.inf else log


@jit
def _finalize_lanes_float32(s: Array, a: Array, n: Index, k: Any) -> None:
    """Loss, lse and the factors of the gradient from the sums of lanes 0..n.

    `s` selects the function by its dtype. The fields for errors that only float64 needs stay 0.
    """
    for v in range(n):
        m = a[MAX_64 + v]
        invalid = m - m  # NaN if the maximum is not finite, else 0
        unit = unit_float32(m)
        rest = (a[REST + v] + a[REST_ERROR + v]) * unit
        log = log1p_short(rest)
        log += rest - rest  # NaN if a logit is: the maximum may not show it
        a[LOG + v] = log + invalid
        a[_LSE + v] = m + log
        on_term = product_or_zero(a[LABEL_WEIGHT + v], k.on_value)
        total = a[SOFT_TOTAL + v] + on_term
        a[_ON_TERM + v] = on_term
        a[_TOTAL + v] = total
        cost = product_or_zero(on_term, m - a[LABEL_LOGIT + v])
        loss = fma(total, _distance(log, total), cost) + a[SOFT_COST + v]
        factor = total * a[_SCALE + v] / (1.0 + rest) + (invalid + a[_NAN + v])
        a[_COMPLEMENT + v] = factor * rest
        if k.lse_square_scale != 0.0:
            lse_scale = product_or_zero(k.lse_square_scale, a[_LSE_WEIGHT + v])
            lse_term = product_or_zero(lse_scale, m + log)
            loss += product_or_zero(lse_term, m + log)
            added = product_or_zero(2.0 * lse_term, a[_SCALE + v]) / (1.0 + rest)
            a[_COMPLEMENT + v] -= added
            factor += added
        a[_LOSS + v] = loss * a[_SAMPLE_WEIGHT + v] + invalid
        a[FACTOR + v] = factor * unit


@jit
def _finalize_lanes_float64(s: Array, a: Array, n: Index, k: Any) -> None:
    for v in range(n):
        m = a[MAX_64 + v]
        invalid = m - m
        rest, rest_error = two_sum(a[REST + v] * UNBIAS, a[REST_ERROR + v] * UNBIAS)
        log, log_error, inverse = log1p(rest)
        log_error += rest_error * inverse
        a[LOG + v] = log + invalid
        a[LOG_ERROR + v] = log_error
        lse, lse_error = two_sum(m, log)
        lse_error += log_error
        a[_LSE + v] = lse + finite_or_zero(lse_error)

        on_term, on_term_error = scale_pair_or_zero(k.on_value, k.on_error, a[LABEL_WEIGHT + v])
        total, total_error = two_sum(a[SOFT_TOTAL + v], on_term)
        total_error = finite_or_zero(total_error + (on_term_error + a[SOFT_TOTAL_ERROR + v]))
        a[_ON_TERM + v] = on_term
        a[_ON_TERM_ERROR + v] = on_term_error
        a[_TOTAL + v] = total
        a[_TOTAL_ERROR + v] = total_error

        loss, loss_error = two_product(total, _distance(log, total))
        loss_error += fma(total, log_error, total_error * log)
        gap, gap_error = two_sum(m, -a[LABEL_LOGIT + v])
        cost, error = two_product(on_term, gap)
        error = finite_or_zero(error + fma(on_term, gap_error, on_term_error * gap))
        cost = 0.0 if (on_term == 0.0) | (gap == 0.0) else cost
        cost_error = 0.0 if on_term == 0.0 else error
        loss, error = two_sum(loss, cost)
        loss_error += finite_or_zero(error) + cost_error
        loss, error = two_sum(loss, a[SOFT_COST + v])
        loss_error += finite_or_zero(error) + a[SOFT_COST_ERROR + v]
        lse_term, lse_term_error = 0.0, 0.0  # λ·w·lse
        if k.lse_square_scale != 0.0:
            weight = a[_LSE_WEIGHT + v]
            weight, weight_error = scale_pair_or_zero(k.lse_square_scale, 0.0, weight)
            lse_term, error = scale_pair_or_zero(weight, weight_error, lse)
            lse_term_error = finite_or_zero(fma(weight, lse_error, error))
            square, error = scale_pair_or_zero(lse_term, lse_term_error, lse)
            loss_error += finite_or_zero(fma(lse_term, lse_error, error))
            loss, error = two_sum(loss, square)
            loss_error += finite_or_zero(error)
        sample_weight = a[_SAMPLE_WEIGHT + v]
        loss, error = two_product(loss, sample_weight)
        a[_LOSS + v] = loss + finite_or_zero(fma(loss_error, sample_weight, error)) + invalid

        # scale·A/S by one step of long division.
        sum_, sum_error = two_sum(1.0, rest)
        sum_error += rest_error
        scaled, scaled_error = scale_pair(total, total_error, a[_SCALE + v])
        factor = scaled * inverse + (invalid + a[_NAN + v])
        factor_error = (fma(-factor, sum_, scaled) + scaled_error - factor * sum_error) * inverse
        factor_error = finite_or_zero(factor_error)
        error = finite_or_zero(fma(factor, rest_error, factor_error * rest))
        a[_COMPLEMENT + v] = fma(factor, rest, error)
        a[FACTOR + v] = factor * UNBIAS
        a[FACTOR_ERROR + v] = factor_error * UNBIAS
        if k.lse_square_scale != 0.0:
            # scale·2λ·w·lse/S in the same way.
            scaled, scaled_error = scale_pair_or_zero(lse_term, lse_term_error, 2.0 * a[_SCALE + v])
            added = scaled * inverse + (invalid + a[_NAN + v])
            error = (fma(-added, sum_, scaled) + scaled_error - added * sum_error) * inverse
            added_error = finite_or_zero(error)
            a[_COMPLEMENT + v] -= added + added_error
            factor, error = two_sum(factor, added)
            error = finite_or_zero(error) + (factor_error + added_error)
            a[FACTOR + v] = factor * UNBIAS
            a[FACTOR_ERROR + v] = error * UNBIAS


_finalize_lanes = by_dtype(_finalize_lanes_float32, _finalize_lanes_float64)


def count_valid(labels: Array, ignore_index: int, classes: int) -> int:
    """The number of labels that are not `ignore_index`; −1 if one of them is no class.

    Not decorated: `_launch` compiles it with a file in Numba's cache.
    """
    valid, wrong = 0, 0
    for row in range(U(labels.size)):
        y = labels[row]
        valid += 1 if y != ignore_index else 0
        wrong += 1 if (y < 0 or y >= classes) and y != ignore_index else 0
    return -1 if wrong else valid


@jit
def read_rows(a: Array, label: Array, ignored: Array, row: Index, n: Index, job: Any) -> bool:
    """Read everything about rows row:row+n except their logits. Are some of them ignored?

    Fields of arrays that are empty keep the value of `scratch`. An ignored row is computed as if
    its label were 0, and its results are overwritten.
    """
    if job.sample_weight.size:
        for v in range(n):
            a[_SAMPLE_WEIGHT + v] = job.sample_weight[row + v]
    if job.scale.size > 1:
        for v in range(n):
            a[_SCALE + v] = job.scale[row + v]
    elif job.scale.size:
        # That of the whole job, or of the only row of a part: `scratch` knew that of another row.
        for v in range(n):
            a[_SCALE + v] = job.scale[U0]
    if job.saved_lse.size:
        for v in range(n):
            a[_NAN + v] = job.saved_lse[row + v] - job.saved_lse[row + v]
    any_ignored = False
    if job.labels.size:
        for v in range(n):
            y = job.labels[row + v]
            ignored[v] = y == job.ignore_index
            any_ignored |= ignored[v]
            label[v] = U0 if ignored[v] else U(y)
        if job.weight.size:
            for v in range(n):
                a[LABEL_WEIGHT + v] = a[_LSE_WEIGHT + v] = job.weight[label[v]]
    else:
        for v in range(n):
            ignored[v] = False  # `finalize` may have marked a row that was in this lane before
    return any_ignored


@jit
def finalize(
    s: Array, a: Array, ignored: Array, any_ignored: bool, row: Index, n: Index, k: Any, job: Any
) -> bool:
    """From the sums of rows row:row+n: write losses and lse, compute the gradient at the labels.

    Mark rows whose coefficients are all 0 in `ignored`, since their losses and gradients are 0,
    too. Are some rows marked?
    """
    lanes = (n + LANES - U1) // LANES * LANES  # whole vectors
    _finalize_lanes(s, a, lanes, k)
    if job.losses.size:
        for v in range(n):
            job.losses[row + v] = a[_LOSS + v]
    if job.lse.size:
        for v in range(n):
            job.lse[row + v] = a[_LSE + v]
    if any_ignored:
        for v in range(n):
            if ignored[v] and job.losses.size:
                job.losses[row + v] = 0.0
            if ignored[v] and job.lse.size:
                job.lse[row + v] = 0.0
    if job.weight.size or job.sample_weight.size or job.probs.size:
        soft = job.probs.size > 0 or k.off_value != 0.0
        for v in range(n):
            if _without_coefficients(a, v, soft, k):
                ignored[v] = True
                any_ignored = True
                if job.losses.size:
                    job.losses[row + v] = 0.0
    if job.labels.size and job.grad.size:
        _label_gradient(s, a, lanes, k)
    return any_ignored


@jit
def _without_coefficients(a: Array, v: Index, soft: bool, k: Any) -> Any:
    """Whether the sample weight of lane v is 0, or all its b and λ·w are.

    Of a soft-target term Σ b and Σ b·(m − x) tell, which may also cancel: they are asked only where
    the result would be NaN.
    """
    nothing = a[_ON_TERM + v] == 0.0
    nothing &= product_or_zero(k.lse_square_scale, a[_LSE_WEIGHT + v]) == 0.0
    if soft:
        doubtful = a[LOG + v] + a[_SCALE + v] + a[_SAMPLE_WEIGHT + v]
        sums_are_0 = (a[SOFT_TOTAL + v] == 0.0) & (a[SOFT_COST + v] == 0.0)
        nothing = nothing & sums_are_0 & (doubtful - doubtful != 0.0)
    return nothing | (a[_SAMPLE_WEIGHT + v] == 0.0)


# ---------------------------------------------------------------------------------------------
# The gradient: scale·(A·p − b)


class GradientTerms(NamedTuple):
    """The numbers that the gradient of every class of a row needs; see the fields of `a`."""

    scale: Real
    total: Real
    total_error: Real
    factor: Real
    factor_error: Real
    complement: Real


@jit
def gradient_terms(a: Array, v: Index) -> Any:
    """The `GradientTerms` of lane v."""
    return GradientTerms(
        scale=a[_SCALE + v],
        total=a[_TOTAL + v],
        total_error=a[_TOTAL_ERROR + v],
        factor=a[FACTOR + v],
        factor_error=a[FACTOR_ERROR + v],
        complement=a[_COMPLEMENT + v],
    )


@jit
def _pair_gradient(e: Real, row: Any, b: Real, b_error: Real, top: Any) -> Real:
    """The gradient of a class with exponential e and coefficient b; `top`: it is a maximum.

    scale·A·p − scale·b cancels if p is near 1 and b near A. Then the class is the maximum, and
    scale·(A − b) − scale·A·R/S is used; not if p is so small that these two are larger and cancel.
    """
    p, p_error = scale_pair(row.factor, row.factor_error, e)
    q, q_error = scale_pair(b, b_error, row.scale)
    sure = ((row.total - b) + (row.total_error - b_error)) * row.scale - row.complement
    unsure = (p - q) + finite_or_zero(p_error - q_error)
    near = abs(b) > 0.5 * abs(row.total) and abs(p) > abs(row.complement)
    return sure if top and near else unsure


@jit
def _softmax_factors_float32(s: Array, a: Array, n: Index) -> None:
    """For softmax, the factors of lanes 0..n: 1/S, with S the sum of the exponentials as rounded.

    Then no quotient exceeds 1, and those of a row add up to 1 but for their own roundings.
    """
    for v in range(n):
        factor = a[FACTOR + v]  # NaN where a logit is not finite
        a[FACTOR + v] = 1.0 / (a[MAX_EXP + v] + (a[REST + v] + a[REST_ERROR + v])) + (
            factor - factor
        )


@jit
def _softmax_factors_float64(s: Array, a: Array, n: Index) -> None:
    """The exponential of the maximum is exact in float64, so S is what FACTOR has."""


softmax_factors = by_dtype(_softmax_factors_float32, _softmax_factors_float64)


@jit
def _label_gradient_float32(s: Array, a: Array, n: Index, k: Any) -> None:
    """The gradient at the labels of lanes 0..n, into LABEL_GRADIENT; `s` selects the function."""
    for v in range(n):
        b = a[_ON_TERM + v] + product_or_zero(k.off_value, a[LABEL_WEIGHT + v])
        total, scale = a[_TOTAL + v], a[_SCALE + v]
        sure = (total - b) * scale - a[_COMPLEMENT + v]
        other = a[LABEL_EXP + v] * a[FACTOR + v] - b * scale
        top = a[MAX_64 + v] == a[LABEL_LOGIT + v]
        a[LABEL_GRADIENT + v] = sure if top and abs(b) > 0.5 * abs(total) else other


@jit
def _label_gradient_float64(s: Array, a: Array, n: Index, k: Any) -> None:
    for v in range(n):
        off_term, off_term_error = scale_pair_or_zero(k.off_value, k.off_error, a[LABEL_WEIGHT + v])
        b, error = two_sum(off_term, a[_ON_TERM + v])
        b_error = off_term_error + (error + a[_ON_TERM_ERROR + v])
        top = a[MAX_64 + v] == a[LABEL_LOGIT + v]
        terms = gradient_terms(a, v)
        a[LABEL_GRADIENT + v] = _pair_gradient(a[LABEL_EXP + v], terms, b, b_error, top)


_label_gradient = by_dtype(_label_gradient_float32, _label_gradient_float64)


@jit
def _class_gradient_float32(e: Any, row: Any, t: Real, weight: Real, top: Any, k: Any) -> Real:
    """The gradient of a class with exponential e; `top`: it is a maximum. See `_pair_gradient`."""
    b = coefficient_float32(t, weight, k)
    sure = (row.total - b) * row.scale - row.complement
    if top and abs(b) > 0.5 * abs(row.total):
        return sure
    return np.float64(e) * row.factor - b * row.scale


@jit
def _class_gradient_float64(e: Real, row: Any, t: Real, weight: Real, top: Any, k: Any) -> Real:
    b, b_error = coefficient_float64(t, weight, k)
    return _pair_gradient(e, row, b, b_error, top)


class_gradient = by_dtype(_class_gradient_float32, _class_gradient_float64)


@jit
def soft_target_gradient(numbers: Array, a: Array, first: Index, n: Index, k: Any) -> None:
    """Replace exponentials numbers[:n] of one class, lanes `first` on, by the gradient."""
    for i in range(n):
        v = first + i
        e = numbers[i]
        top = e == a[MAX_EXP + v]
        terms = gradient_terms(a, v)
        numbers[i] = class_gradient(e, terms, a[TARGET + v], a[WEIGHT + v], top, k)


@jit
def log_probability(x: Real, m: Real, log: Real, log_error: Real) -> Real:
    """x − m − log, where log is a pair; at most 0."""
    difference, difference_error = two_sum(x, -m)
    value, error = two_sum(difference, -log)
    value += finite_or_zero(error + (difference_error - log_error))
    return 0.0 if value > 0.0 else value


# ---------------------------------------------------------------------------------------------
# Memory


@jit
def smoothing(job: Any) -> Any:
    """The fields of `Smoothing` as numbers."""
    k = job.smoothing
    return Smoothing(
        on_value=k[0], on_error=k[1], off_value=k[2], off_error=k[3], lse_square_scale=k[4]
    )


@jit_allocating
def zeros(like: Array, size: Index) -> Array:
    """Zeros (size,) in the dtype of `like`, aligned to a cache line so no vector spans two."""
    room = np.zeros(size + 16, like.dtype)
    first = (-room.ctypes.data & 63) // room.itemsize
    return room[first : first + size]


@jit_allocating
def scratch(job: Any) -> Any:
    """s and a with the values of absent inputs; labels and the mask of ignored rows, (WIDTH,)."""
    label_weight = 0.0 if job.probs.size else 1.0
    scale = job.scale[0] if job.scale.size else 1.0
    s = zeros(job.x, _S_SIZE)
    a = zeros(job.smoothing, _A_SIZE)
    for v in range(WIDTH):
        s[LABEL + v] = -1.0
        s[PIVOT + v] = -1.0
        a[WEIGHT + v] = 1.0
        a[LABEL_WEIGHT + v] = label_weight
        a[_LSE_WEIGHT + v] = 1.0
        a[_SAMPLE_WEIGHT + v] = 1.0
        a[_SCALE + v] = scale
    return s, a, np.zeros(WIDTH, np.uintp), np.zeros(WIDTH, np.bool_)
