"""Losses from log-probabilities and from probabilities, the same whichever backend is selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._compensated import product
from pyce._dtypes import compute_dtype
from pyce._factors import Factors
from pyce._problem import Problem, at_classes, row_blocks
from pyce._types import Array, Losses, Reduction, Scalar, ToScalar

# Elements computed at a time: the arrays of a block, eight of float64, stay below 1 MiB together.
_BLOCK = 1 << 13


@overload
def nll_loss(
    log_probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
) -> Scalar: ...


@overload
def nll_loss(
    log_probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
) -> Losses: ...


@overload
def nll_loss(
    log_probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
) -> Scalar | Losses: ...


@_fpenv.default
def nll_loss(
    log_probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
) -> Scalar | Losses:
    """The negative log likelihood: cross-entropy of log-probabilities, as `log_softmax` gives them.

    A row is the C values along the class axis at one position. With class weights w, the row's
    sample weight s and smoothing ε, the loss of a row is

        s · Σ_c b_c · (−log_probs_c),    b_c = w_c · ((1 − ε) · t_c + ε/C),

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. Without
    smoothing that is −s · w_y · log_probs_y. A product with a factor of 0 is 0, even if log_probs_c
    is −inf or a weight infinite.

    Parameters
    ----------
    log_probs : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Python numbers are float64. They are used as given, whether or not
        the probabilities of a row add up to 1.
    target : array_like
        Class indices of any integer dtype, in the shape of `log_probs` without the class axis; or
        probabilities, floating and in the shape of `log_probs`, which need not add up to 1.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        Weight of each class: real numbers of shape (C,), used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row: real numbers in the shape of `log_probs` without the class axis, used as
        given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss is 0, and its values in `log_probs` have no
        influence.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 `log_probs`, else float32. For "none" an array in the shape of
        `log_probs` without the class axis.

    Raises
    ------
    TypeError
        If `log_probs` are not floating, if a floating target is shaped like class indices, or if
        weights are not real numbers.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        if `reduction` is unknown, or if `label_smoothing` is outside [0, 1].
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.

    Notes
    -----
    Weights, smoothing and the mean are defined as in
    ``torch.nn.functional.nll_loss``. The class axis is the last one unless stated
    otherwise, as in NumPy. The result is the same whichever backend is selected.

    Examples
    --------
    >>> print(round(float(pyce.nll_loss(np.log([[0.25, 0.75]]), [1])), 4))
    0.2877
    """
    p = arguments.loss_problem(
        log_probs,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        what="log_probs",
    )
    return _loss(p, lambda values: np.negative(values, dtype=np.float64))


@overload
def log_loss(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    eps: float | None = ...,
) -> Scalar: ...


@overload
def log_loss(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    eps: float | None = ...,
) -> Losses: ...


@overload
def log_loss(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = ...,
    weight: npt.ArrayLike | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
    eps: float | None = ...,
) -> Scalar | Losses: ...


@_fpenv.default
def log_loss(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    eps: float | None = None,
) -> Scalar | Losses:
    """The cross-entropy of probabilities: the mean over the rows of −Σ_c t_c · log probs_c.

    A row is the C values along the class axis at one position. With class weights w, the row's
    sample weight s and smoothing ε, the loss of a row is

        s · Σ_c b_c · (−log probs_c),    b_c = w_c · ((1 − ε) · t_c + ε/C),

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. Without
    smoothing that is −s · w_y · log probs_y. A term with b_c = 0 is 0, even 0 · log 0. A class of
    probability 0 with b_c > 0 makes the loss +inf, unless `eps` is given.

    Parameters
    ----------
    probs : array_like
        float16, bfloat16, float32 or float64, of any shape with at least one dimension, any strides
        and either byte order. Python numbers are float64. They are used as given, whether or not a
        row adds up to 1; a negative one gives NaN, unless its b_c is 0.
    target : array_like
        Class indices of any integer dtype, in the shape of `probs` without the class axis; or
        probabilities, floating and in the shape of `probs`, which need not add up to 1.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        Weight of each class: real numbers of shape (C,), used as given, 0 and negative ones too.
    sample_weight : array_like, optional
        Weight of each row: real numbers in the shape of `probs` without the class axis, used as
        given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss is 0, and its values in `probs` have no
        influence.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    eps : float, optional
        In [0, 0.5): clip the probabilities to [eps, 1 − eps] first. By default nothing is clipped.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 `probs`, else float32. For "none" an array in the shape of
        `probs` without the class axis.

    Raises
    ------
    TypeError
        If `probs` are not floating, if a floating target is shaped like class indices, or if
        weights are not real numbers.
    ValueError
        If shapes do not fit, if there are no classes or no dimensions, if `axis` is out of range,
        if `reduction` is unknown, if `label_smoothing` is outside [0, 1], or if `eps` is outside
        [0, 0.5).
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.

    Notes
    -----
    For class indices the definition is that of ``sklearn.metrics.log_loss`` without its clipping.
    Weights, smoothing and the mean are defined as in
    ``torch.nn.functional.cross_entropy``. The class axis is the last one unless stated
    otherwise, as in NumPy. The result is the same whichever backend is selected.

    Examples
    --------
    >>> print(round(float(pyce.log_loss([[0.25, 0.75]], [1])), 4))
    0.2877
    >>> print(pyce.log_loss([[1.0, 0.0]], [1]))
    inf
    """
    if eps is not None and not 0.0 <= arguments.real(eps, "eps") < 0.5:
        raise ValueError(f"eps must lie in [0, 0.5), got {eps!r}")
    p = arguments.loss_problem(
        probs,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        what="probs",
    )

    def minus_log(values: Array) -> Array:
        wide = values.astype(np.float64)
        if eps is None:
            return np.negative(np.log(wide))
        # 1 − eps has few digits of a small eps, and log p of the probabilities above none.
        minus_log = np.negative(np.log(np.maximum(wide, eps)))
        clipped: Array = np.where(1.0 - wide < eps, -np.log1p(-eps), minus_log)
        return clipped

    return _loss(p, minus_log)


def _loss(p: Problem, minus_log: Callable[[Array], Array]) -> Scalar | Losses:
    """The reduction of the row losses s · Σ_c b_c · minus_log(values_c)."""
    p.check_labels()
    if p.reduction == "none":
        p.losses = np.empty(p.rows, compute_dtype(p.dtype_name))
    values = np.moveaxis(p.logits, p.axis, -1)
    losses = np.zeros(p.rows)
    given, valid, denominator = p, p.valid(), p.denominator()
    factors = Factors(p, None, denominator, from_logits=False)
    p = factors.problem
    with np.errstate(all="ignore"):
        if p.labels is not None:
            _add_labels(p, p.labels, values, minus_log, losses)
        if p.probs is not None or p.smoothing:
            _add_soft_targets(p, values, minus_log, losses)
        if p.sample_weight is not None:
            for start in range(0, p.rows, _BLOCK):
                here = slice(start, start + _BLOCK)
                losses[here] = product(losses[here], p.sample_weight[here])
    if valid is not None:
        losses[~valid] = 0.0
    loss = factors.finish(losses) if factors.extreme else given.reduce(losses, denominator)
    if p.losses is not None:
        return p.losses.reshape(p.positions)
    assert loss is not None
    return loss


def _add_labels(
    p: Problem, labels: Array, values: Array, minus_log: Callable[[Array], Array], losses: Array
) -> None:
    """Add (1 − ε) · w_y · minus_log(values_y) to the losses; ignored rows get any number."""
    on_value = 1.0 - p.smoothing
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _BLOCK * p.classes):
        classes = np.where(labels[start:stop] == p.ignore_index, 0, labels[start:stop])
        b = on_value if p.weight is None else product(on_value, p.weight[classes])
        losses[start:stop] += product(b, minus_log(at_classes(values[index], classes)))


def _add_soft_targets(
    p: Problem, values: Array, minus_log: Callable[[Array], Array], losses: Array
) -> None:
    """Add Σ_c b_c · minus_log(values_c) to the losses, of labels only the part from smoothing."""
    probs = None if p.probs is None else np.moveaxis(p.probs, p.axis, -1)
    weight = np.ones(1) if p.weight is None else p.weight
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _BLOCK):
        rows = stop - start
        for first in range(0, p.classes, _BLOCK):
            cut = slice(first, first + _BLOCK)
            block = minus_log(values[index][..., cut].reshape(rows, -1))
            target = np.full(block.shape, p.smoothing / p.classes)
            if probs is not None:
                t = probs[index][..., cut].reshape(rows, -1).astype(np.float64)
                target = target + product(1.0 - p.smoothing, t)
            of_classes = product(target, weight if weight.size == 1 else weight[cut])
            losses[start:stop] += product(of_classes, block).sum(axis=-1)
