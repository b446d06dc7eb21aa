"""The time of small calls from code that Numba compiles, over that of the C function alone.

    PYTHONPATH=. python bench/compiled_calls.py [--write PAGE]

Three ways to compute loss and gradient of the same small batch in turn, in rounds: the C function
called by its address from a compiled loop, `pyce.cross_entropy_with_grad` in a compiled loop, and
the same called from Python. Medians of the rounds, on one thread, float32. The last row is a step
of examples/compiled_training.py. `--write` puts the table between the markers `compiled-calls` of a
page.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numba
import numpy as np
import readme_tables
from pyce._pyce import ffi, lib

import pyce
import pyce.numba
from pyce import _cli
from pyce._bench.formats import duration, ratio

EXAMPLE = Path(__file__).parents[1] / "examples" / "compiled_training.py"
HEAD = ("", "the C function alone", "from compiled code", "from Python", "times as long")
SHAPES = ((64, 10), (32, 3), (128, 1000))
ROUNDS = 41


def c_function() -> Callable[..., int]:
    """`pyce_cross_entropy_at` of csrc/pyce.h, as compiled code can call it."""
    size, integer, whole, real = ctypes.c_size_t, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    arguments: list[Any] = [integer] * 4 + [whole] * 3 + [size] * 3 + [integer] + [size] * 2
    arguments += [real, whole, size, integer]
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
            DTYPE,
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


def calls(rows: int, classes: int) -> tuple[float, float, float]:
    """Seconds of a call of each way."""
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
    count = max(20, 400_000 // x.size)
    times: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for way, found in zip(ways, times, strict=True):
            begin = perf_counter()
            way(x, y, out, loss, count)
            found.append((perf_counter() - begin) / count)
    return median(times[0]), median(times[1]), median(times[2])


def training_step() -> tuple[float, float]:
    """Seconds of a step of the example, compiled and in Python."""
    said = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout
    compiled, python = (float(time) * 1e-6 for time in re.findall(r"(\S+) µs a step", said))
    return compiled, python


def main(options: argparse.Namespace) -> int:
    pyce.set_num_threads(1)
    rows: list[tuple[str, float | None, float, float]] = []
    for shape in SHAPES:
        rows.append(("×".join(map(str, shape)), *calls(*shape)))
    rows.append(("a training step, 64 images", None, *training_step()))
    lines = ["| " + " | ".join(HEAD) + " |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    for name, in_c, call, python in rows:
        c = "–" if in_c is None else duration(in_c)
        cells = (name, c, duration(call), duration(python), ratio(python / call))
        lines.append(f"| {' | '.join(cells)} |")
    about = f"{readme_tables.measured_now()}; numba {numba.__version__}. float32."
    text = "\n".join([about, "", *lines]) + "\n"
    print(text)
    if options.write:
        readme_tables.replace(options.write, "compiled-calls", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/compiled_calls.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown file with the markers")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
