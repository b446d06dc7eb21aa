"""The losses of rows as a function that JAX differentiates, in both modes, any number of times.

With p = softmax(x), S = Σ t, the gradient g = S p − t of a row's loss and a dot for tangents:

    loss˙ = Σ_c g_c x˙_c − Σ_c t˙_c log p_c
    g˙    = S p (x˙ − Σ_c p_c x˙_c) + p Σ_c t˙_c − t˙

All of these are primitives with rules of their own. The rule of a `jax.custom_jvp` function does
not reach second derivatives of a loop: the backward pass of `lax.scan` moves what is the same in
each iteration out of the loop, and JAX drops such rules then. A foreign function has none.

Two primitives are linear in their first argument, and each is the transpose of the other: `product`
maps x˙ to Σ_c g_c x˙_c, and `gradient` maps the cotangent of the losses to their product with g,
which in reverse JAX calls with the cotangent. C applies it before rounding.

The forward pass guesses that the cotangent will be that of a mean over all rows, and computes the
gradient for it together with the losses: `saved`, and the guess as `used`. If the guess is right,
`gradient` returns `saved`, in the same memory. If it is wrong, C computes the gradient from the
logits. Both have the same bytes, so to JAX `saved` and `used` are arguments that no result depends
on, and their tangents are not followed. After wrong guesses, C leaves the gradient out of the
forward pass, and `used` says so. The other terms, and the derivatives of the primitives, are
written in JAX.

Logits are (…, classes), and `axis` is −1; or (…, classes, inner), and `axis` is −2. Numbers of rows
have the shape of the logits with one class. A mesh with explicit axes may divide the rows, not the
classes. XLA returns the results of a foreign function undivided, so outside of `jax.jit` they are
divided as their types say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pyce.jax import _ffi


def losses(logits: Any, target: Any, axis: int) -> Any:
    """The losses of the rows, in float64 for float64 logits and else in float32.

    `target` are labels of int32 or int64, or probabilities of the logits' shape. Under
    `jax.shard_map`, logits and target vary over the same axes of the mesh.
    """
    return _losses_p.bind(logits, target, axis=axis)[0]


def _is_tangent(tangent: Any) -> bool:
    """Whether a tangent has to be followed: it is not known to be 0, nor that of integers."""
    return not isinstance(tangent, ad.Zero) and tangent.dtype != jax.dtypes.float0


def _zero(value: Any) -> Any:
    return ad.Zero(jax.typeof(value))


# -- the primitives --------------------------------------------------------------------------------


def _losses(logits: Any, target: Any, axis: int) -> tuple[Any]:
    """The losses of the rows"""
    return (_ffi.losses(logits, target, axis),)


def _losses_and_saved(logits: Any, target: Any, guess: Any, axis: int) -> tuple[Any, Any, Any]:
    """The losses, `saved` and `used`"""
    return _ffi.losses_and_saved(logits, target, guess, axis)


def _product(x_dot: Any, logits: Any, target: Any, saved: Any, used: Any, axis: int) -> Any:
    """Σ_c g_c x˙_c"""
    wide = logits.astype(used.dtype)
    _, gradient = _ffi.losses_and_gradient(wide, target, jnp.ones_like(used), axis)
    return jnp.sum(gradient * x_dot.astype(used.dtype), axis, keepdims=True)


def _gradient(factors: Any, logits: Any, target: Any, saved: Any, used: Any, axis: int) -> Any:
    """factor · g, of the logits' dtype"""
    return _ffi.gradient(logits, target, factors, saved, used)


def _gradient_dot(logits: Any, target: Any, logits_dot: Any, target_dot: Any, axis: int) -> Any:
    """g˙, of the dtype of the losses"""

    def total(x: Any) -> Any:
        return jnp.sum(x, axis, keepdims=True)

    x = logits.astype(_ffi.loss_dtype(logits.dtype))
    p = jax.nn.softmax(x, axis)
    result = jnp.zeros_like(p)
    if _is_tangent(logits_dot):
        x_dot = logits_dot.astype(p.dtype)
        result += p * (x_dot - total(p * x_dot))
        if jnp.issubdtype(target.dtype, jnp.floating):
            result *= total(target.astype(p.dtype))
    if _is_tangent(target_dot):
        t_dot = target_dot.astype(p.dtype)
        result += p * total(t_dot) - t_dot
    return result


def _primitive(name: str, types: Callable[..., Any]) -> Any:
    """A primitive; `types` gives the types of its results from those of the arguments."""
    made = Primitive(name)

    def abstract(*arguments: Any, axis: int) -> Any:
        return types(*(x.update(weak_type=False) for x in arguments), axis=axis)

    def batched(arguments: tuple[Any, ...], axes: tuple[Any, ...], *, axis: int) -> Any:
        pairs = list(zip(arguments, axes, strict=True))
        size = next(x.shape[a] for x, a in pairs if a is not None)
        arguments = tuple(batching.bdim_at_front(x, a, size) for x, a in pairs)
        results = made.bind(*arguments, axis=axis)
        return results, [0] * len(results) if made.multiple_results else 0

    made.def_abstract_eval(abstract)
    batching.primitive_batchers[made] = batched
    return made


