"""Cross-entropy of a linear layer, as at the end of a language model, without all of its logits."""

from __future__ import annotations

import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    SupportsIndex,
    TypedDict,
    overload,
)

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._backends import current
from pyce._dtypes import compute_dtype
from pyce._linear_chunks import Head, checked_scales, run
from pyce._types import Array, LogSumExp, Losses, Reduction, Scalar, ToScalar

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


class LinearGradients(NamedTuple):
    """The gradients of `linear_cross_entropy_with_grad`, a named tuple.

    Attributes
    ----------
    input : ndarray
        The derivative with respect to the hidden states, in their shape and dtype, (..., D).
    linear_weight : ndarray
        The derivative with respect to the weight of the linear layer, of shape (C, D).
    linear_bias : ndarray or None
        The derivative with respect to the bias, of shape (C,); None if there is no bias.

    Examples
    --------
    >>> hidden, weight = np.ones((2, 3)), np.zeros((4, 3))
    >>> _, grads = pyce.linear_cross_entropy_with_grad(hidden, weight, [0, 1])
    >>> print(grads.linear_weight[:, 0], grads.linear_bias)
    [-0.25 -0.25  0.25  0.25] None
    """

    input: Array
    linear_weight: Array
    linear_bias: Array | None


class _Options(TypedDict, total=False):
    """The keyword arguments whose types no result depends on."""

    linear_bias: npt.ArrayLike | None
    weight: npt.ArrayLike | None
    sample_weight: npt.ArrayLike | None
    ignore_index: SupportsIndex
    label_smoothing: float
    normalizer: float | None
    softcap: float | None
    logit_scale: float
    lse_square_scale: float
    chunk_bytes: SupportsIndex | None


class _GradOptions(_Options, total=False):
    filter_tolerance: float | None
    out: tuple[Array | None, Array | None, Array | None] | None


@overload
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: ToScalar = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Scalar: ...


@overload
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: ToScalar = ...,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Scalar, LogSumExp]: ...


@overload
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Literal["none"],
    return_lse: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Losses: ...


@overload
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Literal["none"],
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Losses, LogSumExp]: ...


@overload
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Reduction = ...,
    return_lse: bool = ...,
    **options: Unpack[_Options],
) -> Scalar | Losses | tuple[Scalar | Losses, LogSumExp]: ...


@_fpenv.default
def linear_cross_entropy(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    linear_bias: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    chunk_bytes: SupportsIndex | None = None,
    return_lse: bool = False,
) -> Scalar | Losses | tuple[Scalar | Losses, LogSumExp]:
    """Softmax cross-entropy of a linear layer's output, without holding all of its logits.

    The loss of a row with hidden state h is that of `cross_entropy` with the logits

        x = κ · tanh(z/κ),    z = α · (W · h + β),    or x = z without `softcap`.

    A row's loss is s · Σ_c b_c · (lse − x_c) with lse = log Σ_c exp(x_c), the row's sample weight s
    and b_c = w_c · ((1 − ε) · t_c + ε/C), where w are the class weights, ε the smoothing and t the
    target's probabilities: for a class index y, 1 at y and 0 elsewhere.

    The logits exist in chunks of rows or of classes: nothing else of their size is allocated.

    Parameters
    ----------
    input : array_like
        The hidden states: float16, bfloat16, float32 or float64, of shape (..., D). Half types are
        converted to float32 for the products, chunk by chunk.
    linear_weight : array_like
        W, the weight of the linear layer, in the dtype of `input`, of shape (C, D).
    target : array_like
        Class indices of any integer dtype, of shape (...); or probabilities, floating and of shape
        (..., C), which need not add up to 1.
    linear_bias : array_like, optional
        β, the bias of the linear layer, in the dtype of `input`, of shape (C,).
    weight : array_like, optional
        Weight of each class in the loss: real numbers of shape (C,), used as given.
    sample_weight : array_like, optional
        Weight of each row: real numbers of shape (...), used as given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss and its gradient are 0, its input is not
        read, and it takes no time.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    softcap : float, optional
        κ, from 1e-20 to 1e20: bounds the logits to (−κ, κ). None for no bound.
    logit_scale : float, default 1.0
        α, any finite number: the factor of the product, as an inverse temperature.
    lse_square_scale : float, default 0.0
        λ of the z-loss: s · v · λ · lse² is added to each row's loss, where v is w_y for a class
        index y, whatever the smoothing, and 1 for probabilities. Any finite number.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time, by default 64 MiB; at least one row of them
        always does, or 1024 logits.
    return_lse : bool, default False
        Whether to return lse too.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 inputs, else float32. For "none" an array of shape (...).
    lse : ndarray of float64
        log Σ_c exp(x_c) of each row, 0 for ignored rows, of shape (...). Only with `return_lse`.

    Raises
    ------
    TypeError
        If `input` is not floating, if `linear_weight` or `linear_bias` has another dtype, if a
        floating target is shaped like class indices, or if weights are not real numbers.
    ValueError
        If shapes do not fit, if there are no classes, if `reduction` is unknown, if
        `label_smoothing` is outside [0, 1], if `softcap` is outside its range, if `chunk_bytes` is
        not positive, or if `logit_scale` or `lse_square_scale` is not finite.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.

    Notes
    -----
    The products are those of NumPy's BLAS library, on as many threads as it uses; from the logits
    on, accuracy is that of `cross_entropy`. The loss of a row depends on the chunk only if the BLAS
    library rounds its logits otherwise in products of other sizes. Two values of one logit differ
    by at most

        Δ = 2γ · |α| · max_c (Σ_d |h_d · W_cd| + |β_c|) + 16 · u · κ,    γ = n·u/(1 − n·u),

    where n = D + 3, u is 2⁻²⁴ for float32 and 2⁻⁵³ for float64, and the last term is absent without
    `softcap`. Two values of the loss differ by at most

        |s| · (2 · Δ · Σ_c |b_c| + |v · λ| · (2 · |lse| + Δ) · Δ)

    and 4 units in the last place of the larger of the loss without λ and |s · v · λ| · lse².

    The name is that of ``torch.nn.functional.linear_cross_entropy``.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> hidden, weight = rng.normal(size=(6, 4)), rng.normal(size=(10, 4))
    >>> labels = rng.integers(0, 10, 6)
    >>> loss = pyce.linear_cross_entropy(hidden, weight, labels, chunk_bytes=160)
    >>> print(np.isclose(loss, pyce.cross_entropy(hidden @ weight.T, labels)))
    True
    """
    head = checked_head(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_bytes=chunk_bytes,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    run(head, current())
    loss = _reduced(head)
    return (loss, head.lse.reshape(head.full.positions)) if return_lse else loss


@overload
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: ToScalar = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[_GradOptions],
) -> tuple[Scalar, LinearGradients]: ...


