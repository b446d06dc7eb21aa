"""The checks of values and the layouts of arrays, in compiled code.

Functions that return different types for different types of arguments are overloads of a function
that does nothing: Numba chooses the implementation when it compiles a call.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import overload, register_jitable

from pyce.numba import _c
from pyce.numba._errors import (
    AxisError,
    FiniteError,
    IndexShapeError,
    IntegerError,
    Interrupted,
    LabelError,
    NoClassError,
    OutShapeError,
    OverlapError,
    ProbabilityShapeError,
    SampleWeightShapeError,
    SmoothingError,
    WeightShapeError,
)
from pyce.numba._types import is_absent

_INT64_MAX = np.uint64(np.iinfo(np.int64).max)


# ---------------------------------------------------------------------------------------------
# Shapes


@register_jitable
def class_axis(shape, axis, what):
    """`axis` as an index into the shape, not negative; `what` names the logits in errors."""
    ndim = len(shape)
    index = as_int64(axis, "axis")
    if index < -ndim or index >= ndim:
        raise AxisError(index, shape, what)
    k = index + ndim if index < 0 else index
    if shape[k] == 0:
        raise NoClassError(k, shape, what)
    return k


@register_jitable
def parts(shape, k):
    """outer, classes and inner of a shape with class axis k."""
    outer, inner = 1, 1
    for d in range(len(shape)):
        if d < k:
            outer *= shape[d]
        if d > k:
            inner *= shape[d]
    return outer, shape[k], inner


def positions(shape, k):
    """A shape without the class axis."""


@overload(positions)
def _positions(shape, k):
    if len(shape) == 1:
        return lambda shape, k: ()

    def implementation(shape, k):
        found = shape[1:]
        for d in range(len(found)):
            found = tuple_setitem(found, d, shape[d] if d < k else shape[d + 1])
        return found

    return implementation


@register_jitable
def with_one_class(shape, k):
    """A shape whose class axis has the length 1."""
    found = shape
    for d in range(len(shape)):
        found = tuple_setitem(found, d, 1 if d == k else shape[d])
    return found


# ---------------------------------------------------------------------------------------------
# Arrays


def contiguous(array):
    """The array itself if its type is C-contiguous, else a copy; None for None."""


@overload(contiguous)
def _contiguous(array):
    if isinstance(array, types.Array) and array.layout != "C":
        return lambda array: array.copy()
    return lambda array: array


def as_float64(array):
    """`contiguous` in float64."""


@overload(as_float64)
def _as_float64(array):
    if isinstance(array, types.Array) and array.dtype != types.float64:
        return lambda array: array.astype(np.float64)
    return lambda array: contiguous(array)


def weights(weight, classes):
    """Class weights as the backends take them; None for None."""


@overload(weights)
def _weights(weight, classes):
    if not isinstance(weight, types.Array):
        return lambda weight, classes: None

    def implementation(weight, classes):
        if weight.size != classes:
            raise WeightShapeError(weight.shape, (classes,))
        return as_float64(weight)

    return implementation


def sample_weights(sample_weight, expected):
    """Sample weights as the backends take them; None for None."""


@overload(sample_weights)
def _sample_weights(sample_weight, expected):
    if not isinstance(sample_weight, types.Array):
        return lambda sample_weight, expected: None

    def implementation(sample_weight, expected):
        if sample_weight.shape != expected:
            raise SampleWeightShapeError(sample_weight.shape, expected)
        return as_float64(sample_weight)

    return implementation


def targets(target, shape, expected, classes, ignore_index):
    """The target of logits of a shape: int32 or int64 labels, or probabilities, contiguous."""


@overload(targets)
def _targets(target, shape, expected, classes, ignore_index):
    if isinstance(target, types.Integer):
        return lambda target, shape, expected, classes, ignore_index: np.full(
            1, as_label(target, 0, classes, ignore_index)
        )
    if target.dtype in (types.float32, types.float64):

        def probabilities(target, shape, expected, classes, ignore_index):
            if target.shape != shape:
                raise ProbabilityShapeError(target.shape, shape)
            return contiguous(target)

        return probabilities

    def as_given(target, shape, expected, classes, ignore_index):
        if target.shape != expected:
            raise IndexShapeError(target.shape, shape, expected)
        return contiguous(target)

    def converted(target, shape, expected, classes, ignore_index):
        if target.shape != expected:
            raise IndexShapeError(target.shape, shape, expected)
        labels = np.empty(target.size, np.int64)
        for row, label in enumerate(target.flat):
            labels[row] = as_label(label, row, classes, ignore_index)
        return labels

    return as_given if target.dtype in (types.int32, types.int64) else converted


def as_label(label, row, classes, ignore_index):
    """A label of any integer type as int64."""


@overload(as_label)
def _as_label(label, row, classes, ignore_index):
    if types.unliteral(label) != types.uint64:
        return lambda label, row, classes, ignore_index: np.int64(label)

    def checked(label, row, classes, ignore_index):
        # A conversion could turn such a label into a valid one.
        if label > _INT64_MAX:
            raise LabelError(row, label, classes, ignore_index)
        return np.int64(label)

    return checked


# ---------------------------------------------------------------------------------------------
# Outputs


@register_jitable
def _extent(array):
    """The addresses of the first byte of an array and of the byte after the last."""
    low = np.int64(array.ctypes.data)
    high = low + array.itemsize
    for d in range(array.ndim):
        distance = (array.shape[d] - 1) * array.strides[d]
        if distance < 0:
            low += distance
        else:
            high += distance
    return low, high


@register_jitable
def _overlap(a, b):
    if a.size == 0 or b.size == 0:
        return False
    low, high = _extent(a)
    other_low, other_high = _extent(b)
    return low < other_high and other_low < high


def refuse_overlap(out, other):
    """Raise ValueError if `out` shares memory with another argument; each may be None."""


@overload(refuse_overlap)
def _refuse_overlap(out, other):
    both = isinstance(out, types.Array) and isinstance(other, types.Array)
    if not both or other.ndim == 0:
        return lambda out, other: None

    def implementation(out, other):
        if _overlap(out, other):
            raise ValueError("out shares memory with another argument")

    return implementation


def output(out, logits, what):
    """The array for a result: `out`, checked against the logits, or a new one.

    `what` names the logits in errors.
    """


@overload(output)
def _output(out, logits, what):
    if not isinstance(out, types.Array):
        return lambda out, logits, what: np.empty(logits.shape, logits.dtype)

    def implementation(out, logits, what):
        if out.shape != logits.shape:
            raise OutShapeError(out.shape, logits.shape, what)
        if _overlap(out, logits):
            same = out.ctypes.data == logits.ctypes.data
            if not (same and out.strides == logits.strides):
                raise OverlapError(what)
        return out

    return implementation


# ---------------------------------------------------------------------------------------------
# Numbers


@register_jitable
def fraction(value):
    """`label_smoothing`, in [0, 1]."""
    number = np.float64(value)
    if not (number >= 0.0 and number <= 1.0):
        raise SmoothingError(number)
    return number


@register_jitable
def finite(value):
    """`lse_square_scale`, finite."""
    number = np.float64(value)
    if not math.isfinite(number):
        raise FiniteError(number)
    return number


def as_int64(value, name):
    """The argument with this name, of any integer type, as int64."""


@overload(as_int64)
def _as_int64(value, name):
    if types.unliteral(value) != types.uint64:
        return lambda value, name: np.int64(value)

    def checked(value, name):
        if value > _INT64_MAX:
            raise IntegerError(name, value)
        return np.int64(value)

    return checked


def optional(value):
    """A number as float64; 0 for None."""


@overload(optional)
def _optional(value):
    if is_absent(value):
        return lambda value: 0.0
    return lambda value: np.float64(value)


@register_jitable
def options(label_smoothing, lse_square_scale, normalizer, ignore_index):
    """The numbers that a backend takes, in its order."""
    return (
        fraction(label_smoothing),
        finite(lse_square_scale),
        optional(normalizer),
        as_int64(ignore_index, "ignore_index"),
    )


@register_jitable
def inputs(shape, k, classes, ignore_index, target, weight, sample_weight):
    """Target, class weights and sample weights as a backend takes them."""
    expected = positions(shape, k)
    return (
        targets(target, shape, expected, classes, ignore_index),
        weights(weight, classes),
        sample_weights(sample_weight, expected),
    )


@register_jitable
def check_status(status, row, value, classes, ignore_index):
    """Raise the error of a status."""
    if status != _c.OK:
        if status == _c.BAD_LABEL:
            raise LabelError(row, value, classes, ignore_index)
        if status == _c.NO_MEMORY:
            raise MemoryError("pyce could not allocate its scratch memory")
        if status == _c.OTHER_VERSION:
            raise RuntimeError(
                "this function was compiled, and stored in Numba's cache, for another version of "
                "pyce: remove the cache (the files .nbi and .nbc in __pycache__)"
            )
        if status == _c.BAD_THREADS:
            raise ValueError("PYCE_NUM_THREADS must be a whole number of at least 1")
        if status == _c.INTERRUPTED:
            raise Interrupted
        if status == _c.FAILED:
            raise RuntimeError("the backend failed with the error that was printed")
        # Numba does not always distinguish the type of such an array from that of others.
        raise ValueError("an array is not aligned to its dtype: array.copy() is")
