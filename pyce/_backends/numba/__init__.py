"""The Numba backend: the formulas of the NumPy reference, compiled for the machine it runs on.

With m the maximum of a row x (classes,), attained at the class q, its pivot, and the target
coefficients b_c = w_c·((1 − ε)·t_c + ε/C), A = Σ_c b_c:

    R        = Σ_{c ≠ q} exp(x_c − m),    S = Σ_c exp(x_c − m) = 1 + R
    lse      = m + log1p(R)
    loss     = Σ_c b_c·(m − x_c) + A·log1p(R)
    gradient = A·exp(x_c − m)/S − b_c, but (A − b_c) − A·R/S where x_c = m and b_c > A/2

With lse_square_scale λ, and w = w_y or, without a label, 1, the loss has the term λ·w·lse², and the
gradient the term 2λ·w·lse·exp(x_c − m)/S.

docs/derivation.md derives them. From the caller to the arithmetic:

    __init__     the functions of a backend
    _layout      brings arrays of any layout to a kernel
    _job         the arguments of a kernel
    _launch      compiles kernels, caches them on disk, runs them on threads
    _rows        kernel for many contiguous classes: vector lanes are classes
    _tiles       kernel for few classes, or another class axis than the last: vector lanes are rows
    _index_tiles the steps of `_tiles` for float32 logits with index targets and no smoothing
    _half_types  kernel for float16 and bfloat16, by way of blocks of float32 in the other two
    _bernoulli   kernel for binary cross-entropy
    _shards      kernels for rows whose classes are cut into shards
    _lanes       the formulas of a row, for many rows at a time
    _sums _math  sums of arrays; pairs, exp and log1p of numbers
    _vectors     vectors as values; transposes
    _jit         options of the compiler, and LLVM operations that Numba lacks

Error against exact arithmetic: loss ≤ 2 ULP; gradient ≤ 4 ULP of the larger of A·p_c and b_c, for
index targets without smoothing of the gradient itself. Half types: the float32 result rounded once.

Memory: below 400 KiB per thread, and a row of up to 2 MiB, or of half types as float32. A kernel
reads a tile, block or row before it writes the output there, so an output may be the input.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from pyce import _fpenv
from pyce._backends.numba._job import BernoulliJob
from pyce._backends.numba._lanes import count_valid
from pyce._backends.numba._launch import entry_point, launch, run_bernoulli
from pyce._backends.numba._layout import Request, run, run_shard
from pyce._backends.numba._shards import STATE
from pyce._backends.numba._sums import BLOCK, quotient_of_sum
from pyce._dtypes import compute_dtype
from pyce._factors import Factors
from pyce._problem import Problem, ShardedProblem
from pyce._types import Array

NAME = "numba"
CHECKS_LABELS = True
at_addresses = None  # reads NumPy arrays only
scale_at = None
selective = None


@_fpenv.default
def forward(p: Problem) -> Any:
    """Write p.lse, p.losses and p.grad where they are not None; return the loss in its dtype."""
    losses = np.empty(p.rows)
    valid = _valid_rows(p)
    denominator = _denominator(p, valid)
    factors = _run(p, losses, denominator)
    if factors.extreme:
        return factors.finish(losses)
    return _reduced(p, losses, valid, denominator)


def _reduced(p: Problem, losses: Array, valid: int, denominator: float) -> Any:
    """Write p.losses, or return the loss in its dtype."""
    if p.losses is not None:
        p.reduce(losses, denominator)
        return None
    loss = np.empty(1, compute_dtype(p.dtype_name))
    if p.normalizer is not None and valid == 0:
        loss[0] = 0.0
    else:
        # Compiled: NumPy would set status flags, and takes longer than a small problem.
        entry_point(quotient_of_sum, (losses, loss))(losses, denominator, loss)
    return loss[0]


def forward_backward(p: Problem) -> Any:
    """Write p.lse and p.losses where they are not None, and p.grad; return the loss."""
    return forward(p)


@_fpenv.default
def backward(p: Problem) -> None:
    """Write p.grad from the logits: a saved lse of large logits does not hold the digits promised.

    p.lse has one use: where it is not finite, the gradient is NaN.
    """
    factors = _run(p, None, _denominator(p, _valid_rows(p)))
    if factors.extreme:
        factors.finish(None)


def _valid_rows(p: Problem) -> int:
    """The number of rows that are not ignored. Raises IndexError for labels out of range."""
    if p.labels is None:
        return p.rows
    labels = p.labels
    valid: int = entry_point(count_valid, (labels,))(labels, p.ignore_index, p.classes)
    if valid < 0:
        p.check_labels()
    return valid


def _denominator(p: Problem, valid: int) -> float:
    """`Problem.denominator`, without counting the rows again."""
    weighted = p.sample_weight is not None or (p.weight is not None and p.labels is not None)
    if p.reduction == "mean" and p.normalizer is None and not weighted:
        return float(valid)
    return p.denominator()


def _run(p: Problem, losses: Array | None, denominator: float) -> Factors:
    """Write losses (rows,), p.lse and p.grad where they are not None; backward without losses.

    If the returned factors are extreme, the results are not yet complete.
    """
    backward = losses is None
    factors = Factors(p, None if p.grad is None else _row_scale(p, denominator), denominator)
    p = factors.problem
    run(
        Request(
            x=p.logits,
            axis=p.axis,
            grad=p.grad,
            labels=p.labels,
            probs=p.probs,
            weight=p.weight,
            sample_weight=p.sample_weight,
            scale=factors.scale,
            saved_lse=p.lse if backward else None,
            losses=losses,
            lse=None if backward else p.lse,
            smoothing=_smoothing(p),
            ignore_index=p.ignore_index,
        )
    )
    return factors


def _smoothing(p: Problem) -> Array:
    """The fields of `Smoothing`."""
    # With a single class, smoothing gives back to the label what it takes from it.
    smoothing = p.smoothing if p.classes > 1 or p.labels is None else 0.0
    off_value = smoothing / p.classes
    off_error = float(Fraction(smoothing) / p.classes - Fraction(off_value)) if off_value else 0.0
    on_value = 1.0 - smoothing
    on_error = (1.0 - on_value) - smoothing
    return np.array([on_value, on_error, off_value, off_error, p.lse_square_scale])


def _row_scale(p: Problem, denominator: float) -> Array:
    """Factors of the rows' gradients: (rows,), or (1,) if they are equal."""
    if p.sample_weight is not None or isinstance(p.grad_loss, np.ndarray):
        return p.row_scale(denominator)
    with np.errstate(all="ignore"):
        return np.full(1, p.grad_loss) / denominator