@overload
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: ToScalar = ...,
    return_lse: Literal[True],
    **options: Unpack[_GradOptions],
) -> tuple[Scalar, LinearGradients, LogSumExp]: ...


@overload
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Literal["none"],
    return_lse: Literal[False] = ...,
    **options: Unpack[_GradOptions],
) -> tuple[Losses, LinearGradients]: ...


@overload
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Literal["none"],
    return_lse: Literal[True],
    **options: Unpack[_GradOptions],
) -> tuple[Losses, LinearGradients, LogSumExp]: ...


@overload
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    reduction: Reduction = ...,
    return_lse: bool = ...,
    **options: Unpack[_GradOptions],
) -> (
    tuple[Scalar | Losses, LinearGradients] | tuple[Scalar | Losses, LinearGradients, LogSumExp]
): ...


@_fpenv.default
def linear_cross_entropy_with_grad(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    linear_bias: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    chunk_bytes: SupportsIndex | None = None,
    filter_tolerance: float | None = None,
    return_lse: bool = False,
    out: tuple[Array | None, Array | None, Array | None] | None = None,
) -> tuple[Scalar | Losses, LinearGradients] | tuple[Scalar | Losses, LinearGradients, LogSumExp]:
    """Softmax cross-entropy of a linear layer's output, and its gradients, without all logits.

    The loss of a row with hidden state h is that of `cross_entropy` with the logits

        x = κ · tanh(z/κ),    z = α · (W · h + β),    or x = z without `softcap`.

    A row's loss is s · Σ_c b_c · (lse − x_c) with lse = log Σ_c exp(x_c), the row's sample weight s
    and b_c = w_c · ((1 − ε) · t_c + ε/C), where w are the class weights, ε the smoothing and t the
    target's probabilities: for a class index y, 1 at y and 0 elsewhere.

    With G the derivative of the loss with respect to W · h + β of all rows, of shape (rows, C), the
    gradients are G · W for `input`, Gᵀ · `input` for `linear_weight` and the sum of the rows of G
    for `linear_bias`. Logits and G exist in chunks of rows, G in place of the logits.

    Parameters
    ----------
    input : array_like
        The hidden states: float16, bfloat16, float32 or float64, of shape (..., D). Half types are
        converted to float32 for the products, chunk by chunk.
    linear_weight : array_like
        W, the weight of the linear layer, in the dtype of `input`, of shape (C, D).
    target : array_like
        Class indices of any integer dtype, of shape (...); or probabilities, floating and of shape
        (..., C), which need not add up to 1.
    linear_bias : array_like, optional
        β, the bias of the linear layer, in the dtype of `input`, of shape (C,).
    weight : array_like, optional
        Weight of each class in the loss: real numbers of shape (C,), used as given.
    sample_weight : array_like, optional
        Weight of each row: real numbers of shape (...), used as given.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss and its gradient are 0, its input is not
        read, and it takes no time.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ weight[y] · sample_weight over the rows that
        are not ignored for class indices, and by Σ sample_weight for probabilities. Without such
        rows it is NaN. "none" returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    softcap : float, optional
        κ, from 1e-20 to 1e20: bounds the logits to (−κ, κ). None for no bound.
    logit_scale : float, default 1.0
        α, any finite number: the factor of the product, as an inverse temperature.
    lse_square_scale : float, default 0.0
        λ of the z-loss: s · v · λ · lse² is added to each row's loss, where v is w_y for a class
        index y, whatever the smoothing, and 1 for probabilities. Any finite number.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time, by default 64 MiB; at least one row of them
        always does.
    filter_tolerance : float, optional
        δ in [0, 1]: leaves columns out of the two products with G, which saves time once nearly all
        probability is in few classes. In each row, elements of G are dropped whose sizes add up to
        at most δ/2 of the sum of all sizes, ‖G‖₁: each row's G changes by no more. For a class
        index y without smoothing, these are softmax entries that add up to at most δ · (1 − p_y).
        The same columns are left out in all rows of a chunk. The loss and the gradient of
        `linear_bias` are exact. None or 0 for none.
    return_lse : bool, default False
        Whether to return lse too.
    out : tuple of three ndarrays or None, optional
        Where to write the gradients, in the order of the result, each None for a new array. Arrays
        in the shape and dtype of what they are the derivative of, C-contiguous and writable, which
        share no memory with each other or with an argument.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats; float64 for float64 inputs, else float32. For "none" an array of shape (...).
    grads : LinearGradients
        The named tuple (input, linear_weight, linear_bias): the derivatives of the sum of `loss`,
        in the dtype of `input`; `linear_bias` is None without a bias. For half types, they are
        computed in float32 and rounded once, which takes a float32 array of the weight's size.
    lse : ndarray of float64
        log Σ_c exp(x_c) of each row, 0 for ignored rows, of shape (...). Only with `return_lse`.

    Raises
    ------
    TypeError
        If `input` is not floating, if `linear_weight` or `linear_bias` has another dtype, if a
        floating target is shaped like class indices, or if weights are not real numbers,
        or if `out` does not have arrays of that dtype.
    ValueError
        If shapes do not fit, if there are no classes, if `reduction` is unknown, if
        `label_smoothing` or `filter_tolerance` is outside [0, 1], if `softcap` is outside its
        range, if `chunk_bytes` is not positive, if `logit_scale` or `lse_square_scale` is not
        finite, or if an array of `out` has another shape, cannot be written to, is not
        C-contiguous, or shares memory.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row. After any error `out` is as it was.

    Notes
    -----
    The products are those of NumPy's BLAS library, on as many threads as it uses; from the logits
    on, accuracy is that of `cross_entropy`. The loss of a row depends on the chunk only if the BLAS
    library rounds its logits otherwise in products of other sizes. Two values of one logit differ
    by at most

        Δ = 2γ · |α| · max_c (Σ_d |h_d · W_cd| + |β_c|) + 16 · u · κ,    γ = n·u/(1 − n·u),

    where n = D + 3, u is 2⁻²⁴ for float32 and 2⁻⁵³ for float64, and the last term is absent without
    `softcap`. Two values of the loss differ by at most

        |s| · (2 · Δ · Σ_c |b_c| + |v · λ| · (2 · |lse| + Δ) · Δ)

    and 4 units in the last place of the larger of the loss without λ and |s · v · λ| · lse².

    The gradients are sums over rows and classes, rounded as products of these sizes are.

    The name is that of ``torch.nn.functional.linear_cross_entropy``. Leaving out columns with small
    gradients is due to E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models,
    2024, who compare each element with a fixed threshold.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> hidden, weight = rng.normal(size=(6, 4)), rng.normal(size=(10, 4))
    >>> labels = rng.integers(0, 10, 6)
    >>> loss, grads = pyce.linear_cross_entropy_with_grad(hidden, weight, labels)
    >>> print(grads.input.shape, grads.linear_weight.shape, grads.linear_bias)
    (6, 4) (10, 4) None
    """
    head = checked_head(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_bytes=chunk_bytes,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    if filter_tolerance is not None:
        head.filter_tolerance = arguments.fraction(filter_tolerance, "filter_tolerance")
    given = (input, linear_weight, linear_bias, target, weight, sample_weight)
    grads = _outputs(head, out, np.shape(input), given)
    head.grad_input = grads.input.reshape(head.input.shape)
    head.grad_weight, head.grad_bias = grads.linear_weight, grads.linear_bias
    with_lse = bool(return_lse)  # an array of several has no truth: before anything is written
    run(head, current())
    loss = _reduced(head)
    if out is not None:
        pairs = zip(grads, out, strict=True)
        grads = LinearGradients(*(g if g is None else arguments.delivered(g, o) for g, o in pairs))  # type: ignore[arg-type]
    if not with_lse:
        return loss, grads
    return loss, grads, head.lse.reshape(head.full.positions)


def checked_head(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any,
    softcap: Any,
    logit_scale: Any,
    chunk_bytes: Any,
    **options: Any,
) -> Head:
    """The arguments, checked, the labels too. `options` are those of `loss_problem`."""
    x, name = arguments.floating(input, "input")
    w, weight_name = arguments.floating(linear_weight, "linear_weight")
    if w.ndim != 2 or w.shape[0] == 0:
        raise ValueError(
            f"linear_weight must have the shape (C, D) with at least one class, got {w.shape}"
        )
    if x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"input of shape {x.shape} does not fit linear_weight of shape {w.shape}: "
            f"expected (..., {w.shape[1]}), because linear_weight has the shape (C, D)"
        )
    if name != weight_name:
        raise TypeError(f"input is {name}, but linear_weight is {weight_name}: they must be alike")
    bias = None
    if linear_bias is not None:
        bias, bias_name = arguments.floating(linear_bias, "linear_bias")
        if bias.shape != w.shape[:1]:
            raise ValueError(
                f"linear_bias of shape {bias.shape} does not fit linear_weight of shape {w.shape}: "
                f"expected {w.shape[:1]}"
            )
        if bias_name != name:
            raise TypeError(f"input is {name}, but linear_bias is {bias_name}: they must be alike")
    positions = x.shape[:-1]
    t = arguments.as_array(target, "target")
    if t.dtype.kind in "iuf" and t.shape not in (positions, (*positions, w.shape[0])):
        raise ValueError(
            f"target of shape {t.shape} does not fit input of shape {x.shape} and linear_weight of "
            f"shape {w.shape}: expected {positions} for class indices, "
            f"{(*positions, w.shape[0])} for probabilities"
        )
    # The problem of all rows, in which zeros of no size stand for the logits.
    dtype = compute_dtype(name)
    nothing = np.broadcast_to(dtype.type(0), (*positions, w.shape[0]))
    full = arguments.loss_problem(nothing, target, axis=-1, what="the logits", **options)
    full.check_labels()
    softcap, logit_scale, chunk_bytes = checked_scales(softcap, logit_scale, chunk_bytes)
    if not (w.flags.c_contiguous or w.flags.f_contiguous):
        w = np.ascontiguousarray(w)
    return Head(
        full=full,
        input=np.ascontiguousarray(x).reshape(full.rows, w.shape[1]),
        weight=w,
        bias=bias,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_bytes=chunk_bytes,
        filter_tolerance=0.0,
        losses=np.empty(full.rows, dtype),
        lse=np.empty(full.rows),
    )


