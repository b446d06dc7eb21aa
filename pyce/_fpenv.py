"""The floating-point environment of what is not computed in C, which has its own (csrc/fpenv.h).

Another library may have set flush-to-zero or another rounding mode in the calling thread. Results
must not depend on that, and what is done here must leave no trace, sticky flags included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def _functions() -> tuple[Callable[..., Any], ...]:
    """fegetenv, fesetenv, what stands for the default environment, and memory for another."""
    import ctypes
    import sys

    # FE_DFL_ENV is −1 in the C libraries of Linux; elsewhere it is taken as found.
    if not sys.platform.startswith("linux"):
        return ()
    for name in ("libm.so.6", None):  # None: what is loaded, where libm is part of libc
        try:
            library = ctypes.PyDLL(name)
            default = functools.partial(ctypes.c_void_p, -1)
            memory = functools.partial(ctypes.create_string_buffer, 256)
            return library.fegetenv, library.fesetenv, default, memory
        except (OSError, AttributeError):
            continue
    return ()


def default(function: Function) -> Function:
    """`function`, run in the default environment: rounds to nearest, keeps subnormals, no traps."""

    @functools.wraps(function)
    def inside(*arguments: Any, **options: Any) -> Any:
        known = _functions()
        if not known:
            return function(*arguments, **options)
        get, set_, initial, memory = known
        before = memory()
        get(before)
        try:
            set_(initial())
            return function(*arguments, **options)
        finally:
            set_(before)

    return inside  # type: ignore[return-value]
