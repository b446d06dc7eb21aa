"""The C backend: passes problems to the C interface as pointers, and raises its status as an error.

`csrc/pyce.h` documents the interface. Structures are filled by the names of their fields.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pyce import _threads
from pyce._dtypes import dtype_name
from pyce._problem import Problem, ShardedProblem, label_error
from pyce._pyce import ffi, lib
from pyce._types import Array, Scalar

NAME = "c"
CHECKS_LABELS = True

# Work below this, in elements + _ROW_OVERHEAD for each row, runs on the calling thread whatever the
# budget of threads, which is then not computed.
_serial_below: int = lib.pyce_serial_below()
_ROW_OVERHEAD: int = lib.PYCE_ROW_OVERHEAD

_DTYPES = {
    "float32": lib.PYCE_FLOAT32,
    "float64": lib.PYCE_FLOAT64,
    "float16": lib.PYCE_FLOAT16,
    "bfloat16": lib.PYCE_BFLOAT16,
}
# The dtype of the loss, for each dtype of logits.
_LOSSES = {n: lib.PYCE_FLOAT64 if n == "float64" else lib.PYCE_FLOAT32 for n in _DTYPES}
_REDUCTIONS = {
    "mean": lib.PYCE_MEAN,
    "sum": lib.PYCE_SUM,
    "none": lib.PYCE_NONE,
    "quotient": lib.PYCE_QUOTIENT,
}
# The instruction sets whose kernels are slower than Numba's; the figures are in
# `pyce._backends.preference`.
_SLOW_ISAS = frozenset({"scalar"})
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# Looked up once: small calls spend their time on such look-ups.
_FORWARD, _FORWARD_BACKWARD = lib.PYCE_FORWARD, lib.PYCE_FORWARD_BACKWARD
_BACKWARD = lib.PYCE_BACKWARD
_INDEX32, _INDEX64, _PROBABILITIES = lib.PYCE_INDEX32, lib.PYCE_INDEX64, lib.PYCE_PROBABILITIES
_SUM = lib.PYCE_SUM
_NULL = ffi.NULL
_PROBLEM = ffi.typeof("pyce_problem *")
_SELECTIVE = ffi.typeof("pyce_selective *")
_INT64S = ffi.typeof("int64_t[]")
_DOUBLES = ffi.typeof("double[]")
_DOUBLE = ffi.typeof("double *")
_VOID = ffi.typeof("void *")
_new = ffi.new
_from_buffer = ffi.from_buffer
_cast = ffi.cast
_run = lib.pyce_run
_cross_entropy = lib.pyce_cross_entropy
_cross_entropy_at = lib.pyce_cross_entropy_at
_scale_at = lib.pyce_scale_at


def isas() -> list[str]:
    """The names of the instruction sets that this machine supports, widest first."""
    names: list[str] = []
    while (name := lib.pyce_isa(len(names))) != _NULL:
        names.append(ffi.string(name).decode())
    return names


def is_vectorised() -> bool:
    """Whether the widest instruction set of this machine has kernels that are faster than Numba's.

    This describes the machine: it does not depend on `set_isa`.
    """
    return isas()[0] not in _SLOW_ISAS


def isa() -> str:
    """The name of the instruction set in use."""
    return str(ffi.string(lib.pyce_isa_in_use()).decode())


def set_isa(name: str) -> None:
    """Use the instruction set `name` from now on, in every thread.

    Raises `ValueError`, listing the choices, if this machine or this build does not support it.
    """
    # A variable of the environment may have bytes that are not UTF-8.
    if lib.pyce_set_isa(name.encode(errors="surrogateescape")) != lib.PYCE_OK:
        raise ValueError(f"PYCE_ISA must be one of {', '.join(isas())}; got {name!r}")


def set_cache(size: int) -> int:
    """Assume a last-level cache of `size` bytes (0: the size that the system reports).

    Returns the size assumed before. It decides whether results are streamed past the caches; no
    result depends on it.
    """
    return int(lib.pyce_set_cache(size))


def set_thread_thresholds(share: int, wake: int) -> tuple[int, int]:
    """Set the work that is worth one more thread, and the work that is worth waking a thread.

    Both count elements, and `PYCE_ROW_OVERHEAD` of `pyce.h` for each row. Returns the thresholds
    that were set before. No result depends on them.
    """
    global _serial_below
    before = ffi.new("int64_t[2]")
    lib.pyce_get_thread_thresholds(before, before + 1)
    lib.pyce_set_thread_thresholds(share, wake)
    _serial_below = lib.pyce_serial_below()
    return int(before[0]), int(before[1])


def compiler() -> str:
    """The compiler that built the extension."""
    return str(ffi.string(lib.pyce_compiler()).decode())


# The backend is imported when it is first used, so this is where the environment takes effect.
if os.environ.get("PYCE_ISA"):
    set_isa(os.environ["PYCE_ISA"])


def forward(p: Problem) -> Scalar | None:
    return _loss(_FORWARD, p)


def forward_backward(p: Problem) -> Scalar | None:
    return _loss(_FORWARD_BACKWARD, p)


def backward(p: Problem) -> None:
    _loss(_BACKWARD, p)


def _contiguous(operation: int, p: Problem, labels: Array) -> Array | None:
    """The loss of contiguous logits and int64 labels, by the function with the fewest arguments.

    Small calls are mostly of this kind. Returns None on any error.
    """
    logits, weight, grad, loss = p.logits, p.weight, p.grad, p.losses
    if loss is None:
        loss = np.empty(1, _FLOAT64 if p.dtype_name == "float64" else _FLOAT32)
    if _cross_entropy(
        operation,
        _DTYPES[p.dtype_name],
        _REDUCTIONS[p.reduction],
        1 if logits.size + _ROW_OVERHEAD * p.rows < _serial_below else _threads.budget(),
        p.outer,
        p.classes,
        p.inner,
        _from_buffer(logits),
        _from_buffer(_INT64S, labels),
        _NULL if weight is None else _from_buffer(_DOUBLES, weight),
        _NULL if grad is None else _from_buffer(grad),
        p.smoothing,
        p.ignore_index,
        _from_buffer(loss),
    ):
        return None
    return loss


def at_addresses(
    loss: int,
    lse: int,
    grad: int,
    loss_dtype: str,
    grad_loss: float,
    grad_losses: int,
    dtype: str,
    reduction: str,
    outer: int,
    classes: int,
    inner: int,
    logits: int,
    labels: int,
    probs: int,
    probs_dtype: str,
    weight: int,
    smoothing: float,
    ignore_index: int,
    most_threads: Callable[[], int],
    /,
) -> bool:
    """Cross-entropy in memory that is not a NumPy array; see `AtAddresses`."""
    work = outer * classes * inner + _ROW_OVERHEAD * outer * inner
    threads = 1 if work < _serial_below else _threads.budget(most_threads())
    if loss and not lse:
        return not _cross_entropy_at(
            _FORWARD_BACKWARD if grad else _FORWARD,
            _DTYPES[dtype],
            _REDUCTIONS[reduction],
            threads,
            outer,
            classes,
            inner,
            logits,
            labels,
            probs,
            _DTYPES[probs_dtype],
            weight,
            grad,
            smoothing,
            ignore_index,
            loss,
            _DTYPES[loss_dtype] if loss_dtype else _LOSSES[dtype],
        )
    c = _new(_PROBLEM)
    c.dtype = _DTYPES[dtype]
    c.reduction = _REDUCTIONS[reduction]
    c.threads = threads
    c.outer = outer
    c.classes = classes
    c.inner = inner
    operand = c.logits
    operand.data = _cast(_VOID, logits)
    operand.outer_stride = classes * inner
    operand.class_stride = inner
    if grad:
        c.result = operand
        c.result.data = _cast(_VOID, grad)
    if labels:
        c.target = _INDEX64
        c.labels = _cast(_VOID, labels)
    else:
        c.target = _PROBABILITIES
        c.probs_dtype = _DTYPES[probs_dtype]
        c.probs = operand
        c.probs.data = _cast(_VOID, probs)
    if weight:
        c.weight = _cast(_DOUBLE, weight)
    if lse:
        c.lse = _cast(_DOUBLE, lse)
    c.smoothing = smoothing
    c.ignore_index = ignore_index
    c.grad_loss = grad_loss
    if loss:
        c.operation = _FORWARD_BACKWARD if grad else _FORWARD
        if reduction == "none":
            c.losses = _cast(_VOID, loss)
        else:
            c.reduced = _cast(_VOID, loss)
    else:
        c.operation = _BACKWARD
        if reduction == "none":
            c.reduction = _SUM  # the factors of the rows are in grad_losses
            c.grad_losses = _cast(_DOUBLE, grad_losses)
    return not _run(c)


def scale_at(
    dtype: str,
    size: int,
    saved: int,
    result: int,
    factor: int,
    factor_dtype: str,
    most_threads: Callable[[], int],
    /,
) -> bool:
    """A saved gradient times a number; see `ScaleAt`."""
    threads = 1 if size < _serial_below else _threads.budget(most_threads())
    return not _scale_at(
        _DTYPES[dtype], size, threads, saved, result, factor, _DTYPES[factor_dtype]
    )


def _loss(operation: int, p: Problem) -> Scalar | None:
    """Run an operation on a problem; the reduced loss, None for the backward and for "none"."""
    labels = p.labels
    if (
        labels is not None
        and labels.itemsize == 8
        and p.contiguous
        and p.sample_weight is None
        and p.lse is None
        and p.normalizer is None
        and p.lse_square_scale == 0.0
        and p.dtype_name != "bfloat16"
    ):
        loss = _contiguous(operation, p, labels)
        if loss is not None:
            return None if loss is p.losses else loss[0]
    return _general(operation, p)


def _general(operation: int, p: Problem) -> Scalar | None:
    """Any loss, by `pyce_run`; raises the error that belongs to its status."""
    grad, labels, probs, grad_loss = p.grad, p.labels, p.probs, p.grad_loss
    c = _new(_PROBLEM)
    keep_alive = None
    if p.contiguous:
        address = _address if p.dtype_name == "bfloat16" else _from_buffer
        c.outer, c.inner = p.outer, p.inner
        operand = c.logits
        operand.data = address(p.logits)
        operand.outer_stride = p.classes * p.inner
        operand.class_stride = p.inner
        # The same strides:
        if grad is not None:
            c.result = operand
            c.result.data = address(grad)
        if probs is not None:
            c.probs = operand
            c.probs.data = _address(probs)
    else:
        keep_alive = _set_operands(c, p.axis, p.logits, grad, probs)
    c.operation = operation
    c.dtype = _DTYPES[p.dtype_name]
    c.threads = _threads_for(p.logits.size, p.rows)
    c.classes = p.classes
    c.smoothing = p.smoothing
    c.lse_square_scale = p.lse_square_scale
    c.ignore_index = p.ignore_index
    if labels is not None:
        c.target = _INDEX64 if labels.itemsize == 8 else _INDEX32
        c.labels = _from_buffer(labels)
    else:
        assert probs is not None
        c.target = _PROBABILITIES
        c.probs_dtype = _DTYPES[dtype_name(probs.dtype) or ""]
    if p.weight is not None:
        c.weight = _from_buffer(_DOUBLES, p.weight)
    if p.sample_weight is not None:
        c.sample_weight = _from_buffer(_DOUBLES, p.sample_weight)
    if type(grad_loss) is float:
        c.grad_loss = grad_loss
    else:
        c.grad_loss = 1.0
        c.grad_losses = _from_buffer(_DOUBLES, grad_loss)
    reduction: str = p.reduction
    if operation == _BACKWARD and reduction == "none":
        reduction = "sum"  # the factors of the rows are in grad_losses
    elif reduction == "mean" and p.normalizer is not None:
        reduction = "quotient"
        c.normalizer = p.normalizer
    c.reduction = _REDUCTIONS[reduction]
    if p.lse is not None:
        c.lse = _from_buffer(_DOUBLES, p.lse)
    # C writes the reduced loss in its own dtype: a conversion here would depend on the caller's
    # floating-point environment, and set its status flags.
    loss = None
    if p.losses is not None:
        c.losses = _from_buffer(p.losses)
    elif operation != _BACKWARD:
        loss = np.empty(1, _FLOAT64 if p.dtype_name == "float64" else _FLOAT32)
        c.reduced = _from_buffer(loss)
    status = _run(c)
    del keep_alive
    if status:
        if status == lib.PYCE_BAD_LABEL:
            raise label_error(c.bad_row, c.bad_value, p.classes, p.ignore_index)
        _check(status)
    return None if loss is None else loss[0]


def partial(p: ShardedProblem, state: Array) -> None:
    """Write the states of the rows after the classes of the own shard; see `Backend`."""
    c, keep_alive = _sharded(p)
    c.operation = _FORWARD
    c.result.data = _NULL
    c.reduction = _SUM
    _check_shards(lib.pyce_partial(c, keep_alive[0], _from_buffer(_DOUBLES, state)), c, p)


def state_size(p: ShardedProblem, classes: int) -> int:
    """The numbers of a row's state after so many classes; see `Backend`."""
    return int(lib.pyce_state_size(_fields(p), classes))


