"""Every check of every argument, once.

The public functions pass their arguments to `loss_problem`, or to the functions for single
arguments, and get back a `Problem`, arrays and numbers. The arrays are in native byte order,
aligned, of known dtype and matching shapes. Backends rely on this and check nothing again.

In the functions, `what` is the name of the argument in error messages. No function writes to an
array of the caller, except `delivered`, so that an error leaves every output as it was.
"""

from __future__ import annotations

import math
import operator
from typing import Any, get_args

import numpy as np

from pyce import _fpenv
from pyce._dtypes import NAMES, dtype_name
from pyce._problem import Problem, label_error
from pyce._types import Array, Reduction

INDEX_LIMIT = np.iinfo(np.int64)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

# What the functions that have the parameter `axis` call their logits.
_WITH_AXIS = ("logits", "log_probs", "probs")
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)


# ---------------------------------------------------------------------------------------------
# Single arguments


@_fpenv.default
def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.astype(dtype, copy=False)


def as_array(value: Any, what: str) -> Array:
    """`value` as an array of any dtype.

    TypeError if it is a masked array with masked elements, or contains one; or if it is a tensor of
    PyTorch that NumPy cannot read, or an array that JAX traces. ValueError if it is a list whose
    parts differ in length.
    """
    if type(value) is np.ndarray:
        return value
    refuse_masked(value, what)
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        library = type(value).__module__.partition(".")[0]
        if library == "jax":
            raise TypeError(
                f"{what} is traced by JAX (jit, grad, vmap): pyce.jax has functions for that"
            ) from None
        if library != "torch":
            raise
        raise TypeError(
            f"{what} is a tensor that NumPy cannot read ({error}): pyce.torch takes tensors"
        ) from None
    except ValueError as error:
        raise ValueError(f"{what} is not an array: {error}") from None


def refuse_masked(value: Any, what: str) -> None:
    """Raise TypeError if `value` is a masked array with masked elements, or contains one."""
    if is_masked(value):
        raise TypeError(
            f"{what} has masked elements, and masks are not used: give masked rows the label "
            "ignore_index or the sample_weight 0, and masked classes the logit -inf"
        )


def is_masked(value: Any) -> bool:
    """Whether `value` is a masked array with masked elements, or a list that contains one."""
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))
        if any(issubclass(kind, (list, tuple, np.ma.MaskedArray)) for kind in kinds):
            return any(map(is_masked, value))
        return False
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


def _described(value: Any, array: Array) -> str:
    """The description of an argument of an unfit dtype, for an error message."""
    if value is None:
        return "None"
    if array.dtype.kind != "O":
        return str(array.dtype)
    if hasattr(value, "to_numpy"):  # of pandas, with dtypes that may be missing
        return "object: .to_numpy(dtype=...) converts it"
    if hasattr(value, "toarray"):  # sparse
        return f"{type(value).__name__}: .toarray() converts it"
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return f"{type(value).__name__}: numpy.from_dlpack converts it"
    return "an array of Python objects"


def floating(value: Any, what: str) -> tuple[Array, str]:
    """`value` as an aligned array of one of the four dtypes, in native byte order, and its dtype's
    name. Python numbers become float64.
    """
    if type(value) is np.ndarray:
        array: Array = value
    else:
        array = as_array(value, what)
        if array.dtype.kind in "iub" and not hasattr(value, "dtype"):
            array = _converted(array, _FLOAT64)  # Python integers, or booleans
        elif array.dtype.kind == "f" and isinstance(value, (list, tuple)):
            array = _converted(array, _FLOAT64)
    name = NAMES.get(array.dtype) or dtype_name(array.dtype)
    if name is None:
        native = array.dtype.newbyteorder("=") if array.dtype.kind == "f" else array.dtype
        name = dtype_name(native)
        if name is None:
            raise TypeError(
                f"{what} must be float16, bfloat16, float32 or float64, got "
                f"{_described(value, array)}"
            )
        array = _converted(array, native)
    if not array.flags.aligned:
        array = array.copy()
    return array, name


def class_axis(axis: Any, shape: tuple[int, ...], what: str = "logits") -> int:
    """`axis` as an index into `shape`, not negative.

    ValueError if there are no dimensions or no classes, or if `axis` is out of range.
    """
    ndim = len(shape)
    if ndim == 0:
        raise ValueError(f"{what} must have at least one dimension, got shape ()")
    index = integer(axis, "axis")
    if not -ndim <= index < ndim:
        raise ValueError(f"axis {index} is out of range for {what} of shape {shape}")
    index %= ndim
    if shape[index] == 0:
        raise ValueError(
            f"{what} must have at least one class, got shape {shape} with axis {index}"
        )
    return index


