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

_TARGET = "pyce_cross_entropy"
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
    address = int(ffi.cast("uintptr_t", ffi.addressof(lib, "pyce_xla_cross_entropy")))
    handler = jax.ffi.pycapsule(ctypes.c_void_p(address))
    jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu", api_version=1)
    _threads.notify(_set_threads)


def _set_threads() -> None:
    """Tell the handler how many threads it may use: a compiled program calls it without Python."""
    lib.pyce_xla_set_threads(_threads.of_process())


def losses(logits: Any, target: Any) -> Any:
    """The losses of the rows.

    logits : (…, classes, inner)
    target : (…, inner) of int32 or int64, or (…, classes, inner) of a floating dtype
    """
    return _call([_like_losses(logits)], logits, target)[0]


def losses_and_gradient(logits: Any, target: Any, factors: Any) -> tuple[Any, Any]:
    """The losses and the gradient of Σ factor·loss; factors (…, inner) are of the losses' dtype."""
    loss, gradient = _call([_like_losses(logits), _like(logits)], logits, target, factors)
    return loss, gradient


def gradient(logits: Any, target: Any, factors: Any, saved: Any, guess: Any) -> Any:
    """That gradient; if the factors are `guess`, then `saved`, without being computed."""
    return _call([_like(logits)], logits, target, factors, saved, guess, aliases={3: 0})[0]


def _call(results: list[Any], *arguments: Any, aliases: dict[int, int] | None = None) -> list[Any]:
    _set_threads()
    run = jax.ffi.ffi_call(
        _TARGET, results, vmap_method="broadcast_all", input_output_aliases=aliases
    )
    return list(run(*arguments))


def _like(logits: Any) -> Any:
    return jax.ShapeDtypeStruct(logits.shape, logits.dtype)


def _like_losses(logits: Any) -> Any:
    return jax.ShapeDtypeStruct(rows(logits), loss_dtype(logits.dtype))


def rows(logits: Any) -> tuple[int, ...]:
    """The shape of logits (…, classes, inner) without the classes."""
    return (*logits.shape[:-2], logits.shape[-1])


def loss_dtype(dtype: Any) -> Any:
    """The dtype in which the losses of logits are computed."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


_register()
