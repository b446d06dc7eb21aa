"""The `Problem` that backends compute, and what every backend needs to compute it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyce import _fpenv
from pyce._compensated import precise_sum, product
from pyce._dtypes import compute_dtype
from pyce._types import Array, Reduction, Scalar

# Rows whose factors are computed together.
_BLOCK = 2**13


class Problem:
    """One loss computation whose arguments have been checked.

    `logits`, `probs` and `grad` have the same shape, and `axis` is its class axis. In memory order
    that shape is `(outer, classes, inner)` if `contiguous` is true. A row is the classes at one
    position, and `rows` is the number of positions. The arrays with one element per row are flat,
    in C order of the positions.

    `pyce._arguments.loss_problem` makes it, setting the attributes one by one: the constructor of
    a dataclass with as many fields takes several times as long, which small calls would show.
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
        "lse_square_scale",
        "normalizer",
        "outer",
        "probs",
        "reduction",
        "rows",
        "sample_weight",
        "smoothing",
        "weight",
    )

    logits: Array  # float16, bfloat16, float32 or float64; native, aligned, of any strides
    dtype_name: str  # of the logits
    axis: int  # not negative
    outer: int
    classes: int
    inner: int
    rows: int  # outer · inner
    contiguous: bool  # whether logits and probs are C-contiguous
    labels: Array | None  # int32 or int64 (rows,), C-contiguous; None if there are probs
    probs: Array | None  # floating, of the logits' shape, of any strides; None if there are labels
    weight: Array | None  # float64 (classes,)
    sample_weight: Array | None  # float64 (rows,)
    ignore_index: int
    smoothing: float
    lse_square_scale: float  # λ of the term λ·lse², finite
    reduction: Reduction
    normalizer: float | None  # replaces the denominator of the mean
    grad_loss: float | Array  # factor of the rows' gradients: one for all, or float64 (rows,)
    # Outputs, each None if it is not wanted.
    grad: Array | None  # of the logits' shape and dtype, C-contiguous; None in the forward
    lse: Array | None  # float64 (rows,): an output of the forward, an input of the backward
    losses: Array | None  # float32 or float64 (rows,), exactly if reduction is "none"

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

    def in_memory_order(self) -> None:
        """Move the class axis of logits and probs to where it is in memory, if that makes them
        C-contiguous.

        Only the views change, and the order of the rows does not.
        """
        x, axis = self.logits, self.axis
        to = axis_in_memory(x.shape, x.strides, axis, x.itemsize)
        if to is None:
            return
        probs = self.probs
        if probs is not None:
            probs = np.moveaxis(probs, axis, to)
            if not probs.flags.c_contiguous:
                return
        self.logits, self.probs, self.axis = np.moveaxis(x, axis, to), probs, to
        self.outer, self.inner = (self.rows, 1) if to else (1, self.rows)
        self.contiguous = True

    def valid(self) -> Array | None:
        """A mask (rows,) of the rows that are not ignored; None if no row is ignored."""
        if self.labels is None:
            return None
        valid: Array = self.labels != self.ignore_index
        return None if valid.all() else valid

    def any_valid(self) -> bool:
        """Whether there is a row that is not ignored."""
        valid = self.valid()
        return self.rows > 0 if valid is None else bool(valid.any())

    def denominator(self) -> float:
        """The denominator of the mean; 1 for the other reductions.

        Index targets: Σ weight[y] · sample_weight over the valid rows. Probability targets:
        Σ sample_weight, which is the number of rows without sample weights.
        """
        if self.reduction != "mean":
            return 1.0
        if self.normalizer is not None:
            return self.normalizer
        valid = self.valid()
        weight: Array | None = self.sample_weight
        if self.weight is not None and self.labels is not None:
            weight = self._weights_of_rows(self.weight, self.labels)
        if weight is None:
            return float(self.rows if valid is None else np.count_nonzero(valid))
        return precise_sum(weight if valid is None else weight[valid])

    def _weights_of_rows(self, of_classes: Array, labels: Array) -> Array:
        """weight[y] · sample_weight, (rows,), of ignored rows any number; blocks are copied."""
        weights = np.empty(self.rows)
        for start in range(0, self.rows, _BLOCK):
            here = slice(start, start + _BLOCK)
            ignored = labels[here] == self.ignore_index
            weights[here] = of_classes[np.where(ignored, 0, labels[here])]
            if self.sample_weight is not None:
                with np.errstate(all="ignore"):
                    weights[here] = product(weights[here], self.sample_weight[here])
        return weights

    def row_scale(self, denominator: float) -> Array:
        """Factors of the rows' gradients, float64 (rows,): grad_loss·sample_weight/denominator."""
        with np.errstate(all="ignore"):
            scale = np.full(self.rows, self.grad_loss, np.float64)
            if self.sample_weight is not None:
                scale *= self.sample_weight
                scale[self.sample_weight == 0.0] = 0.0
            scale /= denominator
            return scale

    def reduce(self, losses: Array, denominator: float | None = None) -> Scalar | None:
        """Write the rows' losses to `self.losses`, or return their sum or mean in the loss's dtype.

        `losses` is float64 (rows,): multiplied by the sample weights, and 0 in ignored rows. A
        backend may pass partial sums instead, unless reduction is "none". The default of
        `denominator` is that of the mean.
        """
        if self.losses is not None:
            with np.errstate(over="ignore"):
                self.losses[...] = losses
            return None
        to: type[Scalar] = compute_dtype(self.dtype_name).type
        with np.errstate(all="ignore"):
            if self.normalizer is not None and not self.any_valid():
                return to(0.0)
            if denominator is None:
                denominator = self.denominator()
            return to(np.float64(precise_sum(losses)) / np.float64(denominator))


