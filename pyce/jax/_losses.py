"""The public functions: arguments, axes and masks, as Optax has them."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from pyce.jax._autodiff import losses
from pyce.jax._ffi import divided, spec, varying_alike

# The dtypes of logits, and of probabilities that are read without a conversion.
_FLOATS = ("float32", "float64", "bfloat16", "float16")
_LARGEST = 2**31 - 1


def softmax_cross_entropy_with_integer_labels(
    logits: Any,
    labels: Any,
    axis: int | tuple[int, ...] = -1,
    where: Any = None,
) -> jax.Array:
    """`optax.losses.softmax_cross_entropy_with_integer_labels` on pyce's kernels.

    The loss of a row is lse − x_y, with lse = log Σ_c exp(x_c) and y the label.

    Parameters
    ----------
    logits : array_like
        Logits x of any shape with at least one axis; float32, float64, bfloat16 or float16.
    labels : array_like
        Class indices of any integer dtype, shaped like `logits` without `axis`. −C to −1 count from
        the last of the C classes, as indices of JAX do. A row with any other label outside 0…C−1
        has the loss NaN and the gradient softmax(x), as in Optax.
    axis : int or tuple of int
        The class axis. With several axes, a label is the index into them flattened in this order.
    where : array_like, optional
        Booleans with as many dimensions as `logits` that broadcast to its shape, or of the shape of
        `labels`, or one boolean. Logits where it is False are left out of lse, but x_y is included
        all the same. A row without any logits has loss 0.

    Returns
    -------
    jax.Array
        The loss of each row in nats, shaped like `labels`, with the dtype of `logits`. It is
        differentiable with respect to `logits`, forward and in reverse, any number of times.

    Raises
    ------
    TypeError
        If `logits` or `labels` have another dtype, or `axis` is neither an integer nor a tuple.
    ValueError
        If shapes do not match, an axis is out of range or repeated, or there are no classes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import pyce.jax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([0, 1])
    >>> with jnp.printoptions(precision=4):
    ...     print(pyce.jax.softmax_cross_entropy_with_integer_labels(logits, labels))
    [0.2761 2.9518]
    """
    x = _logits(logits)
    y = jnp.asarray(labels)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        advice = ": softmax_cross_entropy takes probabilities" if y.shape == x.shape else ""
        raise TypeError(f"labels must have an integer dtype, got {y.dtype}{advice}")
    axes = _axes(axis, x.ndim)
    batch = _batch(x.shape, axes)
    if y.shape != batch:
        advice = ": softmax_cross_entropy takes one-hot rows" if y.shape == x.shape else ""
        raise ValueError(
            f"labels must have the shape {batch}, that of logits {x.shape} without axis {axis}, "
            f"got {y.shape}{advice}"
        )
    shape, class_axis = _folded_shape(x.shape, axes)
    y = jnp.expand_dims(_as_int32_or_int64(y, shape[class_axis]), tuple(sorted(axes)))
    x = _with_whole_rows(x, axes)
    y = _fold(_divided_alike(y, x), axes)
    x, y = varying_alike(x, y)
    if where is None:
        return losses(_fold(x, axes), y, class_axis).reshape(batch).astype(x.dtype)
    mask = _mask(where, x, axes)
    if _is_of_rows(mask, axes):
        loss = losses(_fold(x, axes), y, class_axis).reshape(batch).astype(x.dtype)
        return jnp.where(jnp.all(mask, axis=axes), loss, 0)
    mask = _fold(jnp.broadcast_to(mask, x.shape), axes)
    folded = _fold(x, axes)
    some = jnp.any(mask, class_axis, keepdims=True)
    masked = _without(folded, mask, some)
    loss = losses(masked, y, class_axis)
    usual = jnp.take_along_axis(mask, y, class_axis) | ~some

    def with_excluded_labels() -> jax.Array:
        wide, wide_masked = folded.astype(loss.dtype), masked.astype(loss.dtype)
        x_y = jnp.take_along_axis(wide, y, class_axis)
        lse = jax.nn.logsumexp(wide_masked, class_axis, keepdims=True)
        return jnp.where(usual, loss, lse - x_y)

    loss = jax.lax.cond(jnp.all(usual), lambda: loss, with_excluded_labels)
    return jnp.where(some, loss, 0).reshape(batch).astype(x.dtype)


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    axis: int | tuple[int, ...] | None = -1,
    where: Any = None,
) -> jax.Array:
    """`optax.losses.softmax_cross_entropy` on pyce's kernels.

    The loss of a row is Σ_c t_c · (lse − x_c), with lse = log Σ_c exp(x_c) and the probabilities t.
    A class with t_c = 0 counts 0, also where x_c is −inf.

    Parameters
    ----------
    logits : array_like
        Logits x of any shape with at least one axis; float32, float64, bfloat16 or float16.
    labels : array_like
        Probabilities t of a floating, integer or boolean dtype that broadcast to the shape of
        `logits`. They need not sum to 1.
    axis : int, tuple of int, or None
        The class axis or axes; None for all axes.
    where : array_like, optional
        Booleans with as many dimensions as `logits` that broadcast to its shape, or of its shape
        without `axis`, or one boolean. Elements where it is False are left out of both sums. A row
        without any elements has loss 0.

    Returns
    -------
    jax.Array
        The loss of each row in nats, of the shape of `logits` without `axis`, with the dtype to
        which those of `logits` and `labels` are promoted. It is differentiable with respect to
        `logits` and `labels`, forward and in reverse, any number of times.

    Raises
    ------
    TypeError
        If `logits` or `labels` have another dtype, or `axis` is no integer, tuple or None.
    ValueError
        If shapes do not match, an axis is out of range or repeated, or there are no classes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import pyce.jax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> with jnp.printoptions(precision=4):
    ...     print(pyce.jax.softmax_cross_entropy(logits, labels))
    [0.2761 2.9518]
    """
    x = _logits(logits)
    t = jnp.asarray(labels)
    if jnp.issubdtype(t.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be probabilities of a real dtype, got {t.dtype}")
    dtype = jnp.result_type(x, t)
    if t.dtype.name not in _FLOATS:
        t = t.astype(x.dtype)
    axes = tuple(range(x.ndim)) if axis is None else tuple(sorted(_axes(axis, x.ndim)))
    if t.shape != x.shape:
        advice = ": softmax_cross_entropy_with_integer_labels takes class indices"
        t = _broadcast("labels", t, x.shape, advice if t.shape == _batch(x.shape, axes) else "")
    batch = _batch(x.shape, axes)
    class_axis = _folded_shape(x.shape, axes)[1]
    x = _with_whole_rows(x, axes)
    x, t = varying_alike(x, _divided_alike(t, x))
    if where is None:
        return losses(_fold(x, axes), _fold(t, axes), class_axis).reshape(batch).astype(dtype)
    mask = _mask(where, x, axes)
    some = jnp.any(mask, axis=axes)
    if not _is_of_rows(mask, axes):
        x = _without(x, mask, jnp.expand_dims(some, axes))
        t = jnp.where(mask, t, 0)
    loss = losses(_fold(x, axes), _fold(t, axes), class_axis).reshape(batch).astype(dtype)
    return jnp.where(some, loss, 0)


def _logits(logits: Any) -> jax.Array:
    x = jnp.asarray(logits)
    if x.dtype.name not in _FLOATS:
        raise TypeError(f"logits must be {', '.join(_FLOATS[:-1])} or float16, got {x.dtype}")
    return x


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The class axes as non-negative integers."""
    given = axis if isinstance(axis, tuple) else (axis,)
    try:
        numbers = [operator.index(a) for a in given]
    except TypeError:
        raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}") from None
    for number in numbers:
        if not -ndim <= number < ndim:
            raise ValueError(f"axis {number} is out of range for logits of {ndim} dimensions")
    axes = tuple(number % ndim for number in numbers)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis {axis} contains an axis twice")
    return axes


