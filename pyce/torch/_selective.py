"""`pyce.torch.selective_log_softmax`: the log-probabilities of chosen classes, and the entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

import pyce
from pyce import _arguments as arguments
from pyce import _fpenv, _threads
from pyce._backends import current
from pyce._selective import probabilities
from pyce._types import Array
from pyce.torch._autograd import is_differentiated
from pyce.torch._linear_autograd import differentiate
from pyce.torch._public import publish
from pyce.torch._tensors import (
    DTYPE_NAMES,
    as_array,
    check_tensor,
    empty_gradient,
    is_plain,
    is_served,
    refuse_gradients,
    resolved,
)
from pyce.torch._tracing import (
    dispatch_modes,
    forward_mode,
    is_compiling,
    run_eagerly,
    tracing_state,
    transforms_active,
)

# Elements of the rows whose gradient is computed together: a cache holds them.
_BLOCK = 2**17


def selective_log_softmax(
    logits: Tensor,
    index: Tensor,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The log-softmax at one or several classes of each row, and the entropy of each row.

    With the temperature T and lse = log Σ_c exp(x_c/T) of a row of logits x, the results for a
    class y are

        log p_y = x_y/T − lse,    H = −Σ_c p_c · log p_c.

    No tensor of the size of the logits is allocated before the backward pass, which allocates their
    gradient.

    Parameters
    ----------
    logits : Tensor
        float32, float64, bfloat16 or float16, of shape (..., C), on the CPU, with any strides.
    index : Tensor
        Class indices of any integer dtype, in 0..C−1: one for each row, of shape (...); or k for
        each row, of shape (..., k).
    temperature : float
        T, positive and finite. With another than 1, the computation is in float64.
    return_entropy : bool
        Whether to return H too, in nats.

    Returns
    -------
    log_probs : Tensor
        Of the shape of `index`; float64 for float64 logits, else float32.
    entropy : Tensor
        Of shape (...) and the same dtype. Only with `return_entropy`. Both results are
        differentiable any number of times with respect to the logits.

    Raises
    ------
    TypeError
        If an argument is not a tensor, if the logits are not floating, or if `index` is not of
        integers.
    ValueError
        If a tensor is sparse, nested or not on the CPU, if shapes do not match, if there are no
        classes or no dimensions, or if `temperature` is not positive and finite.
    IndexError
        If an index is not in 0..C−1; the message names the first.
    NotImplementedError
        If `temperature` is a tensor that requires a gradient, unless PyTorch computes the results.

    Notes
    -----
    Under `torch.compile`, under the transforms of `torch.func`, in forward mode and for second
    derivatives, operations of PyTorch compute the results and hold the log-softmax of all classes.

    The name is that of TRL's function, ``trl.trainer.utils.selective_log_softmax``, which returns
    half types for half types.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]])
    >>> pyce.torch.selective_log_softmax(logits, torch.tensor([1, 2]))
    tensor([-0.4644, -0.1096])
    """
    traced = is_compiling()
    if not traced and has_torch_function_variadic(logits, index):
        return handle_torch_function(
            selective_log_softmax,
            (logits, index),
            logits,
            index,
            temperature=temperature,
            return_entropy=return_entropy,
        )
    check_tensor(logits, "logits")
    check_tensor(index, "index")
    if (
        traced
        or transforms_active()
        or forward_mode()
        or dispatch_modes()
        or tracing_state() is not None
        or not (is_plain(logits) and is_plain(index) and is_served(logits))
    ):
        _check(logits, index, temperature)
        log_probs, entropy = composed(logits, index, temperature)
    else:
        refuse_gradients(temperature=temperature)
        compute = _apply if logits.requires_grad and torch.is_grad_enabled() else _forward
        log_probs, entropy = compute(logits, index, temperature, return_entropy)
    return (log_probs, entropy) if return_entropy else log_probs


def _check(logits: Tensor, index: Tensor, temperature: float) -> None:
    """Raise what `pyce.selective_log_softmax` raises, except for an index out of range."""
    shape, positions = tuple(logits.shape), tuple(logits.shape[:-1])
    if not shape or shape[-1] == 0:
        raise ValueError(f"logits must have at least one class, got shape {shape}")
    if index.is_floating_point() or index.is_complex() or index.dtype is torch.bool:
        raise TypeError(f"index must be integers, got {str(index.dtype).removeprefix('torch.')}")
    if tuple(index.shape[: len(positions)]) != positions or index.dim() > len(shape):
        raise ValueError(
            f"index of shape {tuple(index.shape)} does not fit logits of shape {shape}: expected "
            f"{positions}, or that with a dimension appended"
        )
    arguments.positive(float(temperature), "temperature")


