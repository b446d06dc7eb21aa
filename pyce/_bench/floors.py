"""The floor of an operation: the time to read the logits, or to copy them to the gradient.

No operation can be faster than its floor, which moves the same bytes and computes nothing.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

import pyce
from pyce._bench.calls import Call
from pyce._bench.workloads import HEAD_OPERATIONS, Array, Data, aligned

try:
    from pyce._pyce import ffi, lib
except ImportError:
    lib = None

FLOOR_OF = {"forward": "read", "fused": "copy", "backward": "copy"}
FLOOR_OF |= dict.fromkeys(HEAD_OPERATIONS, "product")  # see `head.floor`
# Bytes of the arrays that bandwidth is measured on: more than any cache holds.
_LARGE = 2**28


def floor(data: Data, operation: str) -> Call:
    """The fastest way to read the logits, or to copy them to the gradient, with pyce's threads.

    Without the C extension it is numpy.copyto, on one thread, for both.
    """
    if lib is None:
        return lambda: np.copyto(data.grad, data.logits)
    threads = pyce.get_num_threads()
    source, to = _address(data.logits), _address(data.grad)
    size = data.logits.nbytes
    if FLOOR_OF[operation] == "read":
        return lambda: lib.pyce_read(source, size, threads)
    copies: list[Call] = [
        lambda: lib.pyce_copy(to, source, size, 0, threads),
        lambda: lib.pyce_copy(to, source, size, 1, threads),  # with non-temporal stores
    ]
    for copy in copies:
        _checked(copy())
    return min(copies, key=lambda copy: shortest(copy, repeat=5))


def bandwidth() -> dict[str, float]:
    """Bytes per second of memory with pyce's threads: {"read": …, "copy": read and written}.

    Without the C extension only the copy, by NumPy on one thread.
    """
    source, to = (aligned((_LARGE,), np.dtype(np.uint8)) for _ in range(2))
    source.fill(1)
    to.fill(1)  # so that the pages of both exist
    if lib is None:
        return {"copy": 2 * _LARGE / shortest(lambda: np.copyto(to, source), repeat=5)}
    threads = pyce.get_num_threads()
    a, b = ffi.from_buffer(source), ffi.from_buffer(to)
    copy = min(
        shortest(lambda: _checked(lib.pyce_copy(b, a, _LARGE, 0, threads)), repeat=5),
        shortest(lambda: _checked(lib.pyce_copy(b, a, _LARGE, 1, threads)), repeat=5),
    )
    read = shortest(lambda: _checked(lib.pyce_read(a, _LARGE, threads)), repeat=5)
    return {"read": _LARGE / read, "copy": 2 * _LARGE / copy}


def shortest(call: Call, repeat: int = 1) -> float:
    """The shortest time of `repeat` calls, in seconds."""
    times = []
    for _ in range(repeat):
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return min(times)


def _checked(status: int) -> None:
    """Raise RuntimeError for an error: a call that returns at once must not be measured."""
    if status:
        raise RuntimeError(ffi.string(lib.pyce_status_text(status)).decode())


def _address(array: Array) -> Any:
    return ffi.from_buffer(array.reshape(-1).view(np.uint8))
