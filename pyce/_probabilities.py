"""Losses from log-probabilities and from probabilities, the same whichever backend is selected."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._problem import Problem, row_blocks
from pyce._types import Array

# Elements that are looked at together: small beside the caches, large beside NumPy's call overhead.
_BLOCK = 1 << 16


@_fpenv.default
def nll_loss(
    log_probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> Any:
    """Negative log likelihood: the loss from log-probabilities, as `log_softmax` gives them.

    A row's loss is −weight[y] · log_probs[y], or −Σ_c weight_c · t_c · log_probs_c for
    probabilities t, with 0 · ∞ = 0. The parameters that are not listed, reductions, dtypes and
    errors are those of `cross_entropy`.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities, floating and shaped as the logits of `cross_entropy`. They are taken as
        they are, whether or not a row's probabilities add up to 1.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 log-probabilities, else float32.

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
    )
    return _from_logs(p, lambda values: np.negative(values, dtype=np.float64))


@_fpenv.default
def log_loss(
    probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    eps: float | None = None,
) -> Any:
    """The loss from probabilities: −Σ_c t_c · log probs_c, averaged over the rows.

    0 · log 0 counts as 0, and probability 0 on the true class gives +inf. The parameters that are
    not listed, reductions, dtypes and errors are those of `cross_entropy`.

    Parameters
    ----------
    probs : array_like
        Probabilities, floating and shaped as the logits of `cross_entropy`. They are taken as they
        are, whether or not a row adds up to 1; a negative one gives NaN where it counts.
    eps : float, optional
        In [0, 0.5): clip the probabilities to [eps, 1 − eps] first. Nothing is clipped otherwise.

    Returns
    -------
    loss : numpy scalar or ndarray
        float64 for float64 probabilities, else float32.

    Raises
    ------
    ValueError
        As `cross_entropy`; also for `eps` outside [0, 0.5).

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
    )

    def surprise(values: Array) -> Array:
        wide = values.astype(np.float64)
        if eps is not None:
            wide = np.clip(wide, eps, 1.0 - eps)
        return np.negative(np.log(wide))

    return _from_logs(p, surprise)


def _from_logs(p: Problem, minus_log: Any) -> Any:
    """Row losses Σ_c b_c · minus_log(values_c), then the reduction.

    b is the one-hot target, the probabilities, or their smoothed form, times the class weights.
    """
    p.check_labels()
    if p.reduction == "none":
        p.losses = np.empty(p.rows, np.float64 if p.dtype_name == "float64" else np.float32)
    values = np.moveaxis(p.logits, p.axis, -1)
    losses = np.zeros(p.rows)
    with np.errstate(all="ignore"):
        if p.labels is not None:
            _add_labels(p, values, minus_log, losses)
        if p.probs is not None or p.smoothing:
            _add_all_classes(p, values, minus_log, losses)
        if p.sample_weight is not None:
            losses *= p.sample_weight
    valid = p.valid()
    if valid is not None:
        losses[~valid] = 0.0
    loss = p.reduce(losses)
    return loss if p.losses is None else p.losses.reshape(p.positions)


def _add_labels(p: Problem, values: Array, minus_log: Any, losses: Array) -> None:
    assert p.labels is not None
    inside = np.where(p.labels == p.ignore_index, 0, p.labels)
    at_label = np.take_along_axis(values, inside.reshape(*p.positions, 1), axis=-1).reshape(-1)
    share = 1.0 - p.smoothing
    factor = share if p.weight is None else share * p.weight[inside]
    losses += _product(np.broadcast_to(factor, losses.shape), minus_log(at_label))


def _add_all_classes(p: Problem, values: Array, minus_log: Any, losses: Array) -> None:
    probs = None if p.probs is None else np.moveaxis(p.probs, p.axis, -1)
    weight = np.ones(1) if p.weight is None else p.weight
    for index, start, stop in row_blocks(p.logits.shape, p.axis, _BLOCK):
        block = minus_log(values[index].reshape(-1, p.classes))
        share = np.full(block.shape, p.smoothing / p.classes)
        if probs is not None:
            target = probs[index].reshape(-1, p.classes).astype(np.float64)
            share = share + (1.0 - p.smoothing) * target
        losses[start:stop] += _product(share * weight, block).sum(axis=-1)


def _product(share: Array, loss: Array) -> Array:
    return np.multiply(share, loss, out=np.zeros(loss.shape), where=share != 0)
