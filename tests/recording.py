"""Writes the calls of the C interface that the C backend makes to a file, for tests/c/replay.c.

A call is recorded as its numbers, the contents of its arrays before the call, and its results. All
values are little-endian, and numbers take 8 bytes. An array is its length in bytes (−1 for NULL)
and its bytes. Calls are made one at a time. They are recorded as calls with two threads, whose
results are the same.
"""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager

from pyce._pyce import ffi, lib

from pyce._backends import c

MAGIC = b"PYCECALL"
RUN, CROSS_ENTROPY, BERNOULLI, SELECTIVE = range(4)
THREADS = 2
ITEM_SIZE = (4, 8, 2, 2)  # by the dtypes of pyce.h


class _Writer:
    def __init__(self, file):
        self.file = file
        self.lock = threading.RLock()

    def integers(self, *values):
        self.file.write(struct.pack(f"<{len(values)}q", *values))

    def reals(self, *values):
        self.file.write(struct.pack(f"<{len(values)}d", *values))

    def array(self, pointer, size):
        """Write `size` bytes from `pointer` and return them; None if it is NULL."""
        if pointer == ffi.NULL:
            self.integers(-1)
            return None
        data = bytes(ffi.buffer(ffi.cast("char *", pointer), size))
        self.integers(size)
        self.file.write(data)
        return data

    def operand(self, operand, outer, classes, inner, size, written=False):
        """Write a strided array: the position of its first element, its strides, and its bytes.

        For an array that the call will have `written`, also whether it is without gaps; if so,
        the number of its bytes stands for the bytes.

        Returns the location of the bytes as (pointer, size), or None if the array is NULL.
        """
        if operand.data == ffi.NULL:
            self.integers(-1)
            return None
        starts = [0]
        if operand.offsets != ffi.NULL:
            starts = ffi.unpack(operand.offsets, outer) if outer else [0]
        elif outer:
            starts = [0, (outer - 1) * operand.outer_stride]
        along = (classes - 1) * operand.class_stride
        low = min(starts) + min(0, along)
        high = max(starts) + max(0, along) + max(inner, 1)
        if not outer * inner:
            low = high = 0
        at = ffi.cast("char *", operand.data) + low * size
        self.integers(-low, operand.outer_stride, operand.class_stride)
        self.array(operand.offsets, 8 * outer)
        contiguous = high - low == outer * classes * inner
        if written:
            self.integers(int(contiguous))
        self.integers((high - low) * size)
        if not (written and contiguous):
            self.file.write(bytes(ffi.buffer(at, (high - low) * size)))
        return at, (high - low) * size

    def after(self, where):
        if where is not None:
            self.array(*where)


def _one_at_a_time(method):
    def call(self, *args):
        with self._writer.lock:
            return method(self, *args)

    return call


class _Recorder:
    """Replaces `lib`: records the arguments, makes the call, and records the results."""

    def __init__(self, writer):
        self._writer = writer

    def __getattr__(self, name):
        return getattr(lib, name)

    @_one_at_a_time
    def pyce_run(self, p):
        w = self._writer
        rows = p.outer * p.inner
        size = ITEM_SIZE[p.dtype]
        w.integers(RUN, p.operation, p.dtype, p.target, p.probs_dtype, p.reduction, THREADS)
        w.integers(p.outer, p.classes, p.inner, p.ignore_index)
        w.reals(p.grad_loss, p.normalizer, p.smoothing, p.lse_square_scale)
        shape = p.outer, p.classes, p.inner
        w.operand(p.logits, *shape, size)
        in_place = p.result.data == p.logits.data
        w.integers(int(in_place))
        result = w.operand(p.result, *shape, size, written=True)
        w.operand(p.probs, *shape, ITEM_SIZE[p.probs_dtype])
        w.array(p.labels, rows * (4 if p.target == lib.PYCE_INDEX32 else 8))
        w.array(p.weight, 8 * p.classes)
        w.array(p.sample_weight, 8 * rows)
        w.array(p.grad_losses, 8 * rows)
        lse = (p.lse, 8 * rows)
        w.array(*lse)
        item = 8 if p.dtype == lib.PYCE_FLOAT64 else 4
        losses, reduced = (p.losses, rows * item), (p.reduced, item)
        w.array(*losses)
        w.array(*reduced)
        status = lib.pyce_run(p)
        w.integers(status, p.bad_row, p.bad_value)
        w.reals(p.loss)
        w.after(result)
        w.after(lse)
        w.after(losses)
        w.after(reduced)
        return status

    @_one_at_a_time
    def pyce_cross_entropy(
        self, operation, dtype, reduction, threads, outer, classes, inner, logits, labels, weight,
        grad, smoothing, ignore_index, loss,
    ):  # fmt: skip
        w = self._writer
        size = outer * classes * inner * ITEM_SIZE[dtype]
        w.integers(CROSS_ENTROPY, operation, dtype, reduction, THREADS)
        w.integers(outer, classes, inner, ignore_index)
        w.reals(smoothing)
        w.array(logits, size)
        w.array(labels, 8 * outer * inner)
        w.array(weight, 8 * classes)
        w.integers(int(grad != ffi.NULL))
        status = lib.pyce_cross_entropy(
            operation, dtype, reduction, threads, outer, classes, inner, logits, labels, weight,
            grad, smoothing, ignore_index, loss,
        )  # fmt: skip
        w.integers(status)
        losses = outer * inner if reduction == lib.PYCE_NONE else 1
        w.array(loss, losses * (8 if dtype == lib.PYCE_FLOAT64 else 4))
        w.array(grad, size)
        return status

    @_one_at_a_time
    def pyce_binary_cross_entropy(self, dtype, n, *rest):
        w = self._writer
        *arrays, scale, _, total = rest
        size = n * ITEM_SIZE[dtype]
        w.integers(BERNOULLI, dtype, n, THREADS)
        w.reals(scale)
        for array in arrays:
            w.array(array, size)
        status = lib.pyce_binary_cross_entropy(dtype, n, *rest)
        w.integers(status)
        w.reals(total[0])
        w.array(arrays[4], size)
        w.array(arrays[5], size)
        return status

    @_one_at_a_time
    def pyce_selective_log_softmax(self, s):
        w = self._writer
        rows, item = s.outer * s.inner, 8 if s.dtype == lib.PYCE_FLOAT64 else 4
        w.integers(SELECTIVE, s.dtype, THREADS, s.outer, s.classes, s.inner, s.chosen)
        w.reals(s.temperature)
        w.operand(s.logits, s.outer, s.classes, s.inner, ITEM_SIZE[s.dtype])
        w.array(s.index, 8 * rows * s.chosen)
        status = lib.pyce_selective_log_softmax(s)
        w.integers(status)
        w.array(s.log_probs, rows * s.chosen * item)
        w.array(s.entropy, rows * item)
        w.array(s.softmax, 8 * rows * s.classes)
        w.array(s.log_softmax, 8 * rows * s.classes)
        return status


@contextmanager
def to(file):
    """A context in which the calls of the C backend are recorded in a file open for bytes."""
    file.write(MAGIC)
    recorder = _Recorder(_Writer(file))
    before = {name: getattr(c, name) for name in ("lib", "_run", "_cross_entropy")}
    c.lib, c._run, c._cross_entropy = recorder, recorder.pyce_run, recorder.pyce_cross_entropy
    try:
        yield
    finally:
        vars(c).update(before)
