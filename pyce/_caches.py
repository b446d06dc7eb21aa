"""The caches of the processor, as Linux lists them."""

from __future__ import annotations

import functools
from pathlib import Path

_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_FILES = ("level", "type", "size")
_DEFAULT_LAST = 2**25  # a common size


def caches() -> dict[str, int]:
    """Sizes in bytes of the first processor's data caches, by level; empty except on Linux."""
    found = {}
    for index in sorted(_FOLDER.glob("index*")):
        try:
            level, of, size = ((index / name).read_text("utf-8").strip() for name in _FILES)
        except OSError:
            continue
        if of != "Instruction" and size.endswith("K"):
            found[f"L{level}" + ("d" if of == "Data" else "")] = int(size[:-1]) * 1024
    return found


@functools.cache
def last_cache() -> int:
    """The size of the last-level cache in bytes; a common one if the system does not list it."""
    return max(caches().values(), default=_DEFAULT_LAST)
