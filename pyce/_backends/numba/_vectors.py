"""Vectors of numbers as values of compiled code: LANES float32 in registers, or as many float64.

The compiler makes vector instructions of simple loops over arrays, but keeps no sums in registers
without changing their order, finds no maximum of floats, and works on the rest of a loop one number
at a time. Where this matters, the kernels use vectors: `load` and `store`, arithmetic by operators,
and the functions below. A function of numbers that uses nothing else applies to vectors, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from pyce._backends.numba._jit import U2, Index, U, intrinsic_of, jit, spread_to
from pyce._types import Array

# Numbers in a vector, whatever their dtype.
LANES = U(16)
# Bytes that addresses of `stream` are multiples of: a cache line.
ALIGNMENT = 64


class _Vector(types.Type):  # type: ignore[misc]
    """A vector of numbers or truth values of one type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"vector({dtype})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        of = ir.IntType(1) if kind.dtype == types.boolean else manager[kind.dtype].get_value_type()
        super().__init__(manager, kind, ir.VectorType(of, int(LANES)))


def _define(
    operation: Any, emit: Callable[..., Any], result: Callable[[Any], Any] = lambda kind: kind
) -> None:
    """Let an operator of two numbers apply to vectors, or to a vector and a number, of one type."""

    @infer_global(operation)
    class _Operation(AbstractTemplate):  # type: ignore[misc]
        def generic(self, arguments: Any, keywords: Any) -> Any:
            vectors = [kind for kind in arguments if isinstance(kind, _Vector)]
            return signature(result(vectors[0]), *arguments) if vectors else None

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [kind for kind in signature.args if isinstance(kind, _Vector)]
        kind = cg.get_value_type(vectors[0])
        return emit(builder, *(spread_to(builder, value, kind) for value in arguments))

    lower_builtin(operation, _Vector)(generate)
    for kinds in ((_Vector, _Vector), (_Vector, types.Float), (types.Float, _Vector)):
        lower_builtin(operation, *kinds)(generate)


def _truth(kind: Any) -> Any:
    return _Vector(types.boolean)


_define(operator.add, lambda builder, a, b: builder.fadd(a, b))
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_define(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.neg, lambda builder, a: builder.fneg(a))
_define(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), _truth)
_define(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), _truth)
_define(operator.eq, lambda builder, a, b: builder.fcmp_ordered("==", a, b), _truth)


def _address(cg: Any, builder: Any, kind: Any, array: Any, index: Any) -> tuple[Any, int]:
    """The address of a vector in an array, and the alignment of the array's elements."""
    pointer = builder.gep(cg.make_array(kind)(cg, builder, array).data, [index])
    vector = cg.get_value_type(_Vector(kind.dtype)).as_pointer()
    return builder.bitcast(pointer, vector), kind.dtype.bitwidth // 8


