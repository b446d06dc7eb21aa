"""Cross-entropy of `input @ linear_weight.T`, chunk by chunk of rows: the computation.

A chunk of logits is a product, written to one buffer; the backend turns it into losses and, in
place, into the gradient G with respect to the logits; two more products take G to the gradients:

    logits             = input · Wᵀ        (n, C)
    gradient of input  = G · W             (n, D)
    gradient of W     += Gᵀ · input        (C, D), in blocks of classes that fit a cache

The last one adds to its result. Its product is written to memory for a block of classes, from where
it is added while it is in the cache, so that no second array has the size of the weight.

The loss alone needs no whole rows of logits: it is combined of the losses over blocks of classes,
each of many rows, so that the weight is read as few times as possible. With the target in block B,

    lse  = log Σ_b exp(lse_b)
    loss = lse − x_y = log(exp(loss_B) + Σ_{b≠B} exp(lse_b − x_y))

where loss_B ≥ 0 has the accuracy of the backend, however small it is.

Rows that are ignored are left out of all products, so that NaN in them stays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce._backends import Backend
from pyce._compensated import product
from pyce._factors import Factors
from pyce._problem import Problem, rows_of_array
from pyce._types import Array, Losses, Scalar

CHUNK_BYTES = 64 * 2**20
# The hidden states are divided by the softcap, in float32: within these limits without overflow.
_SOFTCAPS = 1e-20, 1e20
# Bytes of a block of classes of the weight or of its gradient, and of a block of rows of logits
# that several elementwise operations share.
_BLOCK_BYTES = 12 * 2**20
# The loss alone: rows of a block and bytes of its logits, and classes that it has at least.
_FORWARD_ROWS = 1024
_FORWARD_BYTES = 16 * 2**20
_FORWARD_CLASSES = 1024
# Sign, exponent and fraction of a float16 that has been shifted by 13 bits: 0x8FFFE000.
_FLOAT16_BITS = np.int32(0x8FFFE000 - 2**32)
# The bits of the float32 numbers 0.5, 2⁻¹⁴ and 2¹⁶.
_HALF_BITS, _FLOAT16_NORMAL, _FLOAT16_LIMIT = (np.uint32(e << 23) for e in (126, 113, 143))
# Beyond this, the float64 numbers of lse have too few digits for a small loss.
_LARGE_LSE = 2.0**16
# The most rows of a chunk with a filter tolerance. A column is left out if no row of the chunk
# needs it: fewer rows need fewer columns, but the products of short chunks are slower.
FILTERED_ROWS = 256
# If more of the columns than this are kept, leaving out the others does not pay.
_WORTH_PACKING = 0.5
# Rows of a chunk that are looked at first, since one that needs most columns ends the search.
_LOOKED_AT = 4
# Numbers of columns that may be kept, as parts of the most: that many powers of the ratio.
_STEPS, _RATIO = 24, 0.8
# Rows whose sizes are summed up together.
_SUMMED_ROWS = 32


def checked_scales(
    softcap: Any, logit_scale: Any, chunk_bytes: Any
) -> tuple[float | None, float, int]:
    """The arguments as numbers, with the default of `chunk_bytes`."""
    if softcap is not None:
        softcap = arguments.positive(softcap, "softcap")
        least, most = _SOFTCAPS
        if not least <= softcap <= most:
            raise ValueError(
                f"softcap must be a number from {least} to {most}, or None for no bound, got "
                f"{softcap}"
            )
    size = CHUNK_BYTES
    if chunk_bytes is not None:
        size = arguments.positive_number(chunk_bytes, "chunk_bytes")
    return softcap, arguments.finite(logit_scale, "logit_scale"), size


@dataclass
class Head:
    """The arguments of one call, checked.

    `full` is the problem of all rows; its logits are not read. Arrays are C-contiguous, except that
    the weight may be the transpose of such an array, and target probabilities may have any strides.
    """

    full: Problem
    input: Array  # (rows, D)
    weight: Array  # (C, D), of the input's dtype
    bias: Array | None  # (C,), of the input's dtype
    softcap: float | None
    logit_scale: float
    chunk_bytes: int
    filter_tolerance: float
    # Outputs; the gradients are None if only the loss is requested.
    losses: Array  # (rows,)
    lse: Array  # float64 (rows,)
    grad_input: Array | None = None
    grad_weight: Array | None = None
    grad_bias: Array | None = None
    # Divides the logits, after the softcap; 1 with gradients.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        self.results = Results(self.full, self.losses, self.lse)


class Results:
    """The losses of the rows of `full`, which come in chunks, float32 or float64 (rows,).

    Weights of any size are multiplied as `pyce._factors` describes: the losses of the chunks are
    then without the weights of the rows.
    """

    def __init__(self, full: Problem, losses: Array, lse: Array) -> None:
        self._full, self._losses, self._lse = full, losses, lse
        self._with_grad = False
        self.is_extreme = False

    def prepare(self, grad_loss: float | None) -> None:
        """Find the factors of the rows. Without a factor of the gradients, there are none."""
        full = self._full
        full.losses = self._losses if full.reduction == "none" else None
        full.grad_loss = 1.0 if grad_loss is None else grad_loss
        self._with_grad = grad_loss is not None
        self._denominator = full.denominator()
        self._scale = float(np.float64(full.grad_loss) / self._denominator)
        scale = full.row_scale(self._denominator) if self._with_grad else None
        self._factors = Factors(full, scale, self._denominator)
        self.is_extreme = self._factors.extreme
        if self.is_extreme:
            self._wide = np.zeros(full.rows)

    def evaluate(self, backend: Backend, chunk: Array, part: slice | Array) -> None:
        """Write losses and lse of the rows `part`; their gradient replaces the logits, if any."""
        if self.is_extreme:
            self._evaluate_extreme(backend, chunk, part)
            return
        p = problem_of_rows(self._full, part, chunk)
        if self._with_grad:
            p.grad, p.grad_loss = chunk, self._scale
            backend.forward_backward(p)
        else:
            backend.forward(p)
        self._losses[part], self._lse[part] = p.losses, p.lse

    def _evaluate_extreme(self, backend: Backend, chunk: Array, part: slice | Array) -> None:
        full = self._factors.problem
        s = full.sample_weight
        assert s is not None
        p = problem_of_rows(full, part, chunk)
        of_rows = s[part]
        if p.labels is not None and p.weight is not None and p.smoothing == 0.0:
            # In float64, since the losses of the chunk may be float32.
            of_rows = product(of_rows, p.weight[p.labels])
            p.weight = None
        p.sample_weight = np.where(of_rows == 0.0, 0.0, 1.0)
        backend.forward(p)
        assert p.losses is not None
        self._wide[part], self._lse[part] = p.losses * of_rows, p.lse
        if self._with_grad:
            assert self._factors.scale is not None
            p.weight = full.weight
            p.grad, p.grad_loss = chunk, self._factors.scale[part]
            backend.forward_backward(p)
            self._factors.finish_gradient(chunk, 1, part)

    def loss(self) -> Scalar | Losses:
        """The reduced loss, or the losses of the rows (rows,)."""
        if self.is_extreme:
            loss = self._factors.finish(self._wide)
        elif self._full.reduction == "none":
            loss = None
        else:
            loss = self._full.reduce(self._losses.astype(np.float64), self._denominator)
        return self._losses if loss is None else loss


class _Blocks:
    """The weight in the dtype of the computation: whole, or in blocks of classes that are converted
    one after the other.
    """

    def __init__(self, weight: Array, dtype: np.dtype[Any]) -> None:
        self.weight = weight
        self.is_wide = weight.dtype == dtype
        classes, features = weight.shape
        width = max(1, min(classes, _BLOCK_BYTES // max(1, features * dtype.itemsize)))
        self.width = -(-classes // -(-classes // width))
        self.cuts = [slice(i, min(i + self.width, classes)) for i in range(0, classes, self.width)]
        self._room = np.empty((self.width, features), dtype)

    def room(self, count: int) -> Array:
        """Memory for `count` classes, valid until the next call of a method."""
        return self._room[:count]

    def wide(self, cut: slice | Array) -> Array:
        """Some classes of the weight, at most `width`."""
        block = self.weight[cut]
        return block if self.is_wide else widened(block, self.room(len(block)))


def widened(block: Array, out: Array) -> Array:
    """`out` with the numbers of a block of half types, as float32."""
    if block.dtype.name == "bfloat16":
        bits = out.view(np.uint32)
        bits[...] = block.view(np.uint16)
        bits <<= 16
        return out
    # Sign, exponent and fraction move to their places in a float32, whose exponent is then too low
    # by 112, for subnormal numbers as well. This takes a sixth of the time of NumPy's conversion.
    bits = out.view(np.int32)
    bits[...] = block.view(np.int16)
    bits <<= 13
    bits &= _FLOAT16_BITS
    out *= np.float32(2.0**112)
    if out.size and not (out.max() < 2.0**16 and out.min() > -(2.0**16)):
        out[...] = block  # which contains infinity or NaN
    return out


def narrowed(wide: Array, out: Array) -> Array:
    """`out` with numbers of the computation, rounded to its dtype."""
    if out.dtype != np.float16:
        out[...] = wide
        return out
    # NumPy's conversion takes many times as long for numbers that are subnormal in float16, as most
    # elements of a gradient are. Below 2⁻¹⁴ the sum with 0.5 has the rounded number in its last
    # places; above, half a unit is added before the last 13 bits are cut off, and less for an even
    # number.
    step = max(1, _BLOCK_BYTES // 16 // max(1, wide[:1].nbytes))
    for i in range(0, len(wide), step):
        part = wide[i : i + step]
        size = part.view(np.uint32) & np.uint32(0x7FFFFFFF)
        if size.max(initial=0) >= _FLOAT16_LIMIT:
            out[i : i + step] = part  # infinity, NaN, or what becomes infinite
            continue
        small = (size.view(np.float32) + np.float32(0.5)).view(np.uint32) - _HALF_BITS
        half = (size - np.uint32(112 << 23) + np.uint32(0xFFF) + (size >> 13 & 1)) >> 13
        half = np.where(size < _FLOAT16_NORMAL, small, half)
        half |= part.view(np.uint32) >> 16 & 0x8000
        out[i : i + step].view(np.uint16)[...] = half
    return out


def run(head: Head, backend: Backend) -> None:
    """Write the outputs of `head`, in the default floating-point environment."""
    full = head.full
    valid = full.valid()
    rows = np.arange(full.rows) if valid is None else np.flatnonzero(valid)
    dtype = head.losses.dtype
    factor, bias, blocks = _prepared(head)
    head.results.prepare(None if head.grad_weight is None else head.logit_scale)
    if head.grad_weight is not None:
        _with_gradients(head, backend, blocks, rows, factor, bias)
        return
    if len(rows) < full.rows:
        head.losses[...] = head.lse[...] = 0
    by_classes = full.labels is not None and full.smoothing == 0.0 and dtype == np.float32
    if by_classes and not head.results.is_extreme:
        rows = _by_classes(head, backend, blocks, rows, factor, bias)
    for part, chunk in _chunks_of(head, rows, factor, bias, blocks):
        head.results.evaluate(backend, chunk, part)


def logit_chunks(head: Head, rows: Array) -> Iterator[tuple[slice | Array, Array]]:
    """Some of `rows`, increasing numbers, and their logits (n, C), chunk after chunk, each valid
    until the next.
    """
    return _chunks_of(head, rows, *_prepared(head))


def _prepared(head: Head) -> tuple[float, Array | None, _Blocks]:
    """The factor of the hidden states, the bias times it, and the weight."""
    dtype = head.losses.dtype
    factor = head.logit_scale / (head.softcap or head.temperature)
    bias = None if head.bias is None else head.bias.astype(dtype) * dtype.type(factor)
    return factor, bias, _Blocks(head.weight, dtype)


def _chunks_of(
    head: Head, rows: Array, factor: float, bias: Array | None, blocks: _Blocks
) -> Iterator[tuple[slice | Array, Array]]:
    size = rows_of_chunk(head, len(rows))
    logits = np.empty((min(size, len(rows)), len(head.weight)), head.losses.dtype)
    for start in range(0, len(rows), size):
        part = _part(rows[start : start + size])
        _, scaled = _hidden(head, part, factor)
        chunk = logits[: len(scaled)]
        _multiply(scaled, blocks, chunk)
        _finish_logits(chunk, bias, _cap(head), None)
        yield part, chunk


def _cap(head: Head) -> float | None:
    """The factor of tanh; None without a softcap."""
    return None if head.softcap is None else head.softcap / head.temperature


def _with_gradients(
    head: Head, backend: Backend, blocks: _Blocks, rows: Array, factor: float, bias: Array | None
) -> None:
    full = head.full
    dtype = head.losses.dtype
    classes, features = head.weight.shape
    size = rows_of_chunk(head, len(rows))

    # Everything is allocated before anything is written.
    logits = np.empty((size, classes), dtype)
    saved = None if head.softcap is None else np.empty_like(logits)
    assert head.grad_input is not None
    assert head.grad_weight is not None
    total = head.grad_weight
    if total.dtype != dtype:
        total = np.empty((classes, features), dtype)
    total_bias = np.zeros(classes if head.grad_bias is not None else 0)

    if len(rows) < full.rows:
        head.losses[...] = head.lse[...] = 0
        head.grad_input[...] = 0
    if len(rows) == 0:
        total[...] = 0
    for start in range(0, len(rows), size):
        part = _part(rows[start : start + size])
        x, scaled = _hidden(head, part, factor)
        chunk = logits[: len(x)]
        _multiply(scaled, blocks, chunk)
        _finish_logits(chunk, bias, head.softcap, None if saved is None else saved[: len(x)])
        head.results.evaluate(backend, chunk, part)
        if saved is not None:
            for block in _row_blocks(chunk):
                t = _without_idle(saved[: len(x)][block], chunk[block])
                chunk[block] *= (1.0 - t) * (1.0 + t)
        if head.grad_bias is not None:
            total_bias += chunk.sum(axis=0)
        kept = None
        if head.filter_tolerance:
            kept = kept_columns(chunk, head.filter_tolerance, _only_negative(head, part))
        x = _without_idle(x, chunk)
        if kept is None:
            of_input = _to_input(chunk, blocks)
            _add_to_weight(chunk, x, blocks, total, first=start == 0)
        else:
            if start == 0:
                total[...] = 0
            of_input = _packed_products(chunk, x, blocks, kept, total)
        _store(head.grad_input, part, _without_idle(of_input, chunk))
    if total is not head.grad_weight:
        narrowed(total, head.grad_weight)
    if head.grad_bias is not None:
        head.grad_bias[...] = total_bias.astype(dtype)


def _by_classes(
    head: Head, backend: Backend, blocks: _Blocks, rows: Array, factor: float, bias: Array | None
) -> Array:
    """Write losses and lse of `rows` over blocks of classes, for class indices without smoothing.

    Returns the rows that whole rows of logits are needed for: those without a finite result, and
    those whose logits are large.
    """
    full = head.full
    assert full.labels is not None
    classes = len(head.weight)
    size, width = block_of_forward(head, len(rows))
    room = np.empty(size * width, head.losses.dtype)
    remaining = [rows[:0]]
    for start in range(0, len(rows), size):
        part = _part(rows[start : start + size])
        _, scaled = _hidden(head, part, factor)
        labels = full.labels[part]
        count = len(labels)
        others = np.full(count, -np.inf)  # lse of the blocks without the target
        loss, lse, logit = np.empty(count), np.empty(count), np.empty(count)  # of the target's
        for first in range(0, classes, width):
            cut = slice(first, min(first + width, classes))
            chunk = room[: count * (cut.stop - first)].reshape(count, cut.stop - first)
            _multiply(scaled, blocks, chunk, cut)
            _finish_logits(chunk, None if bias is None else bias[cut], _cap(head), None)
            own = (labels >= first) & (labels < cut.stop)
            p = _rows_problem(chunk)
            p.labels = np.where(own, labels - first, 0)
            backend.forward(p)
            assert p.losses is not None
            assert p.lse is not None
            others = np.logaddexp(others, np.where(own, -np.inf, p.lse))
            at = np.flatnonzero(own)
            loss[at], lse[at], logit[at] = p.losses[at], p.lse[at], chunk[at, p.labels[at]]
        loss = np.logaddexp(loss, others - logit)
        lse = np.logaddexp(lse, others)
        loss += full.lse_square_scale * lse * lse
        if full.weight is not None:
            loss *= full.weight[labels]
        if full.sample_weight is not None:
            loss *= full.sample_weight[part]
        head.losses[part], head.lse[part] = loss, lse
        fine = np.isfinite(loss) & (np.abs(lse) <= _LARGE_LSE)
        remaining.append(rows[start : start + size][~fine])
    return np.concatenate(remaining)


def block_of_forward(head: Head, rows: int) -> tuple[int, int]:
    """Rows and classes of a block of logits that are computed together for the loss alone."""
    classes = len(head.weight)
    most = min(head.chunk_bytes, _FORWARD_BYTES) // head.losses.dtype.itemsize
    least = min(classes, _FORWARD_CLASSES)
    chunks = max(1, -(-rows // max(1, min(_FORWARD_ROWS, most // least))))
    size = max(1, -(-rows // chunks))
    width = max(least, min(classes, most // size))
    width = -(-classes // -(-classes // width))
    # Rows at a distance of a power of two share few sets of a cache: an odd multiple of 64 bytes.
    return size, min(classes, width // 32 * 32 + 16) if width >= 512 else width


def _part(rows: Array) -> slice | Array:
    """Increasing row numbers: as a slice, which copies nothing, if none is left out."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return slice(first, stop) if stop - first == len(rows) else rows


