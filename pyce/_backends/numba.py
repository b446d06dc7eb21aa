"""The Numba backend: the arithmetic of the NumPy reference, compiled for the machine it runs on.

A row x (classes,) with the maximum m, attained `ties` times, is known by

    rest = Σ_{x_c < m} exp(x_c − m) + (ties − 1),    S = Σ_c exp(x_c − m) = 1 + rest

and with the target's coefficients b_c = w_c·((1 − ε)·t_c + ε/C), A = Σ_c b_c:

    lse      = m + log1p(rest)
    loss     = Σ_c b_c·(m − x_c) + A·log1p(rest)
    gradient = A·exp(x_c − m)/S − b_c, but (A − b_c) − A·rest/S where x_c = m and b_c > A/2

The work is done in lanes, which the compiler turns into vectors, by two kernels:

- `_rows` for many contiguous classes: the lanes are neighbouring classes of one row.
- `_tiles` for few classes, or a class axis that is not the last: the lanes are positions, copied
  to a tile (classes, lanes).

Half types go through either as blocks of float32 rows (`_halves`). Layouts that are none of these
are brought to contiguous blocks of rows by NumPy.

float32: the exponentials are float32, everything else is float64. Sums and, for float64 logits,
products carry along what they lose in rounding (names ending in `_LO` or `_lo`).

Error against exact arithmetic: loss ≤ 2 ULP; gradient ≤ 4 ULP of the larger of A·p_c and b_c, for
index targets without smoothing of the gradient itself. Half types: the float32 result rounded once.

Scratch: below 300 KiB per thread, or a row of half types as float32. What a tile, block or row
reads is read before its output is written, so an output may be the input.
"""

from __future__ import annotations

import math
import os
import pickle
import platform
from collections.abc import Callable
from fractions import Fraction
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload

from pyce import _fpenv, _threads
from pyce._dtypes import compute_dtype
from pyce._problem import Problem, row_blocks
from pyce._types import Array

NAME = "numba"
CHECKS_LABELS = True
at_addresses = None  # memory is NumPy's arrays only

_config: Any = numba.config
if _config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

# No fastmath: NaN and infinities mean something here, and nothing may be reordered. Where a fused
# multiply-add is meant, the code says so: the bits are the same on machines with other vectors.
# error_model: division by zero gives infinity instead of raising.
_JIT: Any = {"nogil": True, "error_model": "numpy"}
# Functions that make no arrays do without counting the references to those they are given: these
# counts, atomic and shared by the threads, took a third of the time of short rows.
_PLAIN: Any = {**_JIT, "_nrt": False}

# Indices are unsigned throughout: a signed index might be negative and count from the end, which
# keeps the compiler from making vectors.
_U = np.uintp
_0, _1, _2, _3, _4, _16 = _U(0), _U(1), _U(2), _U(3), _U(4), _U(16)


# What the types of compiled code are is for Numba to find out.
Index = Any  # uintp; in the kernels themselves, the integers that came from Python
Real = Any  # float64 or the dtype of the logits


def _jit(function: Callable[..., Any]) -> Any:
    return numba.njit(**_PLAIN)(function)


def _jit_allocating(function: Callable[..., Any]) -> Any:
    return numba.njit(**_JIT)(function)


def _by_dtype(float32: Any, float64: Any) -> Any:
    """For compiled code: either of two compiled functions, by the dtype of the first argument."""

    def generic(*arguments: Any) -> Any:
        raise NotImplementedError

    def choose(first: Any, *others: Any) -> Callable[..., Any]:
        chosen = float32 if getattr(first, "dtype", first) == types.float32 else float64
        function: Callable[..., Any] = chosen.py_func
        return function

    overload(generic, strict=False, jit_options=_PLAIN)(choose)
    return generic


class Job(NamedTuple):
    """What the kernels work on: arrays that are flat and contiguous, and the layout.

    x, grad and probs have outer·classes·inner elements, weight has classes, the others have
    outer·inner, one for each row. Any but x may be empty: not wanted, or of no influence. Without
    labels and probs, grad gets the softmax; with `log`, its logarithm.
    """

    x: Array  # float32 or float64; for `_halves` the bits, uint16
    grad: Array  # as x, or empty
    labels: Array  # int32 or int64
    probs: Array  # float32 or float64
    weight: Array  # float64, as all that follow
    share: Array  # sample weights
    scale: Array  # factors of the rows' gradients; or one for all
    saved: Array  # lse from the forward: where it is not finite, the gradient is NaN
    losses: Array
    lse: Array
    constants: Array  # 1 − ε and ε/C, each as (hi, lo)
    ignore: Index  # the label of rows that do not count
    outer: Index
    classes: Index
    inner: Index
    width: Index  # lanes of a tile
    log: bool
    brain: bool  # bfloat16, not float16


# ---------------------------------------------------------------------------------------------
# Arithmetic on single numbers


def _intrinsic(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


@_intrinsic
def _bits(context: Any, value: Any) -> Any:
    """The bits of a float as a signed integer of the same size."""
    to = types.int32 if value == types.float32 else types.int64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


@_intrinsic
def _from_bits(context: Any, value: Any) -> Any:
    to = types.float32 if value == types.int32 else types.float64

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], cg.get_value_type(to))

    return to(value), generate


@_intrinsic
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""

    def generate(cg: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), generate


_MACHINE = platform.machine().lower()
# Round to nearest, keep subnormals, no traps.
_DEFAULT_CONTROL = _U(0x1F80 if _MACHINE in ("x86_64", "amd64") else 0)


