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
    # Compiled programs call the handler without Python, which cannot ask for the budget then.
    _threads.notify(lambda: lib.pyce_xla_set_threads(_threads.budget()))


def call(logits: Any, target: Any, gradient: bool) -> list[Any]:
    """The losses of the rows, and with `gradient` the gradient of their sum.

    logits : (…, classes, inner)
    target : (…, inner) of int32 or int64, or (…, classes, inner) of a floating dtype
    """
    rows = (*logits.shape[:-2], logits.shape[-1])
    results = [jax.ShapeDtypeStruct(rows, loss_dtype(logits.dtype))]
    if gradient:
        results.append(jax.ShapeDtypeStruct(logits.shape, logits.dtype))
    run = jax.ffi.ffi_call(_TARGET, results, vmap_method="broadcast_all")
    return list(run(logits, target))


def loss_dtype(dtype: Any) -> Any:
    """The dtype in which the losses of logits are computed."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


_register()
