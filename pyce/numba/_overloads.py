"""pyce's functions in compiled code, as Numba's overloads of them.

Each overload checks the types of the arguments and returns a function for Numba to compile in its
place. Its parameters are those of the public function, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

import pyce
from pyce.numba._accuracy import fraction_right, labels_of_one_hot
from pyce.numba._arrays import (
    as_int64,
    check_status,
    class_axis,
    contiguous,
    inputs,
    options,
    output,
    parts,
    positions,
    refuse_overlap,
    targets,
    with_one_class,
)
from pyce.numba._c import (
    FORWARD,
    FORWARD_BACKWARD,
    LOG_SOFTMAX,
    LOGSUMEXP,
    MEAN,
    NO_OPTIONS,
    NONE,
    QUOTIENT,
    SOFTMAX,
    SUM,
    run,
)
from pyce.numba._errors import ProbabilityShapeError, TopKError
from pyce.numba._types import (
    check_integer,
    check_logits,
    check_number,
    check_out,
    check_reals,
    check_target,
    flag_of,
    is_absent,
    is_one_hot,
    reduction_of,
)

# With fastmath of the caller, LLVM could assume that nothing is NaN or infinite.
_OPTIONS = {"error_model": "numpy", "fastmath": False}
_REDUCTIONS = {"mean": MEAN, "sum": SUM, "none": NONE}


def _register(function: Callable[..., Any]) -> Any:
    """Decorator: an overload of a function of pyce. Constants in a call are known to it."""
    return overload(function, prefer_literal=True, jit_options=_OPTIONS)


# ---------------------------------------------------------------------------------------------
# Softmax


def _matrix(operation: int, x: Any, axis: Any, out: Any) -> Any:
    check_logits(x, "x")
    check_integer(axis, "axis")
    check_out(out, x)

    def implementation(x, axis=-1, out=None):
        outer, classes, inner = parts(x.shape, class_axis(x.shape, axis, "x"))
        result = output(out, x, "x")
        arrays = (contiguous(x), result, None, None, None, None, None)
        found = run(operation, SUM, (outer, classes, inner), NO_OPTIONS, arrays)
        check_status(found[0], found[2], found[3], classes, 0)
        return result

    return implementation


@_register(pyce.softmax)
def _softmax(x, axis=-1, out=None):
    return _matrix(SOFTMAX, x, axis, out)


@_register(pyce.log_softmax)
def _log_softmax(x, axis=-1, out=None):
    return _matrix(LOG_SOFTMAX, x, axis, out)


@_register(pyce.logsumexp)
def _logsumexp(x, axis=-1, keepdims=False):
    check_logits(x, "x")
    check_integer(axis, "axis")
    shaped = _shaped(x.ndim, keepdims=flag_of(keepdims, "keepdims"))

    def implementation(x, axis=-1, keepdims=False):
        k = class_axis(x.shape, axis, "x")
        outer, classes, inner = parts(x.shape, k)
        lse = np.empty(outer * inner)
        arrays = (contiguous(x), None, None, None, None, lse, None)
        found = run(LOGSUMEXP, SUM, (outer, classes, inner), NO_OPTIONS, arrays)
        check_status(found[0], found[2], found[3], classes, 0)
        return shaped(lse, x.shape, k)

    return implementation


def _shaped(ndim: int, *, keepdims: bool = False) -> Any:
    """A function that gives an array with one element for each row the shape of the result.

    Without dimensions that is a number.
    """
    if keepdims:
        return register_jitable(lambda rows, shape, k: rows.reshape(with_one_class(shape, k)))
    if ndim == 1:
        return register_jitable(lambda rows, shape, k: rows[0])
    return register_jitable(lambda rows, shape, k: rows.reshape(positions(shape, k)))


# ---------------------------------------------------------------------------------------------
# Cross-entropy


class _Loss:
    """The checks of the arguments' types, and the functions for compiled code that they choose."""

    def __init__(self, operation: int, logits: Any, target: Any, **options: Any) -> None:
        check_logits(logits)
        check_target(target, logits)
        check_integer(options["axis"], "axis")
        check_reals(options["weight"], 1, "weight")
        check_reals(options["sample_weight"], logits.ndim - 1, "sample_weight")
        check_integer(options["ignore_index"], "ignore_index")
        check_number(options["label_smoothing"], "label_smoothing")
        check_number(options["normalizer"], "normalizer", optional=True)
        check_number(options["lse_square_scale"], "lse_square_scale")
        reduction = reduction_of(options["reduction"])
        replaced = reduction == "mean" and not is_absent(options["normalizer"])
        code = QUOTIENT if replaced else _REDUCTIONS[reduction]
        dtype = as_dtype(logits.dtype)
        self._shaped = shaped = _shaped(logits.ndim)
        self._with_lse = flag_of(options["return_lse"], "return_lse")

        def losses_of(shape, k, sizes, numbers, arrays):
            losses = np.empty(sizes[0] * sizes[2], dtype)
            found = run(operation, code, sizes, numbers, arrays + (losses,))  # noqa: RUF005
            check_status(found[0], found[2], found[3], sizes[1], numbers[3])
            return shaped(losses, shape, k)

        def loss_of(shape, k, sizes, numbers, arrays):
            found = run(operation, code, sizes, numbers, arrays + (None,))  # noqa: RUF005
            check_status(found[0], found[2], found[3], sizes[1], numbers[3])
            return found[1]

        # The loss of checked arguments: a number, or an array in the shape of the rows.
        self.compute = register_jitable(losses_of if reduction == "none" else loss_of)

    def new_lse(self) -> Any:
        """A function that makes the array for lse, or None."""
        if self._with_lse:
            return register_jitable(lambda sizes: np.empty(sizes[0] * sizes[2]))
        return register_jitable(lambda sizes: None)

    def result(self) -> Any:
        """A function that makes what `cross_entropy` returns."""
        shaped = self._shaped
        if self._with_lse:
            return register_jitable(lambda loss, lse, shape, k: (loss, shaped(lse, shape, k)))
        return register_jitable(lambda loss, lse, shape, k: loss)

    def result_with_grad(self) -> Any:
        """A function that makes what `cross_entropy_with_grad` returns."""
        shaped = self._shaped
        if self._with_lse:
            return register_jitable(
                lambda loss, grad, lse, shape, k: (loss, grad, shaped(lse, shape, k))
            )
        return register_jitable(lambda loss, grad, lse, shape, k: (loss, grad))


