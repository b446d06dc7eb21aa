"""Calls of the C interface from compiled code.

`run` fills a `pyce_problem` (csrc/pyce.h) on the stack and calls `pyce_run`. Compiled code knows
the function by the name of a symbol, because an address would not survive Numba's cache on disk.
The offsets of the structure are those of the library that is present when a function is compiled. A
cached function may meet another library: before each call, it compares a digest of the offsets with
that of the library which is present then.

Compiled code runs without the GIL, so it does not ask `pyce._threads` how many threads a call may
use: it reads the number that `publish` wrote when that was last changed.
"""

from __future__ import annotations

import zlib
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from pyce import _backends, _threads

FORWARD, FORWARD_BACKWARD, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = 0, 1, 3, 4, 5
MEAN, SUM, NONE, QUOTIENT = range(4)
OK, BAD_LABEL, BAD_ARGUMENT, NO_MEMORY = range(4)
OTHER_LIBRARY, BAD_THREADS = 100, 101  # statuses that pyce.h does not have
ROW_OVERHEAD = 32
_DTYPES = {types.float32: 0, types.float64: 1}
_NO_TARGET, _INDEX32, _INDEX64, _PROBABILITIES = range(4)
# The numbers above are those of csrc/pyce.h.
_OF_THE_HEADER = {
    "FORWARD": FORWARD,
    "FORWARD_BACKWARD": FORWARD_BACKWARD,
    "SOFTMAX": SOFTMAX,
    "LOG_SOFTMAX": LOG_SOFTMAX,
    "LOGSUMEXP": LOGSUMEXP,
    "MEAN": MEAN,
    "SUM": SUM,
    "NONE": NONE,
    "QUOTIENT": QUOTIENT,
    "OK": OK,
    "BAD_LABEL": BAD_LABEL,
    "BAD_ARGUMENT": BAD_ARGUMENT,
    "NO_MEMORY": NO_MEMORY,
    "ROW_OVERHEAD": ROW_OVERHEAD,
    "FLOAT32": _DTYPES[types.float32],
    "FLOAT64": _DTYPES[types.float64],
    "NO_TARGET": _NO_TARGET,
    "INDEX32": _INDEX32,
    "INDEX64": _INDEX64,
    "PROBABILITIES": _PROBABILITIES,
}

_RUN, _SERIAL_BELOW, _STATE = "pyce_numba_run", "pyce_numba_serial_below", "pyce_numba_state"
# The digest of the library, 0 without the C extension; the most threads of a call, 0 if
# PYCE_NUM_THREADS is not valid; and how many threads that Python does not know, such as those of
# `numba.prange`, are in a large call.
_DIGEST, _THREADS, _FOREIGN = range(3)
_state = np.zeros(3, np.int64)

# Offset and C type of each field of `pyce_problem`, those of structures in it as `logits.data`.
_fields: dict[str, tuple[int, str]] = {}
_size = 0


def _fields_of(structure: Any) -> dict[str, tuple[int, str]]:
    found = {}
    for name, field in structure.fields:
        if field.type.kind == "struct":
            inner = _fields_of(field.type)
            found.update({f"{name}.{n}": (field.offset + o, c) for n, (o, c) in inner.items()})
        else:
            found[name] = field.offset, field.type.cname
    return found


def publish() -> None:
    """Write the number of threads where compiled code reads it."""
    try:
        _state[_THREADS] = _threads.of_process()
    except ValueError:  # PYCE_NUM_THREADS
        _state[_THREADS] = 0