def complete(p: ShardedProblem, states: list[Array]) -> Scalar | None:
    """Loss and gradient of the own shard from the states of all; see `Backend`."""
    c, keep_alive = _sharded(p)
    c.operation = _FORWARD if p.grad is None else _FORWARD_BACKWARD
    quotient = p.reduction == "mean" and p.normalizer is not None
    if quotient:
        c.normalizer = p.normalizer
    c.reduction = _REDUCTIONS["quotient" if quotient else p.reduction]
    c.grad_loss = p.grad_loss
    loss = None
    if p.losses is not None:
        c.losses = _from_buffer(p.losses)
    else:
        loss = np.empty(1, _FLOAT64 if p.dtype_name == "float64" else _FLOAT32)
        c.reduced = _from_buffer(loss)
    pointers = ffi.new("double *[]", [_from_buffer(_DOUBLES, state) for state in states])
    _check_shards(lib.pyce_complete(c, keep_alive[0], pointers), c, p)
    return None if loss is None else loss[0]


def _sharded(p: ShardedProblem) -> tuple[Any, Any]:
    """The `pyce_problem`, and what must outlive the call: first of all its `pyce_shards`."""
    bounds = ffi.new("int64_t[]", p.bounds)
    shards = ffi.new("pyce_shards *", {"count": len(p.bounds) - 1, "own": p.own, "bounds": bounds})
    c = _fields(p)
    tables = None
    if p.logits.size:
        tables = _set_operands(c, p.axis, p.logits, p.grad, p.probs, with_inner=False)
    return c, (shards, bounds, tables)


