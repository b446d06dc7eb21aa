"""Time and memory of fits of `pyce.dask.SoftmaxRegression`, against the estimator in memory.

    python bench/dask_fits.py [--rows N]

Each way to fit runs in a process of its own, with the same samples: on this machine in memory, with
Dask's threads, and on a cluster of one worker process for each processor, for several numbers of
partitions, with features that stay in memory and with features that each evaluation computes again.
Prints a Markdown table: the time before the first iteration (the data are computed and checked),
the median time of an iteration, and how much memory the client and the largest worker add at most
to what they use before the fit. The client has the data only in the first two ways.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pyce import _cli, _machine

FEATURES, CLASSES, ITERATIONS = 100, 10, 12
WAYS = ("memory", "threads", "cluster", "again")
TITLES = {
    "memory": "`pyce.sklearn`, in memory",
    "threads": "threads of this process",
    "cluster": "cluster, features stay in memory",
    "again": "cluster, features are computed again",
}


def highest(reset: bool = False) -> float:
    """The most memory that this process has used since the last reset, in MB."""
    if reset:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1e3


def samples(rows: int, partitions: int) -> tuple[Any, Any]:
    """Dask arrays of features and labels; the labels depend on the features, with errors."""
    import dask.array as da

    size = -(-rows // partitions)
    random = da.random.default_rng(0)
    X = random.standard_normal((rows, FEATURES), chunks=(size, -1), dtype=np.float32)
    weights = np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32) * 0.3
    errors = random.gumbel(size=(rows, CLASSES), chunks=(size, -1))
    return X, (X @ weights + errors).argmax(axis=1)


@contextmanager
def client_of(way: str) -> Iterator[Any]:
    """The client of a cluster, or None."""
    if way not in ("cluster", "again"):
        yield None
        return
    from distributed import Client, LocalCluster

    workers = _machine.processors()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def measure(way: str, rows: int, partitions: int) -> dict[str, Any]:
    """Fit once, and return the times and the memory."""
    import dask

    from pyce import dask as on_dask
    from pyce import sklearn as in_memory
    from pyce.sklearn import _solve

    warnings.simplefilter("ignore")
    times: list[float] = []
    printed = _solve.Printer.__call__

    def watched(self: Any, *values: Any) -> None:
        times.append(time.perf_counter())
        printed(self, *values)

    _solve.Printer.__call__ = watched  # type: ignore[assignment, method-assign]
    options: dict[str, Any] = {"tol": 0.0, "max_iter": ITERATIONS}
    with client_of(way) as client:
        X, y = samples(rows, partitions)
        few = X[: 1000 * partitions : partitions], y[: 1000 * partitions : partitions]
        on_dask.SoftmaxRegression(tol=1.0).fit(*few)  # loads the libraries everywhere
        if way == "memory":
            X, y = dask.compute(X, y)
        before = highest(reset=True)
        if client:
            before_worker = max(client.run(highest, reset=True).values())
        times.clear()
        start = time.perf_counter()
        if way == "memory":
            in_memory.SoftmaxRegression(**options).fit(X, y)
        else:
            on_dask.SoftmaxRegression(**options, persist=way != "again").fit(X, y)
        added = highest() - before
        of_worker = max(client.run(highest).values()) - before_worker if client else None
    return {
        "way": way,
        "partitions": partitions,
        "first": times[0] - start,
        "iteration": float(np.median(np.diff(times))),
        "client": added,
        "worker": of_worker,
    }


def row_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    worker = "–" if found["worker"] is None else f"{found['worker']:.0f} MB"
    return (
        f"| {TITLES[found['way']]} | {found['partitions']} | {found['first']:.2f} s "
        f"| {1e3 * found['iteration']:.0f} ms | {found['client']:.0f} MB | {worker} |"
    )


def main(options: argparse.Namespace) -> int:
    if options.one:
        print(json.dumps(measure(options.one[0], options.rows, int(options.one[1]))))
        return 0
    size = options.rows * FEATURES * 4 / 1e6
    print(
        f"{options.rows:,} × {FEATURES} in float32 ({size:.0f} MB), {CLASSES} classes; "
        f"{_machine.processors()} processors, {_machine.model()}\n"
    )
    print(
        "| how | partitions | until the first iteration | an iteration | added by the client "
        "| by the largest worker |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way in WAYS:
        for partitions in (1,) if way == "memory" else (8,) if way == "threads" else (8, 64, 512):
            command = [sys.executable, __file__, "--rows", str(options.rows)]
            command += ["--one", way, str(partitions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(row_of(json.loads(done.stdout)), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python bench/dask_fits.py", description=__doc__)
    made.add_argument("--rows", type=int, default=1_000_000, help="number of samples")
    made.add_argument("--one", nargs=2, metavar=("WAY", "PARTITIONS"), help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
