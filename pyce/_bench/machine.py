"""What the figures were measured on: a fingerprint that says which machines can be compared."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pyce
from pyce._bench.measure import done, seconds

try:
    from pyce._pyce import ffi, lib
except ImportError:
    lib = None

# Whose versions may explain a difference.
_LIBRARIES = ("numpy", "numba", "llvmlite", "torch", "jax", "optax", "scikit-learn")
# Bytes that no cache of a processor of today holds.
_LARGE = 2**28


def fingerprint(bandwidth: bool = True) -> dict[str, Any]:
    """The machine and what runs on it.

    kind         what baselines are kept by: processor, logical processors, last cache, instruction
                 set, threads. Figures of different kinds are not compared.
    processor    the model's name
    processors   logical ones that this process may use
    caches       {"L1d": bytes, "L2": …, "L3": …} of the first processor
    bandwidth    {"read": bytes/s, "copy": bytes read and written/s}, measured now, past the caches;
                 not without `bandwidth`
    isa, threads, compiler, pyce    of `pyce.info()`
    system       operating system and architecture
    versions     of Python and the libraries that are installed
    """
    info = pyce.info()
    about: dict[str, Any] = {
        "processor": processor(),
        "processors": processors(),
        "caches": caches(),
        "isa": info["isa"],
        "threads": info["threads"],
        "compiler": info["compiler"],
        "pyce": info["version"],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
    if bandwidth:
        about["bandwidth"] = measure_bandwidth()
    return {"kind": kind(about), **about}


def kind(about: dict[str, Any]) -> str:
    """A short name that can be part of a file's."""
    last = max(about["caches"].values(), default=0) // 2**20
    parts = (
        about["processor"],
        about["system"],
        f"{about['processors']} processors",
        f"{last} MiB",
        about["isa"] or "no C",
        f"{about['threads']} threads",
    )
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def caches() -> dict[str, int]:
    """Bytes of the first processor's caches for data, by level; empty where Linux does not say."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, of, size = ((index / name).read_text().strip() for name in _CACHE)
        except OSError:
            continue
        if of != "Instruction" and size.endswith("K"):
            found[f"L{level}" + ("d" if of == "Data" else "")] = int(size[:-1]) * 1024
    return found


_CACHE = ("level", "type", "size")


def measure_bandwidth() -> dict[str, float]:
    """Of memory: bytes a second that pyce's threads read, and read and write in a copy.

    Without the C extension a copy by NumPy, on one thread.
    """
    source, to = _aligned(_LARGE), _aligned(_LARGE)
    if lib is None:
        return {"copy": 2 * _LARGE / seconds(lambda: np.copyto(to, source), repeat=5)}
    threads = pyce.get_num_threads()
    a, b = ffi.from_buffer(source), ffi.from_buffer(to)
    copy = min(
        seconds(lambda: done(lib.pyce_copy(b, a, _LARGE, 0, threads)), repeat=5),
        seconds(lambda: done(lib.pyce_copy(b, a, _LARGE, 1, threads)), repeat=5),
    )
    return {
        "read": _LARGE / seconds(lambda: done(lib.pyce_read(a, _LARGE, threads)), repeat=5),
        "copy": 2 * _LARGE / copy,
    }


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """Ones, from a multiple of 64 bytes on: a copy past the caches refuses any other memory."""
    memory = np.ones(size + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    aligned: npt.NDArray[np.uint8] = memory[start : start + size]
    return aligned


def versions() -> dict[str, str]:
    """{name: version} of Python and of the libraries that are installed."""
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
