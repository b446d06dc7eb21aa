"""Calls of the C interface from compiled code.

`run` fills a `pyce_problem` (csrc/pyce.h) on the stack and calls `pyce_run`. Compiled code knows
the function by the name of a symbol, because an address would not survive Numba's cache on disk. On
another backend than C, the symbol is a function of `pyce.numba._python`, which receives the same
structure. A cached function may meet another version of pyce: before each call, it compares a
digest of the structure with that of the version which is present then.

Compiled code runs without the GIL, so it does not ask `pyce._threads` how many threads a call may
use: it reads the number that `publish` wrote when that was last changed.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from pyce import _backends, _threads
from pyce._types import BackendName

FORWARD, FORWARD_BACKWARD, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = 0, 1, 3, 4, 5
MEAN, SUM, NONE, QUOTIENT = range(4)
OK, BAD_LABEL, BAD_ARGUMENT, NO_MEMORY = range(4)
DTYPES = ("float32", "float64")
NO_TARGET, INDEX32, INDEX64, PROBABILITIES = range(4)
ROW_OVERHEAD = 32
# The numbers above are those of csrc/pyce.h, which `register` checks.
_OF_THE_HEADER = {
    name: globals()[name]
    for name in (
        *("FORWARD", "FORWARD_BACKWARD", "SOFTMAX", "LOG_SOFTMAX", "LOGSUMEXP"),
        *("MEAN", "SUM", "NONE", "QUOTIENT"),
        *("OK", "BAD_LABEL", "BAD_ARGUMENT", "NO_MEMORY"),
        *("NO_TARGET", "INDEX32", "INDEX64", "PROBABILITIES", "ROW_OVERHEAD"),
    )
} | {name.upper(): number for number, name in enumerate(DTYPES)}
# Statuses that pyce.h does not have.
OTHER_VERSION, BAD_THREADS, INTERRUPTED, FAILED = 100, 101, 102, 103


class Operand(ctypes.Structure):
    """`pyce_operand` of csrc/pyce.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("outer_stride", ctypes.c_int64),
        ("class_stride", ctypes.c_int64),
    )


class Problem(ctypes.Structure):
    """`pyce_problem` of csrc/pyce.h, and a status that is written by `pyce.numba._python`."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("operation", "dtype", "target", "probs_dtype")),
        *((name, ctypes.c_int32) for name in ("reduction", "threads")),
        *((name, ctypes.c_int64) for name in ("outer", "classes", "inner")),
        *((name, Operand) for name in ("logits", "result", "probs")),
        *((name, ctypes.c_void_p) for name in ("labels", "weight", "sample_weight")),
        ("grad_losses", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("grad_loss", "normalizer", "smoothing")),
        ("lse_square_scale", ctypes.c_double),
        ("ignore_index", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lse", "losses", "reduced")),
        ("loss", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("bad_row", "bad_value")),
        ("status", ctypes.c_int64),
    )


_KINDS = {field[0]: field[1] for field in Problem._fields_}


def _offsets() -> dict[str, int]:
    """Where the fields of a `Problem` are, those of its operands as `logits.data`."""
    found = {}
    for name, kind in _KINDS.items():
        offset = getattr(Problem, name).offset
        found[name] = offset
        if kind is Operand:
            for inner in ("data", "offsets", "outer_stride", "class_stride"):
                found[f"{name}.{inner}"] = offset + getattr(Operand, inner).offset
    return found


_FIELDS = _offsets()
_DIGEST = zlib.crc32(repr((_FIELDS, sorted(_OF_THE_HEADER.items()))).encode())
_RUN, _STATE = "pyce_numba_run", "pyce_numba_state"
# The digest; the status before a call, INTERRUPTED if Python writes it; the work from which a call
# is shared; the most threads of a call, 0 if PYCE_NUM_THREADS is not valid; and how many threads
# that Python does not know, such as those of `numba.prange`, are in a large call.
_PRESENT, _STATUS, _SHARED_FROM, _THREADS, _FOREIGN = range(5)
_state = np.array([_DIGEST, OK, 2**17, 1, 0], np.int64)


def backend() -> BackendName:
    """The backend of compiled code: that of PYCE_BACKEND, or the one that "auto" stands for."""
    chosen = _backends.check_name(os.environ.get("PYCE_BACKEND") or "auto", "PYCE_BACKEND")
    if chosen == "auto":
        return next(n for n in _backends.preference() if _backends.why_not(n) is None)
    return chosen


def publish() -> None:
    """Write the number of threads where compiled code reads it."""
    try:
        _state[_THREADS] = _threads.of_process()
    except ValueError:  # PYCE_NUM_THREADS
        _state[_THREADS] = 0


def _after_fork() -> None:
    """The other threads do not exist in a child, so that none of them is in a call."""
    _state[_FOREIGN] = 0


def register() -> None:
    """Give the function and the state the names by which compiled code knows them."""
    name = backend()
    _backends.load(name)  # which reads PYCE_ISA; or an error that says why it cannot be used
    if name == "c":
        address = _address_in_c()
    else:
        from pyce.numba import _python

        address = _python.address(name)
        _state[_STATUS] = INTERRUPTED
    llvmlite.binding.add_symbol(_RUN, address)
    llvmlite.binding.add_symbol(_STATE, int(_state.ctypes.data))
    _threads.notify(publish)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _address_in_c() -> int:
    from pyce._pyce import ffi, lib

    _state[_SHARED_FROM] = lib.pyce_serial_below()
    theirs = dict(ffi.typeof("pyce_problem").fields)
    same = all(_FIELDS[name] == field.offset for name, field in theirs.items())
    same = same and theirs.keys() == _KINDS.keys() - {"status"}
    same = same and ffi.sizeof("pyce_problem") == Problem.status.offset
    same = same and all(getattr(lib, f"PYCE_{n}") == v for n, v in _OF_THE_HEADER.items())
    if not same:
        raise ImportError("the C extension and pyce.numba are of different versions of pyce")
    return int(ffi.cast("uintptr_t", ffi.addressof(lib, "pyce_run")))


# ---------------------------------------------------------------------------------------------
# LLVM

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_DOUBLE = ir.DoubleType()
_REALS = (types.float32, types.float64)


def _state_at(cg: Any, builder: Any, place: Any) -> Any:
    array = cg.get_c_value(builder, ir.ArrayType(_I64, _state.size), _STATE)
    return builder.gep(array, [_I32(0), place])


@intrinsic
def _state_of(context: Any, place: Any) -> Any:
    """An element of the state."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_state_at(cg, builder, arguments[0]), "monotonic", 8)

    return types.int64(types.int64), generate


