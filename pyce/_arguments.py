"""Every check of every argument, once.

The public functions pass what the caller gave to `loss_problem`, or to the functions for single
arguments, and get back a `Problem` and arrays: in native byte order, aligned, of known dtype and
fitting shapes, outputs allocated or checked. Backends trust them and check nothing again.

Nothing here writes to an array that the caller can see, so an error leaves every output as it was.
"""

from __future__ import annotations

import math
import operator
from typing import Any, cast, get_args

import numpy as np

from pyce import _fpenv
from pyce._dtypes import NAMES, dtype_name
from pyce._problem import Problem, label_error
from pyce._types import Array, Reduction

INDEX_LIMIT = np.iinfo(np.int64)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)


# ---------------------------------------------------------------------------------------------
# Single arguments


@_fpenv.default
def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.astype(dtype, copy=False)


def floating(value: Any, what: str) -> tuple[Array, str]:
    """`value` as an aligned native array of one of the four dtypes, and the dtype's name."""
    if type(value) is np.ndarray:
        array: Array = value
    else:
        array = np.asarray(value)
        if array.dtype.kind in "iub" and not hasattr(value, "dtype"):
            array = array.astype(np.float64)  # Python numbers
        elif array.dtype.kind == "f" and isinstance(value, (list, tuple)):
            array = array.astype(np.float64, copy=False)
    name = NAMES.get(array.dtype) or dtype_name(array.dtype)
    if name is None:
        native = array.dtype.newbyteorder("=") if array.dtype.kind == "f" else array.dtype
        name = dtype_name(native)
        if name is None:
            raise TypeError(
                f"{what} must be float16, bfloat16, float32 or float64, got {array.dtype}"
            )
        array = _converted(array, native)
    if not array.flags.aligned:
        array = array.copy()
    return array, name


def class_axis(axis: Any, shape: tuple[int, ...], what: str = "logits") -> int:
    """`axis` as an index into `shape`; refuses 0-d arrays, axes out of range and no classes."""
    ndim = len(shape)
    if ndim == 0:
        raise ValueError(f"{what} must have at least one dimension, got shape ()")
    index = operator.index(axis)
    if not -ndim <= index < ndim:
        raise ValueError(f"axis {index} is out of range for {what} of shape {shape}")
    index %= ndim
    if shape[index] == 0:
        raise ValueError(
            f"{what} must have at least one class, got shape {shape} with axis {index}"
        )
    return index


def reals(value: Any, shape: tuple[int, ...], what: str) -> Array:
    """Real numbers of exactly `shape` as a contiguous, aligned float64 array."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and dtype_name(array.dtype) is None:
        raise TypeError(f"{what} must be real numbers, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
    if array.dtype is not _FLOAT64:
        array = _converted(array, _FLOAT64)
    return np.require(array, requirements=["C", "A"]).reshape(shape)


def real(value: Any, what: str) -> float:
    """A single real number as a float."""
    if isinstance(value, (str, bytes)) or np.ndim(value) != 0:
        raise TypeError(f"{what} must be a number, got {value!r}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{what} must be a number, got {value!r}") from None


def fraction(value: Any, what: str) -> float:
    """A number in [0, 1]."""
    number = real(value, what)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{what} must lie in [0, 1], got {value!r}")
    return number


def reduction_name(value: Any) -> Reduction:
    """`value` if it is one of `REDUCTIONS`."""
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {value!r}")
    return cast(Reduction, str(value))


def index_number(value: Any, what: str) -> int:
    """An integer that fits int64."""
    number = operator.index(value)
    if not INDEX_LIMIT.min <= number <= INDEX_LIMIT.max:
        raise ValueError(f"{what} must fit a 64-bit integer, got {number}")
    return number


def positive_number(value: Any, what: str) -> int:
    """A whole number of at least 1."""
    number = index_number(value, what)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number


def indices(
    target: Array, positions: tuple[int, ...], logits: Array, classes: int, ignore_index: int
) -> Array:
    """Integer targets as a flat contiguous int32 or int64 array, one per row."""
    if target.shape != positions:
        raise ValueError(
            f"index target of shape {target.shape} does not fit logits of shape {logits.shape}: "
            f"expected {positions}, the logits' shape without the class axis"
        )
    if target.dtype.kind == "u" and target.dtype.itemsize == 8:
        _refuse_large(target, classes, ignore_index)
    kind, size = target.dtype.kind, target.dtype.itemsize
    dtype = _INT64 if size == 8 or (kind == "u" and size == 4) else _INT32
    if target.dtype is not dtype:
        target = _converted(target, dtype)
    return np.require(target, requirements=["C", "A"]).reshape(-1)


@_fpenv.default
def _refuse_large(target: Array, classes: int, ignore_index: int) -> None:
    """What int64 can't hold is out of range for certain, but must not wrap to a valid value."""
    large = target > np.uint64(INDEX_LIMIT.max)
    if large.any():
        fits = np.where(large, 0, target).astype(np.int64).ravel()
        large = large.ravel()
        bad = large | ((fits != ignore_index) & (fits >= classes))
        row = int(np.argmax(bad))
        raise label_error(row, int(target.ravel()[row]), classes, ignore_index)


