"""Cost per element from 10⁶ to 10⁹ elements: `python bench/scaling.py [--most ELEMENTS]`.

The number of classes is fixed and the number of rows grows. Loss and gradient are computed in
place, the loss alone also from a file mapped into memory. Prints nanoseconds per element, and by
how much the calls raised the process's peak memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from time import perf_counter

import numpy as np

import pyce
from pyce._bench.calls import Call
from pyce._bench.workloads import Array

CLASSES = (10, 1000, 32000)
SIZES = (10**6, 10**7, 10**8, 10**9)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/scaling.py", description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="elements of the largest array")
    options = parser.parse_args()
    print("classes  elements  fused ns  forward ns  mapped ns  peak memory +MiB")
    for classes in CLASSES:
        for size in SIZES:
            if size <= options.most:
                measure(size // classes, classes)


def measure(rows: int, classes: int) -> None:
    size = rows * classes
    labels = np.random.default_rng(0).integers(0, classes, rows)
    fused, forward, raised = in_memory(rows, classes, labels)
    mapped = from_file(rows, classes, labels)
    print(
        f"{classes:7}  {size:8.0e}  {fused:8.3f}  {forward:10.3f}  {mapped:9.3f}  {raised:17.1f}",
        flush=True,
    )


def in_memory(rows: int, classes: int, labels: Array) -> tuple[float, float, float]:
    logits = np.empty((rows, classes), np.float32)
    fill(logits)
    pyce.cross_entropy(logits[:64], labels[:64])
    before = peak()
    forward = per_element(lambda: pyce.cross_entropy(logits, labels), logits.size)
    fused = per_element(
        lambda: pyce.cross_entropy_with_grad(logits, labels, out=logits), logits.size
    )
    return fused, forward, peak() - before


def from_file(rows: int, classes: int, labels: Array) -> float:
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * rows * classes)
        logits: Array = np.memmap(file, np.float32, "r+", shape=(rows, classes))
        fill(logits)
        return per_element(lambda: pyce.cross_entropy(logits, labels), logits.size)


def fill(array: Array) -> None:
    flat = array.reshape(-1)
    pool = np.random.default_rng(0).standard_normal(999_983).astype(np.float32)
    for start in range(0, flat.size, pool.size):
        flat[start : start + pool.size] = pool[: flat.size - start]


def per_element(call: Call, size: int) -> float:
    """Nanoseconds, the median of a few calls."""
    call()
    times = []
    for _ in range(max(3, min(100, 2 * 10**8 // size))):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return statistics.median(times) * 1e9 / size


def peak() -> float:
    """The most memory that the process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
