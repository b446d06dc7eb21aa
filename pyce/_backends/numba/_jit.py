"""How functions are compiled: options, choice by dtype, index type, and LLVM operations.

The other modules of this package take everything that concerns the compiler from here. Nothing
outside the package is compiled, so the package's sources decide what a cached kernel holds.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

config: Any = numba.config
if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

# No fastmath: NaN and infinities have a meaning here, and the order of operations must not change.
# Fused multiply-adds are written as `fma`, so the bits do not depend on the machine's vectors.
# error_model: division by zero gives infinity and does not raise.
OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
# For functions that allocate no arrays: do not count references to their arguments. The counters
# are atomic and shared by the threads, and took a third of the time of short rows.
_PLAIN: Any = {**OPTIONS, "_nrt": False}

# Numba infers the types of compiled code. These names say what is meant.
Index = Any  # uintp; in the kernels' outer loops also the integers that Python passed
Real = Any  # float64, or the dtype of the logits

# Indices are unsigned: a signed index might be negative and count from the end, and this check
# keeps the compiler from using vectors.
U = np.uintp
U0, U1, U2, U3, U4, U8, U16, U32 = U(0), U(1), U(2), U(3), U(4), U(8), U(16), U(32)


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that allocates no arrays."""
    return numba.njit(**_PLAIN)(function)


def jit_allocating(function: Callable[..., Any]) -> Any:
    """Compile a function that allocates arrays."""
    return numba.njit(**OPTIONS)(function)


def by_dtype(float32: Any, float64: Any) -> Any:
    """A compiled function that is one of the two given, by the dtype of its first argument."""

    def generic(*arguments: Any) -> Any:
        raise NotImplementedError

    def choose(first: Any, *others: Any) -> Callable[..., Any]:
        chosen = float32 if getattr(first, "dtype", first) == types.float32 else float64
        function: Callable[..., Any] = chosen.py_func
        return function

    overload(generic, strict=False, jit_options=_PLAIN)(choose)
    return generic


def _intrinsic(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


@_intrinsic
def bits(context: Any, value: Any) -> Any:
    """The bits of a float as a signed integer of the same size."""
    to = types.int32 if value == types.float32 else types.int64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


@_intrinsic
def from_bits(context: Any, value: Any) -> Any:
    """The float that has the bits of an int32 or int64."""
    to = types.float32 if value == types.int32 else types.float64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


@_intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), generate


_MACHINE = platform.machine().lower()
# Round to nearest, keep subnormal numbers, no traps.
DEFAULT_CONTROL = U(0x1F80 if _MACHINE in ("x86_64", "amd64") else 0)


@_intrinsic
def set_control(context: Any, value: Any) -> Any:
    """Set this thread's floating-point control register and return its previous value.

    Numba's threads inherit the environment of the thread that started them, whatever that was.
    """

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments

        def call(name: str, result: Any, *given: Any) -> Any:
            kind = ir.FunctionType(result, [a.type for a in given])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)

        if _MACHINE in ("x86_64", "amd64"):
            memory = cgutils.alloca_once(builder, ir.IntType(32))
            address = builder.bitcast(memory, ir.IntType(8).as_pointer())
            call("llvm.x86.sse.stmxcsr", ir.VoidType(), address)
            before = builder.zext(builder.load(memory), value.type)
            builder.store(builder.trunc(value, ir.IntType(32)), memory)
            call("llvm.x86.sse.ldmxcsr", ir.VoidType(), address)
            return before
        if _MACHINE in ("aarch64", "arm64"):
            before = call("llvm.aarch64.get.fpcr", value.type)
            call("llvm.aarch64.set.fpcr", ir.VoidType(), value)
            return before
        return value

    return types.uintp(types.uintp), generate


def _transposition(rows: int, columns: int) -> Any:
    """target[j + c·column + v] = source[i + v·row + c] for v < rows, c < columns; c by c.

    rows and columns are 4 or 16, and one of them is 16. The numbers are moved by vector shuffles;
    the compiler by itself moves them one at a time.
    """

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, i, row, target, j, column = arguments
        dtype = signature.args[0].dtype

        def pointers(kind: Any, array: Any, first: Any, step: Any, count: int, size: int) -> Any:
            data = cg.make_array(kind)(cg, builder, array).data
            vector = ir.VectorType(cg.get_value_type(dtype), size).as_pointer()
            for n in range(count):
                at = builder.add(first, builder.mul(step, step.type(n)))
                yield builder.bitcast(builder.gep(data, [at]), vector)

        def pick(a: Any, b: Any, lanes: list[int]) -> Any:
            return builder.shuffle_vector(a, b, ir.VectorType(ir.IntType(32), len(lanes))(lanes))

        align = dtype.bitwidth // 8
        given = pointers(signature.args[0], source, i, row, rows, columns)
        v = [builder.load(pointer, align=align) for pointer in given]
        while v[0].type.count < 16:
            joined = list(range(2 * v[0].type.count))
            v = [pick(a, b, joined) for a, b in zip(v[::2], v[1::2], strict=True)]
        # A number's place is the bits of v followed by those of c. Each perfect shuffle of all
        # numbers moves one bit of v behind the bits of c.
        half = len(v) // 2
        low, high = ([n // 2 + n % 2 * 16 + first for n in range(16)] for first in (0, 8))
        for _ in range(rows.bit_length() - 1):
            v = [pick(v[n // 2], v[n // 2 + half], high if n % 2 else low) for n in range(len(v))]
        parts = [list(range(first, first + rows)) for first in range(0, 16, rows)]
        v = [pick(a, a, part) for a in v for part in parts]
        taken = pointers(signature.args[3], target, j, column, columns, rows)
        for pointer, value in zip(taken, v, strict=True):
            builder.store(value, pointer, align=align)
        return cg.get_dummy_value()

    def typing(cg: Any, source: Any, i: Any, row: Any, target: Any, j: Any, column: Any) -> Any:
        return types.none(source, i, row, target, j, column), generate

    return intrinsic(typing)


transpose_16_16, transpose_4_16 = _transposition(16, 16), _transposition(4, 16)
transpose_16_4 = _transposition(16, 4)
