"""The log-probabilities of chosen classes of a linear layer's output, without all of its logits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, SupportsIndex, TypedDict, overload

import numpy as np
import numpy.typing as npt

from pyce import _arguments as arguments
from pyce import _fpenv
from pyce._backends import Backend, current
from pyce._linear import checked_head
from pyce._linear_chunks import Head, logit_chunks, run
from pyce._selective import by_rows, class_indices
from pyce._selective import run as run_rows
from pyce._types import Array, Losses

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


class _Options(TypedDict, total=False):
    """The keyword arguments whose types no result depends on."""

    linear_bias: npt.ArrayLike | None
    softcap: float | None
    logit_scale: float
    temperature: float
    chunk_bytes: SupportsIndex | None


@overload
def linear_selective_log_softmax(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    return_entropy: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Losses: ...


@overload
def linear_selective_log_softmax(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    return_entropy: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Losses, Losses]: ...


@overload
def linear_selective_log_softmax(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    return_entropy: bool = ...,
    **options: Unpack[_Options],
) -> Losses | tuple[Losses, Losses]: ...


@_fpenv.default
def linear_selective_log_softmax(
    input: npt.ArrayLike,
    linear_weight: npt.ArrayLike,
    index: npt.ArrayLike,
    *,
    linear_bias: npt.ArrayLike | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    chunk_bytes: SupportsIndex | None = None,
    return_entropy: bool = False,
) -> Losses | tuple[Losses, Losses]:
    """The log-softmax of a linear layer's output at chosen classes, without holding all logits.

    A row with hidden state h has the logits

        x = κ · tanh(z/κ),    z = α · (W · h + β),    or x = z without `softcap`.

    With the temperature T and lse = log Σ_c exp(x_c/T), the results for a class y are

        log p_y = x_y/T − lse,    H = −Σ_c p_c · log p_c.

    Parameters
    ----------
    input : array_like
        The hidden states: float16, bfloat16, float32 or float64, of shape (..., D). Half types are
        converted to float32 for the products, chunk by chunk.
    linear_weight : array_like
        W, the weight of the linear layer, in the dtype of `input`, of shape (C, D).
    index : array_like
        Class indices of any integer dtype, in 0..C−1: one for each row, of shape (...); or k for
        each row, of shape (..., k).
    linear_bias : array_like, optional
        β, the bias of the linear layer, in the dtype of `input`, of shape (C,).
    softcap : float, optional
        κ, from 1e-20 to 1e20: bounds the logits to (−κ, κ). None for no bound.
    logit_scale : float, default 1.0
        α, any finite number: the factor of the product.
    temperature : float, default 1.0
        T, positive and finite.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time, by default 64 MiB; at least one row of them
        always does, or 1024 logits.
    return_entropy : bool, default False
        Whether to return H too, in nats.

    Returns
    -------
    log_probs : ndarray
        In the shape of `index`; float64 for float64 inputs, else float32.
    entropy : ndarray
        Of shape (...), in the same dtype. Only with `return_entropy`.

    Raises
    ------
    TypeError
        If `input` is not floating, if `linear_weight` or `linear_bias` has another dtype, or if
        `index` is not of integers.
    ValueError
        If shapes do not fit, if there are no classes, if `softcap` is outside its range, if
        `chunk_bytes` or `temperature` is not positive, or if `logit_scale` or `temperature` is not
        finite.
    IndexError
        If an index is not in 0..C−1; the message names the first.

    Notes
    -----
    The products are those of NumPy's BLAS library; from the logits on, accuracy is that of
    `selective_log_softmax`. With a temperature, x/T are these logits: they are rounded as products
    are.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> hidden, weight = rng.normal(size=(6, 4)), rng.normal(size=(10, 4))
    >>> tokens = rng.integers(0, 10, 6)
    >>> got = pyce.linear_selective_log_softmax(hidden, weight, tokens)
    >>> print(np.allclose(got, pyce.selective_log_softmax(hidden @ weight.T, tokens)))
    True
    """
    head = checked_head(
        input,
        linear_weight,
        np.broadcast_to(np.int64(0), np.shape(input)[:-1]),
        linear_bias=linear_bias,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_bytes=chunk_bytes,
        weight=None,
        sample_weight=None,
        ignore_index=-1,
        label_smoothing=0.0,
        reduction="none",
        normalizer=None,
    )
    positions, classes = head.full.positions, len(head.weight)
    what = f"input of shape {np.shape(input)} and linear_weight of shape {np.shape(linear_weight)}"
    at = class_indices(index, positions, classes, what)
    t = arguments.positive(temperature, "temperature")
    index = by_rows(at, positions)
    log_probs = np.empty(index.shape, head.losses.dtype)
    entropy = np.empty(len(index), head.losses.dtype) if return_entropy else None
    _run(head, current(), index, t, log_probs, entropy)
    shaped = log_probs.reshape(at.shape)
    return shaped if entropy is None else (shaped, entropy.reshape(positions))


def _run(
    head: Head, backend: Backend, index: Array, t: float, log_probs: Array, entropy: Array | None
) -> None:
    """Write `log_probs` (rows, k) at the classes `index` (rows, k), and `entropy` (rows,)."""
    # The factor of the hidden states contains 1/T, which takes no time.
    head.temperature = t
    rows = np.arange(len(index))
    if index.shape[1] == 1 and entropy is None:
        head.full.labels = np.ascontiguousarray(index[:, 0])
        run(head, backend)
        log_probs[:, 0] = -head.losses
    else:
        _run_rows(head, backend, rows, index, 1.0, log_probs, entropy)
    if t == 1.0:
        return
    # Where x/T overflows, from the logits.
    finite = np.isfinite(log_probs).all(axis=1)
    if entropy is not None:
        finite &= np.isfinite(entropy)
    if not finite.all():
        head.temperature = 1.0
        _run_rows(head, backend, rows[~finite], index, t, log_probs, entropy)


def _run_rows(
    head: Head,
    backend: Backend,
    rows: Array,
    index: Array,
    t: float,
    log_probs: Array,
    entropy: Array | None,
) -> None:
    """Write the results of some rows, whose logits are computed in chunks and then divided by T."""
    for part, chunk in logit_chunks(head, rows):
        found = np.empty((len(chunk), index.shape[1]), log_probs.dtype)
        of_part = None if entropy is None else np.empty(len(chunk), entropy.dtype)
        run_rows(backend, chunk, index[part], t, found, of_part)
        log_probs[part] = found
        if entropy is not None:
            entropy[part] = of_part