def _fields(p: ShardedProblem) -> Any:
    """The `pyce_problem` without its operands."""
    c = _new(_PROBLEM)
    c.outer, c.inner = p.rows, 1
    c.dtype = _DTYPES[p.dtype_name]
    c.threads = _threads_for(p.logits.size, p.rows)
    c.classes = p.classes
    c.smoothing = p.smoothing
    c.lse_square_scale = p.lse_square_scale
    c.ignore_index = p.ignore_index
    if p.labels is not None:
        c.target = _INDEX64 if p.labels.itemsize == 8 else _INDEX32
        c.labels = _from_buffer(p.labels)
    else:
        assert p.probs is not None
        c.target = _PROBABILITIES
        c.probs_dtype = _DTYPES[dtype_name(p.probs.dtype) or ""]
    if p.sample_weight is not None:
        c.sample_weight = _from_buffer(_DOUBLES, p.sample_weight)
    return c


def _check_shards(status: int, c: Any, p: ShardedProblem) -> None:
    if status == lib.PYCE_BAD_LABEL:
        raise label_error(c.bad_row, c.bad_value, p.classes, p.ignore_index)
    _check(status)


def softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_SOFTMAX, x, axis, out, None)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOG_SOFTMAX, x, axis, out, None)


def logsumexp(x: Array, axis: int, out: Array) -> None:
    _matrix(lib.PYCE_LOGSUMEXP, x, axis, None, out)


