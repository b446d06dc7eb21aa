"""From arrays of any layout to jobs: choice of the kernel, and copies where it needs them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyce._backends.numba._job import Job
from pyce._backends.numba._lanes import WIDTH
from pyce._backends.numba._launch import (
    launch,
    run_complete,
    run_half_types,
    run_partial,
    run_rows,
    run_tiles,
)
from pyce._backends.numba._shards import ShardJob
from pyce._backends.numba._tiles import LEAST_INDEX_ROW, LEAST_ROW
from pyce._caches import last_cache
from pyce._dtypes import compute_dtype
from pyce._problem import ShardedProblem, row_blocks
from pyce._types import Array

# Largest tile, in bytes.
_TILE = 2**16
# Elements of a block of rows that is copied because of its layout.
_COPIED = 2**15
# Overhead of a row, in element equivalents.
_ROW_OVERHEAD = 32

_NO_REALS, _NO_LABELS = np.empty(0), np.empty(0, np.int64)
_NO_SMOOTHING = np.array([1.0, 0.0, 0.0, 0.0, 0.0])


class Request(NamedTuple):
    """One operation on logits of any layout; None stands for outputs and inputs that are absent.

    The fields are those of `Job`, where x, grad and probs have one shape whose class axis is
    `axis`, and grad is C-contiguous.
    """

    x: Array
    axis: int
    grad: Array | None = None
    labels: Array | None = None
    probs: Array | None = None
    weight: Array | None = None
    sample_weight: Array | None = None
    scale: Array | None = None
    saved_lse: Array | None = None
    losses: Array | None = None
    lse: Array | None = None
    smoothing: Array = _NO_SMOOTHING
    ignore_index: int = 0
    log_softmax: bool = False


def _compute_dtype(x: Array) -> np.dtype[Any]:
    """float32 for half types, else the dtype of x. (dtype.name takes a microsecond.)"""
    return compute_dtype(x.dtype.name) if x.itemsize == 2 else x.dtype


def _least_row(r: Request, dtype: np.dtype[Any]) -> int:
    """From how many contiguous classes on rows are faster in `_rows`, which needs LEAST_ROW."""
    plain = r.labels is not None and r.smoothing[2] == 0.0 and r.smoothing[4] == 0.0
    return LEAST_INDEX_ROW if plain and dtype == np.float32 else LEAST_ROW


def run(r: Request) -> None:
    """Write the outputs of a request."""
    x = r.x
    if x.size == 0:
        return
    classes, inner = x.shape[r.axis], math.prod(x.shape[r.axis + 1 :])
    # By the shape alone, even if a copy is needed: half types are to be added in float32's order.
    dtype = _compute_dtype(x)
    fits = 16 * classes * dtype.itemsize <= _TILE
    few = classes < _least_row(r, dtype) or (inner > 1 and fits)
    direct = x.flags.c_contiguous and (inner == 1 or (x.itemsize >= 4 and fits))
    if r.probs is not None:
        direct = direct and r.probs.flags.c_contiguous and r.probs.itemsize >= 4
    if direct:
        _run_contiguous(r, few, classes, inner)
    else:
        _run_blocks(r, few, classes, dtype)


def _run_blocks(r: Request, few: bool, classes: int, dtype: np.dtype[Any]) -> None:
    """Copy blocks of rows to contiguous (rows, classes) of a dtype that the kernels know."""

    def part(a: Array | None) -> Array | None:
        return None if a is None else a[start:stop]

    view = np.moveaxis(r.x, r.axis, -1)
    blocks: list[Array] = []
    blocks_of_probs: list[Array] = []
    for index, start, stop in row_blocks(r.x.shape, r.axis, _COPIED):
        block = _copy(view[index], blocks, dtype)
        probs = None
        if r.probs is not None:
            probs = np.moveaxis(r.probs, r.axis, -1)[index]
            probs = _copy(probs, blocks_of_probs, _compute_dtype(r.probs))
        request = r._replace(
            x=block,
            grad=None if r.grad is None else block,
            labels=part(r.labels),
            probs=probs,
            sample_weight=part(r.sample_weight),
            scale=r.scale if r.scale is None or r.scale.size == 1 else r.scale[start:stop],
            saved_lse=part(r.saved_lse),
            losses=part(r.losses),
            lse=part(r.lse),
        )
        _run_contiguous(request, few, classes, 1)
        if r.grad is not None:
            with np.errstate(all="ignore"):
                np.moveaxis(r.grad, r.axis, -1)[index] = block


def _copy(a: Array, memory: list[Array], dtype: np.dtype[Any]) -> Array:
    """A C-contiguous copy of `a` in the memory of the copy before it, if that is large enough.

    A helper that ends late still holds the arrays of the block before, so new ones would add up.
    """
    if not memory or memory[0].size < a.size:
        memory[:] = [np.empty(a.size, dtype)]
    copy = memory[0][: a.size].reshape(a.shape)
    np.copyto(copy, a, casting="unsafe")
    return copy


def _run_contiguous(r: Request, few: bool, classes: int, inner: int) -> None:
    """For contiguous x, grad and probs; half types only with inner = 1."""
    x, grad = r.x, r.grad
    outer = x.size // (classes * inner)
    compute = _compute_dtype(x)
    width = min(int(WIDTH), _TILE // (classes * compute.itemsize) // 16 * 16)
    if inner >= 16:
        width = min(width, -(-inner // 16) * 16)
    function = run_tiles if few else run_rows
    labels, bfloat16 = r.labels, False
    if x.itemsize == 2:
        bfloat16 = x.dtype.name == "bfloat16"
        if labels is not None:
            # Of one dtype: this kernel takes longest to compile, and reads each label once.
            labels = labels.astype(np.int64, copy=False)
        function = run_half_types
        x, grad = x.view(np.uint16), None if grad is None else grad.view(np.uint16)
    job = Job(
        x=x.reshape(-1),
        grad=np.empty(0, x.dtype) if grad is None else np.asarray(grad).reshape(-1),
        labels=_NO_LABELS if labels is None else labels,
        probs=np.empty(0, compute) if r.probs is None else r.probs.reshape(-1),
        weight=_NO_REALS if r.weight is None else r.weight,
        sample_weight=_NO_REALS if r.sample_weight is None else r.sample_weight,
        scale=_NO_REALS if r.scale is None else r.scale,
        saved_lse=_NO_REALS if r.saved_lse is None else r.saved_lse,
        losses=_NO_REALS if r.losses is None else r.losses,
        lse=_NO_REALS if r.lse is None else r.lse,
        smoothing=r.smoothing,
        ignore_index=r.ignore_index,
        outer=outer,
        classes=classes,
        inner=inner,
        few=few,
        width=width,
        log_softmax=r.log_softmax,
        past_caches=grad is not None and 2 * x.nbytes > last_cache(),
        bfloat16=bfloat16,
    )
    launch(function, job, outer * inner, x.size + _ROW_OVERHEAD * outer * inner)


def run_shard(
    p: ShardedProblem,
    smoothing: Array,
    state: Array | None,
    states: Array | None,
    losses: Array | None,
    sample_weight: Array | None,
    scale: Array,
) -> None:
    """Write the states (rows, STATE) of the own shard; or from `states` of all shards
    (shards, rows, STATE) the losses (rows,), and p.grad if it is not None. `sample_weight` is
    (rows,), and `scale` (rows,) or (1,).
    """
    shape = p.logits.shape
    dtype = _compute_dtype(p.logits)
    # Arrays that are as the kernels need them are passed whole, others are copied block by block.
    given = [a for a in (p.logits, p.grad, p.probs) if a is not None]
    direct = all(a.flags.c_contiguous and a.itemsize >= 4 for a in given) or p.logits.size == 0
    blocks: list[Array] = []
    blocks_of_probs: list[Array] = []
    whole = [((...,), 0, p.rows)]
    for index, start, stop in whole if direct else row_blocks(shape, p.axis, _COPIED):
        x, probs, grad = p.logits[index], p.probs, p.grad
        if probs is not None:
            probs = probs[index]
        if not direct:
            x = _copy(x, blocks, dtype)
            grad = None if grad is None else x  # each number is read before it is written
            if probs is not None:
                probs = _copy(probs, blocks_of_probs, _compute_dtype(probs))
        if probs is not None and probs.size == 0:
            probs = np.zeros(1, _compute_dtype(probs))
        rows = stop - start
        job = ShardJob(
            x=_NO_REALS,
            logits=x.reshape(-1),
            grad=np.empty(0, x.dtype) if grad is None else np.asarray(grad).reshape(-1),
            labels=_NO_LABELS if p.labels is None else p.labels[start:stop],
            probs=np.empty(0, dtype) if probs is None else probs.reshape(-1),
            weight=_NO_REALS,
            sample_weight=_NO_REALS if sample_weight is None else sample_weight[start:stop],
            saved_lse=_NO_REALS,
            scale=scale if scale.size == 1 else scale[start:stop],
            losses=_NO_REALS if losses is None else losses[start:stop],
            lse=_NO_REALS,
            smoothing=smoothing,
            state=_NO_REALS if state is None else state[start:stop].reshape(-1),
            states=_NO_REALS if states is None else states[:, start:stop].reshape(-1),
            ignore_index=p.ignore_index,
            first=p.bounds[p.own],
            own=shape[-1],
            rows=rows,
            shards=len(p.bounds) - 1,
            bounds=np.array(p.bounds, np.int64),
        )
        work = x.size + _ROW_OVERHEAD * rows
        if rows:
            launch(run_complete if state is None else run_partial, job, rows, work)
        if not direct and p.grad is not None:
            with np.errstate(all="ignore"):
                p.grad[index] = x
