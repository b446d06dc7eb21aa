"""Every check of every argument, once, and the small value that the backends work on.

The public functions in `pyce._loss` pass what the caller gave to `loss_problem` (or `matrix` for
softmax and its kin) and get back a `Problem`: arrays in native byte order, aligned, of known dtype
and fitting shapes, outputs allocated or checked. Backends trust it and check nothing again.

Nothing here writes to an array that the caller can see, so an error leaves every output as it was.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyce import _fpenv

Array = npt.NDArray[Any]

INDEX_LIMIT = np.iinfo(np.int64)
REDUCTIONS = ("mean", "sum", "none")

# What logits of each dtype are computed in: half types in float32, and rounded once.
_COMPUTE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# dtype -> its name, filled as dtypes are met: a dict look-up is the fast way to know a dtype.
_NAMES: dict[Any, str] = {np.dtype(n): n for n in ("float16", "float32", "float64")}
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)


class Problem:
    """One loss computation, normalised.

    `logits`, `probs` and `grad` share one shape whose class axis is `axis`; seen in memory order
    they are `(outer, classes, inner)` when `contiguous`. The positions, that is the shape without
    the class axis in C order, number `rows`; `labels`, `sample_weight`, `lse`, `losses` and an
    array `grad_loss` are flat, one element per row.

    ============== ==============================================================================
    logits         float16, bfloat16, float32 or float64, native, aligned, any strides
    labels         int32 or int64 (rows,), contiguous; None with `probs`
    probs          floating, logits' shape, any strides; None with `labels`
    weight         float64 (classes,) or None
    sample_weight  float64 (rows,) or None
    normalizer     what replaces the mean's denominator, or None
    grad_loss      factor of every row's gradient: a float, or float64 (rows,)
    grad           logits' shape and dtype, C-contiguous; None in the forward
    lse            float64 (rows,): written by the forward, read by the backward; or None
    losses         float32 or float64 (rows,), written when reduction is "none"; else None
    ============== ==============================================================================
    """

    __slots__ = (
        "axis",
        "classes",
        "contiguous",
        "dtype_name",
        "grad",
        "grad_loss",
        "ignore_index",
        "inner",
        "labels",
        "logits",
        "losses",
        "lse",
        "normalizer",
        "outer",
        "probs",
        "reduction",
        "rows",
        "sample_weight",
        "smoothing",
        "weight",
    )

    logits: Array
    dtype_name: str
    axis: int
    outer: int
    classes: int
    inner: int
    rows: int
    contiguous: bool
    labels: Array | None
    probs: Array | None
    weight: Array | None
    sample_weight: Array | None
    ignore_index: int
    smoothing: float
    reduction: str
    normalizer: float | None
    grad_loss: float | Array
    grad: Array | None
    lse: Array | None
    losses: Array | None

    @property
    def positions(self) -> tuple[int, ...]:
        """The logits' shape without the class axis: that of index targets and row losses."""
        shape = self.logits.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @_fpenv.default
    def check_labels(self) -> None:
        """Raise IndexError for the first label that is neither a class nor `ignore_index`."""
        labels = self.labels
        if labels is None:
            return
        bad = (labels != self.ignore_index) & ((labels < 0) | (labels >= self.classes))
        if bad.any():
            row = int(np.argmax(bad))
            raise label_error(row, int(labels[row]), self.classes, self.ignore_index)

    def keep(self) -> Array | None:
        """Which rows count, as booleans; None when every row does."""
        if self.labels is None:
            return None
        keep: Array = self.labels != self.ignore_index
        return None if keep.all() else keep

    def denominator(self) -> float:
        """What the mean divides by; 1 for the other reductions.

        Index targets: Σ weight[y]·sample_weight over the rows that count. Probability targets:
        Σ sample_weight, the number of rows without sample weights.
        """
        if self.reduction != "mean":
            return 1.0
        if self.normalizer is not None:
            return self.normalizer
        keep = self.keep()
        share: Array | None = self.sample_weight
        if self.weight is not None and self.labels is not None:
            safe = self.labels if keep is None else np.where(keep, self.labels, 0)
            share = self.weight[safe] if share is None else self.weight[safe] * share
        if share is None:
            return float(self.rows if keep is None else np.count_nonzero(keep))
        return precise_sum(share if keep is None else share[keep])

    def row_scale(self) -> Array:
        """Factors of the rows' gradients, float64 (rows,): grad_loss·sample_weight/denominator."""
        with np.errstate(all="ignore"):
            scale = np.full(self.rows, self.grad_loss, _FLOAT64)
            if self.sample_weight is not None:
                scale *= self.sample_weight
            return scale / self.denominator()

    def reduce(self, losses: Array) -> Any:
        """Write or add up float64 row losses (weighted already, 0 where ignored), as asked for.

        The sum comes in the dtype of the loss.
        """
        dtype = np.float64 if self.dtype_name == "float64" else np.float32
        if self.losses is not None:
            with np.errstate(over="ignore"):
                self.losses[...] = losses
            return math.nan
        with np.errstate(all="ignore"):
            if self.normalizer is not None and not self.any_row():
                return dtype(0.0)
            return dtype(np.float64(precise_sum(losses)) / np.float64(self.denominator()))

    def any_row(self) -> bool:
        """Whether at least one row counts."""
        keep = self.keep()
        return self.rows > 0 if keep is None else bool(keep.any())