def state_size(p: ShardedProblem, classes: int) -> int:
    """The numbers of a row's state; see `Backend`."""
    return STATE


@_fpenv.default
def partial(p: ShardedProblem, state: Array) -> None:
    """Write the states of the rows after the classes of the own shard; see `Backend`."""
    _valid_rows(p)
    run_shard(p, _smoothing(p), state.reshape(p.rows, STATE), None, None, None, np.ones(1))


@_fpenv.default
def complete(p: ShardedProblem, states: list[Array]) -> Any:
    """Loss and gradient of the own shard from the states of all; see `Backend`."""
    losses = np.empty(p.rows)
    valid = _valid_rows(p)
    denominator = _denominator(p, valid)
    factors = Factors(p, None if p.grad is None else _row_scale(p, denominator), denominator)
    scale = np.ones(1) if factors.scale is None else factors.scale
    of_shards = np.stack(states).reshape(len(states), p.rows, STATE)
    run_shard(p, _smoothing(p), None, of_shards, losses, factors.problem.sample_weight, scale)
    if factors.extreme:
        return factors.finish(losses)
    return _reduced(p, losses, valid, denominator)


@_fpenv.default
def softmax(x: Array, axis: int, out: Array) -> None:
    """out = softmax of x along axis, of the same shape and dtype, out C-contiguous."""
    run(Request(x, axis, grad=out))


@_fpenv.default
def log_softmax(x: Array, axis: int, out: Array) -> None:
    """out = log-softmax of x along axis, of the same shape and dtype, out C-contiguous."""
    run(Request(x, axis, grad=out, log_softmax=True))


@_fpenv.default
def logsumexp(x: Array, axis: int, out: Array) -> None:
    """out = lse of x along axis, float64 (rows,)."""
    run(Request(x, axis, lse=out))


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
    """Σ of the weighted losses of flat arrays of one length and dtype, in float64.

    Writes the losses to `loss`, and their gradients times `scale` to `grad`, unless they are None.
    """
    nothing = np.empty(0, x.dtype)
    job = BernoulliJob(
        x=x,
        target=t,
        weight=nothing if weight is None else weight,
        pos_weight=nothing if pos_weight is None else pos_weight,
        losses=nothing if loss is None else loss,
        grad=nothing if grad is None else grad,
        sums=np.empty(-(-x.size // BLOCK)),
        scale=scale,
    )
    launch(run_bernoulli, job, job.sums.size, 8 * x.size)
    return float(np.sum(job.sums))
