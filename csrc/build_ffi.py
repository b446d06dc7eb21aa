"""The cffi builder of pyce._pyce: declarations from the headers, sources from this folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import cffi

FOLDER = Path(__file__).resolve().parent
HEADERS = ["pyce.h", "pyce_bench.h"]
# The core, and the kernels for each instruction set and dtype (csrc/kernels/targets.h).
SOURCES = [*sorted(FOLDER.glob("*.c")), *sorted((FOLDER / "kernels" / "instances").glob("*.c"))]
# Nothing here is about the building machine: the instruction set is chosen at run time. Contraction
# is off because every fused multiply-add is written as one, so that all targets round alike.
COMPILE_ARGS = [
    "-O2",
    "-g0",
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",  # without effect on Windows, where nothing is exported by default
]
COMPILE_ARGS += ["-Wall", "-Wextra", "-Wno-unused-function"]
if os.environ.get("PYCE_WERROR"):
    COMPILE_ARGS.append("-Werror")


def declarations() -> str:
    """The headers as cffi reads them: without comments and preprocessor lines."""
    text = "".join((FOLDER / header).read_text(encoding="utf-8") for header in HEADERS)
    return re.sub(r"/\*.*?\*/|^#.*?$", "", text, flags=re.DOTALL | re.MULTILINE)


# cffi chooses the stable ABI wherever Python has one: not in free-threaded builds before 3.15.
ffi = cffi.FFI()
ffi.cdef(declarations())
ffi.set_source(
    "pyce._pyce",
    "".join(f'#include "{header}"\n' for header in HEADERS),
    sources=[f"csrc/{p.relative_to(FOLDER).as_posix()}" for p in SOURCES],
    include_dirs=["csrc"],
    depends=[f"csrc/{p.relative_to(FOLDER).as_posix()}" for p in sorted(FOLDER.rglob("*.h"))],
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
)
