"""The arguments of the kernels.

A row is one position of the class axis: `outer`·`inner` rows in all, in the order of the flat
arrays. Everything that belongs to rows has one element per row, in that order.
"""

from __future__ import annotations

from typing import NamedTuple

from pyce._backends.numba._jit import Index, Real
from pyce._types import Array


class Job(NamedTuple):
    """One operation on flat, contiguous arrays.

    x, grad and probs are (outer, classes, inner) in memory. Any array except x may be empty, which
    means that the output is not requested or that the input has no influence. Without labels and
    probs, grad receives the softmax, or its logarithm if `log_softmax` is set.
    """

    x: Array  # float32 or float64; for half types the bits, uint16
    grad: Array  # dtype of x
    labels: Array  # int32 or int64 (rows,)
    probs: Array  # float32 or float64
    weight: Array  # float64 (classes,)
    sample_weight: Array  # float64 (rows,)
    scale: Array  # float64 (rows,) or (1,): factor of the rows' gradients
    saved_lse: Array  # float64 (rows,), read: the gradient of a row is NaN if this is not finite
    losses: Array  # float64 (rows,), written
    lse: Array  # float64 (rows,), written
    smoothing: Array  # float64 (5,): the fields of `Smoothing`
    ignore_index: Index  # the label of rows that are not valid
    outer: Index
    classes: Index
    inner: Index
    few: bool  # whether rows of half types are worked on by `_tiles`
    width: Index  # lanes of a tile, a multiple of 16
    log_softmax: bool
    past_caches: bool  # whether grad is written past the caches, since it does not fit
    bfloat16: bool  # half types: whether x and grad are bfloat16 rather than float16


class Smoothing(NamedTuple):
    """The weights of label smoothing, 1 − ε and ε/C as pairs, and λ of the term λ·lse²."""

    on_value: Real
    on_error: Real
    off_value: Real
    off_error: Real
    lse_square_scale: Real


class BernoulliJob(NamedTuple):
    """One binary cross-entropy on flat arrays of one length; weight to grad may be empty."""

    x: Array  # float32 or float64, as all arrays up to grad
    target: Array
    weight: Array
    pos_weight: Array
    losses: Array  # written
    grad: Array  # written
    sums: Array  # float64 (blocks,), written: the sum of the losses of each block
    scale: Real  # factor of the gradient
