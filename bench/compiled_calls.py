"""The time of small calls from code that Numba compiles, over that of the C function alone.

    PYTHONPATH=. python bench/compiled_calls.py

Three ways to compute loss and gradient of the same small batch in turn, in rounds: the C function
called by its address from a compiled loop, `pyce.cross_entropy_with_grad` in a compiled loop, and
the same called from Python. Medians of the rounds, in µs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numba
import numpy as np
from pyce._pyce import ffi, lib

import pyce
import pyce.numba

SHAPES = ((64, 10), (32, 3), (128, 1000))
ROUNDS = 41


def c_function() -> Callable[..., int]:
    """`pyce_cross_entropy_at` of csrc/pyce.h, as compiled code can call it."""
    size, integer, whole, real = ctypes.c_size_t, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    arguments: list[Any] = [integer] * 4 + [whole] * 3 + [size] * 4 + [real, whole, size, integer]
    address = int(ffi.cast("uintptr_t", ffi.addressof(lib, "pyce_cross_entropy_at")))
    return ctypes.CFUNCTYPE(integer, *arguments)(address)


FUNCTION = c_function()
OPERATION, DTYPE, REDUCTION = lib.PYCE_FORWARD_BACKWARD, lib.PYCE_FLOAT32, lib.PYCE_MEAN


@numba.njit
def alone(x, y, out, loss, n):  # type: ignore[no-untyped-def]
    for _ in range(n):
        FUNCTION(
            OPERATION,
            DTYPE,
            REDUCTION,
            1,
            x.shape[0],
            x.shape[1],
            1,
            x.ctypes.data,
            y.ctypes.data,
            0,
            out.ctypes.data,
            0.0,
            -100,
            loss.ctypes.data,
            DTYPE,
        )


@numba.njit
def compiled(x, y, out, loss, n):  # type: ignore[no-untyped-def]
    for _ in range(n):
        loss[0], _ = pyce.cross_entropy_with_grad(x, y, out=out)


def from_python(x, y, out, loss, n):  # type: ignore[no-untyped-def]
    for _ in range(n):
        loss[0], _ = pyce.cross_entropy_with_grad(x, y, out=out)


def main() -> None:
    pyce.set_num_threads(1)
    print("shape          C alone  compiled  beyond C  from Python   (µs)")
    for rows, classes in SHAPES:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, classes), dtype=np.float32)
        y = rng.integers(0, classes, rows)
        out, loss = np.empty_like(x), np.empty(1, np.float32)
        ways = (alone, compiled, from_python)
        losses = []
        for way in ways:
            way(x, y, out, loss, 1)
            losses.append(float(loss[0]))
        assert losses[0] == losses[1] == losses[2], losses
        calls = max(20, 400_000 // x.size)
        times: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            for way, found in zip(ways, times, strict=True):
                begin = perf_counter()
                way(x, y, out, loss, calls)
                found.append((perf_counter() - begin) / calls * 1e6)
        c, call, python = map(median, times)
        name = f"{rows}x{classes}"
        print(f"{name:12s} {c:9.3f} {call:9.3f} {call - c:9.3f} {python:12.3f}", flush=True)


if __name__ == "__main__":
    main()
