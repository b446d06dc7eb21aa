"""The C backend: turns a problem into pointers and sizes, calls, and turns the status into errors."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from pyce import _threads
from pyce._arguments import Array, Problem, dtype_name, label_error
from pyce._pyce import ffi, lib

NAME = "c"
CHECKS_LABELS = True

# Elements below which a call stays on the calling thread, whatever the budget; as in pyce.c.
_SERIAL_BELOW = 2 * 65536

_DTYPES = {
    "float32": lib.PYCE_FLOAT32,
    "float64": lib.PYCE_FLOAT64,
    "float16": lib.PYCE_FLOAT16,
    "bfloat16": lib.PYCE_BFLOAT16,
}
_REDUCTIONS = {"mean": lib.PYCE_MEAN, "sum": lib.PYCE_SUM, "none": lib.PYCE_NONE}
_NULL = ffi.NULL
_NO_OPERAND = (_NULL, _NULL, 0, 0)
_new = ffi.new
_from_buffer = ffi.from_buffer


def isas() -> list[str]:
    """The instruction sets that this machine runs, widest first."""
    names = []
    while (name := lib.pyce_isa(len(names))) != _NULL:
        names.append(ffi.string(name).decode())
    return names


def isa() -> str:
    """The instruction set in use."""
    return str(ffi.string(lib.pyce_isa_in_use()).decode())


def set_isa(name: str) -> None:
    """Use the named instruction set from now on, in every thread."""
    if lib.pyce_set_isa(name.encode()) != lib.PYCE_OK:
        raise ValueError(f"PYCE_ISA must be one of {', '.join(isas())}; got {name!r}")


def compiler() -> str:
    """The compiler that built the extension."""
    return str(ffi.string(lib.pyce_compiler()).decode())


# The backend is loaded on first use, so this is where the environment's word on it counts.
if os.environ.get("PYCE_ISA"):
    set_isa(os.environ["PYCE_ISA"])


def forward(p: Problem) -> float:
    return _loss(lib.PYCE_FORWARD, p)


def forward_backward(p: Problem) -> float:
    return _loss(lib.PYCE_FORWARD_BACKWARD, p)


def backward(p: Problem) -> None:
    _loss(lib.PYCE_BACKWARD, p)


def _loss(operation: int, p: Problem) -> float:
    logits = p.logits
    grad = p.grad
    labels = p.labels
    grad_loss = p.grad_loss
    grad_losses = _NULL
    if type(grad_loss) is not float:
        grad_losses = _from_buffer("double[]", grad_loss)
        grad_loss = 1.0
    target = probs_dtype = 0
    label_pointer = _NULL
    if labels is None:
        assert p.probs is not None
        target = lib.PYCE_PROBABILITIES
        probs_dtype = _DTYPES[dtype_name(p.probs.dtype) or ""]
    else:
        target = lib.PYCE_INDEX64 if labels.itemsize == 8 else lib.PYCE_INDEX32
        label_pointer = _from_buffer(labels)
    if p.contiguous:
        outer, classes, inner = p.outer, p.classes, p.inner
        outer_stride = classes * inner
        kept: Any = None
        first = (_address(logits), _NULL, outer_stride, inner)
        second = _NO_OPERAND if grad is None else (_address(grad), _NULL, outer_stride, inner)
        third = _NO_OPERAND if labels is not None else (_address(p.probs), _NULL, outer_stride, inner)
    else:
        classes = p.classes
        outer, inner, (first, second, third), kept = _walk(p.axis, logits, grad, p.probs)
    threads = 1 if logits.size < _SERIAL_BELOW else _threads.budget()
    c = _new(
        "pyce_problem *",
        (
            operation,
            _DTYPES[p.dtype_name],
            target,
            probs_dtype,
            _REDUCTIONS[p.reduction] if operation != lib.PYCE_BACKWARD else _backward_reduction(p),
            threads,
            outer,
            classes,
            inner,
            first,
            second,
            third,
            label_pointer,
            _doubles(p.weight),
            _doubles(p.sample_weight),
            grad_losses,
            grad_loss,
            math.nan if p.normalizer is None else p.normalizer,
            p.smoothing,
            p.ignore_index,
            _doubles(p.lse),
            _NULL if p.losses is None else _from_buffer(p.losses),
        ),
    )
    status = lib.pyce_run(c)
    del kept
    if status:
        if status == lib.PYCE_BAD_LABEL:
            raise label_error(c.bad_row, c.bad_value, p.classes, p.ignore_index)
        _check(status)
    return float(c.loss)


def _backward_reduction(p: Problem) -> int:
    return int(lib.PYCE_SUM if p.reduction == "none" else _REDUCTIONS[p.reduction])


def softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_SOFTMAX, x, axis, out, None)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOG_SOFTMAX, x, axis, out, None)


def logsumexp(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOGSUMEXP, x, axis, None, out)


def _matrix(operation: int, x: Array, axis: int, out: Array | None, lse: Array | None) -> None:
    outer, inner, (first, second, _), kept = _walk(axis, x, out, None)
    c = _new(
        "pyce_problem *",
        {
            "operation": operation,
            "dtype": _DTYPES[dtype_name(x.dtype) or ""],
            "reduction": lib.PYCE_SUM,
            "threads": 1 if x.size < _SERIAL_BELOW else _threads.budget(),
            "outer": outer,
            "classes": x.shape[axis],
            "inner": inner,
            "logits": first,
            "result": second,
            "normalizer": math.nan,
            "lse": _doubles(lse),
        },
    )
    _check(lib.pyce_run(c))
    del kept


def binary_cross_entropy(
    x: Array,
    t: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array | None,
    grad: Array | None,
    scale: float,
) -> float:
    total = _new("double *")
    arrays = [_NULL if a is None else _from_buffer(a) for a in (x, t, weight, pos_weight, loss, grad)]
    dtype = lib.PYCE_FLOAT64 if x.itemsize == 8 else lib.PYCE_FLOAT32
    threads = 1 if x.size < _SERIAL_BELOW // 4 else _threads.budget()
    _check(lib.pyce_binary_cross_entropy(dtype, x.size, *arrays, scale, threads, total))
    return float(total[0])


def _check(status: int) -> None:
    if status == lib.PYCE_NO_MEMORY:
        raise MemoryError("pyce could not allocate its scratch memory")
    if status:
        raise RuntimeError(ffi.string(lib.pyce_status_text(status)).decode())


def _doubles(array: Array | None) -> Any:
    return _NULL if array is None else _from_buffer("double[]", array)


def _address(array: Array) -> Any:
    """Where a C-contiguous array starts."""
    if array.dtype.kind == "V":
        array = array.view(np.uint16)  # bfloat16 has no buffer format of its own
    return _from_buffer(array)


def _walk(axis: int, *arrays: Array | None) -> tuple[int, int, list[Any], Any]:
    """How C walks up to three arrays of one shape: (outer, inner, operands, what to keep alive).

    Neighbouring dimensions that all arrays step through alike are merged. What follows the class
    axis becomes `inner` where it has unit stride in all of them; everything else becomes `outer`,
    with a table of offsets where one stride does not describe it.
    """
    present = [a for a in arrays if a is not None]
    shape = present[0].shape
    size = present[0].itemsize
    strides = [[s // a.itemsize for s in a.strides] for a in present]
    before = _merged([d for d in range(axis) if shape[d] != 1], shape, strides)
    after = _merged([d for d in range(axis + 1, len(shape)) if shape[d] != 1], shape, strides)
    inner = 1
    if after and all(step == 1 for step in after[-1][1]):
        inner = after.pop()[0]
    outer_dims = before + after
    outer = math.prod(count for count, _ in outer_dims)
    operands: list[Any] = []
    kept: list[Any] = [size]
    index = 0
    for array in arrays:
        if array is None:
            operands.append(_NO_OPERAND)
            continue
        pointer = ffi.cast("void *", array.__array_interface__["data"][0])
        table, stride = _NULL, 0
        if len(outer_dims) == 1:
            stride = outer_dims[0][1][index]
        elif outer_dims and outer:
            offsets = np.zeros(1, np.int64)
            for count, steps in outer_dims:
                offsets = np.add.outer(offsets, np.arange(count) * steps[index]).reshape(-1)
            kept.append(offsets)
            table = _from_buffer("int64_t[]", offsets)
        operands.append((pointer, table, stride, strides[index][axis]))
        index += 1
    return outer, inner, operands, kept


def _merged(
    dimensions: list[int], shape: tuple[int, ...], strides: list[list[int]]
) -> list[tuple[int, list[int]]]:
    """(length, stride in each array) of the dimensions, neighbours merged where that is exact."""
    merged: list[tuple[int, list[int]]] = []
    for d in dimensions:
        steps = [s[d] for s in strides]
        if merged:
            length, outer_steps = merged[-1]
            if all(o == s * shape[d] for o, s in zip(outer_steps, steps, strict=True)):
                merged[-1] = (length * shape[d], steps)
                continue
        merged.append((shape[d], steps))
    return merged
