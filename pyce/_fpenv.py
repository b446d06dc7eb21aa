"""The floating-point environment of code that is not in C, which sets its own (csrc/fpenv.h).

Another library may have set flush-to-zero or another rounding mode in the calling thread, and the
caller what NumPy does after an overflow or underflow (`numpy.errstate`). Results must not depend on
that, and a call must not change the environment, sticky flags included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def _functions() -> tuple[Any, ...]:
    """fegetenv, fesetenv, the default environment, and what makes memory for another.

    Empty where the environment cannot be set.
    """
    import ctypes
    import sys

    # FE_DFL_ENV is −1 in the C libraries of Linux. On other systems the environment stays as it is.
    if not sys.platform.startswith("linux"):
        return ()
    for name in ("libm.so.6", None):  # None: the loaded libraries, where libm is part of libc
        try:
            library = ctypes.PyDLL(name)
            return library.fegetenv, library.fesetenv, ctypes.c_void_p(-1), ctypes.c_char * 256
        except (OSError, AttributeError):
            continue
    return ()


def default(function: Function) -> Function:
    """Decorator: run in the default environment, which rounds to nearest, keeps subnormals and has
    no traps, and restore the caller's. NumPy neither warns nor raises FloatingPointError inside.
    """

    @functools.wraps(function)
    def inside(*arguments: Any, **options: Any) -> Any:
        known = _functions()
        if not known:
            with np.errstate(all="ignore"):
                return function(*arguments, **options)
        get, set_, initial, memory = known
        before = memory()
        get(before)
        try:
            set_(initial)
            with np.errstate(all="ignore"):
                return function(*arguments, **options)
        finally:
            set_(before)

    return inside  # type: ignore[return-value]