class ShardedProblem(Problem):
    """The rows of a loss of which this process has some of the classes, the shard `own`.

    Shard s has the classes bounds[s]..bounds[s + 1]−1, none if the bounds are equal. `classes` is
    the number of all classes, and labels count from the first of all. Logits, probs and grad are
    (..., classes of the own shard), of any strides. There are no class weights and lse, `grad` is
    None if the own shard has no classes and may be the logits, and grad_loss is a number.
    """

    __slots__ = ("bounds", "given_dtypes", "large_labels", "own")

    bounds: tuple[int, ...]
    own: int
    # For `pyce._shards` only: the dtypes of logits and target that the caller passed, and the
    # labels as they were passed if some of them exceed int64.
    given_dtypes: tuple[str, str]
    large_labels: Array | None


def axis_in_memory(
    shape: tuple[int, ...], strides: tuple[int, ...], axis: int, unit: int
) -> int | None:
    """The place, last or first, to which `axis` must be moved to make an array C-contiguous.

    None if neither does. Images in the order (N, H, W, C) that are viewed as (N, C, H, W) are
    contiguous with axis 1 moved to the last place. `unit` is the size of an element in the unit of
    the strides.
    """
    others = [d for d in range(len(shape)) if d != axis]
    for to, order in ((len(others), [*others, axis]), (0, [axis, *others])):
        step = unit
        for d in reversed(order):
            if shape[d] != 1:
                if strides[d] != step:
                    break
                step *= shape[d]
        else:
            return to
    return None


def label_error(row: int, value: int, classes: int, ignore_index: int) -> IndexError:
    """The error for a label out of range, in the same words whichever backend found it."""
    return IndexError(
        f"target of row {row} is {value}, outside the valid range 0..{classes - 1} "
        f"for {classes} classes (ignore_index is {ignore_index})"
    )


def rows_of_array(array: Array, rows: slice | Array) -> Array:
    """Some rows of an array (..., C), by their numbers, as (n, C); copies no others."""
    if array.ndim <= 2 or array.flags.c_contiguous:
        found: Array = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])[rows]
        return found
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    found = array[np.unravel_index(numbers, array.shape[:-1])]
    return found


def at_classes(array: Array, classes: Array) -> Array:
    """The elements of an array (..., C) at one class of each row, flat; `classes` is flat, too."""
    # Without axes of one element: NumPy's indexing takes one dimension less than arrays may have.
    if array.ndim == 2:
        at: Array = array[np.arange(len(array)), classes]
        return at
    shape = [length for length in array.shape[:-1] if length != 1]
    array = array.reshape(*shape, array.shape[-1])
    found: Array = np.take_along_axis(array, classes.reshape(*shape, 1), axis=-1)
    return found.reshape(-1)


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
    # The dimensions after `cut` fit the limit whole; dimension `cut` is sliced.
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