def reals(value: Any, shape: tuple[int, ...], what: str) -> Array:
    """Real numbers of exactly `shape` as a C-contiguous, aligned float64 array."""
    array = as_array(value, what)
    if array.dtype.kind not in "fiu" and dtype_name(array.dtype) is None:
        raise TypeError(f"{what} must be real numbers, got {_described(value, array)}")
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
    if array.dtype is not _FLOAT64:
        array = _converted(array, _FLOAT64)
    return np.require(array, requirements=["C", "A"]).reshape(shape)


def broadcast(value: Any, shape: tuple[int, ...], what: str, *, exact: bool = False) -> Array:
    """Real numbers or booleans broadcast to `shape`; with `exact`, they must have that shape."""
    array = as_array(value, what)
    if array.dtype.kind not in "fiub" and dtype_name(array.dtype) is None:
        raise TypeError(f"{what} must be real numbers, got {_described(value, array)}")
    if array.dtype.kind in "iub":
        array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    try:
        if exact and array.shape != shape:
            raise ValueError
        return np.broadcast_to(array, shape)
    except ValueError:
        fit = "does not fit" if exact else "does not broadcast to"
        raise ValueError(f"{what} of shape {array.shape} {fit} logits of shape {shape}") from None


def real(value: Any, what: str) -> float:
    """A single real number as a float; also an array of it without dimensions."""
    if type(value) is float:
        return value
    array = as_array(value, what)
    is_number = array.dtype.kind in "fiub" or dtype_name(array.dtype) is not None
    # Objects are numbers of other types, such as fractions.
    if array.ndim == 0 and (is_number or array.dtype.kind == "O"):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{what} must be a real number, got {value!r}")


def fraction(value: Any, what: str) -> float:
    """A number in [0, 1]."""
    number = real(value, what)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{what} must lie in [0, 1], got {value!r}")
    return number


def finite(value: Any, what: str) -> float:
    """A finite number."""
    number = real(value, what)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, got {value!r}")
    return number


def positive(value: Any, what: str) -> float:
    """A positive and finite number."""
    number = finite(value, what)
    if number <= 0.0:
        raise ValueError(f"{what} must be positive, got {value!r}")
    return number


def reduction_name(value: Any) -> Reduction:
    """`value` if it is one of `REDUCTIONS`."""
    if not isinstance(value, str) or value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {value!r}")
    # The name itself: str() of a member of an enumeration of strings is another.
    return REDUCTIONS[REDUCTIONS.index(value)]


