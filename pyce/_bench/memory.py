"""The memory that a call adds to the process while it runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


def added(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result of a call, and the bytes by which its peak exceeds the memory before it.

    The bytes include those of a result that is newly allocated. They are None on systems other than
    Linux, and where the peak cannot be reset.
    """
    _give_back()
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _status("VmRSS")
    except (OSError, KeyError):
        return call(), None
    result = call()
    return result, max(0, _status("VmHWM") - before)


def _give_back() -> None:
    """Return freed memory to the system, where glibc does; else a call would seem to reuse it."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise KeyError(field)