def precise_sum(values: Array) -> float:
    """The sum of float64 numbers, but for one rounding or two, whatever their number.

    Each number is cut at one common bit; the high parts add up without rounding, and what the low
    parts lose does not count.
    """
    with np.errstate(all="ignore"):
        largest = np.max(np.abs(values), initial=0.0)
        cut = np.ldexp(2.0, np.frexp(values.size * largest)[1])
        if not (np.isfinite(largest) and np.isfinite(cut)):
            return float(np.sum(values))
        high = (cut + values) - cut
        return float(np.sum(high) + np.sum(values - high))


def label_error(row: int, value: int, classes: int, ignore_index: int) -> IndexError:
    """The one wording for a label out of range, whichever backend found it."""
    return IndexError(
        f"target of row {row} is {value}, outside the valid range 0..{classes - 1} "
        f"for {classes} classes (ignore_index is {ignore_index})"
    )


# ---------------------------------------------------------------------------------------------
# Single arguments


@_fpenv.default
def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.astype(dtype, copy=False)


def dtype_name(dtype: Any) -> str | None:
    """The name of a logits dtype that pyce computes with, in native byte order; else None."""
    name = _NAMES.get(dtype)
    if name is None and dtype.name == "bfloat16" and dtype.isnative:
        # ml_dtypes' type, met by name so that pyce needs not import ml_dtypes.
        _NAMES[dtype] = name = "bfloat16"
    return name


def compute_dtype(name: str) -> np.dtype[Any]:
    """float32 or float64: what logits of the named dtype are computed in."""
    return _COMPUTE[name]


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
    name = _NAMES.get(array.dtype) or dtype_name(array.dtype)
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


def reduction_name(value: Any) -> str:
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {value!r}")
    return str(value)


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


def row_blocks(
    shape: tuple[int, ...], axis: int, limit: int
) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    """Cut the rows of an array of `shape` into blocks of about `limit` elements, in C order.

    Yields `(index, start, stop)`: rows start..stop are `np.moveaxis(a, axis, -1)[index]`, a view.
    Works for any strides, so that no backend has to copy more than a block at a time.
    """
    positions = shape[:axis] + shape[axis + 1 :]
    classes = shape[axis]
    if math.prod(positions) == 0:
        return
    if not positions:
        yield (np.newaxis,), 0, 1
        return
    # The suffix of dimensions after `cut` fits the limit whole; dimension `cut` is sliced.
    cut = len(positions) - 1
    below = 1
    while cut > 0 and below * positions[cut] * classes <= limit:
        below *= positions[cut]
        cut -= 1
    step = max(1, limit // max(1, below * classes))
    row = 0
    for lead in np.ndindex(*positions[:cut]):
        for first in range(0, positions[cut], step):
            last = min(first + step, positions[cut])
            count = (last - first) * below
            yield (*lead, slice(first, last)), row, row + count
            row += count