def integer(value: Any, what: str) -> int:
    """An integer of any type as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None


def index_number(value: Any, what: str) -> int:
    """An integer that fits int64."""
    number = integer(value, what)
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
    target: Array,
    positions: tuple[int, ...],
    shape: tuple[int, ...],
    what: str,
    classes: int,
    ignore_index: int,
) -> Array:
    """Integer targets as a flat, C-contiguous int32 or int64 array, one per row.

    `shape` is that of the logits, which errors call `what`.
    """
    if target.shape == shape:
        raise ValueError(
            f"integer target of shape {target.shape} does not fit {what} of shape {shape}: class "
            f"indices have the shape {positions}; one-hot rows and other probabilities must be "
            "floating, as target.astype(float) makes them (target.float() of a tensor)"
        )
    if target.shape != positions:
        raise ValueError(index_shape_error(target.shape, positions, shape, what))
    if target.dtype.kind == "u" and target.dtype.itemsize == 8:
        refuse_large(target, classes, ignore_index)
    kind, size = target.dtype.kind, target.dtype.itemsize
    dtype = _INT64 if size == 8 or (kind == "u" and size == 4) else _INT32
    if target.dtype is not dtype:
        target = _converted(target, dtype)
    return np.require(target, requirements=["C", "A"]).reshape(-1)


def index_shape_error(
    found: tuple[int, ...], expected: tuple[int, ...], shape: tuple[int, ...], what: str
) -> str:
    """The message for class indices in the shape `found`, where `what` has the shape `shape`.

    A frequent mistake is another class axis than the function's, so the message names an axis whose
    absence would explain the shape, and how to make it the class axis.
    """
    axes = (k for k in range(len(shape)) if found == shape[:k] + shape[k + 1 :])
    other = next(axes, None)
    hint = ""
    if other is not None:
        hint = f"; the target lacks axis {other} instead"
        if what == "input":  # the logits of `pyce.torch`, whose class axis is 1
            hint += f": if the classes are there, pass input.movedim({other}, 1)"
        elif what in _WITH_AXIS:
            hint += f": if the classes are there, pass axis={other}"
    return (
        f"index target of shape {found} does not fit {what} of shape {shape}: "
        f"expected {expected}, that shape without the class axis{hint}"
    )


@_fpenv.default
def refuse_large(target: Array, classes: int, ignore_index: int) -> None:
    """Raise IndexError for the first uint64 label that is invalid, if one exceeds int64.

    Such a label is out of range, and a conversion to int64 could turn it into a valid one.
    """
    large = target > np.uint64(INDEX_LIMIT.max)
    if large.any():
        fits = np.where(large, 0, target).astype(np.int64).ravel()
        large = large.ravel()
        bad = large | ((fits != ignore_index) & (fits >= classes))
        row = int(np.argmax(bad))
        raise label_error(row, int(target.ravel()[row]), classes, ignore_index)


def output(
    out: Any,
    logits: Array,
    given: Any,
    others: tuple[tuple[Any, Any], ...],
    what: str = "the logits",
) -> Array:
    """The aligned array for a result in the logits' shape and dtype: `out`, checked, or a new one.

    `given` is what the caller passed as logits, and `others` are the other arguments, each as it
    was passed and as it is used. ValueError if `out` shares memory with one of them, except that it
    may be exactly the logits. If `out` is not aligned, or in the byte order of logits that are not
    native, the result is a new array, which `delivered` copies to `out`.
    """
    if out is None:
        return np.empty(logits.shape, logits.dtype)
    native = _fits(out, "out", logits.shape, logits.dtype, given, what)
    out = _plain(out)
    # Two arrays that own their memory share none. This is nearly always so, and quickly checked.
    owns = out.flags.owndata
    for other in (logits,) if given is logits else (logits, given):
        if owns and out is not other and type(other) is np.ndarray and other.flags.owndata:
            continue
        if _overlap(out, other) and not _same_memory(out, other):
            raise ValueError(
                f"out overlaps {what}: it must be exactly the same memory, or share none"
            )
    for passed, used in others:
        other = passed if isinstance(passed, np.ndarray) else used
        if other is None or (
            owns and out is not other and type(other) is np.ndarray and other.flags.owndata
        ):
            continue
        if _overlap(out, other):
            raise ValueError("out shares memory with another argument")
    return out if native else np.empty(logits.shape, logits.dtype)


def gradient_output(
    out: Any,
    name: str,
    like: tuple[tuple[int, ...], np.dtype[Any]],
    given: Any,
    others: list[Array],
    what: str,
) -> Array:
    """As `output`, for the gradient of another argument than the logits, called `what`.

    `name` is what the caller calls `out`, and `like` the shape and dtype of the gradient. It shares
    memory with none of `others`.
    """
    shape, dtype = like
    if out is None:
        return np.empty(shape, dtype)
    native = _fits(out, name, shape, dtype, given, what)
    out = _plain(out)
    if any(_overlap(out, other) for other in others):
        raise ValueError(f"{name} shares memory with another argument")
    return out if native else np.empty(shape, dtype)


def _fits(
    out: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], given: Any, what: str
) -> bool:
    """Check that `out` can receive a result; whether it can be written as it is.

    It cannot if it is not aligned, or in the byte order of `given`, which is not native.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    if is_masked(out):
        raise TypeError(f"{name} has masked elements, and masks are not used: .data has no mask")
    if out.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of {what}, got {out.shape}")
    native = out.dtype == dtype
    if not native and not (isinstance(given, np.ndarray) and given.dtype == out.dtype):
        raise TypeError(f"{name} must have the dtype {dtype} of {what}, got {out.dtype}")
    flags = out.flags
    if not flags.carray:  # contiguous, writable and aligned
        if not flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous")
        if not flags.writeable:
            raise ValueError(f"{name} must be writable")
    return native and bool(flags.aligned)


def delivered(result: Array, out: Array | None) -> Array:
    """`out` with the result in it, if `out` was given; else `result`."""
    if out is None or result is out:
        return result
    if type(out) is np.ndarray or not _same_memory(out, result):
        out[...] = result
    return out