def _matrix(operation: int, x: Array, axis: int, out: Array | None, lse: Array | None) -> None:
    """Softmax, log-softmax (both to `out`) or logsumexp (to `lse`)."""
    c = _new(_PROBLEM)
    keep_alive = _set_operands(c, axis, x, out, None)
    c.operation = operation
    c.dtype = _DTYPES[dtype_name(x.dtype) or ""]
    c.reduction = lib.PYCE_SUM
    c.threads = _threads_for(x.size, c.outer * c.inner)
    c.classes = x.shape[axis]
    if lse is not None:
        c.lse = _from_buffer(_DOUBLES, lse)
    status = _run(c)
    del keep_alive
    _check(status)


def selective(
    x: Array,
    temperature: float,
    index: Array | None,
    log_probs: Array | None,
    entropy: Array | None,
    softmax: Array | None,
    log_softmax: Array | None,
) -> None:
    """Results of the rows of x with a temperature; see `Selective`."""
    of_logits = _new(_PROBLEM)
    keep_alive = _set_operands(of_logits, x.ndim - 1, x, None, None)
    s = _new(_SELECTIVE)
    s.dtype = _DTYPES[dtype_name(x.dtype) or ""]
    s.outer, s.inner, s.classes = of_logits.outer, of_logits.inner, x.shape[-1]
    s.threads = _threads_for(x.size, s.outer * s.inner)
    s.logits = of_logits.logits
    s.temperature = temperature
    if index is not None and log_probs is not None:
        s.chosen = index.shape[1]
        s.index = _from_buffer(_INT64S, index)
        s.log_probs = _from_buffer(log_probs)
    if entropy is not None:
        s.entropy = _from_buffer(entropy)
    if softmax is not None:
        s.softmax = _from_buffer(_DOUBLES, softmax)
    if log_softmax is not None:
        s.log_softmax = _from_buffer(_DOUBLES, log_softmax)
    status = lib.pyce_selective_log_softmax(s)
    del keep_alive
    _check(status)


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
    threads = 1 if x.size < lib.PYCE_BERNOULLI_SERIAL_BELOW else _threads.budget()
    _check(lib.pyce_binary_cross_entropy(dtype, x.size, *pointers, scale, threads, total))
    return float(total[0])


