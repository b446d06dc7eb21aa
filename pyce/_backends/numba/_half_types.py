"""The kernel for float16 and bfloat16: blocks of rows as float32, in either of the other kernels.

A result is the float32 result rounded once. Scratch memory is that of the other kernel, and a block
of 2¹⁵ float32 or one row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import U0, Index, U, bits, from_bits, jit, jit_allocating
from pyce._backends.numba._job import Job
from pyce._backends.numba._rows import rows, rows_scratch
from pyce._backends.numba._tiles import tiles, tiles_scratch

# Elements of a block of rows in float32.
_BLOCK = 2**15
_HALF = np.float32(0.5)


@jit
def _to_float32(half: Any, bfloat16: bool) -> Any:
    """The float32 of the bits of a bfloat16 or float16; exact."""
    i = np.int32(half)
    if bfloat16:
        return from_bits(np.int32(i << 16))
    digits = np.int32(i & 0x3FF)
    power = np.int32(i & 0x7C00)
    magnitude = np.int32((power + 0x1C000 << 13) + (digits << 13))
    value = from_bits(np.int32(digits << 13 | 0x7F800000) if power == 0x7C00 else magnitude)
    value = np.float32(digits) * np.float32(2.0**-24) if power == 0 else value
    return -value if i & 0x8000 else value


@jit
def _from_float32(value: Any, bfloat16: bool) -> Any:
    """The bits of the bfloat16 or float16 nearest to a float32, ties to even."""
    i = bits(value)
    magnitude = np.int32(i & 0x7FFFFFFF)
    if bfloat16:
        rounded = i + 0x7FFF + (i >> 16 & 1)
        return np.uint16((i | 0x400000 if magnitude > 0x7F800000 else rounded) >> 16)
    half: Any = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13
    if magnitude < 0x38800000:  # adding ½ rounds to multiples of 2⁻²⁴, the last place of ½
        half = np.int64(bits(from_bits(magnitude) + _HALF)) - 0x3F000000
    half = min(half, 0x7C00) if magnitude <= 0x7F800000 else 0x7E00
    return np.uint16(half | (i >> 16 & 0x8000))


@jit_allocating
def half_types_scratch(job: Any) -> Any:
    """Scratch memory of `half_types`: a block, and that of the other kernels."""
    group = max(1, _BLOCK // job.classes)
    block = np.empty(min(group, job.outer) * job.classes, np.float32)
    # Numba compiles this many keyword arguments only without control flow among them.
    part = Job(
        x=block,
        grad=block[: job.grad.size],
        labels=job.labels,
        probs=job.probs,
        weight=job.weight,
        sample_weight=job.sample_weight,
        scale=job.scale,
        saved_lse=job.saved_lse,
        losses=job.losses,
        lse=job.lse,
        smoothing=job.smoothing,
        ignore_index=job.ignore_index,
        outer=job.outer,
        classes=job.classes,
        inner=job.inner,
        few=job.few,
        width=job.width,
        log_softmax=job.log_softmax,
        past_caches=False,
        bfloat16=job.bfloat16,
    )
    return block, rows_scratch(part), tiles_scratch(part)


@jit
def half_types(begin_row: Index, end_row: Index, job: Any, room: Any) -> None:
    """Rows of a job with inner = 1 whose x and grad are bits of half types."""
    classes = job.classes
    block, for_rows, for_tiles = room
    group = U(block.size) // U(classes)
    end = U(end_row)
    for first in range(U(begin_row), end, group):
        stop = min(first + group, end)
        i, size = first * U(classes), (stop - first) * U(classes)
        for c in range(size):
            block[c] = _to_float32(job.x[i + c], job.bfloat16)
        x = block[:size]
        grad = x if job.grad.size else x[:0]
        scale = job.scale[first:stop] if job.scale.size > 1 else job.scale
        part = Job(
            x=x,
            grad=grad,
            labels=job.labels[first:stop],
            probs=job.probs[i : i + size],
            weight=job.weight,
            sample_weight=job.sample_weight[first:stop],
            scale=scale,
            saved_lse=job.saved_lse[first:stop],
            losses=job.losses[first:stop],
            lse=job.lse[first:stop],
            smoothing=job.smoothing,
            ignore_index=job.ignore_index,
            outer=stop - first,
            classes=classes,
            inner=job.inner,
            few=job.few,
            width=job.width,
            log_softmax=job.log_softmax,
            past_caches=False,
            bfloat16=job.bfloat16,
        )
        if job.few:
            tiles(U0, stop - first, part, for_tiles)
        else:
            rows(U0, stop - first, part, for_rows)
        if job.grad.size:
            for c in range(size):
                job.grad[i + c] = _from_float32(block[c], job.bfloat16)
