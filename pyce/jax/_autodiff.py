"""The losses of rows as a function that JAX differentiates, forward and in reverse, any number of times.

Only the tangents with respect to the logits use pyce's gradient. Those with respect to probabilities,
and second derivatives, are written in JAX. With p = softmax(x), S = Σ t and a dot for tangents:

    loss  = Σ_c t_c (lse − x_c)          loss˙ = Σ_c g_c x˙_c − Σ_c t˙_c log p_c
    g     = S p − t                      g˙    = S p (x˙ − Σ_c p_c x˙_c) + p Σ_c t˙_c − t˙
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from pyce.jax import _ffi

_CLASSES = -2  # the class axis


@jax.custom_jvp
def losses(logits: Any, target: Any) -> Any:
    """The losses of the rows of logits (…, classes, inner), in float32, or float64 for float64 logits.

    `target` are labels (…, inner) of int32 or int64, or probabilities of the logits' shape.
    """
    return _ffi.call(logits, target, gradient=False)[0]


def _losses_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    logits, target = primals
    # What is small in the gradient of a row may grow when it is scaled, and is lost in float16.
    wide = logits.astype(jnp.float32) if logits.dtype == jnp.float16 else logits
    loss, gradient = _losses_with_gradient(wide, target)
    return loss, _tangent_of_losses(loss.dtype, wide, gradient, tangents)


@jax.custom_jvp
def _losses_with_gradient(logits: Any, target: Any) -> tuple[Any, Any]:
    loss, gradient = _ffi.call(logits, target, gradient=True)
    return loss, gradient


def _losses_with_gradient_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> Any:
    logits, target = primals
    logits_dot, target_dot = tangents
    loss, gradient = _losses_with_gradient(logits, target)
    p = jax.nn.softmax(logits.astype(loss.dtype), axis=_CLASSES)
    gradient_dot = jnp.zeros_like(p)
    if _is_tangent(logits_dot):
        x_dot = logits_dot.astype(p.dtype)
        gradient_dot += p * (x_dot - jnp.sum(p * x_dot, axis=_CLASSES, keepdims=True))
        if jnp.issubdtype(target.dtype, jnp.floating):
            gradient_dot *= jnp.sum(target.astype(p.dtype), axis=_CLASSES, keepdims=True)
    if _is_tangent(target_dot):
        t_dot = target_dot.astype(p.dtype)
        gradient_dot += p * jnp.sum(t_dot, axis=_CLASSES, keepdims=True) - t_dot
    loss_dot = _tangent_of_losses(loss.dtype, logits, gradient, tangents)
    return (loss, gradient), (loss_dot, gradient_dot.astype(gradient.dtype))


def _tangent_of_losses(dtype: Any, logits: Any, gradient: Any, tangents: tuple[Any, Any]) -> Any:
    logits_dot, target_dot = tangents
    rows = (*logits.shape[:_CLASSES], logits.shape[-1])
    terms = []
    if _is_tangent(logits_dot):
        # In the dtype of the losses, so that a gradient of a half type is scaled before it is rounded.
        product = gradient.astype(dtype) * logits_dot.astype(dtype)
        terms.append(jnp.sum(product, axis=_CLASSES))
    if _is_tangent(target_dot):
        log_p = jax.nn.log_softmax(logits.astype(dtype), axis=_CLASSES)
        terms.append(-jnp.sum(log_p * target_dot.astype(dtype), axis=_CLASSES))
    return sum(terms[1:], terms[0]) if terms else jnp.zeros(rows, dtype)


def _is_tangent(tangent: Any) -> bool:
    """Whether a tangent has to be followed: it is not known to be 0, and is not that of integers."""
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


losses.defjvp(_losses_jvp, symbolic_zeros=True)
_losses_with_gradient.defjvp(_losses_with_gradient_jvp, symbolic_zeros=True)
