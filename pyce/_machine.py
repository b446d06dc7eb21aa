"""The fingerprint of a machine: what results and times depend on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyce
from pyce import _threads
from pyce._caches import caches

# Libraries whose versions may explain a difference.
_LIBRARIES = ("numpy", "numba", "llvmlite", "torch", "jax", "optax", "scikit-learn")


def fingerprint() -> dict[str, Any]:
    """The machine and the software in use.

    kind         a name of the kind of machine, from processor, system, logical processors, caches,
                 instruction set and threads: times of different kinds are not compared
    processor    the name of the model, which virtual machines often shorten to the brand
    model        "family 25, model 17" of an x86 processor, which tells generations apart; or ""
    processors   the number of logical processors that this process may use
    caches       {"L1d": bytes, "L2": bytes, …} of the first processor
    backend, isa, isas, threads, compiler, pyce    from `pyce.info()`; C was held to `isa` if it is
                 not the first of `isas`
    system       operating system and architecture
    versions     of Python and of the libraries that are installed
    """
    info = pyce.info()
    about: dict[str, Any] = {
        "processor": processor(),
        "model": model(),
        "processors": processors(),
        "caches": caches(),
        "backend": info["backend"],
        "isa": info["isa"],
        "isas": info["isas"],
        "threads": info["threads"],
        "compiler": info["compiler"],
        "pyce": info["version"],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
    return {"kind": kind(about), **about}


def kind(about: dict[str, Any]) -> str:
    """A name of the kind of machine, of characters that file names may have."""
    widest = widest_isa(about)
    parts = (
        about["processor"],
        about["system"],
        f"{about['processors']} processors",
        *(_size_text(size) for size in about["caches"].values()),
        about["isa"] or "no C",
        *([f"of {widest}"] if widest else []),
        f"{about['threads']} threads",
    )
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _size_text(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"


def widest_isa(about: dict[str, Any]) -> str | None:
    """The widest instruction set of a fingerprint's machine if C was held to a narrower one."""
    isas = about.get("isas") or [about["isa"]]
    return None if isas[0] == about["isa"] else str(isas[0])


def isa_text(about: dict[str, Any]) -> str:
    """The instruction set of a fingerprint, and whether C was held to it."""
    widest = widest_isa(about)
    held = f", to which C was held on a processor with {widest}" if widest else ""
    return f"{about['isa'] or 'no C extension'}{held}"


def processor_text(about: dict[str, Any]) -> str:
    """The processor of a fingerprint, with family and model if they are known."""
    model = about.get("model")
    return f"{about['processor']} ({model})" if model else str(about["processor"])


def processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def model() -> str:
    """ "family 25, model 17" of an x86 processor; "" where that is not known."""
    about = _cpuinfo()
    if "cpu family" not in about or "model" not in about:
        return ""
    return f"family {about['cpu family']}, model {about['model']}"


def _cpuinfo() -> dict[str, str]:
    """The entries of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processors() -> int:
    return _threads.processors()


def versions() -> dict[str, str]:
    """{name: version} of Python and of those of `_LIBRARIES` that are installed."""
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
