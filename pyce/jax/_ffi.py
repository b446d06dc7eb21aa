"""The C handler as a foreign function of XLA: registered when this module is imported."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pyce import _threads

try:
    # The backend applies PYCE_ISA when it is imported.
    from pyce._backends import c as _c  # noqa: F401
    from pyce._pyce import ffi, lib
except ImportError as error:
    raise ImportError(
        "pyce.jax needs pyce's C extension, which could not be imported; pyce.info() says why. "
        "Without it, use Optax's functions"
    ) from error

# The names of the handlers in XLA, which are those of csrc/pyce.h without "xla".
_EXACT = "pyce_cross_entropy"
_SAVING = "pyce_cross_entropy_saving"
# The major version of XLA's interface that csrc/xla_ffi.h declares.
_MAJOR = 0


def check_version(header: str) -> None:
    """Raise ImportError if XLA's header `c_api.h` is of a version whose structures are unknown."""
    found = re.search(r"#define\s+XLA_FFI_API_MAJOR\s+(\d+)", header)
    if found and int(found[1]) != _MAJOR:
        raise ImportError(
            f"pyce.jax knows version {_MAJOR} of XLA's foreign function interface; this jaxlib has "
            f"version {found[1]}. Use another version of JAX, or Optax's functions"
        )


def _register() -> None:
    if not hasattr(jax, "ffi"):
        raise ImportError(f"pyce.jax needs jax.ffi, which JAX {jax.__version__} does not have")
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    if header.exists():
        check_version(header.read_text(encoding="utf-8"))
    for name in (_EXACT, _SAVING):
        function = ffi.addressof(lib, name.replace("pyce", "pyce_xla"))
        handler = jax.ffi.pycapsule(ctypes.c_void_p(int(ffi.cast("uintptr_t", function))))
        jax.ffi.register_ffi_target(name, handler, platform="cpu", api_version=1)
    _threads.notify(_set_threads)


def _set_threads() -> None:
    """Tell the handler how many threads it may use: a compiled program calls it without Python."""
    lib.pyce_xla_set_threads(_threads.of_process())


def losses(logits: Any, target: Any, axis: int) -> Any:
    """The losses of the rows, of the logits' shape with one class.

    logits : (…, classes), and axis −1; or (…, classes, inner), and axis −2. XLA copies bfloat16
             logits (…, classes, 1), but not (…, classes)
    target : labels of int32 or int64 of the logits' shape with one class, or probabilities of the
             logits' shape
    """
    return _call(_EXACT, [_like_losses(logits, axis)], logits, target)[0]


def losses_and_gradient(logits: Any, target: Any, factors: Any, axis: int) -> tuple[Any, Any]:
    """The losses and the gradient of Σ factor·loss; factors are like the losses."""
    results = [_like_losses(logits, axis), _like(logits)]
    loss, gradient = _call(_EXACT, results, logits, target, factors)
    return loss, gradient


def losses_and_saved(logits: Any, target: Any, guess: Any, axis: int) -> tuple[Any, Any, Any]:
    """The losses, and what `gradient` is to be given as `saved` and `used`.

    They are the gradient for the factors `guess`, and these. After wrong guesses at logits of this
    shape, they are memory that was not written, and −guess. The guess is that of a mean: the same
    for all rows, and not negative.
    """
    if jax.config.jax_debug_nans or jax.config.jax_debug_infs:  # such memory may have NaNs
        return *losses_and_gradient(logits, target, guess, axis), guess
    results = [_like_losses(logits, axis), _like(logits), _like_losses(logits, axis)]
    loss, saved, used = _call(_SAVING, results, logits, target, guess)
    return loss, saved, used


def gradient(logits: Any, target: Any, factors: Any, saved: Any, used: Any) -> Any:
    """The gradient of Σ factor·loss; if the factors are `used`, it is `saved`."""
    results, arguments = [_like(logits)], (logits, target, factors, saved, used)
    return _call(_EXACT, results, *arguments, aliases={3: 0})[0]


def _call(
    name: str, results: list[Any], *arguments: Any, aliases: dict[int, int] | None = None
) -> list[Any]:
    _set_threads()
    run = jax.ffi.ffi_call(name, results, input_output_aliases=aliases)
    arguments = varying_alike(*arguments)
    return [varying_alike(result, arguments[0])[0] for result in run(*arguments)]


def varying_alike(*arrays: Any) -> tuple[Any, ...]:
    """Arrays that `jax.shard_map` knows to vary over the same axes of the mesh.

    It requires that of the arguments of a foreign function, and some versions of JAX do not know it
    of the results.
    """
    axes = frozenset().union(*map(_varying, arrays))
    return tuple(_vary(array, tuple(axes - _varying(array))) for array in arrays)


def _varying(array: Any) -> frozenset[Any]:
    if not isinstance(array, jax.core.Tracer):
        return frozenset()
    kind = jax.typeof(array)
    kind = getattr(kind, "manual_axis_type", kind)  # since JAX 0.10
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))


def _vary(array: Any, axes: tuple[Any, ...]) -> Any:
    if not axes:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)


def spec(kind: Any) -> tuple[Any, ...]:
    """How a mesh with explicit axes divides arrays of the type; () if there is none."""
    sharding = getattr(kind, "sharding", None)
    found = tuple(getattr(sharding, "spec", ()))
    # The first versions of JAX that have such meshes divide no array again.
    known = hasattr(jax.sharding, "reshard") and any(part is not None for part in found)
    return found if known else ()


def divided(array: Any, parts: tuple[Any, ...]) -> Any:
    """The array, divided as `spec` says; axes of size 1 are not."""
    found = spec(jax.typeof(array))
    if not found and not any(parts):
        return array
    parts = parts or (None,) * len(found)
    parts = tuple(None if n == 1 else part for n, part in zip(array.shape, parts, strict=True))
    if parts == found:
        return array
    return jax.sharding.reshard(array, jax.sharding.PartitionSpec(*parts))


def _like(logits: Any) -> Any:
    return jax.ShapeDtypeStruct(logits.shape, logits.dtype)


def _like_losses(logits: Any, axis: int) -> Any:
    return jax.ShapeDtypeStruct(rows(logits, axis), loss_dtype(logits.dtype))


def rows(logits: Any, axis: int) -> tuple[int, ...]:
    """The shape of the logits with one class."""
    shape = list(logits.shape)
    shape[axis] = 1
    return tuple(shape)


def loss_dtype(dtype: Any) -> Any:
    """The dtype in which the losses of logits are computed."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


_register()
