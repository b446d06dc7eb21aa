"""The fingerprint of a machine: what results and times depend on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyce

# Libraries whose versions may explain a difference.
_LIBRARIES = ("numpy", "numba", "llvmlite", "torch", "jax", "optax", "scikit-learn")


def fingerprint() -> dict[str, Any]:
    """The machine and the software in use.

    kind         a name of the kind of machine, from processor, system, logical processors, last
                 cache, instruction set and threads: times of different kinds are not compared
    processor    the name of the model
    processors   the number of logical processors that this process may use
    caches       {"L1d": bytes, "L2": bytes, …} of the first processor
    isa, threads, compiler, pyce    from `pyce.info()`
    system       operating system and architecture
    versions     of Python and of the libraries that are installed
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
    return {"kind": kind(about), **about}


def kind(about: dict[str, Any]) -> str:
    """A name of the kind of machine, of characters that file names may have."""
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
    """Sizes in bytes of the first processor's data caches, by level; empty except on Linux."""
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


def versions() -> dict[str, str]:
    """{name: version} of Python and of those of `_LIBRARIES` that are installed."""
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
