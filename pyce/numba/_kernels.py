"""Calls of the Numba backend's kernels from compiled code, on the calling thread alone.

Imported only where compiled code runs on the Numba backend. What the backend does in Python around
its kernels (`pyce._backends.numba`: `forward`, `_layout.run`) is compiled here.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

from pyce._backends.numba._jit import DEFAULT_CONTROL, fma, jit_allocating, set_control
from pyce._backends.numba._job import Job
from pyce._backends.numba._lanes import WIDTH, count_valid
from pyce._backends.numba._layout import TILE
from pyce._backends.numba._math import finite_or_zero, two_product, two_sum
from pyce._backends.numba._rows import rows, rows_scratch
from pyce._backends.numba._sums import quotient_of_sum
from pyce._backends.numba._tiles import LEAST_INDEX_ROW, LEAST_ROW, tiles, tiles_scratch
from pyce._caches import last_cache
from pyce.numba import _c

_WIDTH, _LAST_CACHE = int(WIDTH), last_cache()
# Elements of a block of rows that is copied because a tile of them is too large.
_COPIED = 2**15

_count_valid = register_jitable(count_valid)
_quotient_of_sum = jit_allocating(quotient_of_sum)


def _flat(array, dtype):
    """An array as a flat one; None as an empty one of `dtype`."""


@overload(_flat)
def _flat_of(array, dtype):
    if isinstance(array, types.Array):
        return lambda array, dtype: array.reshape(-1)
    return lambda array, dtype: np.empty(0, dtype)


@register_jitable
def _first_bad(labels, classes, ignore_index):
    for row in range(labels.size):
        y = labels[row]
        if y != ignore_index and (y < 0 or y >= classes):
            return row
    return -1


@register_jitable
def _sum_of_weights(labels, weight, sample_weight, ignore_index, count):
    """Σ w_y·s over the valid rows, compensated; a factor that is not given is 1."""
    total, error = 0.0, 0.0
    for row in range(count):
        if labels.size and labels[row] == ignore_index:
            continue
        product, product_error = 1.0, 0.0
        if labels.size and weight.size:
            product = weight[labels[row]]
        if sample_weight.size:
            product, product_error = two_product(product, sample_weight[row])
        total, sum_error = two_sum(total, product)
        error += finite_or_zero(sum_error) + finite_or_zero(product_error)
    return total + error


@register_jitable
def _smoothing(smoothing, lse_square_scale, classes, has_labels):
    """The fields of `Smoothing`."""
    if classes == 1 and has_labels:
        # Smoothing gives back to the label what it takes from it.
        smoothing = 0.0
    on_value = 1.0 - smoothing
    off_value = smoothing / classes
    off_error = fma(-off_value, np.float64(classes), smoothing) / classes
    return np.array(
        [on_value, (1.0 - on_value) - smoothing, off_value, off_error, lse_square_scale]
    )


@register_jitable
def _scales(sample_weight, denominator):
    """Factors of the rows' gradients: (rows,), or (1,) if they are equal."""
    if sample_weight.size == 0:
        return np.full(1, 1.0) / denominator
    return sample_weight / denominator


@register_jitable
def _is_direct(classes, inner, itemsize):
    """Whether the kernels take logits of this shape as they are; see `_layout.run`."""
    return inner == 1 or 16 * classes * itemsize <= TILE


@register_jitable
def _run_rows(job, few, count):
    if few:
        tiles(0, count, job, tiles_scratch(job))
    else:
        rows(0, count, job, rows_scratch(job))