def _pick(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The numbers of a, and of b after them, at the given places."""
    kind = ir.VectorType(ir.IntType(32), len(lanes))
    return builder.shuffle_vector(a, b, ir.Constant(kind, lanes))


@intrinsic_of
def load(context: Any, array: Any, index: Any) -> Any:
    """The vector array[index : index + LANES]."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, align = _address(cg, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=align)

    return _Vector(array.dtype)(array, index), generate


@intrinsic_of
def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """array[index : index + LANES] = vector."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, vector = arguments
        pointer, align = _address(cg, builder, signature.args[0], array, index)
        builder.store(vector, pointer, align=align)
        return cg.get_dummy_value()

    return types.none(array, index, vector), generate


@intrinsic_of
def stream(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """`store` that bypasses the caches; the address is a multiple of 64 bytes."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, vector = arguments
        pointer, _ = _address(cg, builder, signature.args[0], array, index)
        instruction = builder.store(vector, pointer, align=ALIGNMENT)
        one = builder.module.add_metadata([ir.IntType(32)(1)])
        instruction.set_metadata("nontemporal", one)
        return cg.get_dummy_value()

    return types.none(array, index, vector), generate


@intrinsic_of
def misalignment(context: Any, array: Any, index: Any) -> Any:
    """How many bytes the address of an element is above a multiple of 64."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, _ = _address(cg, builder, signature.args[0], *arguments)
        size = cg.get_value_type(types.uintp)
        return builder.and_(builder.ptrtoint(pointer, size), size(ALIGNMENT - 1))

    return types.uintp(array, index), generate


@jit
def before_alignment(array: Array, index: Index) -> Any:
    """The number of elements from `index` on before the first whose address `stream` accepts."""
    size = U(array.itemsize)
    return (U(ALIGNMENT) - misalignment(array, index)) % U(ALIGNMENT) // size


@jit
def stream_copy(values: Array, begin: Index, to: Array, first: Index, n: Index) -> None:
    """to[first : first + n] = values[begin : begin + n], past the caches.

    The first and the last vector are stored normally, since they may not be aligned.
    """
    if n < U2 * LANES:
        for i in range(n):
            to[first + i] = values[begin + i]
        return
    store(to, first, load(values, begin))
    i = before_alignment(to, first)
    while i + LANES <= n:
        stream(to, first + i, load(values, begin + i))
        i += LANES
    store(to, first + n - LANES, load(values, begin + n - LANES))


@intrinsic_of
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Begin to load array[index : index + LANES] to the second cache; it need not exist."""
    step = ALIGNMENT * 8 // array.dtype.bitwidth

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cg.make_array(signature.args[0])(cg, builder, arguments[0]).data
        i32, bytes_ = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [bytes_, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        for n in range(0, int(LANES), step):
            place = builder.add(arguments[1], arguments[1].type(n))
            address = builder.bitcast(builder.gep(data, [place]), bytes_)
            builder.call(function, [address, i32(0), i32(2), i32(1)])
        return cg.get_dummy_value()

    return types.none(array, index), generate


@intrinsic_of
def load_labels(context: Any, labels: Any, index: Any, ignore_index: Any) -> Any:
    """labels[index : index + LANES] as float32, −1 for those that are `ignore_index`."""
    to = _Vector(types.float32)

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        labels, index, ignore_index = arguments
        pointer, align = _address(cg, builder, signature.args[0], labels, index)
        value = builder.load(pointer, align=align)
        wide = ir.VectorType(ir.IntType(64), int(LANES))
        narrow = ir.VectorType(ir.IntType(32), int(LANES))
        whole = value if value.type == wide else builder.sext(value, wide)
        ignored = builder.icmp_signed("==", whole, spread_to(builder, ignore_index, wide))
        value = builder.trunc(value, narrow) if value.type == wide else value
        value = builder.select(ignored, ir.Constant(narrow, [-1] * int(LANES)), value)
        return builder.sitofp(value, cg.get_value_type(to))

    return to(labels, index, types.int64), generate


@intrinsic_of
def spread(context: Any, value: Any) -> Any:
    """The vector whose numbers all are `value`."""
    to = _Vector(value)

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread_to(builder, arguments[0], cg.get_value_type(to))

    return to(value), generate


@intrinsic_of
def widen(context: Any, vector: Any) -> Any:
    """The numbers as float64."""
    to = _Vector(types.float64)

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = cg.get_value_type(to)
        return arguments[0] if arguments[0].type == wide else builder.fpext(arguments[0], wide)

    return to(vector), generate


@intrinsic_of
def narrow(context: Any, vector: Any) -> Any:
    """float64 numbers rounded to float32."""
    to = _Vector(types.float32)

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fptrunc(arguments[0], cg.get_value_type(to))

    return to(vector), generate


@intrinsic_of
def larger(context: Any, a: Any, b: Any) -> Any:
    """a where a > b, else b: of numbers and NaN, b."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return a(a, a), generate


@intrinsic_of
def choose(context: Any, condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(condition, a, a), generate


@intrinsic_of
def largest(context: Any, vector: Any) -> Any:
    """The largest number of a vector; of numbers and NaN, any of them."""
    dtype = vector.dtype

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = arguments[0]
        count = int(LANES)
        while count > 1:
            count //= 2
            low, high = (
                _pick(builder, v, v, list(range(first, first + count))) for first in (0, count)
            )
            v = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(v, ir.IntType(32)(0))

    return dtype(vector), generate


@intrinsic_of
def total(context: Any, vector: Any) -> Any:
    """The sum of a vector, by halves."""
    dtype = vector.dtype

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = arguments[0]
        count = int(LANES)
        while count > 1:
            count //= 2
            low = _pick(builder, v, v, list(range(count)))
            v = builder.fadd(low, _pick(builder, v, v, list(range(count, 2 * count))))
        return builder.extract_element(v, ir.IntType(32)(0))

    return dtype(vector), generate


@intrinsic_of
def all_true(context: Any, condition: Any) -> Any:
    """Whether a condition holds for all numbers of a vector."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = builder.bitcast(arguments[0], ir.IntType(int(LANES)))
        return builder.icmp_signed("==", mask, ir.IntType(int(LANES))(-1))

    return types.boolean(condition), generate


@intrinsic_of
def any_equal(context: Any, a: Any, b: Any) -> Any:
    """Whether two vectors have an equal number in the same place."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        equal = builder.fcmp_ordered("==", *arguments)
        return builder.icmp_unsigned(
            "!=", builder.bitcast(equal, ir.IntType(16)), ir.IntType(16)(0)
        )

    return types.boolean(a, a), generate


# ---------------------------------------------------------------------------------------------
# Four classes of LANES rows, between rows that lie one after the other and one vector per class.
# Numbers are moved within 128 bits (of float32), four rows at a time: no number crosses a register.


def _transpose_fours(builder: Any, v: list[Any]) -> list[Any]:
    """Transpose the squares of 4×4 numbers that four vectors hold side by side."""
    squares = range(0, int(LANES), 4)
    size = int(LANES)
    evens = [n for q in squares for n in (q, size + q, q + 1, size + q + 1)]
    odds = [n for q in squares for n in (q + 2, size + q + 2, q + 3, size + q + 3)]
    low01, high01 = (_pick(builder, v[0], v[1], lanes) for lanes in (evens, odds))
    low23, high23 = (_pick(builder, v[2], v[3], lanes) for lanes in (evens, odds))
    first = [n for q in squares for n in (q, q + 1, size + q, size + q + 1)]
    second = [n for q in squares for n in (q + 2, q + 3, size + q + 2, size + q + 3)]
    pairs = ((low01, low23), (high01, high23))
    return [_pick(builder, a, b, lanes) for a, b in pairs for lanes in (first, second)]


def _fours(
    cg: Any, builder: Any, kind: Any, array: Any, first: Any, step: Any
) -> tuple[list[Any], int]:
    """Addresses of four numbers in each of LANES rows, and the alignment of the numbers."""
    data = cg.make_array(kind)(cg, builder, array).data
    four = ir.VectorType(cg.get_value_type(kind.dtype), 4).as_pointer()
    places = [builder.add(first, builder.mul(step, step.type(n))) for n in range(int(LANES))]
    pointers = [builder.bitcast(builder.gep(data, [place]), four) for place in places]
    return pointers, kind.dtype.bitwidth // 8


@intrinsic_of
def load_fours(context: Any, x: Any, first: Any, step: Any) -> Any:
    """Four vectors: number v of vector c is x[first + v·step + c], for v < LANES, c < 4."""
    to = types.UniTuple(_Vector(x.dtype), 4)

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers, align = _fours(cg, builder, signature.args[0], *arguments)
        rows = [builder.load(pointer, align=align) for pointer in pointers]
        joined = []
        for n in range(4):
            low = _pick(builder, rows[n], rows[n + 4], list(range(8)))
            high = _pick(builder, rows[n + 8], rows[n + 12], list(range(8)))
            joined.append(_pick(builder, low, high, list(range(16))))
        return cg.make_tuple(builder, to, _transpose_fours(builder, joined))

    return to(x, first, step), generate


@intrinsic_of
def store_fours(context: Any, to: Any, first: Any, step: Any, vectors: Any) -> Any:
    """to[first + v·step + c] = number v of vector c, for v < LANES, c < 4; row by row."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, first, step, vectors = arguments
        columns = cgutils.unpack_tuple(builder, vectors, 4)
        joined = _transpose_fours(builder, columns)
        pointers, align = _fours(cg, builder, signature.args[0], to, first, step)
        for v, pointer in enumerate(pointers):
            four = list(range(v // 4 * 4, v // 4 * 4 + 4))
            builder.store(_pick(builder, joined[v % 4], joined[v % 4], four), pointer, align=align)
        return cg.get_dummy_value()

    return types.none(to, first, step, vectors), generate