@_register(pyce.cross_entropy)
def _cross_entropy(
    logits,
    target,
    axis=-1,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    normalizer=None,
    lse_square_scale=0.0,
    return_lse=False,
):
    loss = _Loss(
        FORWARD,
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
        return_lse=return_lse,
    )
    new_lse, compute, result = loss.new_lse(), loss.compute, loss.result()

    def implementation(
        logits,
        target,
        axis=-1,
        weight=None,
        sample_weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
        reduction="mean",
        normalizer=None,
        lse_square_scale=0.0,
        return_lse=False,
    ):
        shape = logits.shape
        k = class_axis(shape, axis, "logits")
        sizes = parts(shape, k)
        numbers = options(label_smoothing, lse_square_scale, normalizer, ignore_index)
        given = inputs(shape, k, sizes[1], numbers[3], target, weight, sample_weight)
        lse = new_lse(sizes)
        loss = compute(
            shape, k, sizes, numbers, (contiguous(logits), None, given[0], given[1], given[2], lse)
        )
        return result(loss, lse, shape, k)

    return implementation


@_register(pyce.cross_entropy_with_grad)
def _cross_entropy_with_grad(
    logits,
    target,
    axis=-1,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    normalizer=None,
    lse_square_scale=0.0,
    return_lse=False,
    out=None,
):
    loss = _Loss(
        FORWARD_BACKWARD,
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
        return_lse=return_lse,
    )
    check_out(out, logits)
    new_lse, compute, result = loss.new_lse(), loss.compute, loss.result_with_grad()

    def implementation(
        logits,
        target,
        axis=-1,
        weight=None,
        sample_weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
        reduction="mean",
        normalizer=None,
        lse_square_scale=0.0,
        return_lse=False,
        out=None,
    ):
        shape = logits.shape
        k = class_axis(shape, axis, "logits")
        sizes = parts(shape, k)
        numbers = options(label_smoothing, lse_square_scale, normalizer, ignore_index)
        given = inputs(shape, k, sizes[1], numbers[3], target, weight, sample_weight)
        grad = output(out, logits, "the logits")
        refuse_overlap(out, target)
        refuse_overlap(out, weight)
        refuse_overlap(out, sample_weight)
        lse = new_lse(sizes)
        loss = compute(
            shape, k, sizes, numbers, (contiguous(logits), grad, given[0], given[1], given[2], lse)
        )
        return result(loss, grad, lse, shape, k)

    return implementation


# ---------------------------------------------------------------------------------------------
# Accuracy


@_register(pyce.accuracy)
def _accuracy(logits, target, axis=-1, top_k=1, ignore_index=-100):
    check_logits(logits)
    check_integer(axis, "axis")
    check_integer(top_k, "top_k")
    check_integer(ignore_index, "ignore_index")

    if is_one_hot(target, logits):

        def labels_of(target, shape, k, sizes, ignore_index):
            if target.shape != shape:
                raise ProbabilityShapeError(target.shape, shape)
            return labels_of_one_hot(contiguous(target).reshape(-1), sizes)
    else:
        check_target(target, logits)

        def labels_of(target, shape, k, sizes, ignore_index):
            expected = positions(shape, k)
            return targets(target, shape, expected, sizes[1], ignore_index).reshape(-1)

    labels = register_jitable(labels_of)

    def implementation(logits, target, axis=-1, top_k=1, ignore_index=-100):
        most = as_int64(top_k, "top_k")
        if most < 1:
            raise TopKError(most)
        shape = logits.shape
        k = class_axis(shape, axis, "logits")
        sizes = parts(shape, k)
        index = as_int64(ignore_index, "ignore_index")
        found = labels(target, shape, k, sizes, index)
        return fraction_right(contiguous(logits).reshape(-1), found, sizes, most, index)

    return implementation