@_intrinsic
def _set_control(context: Any, value: Any) -> Any:
    """Set this thread's floating-point control register; returns what it held.

    Numba's threads have the environment of the thread that first made them, whatever that was.
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

    Rows and columns are 4 or 16, one of them 16. Left to itself, the compiler moves single numbers.
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
        # Each perfect shuffle of all numbers moves one bit of v behind those of c in their places.
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


_transpose_16_16, _transpose_4_16 = _transposition(16, 16), _transposition(4, 16)
_transpose_16_4 = _transposition(16, 4)


@_jit
def _two_sum(a: Real, b: Real) -> Any:
    """a + b as its rounded value and what that lost (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@_jit
def _two_product(a: Real, b: Real) -> Any:
    p = a * b
    return p, _fma(a, b, -p)


@_jit
def _finite(a: Real) -> Real:
    """a, or 0 where it is not finite."""
    return a if a - a == 0.0 else 0.0


# exp(z), z = n·ln 2 + r, |r| ≤ 0.35, is 2ⁿ times a polynomial in r (minimax). Adding 1.5·2²³, or
# 1.5·2⁵² in float64, rounds to an integer that then stands in the low bits, ready for the exponent.
# Exponentials are kept 2⁶⁰ times too large: so the float32 of a class 2⁻¹⁶⁰ times as probable as
# the first has all its digits, as the loss of a confident row needs.
_BIAS = 60
_UNBIAS = 2.0**-_BIAS
_ROUND_32, _ROUND_64 = np.float32(1.5 * 2.0**23), 1.5 * 2.0**52
_LOG2E_32, _LOG2E_64 = np.float32(1.4426950408889634), 1.4426950408889634
_LN2_32, _LN2_64 = np.float32(0.69317626953125), 0.6931471803691238  # few bits, and the rest
_LN2_LO_32, _LN2_LO_64 = np.float32(-2.908897130469058e-05), 1.9082149292705877e-10
_P3_32, _P4_32, _P5_32, _P6_32 = (
    np.float32(c) for c in (0.16666571, 0.041666547, 0.008364116, 0.0013927354)
)
_P3_64, _P4_64, _P5_64 = 0.1666666666666667, 0.04166666666666667, 0.008333333333325985
_P6_64, _P7_64, _P8_64 = 0.0013888888888883642, 0.00019841269875342141, 2.4801587325920163e-05
_P9_64, _P10_64, _P11_64 = 2.7557254740405416e-06, 2.7557273171941026e-07, 2.5105490906986696e-08
_P12_64 = 2.091488256348507e-09
_0_32, _HALF_32, _1_32 = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@_jit
def _exp_float32(x: Any, shift: Any, low: Any, exponent: Any) -> Any:
    """exp(x − shift)·2^(exponent − 127), but 0 where x − shift < low.

    x − shift must be exact and low such that n + exponent, n = round((x − shift)/ln 2), stays
    between 1 and 254. Error ≤ 0.7 ULP.
    """
    z = x - shift
    under = z < low
    z = low if under else z  # NaN stays
    t = _fma(z, _LOG2E_32, _ROUND_32)
    n = t - _ROUND_32
    r = _fma(n, -_LN2_LO_32, _fma(n, -_LN2_32, z))
    q = _fma(_fma(_fma(_fma(_P6_32, r, _P5_32), r, _P4_32), r, _P3_32), r, _HALF_32)
    e = _1_32 + _fma(r * r, q, r)
    return _0_32 if under else e * _from_bits(np.int32(_bits(t + exponent) << np.int32(23)))


@_jit
def _exp_float64(x: Real, shift: Real, low: Real, exponent: Real) -> Real:
    """exp(x − shift)·2^(exponent − 1023), 0 where x − shift < low. Error ≤ 0.54 ULP.

    The difference need not be exact: what its rounding loses is made good.
    """
    z, lost = _two_sum(x, -shift)
    under = z < low
    z = low if under else z
    lost = 0.0 if under else lost  # no number where z is infinite
    t = _fma(z, _LOG2E_64, _ROUND_64)
    n = t - _ROUND_64
    head = _fma(n, -_LN2_64, z)
    r = _fma(n, -_LN2_LO_64, head)
    lost += _fma(n, -_LN2_LO_64, head - r)
    q = _fma(_fma(_fma(_fma(_P12_64, r, _P11_64), r, _P10_64), r, _P9_64), r, _P8_64)
    q = _fma(_fma(_fma(_fma(_fma(q, r, _P7_64), r, _P6_64), r, _P5_64), r, _P4_64), r, _P3_64)
    q = _fma(q, r, 0.5) * (r * r)
    q += _fma(lost, r + q, lost)
    e = 1.0 + r
    e += ((1.0 - e) + r) + q
    return 0.0 if under else e * _from_bits(_bits(t + exponent) << 52)


@_jit
def _normaliser_float32(m: Any) -> Any:
    """shift, low and exponent for `_exp_float32` and a row with maximum m.

    Shifting by m itself would cost exp up to 65 ULP, by the rounding of x − m. That is exact for
    |m| > 512 and x within 128 of m. Otherwise nothing is shifted, and a whole number taken from
    the exponent instead.
    """
    far = abs(m) > np.float32(512.0)
    shift = m if far else _0_32
    z = _0_32 if far else m
    n = _fma(z, _LOG2E_32, _ROUND_32) - _ROUND_32
    return shift, z - np.float32(128.0), np.float32(127 + _BIAS) - n


@_jit
def _normaliser_float64(m: Real) -> Any:
    return m, -745.2, 1023.0 + _BIAS


@_jit
def _unit_float32(m: Real) -> Real:
    """2⁻⁶⁰ over what the maximum m counts as, next to the other exponentials. Error ≤ 2⁻³⁶."""
    shift, _, exponent = _normaliser_float32(np.float32(m))
    n = np.float64(exponent) - (127.0 + _BIAS)
    r = _fma(n, -_LN2_LO_64, _fma(n, -_LN2_64, _finite(np.float64(shift) - m)))
    q = _fma(_fma(_fma(_fma(_P9_64, r, _P8_64), r, _P7_64), r, _P6_64), r, _P5_64)
    q = _fma(_fma(_fma(q, r, _P4_64), r, _P3_64), r, 0.5)
    return _UNBIAS * (1.0 + _fma(r * r, q, r))


_exp = _by_dtype(_exp_float32, _exp_float64)
_normaliser = _by_dtype(_normaliser_float32, _normaliser_float64)

_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


@_jit
def _log_tail(z: Real) -> Real:
    """(log((1 + s)/(1 − s))/s − 2)/s² for z = s² ≤ 0.03."""
    q = _fma(_fma(0.1479819860511658591, z, 0.1531383769920937332), z, 0.1818357216161805012)
    q = _fma(_fma(q, z, 0.2222219843214978396), z, 0.2857142874366239149)
    return _fma(_fma(q, z, 0.3999999999940941908), z, 0.6666666666666735130)


@_jit
def _log1p(v: Real) -> Any:
    """log(1 + v) for v ≥ 0 as an unevaluated sum, with FreeBSD's polynomial; also 1/(1 + v).

    Error ≤ 0.3 ULP.
    """
    u, lost = _two_sum(1.0, v)
    inverse = 1.0 / u
    k = (_bits(u) - _SQRT_HALF_BITS) >> 52
    n = np.float64(k)
    # u = 2ᵏ·(1 + f), √½ ≤ 1 + f < √2. With k = 0, f is v itself.
    f = v if k == 0 else _from_bits(_bits(u) - (k << 52)) - 1.0
    lost = 0.0 if k == 0 else lost * inverse
    s = f / (2.0 + f)
    z = s * s
    q = _log_tail(z)
    half = 0.5 * f * f
    tail = (_fma(s, _fma(z, q, half), _fma(n, _LN2_LO_64, lost))) - half
    head, rest = _two_sum(n * _LN2_64, f)
    value, value_lo = _two_sum(head, rest + tail)
    return value, value_lo, inverse


# ---------------------------------------------------------------------------------------------
# Lanes
#
# Scratch is two arrays of fields of `_LANES` lanes each: `s` in the dtype of the logits and `a` in
# float64. A lane is a row in `_tiles`, a part of a row in `_rows`.

_LANES = _U(128)
# Elements of a row, or of a flat array, that are worked on at a time; a power of two.
_BLOCK = 512
# Up to so many classes, contiguous rows are faster in tiles.
_FEW = 256


def _fields(count: Index) -> list[Any]:
    return [_U(i) * _LANES for i in range(count)]


# Of s: the maximum, what `_normaliser` makes of it, and the sums of a few terms.
_MAX, _SHIFT, _LOW, _EXPONENT, _SUM, _LOST, _TIED = _fields(7)

# Of a:
(
    _REST,  # Σ exp(x − m) without the maxima, in the unit of the exponentials
    _REST_LO,
    _TIES,  # how many maxima
    _TOTAL,  # Σ b of the dense part of the target: probabilities, or what smoothing spreads
    _TOTAL_LO,
    _COST,  # Σ b·(m − x) of that part
    _COST_LO,
    _TOP,  # m
    _T,  # target probabilities of one class
    _WEIGHT,  # class weights, of that class
    _LABEL_WEIGHT,  # class weight of the label; without labels 0, for softmax 1
    _LABEL_LOGIT,
    _LABEL_EXP,
    _GAP,  # m − x of the label
    _GAP_LO,
    _SHARE,  # sample weight
    _SCALE,  # factor of the gradient
    _SPOILT,  # NaN makes NaN of the gradient
    _LOSS,
    _LSE,
    _LOG,  # log1p(rest)
    _LOG_LO,
    _FACTOR,  # scale·A/S per unit of the exponentials
    _FACTOR_LO,
    _CERTAIN,  # scale·A·rest/S
    _SPIKE,  # b of the label without the dense part
    _SPIKE_LO,
    _PEAK,  # the exponential of the maximum as `_step` computes it
    _AT_LABEL,  # the gradient there
    _A,  # Σ b
    _A_LO,
) = _fields(31)
_S_SIZE, _A_SIZE = int(_TIED + _LANES), int(_A_LO + _LANES)


@_jit
def _begin(s: Array, a: Array, n: Index, dense: bool) -> None:
    """Make ready to sum over lanes whose maximum is known."""
    for v in range(n):
        shift, low, exponent = _normaliser(s[_MAX + v])
        s[_SHIFT + v] = shift
        s[_LOW + v] = low
        s[_EXPONENT + v] = exponent
        s[_SUM + v] = 0.0
        s[_LOST + v] = 0.0
        s[_TIED + v] = 0.0
    for v in range(n):
        a[_TOP + v] = s[_MAX + v]
    if dense:
        for v in range(n):
            a[_PEAK + v] = _exp(s[_MAX + v], s[_SHIFT + v], s[_LOW + v], s[_EXPONENT + v])
            a[_TOTAL + v] = 0.0
            a[_TOTAL_LO + v] = 0.0
            a[_COST + v] = 0.0
            a[_COST_LO + v] = 0.0


@_jit
def _step(tile: Array, j: Index, s: Array, n: Index) -> None:
    """Replace logits tile[j:j+n] by their exponentials and add these up in s, the maxima apart."""
    zero, one = s.dtype.type(0.0), s.dtype.type(1.0)
    for v in range(n):
        x = tile[j + v]
        e = _exp(x, s[_SHIFT + v], s[_LOW + v], s[_EXPONENT + v])
        tile[j + v] = e
        top = x == s[_MAX + v]
        total, lost = _two_sum(s[_SUM + v], zero if top else e)
        s[_SUM + v] = total
        s[_LOST + v] += lost
        s[_TIED + v] += one if top else zero


@_jit
def _collect(s: Array, a: Array, n: Index) -> None:
    """After the last step, the sums in float64."""
    for v in range(n):
        rest, rest_lo = _two_sum(np.float64(s[_SUM + v]), np.float64(s[_LOST + v]))
        a[_REST + v] = rest
        a[_REST_LO + v] = rest_lo
        a[_TIES + v] = s[_TIED + v]


@_jit
def _coefficient(t: Real, weight: Real, k: Any) -> Any:
    """b = weight·((1 − ε)·t + ε/C) with k = (1 − ε, ε/C), both as (hi, lo)."""
    u, u_lo = _two_product(t, k[0])
    u, lost = _two_sum(u, k[2])
    u_lo = _fma(t, k[1], u_lo) + (lost + k[3])
    b, b_lo = _two_product(weight, u)
    return b, _fma(weight, u_lo, b_lo)


@_jit
def _dense_step_float32(tile: Array, j: Index, a: Array, n: Index, k: Any) -> None:
    """Add b and b·(m − x) for logits tile[j:j+n]. b = 0 makes nothing of an infinite m − x."""
    for v in range(n):
        b = a[_WEIGHT + v] * _fma(a[_T + v], k[0], k[2])
        cost = b * (a[_TOP + v] - np.float64(tile[j + v]))
        a[_TOTAL + v] += b
        a[_COST + v] += 0.0 if b == 0.0 else cost


@_jit
def _dense_step_float64(tile: Array, j: Index, a: Array, n: Index, k: Any) -> None:
    for v in range(n):
        b, b_lo = _coefficient(a[_T + v], a[_WEIGHT + v], k)
        gap, gap_lo = _two_sum(a[_TOP + v], -tile[j + v])
        cost, lost = _two_product(b, gap)
        lost = _finite(lost + _fma(b, gap_lo, b_lo * gap))
        total, total_lo = _two_sum(a[_TOTAL + v], b)
        a[_TOTAL + v] = total
        a[_TOTAL_LO + v] += total_lo + b_lo
        total, total_lo = _two_sum(a[_COST + v], 0.0 if b == 0.0 else cost)
        a[_COST + v] = total
        a[_COST_LO + v] += _finite(total_lo) + (0.0 if b == 0.0 else lost)


_dense_step = _by_dtype(_dense_step_float32, _dense_step_float64)


@_jit
def _finish_float32(s: Array, a: Array, n: Index, k: Any) -> None:
    """From the sums of lanes that are rows: their loss, lse and what the gradient needs.

    `s` is here for its dtype. What the rounding of float64 loses does not count here: of the fields
    that hold it, those written by `_finish_float64` stay 0.
    """
    for v in range(n):
        m = a[_TOP + v]
        spoilt = m - m  # NaN where the maximum is not finite
        unit = _unit_float32(m)
        rest = _fma(a[_REST + v] + a[_REST_LO + v], unit, a[_TIES + v] - 1.0)
        u = 1.0 + rest
        shift = (_bits(u) - _SQRT_HALF_BITS) >> 52
        f = rest if shift == 0 else _from_bits(_bits(u) - (shift << 52)) - 1.0
        t = f / (2.0 + f)
        log = _fma(np.float64(shift), _LN2_64, t * _fma(t * t, _log_tail(t * t), 2.0))
        log += rest - rest  # NaN where a logit is: its bits did not show
        a[_LOG + v] = log + spoilt
        a[_LSE + v] = m + log
        spike = a[_LABEL_WEIGHT + v] * k[0]
        total = a[_TOTAL + v] + spike
        a[_SPIKE + v] = spike
        a[_A + v] = total
        cost = spike * a[_GAP + v]
        loss = _fma(total, log, 0.0 if spike == 0.0 else cost) + a[_COST + v]
        a[_LOSS + v] = loss * a[_SHARE + v] + spoilt
        factor = total * a[_SCALE + v] / u + (spoilt + a[_SPOILT + v])
        a[_CERTAIN + v] = factor * rest
        a[_FACTOR + v] = factor * unit


@_jit
def _finish_float64(s: Array, a: Array, n: Index, k: Any) -> None:
    for v in range(n):
        m = a[_TOP + v]
        spoilt = m - m
        rest, rest_lo = _two_sum(a[_REST + v] * _UNBIAS, a[_TIES + v] - 1.0)
        rest, rest_lo = _two_sum(rest, _fma(a[_REST_LO + v], _UNBIAS, rest_lo))
        log, log_lo, inverse = _log1p(rest)
        log_lo += rest_lo * inverse
        a[_LOG + v] = log + spoilt
        a[_LOG_LO + v] = log_lo
        a[_LSE + v] = m + (log + log_lo)

        # The label has the coefficient that smoothing spreads, and this spike.
        spike, spike_lo = _two_product(a[_LABEL_WEIGHT + v], k[0])
        spike_lo = _fma(a[_LABEL_WEIGHT + v], k[1], spike_lo)
        total, total_lo = _two_sum(a[_TOTAL + v], spike)
        total_lo += spike_lo + a[_TOTAL_LO + v]
        a[_SPIKE + v] = spike
        a[_SPIKE_LO + v] = spike_lo
        a[_A + v] = total
        a[_A_LO + v] = total_lo

        loss, loss_lo = _two_product(total, log)
        loss_lo += _fma(total, log_lo, total_lo * log)
        gap = a[_GAP + v]
        cost, cost_lo = _two_product(spike, gap)
        cost_lo = _finite(cost_lo + _fma(spike, a[_GAP_LO + v], spike_lo * gap))
        cost = 0.0 if spike == 0.0 else cost
        cost_lo = 0.0 if spike == 0.0 else cost_lo
        loss, lost = _two_sum(loss, cost)
        loss_lo += _finite(lost) + cost_lo
        loss, lost = _two_sum(loss, a[_COST + v])
        loss_lo += _finite(lost) + a[_COST_LO + v]
        share = a[_SHARE + v]
        loss, lost = _two_product(loss, share)
        a[_LOSS + v] = loss + _finite(_fma(loss_lo, share, lost)) + spoilt

        # scale·A/S, by one step of long division.
        sum_, sum_lo = _two_sum(1.0, rest)
        sum_lo += rest_lo
        scaled, scaled_lo = _two_product(total, a[_SCALE + v])
        scaled_lo = _fma(total_lo, a[_SCALE + v], scaled_lo)
        factor = scaled * inverse + (spoilt + a[_SPOILT + v])
        factor_lo = (_fma(-factor, sum_, scaled) + scaled_lo - factor * sum_lo) * inverse
        a[_CERTAIN + v] = _fma(factor, rest, _fma(factor, rest_lo, factor_lo * rest))
        a[_FACTOR + v] = factor * _UNBIAS
        a[_FACTOR_LO + v] = factor_lo * _UNBIAS


_finish = _by_dtype(_finish_float32, _finish_float64)


@_jit
def _gradient_float32(tile: Array, j: Index, a: Array, n: Index) -> None:
    """Replace exponentials tile[j:j+n] by the gradient of a target that is 0 there."""
    for v in range(n):
        tile[j + v] = np.float64(tile[j + v]) * a[_FACTOR + v]


@_jit
def _gradient_float64(tile: Array, j: Index, a: Array, n: Index) -> None:
    for v in range(n):
        e = tile[j + v]
        tile[j + v] = _fma(e, a[_FACTOR + v], e * a[_FACTOR_LO + v])


@_jit
def _dense_gradient(tile: Array, j: Index, a: Array, n: Index, k: Any) -> None:
    """Replace exponentials tile[j:j+n] by the gradient."""
    for v in range(n):
        e = tile[j + v]
        top = e == a[_PEAK + v]
        tile[j + v] = _class_gradient(e, _gradients_of(a, v), a[_T + v], a[_WEIGHT + v], top, k)


@_jit
def _class_gradient_float32(e: Any, row: Any, t: Real, weight: Real, top: Any, k: Any) -> Real:
    scale, total, _, factor, _, certain = row
    b = weight * _fma(t, k[0], k[2])
    sure = (total - b) * scale - certain
    return sure if top and abs(b) > 0.5 * abs(total) else np.float64(e) * factor - b * scale


@_jit
def _class_gradient_float64(e: Real, row: Any, t: Real, weight: Real, top: Any, k: Any) -> Real:
    b, b_lo = _coefficient(t, weight, k)
    return _difference(row, e, b, b_lo, top)


@_jit
def _gradients_of(a: Array, v: Index) -> Any:
    """The fields of lane v that `_difference` takes."""
    total, total_lo = a[_A + v], a[_A_LO + v]
    return a[_SCALE + v], total, total_lo, a[_FACTOR + v], a[_FACTOR_LO + v], a[_CERTAIN + v]


@_jit
def _difference(row: Any, e: Real, b: Real, b_lo: Real, top: Any) -> Real:
    """The gradient of a class with exponential e and coefficient b, `top` if it is a maximum."""
    scale, total, total_lo, factor, factor_lo, certain = row
    p, p_lo = _two_product(e, factor)
    p_lo = _fma(e, factor_lo, p_lo)
    q, q_lo = _two_product(b, scale)
    q_lo = _fma(b_lo, scale, q_lo)
    sure = ((total - b) + (total_lo - b_lo)) * scale - certain
    return sure if top and abs(b) > 0.5 * abs(total) else (p - q) + (p_lo - q_lo)


_gradient = _by_dtype(_gradient_float32, _gradient_float64)
_class_gradient = _by_dtype(_class_gradient_float32, _class_gradient_float64)


@_jit
def _log_probability(x: Real, m: Real, log: Real, log_lo: Real) -> Real:
    d, d_lo = _two_sum(x, -m)
    value, lost = _two_sum(d, -log)
    return value + _finite(lost + (d_lo - log_lo))


@_jit
def _inputs(a: Array, label: Array, skip: Array, row: Index, n: Index, job: Any) -> bool:
    """What is known of rows row:row+n besides their logits; whether some of them do not count.

    Fields of arrays that are empty keep what `_scratch` put there. A row that does not count takes
    part as if it had label 0; whatever comes of it is overwritten.
    """
    if job.share.size:
        for v in range(n):
            a[_SHARE + v] = job.share[row + v]
    if job.scale.size > 1:
        for v in range(n):
            a[_SCALE + v] = job.scale[row + v]
    if job.saved.size:
        for v in range(n):
            a[_SPOILT + v] = job.saved[row + v] - job.saved[row + v]
    skips = False
    if job.labels.size:
        for v in range(n):
            y = job.labels[row + v]
            skip[v] = y == job.ignore
            skips |= skip[v]
            label[v] = _0 if skip[v] else _U(y)
        if job.weight.size:
            for v in range(n):
                a[_LABEL_WEIGHT + v] = job.weight[label[v]]
    return skips


@_jit
def _settle(
    s: Array, a: Array, skip: Array, skips: bool, row: Index, n: Index, k: Any, job: Any
) -> None:
    """From the sums of rows row:row+n: losses, lse, and the gradient at the labels."""
    if job.labels.size:
        for v in range(n):
            gap, gap_lo = _two_sum(a[_TOP + v], -a[_LABEL_LOGIT + v])
            a[_GAP + v] = gap
            a[_GAP_LO + v] = gap_lo
    _finish(s, a, n, k)
    if job.losses.size:
        for v in range(n):
            job.losses[row + v] = a[_LOSS + v]
    if job.lse.size:
        for v in range(n):
            job.lse[row + v] = a[_LSE + v]
    if skips:
        for v in range(n):
            if skip[v] and job.losses.size:
                job.losses[row + v] = 0.0
            if skip[v] and job.lse.size:
                job.lse[row + v] = 0.0
    if job.labels.size:
        for v in range(n):
            # What smoothing spreads, and the spike.
            b, b_lo = _two_product(a[_LABEL_WEIGHT + v], k[2])
            b, lost = _two_sum(b, a[_SPIKE + v])
            b_lo = _fma(a[_LABEL_WEIGHT + v], k[3], b_lo) + (lost + a[_SPIKE_LO + v])
            top = a[_GAP + v] == 0.0
            e = a[_LABEL_EXP + v]
            a[_AT_LABEL + v] = _difference(_gradients_of(a, v), e, b, b_lo, top)


@_jit
def _constants(job: Any) -> Any:
    k = job.constants
    return k[0], k[1], k[2], k[3]


@_jit_allocating
def _zeros(like: Array, size: Index) -> Array:
    """Zeros of the same dtype that begin with a line of the cache: no vector lies in two."""
    room = np.zeros(size + 16, like.dtype)
    first = (-room.ctypes.data & 63) // room.itemsize
    return room[first : first + size]


@_jit_allocating
def _scratch(job: Any) -> Any:
    spike = 0.0 if job.probs.size else 1.0
    scale = job.scale[0] if job.scale.size else 1.0
    s = _zeros(job.x, _S_SIZE)
    a = _zeros(job.constants, _A_SIZE)
    for v in range(_LANES):
        a[_WEIGHT + v] = 1.0
        a[_LABEL_WEIGHT + v] = spike
        a[_SHARE + v] = 1.0
        a[_SCALE + v] = scale
    return s, a, np.zeros(_LANES, np.uintp), np.zeros(_LANES, np.bool_)


# ---------------------------------------------------------------------------------------------
# Many contiguous classes: lanes are neighbouring classes


@_jit
def _maximum_float32(x: Array, begin: Index, end: Index) -> Any:
    """The maximum of x[begin:end]; NaN may count as the largest or the smallest."""
    best = np.int32(-(2**31))
    for c in range(begin, end):
        bits = _bits(x[c])
        # Sign and magnitude to two's complement: integers in the order of the floats.
        best = max(best, np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF))))
    return _from_bits(np.int32(best ^ (np.int32(best >> 31) & np.int32(0x7FFFFFFF))))