def _plain(array: Any) -> Any:
    """The memory of an array of a subclass, which may replace NumPy's functions, as an ndarray."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def _overlap(out: Array, other: Any) -> bool:
    """Whether `out` shares memory with `other`; False if `other` is not an array."""
    if not isinstance(other, np.ndarray):
        return False
    other = _plain(other)
    if out is other:
        return True
    if not np.may_share_memory(out, other):
        return False
    try:
        return np.shares_memory(out, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _same_memory(a: Array, b: Array) -> bool:
    """Whether arrays of one shape have each element at the same place."""
    if a is b:
        return True
    start = a.__array_interface__["data"][0]
    if a.dtype != b.dtype or start != b.__array_interface__["data"][0]:
        return False
    # The stride of an axis of one element leads nowhere.
    pairs = zip(a.shape, a.strides, b.strides, strict=True)
    return all(length == 1 or step == other for length, step, other in pairs)


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
    lse_square_scale: Any = 0.0,
    what: str = "logits",
) -> Problem:
    """The `Problem` of the arguments that the losses share, checked. Its outputs are None.

    `what` is what the caller calls the logits.
    """
    # Every small call runs this function, so common cases are written out where that saves time.
    if type(logits) is np.ndarray and logits.dtype in NAMES and logits.flags.aligned:
        x: Array = logits
        name = NAMES[x.dtype]
    else:
        x, name = floating(logits, what)
    shape = x.shape
    ndim = len(shape)
    p = Problem()
    if type(axis) is int and axis == -1 and ndim == 2 and shape[1]:
        p.axis = 1
        p.outer = p.rows = shape[0]
        p.classes = shape[1]
        p.inner = 1
        positions: tuple[int, ...] = shape[:1]
    else:
        p.axis = k = class_axis(axis, shape, what)
        p.outer = math.prod(shape[:k])
        p.classes = shape[k]
        p.inner = math.prod(shape[k + 1 :])
        p.rows = p.outer * p.inner
        positions = shape[:k] + shape[k + 1 :]
    p.logits = x
    p.dtype_name = name
    p.contiguous = x.flags.c_contiguous
    common = type(ignore_index) is int and ignore_index == -100
    p.ignore_index = -100 if common else index_number(ignore_index, "ignore_index")
    common = type(label_smoothing) is float and label_smoothing == 0.0
    p.smoothing = 0.0 if common else fraction(label_smoothing, "label_smoothing")
    common = type(reduction) is str and reduction == "mean"
    p.reduction = "mean" if common else reduction_name(reduction)
    common = type(lse_square_scale) is float and lse_square_scale == 0.0
    p.lse_square_scale = 0.0 if common else finite(lse_square_scale, "lse_square_scale")
    p.normalizer = None if normalizer is None else real(normalizer, "normalizer")
    p.weight = None if weight is None else reals(weight, (p.classes,), "weight")
    p.sample_weight = None
    if sample_weight is not None:
        p.sample_weight = reals(sample_weight, positions, "sample_weight").reshape(-1)
    p.grad_loss = 1.0
    p.grad = p.lse = p.losses = None

    t = target if type(target) is np.ndarray else _as_target(target, shape)
    if t.dtype.kind in "iu":
        p.probs = None
        if t.shape == positions and (t.dtype is _INT64) and t.flags.carray and ndim == 2:
            p.labels = t
        else:
            p.labels = indices(t, positions, shape, what, p.classes, p.ignore_index)
    else:
        p.probs = t = probabilities(target, t, positions, shape, what)
        p.labels = None
        p.contiguous = p.contiguous and t.flags.c_contiguous
    return p


def probabilities(
    target: Any, array: Array, positions: tuple[int, ...], shape: tuple[int, ...], what: str
) -> Array:
    """Targets that are not integers, passed as `target`, as an array of the shape of the logits.

    That is `shape`, and `positions` is that shape without the class axis.
    """
    # Other dtypes, such as NumPy's StringDType, may have no byte order.
    if array.dtype.kind not in "fV" or dtype_name(array.dtype.newbyteorder("=")) is None:
        raise _target_error(target, array)
    if array.shape == positions:
        raise TypeError(
            f"target is {array.dtype} but shaped like class indices: indices must be integers, "
            f"probabilities must have the shape {shape} of {what}"
        )
    t, _ = floating(array, "target")
    if t.shape != shape:
        raise ValueError(
            f"probability target of shape {t.shape} does not fit {what} of shape {shape}"
        )
    return t


def _as_target(target: Any, shape: tuple[int, ...]) -> Array:
    array = as_array(target, "target")
    if array.size == 0 and array.dtype.kind == "f" and not hasattr(target, "dtype"):
        # NumPy makes float64 of an empty list. In the shape of the logits they are probabilities.
        return array if array.shape == shape else array.astype(np.int64)
    return array


def _target_error(target: Any, array: Array) -> TypeError:
    """The error for a target that is neither integer nor floating."""
    kind = array.dtype.kind
    if kind == "O" and array.size and all(isinstance(label, str) for label in array.flat):
        kind = "U"
    advice = {
        "b": (
            ": .astype(int) makes class indices of booleans, .astype(float) one-hot rows "
            "(.long() and .float() of a tensor)"
        ),
        "U": ": numpy.unique(labels, return_inverse=True) makes class indices of names",
        "T": ": numpy.unique(labels, return_inverse=True) makes class indices of names",
        "S": ": numpy.unique(labels, return_inverse=True) makes class indices of names",
    }.get(kind, "")
    return TypeError(
        "target must be class indices of an integer dtype, or probabilities of float16, bfloat16, "
        f"float32 or float64, got {_described(target, array)}{advice}"
    )
