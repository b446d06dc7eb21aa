"""The losses of rows as a function that JAX differentiates, in both modes, any number of times.

With p = softmax(x), S = Σ t, the gradient g = S p − t of a row's loss and a dot for tangents:

    loss˙ = Σ_c g_c x˙_c − Σ_c t˙_c log p_c
    g˙    = S p (x˙ − Σ_c p_c x˙_c) + p Σ_c t˙_c − t˙

Two primitives are linear in their first argument, and each is the transpose of the other: `product`
maps x˙ to Σ_c g_c x˙_c, and `gradient` maps the cotangent of the losses to their product with g,
which in reverse JAX calls with the cotangent. C applies it before rounding.

The forward pass guesses that the cotangent will be that of a mean over all rows, and computes the
gradient for it together with the losses: `saved`. If the guess is right, `gradient` returns it, in
the same memory. If it is wrong, C computes the gradient from the logits. Both have the same bytes,
so to JAX `saved` and `guess` are arguments that no result depends on, and their tangents are not
followed. The other terms, and the derivatives of the primitives, are written in JAX.

All arrays are (…, classes, inner), or (…, inner) without the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pyce.jax import _ffi

_CLASSES = -2  # the class axis


@jax.custom_jvp  # type: ignore[untyped-decorator,unused-ignore]
def losses(logits: Any, target: Any) -> Any:
    """The losses of the rows, in float64 for float64 logits and else in float32.

    `logits` are (…, classes, inner), and `target` are labels (…, inner) of int32 or int64, or
    probabilities of the logits' shape.
    """
    return _ffi.losses(logits, target)


@jax.custom_jvp  # type: ignore[untyped-decorator,unused-ignore]
def _losses_and_saved(logits: Any, target: Any, guess: Any) -> tuple[Any, Any]:
    return _ffi.losses_and_gradient(logits, target, guess)


def _losses_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    logits, target = primals
    logits_dot, target_dot = tangents
    if _is_tangent(logits_dot):
        shape = _ffi.rows(logits)
        # The losses that JAX averages have been rounded to the dtype of the logits.
        guess = jnp.full(shape, 1 / max(1, math.prod(shape)), logits.dtype)
        guess = guess.astype(_ffi.loss_dtype(logits.dtype))
        loss, saved = _losses_and_saved(logits, target, guess)
        loss_dot = _product_p.bind(logits_dot, logits, target, saved, guess)
    else:
        loss = losses(logits, target)
        loss_dot = jnp.zeros_like(loss)
    if _is_tangent(target_dot):
        log_p = jax.nn.log_softmax(logits.astype(loss.dtype), axis=_CLASSES)
        # Finite: a class with the logit −inf, as masked ones have, adds 0 if its tangent is 0.
        log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
        loss_dot -= jnp.sum(log_p * target_dot.astype(loss.dtype), axis=_CLASSES)
    return loss, loss_dot


def _losses_and_saved_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    loss, loss_dot = _losses_jvp((primals[0], primals[1]), (tangents[0], tangents[1]))
    saved = jax.lax.stop_gradient(_losses_and_saved(*map(jax.lax.stop_gradient, primals))[1])
    return (loss, saved), (loss_dot, jnp.zeros_like(saved))


losses.defjvp(_losses_jvp, symbolic_zeros=True)
_losses_and_saved.defjvp(_losses_and_saved_jvp, symbolic_zeros=True)


def _is_tangent(tangent: Any) -> bool:
    """Whether a tangent has to be followed: it is not known to be 0, nor that of integers."""
    return not isinstance(tangent, (SymbolicZero, ad.Zero)) and tangent.dtype != jax.dtypes.float0


# -- the primitives --------------------------------------------------------------------------------


def _product(x_dot: Any, logits: Any, target: Any, saved: Any, guess: Any) -> Any:
    """Σ_c g_c x˙_c"""
    wide = logits.astype(guess.dtype)
    _, gradient = _ffi.losses_and_gradient(wide, target, jnp.ones_like(guess))
    return jnp.sum(gradient * x_dot.astype(guess.dtype), axis=_CLASSES)


def _gradient(factors: Any, logits: Any, target: Any, saved: Any, guess: Any) -> Any:
    """factor · g, of the logits' dtype"""
    return _ffi.gradient(logits, target, factors, saved, guess)