def _forward(
    logits: Tensor, index: Tensor, temperature: float, return_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy, which is empty unless requested."""
    with _threads.at_most(torch.get_num_threads()):
        found = pyce.selective_log_softmax(
            as_array(logits, "logits"),
            as_array(index, "index"),
            temperature=temperature,
            return_entropy=return_entropy,
        )
    if isinstance(found, tuple):
        log_probs, entropy = found
        return torch.from_numpy(np.asarray(log_probs)), torch.from_numpy(np.asarray(entropy))
    log_probs = torch.from_numpy(np.asarray(found))
    return log_probs, log_probs.new_empty(0)


class _SelectiveLogSoftmax(torch.autograd.Function):  # type: ignore[misc]
    """`_forward` with its derivatives."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, temperature: float, return_entropy: bool
    ) -> Any:
        log_probs, entropy = _forward(logits, index, temperature, return_entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        ctx.save_for_backward(logits, index, log_probs, entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> Any:
        logits, index, log_probs, entropy = ctx.saved_tensors
        given = [g for g in (grad_log_probs, grad_entropy) if g is not None]
        if not given:
            return None, None, None, None
        if any(map(is_differentiated, given)):

            def function(x: Tensor) -> list[Tensor]:
                outputs = zip(
                    composed(x, index, ctx.temperature), (grad_log_probs, grad_entropy), strict=True
                )
                return [output for output, g in outputs if g is not None]

            (gradient,) = differentiate(function, (logits,), (True,), given)
        else:
            # Compiled autograd traces this method, and cannot trace calls of C.
            inputs = logits, index, ctx.temperature, log_probs, entropy
            gradient = run_eagerly(_gradient, *inputs, grad_log_probs, grad_entropy)
        return gradient, None, None, None


_apply = super(torch.autograd.Function, _SelectiveLogSoftmax).apply


def _gradient(
    logits: Tensor,
    index: Tensor,
    temperature: float,
    log_probs: Tensor,
    entropy: Tensor,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """The gradient of the logits, a block of rows after the other."""
    classes = logits.shape[-1]
    gradient = empty_gradient(logits, contiguous=True)
    x, result = resolved(logits).reshape(-1, classes), gradient.view(-1, classes)
    rows = len(x)
    width = index.shape[-1] if index.dim() == logits.dim() else 1
    chosen = index.long().reshape(rows, width)
    log_p = log_probs.detach().double().reshape(rows, width)
    g = torch.zeros_like(log_p)
    if grad_log_probs is not None:
        g = grad_log_probs.double().reshape(rows, width)
    of_entropy, h = None, None
    if grad_entropy is not None:
        of_entropy = grad_entropy.double().reshape(rows, 1)
        h = entropy.detach().double().reshape(rows, 1)
    step = max(1, _BLOCK // classes)
    with _threads.at_most(torch.get_num_threads()):
        for i in range(0, rows, step):
            part = slice(i, i + step)
            result[part] = _block_gradient(
                *_softmax(x[part].to(_wide(x.dtype)).numpy(), temperature, entropy=h is not None),
                chosen[part],
                log_p[part],
                g[part],
                None if of_entropy is None else of_entropy[part],
                None if h is None else h[part],
            ).div_(temperature)
    return gradient


@_fpenv.default
def _softmax(x: Array, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """The softmax of rows x (n, C) with a temperature, and its logarithm, float64, on request."""
    p, log_p = probabilities(current(), x, temperature, entropy)
    return torch.from_numpy(p), None if log_p is None else torch.from_numpy(log_p)


def _block_gradient(
    p: Tensor,
    log_all: Tensor | None,
    index: Tensor,
    log_p: Tensor,
    g: Tensor,
    of_entropy: Tensor | None,
    entropy: Tensor | None,
) -> Tensor:
    """Σ_k g_k · ∂log p_k/∂z + of_entropy · ∂H/∂z of some rows (n, C) of z = x/T, in place of p.

    With S = Σ_k g_k and the sum G_c of g over the k that chose class c, the first term is
    G_c − p_c · S, for chosen classes (1 − p_c) · S − (S − G_c) with 1 − p_c = −expm1(log p_c). The
    second is −of_entropy · p_c · (log p_c + H).
    """
    total = g.sum(1, keepdim=True)
    sums = torch.zeros(p.shape, dtype=torch.float64).scatter_add_(1, index, g).gather(1, index)
    at_index = -torch.expm1(log_p) * total - (total - sums)
    if of_entropy is None or entropy is None or log_all is None:
        p.mul_(-total)
        return p.scatter_(1, index, at_index.to(p.dtype))
    at_index -= of_entropy * log_p.exp() * _finite(log_p, log_p + entropy)
    factor = _finite(log_all, -total - of_entropy * (log_all + entropy))
    p.mul_(factor)
    return p.scatter_(1, index, at_index.to(p.dtype))


def _finite(log_p: Tensor, values: Tensor) -> Tensor:
    """The values, and 0 where the probability is 0: 0 · inf would be NaN."""
    return torch.where(log_p == -torch.inf, 0.0, values)


def composed(logits: Tensor, index: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy in differentiable operations of PyTorch."""
    wide = _wide(logits.dtype)
    x = logits.to(wide)
    if temperature != 1.0:
        x = x.double()
        x = (x - x.detach().amax(-1, keepdim=True)) / temperature  # x/T may overflow
    log_p = x.log_softmax(-1)
    one = index.dim() < logits.dim()
    log_probs = log_p.gather(-1, index.long().unsqueeze(-1) if one else index.long())
    p = log_p.exp()
    entropy = -(p * torch.where(p == 0, 0.0, log_p)).sum(-1)
    log_probs = log_probs.squeeze(-1) if one else log_probs
    return log_probs.to(wide), entropy.to(wide)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the results for logits of a dtype."""
    if dtype not in DTYPE_NAMES:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {dtype}")
    return torch.float64 if dtype is torch.float64 else torch.float32


publish(selective_log_softmax)