def _primitive_of_losses(
    name: str, function: Callable[..., Any], types: Callable[..., list[Any]]
) -> Any:
    made = _primitive(name, types)
    made.multiple_results = True

    # Not compiled: a call outside of `jax.jit` may use as many threads as pyce may at that time.
    def run(*arguments: Any, axis: int) -> list[Any]:
        results = function(*arguments, axis=axis)
        wanted = types(*map(jax.typeof, arguments), axis=axis)
        return [_ffi.divided(r, _ffi.spec(w)) for r, w in zip(results, wanted, strict=True)]

    made.def_impl(run)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=True))
    return made


def _linear_primitive(name: str, function: Callable[..., Any], like: int) -> Any:
    """A primitive whose result has the type of the argument number `like`."""
    made = _primitive(name, lambda *arguments, axis: arguments[like])
    compiled = jax.jit(function, static_argnames="axis")

    def run(*arguments: Any, axis: int) -> Any:
        return _ffi.divided(compiled(*arguments, axis=axis), _ffi.spec(jax.typeof(arguments[like])))

    made.def_impl(run)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


def _type_of_losses(logits: Any, axis: int) -> Any:
    return logits.update(shape=_ffi.rows(logits, axis), dtype=_ffi.loss_dtype(logits.dtype))


_losses_p = _primitive_of_losses(
    "pyce_losses", _losses, lambda logits, target, axis: [_type_of_losses(logits, axis)]
)
_losses_and_saved_p = _primitive_of_losses(
    "pyce_losses_and_saved",
    _losses_and_saved,
    lambda logits, target, guess, axis: [_type_of_losses(logits, axis), logits, guess],
)
_product_p = _linear_primitive("pyce_product", _product, like=4)
_gradient_p = _linear_primitive("pyce_gradient", _gradient, like=1)


def _losses_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, axis: int) -> Any:
    logits, target = primals
    saved = used = None
    if _is_tangent(tangents[0]):
        shape = _ffi.rows(logits, axis)
        size = math.prod(shape)  # may be a symbol of `jax.export`, which has no maximum with 1
        # The losses that JAX averages have been rounded to the dtype of the logits.
        guess = jnp.full(shape, 1 / (1 if size == 0 else size), logits.dtype)
        guess = guess.astype(_ffi.loss_dtype(logits.dtype))
        guess = _ffi.divided(guess, _ffi.spec(_type_of_losses(jax.typeof(logits), axis)))
        guess = _ffi.varying_alike(guess, logits)[0]
        loss, saved, used = _losses_and_saved_p.bind(logits, target, guess, axis=axis)
    else:
        loss = losses(logits, target, axis)
    return [loss], [_losses_dot(loss, logits, target, saved, used, tangents, axis)]


def _losses_and_saved_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, axis: int) -> Any:
    logits, target, _ = primals
    loss, saved, used = _losses_and_saved_p.bind(*primals, axis=axis)
    loss_dot = _losses_dot(loss, logits, target, saved, used, tangents, axis)
    return [loss, saved, used], [loss_dot, _zero(saved), _zero(used)]


def _losses_dot(
    loss: Any,
    logits: Any,
    target: Any,
    saved: Any,
    used: Any,
    tangents: tuple[Any, ...],
    axis: int,
) -> Any:
    logits_dot, target_dot = tangents[:2]
    terms = []
    if _is_tangent(logits_dot):
        terms.append(_product_p.bind(logits_dot, logits, target, saved, used, axis=axis))
    if _is_tangent(target_dot):
        log_p = jax.nn.log_softmax(logits.astype(loss.dtype), axis)
        # Finite: a class with the logit −inf, as masked ones have, adds 0 if its tangent is 0.
        log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
        terms.append(-jnp.sum(log_p * target_dot.astype(loss.dtype), axis, keepdims=True))
    return sum(terms[1:], terms[0]) if terms else _zero(loss)


ad.primitive_jvps[_losses_p] = _losses_jvp
ad.primitive_jvps[_losses_and_saved_p] = _losses_and_saved_jvp


def _differentiate(
    primitive: Any, transpose: Any, derivative: Callable[[Any, Any, Any, int], Any]
) -> None:
    """`derivative` is that with respect to logits and target: (first, logits, g˙) -> tangent."""

    def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, axis: int) -> tuple[Any, Any]:
        first, logits, target = primals[:3]
        first_dot, logits_dot, target_dot = tangents[:3]
        result = primitive.bind(*primals, axis=axis)
        terms = []
        if _is_tangent(first_dot):
            terms.append(primitive.bind(first_dot, *primals[1:], axis=axis))
        if _is_tangent(logits_dot) or _is_tangent(target_dot):
            gradient_dot = _gradient_dot(logits, target, logits_dot, target_dot, axis)
            terms.append(derivative(first, logits, gradient_dot, axis))
        return result, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(result)

    def transposed(cotangent: Any, first: Any, *others: Any, axis: int) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(first.aval)] + [None] * len(others)
        return [transpose.bind(cotangent, *others, axis=axis)] + [None] * len(others)

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed


def _derivative_of_product(x_dot: Any, logits: Any, gradient_dot: Any, axis: int) -> Any:
    return jnp.sum(gradient_dot * x_dot.astype(gradient_dot.dtype), axis, keepdims=True)


def _derivative_of_gradient(factors: Any, logits: Any, gradient_dot: Any, axis: int) -> Any:
    return (factors * gradient_dot).astype(logits.dtype)


_differentiate(_product_p, _gradient_p, _derivative_of_product)
_differentiate(_gradient_p, _product_p, _derivative_of_gradient)
