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
# For functions that only compiled code calls: nothing to call them from Python or C, each of which
# would be compiled and optimised with a copy of the function.
_INTERNAL: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# Numba infers the types of compiled code. These names say what is meant.
Index = Any  # uintp; in the kernels' outer loops also the integers that Python passed
Real = Any  # float64, or the dtype of the logits

# Indices are unsigned: a signed index might be negative and count from the end, and this check
# keeps the compiler from using vectors.
U = np.uintp
U0, U1, U2, U3, U4, U8, U16, U32 = U(0), U(1), U(2), U(3), U(4), U(8), U(16), U(32)


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that allocates no arrays."""
    return numba.njit(**_PLAIN, **_INTERNAL)(function)


def jit_allocating(function: Callable[..., Any]) -> Any:
    """Compile a function that allocates arrays."""
    return numba.njit(**OPTIONS, **_INTERNAL)(function)


def by_dtype(float32: Any, float64: Any) -> Any:
    """A compiled function that is one of the two given, by the dtype of its first argument."""

    def generic(*arguments: Any) -> Any:
        raise NotImplementedError

    def choose(first: Any, *others: Any) -> Callable[..., Any]:
        chosen = float32 if getattr(first, "dtype", first) == types.float32 else float64
        function: Callable[..., Any] = chosen.py_func
        return function

    overload(generic, strict=False, jit_options={**_PLAIN, **_INTERNAL})(choose)
    return generic


def intrinsic_of(function: Callable[..., Any]) -> Any:
    """A function of compiled code from one that types its arguments and emits LLVM operations."""
    return intrinsic(function)


@intrinsic_of
def bits(context: Any, value: Any) -> Any:
    """The bits of a float as a signed integer of the same size."""
    to = types.int32 if value == types.float32 else types.int64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


@intrinsic_of
def from_bits(context: Any, value: Any) -> Any:
    """The float that has the bits of an int32 or int64."""
    to = types.float32 if value == types.int32 else types.float64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


def spread_to(builder: Any, value: Any, kind: Any) -> Any:
    """A number as a vector of numbers that all are equal, if `kind` is a vector's type."""
    if value.type == kind:
        return value
    if value.type != kind.element:  # Python's numbers are float64
        value = builder.fptrunc(value, kind.element)
    empty = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(empty, value, ir.IntType(32)(0))
    places = ir.VectorType(ir.IntType(32), kind.count)
    return builder.shuffle_vector(one, empty, ir.Constant(places, [0] * kind.count))


@intrinsic_of
def power_of_two(context: Any, value: Any) -> Any:
    """The float whose exponent field is the lowest bits of `value`; of numbers or of vectors."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        scalar = kind.element if isinstance(kind, ir.VectorType) else kind
        wide = scalar == ir.DoubleType()
        integer: Any = ir.IntType(64 if wide else 32)
        shift = integer(52 if wide else 23)
        if isinstance(kind, ir.VectorType):
            integer = ir.VectorType(integer, kind.count)
            shift = ir.Constant(integer, [shift.constant] * kind.count)
        return builder.bitcast(builder.shl(builder.bitcast(arguments[0], integer), shift), kind)

    return value(value), generate


@intrinsic_of
def zero_where(context: Any, condition: Any, a: Any) -> Any:
    """0 where the condition holds, else a; of numbers or of vectors."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        condition, a = arguments
        return builder.select(condition, ir.Constant(a.type, None), a)

    return a(condition, a), generate


@intrinsic_of
def zero_unless(context: Any, condition: Any, a: Any) -> Any:
    """a where the condition holds, else 0; of numbers or of vectors."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        condition, a = arguments
        return builder.select(condition, a, ir.Constant(a.type, None))

    return a(condition, a), generate


@intrinsic_of
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once; of numbers, or of vectors and numbers."""
    vectors = [kind for kind in (a, b, c) if not isinstance(kind, types.Float)]
    to = vectors[0] if vectors else a

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = cg.get_value_type(to)
        given = [spread_to(builder, value, kind) for value in arguments]
        scalar = kind.element if isinstance(kind, ir.VectorType) else kind
        name = "llvm.fma." + (f"v{kind.count}" if scalar is not kind else "")
        name += "f64" if scalar == ir.DoubleType() else "f32"
        function = ir.FunctionType(kind, [kind] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), given)

    return to(a, b, c), generate


_MACHINE = platform.machine().lower()
# Round to nearest, keep subnormal numbers, no traps.
DEFAULT_CONTROL = U(0x1F80 if _MACHINE in ("x86_64", "amd64") else 0)


@intrinsic_of
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


@intrinsic_of
def stream_fence(context: Any) -> Any:
    """Let the stores that bypassed the caches precede whatever this thread stores next."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _MACHINE in ("x86_64", "amd64"):
            kind, name = ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse.sfence"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return cg.get_dummy_value()

    return types.none(), generate


def _element(cg: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(cg.make_array(kind)(cg, builder, array).data, [index])


@intrinsic_of
def fetch_add(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Add `value` to an element of an int64 array, as one step; return what it was before."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        address = _element(cg, builder, signature.args[0], array, index)
        return builder.atomic_rmw("add", address, value, "seq_cst")

    return types.int64(array, index, types.int64), generate


@intrinsic_of
def fetch(context: Any, array: Any, index: Any) -> Any:
    """An element of an int64 array that other threads change."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(cg, builder, signature.args[0], *arguments)
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(array, index), generate


@intrinsic_of
def pause(context: Any) -> Any:
    """Tell the processor that this thread waits for another."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name, given = None, []
        if _MACHINE in ("x86_64", "amd64"):
            name = "llvm.x86.sse2.pause"
        elif _MACHINE in ("aarch64", "arm64"):
            name, given = "llvm.aarch64.hint", [ir.IntType(32)(1)]
        if name:
            kind = ir.FunctionType(ir.VoidType(), [a.type for a in given])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return cg.get_dummy_value()

    return types.none(), generate