def _hidden(head: Head, part: slice | Array, factor: float) -> tuple[Array, Array]:
    """The hidden states of some rows, in the dtype of the computation, and times `factor`."""
    dtype = head.losses.dtype
    x = head.input[part]
    if x.dtype != dtype:
        x = widened(x, np.empty(x.shape, dtype))
    return x, x if factor == 1.0 else x * dtype.type(factor)


def rows_of_chunk(head: Head, rows: int) -> int:
    """The number of rows of a chunk: as many as `chunk_bytes` hold, evenly shared among chunks."""
    classes = len(head.weight)
    buffers = 2 if head.grad_weight is not None and head.softcap is not None else 1
    most = max(1, head.chunk_bytes // (classes * head.losses.dtype.itemsize * buffers))
    if head.filter_tolerance:
        most = min(most, FILTERED_ROWS)
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // chunks))


def _row_blocks(chunk: Array) -> Iterator[slice]:
    """The rows of a chunk in blocks that fit a cache."""
    step = max(1, _BLOCK_BYTES // 16 // max(1, chunk[:1].nbytes))
    return (slice(i, i + step) for i in range(0, len(chunk), step))


def _multiply(x: Array, blocks: _Blocks, out: Array, classes: slice = slice(None)) -> None:
    """out = x · W[classes]ᵀ."""
    if blocks.is_wide:
        np.matmul(x, blocks.weight[classes].T, out=out)
        return
    first = classes.start or 0
    for start in range(0, out.shape[1], blocks.width):
        to = out[:, start : start + blocks.width]
        some = slice(first + start, first + start + to.shape[1])
        np.matmul(x, blocks.wide(some).T, out=to)


def _finish_logits(
    chunk: Array, bias: Array | None, softcap: float | None, saved: Array | None
) -> None:
    """Add the bias and apply the softcap; `saved` receives tanh of what is capped."""
    if bias is None and softcap is None:
        return
    for block in _row_blocks(chunk):
        x = chunk[block]
        if bias is not None:
            x += bias
        if softcap is not None:
            t = x if saved is None else saved[block]
            np.tanh(x, out=t)
            np.multiply(t, x.dtype.type(softcap), out=x)


def _rows_problem(chunk: Array) -> Problem:
    """The problem of rows of logits without options, which has no target yet."""
    p = Problem()
    p.logits, p.dtype_name, p.axis = chunk, chunk.dtype.name, 1
    p.outer = p.rows = len(chunk)
    p.classes, p.inner = chunk.shape[1], 1
    p.labels = p.probs = p.weight = p.sample_weight = None
    p.contiguous, p.ignore_index, p.smoothing, p.lse_square_scale = True, -1, 0.0, 0.0
    p.reduction, p.normalizer, p.grad_loss, p.grad = "none", None, 1.0, None
    p.losses, p.lse = np.empty(len(chunk), chunk.dtype), np.empty(len(chunk))
    return p


def problem_of_rows(full: Problem, part: slice | Array, chunk: Array) -> Problem:
    """The problem of the rows `part` of `full`, whose logits are `chunk`."""
    p = _rows_problem(chunk)
    if full.labels is not None:
        p.labels = full.labels[part]
    elif full.probs is not None:
        p.probs = rows_of_array(full.probs, part)
        p.contiguous = p.probs.flags.c_contiguous
    p.weight, p.ignore_index, p.smoothing = full.weight, full.ignore_index, full.smoothing
    p.sample_weight = None if full.sample_weight is None else full.sample_weight[part]
    p.lse_square_scale = full.lse_square_scale
    return p


def _without_idle(rows: Array, grad: Array) -> Array:
    """Rows (n, …), 0 where they are not finite and the gradient (n, C) is 0: 0 · NaN counts 0."""
    if np.isfinite(rows.sum()):
        return rows
    idle = np.flatnonzero(~grad.any(axis=1))
    idle = idle[~np.isfinite(rows[idle]).all(axis=1)]
    rows = rows.copy()
    rows[idle] = 0
    return rows


def _store(out: Array, part: slice | Array, rows: Array) -> None:
    """Write the gradients of some rows of the input."""
    if rows.dtype != out.dtype:
        rows = narrowed(rows, np.empty(rows.shape, out.dtype))
    out[part] = rows


def _to_input(grad: Array, blocks: _Blocks) -> Array:
    """grad · W, (n, D)."""
    if blocks.is_wide:
        whole: Array = grad @ blocks.weight
        return whole
    total = np.zeros((len(grad), blocks.weight.shape[1]), grad.dtype)
    for cut in blocks.cuts:
        total += grad[:, cut] @ blocks.wide(cut)
    return total


def _add_to_weight(grad: Array, x: Array, blocks: _Blocks, total: Array, first: bool) -> None:
    """total += gradᵀ · x; with `first`, total is not read."""
    if first:
        np.matmul(grad.T, x, out=total)
        return
    for cut in blocks.cuts:
        columns = grad[:, cut]
        total[cut] += np.matmul(columns.T, x, out=blocks.room(columns.shape[1]))


def _packed_products(grad: Array, x: Array, blocks: _Blocks, kept: Array, total: Array) -> Array:
    """grad · W over the kept columns, (n, D); and total += gradᵀ · x in their rows."""
    to_input = np.zeros((len(grad), blocks.weight.shape[1]), grad.dtype)
    for i in range(0, len(kept), blocks.width):
        group = kept[i : i + blocks.width]
        columns = np.take(grad, group, axis=1)
        to_input += columns @ blocks.wide(group)
        total[group] += np.matmul(columns.T, x, out=blocks.room(len(group)))
    return to_input


def _only_negative(head: Head, part: slice | Array) -> Array | None:
    """The labels of some rows, if their gradients have another sign at the label than elsewhere."""
    full = head.full
    if full.labels is None or full.smoothing or full.lse_square_scale or head.softcap is not None:
        return None
    labels: Array = full.labels[part]
    return labels


def kept_columns(grad: Array, tolerance: float, labels: Array | None = None) -> Array | None:
    """The columns of `grad` (n, C) that are needed; None if most are, or if there is NaN.

    In each row, the sizes of the elements in the other columns add up to no more than half of
    `tolerance` times the sum of all sizes, ‖g‖₁. For a class index without smoothing, that sum is
    twice the probability of the other classes.

    With b = |g|/(‖g‖₁ · tolerance/2), a column's score is its largest b in any row. Columns are
    left out in the order of their scores, as many as keep the sum of b in each row below 1: the
    most of some numbers, for which one product sums up b over all rows.

    `labels` states that g = a·(p − t) in each row, with p adding up to 1 and t 1 at the label, 0
    elsewhere, so that ‖g‖₁ is twice the size of the label's element. This saves passes.
    """
    classes = grad.shape[1]
    most = _WORTH_PACKING * classes
    sizes = np.empty(classes, grad.dtype)
    some = np.linspace(0, len(grad) - 1, min(len(grad), _LOOKED_AT)).astype(np.int64)
    for row in grad[some]:
        np.abs(row, out=sizes)
        sizes.sort()
        sums = np.cumsum(sizes, dtype=np.float64)
        if not classes - np.searchsorted(sums, 0.5 * tolerance * sums[-1], "right") <= most:
            return None
    scores = np.zeros(classes, grad.dtype)
    scale = np.empty(len(grad), grad.dtype)
    for i, row in enumerate(grad):
        if labels is None:
            np.abs(row, out=sizes)
            allowed = 0.5 * tolerance * sizes.sum(dtype=np.float64)
        else:
            allowed = -tolerance * np.float64(row[labels[i]])
        factor = 1.0 / allowed
        scale[i] = factor
        if np.isnan(factor):
            return None
        if np.isinf(scale[i]):
            # ‖g‖₁ or the tolerance is 0 or nearly so: every element that is not 0 is needed.
            scale[i] = 0.0
            np.multiply(row != 0.0, grad.dtype.type(2.0), out=sizes)
        else:
            np.multiply(row if labels is not None else sizes, scale[i], out=sizes)
        np.maximum(scores, sizes, out=scores)
    if labels is not None:
        scores[labels] = np.inf
    needed = np.count_nonzero(scores > 1.0)
    if needed > most:
        return None
    order = np.argsort(scores)
    counts = np.maximum(needed, most * _RATIO ** np.arange(_STEPS)).astype(np.int64)
    starts = classes - np.unique(counts)[::-1]  # how many columns are left out
    step = np.empty(classes, np.int64)
    step[order] = np.searchsorted(starts, np.arange(classes), "right")
    of_step = np.zeros((classes, len(starts)), grad.dtype)
    left_out = np.flatnonzero(step < len(starts))
    of_step[left_out, step[left_out]] = 1.0
    if labels is not None:
        sums = grad @ of_step
    else:
        sums = np.concatenate(
            [
                np.abs(grad[i : i + _SUMMED_ROWS]) @ of_step
                for i in range(0, len(grad), _SUMMED_ROWS)
            ]
        )
    sums = np.cumsum(sums.astype(np.float64) * scale[:, np.newaxis], axis=1)
    # The rounding errors of a sum of C terms of one sign are below C·u of it; there are two sums.
    fits = (sums <= 1.0 - 4.0 * classes * np.finfo(grad.dtype).eps).all(axis=0)
    if not fits[0]:
        return None
    return np.sort(order[starts[np.count_nonzero(np.logical_and.accumulate(fits)) - 1] :])