def _gradient_dot(logits: Any, target: Any, logits_dot: Any, target_dot: Any) -> Any:
    """g˙, of the dtype of the losses"""
    x = logits.astype(_ffi.loss_dtype(logits.dtype))
    p = jax.nn.softmax(x, axis=_CLASSES)
    result = jnp.zeros_like(p)
    if _is_tangent(logits_dot):
        x_dot = logits_dot.astype(p.dtype)
        result += p * (x_dot - jnp.sum(p * x_dot, axis=_CLASSES, keepdims=True))
        if jnp.issubdtype(target.dtype, jnp.floating):
            result *= jnp.sum(target.astype(p.dtype), axis=_CLASSES, keepdims=True)
    if _is_tangent(target_dot):
        t_dot = target_dot.astype(p.dtype)
        result += p * jnp.sum(t_dot, axis=_CLASSES, keepdims=True) - t_dot
    return result


def _linear_primitive(name: str, function: Callable[..., Any], result: Callable[..., Any]) -> Any:
    """A primitive; `result` has the shape and dtype of its result, given the logits."""
    made = Primitive(name)
    made.def_impl(jax.jit(function))

    def abstract(first: Any, logits: Any, *others: Any) -> Any:
        return jax.core.ShapedArray(*result(logits))

    def batched(arguments: tuple[Any, ...], axes: tuple[Any, ...]) -> tuple[Any, int]:
        pairs = list(zip(arguments, axes, strict=True))
        size = next(x.shape[axis] for x, axis in pairs if axis is not None)
        return made.bind(*(batching.bdim_at_front(x, axis, size) for x, axis in pairs)), 0

    made.def_abstract_eval(abstract)
    batching.primitive_batchers[made] = batched
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


_product_p = _linear_primitive(
    "pyce_product", _product, lambda logits: (_ffi.rows(logits), _ffi.loss_dtype(logits.dtype))
)
_gradient_p = _linear_primitive(
    "pyce_gradient", _gradient, lambda logits: (logits.shape, logits.dtype)
)


def _differentiate(
    primitive: Any, transpose: Any, derivative: Callable[[Any, Any, Any], Any]
) -> None:
    """`derivative` is that with respect to logits and target: (first, logits, g˙) -> tangent."""

    def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        first, logits, target = primals[:3]
        first_dot, logits_dot, target_dot = tangents[:3]
        result = primitive.bind(*primals)
        terms = []
        if _is_tangent(first_dot):
            terms.append(primitive.bind(first_dot, *primals[1:]))
        if _is_tangent(logits_dot) or _is_tangent(target_dot):
            gradient_dot = _gradient_dot(logits, target, logits_dot, target_dot)
            terms.append(derivative(first, logits, gradient_dot))
        return result, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(result)

    def transposed(cotangent: Any, first: Any, *others: Any) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(first.aval)] + [None] * len(others)
        return [transpose.bind(cotangent, *others)] + [None] * len(others)

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed


def _derivative_of_product(x_dot: Any, logits: Any, gradient_dot: Any) -> Any:
    return jnp.sum(gradient_dot * x_dot.astype(gradient_dot.dtype), axis=_CLASSES)


def _derivative_of_gradient(factors: Any, logits: Any, gradient_dot: Any) -> Any:
    return (jnp.expand_dims(factors, _CLASSES) * gradient_dot).astype(logits.dtype)


_differentiate(_product_p, _gradient_p, _derivative_of_product)
_differentiate(_gradient_p, _product_p, _derivative_of_gradient)