@intrinsic
def _add_foreign(context: Any, number: Any) -> Any:
    """Add to the number of threads that Python does not know; returns it as it was before."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _state_at(cg, builder, _I64(_FOREIGN))
        return builder.atomic_rmw("add", place, arguments[0], "monotonic")

    return types.int64(types.int64), generate


_thread_state = types.ExternalFunction("PyGILState_GetThisThreadState", types.intp())


class _Structure:
    """A `Problem` on the stack, zero but for the fields that are set by their names."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        words = ir.ArrayType(_I64, ctypes.sizeof(Problem) // 8)
        memory = cgutils.alloca_once(builder, words)
        builder.store(ir.Constant(words, None), memory)
        self.address = builder.bitcast(memory, _I8.as_pointer())

    def _place(self, name: str, kind: Any) -> Any:
        offset = _I64(_FIELDS[name])
        return self._builder.bitcast(self._builder.gep(self.address, [offset]), kind.as_pointer())

    def __setitem__(self, name: str, value: Any) -> None:
        if name in _INTEGERS and value.type != _I32:
            value = self._builder.trunc(value, _I32)
        self._builder.store(value, self._place(name, value.type))

    def get(self, name: str, kind: Any) -> Any:
        return self._builder.load(self._place(name, kind))


_INTEGERS = {name for name, kind in _KINDS.items() if kind is ctypes.c_int32}
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
        p["dtype"] = _I32(_REALS.index(logits.dtype))
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
        if is_given("target") and target.dtype in _REALS:
            p["target"] = _I32(PROBABILITIES)
            p["probs_dtype"] = _I32(_REALS.index(target.dtype))
            set_operand("probs", "target")
        elif is_given("target"):
            p["target"] = _I32(INDEX32 if target.dtype.bitwidth == 32 else INDEX64)
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
        p["status"] = builder.load(_state_at(cg, builder, _I64(_STATUS)))
        result = builder.sext(builder.call(run, [p.address]), _I64)
        written = p.get("status", _I64)
        unwritten = builder.icmp_signed("==", written, _I64(OK))
        status = builder.select(unwritten, result, written)
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
    if _state_of(_PRESENT) != _DIGEST:
        return OTHER_VERSION, arrays[0].dtype.type(0), 0, 0
    threads = 1
    foreign = False
    if shape[0] * shape[2] * (shape[1] + ROW_OVERHEAD) >= _state_of(_SHARED_FROM):
        foreign = _thread_state() == 0
        if foreign:
            _add_foreign(1)
        elif _add_foreign(0) == 0:
            threads = _state_of(_THREADS)
            if threads == 0:
                return BAD_THREADS, arrays[0].dtype.type(0), 0, 0
    found = _call(operation, reduction, threads, shape, options, arrays)
    if foreign:
        _add_foreign(-1)
    return found
