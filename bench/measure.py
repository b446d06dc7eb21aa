"""How things are measured: the calls, their floors, and how often to repeat them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import pyce
from bench.workloads import Array, Data

try:
    from pyce._pyce import ffi, lib
except ImportError:
    lib = None

OPERATIONS = ("forward", "fused", "backward")
# What an operation can't be faster than: reading the logits, or copying them to the gradient.
FLOOR_OF = {"forward": "read", "fused": "copy", "backward": "copy"}
RESULTS = Path(__file__).parent / "results"

Call = Callable[[], Any]


def operation(data: Data, name: str) -> Call:
    """A call that computes the named operation on the backend selected when it is called."""
    x, target, out, options = data.logits, data.target, data.grad, data.options
    if name == "forward":
        return lambda: pyce.cross_entropy(x, target, **options)
    if name == "fused":
        return lambda: pyce.cross_entropy_with_grad(x, target, out=out, **options)
    _, lse = pyce.cross_entropy(x, target, return_lse=True, **options)
    return lambda: pyce.cross_entropy_backward(1.0, x, target, lse, out=out, **options)


def bytes_moved(data: Data, name: str) -> int:
    """Bytes that the named operation, or floor, must read and write once."""
    once = data.logits.nbytes
    if name in ("read", "copy"):
        return once if name == "read" else 2 * once
    rows = data.logits.size // data.workload.shape[data.workload.axis]
    return (
        once * (1 if name == "forward" else 2)
        + data.target.nbytes
        + (8 * rows if name == "backward" else 0)
    )


def floors(data: Data, name: str) -> dict[str, Call]:
    """The ways to read the logits, or to copy them to the gradient, with pyce's threads.

    Without the C extension there is only numpy.copyto, on one thread, for both.
    """
    if lib is None:
        return {"numpy.copyto": lambda: np.copyto(data.grad, data.logits)}
    threads = pyce.get_num_threads()
    source, to = _address(data.logits), _address(data.grad)
    size = data.logits.nbytes
    if name == "read":
        return {"read": lambda: lib.pyce_read(source, size, threads)}
    return {
        "memcpy": lambda: lib.pyce_copy(to, source, size, 0, threads),
        "streaming copy": lambda: lib.pyce_copy(to, source, size, 1, threads),
    }


def floor(data: Data, name: str) -> tuple[str, Call]:
    """The fastest of `floors`: how it is done, and the call."""
    return min(floors(data, name).items(), key=lambda item: seconds(item[1], repeat=5))


def _address(array: Array) -> Any:
    return ffi.from_buffer(array.reshape(-1).view(np.uint8))


def seconds(call: Call, repeat: int = 1) -> float:
    """The shortest of a few calls."""
    times = []
    for _ in range(repeat):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def iterations(time: float) -> int:
    """How many calls of `time` seconds to measure as one: 100 µs, far above the clock's step."""
    return max(1, round(1e-4 / max(time, 1e-8)))


def rounds(budget: float, time: float) -> int:
    """How often to measure what takes `time`: 3 to 100 times within the budget; slow calls once."""
    return 1 if time > budget else max(3, min(100, int(budget / time)))


def readable(time: float) -> str:
    """A time in seconds with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if time >= size:
            return f"{time / size:.3g} {unit}"
    return f"{time / 1e-6:.3g} µs"


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, threads, instruction set, compiler."""
    info = pyce.info()
    processor = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return {"processor": processor, **{k: info[k] for k in ("threads", "isa", "compiler")}}