def register() -> None:
    """Give the C functions the names by which compiled code knows them.

    Without the C extension the names exist, since LLVM ends a process that lacks a symbol, and
    cached functions that call it raise an error instead.
    """
    global _size
    address = int(_state.ctypes.data)
    functions = {_RUN: address, _SERIAL_BELOW: address}
    if _backends.why_not("c") is None:
        _backends.load("c")  # it reads PYCE_ISA
        from pyce._pyce import ffi, lib

        other = {n for n, value in _OF_THE_HEADER.items() if getattr(lib, f"PYCE_{n}") != value}
        assert not other, other
        _fields.update(_fields_of(ffi.typeof("pyce_problem")))
        _size = ffi.sizeof("pyce_problem")
        _state[_DIGEST] = zlib.crc32(repr((_size, sorted(_fields.items()))).encode()) + 1
        for symbol, name in ((_RUN, "pyce_run"), (_SERIAL_BELOW, "pyce_serial_below")):
            functions[symbol] = int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
    for symbol, place in {**functions, _STATE: address}.items():
        llvmlite.binding.add_symbol(symbol, place)
    publish()
    _threads.watchers.append(publish)


# ---------------------------------------------------------------------------------------------
# LLVM

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_DOUBLE = ir.DoubleType()


def _state_at(cg: Any, builder: Any, place: int) -> Any:
    array = cg.get_c_value(builder, ir.ArrayType(_I64, _state.size), _STATE)
    return builder.gep(array, [_I32(0), _I32(place)])


@intrinsic
def _threads_of_process(context: Any) -> Any:
    """The most threads of a call."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_state_at(cg, builder, _THREADS), "monotonic", 8)

    return types.int64(), generate


@intrinsic
def _add_foreign(context: Any, number: Any) -> Any:
    """Add to the number of threads that Python does not know; returns it as it was before."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _state_at(cg, builder, _FOREIGN)
        return builder.atomic_rmw("add", place, arguments[0], "monotonic")

    return types.int64(types.int64), generate


_serial_below = types.ExternalFunction(_SERIAL_BELOW, types.int64())
_thread_state = types.ExternalFunction("PyGILState_GetThisThreadState", types.intp())


@intrinsic
def _other_library(context: Any) -> Any:
    """Whether the C extension is not the one that this was compiled for."""
    digest = int(_state[_DIGEST])

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        present = builder.load(_state_at(cg, builder, _DIGEST))
        return builder.icmp_signed("!=", present, _I64(digest))

    return types.boolean(), generate


