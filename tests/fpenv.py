"""The calling thread's floating-point registers, by the C library's fegetenv and fesetenv."""

from __future__ import annotations

import ctypes
import gc
import platform
import struct
from contextlib import contextmanager

MACHINE = platform.machine()
# Format and offset of the registers in fenv_t of the C libraries of Linux.
PLACE = {"x86_64": ("<I", 28), "aarch64": ("<Q", 0)}.get(MACHINE)
KNOWN = PLACE is not None and platform.system() == "Linux"

if MACHINE == "aarch64":  # FPCR, and FPSR above it
    STATES = {
        "default": 0,
        "flush": 1 << 24,
        "upward": 1 << 22,
        "downward": 2 << 22,
        "toward zero, flush": 3 << 22 | 1 << 24,
        "flags": 0x9F << 32,
    }
else:  # MXCSR
    STATES = {
        "default": 0x1F80,
        "flush": 0x9FC0,
        "upward": 0x5F80,
        "downward": 0x3F80,
        "toward zero, flush": 0xFFC0,
        "flags": 0x1FBF,
    }

# The control bits: all but the flags.
CONTROL = 0xFFFFFFFF if MACHINE == "aarch64" else 0xFFC0

_memory = ctypes.create_string_buffer(256)
if KNOWN:
    try:
        _libm = ctypes.CDLL("libm.so.6")
    except OSError:  # where it is part of the C library
        _libm = ctypes.CDLL(None)


def get() -> int:
    """Control and status bits."""
    _libm.fegetenv(_memory)
    return struct.unpack_from(PLACE[0], _memory, PLACE[1])[0]


def put(word: int) -> None:
    _libm.fegetenv(_memory)
    struct.pack_into(PLACE[0], _memory, PLACE[1], word)
    _libm.fesetenv(_memory)


@contextmanager
def environment(word):
    """Run in an environment; leaves the default one.

    Meanwhile no garbage is collected: the end of what other tests have left may compute.
    """
    collecting = gc.isenabled()
    gc.disable()
    put(word)
    try:
        yield
    finally:
        put(STATES["default"])
        if collecting:
            gc.enable()