@register_jitable
def _run_blocks(job, few, count):
    """Copy blocks of rows to contiguous (rows, classes), and their results back."""
    x, grad, probs = job.x, job.grad, job.probs
    classes, inner = job.classes, job.inner
    step = max(1, _COPIED // classes)
    block = np.empty(step * classes, x.dtype)
    block_of_probs = np.empty(step * classes if probs.size else 0, probs.dtype)
    for begin in range(0, count, step):
        end = min(begin + step, count)
        size = (end - begin) * classes
        for row in range(begin, end):
            first = row // inner * classes * inner + row % inner
            for c in range(classes):
                block[(row - begin) * classes + c] = x[first + c * inner]
            if probs.size:
                for c in range(classes):
                    block_of_probs[(row - begin) * classes + c] = probs[first + c * inner]
        part = Job(
            block[:size],
            block[: size if grad.size else 0],
            job.labels[begin:end],
            block_of_probs[: size if probs.size else 0],
            job.weight,
            job.sample_weight[begin:end],
            job.scale[begin:end] if job.scale.size > 1 else job.scale,
            job.saved_lse,
            job.losses[begin:end],
            job.lse[begin:end],
            job.smoothing,
            job.ignore_index,
            end - begin,
            classes,
            1,
            few,
            job.width,
            job.log_softmax,
            False,
            False,
        )
        _run_rows(part, few, end - begin)
        if grad.size:
            for row in range(begin, end):
                first = row // inner * classes * inner + row % inner
                for c in range(classes):
                    grad[first + c * inner] = block[(row - begin) * classes + c]


@register_jitable
def _run(operation, reduction, shape, options, given):
    """A computation on flat arrays, empty where they are absent; returns as `run`."""
    x, grad, labels, probs, weight, sample_weight, lse, losses, reduced = given
    outer, classes, inner = shape
    smoothing, lse_square_scale, normalizer, ignore_index = options
    count = outer * inner
    has_loss = operation <= _c.FORWARD_BACKWARD
    valid = count
    if labels.size:
        valid = _count_valid(labels, ignore_index, classes)
        if valid < 0:
            row = _first_bad(labels, classes, ignore_index)
            return _c.BAD_LABEL, reduced[0], row, np.int64(labels[row])
    control = set_control(DEFAULT_CONTROL)
    denominator = 1.0
    if reduction == _c.MEAN:
        denominator = _sum_of_weights(labels, weight, sample_weight, ignore_index, count)
    elif reduction == _c.QUOTIENT:
        denominator = normalizer
    row_losses = np.empty(count if has_loss else 0)
    plain = labels.size > 0 and smoothing == 0.0 and lse_square_scale == 0.0
    least = LEAST_INDEX_ROW if plain and x.itemsize == 4 else LEAST_ROW
    direct = _is_direct(classes, inner, x.itemsize)
    few = classes < least or (inner > 1 and direct)
    width = min(_WIDTH, TILE // (classes * x.itemsize) // 16 * 16)
    if direct and inner >= 16:
        width = min(width, -(-inner // 16) * 16)
    job = Job(
        x,
        grad,
        labels,
        probs,
        weight,
        sample_weight,
        _scales(sample_weight, denominator) if has_loss and grad.size else np.empty(0),
        np.empty(0),
        row_losses,
        lse,
        _smoothing(smoothing, lse_square_scale, classes, labels.size > 0),
        ignore_index,
        outer,
        classes,
        inner,
        few,
        width,
        operation == _c.LOG_SOFTMAX,
        grad.size > 0 and 2 * x.size * x.itemsize > _LAST_CACHE,
        False,
    )
    if count and direct:
        _run_rows(job, few, count)
    elif count:
        _run_blocks(job, few, count)
    if losses.size:
        losses[:] = row_losses
    elif has_loss and not (valid == 0 and reduction == _c.QUOTIENT):
        _quotient_of_sum(row_losses, denominator, reduced)
    set_control(control)
    return _c.OK, reduced[0], 0, 0


def run(operation, reduction, shape, options, arrays):
    """One computation on contiguous arrays; the arguments and results are those of `_c.run`."""


@overload(run)
def _run_of(operation, reduction, shape, options, arrays):
    logits, _, target, *_ = arrays
    dtype = as_dtype(logits.dtype)
    has_probs = isinstance(target, types.Array) and target.dtype in (types.float32, types.float64)

    if has_probs:

        def with_probs(operation, reduction, shape, options, arrays):
            x, result, target, weight, sample_weight, lse, losses = arrays
            given = (
                x.reshape(-1),
                _flat(result, dtype),
                np.empty(0, np.int64),
                target.reshape(-1),
                _flat(weight, np.float64),
                _flat(sample_weight, np.float64),
                _flat(lse, np.float64),
                _flat(losses, dtype),
                np.zeros(1, dtype),
            )
            return _run(operation, reduction, shape, options, given)

        return with_probs

    def with_labels(operation, reduction, shape, options, arrays):
        x, result, target, weight, sample_weight, lse, losses = arrays
        given = (
            x.reshape(-1),
            _flat(result, dtype),
            _flat(target, np.int64),
            np.empty(0, dtype),
            _flat(weight, np.float64),
            _flat(sample_weight, np.float64),
            _flat(lse, np.float64),
            _flat(losses, dtype),
            np.zeros(1, dtype),
        )
        return _run(operation, reduction, shape, options, given)

    return with_labels