def _check(status: int) -> None:
    """Raise the error that belongs to a status."""
    if status == lib.PYCE_NO_MEMORY:
        raise MemoryError("pyce could not allocate its scratch memory")
    if status:
        raise RuntimeError(ffi.string(lib.pyce_status_text(status)).decode())


def _threads_for(elements: int, rows: int) -> int:
    """The number of threads to allow."""
    return 1 if elements + _ROW_OVERHEAD * rows < _serial_below else _threads.budget()


def _address(array: Array) -> Any:
    """A pointer to a C-contiguous array; bfloat16 has no buffer format of its own."""
    return _from_buffer(array.view(np.uint16) if array.dtype.kind == "V" else array)


def _set_operands(
    c: Any,
    axis: int,
    logits: Array,
    result: Array | None,
    probs: Array | None,
    with_inner: bool = True,
) -> list[Array]:
    """Set outer, inner and the operands of a `pyce_problem` for arrays of one shape.

    Dimensions that follow each other, apart from the class axis, and are contiguous to each other
    in all arrays are merged. The last one becomes `inner` if its stride is 1 in all arrays, unless
    `with_inner` is false. All others become `outer`, with a table of offsets where one stride does
    not describe them.

    Returns the tables of offsets, which must outlive the call.
    """
    given = ((c.logits, logits), (c.result, result), (c.probs, probs))
    present = [(operand, array) for operand, array in given if array is not None]
    shape = logits.shape
    strides = [[s // array.itemsize for s in array.strides] for _, array in present]
    dims = _merged([d for d in range(len(shape)) if d != axis and shape[d] != 1], shape, strides)
    inner = 1
    if with_inner and dims and all(step == 1 for step in dims[-1][1]):
        inner = dims.pop()[0]
    outer = math.prod(count for count, _ in dims)
    c.outer, c.inner = outer, inner
    tables: list[Array] = []
    for index, (operand, array) in enumerate(present):
        operand.data = _cast(_VOID, array.__array_interface__["data"][0])
        # Arrays that are one in memory have equal strides, also where these lead nowhere.
        operand.class_stride = strides[index][axis] if shape[axis] > 1 else 1
        if len(dims) == 1:
            operand.outer_stride = dims[0][1][index]
        elif dims and outer:
            offsets = np.zeros(1, np.int64)
            for count, steps in dims:
                offsets = np.add.outer(offsets, np.arange(count) * steps[index]).reshape(-1)
            tables.append(offsets)
            operand.offsets = _from_buffer(_INT64S, offsets)
    return tables


def _merged(
    dimensions: list[int], shape: tuple[int, ...], strides: list[list[int]]
) -> list[tuple[int, list[int]]]:
    """(length, stride in each array) of the dimensions, neighbours merged where possible."""
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