def _with_whole_rows(logits: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The logits, each row on one device, where a mesh with explicit axes divides the classes.

    A foreign function is called with whole rows, and JAX requires that the program says so.
    """
    parts = spec(jax.typeof(logits))
    return divided(logits, tuple(None if a in axes else part for a, part in enumerate(parts)))


def _divided_alike(array: jax.Array, logits: jax.Array) -> jax.Array:
    """An array that broadcasts to the logits, on the same devices of a mesh with explicit axes."""
    return divided(array, spec(jax.typeof(logits)))


def _batch(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the class axes."""
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def _are_adjacent(axes: tuple[int, ...]) -> bool:
    return len(axes) > 0 and axes == tuple(range(axes[0], axes[0] + len(axes)))


def _folded_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The shape of folded logits, (…, classes) or (…, classes, inner), and their class axis.

    Class axes are moved to the end unless they are adjacent and in order.
    """
    classes = math.prod(shape[a] for a in axes)
    if classes < 1:
        raise ValueError(f"logits of the shape {shape} have no classes along axis {axes}")
    if not _are_adjacent(axes):
        return (*_batch(shape, axes), classes), -1
    inner = math.prod(shape[axes[-1] + 1 :])
    if inner == 1:
        return (*shape[: axes[0]], classes), -1
    return (*shape[: axes[0]], classes, inner), -2


def _fold(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array of the logits' shape, or of that shape with class axes of size 1, folded like it."""
    shape = _folded_shape(array.shape, axes)[0]
    if not _are_adjacent(axes):
        batch = tuple(a for a in range(array.ndim) if a not in axes)
        array = array.transpose(batch + axes)
    return array.reshape(shape)


def _as_int32_or_int64(labels: jax.Array, classes: int) -> jax.Array:
    if labels.dtype.name in ("int32", "int64"):
        return labels
    if labels.dtype.name in ("uint32", "uint64"):  # what exceeds int32 remains out of range
        labels = jnp.minimum(labels, jnp.asarray(min(classes, _LARGEST), labels.dtype))
    return labels.astype(jnp.int32)


def _mask(where: Any, logits: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`where` with as many dimensions as the logits."""
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got {mask.dtype}")
    given = mask.shape
    if mask.ndim == 0:
        mask = jnp.broadcast_to(mask, (1,) * logits.ndim)
    elif mask.ndim == logits.ndim - len(axes):
        mask = jnp.expand_dims(mask, axes)
    if mask.ndim == logits.ndim:
        # A mask of rows keeps its size of 1 along the class axes.
        rows = _is_of_rows(mask, axes)
        shape = tuple(1 if rows and a in axes else n for a, n in enumerate(logits.shape))
        if all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
            return _divided_alike(jnp.broadcast_to(mask, shape), logits)
    raise ValueError(
        f"where must broadcast to the shape {logits.shape} of the logits, or have that shape "
        f"without the class axes, got {given}"
    )


def _without(logits: jax.Array, mask: jax.Array, some: jax.Array) -> jax.Array:
    """Logits of −inf where the mask is False, and of 0 in rows without any others.

    The losses of those rows are not used. With −inf only, their derivatives would be NaN.
    """
    return jnp.where(mask, logits, jnp.where(some, -jnp.inf, 0).astype(logits.dtype))


def _is_of_rows(mask: jax.Array, axes: tuple[int, ...]) -> bool:
    return all(mask.shape[a] == 1 for a in axes)


def _broadcast(name: str, array: jax.Array, shape: tuple[int, ...], advice: str = "") -> jax.Array:
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape {shape} of the logits, got {array.shape}{advice}"
        ) from None