class _Structure:
    """A `pyce_problem` on the stack, zero but for the fields that are set by their names."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        words = ir.ArrayType(_I64, -(-_size // 8))
        memory = cgutils.alloca_once(builder, words)
        builder.store(ir.Constant(words, None), memory)
        self.address = builder.bitcast(memory, _I8.as_pointer())

    def _place(self, name: str, kind: Any) -> Any:
        offset = _I64(_fields[name][0])
        return self._builder.bitcast(self._builder.gep(self.address, [offset]), kind.as_pointer())

    def __setitem__(self, name: str, value: Any) -> None:
        if _fields[name][1] == "int32_t" and value.type != _I32:
            value = self._builder.trunc(value, _I32)
        self._builder.store(value, self._place(name, value.type))

    def get(self, name: str, kind: Any) -> Any:
        return self._builder.load(self._place(name, kind))


_SHAPE = ("outer", "classes", "inner")
_OPTIONS = ("smoothing", "lse_square_scale", "normalizer", "ignore_index")
_ARRAYS = ("logits", "result", "target", "weight", "sample_weight", "lse", "losses")
NO_OPTIONS = (0.0, 0.0, 0.0, 0)


@intrinsic
def _call(
    context: Any,
    operation: Any,
    reduction: Any,
    threads: Any,
    shape: Any,
    options: Any,
    arrays: Any,
) -> Any:
    """`pyce_run`; the arguments are those of `run`."""
    of_array = dict(zip(_ARRAYS, arrays, strict=True))
    logits, target = of_array["logits"], of_array["target"]
    returned = types.Tuple((types.int64, logits.dtype, types.int64, types.int64))

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *numbers, shape, options, values = arguments
        array = dict(zip(_ARRAYS, cgutils.unpack_tuple(builder, values), strict=True))
        p = _Structure(builder)
        for name, number in zip(("operation", "reduction", "threads"), numbers, strict=True):
            p[name] = number
        sizes = cgutils.unpack_tuple(builder, shape)
        for name, number in zip(_SHAPE, sizes, strict=True):
            p[name] = number
        for name, number in zip(_OPTIONS, cgutils.unpack_tuple(builder, options), strict=True):
            p[name] = number
        p["dtype"] = _I32(_DTYPES[logits.dtype])
        p["grad_loss"] = _DOUBLE(1.0)

        def address(name: str) -> Any:
            data = cg.make_array(of_array[name])(cg, builder, array[name]).data
            return builder.bitcast(data, _I8.as_pointer())

        def set_operand(field: str, name: str) -> None:
            p[f"{field}.data"] = address(name)
            p[f"{field}.outer_stride"] = builder.mul(sizes[1], sizes[2])
            p[f"{field}.class_stride"] = sizes[2]

        def is_given(name: str) -> bool:
            return isinstance(of_array[name], types.Array)

        set_operand("logits", "logits")
        if is_given("result"):
            set_operand("result", "result")
        if is_given("target") and target.dtype in _DTYPES:
            p["target"] = _I32(_PROBABILITIES)
            p["probs_dtype"] = _I32(_DTYPES[target.dtype])
            set_operand("probs", "target")
        elif is_given("target"):
            p["target"] = _I32(_INDEX32 if target.dtype.bitwidth == 32 else _INDEX64)
            p["labels"] = address("target")
        for name in ("weight", "sample_weight", "lse", "losses"):
            if is_given(name):
                p[name] = address(name)
        # C rounds the loss itself: a conversion here would depend on the caller's floating-point
        # environment.
        loss = cgutils.alloca_once(builder, cg.get_value_type(logits.dtype))
        builder.store(ir.Constant(loss.type.pointee, 0.0), loss)
        if is_given("target") and not is_given("losses"):
            p["reduced"] = builder.bitcast(loss, _I8.as_pointer())
        kind = ir.FunctionType(_I32, [_I8.as_pointer()])
        run = cgutils.get_or_insert_function(builder.module, kind, _RUN)
        status = builder.sext(builder.call(run, [p.address]), _I64)
        found = [status, builder.load(loss), p.get("bad_row", _I64), p.get("bad_value", _I64)]
        return cg.make_tuple(builder, returned, found)

    integer = types.int64
    exact = types.UniTuple(integer, 3), types.Tuple((*[types.float64] * 3, integer))
    return returned(integer, integer, integer, *exact, arrays), generate


# ---------------------------------------------------------------------------------------------
# Threads


@register_jitable
def run(operation, reduction, shape, options, arrays):
    """One computation on contiguous arrays, by as many threads as are worth it and allowed.

    A call in a thread that Python does not know is in a parallel region, such as `numba.prange`,
    and runs on this thread alone. So does one in a thread that Python knows while there are others:
    it may be the thread that began the region.

    Parameters
    ----------
    operation, reduction
        Numbers of pyce.h.
    shape
        outer, classes and inner, int64.
    options
        The smoothing, `lse_square_scale`, the normalizer, all float64, and `ignore_index`, int64.
    arrays
        Logits, result, target (labels of int32 or int64, or probabilities), weight and sample
        weight in float64, lse in float64, and the losses of the rows; None for what is absent.

    Returns the status, the reduced loss in its dtype, and for a bad label its row and its value.
    """
    if _other_library():
        return OTHER_LIBRARY, arrays[0].dtype.type(0), 0, 0
    threads = 1
    foreign = False
    if shape[0] * shape[2] * (shape[1] + ROW_OVERHEAD) >= _serial_below():
        foreign = _thread_state() == 0
        if foreign:
            _add_foreign(1)
        elif _add_foreign(0) == 0:
            threads = _threads_of_process()
            if threads == 0:
                return BAD_THREADS, arrays[0].dtype.type(0), 0, 0
    found = _call(operation, reduction, threads, shape, options, arrays)
    if foreign:
        _add_foreign(-1)
    return found