@_jit
def _maximum_float64(x: Array, begin: Index, end: Index) -> Real:
    best = -(2**63)
    for c in range(begin, end):
        bits = _bits(x[c])
        best = max(best, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))
    return _from_bits(best ^ ((best >> 63) & 0x7FFFFFFFFFFFFFFF))


_maximum = _by_dtype(_maximum_float32, _maximum_float64)


@_jit
def _total_float32(u: Array, n: Index, t: Array, t_lo: Array) -> Any:
    """Σ u[:n], n ≤ _BLOCK, in float64. Writes to t and past u[n]."""
    for c in range(n, _U(_BLOCK)):
        u[c] = 0.0
    for c in range(_U(32)):
        total = np.float64(u[c])
        for i in range(_1, _16):
            total += np.float64(u[_U(32) * i + c])
        t[c] = total
    for c in range(_16):
        t[c] += t[_16 + c]
    for c in range(_U(8)):
        t[c] += t[_U(8) + c]
    for c in range(_U(4)):
        t[c] += t[_U(4) + c]
    return (t[_0] + t[_1]) + (t[_2] + t[_3]), 0.0


@_jit
def _total_float64(u: Array, n: Index, t: Array, t_lo: Array) -> Any:
    """The same, with what is lost in rounding."""
    for c in range(n, _U(_BLOCK)):
        u[c] = 0.0
    width = _U(_BLOCK // 4)
    for c in range(width):
        first, first_lo = _two_sum(u[c], u[width + c])
        second, second_lo = _two_sum(u[_2 * width + c], u[_3 * width + c])
        t[c], lost = _two_sum(first, second)
        t_lo[c] = _finite(first_lo + second_lo + lost)
    while width > _1:
        width = width >> _1
        for c in range(width):
            t[c], lost = _two_sum(t[c], t[width + c])
            t_lo[c] += t_lo[width + c] + _finite(lost)
    return t[_0], t_lo[_0]


_total = _by_dtype(_total_float32, _total_float64)


@_jit
def _add(r: Array, field: Index, i: Index, value: Any) -> None:
    """Add an unevaluated sum to a field of lane i, whose lost digits are in the next field."""
    total, lost = _two_sum(r[field + i], value[0])
    r[field + i] = total
    r[field + _LANES + i] += value[1] + _finite(lost)


@_jit
def _fill(t: Array, values: Array, begin: Index, n: Index) -> None:
    """t[:n] = values[begin:begin+n], if there are values."""
    if values.size:
        for c in range(n):
            t[c] = values[begin + c]


@_jit
def _costs_float32(block: Array, n: Index, m: Real, k: Any, b: Any) -> Any:
    """Σ b and Σ b·(m − x) over logits block[:n], unevaluated sums."""
    target, weight, coefficients, costs, _, _, t, t_lo = b
    for c in range(n):
        coefficient = weight[c] * _fma(target[c], k[0], k[2])
        cost = coefficient * (m - np.float64(block[c]))
        coefficients[c] = coefficient
        costs[c] = 0.0 if coefficient == 0.0 else cost
    return _total_float32(coefficients, n, t, t_lo), _total_float32(costs, n, t, t_lo)


@_jit
def _costs_float64(block: Array, n: Index, m: Real, k: Any, b: Any) -> Any:
    target, weight, coefficients, costs, coefficients_lo, costs_lo, t, t_lo = b
    for c in range(n):
        coefficient, coefficient_lo = _coefficient(target[c], weight[c], k)
        gap, gap_lo = _two_sum(m, -block[c])
        cost, cost_lo = _two_product(coefficient, gap)
        cost_lo = _finite(cost_lo + _fma(coefficient, gap_lo, coefficient_lo * gap))
        coefficients[c] = coefficient
        coefficients_lo[c] = coefficient_lo
        costs[c] = 0.0 if coefficient == 0.0 else cost
        costs_lo[c] = 0.0 if coefficient == 0.0 else cost_lo
    total, lost = _total_float64(coefficients, n, t, t_lo)
    total_lo = lost + _total_float32(coefficients_lo, n, t, t_lo)[0]
    cost, lost = _total_float64(costs, n, t, t_lo)
    cost_lo = lost + _total_float32(costs_lo, n, t, t_lo)[0]
    return (total, total_lo), (cost, cost_lo)


_costs = _by_dtype(_costs_float32, _costs_float64)


@_jit
def _row_sums(
    x: Array,
    grad: Array,
    probs: Array,
    weight: Array,
    begin: Index,
    classes: Index,
    dense: bool,
    store: bool,
    k: Any,
    block: Array,
    terms: Array,
    b: Any,
    s: Array,
    r: Array,
    i: Index,
) -> None:
    """The sums over the row x[begin:begin+classes] into lane i of r, its exponentials into grad."""
    m, shift, low, exponent = s[_MAX + i], s[_SHIFT + i], s[_LOW + i], s[_EXPONENT + i]
    zero = x.dtype.type(0.0)
    r[_REST + i], r[_REST_LO + i], r[_TIES + i] = 0.0, 0.0, 0.0
    for j in range(_0, classes, _U(_BLOCK)):
        n = min(_U(_BLOCK), classes - j)
        if dense:
            for c in range(n):
                block[c] = x[begin + j + c]
            _fill(b[0], probs, begin + j, n)
            _fill(b[1], weight, j, n)
            total, cost = _costs(block, n, r[_TOP + i], k, b)
            _add(r, _TOTAL, i, total)
            _add(r, _COST, i, cost)
        ties = np.int32(0)
        for c in range(n):
            z = x[begin + j + c]
            e = _exp(z, shift, low, exponent)
            block[c] = e
            terms[c] = zero if z == m else e
            ties = np.int32(ties + (1 if z == m else 0))
        r[_TIES + i] += ties
        _add(r, _REST, i, _total(terms, n, b[6], b[7]))
        if store:
            for c in range(n):
                grad[begin + j + c] = block[c]


@_jit
def _row_gradient_float32(
    g: Array, begin: Index, end: Index, factor: Real, factor_lo: Real
) -> None:
    if not 1e-25 < abs(factor) < 1e25:
        for c in range(begin, end):
            g[c] = np.float64(g[c]) * factor
        return
    # Where neither underflows, two float32 do as well.
    high = np.float32(factor)
    low = np.float32(factor - high)
    for c in range(begin, end):
        g[c] = _fma(g[c], high, g[c] * low)


@_jit
def _row_gradient_float64(
    g: Array, begin: Index, end: Index, factor: Real, factor_lo: Real
) -> None:
    for c in range(begin, end):
        g[c] = _fma(g[c], factor, g[c] * factor_lo)


_row_gradient = _by_dtype(_row_gradient_float32, _row_gradient_float64)


@_jit
def _row_dense_gradient(
    grad: Array,
    probs: Array,
    weight: Array,
    begin: Index,
    classes: Index,
    k: Any,
    block: Array,
    b: Any,
    r: Array,
    i: Index,
) -> None:
    row, peak = _gradients_of(r, i), r[_PEAK + i]
    target, weights = b[0], b[1]
    for j in range(_0, classes, _U(_BLOCK)):
        n = min(_U(_BLOCK), classes - j)
        _fill(target, probs, begin + j, n)
        _fill(weights, weight, j, n)
        for c in range(n):
            block[c] = grad[begin + j + c]
        for c in range(n):
            e = block[c]
            block[c] = _class_gradient(e, row, target[c], weights[c], e == peak, k)
        for c in range(n):
            grad[begin + j + c] = block[c]


@_jit
def _row_log_softmax(x: Array, out: Array, begin: Index, end: Index, r: Array, i: Index) -> None:
    m, log, log_lo = r[_TOP + i], r[_LOG + i], r[_LOG_LO + i]
    for c in range(begin, end):
        out[c] = _log_probability(np.float64(x[c]), m, log, log_lo)


@_jit_allocating
def _rows(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a job with inner = 1."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    outer, classes = job.outer, job.classes
    k = _constants(job)
    dense = probs.size > 0 or k[2] != 0.0
    labelled = job.labels.size > 0
    size = _U(classes)
    s, r, label, skip = _scratch(job)
    block, terms = _zeros(x, _BLOCK), _zeros(x, _BLOCK)
    # Targets, weights, coefficients, costs, what the last two lost, and room to add them up.
    room = np.zeros((8, _BLOCK))
    room[1] = 1.0
    b = (room[0], room[1], room[2], room[3], room[4], room[5], room[6], room[7])
    # Short rows take each stage in groups, so that the rows of a group are lanes of `_settle`.
    group = _U(max(1, min(32, 8192 // classes)))
    last = _U(outer * (piece + 1) // pieces)
    for row in range(_U(outer * piece // pieces), last, group):
        n = min(group, last - row)
        skips = _inputs(r, label, skip, row, n, job)
        for v in range(n):
            if not (skips and skip[v]):
                s[_MAX + v] = _maximum(x, (row + v) * size, (row + v + _1) * size)
        _begin(s, r, n, dense)
        for v in range(n):
            begin = (row + v) * size
            if skips and skip[v]:
                continue
            if labelled:
                r[_LABEL_LOGIT + v] = x[begin + label[v]]
            store = grad.size > 0 and not job.log
            _row_sums(
                x, grad, probs, weight, begin, size, dense, store, k, block, terms, b, s, r, v
            )
            if labelled and store:
                r[_LABEL_EXP + v] = grad[begin + label[v]]
        _settle(s, r, skip, skips, row, n, k, job)
        if grad.size == 0:
            continue
        for v in range(n):
            begin = (row + v) * size
            if job.log:
                _row_log_softmax(x, grad, begin, begin + size, r, v)
            elif skips and skip[v]:
                grad[begin : begin + size] = 0.0
            else:
                if dense:
                    _row_dense_gradient(grad, probs, weight, begin, size, k, block, b, r, v)
                else:
                    factor, factor_lo = r[_FACTOR + v], r[_FACTOR_LO + v]
                    _row_gradient(grad, begin, begin + size, factor, factor_lo)
                if labelled:
                    grad[begin + label[v]] = r[_AT_LABEL + v]


# ---------------------------------------------------------------------------------------------
# Few classes, or a class axis that is not the last: lanes are positions


@_jit
def _place(row: Index, n: Index, classes: Index, inner: Index, at: Array) -> None:
    """Where the first class of each of the rows row:row+n is."""
    if inner == _1:
        for v in range(n):
            at[v] = (row + v) * classes
        return
    i = row % inner
    first = row // inner * classes * inner
    for v in range(n):
        at[v] = first + i
        i += _1
        if i == inner:
            i = _0
            first += classes * inner


@_jit
def _turn(
    source: Array,
    i: Index,
    rows: Index,
    row: Index,
    target: Array,
    j: Index,
    columns: Index,
    column: Index,
) -> None:
    """target[j + c·column + v] = source[i + v·row + c] for v < rows, c < columns; one is ≥ 16.

    In pieces of 16, the last ones reaching back over others. The other, where it is less than 16,
    is taken to be 4 or 16: what is read and written too much is the caller's, and a row of the
    target is written after what spills from the one before.
    """
    if columns <= _4:
        for v in range(_0, rows, _16):
            v = min(v, rows - _16)
            _transpose_16_4(source, i + v * row, row, target, j + v, column)
    elif rows <= _4:
        for c in range(_0, columns, _16):
            c = min(c, columns - _16)
            _transpose_4_16(source, i + c, row, target, j + c * column, column)
    else:
        for v in range(_0, rows, _16):
            v = min(v, max(rows, _16) - _16)
            for c in range(_0, columns, _16):
                c = min(c, max(columns, _16) - _16)
                _transpose_16_16(source, i + v * row + c, row, target, j + c * column + v, column)


@_jit
def _reach(classes: Index) -> Index:
    """How many classes `_turn` takes a row to have."""
    return _4 if classes <= _4 else max(classes, _16)


@_jit
def _load(
    x: Array,
    at: Array,
    inner: Index,
    classes: Index,
    n: Index,
    tile: Array,
    lanes: Index,
) -> None:
    """tile[c·lanes + v] = x[at[v] + c·inner] for lanes v < n; 0 in those up to `lanes`."""
    if inner >= _16:
        for c in range(classes):
            i = at[0] + c * inner
            for v in range(n):
                tile[c * lanes + v] = x[i + v]
    elif inner == _1 and n >= _16 and at[n - _1] + _reach(classes) <= _U(x.size):
        _turn(x, at[0], n, classes, tile, _0, classes, lanes)
    else:
        for v in range(n):
            i = at[v]
            for c in range(classes):
                tile[c * lanes + v] = x[i + c * inner]
    if n < lanes:
        for c in range(classes):
            for v in range(n, lanes):
                tile[c * lanes + v] = 0.0


@_jit
def _save(
    tile: Array,
    lanes: Index,
    at: Array,
    inner: Index,
    classes: Index,
    n: Index,
    x: Array,
) -> None:
    """The way back."""
    if inner >= _16:
        for c in range(classes):
            i = at[0] + c * inner
            for v in range(n):
                x[i + v] = tile[c * lanes + v]
    else:
        # The last rows, which the ones before would spill beyond.
        tail = (_reach(classes) - _1) // classes
        first = _0
        if inner == _1 and n >= _16 + tail:
            first = n - tail
            _turn(tile, _0, classes, lanes, x, at[0], first, classes)
        for v in range(first, n):
            i = at[v]
            for c in range(classes):
                x[i + c * inner] = tile[c * lanes + v]


@_jit
def _fill_dense_tile(
    a: Array, c: Index, n: Index, at: Array, inner: Index, probs: Array, weight: Array
) -> None:
    """Target probabilities of class c and its weight into lanes."""
    if probs.size:
        if inner >= _16:
            i = at[0] + c * inner
            for v in range(n):
                a[_T + v] = probs[i + v]
        else:
            for v in range(n):
                a[_T + v] = probs[at[v] + c * inner]
    if weight.size:
        for v in range(n):
            a[_WEIGHT + v] = weight[c]


@_jit
def _log_softmax_step(tile: Array, j: Index, a: Array, n: Index) -> None:
    for v in range(n):
        x = np.float64(tile[j + v])
        tile[j + v] = _log_probability(x, a[_TOP + v], a[_LOG + v], a[_LOG_LO + v])


@_jit_allocating
def _tiles(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a job. Tiles are (classes, width)."""
    x, grad, probs, weight = job.x, job.grad, job.probs, job.weight
    outer, classes, inner, width = job.outer, job.classes, job.inner, job.width
    k = _constants(job)
    dense = probs.size > 0 or k[2] != 0.0
    labelled = job.labels.size > 0
    size, stride, lanes = _U(classes), _U(inner), _U(width)
    s, a, label, skip = _scratch(job)
    tile = _zeros(x, width * max(classes, 16))
    at = np.empty(width, np.uintp)
    # With slices of `inner` long enough to be copied as such, a tile is of one slice.
    span = inner if inner >= 16 else outer * inner
    per_span = (span + width - 1) // width
    tiles = outer * inner // span * per_span
    for number in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
        position = number % per_span * width
        row = _U(number // per_span * span + position)
        n = _U(min(width, span - position))
        _place(row, n, size, stride, at)
        _load(x, at, stride, size, n, tile, lanes)
        skips = _inputs(a, label, skip, row, n, job)
        if labelled:
            for v in range(n):
                a[_LABEL_LOGIT + v] = tile[label[v] * lanes + v]
        for v in range(lanes):
            s[_MAX + v] = tile[v]
        for c in range(_1, size):
            for v in range(lanes):
                z = tile[c * lanes + v]
                s[_MAX + v] = z if z > s[_MAX + v] else s[_MAX + v]
        _begin(s, a, lanes, dense)
        for c in range(size):
            if dense:
                _fill_dense_tile(a, c, n, at, stride, probs, weight)
                _dense_step(tile, c * lanes, a, n, k)
            _step(tile, c * lanes, s, lanes)
        _collect(s, a, lanes)
        if labelled:
            for v in range(n):
                a[_LABEL_EXP + v] = tile[label[v] * lanes + v]
        _settle(s, a, skip, skips, row, n, k, job)
        if grad.size == 0:
            continue
        if job.log:
            _load(x, at, stride, size, n, tile, lanes)
        for c in range(size):
            if job.log:
                _log_softmax_step(tile, c * lanes, a, n)
            elif dense:
                _fill_dense_tile(a, c, n, at, stride, probs, weight)
                _dense_gradient(tile, c * lanes, a, n, k)
            else:
                _gradient(tile, c * lanes, a, n)
        if labelled:
            for v in range(n):
                tile[label[v] * lanes + v] = a[_AT_LABEL + v]
        if skips:
            for v in range(n):
                if skip[v]:
                    for c in range(size):
                        tile[c * lanes + v] = 0.0
        _save(tile, lanes, at, stride, size, n, grad)


# ---------------------------------------------------------------------------------------------
# Half types: blocks of rows as float32, for either kernel

# Elements of such a block.
_WIDENED = 2**15


@_jit
def _widen(half: Any, brain: bool) -> Any:
    """The float32 of the bits of a bfloat16 (`brain`) or float16."""
    bits = np.int32(half)
    if brain:
        return _from_bits(np.int32(bits << 16))
    digits = np.int32(bits & 0x3FF)
    power = np.int32(bits & 0x7C00)
    magnitude = np.int32((power + 0x1C000 << 13) + (digits << 13))
    value = _from_bits(np.int32(digits << 13 | 0x7F800000) if power == 0x7C00 else magnitude)
    value = np.float32(digits) * np.float32(2.0**-24) if power == 0 else value
    return -value if bits & 0x8000 else value


@_jit
def _narrow(value: Any, brain: bool) -> Any:
    """The bits of the bfloat16 or float16 nearest to a float32, ties to even."""
    bits = _bits(value)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    if brain:
        rounded = bits + 0x7FFF + (bits >> 16 & 1)
        return np.uint16((bits | 0x400000 if magnitude > 0x7F800000 else rounded) >> 16)
    half: Any = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13
    if magnitude < 0x38800000:  # adding ½ rounds to multiples of 2⁻²⁴, the last place of ½
        half = np.int64(_bits(_from_bits(magnitude) + _HALF_32)) - 0x3F000000
    half = min(half, 0x7C00) if magnitude <= 0x7F800000 else 0x7E00
    return np.uint16(half | (bits >> 16 & 0x8000))


@_jit_allocating
def _halves(piece: Index, pieces: Index, job: Any) -> None:
    """Part `piece` of `pieces` of a job with inner = 1 whose x and grad are half types."""
    classes, outer = job.classes, job.outer
    group = max(1, _WIDENED // classes)
    block = np.empty(min(group, outer) * classes, np.float32)
    last = outer * (piece + 1) // pieces
    for first in range(outer * piece // pieces, last, group):
        stop = min(first + group, last)
        i, size = _U(first * classes), _U((stop - first) * classes)
        for c in range(size):
            block[c] = _widen(job.x[i + c], job.brain)
        x = block[: (stop - first) * classes]
        part = Job(
            x,
            x if job.grad.size else x[:0],
            job.labels[first:stop],
            job.probs[first * classes : stop * classes],
            job.weight,
            job.share[first:stop],
            job.scale[first:stop] if job.scale.size > 1 else job.scale,
            job.saved[first:stop],
            job.losses[first:stop],
            job.lse[first:stop],
            job.constants,
            job.ignore,
            stop - first,
            classes,
            job.inner,
            job.width,
            job.log,
            job.brain,
        )
        if classes > _FEW:
            _rows(0, 1, part)
        else:
            _tiles(0, 1, part)
        if job.grad.size:
            for c in range(size):
                job.grad[i + c] = _narrow(block[c], job.brain)


# ---------------------------------------------------------------------------------------------
# Binary cross-entropy


@_jit
def _softplus_cost(b: Real, b_lo: Real, x: Real, log: Real, log_lo: Real) -> Any:
    """b·(max(x, 0) + log), where b = 0 makes nothing of an infinity."""
    cost, lost = _two_sum(max(x, 0.0), log)
    value, value_lo = _two_product(b, cost)
    value = 0.0 if b == 0.0 and cost == np.inf else value
    return value, _finite(_fma(b, lost + log_lo, _fma(b_lo, cost, value_lo)))


@_jit
def _scale_pairs(hi: Array, lo: Array, values: Array, begin: Index, n: Index) -> None:
    """Multiply the unevaluated sums hi[:n] + lo[:n] by values[begin:begin+n], if there are any."""
    if values.size:
        for i in range(n):
            w = np.float64(values[begin + i])
            hi[i], lost = _two_product(hi[i], w)
            lo[i] = _fma(lo[i], w, lost)


@_jit_allocating
def _bernoulli(
    piece: Index,
    pieces: Index,
    x: Array,
    t: Array,
    weight: Array,
    pos_weight: Array,
    loss: Array,
    grad: Array,
    sums: Array,
    scale: Real,
) -> None:
    """Loss and gradient of part `piece` of flat arrays, in blocks whose sums go to `sums`.

    With positive = weight·pos_weight·t, negative = weight·(1 − t), q = exp(−|x|):

        loss     = positive·softplus(−x) + negative·softplus(x), softplus(v) = max(v, 0) + log1p(q)
        gradient = scale·(negative·sigmoid(x) − positive·sigmoid(−x)), 1/(1 + q) or q/(1 + q)
    """
    logit, term, slope = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    positive, positive_lo = np.empty(_BLOCK), np.empty(_BLOCK)
    negative, negative_lo = np.empty(_BLOCK), np.empty(_BLOCK)
    partial = np.empty(_BLOCK // 4)
    for block in range(sums.size * piece // pieces, sums.size * (piece + 1) // pieces):
        begin = _U(block) * _U(_BLOCK)
        n = min(_U(_BLOCK), _U(x.size) - begin)
        for i in range(n):
            logit[i] = x[begin + i]
            positive[i] = t[begin + i]
            positive_lo[i] = 0.0
            negative[i], negative_lo[i] = _two_sum(1.0, -positive[i])
        _scale_pairs(positive, positive_lo, pos_weight, begin, n)
        _scale_pairs(positive, positive_lo, weight, begin, n)
        _scale_pairs(negative, negative_lo, weight, begin, n)
        for i in range(n):
            z, u, v = logit[i], positive[i], negative[i]
            q = _exp_float64(-abs(z), 0.0, -745.2, 1023.0)
            log, log_lo, _ = _log1p(q)
            first, first_lo = _softplus_cost(u, positive_lo[i], -z, log, log_lo)
            other, other_lo = _softplus_cost(v, negative_lo[i], z, log, log_lo)
            cost, lost = _two_sum(first, other)
            term[i] = cost + _finite(lost + (first_lo + other_lo))
            likely, unlikely = 1.0 / (1.0 + q), q / (1.0 + q)
            g = v * (unlikely if z < 0.0 else likely) - u * (likely if z < 0.0 else unlikely)
            slope[i] = g * scale
        if loss.size:
            for i in range(n):
                loss[begin + i] = term[i]
        if grad.size:
            for i in range(n):
                grad[begin + i] = slope[i]
        sums[block] = _total_float32(term, n, partial, partial)[0]


# ---------------------------------------------------------------------------------------------
# Entry points, and threads

# Work, in elements, below which every call stays on its thread. Numba's threads sleep between calls
# that are not close together, and are then often woken where their caller runs and waits for them:
# that costs a time slice of the scheduler, 4 ms, and this takes about 2.
_SMALL = 2**22
# What a row costs beside its elements, in elements.
_PER_ROW = 32

# The callers who would have threads work; the first of them has. Numba's "workqueue" layer aborts
# the process when two threads of Python start parallel work at a time, and the other layers would
# run more threads than asked for: so a caller who is not the first works alone. A list and no lock,
# since an interrupt between taking a lock and the `try` would leave it taken for ever.
_callers: list[object] = []
_compiler: Any = global_compiler_lock


def _orphaned() -> bool:
    """Whether somebody else started Numba's threads before a fork, so that they are missing."""
    if not getattr(numba.np.ufunc.parallel, "_is_initialized", False):
        return False
    try:
        return bool(len(os.listdir("/proc/self/task")) < _config.NUMBA_NUM_THREADS)
    except OSError:  # not on every system
        return False


# In a child of a fork the threads of the parent are missing, which the layers answer by aborting:
# there every caller works alone.
_forked = _threads.forked or _orphaned()


def _after_fork() -> None:
    global _forked
    _callers.clear()
    _forked = True
    _compiler.release()


if hasattr(os, "register_at_fork"):
    # A child forked while some thread compiles would wait for the compiler's lock forever.
    os.register_at_fork(
        before=_compiler.acquire,
        after_in_parent=_compiler.release,
        after_in_child=_after_fork,
    )


def _misfit(labels: Array, ignore: int, classes: int) -> bool:
    """Whether some label is neither a class nor `ignore`."""
    count = 0
    for row in range(_U(labels.size)):
        y = labels[row]
        count += 1 if (y < 0 or y >= classes) and y != ignore else 0
    return count > 0


def _sum(values: Array, total: Array) -> None:
    """total[0] = Σ values, but for a rounding or two."""
    u, u_lo = np.zeros(_BLOCK), np.zeros(_BLOCK)
    t, t_lo = np.empty(_BLOCK // 4), np.empty(_BLOCK // 4)
    for begin in range(_0, _U(values.size), _U(_BLOCK)):
        for i in range(min(_U(_BLOCK), _U(values.size) - begin)):
            u[i], lost = _two_sum(u[i], values[begin + i])
            u_lo[i] += _finite(lost)
    sum_, sum_lo = _total_float64(u, _U(_BLOCK), t, t_lo)
    total[0] = sum_ + (sum_lo + _total_float32(u_lo, _U(_BLOCK), t, t_lo)[0])


# Every kernel twice: as a whole, and shared among threads. Arguments come one by one, since Numba
# looks at each of them at every call, and is slow to look into tuples.


def _rows_alone(*job: Any) -> None:
    _rows(0, 1, Job(*job))


def _rows_shared(pieces: int, *job: Any) -> None:
    for piece in numba.prange(pieces):
        control = _set_control(_DEFAULT_CONTROL)
        _rows(piece, pieces, Job(*job))
        _set_control(control)


def _tiles_alone(*job: Any) -> None:
    _tiles(0, 1, Job(*job))


def _tiles_shared(pieces: int, *job: Any) -> None:
    for piece in numba.prange(pieces):
        control = _set_control(_DEFAULT_CONTROL)
        _tiles(piece, pieces, Job(*job))
        _set_control(control)


def _halves_alone(*job: Any) -> None:
    _halves(0, 1, Job(*job))


def _halves_shared(pieces: int, *job: Any) -> None:
    for piece in numba.prange(pieces):
        control = _set_control(_DEFAULT_CONTROL)
        _halves(piece, pieces, Job(*job))
        _set_control(control)


def _bernoulli_alone(*arguments: Any) -> None:
    _bernoulli(0, 1, *arguments)


def _bernoulli_shared(pieces: int, *arguments: Any) -> None:
    for piece in numba.prange(pieces):
        control = _set_control(_DEFAULT_CONTROL)
        _bernoulli(piece, pieces, *arguments)
        _set_control(control)


_SHARED = {
    _rows_alone: _rows_shared,
    _tiles_alone: _tiles_shared,
    _halves_alone: _halves_shared,
    _bernoulli_alone: _bernoulli_shared,
}
_compiled: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}


def _call(function: Callable[..., Any], work: int, *arguments: Any) -> None:
    """Run a kernel over all its pieces, on several threads if `work`, in elements, is worth it."""
    arguments = tuple([_writable(a) if isinstance(a, np.ndarray) else a for a in arguments])
    threads = 1
    if work >= _SMALL and not _forked:
        threads = min(_threads.budget(), _config.NUMBA_NUM_THREADS)
    caller = object()
    try:
        if threads > 1:
            _callers.append(caller)
        if threads > 1 and _callers[0] is caller:
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                _kernel(_SHARED[function], arguments)(threads, *arguments)
            finally:
                numba.set_num_threads(before)
            return
    finally:
        if caller in _callers:
            _callers.remove(caller)
    _kernel(function, arguments)(*arguments)


def _writable(a: Array) -> Array:
    """a, or a writable view of it: for Numba, a read-only array is of another type.

    It would compile every kernel once more. No kernel writes to what is not an output.
    """
    if a.flags.writeable:
        return a
    interface = dict(a.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=a))


def _kernel(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    dtypes = "".join([a.dtype.char for a in arguments if isinstance(a, np.ndarray)])
    kernel = _compiled.get((function, dtypes))
    if kernel is None:
        kernel = _compiled[function, dtypes] = _entry(function, dtypes)
    return kernel


def _entry(function: Callable[..., Any], dtypes: str) -> Callable[..., Any]:
    """`function` compiled at its first call, for these dtypes, by way of Numba's cache of files.

    Every entry has a file of its own: in one that holds several, two processes that compile at a
    time can leave the code of one under the name of another.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{dtypes}"
    options = {**_JIT, "parallel": function in _SHARED.values()}
    compiled: Callable[..., Any] = numba.njit(**options)(copy)
    try:
        cached: Callable[..., Any] = numba.njit(cache=True, **options)(copy)
    except RuntimeError:  # no directory for files
        return compiled

    def entry(*arguments: Any) -> Any:
        try:
            return cached(*arguments)
        except (OSError, EOFError, pickle.PickleError):
            # Raised before the kernel ran: its file is damaged or can't be written.
            return compiled(*arguments)

    return entry


# ---------------------------------------------------------------------------------------------
# The backend

# Bytes of a tile; elements of a block of rows that is copied.
_TILE = 2**16
_COPIED = 2**15


@_fpenv.default
def forward(p: Problem) -> Any:
    losses = np.empty(p.rows)
    _loss(p, losses)
    if p.losses is None:
        sums = np.empty(1)
        _kernel(_sum, (losses, sums))(losses, sums)
        losses = sums
    return p.reduce(losses)


def forward_backward(p: Problem) -> Any:
    return forward(p)  # which writes p.grad where there is one


@_fpenv.default
def backward(p: Problem) -> None:
    """From the logits anew: a float64 lse of large logits does not hold the digits promised.

    Of the saved lse only this is used: where it is not finite, the gradient is NaN.
    """
    _loss(p, None)


def _loss(p: Problem, losses: Array | None) -> None:
    if p.labels is not None:
        labels = _writable(p.labels)
        if _kernel(_misfit, (labels,))(labels, p.ignore_index, p.classes):
            p.check_labels()
    # Of a single class, all that smoothing takes from the label comes back to it.
    smoothing = p.smoothing if p.classes > 1 or p.labels is None else 0.0
    even = smoothing / p.classes
    even_lo = float(Fraction(smoothing) / p.classes - Fraction(even)) if even else 0.0
    certain = 1.0 - smoothing
    certain_lo = (1.0 - certain) - smoothing
    _run(
        p.logits,
        p.axis,
        p.grad,
        labels=p.labels,
        probs=p.probs,
        weight=p.weight,
        per_row=(
            p.sample_weight,
            None if p.grad is None else _row_scale(p),
            p.lse if losses is None else None,
            losses,
            None if losses is None else p.lse,
        ),
        constants=np.array([certain, certain_lo, even, even_lo]),
        ignore=p.ignore_index,
    )


def _row_scale(p: Problem) -> Array:
    if p.sample_weight is not None or isinstance(p.grad_loss, np.ndarray):
        return p.row_scale()
    with np.errstate(all="ignore"):
        return np.full(1, p.grad_loss) / p.denominator()


@_fpenv.default
def softmax(x: Array, axis: int, out: Array) -> None:
    _run(x, axis, out)


@_fpenv.default
def log_softmax(x: Array, axis: int, out: Array) -> None:
    _run(x, axis, out, log=True)


@_fpenv.default
def logsumexp(x: Array, axis: int, out: Array) -> None:
    _run(x, axis, None, per_row=(None, None, None, None, out))


_NO_REALS, _NO_LABELS = np.empty(0), np.empty(0, np.int64)
_HARD = np.array([1.0, 0.0, 0.0, 0.0])


def _run(
    x: Array,
    axis: int,
    grad: Array | None,
    labels: Array | None = None,
    probs: Array | None = None,
    weight: Array | None = None,
    per_row: tuple[Array | None, ...] = (None,) * 5,
    constants: Array = _HARD,
    ignore: int = 0,
    log: bool = False,
) -> None:
    """Choose the kernel for the shape and call it; see `Job` for the arguments."""
    if x.size == 0:
        return
    weight = _NO_REALS if weight is None else weight
    classes, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    # By the shape alone, not by what has to be copied: half types must add up in float32's order.
    dtype = compute_dtype(x.dtype.name)
    fits = 16 * classes * dtype.itemsize <= _TILE
    tiles = classes <= _FEW or (inner > 1 and fits)
    direct = x.flags.c_contiguous and (inner == 1 or (x.itemsize >= 4 and fits))
    if probs is not None:
        direct = direct and probs.flags.c_contiguous and probs.itemsize >= 4
    if direct:
        _kernels(
            tiles, x, grad, labels, probs, weight, per_row, constants, ignore, classes, inner, log
        )
        return
    # A block of rows at a time, contiguous and of a dtype that the kernels know; in place there.
    view = np.moveaxis(x, axis, -1)
    for index, start, stop in row_blocks(x.shape, axis, _COPIED):
        block = np.array(view[index], dtype, order="C")
        t = None
        if probs is not None:
            t = np.moveaxis(probs, axis, -1)[index]
            t = np.array(t, compute_dtype(probs.dtype.name), order="C")
        _kernels(
            tiles,
            block,
            None if grad is None else block,
            None if labels is None else labels[start:stop],
            t,
            weight,
            tuple(a if a is None or a.size == 1 else a[start:stop] for a in per_row),
            constants,
            ignore,
            classes,
            1,
            log,
        )
        if grad is not None:
            with np.errstate(all="ignore"):
                np.moveaxis(grad, axis, -1)[index] = block


def _kernels(
    tiles: bool,
    x: Array,
    grad: Array | None,
    labels: Array | None,
    probs: Array | None,
    weight: Array,
    per_row: tuple[Array | None, ...],
    constants: Array,
    ignore: int,
    classes: int,
    inner: int,
    log: bool,
) -> None:
    """For contiguous x, grad and probs; half types only with inner = 1."""
    outer = x.size // (classes * inner)
    compute = compute_dtype(x.dtype.name)
    width = min(128, _TILE // (classes * compute.itemsize) // 16 * 16)
    if inner >= 16:
        width = min(width, -(-inner // 16) * 16)
    kernel = _tiles_alone if tiles else _rows_alone
    brain = x.dtype.name == "bfloat16"
    if x.itemsize == 2:
        kernel = _halves_alone
        x, grad = x.view(np.uint16), None if grad is None else grad.view(np.uint16)
    _call(
        kernel,
        x.size + _PER_ROW * outer * inner,
        x.reshape(-1),
        np.empty(0, x.dtype) if grad is None else np.asarray(grad).reshape(-1),
        _NO_LABELS if labels is None else labels,
        np.empty(0, compute) if probs is None else probs.reshape(-1),
        weight,
        *(_NO_REALS if a is None else a for a in per_row),
        constants,
        ignore,
        outer,
        classes,
        inner,
        width,
        log,
        brain,
    )


@_fpenv.default
def binary_cross_entropy(
    x: Array,
    t: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array | None,
    grad: Array | None,
    scale: float,
) -> float:
    nothing = np.empty(0, x.dtype)
    given = (nothing if a is None else a for a in (weight, pos_weight, loss, grad))
    sums = np.empty(-(-x.size // _BLOCK))
    _call(_bernoulli_alone, 8 * x.size, x, t, *given, sums, scale)
    return float(np.sum(sums))