def output(out: Any, logits: Array, given: Any, others: tuple[tuple[Any, Any], ...]) -> Array:
    """The aligned array to write a logits-shaped result to: `out` after its checks, or a new one.

    `out` may be exactly the logits, of which `given` is what the caller passed. Any other memory
    that it shares with them, or any with another argument, is refused; `others` are these, as given
    and as used.
    """
    if out is None:
        return np.empty(logits.shape, logits.dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy.ndarray, got {type(out).__name__}")
    if out.shape != logits.shape:
        raise ValueError(f"out has shape {out.shape}, but the logits have shape {logits.shape}")
    if out.dtype != logits.dtype:
        raise TypeError(f"out has dtype {out.dtype}, but the logits have dtype {logits.dtype}")
    flags = out.flags
    if not flags.carray:  # contiguous, writable and aligned
        if not flags.c_contiguous:
            raise ValueError("out must be C-contiguous")
        if not flags.writeable:
            raise ValueError("out must be writable")
    # What has memory of its own shares none, which is quickly seen and nearly always so.
    owns = flags.owndata
    for other in (logits,) if given is logits else (logits, given):
        if owns and out is not other and type(other) is np.ndarray and other.flags.owndata:
            continue
        if _overlap(out, other) and not _same_memory(out, other):
            raise ValueError("out overlaps the logits: it must be exactly them or share no memory")
    for passed, used in others:
        other = passed if isinstance(passed, np.ndarray) else used
        if other is None or (
            owns and out is not other and type(other) is np.ndarray and other.flags.owndata
        ):
            continue
        if _overlap(out, other):
            raise ValueError("out shares memory with another argument")
    return out if flags.aligned else np.empty(logits.shape, logits.dtype)


def delivered(result: Array, out: Array | None) -> Array:
    """`result` where the caller wants it: an unaligned `out` was computed beside its memory."""
    if out is None or result is out:
        return result
    out[...] = result
    return out


def _overlap(out: Array, other: Any) -> bool:
    """Whether two arrays share memory; what is no array shares none."""
    if not isinstance(other, np.ndarray):
        return False
    if out is other:
        return True
    if not np.may_share_memory(out, other):
        return False
    try:
        return np.shares_memory(out, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _same_memory(a: Array, b: Array) -> bool:
    if a is b:
        return True
    start = a.__array_interface__["data"][0]
    return bool(
        a.dtype == b.dtype and start == b.__array_interface__["data"][0] and a.strides == b.strides
    )


# ---------------------------------------------------------------------------------------------
# Whole calls


def loss_problem(
    logits: Any,
    target: Any,
    *,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    normalizer: Any,
) -> Problem:
    """Check the arguments that forward, fused and backward share; outputs are left to `None`."""
    x, name = floating(logits, "logits")
    shape = x.shape
    ndim = len(shape)
    p = Problem()
    if axis == -1 and ndim == 2 and shape[1]:
        # The common case, spelt out: this path is on the clock of every small call.
        p.axis = 1
        p.outer = p.rows = shape[0]
        p.classes = shape[1]
        p.inner = 1
        positions: tuple[int, ...] = shape[:1]
    else:
        p.axis = k = class_axis(axis, shape)
        p.outer = math.prod(shape[:k])
        p.classes = shape[k]
        p.inner = math.prod(shape[k + 1 :])
        p.rows = p.outer * p.inner
        positions = shape[:k] + shape[k + 1 :]
    p.logits = x
    p.dtype_name = name
    p.contiguous = x.flags.c_contiguous
    p.ignore_index = -100 if ignore_index == -100 else index_number(ignore_index, "ignore_index")
    p.smoothing = 0.0 if label_smoothing == 0.0 else fraction(label_smoothing, "label_smoothing")
    p.reduction = reduction if reduction == "mean" else reduction_name(reduction)
    p.normalizer = None if normalizer is None else real(normalizer, "normalizer")
    p.weight = None if weight is None else reals(weight, (p.classes,), "weight")
    p.sample_weight = None
    if sample_weight is not None:
        p.sample_weight = reals(sample_weight, positions, "sample_weight").reshape(-1)
    p.grad_loss = 1.0
    p.grad = p.lse = p.losses = None

    t = target if type(target) is np.ndarray else _as_target(target)
    if t.dtype.kind in "iu":
        p.probs = None
        if t.shape == positions and (t.dtype is _INT64) and t.flags.carray and ndim == 2:
            p.labels = t
        else:
            p.labels = indices(t, positions, x, p.classes, p.ignore_index)
    else:
        if t.shape == positions and dtype_name(t.dtype.newbyteorder("=")):
            raise TypeError(
                f"target is {t.dtype} but shaped like class indices: indices must be integers, "
                "probabilities must have the logits' shape"
            )
        t, _ = floating(t, "target")
        if t.shape != shape:
            raise ValueError(
                f"probability target of shape {t.shape} does not fit logits of shape {shape}"
            )
        p.probs = t
        p.labels = None
        p.contiguous = p.contiguous and t.flags.c_contiguous
    return p


def _as_target(target: Any) -> Array:
    array = np.asarray(target)
    if array.size == 0 and array.dtype.kind == "f" and not hasattr(target, "dtype"):
        return array.astype(np.int64)  # an empty list has no dtype of its own
    return array