def _reduced(head: Head) -> Scalar | Losses:
    """The loss in its shape."""
    loss = head.results.loss()
    return loss.reshape(head.full.positions) if head.full.reduction == "none" else loss


def _outputs(
    head: Head, out: Any, input_shape: tuple[int, ...], given: tuple[Any, ...]
) -> LinearGradients:
    """The arrays of `out`, checked, and new ones for those that are None."""
    parts = (None, None, None) if out is None else out
    if not isinstance(parts, (tuple, list)):
        raise TypeError(f"out must be a tuple of three arrays, got {type(out).__name__}")
    if len(parts) != 3:
        raise ValueError(f"out must have three elements, got {len(parts)}")
    shapes = (input_shape, head.weight.shape, None if head.bias is None else head.bias.shape)
    used = (head.input, head.weight, head.bias, head.full.probs, head.full.labels)
    others = [a for a in (*given, *used) if isinstance(a, np.ndarray)]
    made: list[Array | None] = []
    for name, part, shape, source in zip(
        LinearGradients._fields, parts, shapes, given, strict=False
    ):
        if shape is None:
            if part is not None:
                raise ValueError("out has an array for linear_bias, but there is no linear_bias")
            made.append(None)
            continue
        like = shape, head.input.dtype
        made.append(arguments.gradient_output(part, f"out.{name}", like, source, others, name))
        if part is not None:
            others.append(part)
    return LinearGradients(*made)  # type: ignore[arg-type]
