"""The C backend: a problem as pointers and sizes, one call, and its status as an error."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pyce import _threads
from pyce._dtypes import dtype_name
from pyce._problem import Problem, label_error
from pyce._pyce import ffi, lib
from pyce._types import Array

NAME = "c"
CHECKS_LABELS = True

# Below this a call stays on the calling thread, whatever the budget: elements, and what a row costs
# beside them, in elements; as in pyce.c.
_SERIAL_BELOW = 2 * 65536
_PER_ROW = 32

_DTYPES = {
    "float32": lib.PYCE_FLOAT32,
    "float64": lib.PYCE_FLOAT64,
    "float16": lib.PYCE_FLOAT16,
    "bfloat16": lib.PYCE_BFLOAT16,
}
_REDUCTIONS = {
    "mean": lib.PYCE_MEAN,
    "sum": lib.PYCE_SUM,
    "none": lib.PYCE_NONE,
    "quotient": lib.PYCE_QUOTIENT,
}
_NULL = ffi.NULL
_NO_OPERAND = (_NULL, _NULL, 0, 0)
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_PROBLEM = ffi.typeof("pyce_problem *")
_FORWARD, _FORWARD_BACKWARD = lib.PYCE_FORWARD, lib.PYCE_FORWARD_BACKWARD
_BACKWARD = lib.PYCE_BACKWARD
_INDEX32, _INDEX64, _PROBABILITIES = lib.PYCE_INDEX32, lib.PYCE_INDEX64, lib.PYCE_PROBABILITIES
_new = ffi.new
_from_buffer = ffi.from_buffer
_cast = ffi.cast
_LABELS = ffi.typeof("int64_t[]")
_DOUBLES = ffi.typeof("double[]")
_LABEL = ffi.typeof("int64_t *")
_DOUBLE = ffi.typeof("double *")
_VOID = ffi.typeof("void *")
_run = lib.pyce_run
_cross_entropy = lib.pyce_cross_entropy


def isas() -> list[str]:
    """The instruction sets that this machine runs, widest first."""
    names: list[str] = []
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


def set_cache(size: int) -> int:
    """Take the last-level cache to have `size` bytes (0: what the system says) and return the size
    it was taken for. It decides whether results go past the cache; no result depends on it.
    """
    return int(lib.pyce_set_cache(size))


def set_worth(sharing: int, waking: int) -> None:
    """How large a job must be for a thread: with workers that are awake, and to wake them.

    In elements and 32 for each row; 65536 and 262144 to begin with. No result depends on it.
    """
    global _SERIAL_BELOW
    lib.pyce_set_worth(sharing, waking)
    _SERIAL_BELOW = 2 * sharing


def compiler() -> str:
    """The compiler that built the extension."""
    return str(ffi.string(lib.pyce_compiler()).decode())


# The backend is loaded on first use, so this is where the environment's word on it counts.
if os.environ.get("PYCE_ISA"):
    set_isa(os.environ["PYCE_ISA"])


def forward(p: Problem) -> Any:
    return _loss(_FORWARD, p)


def forward_backward(p: Problem) -> Any:
    return _loss(_FORWARD_BACKWARD, p)


def backward(p: Problem) -> None:
    _loss(_BACKWARD, p)


def _common(operation: int, p: Problem, labels: Array) -> Array | None:
    """The case that small calls are made of, with less to fill in; None where it went wrong."""
    logits, weight, grad, loss = p.logits, p.weight, p.grad, p.losses
    if loss is None:
        loss = np.empty(1, _FLOAT64 if p.dtype_name == "float64" else _FLOAT32)
    if _cross_entropy(
        operation,
        _DTYPES[p.dtype_name],
        _REDUCTIONS[p.reduction],
        1 if logits.size + _PER_ROW * p.rows < _SERIAL_BELOW else _threads.budget(),
        p.outer,
        p.classes,
        p.inner,
        _from_buffer(logits),
        _from_buffer(_LABELS, labels),
        _NULL if weight is None else _from_buffer(_DOUBLES, weight),
        _NULL if grad is None else _from_buffer(grad),
        p.smoothing,
        p.ignore_index,
        _from_buffer(loss),
    ):
        return None
    return loss


def at_addresses(
    *,
    dtype: str,
    reduction: str,
    outer: int,
    classes: int,
    inner: int,
    logits: int,
    labels: int,
    weight: int,
    grad: int,
    smoothing: float,
    ignore_index: int,
    loss: int,
    most_threads: Callable[[], int],
) -> bool:
    """The same for memory that is no array of NumPy's; 0 is no address, and without `grad` only the
    loss is computed.

    All is checked but the values of the labels. False, with nothing written, where it went wrong.
    """
    size = outer * classes * inner + _PER_ROW * outer * inner
    return not _cross_entropy(
        _FORWARD_BACKWARD if grad else _FORWARD,
        _DTYPES[dtype],
        _REDUCTIONS[reduction],
        1 if size < _SERIAL_BELOW else min(_threads.budget(), most_threads()),
        outer,
        classes,
        inner,
        _cast(_VOID, logits),
        _cast(_LABEL, labels),
        _cast(_DOUBLE, weight) if weight else _NULL,
        _cast(_VOID, grad) if grad else _NULL,
        smoothing,
        ignore_index,
        _cast(_VOID, loss),
    )


def _loss(operation: int, p: Problem) -> Any:
    labels = p.labels
    if (
        labels is not None
        and labels.itemsize == 8
        and p.contiguous
        and p.sample_weight is None
        and p.lse is None
        and p.normalizer is None
        and p.dtype_name != "bfloat16"
    ):
        loss = _common(operation, p, labels)
        if loss is not None:
            return None if loss is p.losses else loss[0]
    return _general(operation, p)


def _general(operation: int, p: Problem) -> Any:
    # The structure is filled in one go, in the order of pyce.h.
    logits, grad, labels, probs = p.logits, p.grad, p.labels, p.probs
    weight, sample_weight, lse, losses = p.weight, p.sample_weight, p.lse, p.losses
    grad_loss: Any = p.grad_loss
    grad_losses = _NULL
    if type(grad_loss) is not float:
        grad_losses = _from_buffer("double[]", grad_loss)
        grad_loss = 1.0
    second = third = _NO_OPERAND
    probs_dtype = 0
    classes = p.classes
    if p.contiguous:
        outer, inner = p.outer, p.inner
        stride = classes * inner
        address = _from_buffer if p.dtype_name != "bfloat16" else _bfloat16_address
        kept: Any = None
        first: Any = (address(logits), _NULL, stride, inner)
        if grad is not None:
            second = (address(grad), _NULL, stride, inner)
        if probs is not None:
            third = (_bfloat16_address(probs), _NULL, stride, inner)
    else:
        outer, inner, (first, second, third), kept = _walk(p.axis, logits, grad, probs)
    if labels is None:
        assert probs is not None
        target = _PROBABILITIES
        label_pointer = _NULL
        probs_dtype = _DTYPES[dtype_name(probs.dtype) or ""]
    else:
        target = _INDEX64 if labels.itemsize == 8 else _INDEX32
        label_pointer = _from_buffer(labels)
    reduction: str = p.reduction
    if operation == _BACKWARD and reduction == "none":
        reduction = "sum"  # the factors of the rows are in grad_losses
    elif reduction == "mean" and p.normalizer is not None:
        reduction = "quotient"
    # Written by C in its own dtype: a conversion here would be subject to the caller's
    # floating-point environment, and leave its flags there.
    loss = None
    if operation != _BACKWARD and losses is None:
        loss = np.empty(1, _FLOAT64 if p.dtype_name == "float64" else _FLOAT32)
    c = _new(
        _PROBLEM,
        (
            operation,
            _DTYPES[p.dtype_name],
            target,
            probs_dtype,
            _REDUCTIONS[reduction],
            1 if logits.size + _PER_ROW * p.rows < _SERIAL_BELOW else _threads.budget(),
            outer,
            classes,
            inner,
            first,
            second,
            third,
            label_pointer,
            _NULL if weight is None else _from_buffer("double[]", weight),
            _NULL if sample_weight is None else _from_buffer("double[]", sample_weight),
            grad_losses,
            grad_loss,
            0.0 if p.normalizer is None else p.normalizer,
            p.smoothing,
            p.ignore_index,
            _NULL if lse is None else _from_buffer("double[]", lse),
            _NULL if losses is None else _from_buffer(losses),
            _NULL if loss is None else _from_buffer(loss),
        ),
    )
    status = _run(c)
    del kept
    if status:
        if status == lib.PYCE_BAD_LABEL:
            raise label_error(c.bad_row, c.bad_value, classes, p.ignore_index)
        _check(status)
    return None if loss is None else loss[0]


def softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_SOFTMAX, x, axis, out, None)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOG_SOFTMAX, x, axis, out, None)


def logsumexp(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOGSUMEXP, x, axis, None, out)


def _matrix(operation: int, x: Array, axis: int, out: Array | None, lse: Array | None) -> None:
    outer, inner, (first, second, _), kept = _walk(axis, x, out, None)
    c = _new(
        _PROBLEM,
        {
            "operation": operation,
            "dtype": _DTYPES[dtype_name(x.dtype) or ""],
            "reduction": lib.PYCE_SUM,
            "threads": 1 if x.size < _SERIAL_BELOW // _PER_ROW else _threads.budget(),
            "outer": outer,
            "classes": x.shape[axis],
            "inner": inner,
            "logits": first,
            "result": second,
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
    arrays = [x, t, weight, pos_weight, loss, grad]
    pointers = [_NULL if a is None else _from_buffer(a) for a in arrays]
    dtype = lib.PYCE_FLOAT64 if x.itemsize == 8 else lib.PYCE_FLOAT32
    threads = 1 if x.size < _SERIAL_BELOW // 4 else _threads.budget()
    _check(lib.pyce_binary_cross_entropy(dtype, x.size, *pointers, scale, threads, total))
    return float(total[0])


def _check(status: int) -> None:
    if status == lib.PYCE_NO_MEMORY:
        raise MemoryError("pyce could not allocate its scratch memory")
    if status:
        raise RuntimeError(ffi.string(lib.pyce_status_text(status)).decode())


def _doubles(array: Array | None) -> Any:
    return _NULL if array is None else _from_buffer("double[]", array)


def _bfloat16_address(array: Array) -> Any:
    """Where a C-contiguous array starts, bfloat16 or not; that type has no buffer format."""
    return _from_buffer(array.view(np.uint16) if array.dtype.kind == "V" else array)


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
