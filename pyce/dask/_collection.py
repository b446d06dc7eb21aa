"""The partitions of X, y and the weights of the samples, as Dask's Delayed objects.

All functions build graphs only. Data move when a task runs, and stay on the workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import psutil
from dask.base import get_scheduler
from dask.delayed import Delayed
from distributed import Client, futures_of
from distributed.system import MEMORY_LIMIT

# The share of a worker's memory limit that persisted data may fill. At 0.6, by default, Dask begins
# to write data to disk.
_SHARE = 0.5


class Partition(NamedTuple):
    """Some rows: their place in the collection, features, labels and weights."""

    number: int
    x: Delayed
    y: Any
    weight: Any


def is_collection(value: Any) -> bool:
    """Whether a value is a Dask collection; NumPy arrays, lists and data frames are not."""
    return bool(dask.is_dask_collection(value))


def is_frame(value: Any) -> bool:
    """Whether a Dask collection is a dataframe or a series."""
    return not isinstance(value, (da.Array, Delayed)) and hasattr(value, "divisions")


def checked_features(X: Any) -> Any:
    """A two-dimensional Dask collection, an array with all features of a row in one chunk."""
    if is_frame(X) and X.ndim == 2:
        return X
    if not isinstance(X, da.Array):
        raise ValueError(f"X must be a Dask array or a Dask dataframe, got {type(X).__name__}")
    if X.ndim != 2:
        raise ValueError(f"Expected 2D array for X, got {X.ndim}D array instead: {X}")
    if X.numblocks[1] == 1:
        return X
    if math.isnan(sum(X.chunks[1])):
        raise ValueError(
            "X has several chunks along the features, and their sizes are unknown, so that they "
            "cannot be joined: call X.compute_chunk_sizes() before, or X.rechunk({1: -1})"
        )
    return X.rechunk({1: -1})


def partitions(X: Any, y: Any, sample_weight: Any) -> list[Partition]:
    """The partitions of the samples in their order; those that are known to be empty are left out.

    If the sizes of all chunks are known, y and the weights get those of X. Otherwise their numbers
    must agree, and the tasks compare the sizes.
    """
    X = checked_features(X)
    sizes = _known_sizes(X)
    of_x = list(np.ravel(X.to_delayed()))
    of_y = _aligned(y, "y", of_x, sizes)
    if sample_weight is None or isinstance(sample_weight, Real):
        of_weight = [sample_weight] * len(of_x)
    else:
        of_weight = _aligned(sample_weight, "sample_weight", of_x, sizes)
    parts = [Partition(*part) for part in zip(range(len(of_x)), of_x, of_y, of_weight, strict=True)]
    return parts if sizes is None else [part for part in parts if sizes[part.number]]


def _known_sizes(value: Any) -> tuple[int, ...] | None:
    """The number of rows of each chunk, None if unknown."""
    if is_frame(value):
        return None
    sizes: tuple[int, ...] = value.chunks[0]
    return None if math.isnan(sum(sizes)) else sizes


def _aligned(
    value: Any, name: str, of_x: Sequence[Delayed], sizes: tuple[int, ...] | None
) -> list[Delayed]:
    """The partitions of the labels or weights."""
    if not is_collection(value):
        if sizes is None:
            raise ValueError(
                f"the sizes of the partitions of X are unknown, so {name} must be a Dask array or "
                f"series with the same partitions, got {type(value).__name__}"
            )
        value = np.asarray(value)
        value = da.from_array(value, chunks=value.shape or -1)
    elif not (isinstance(value, da.Array) or is_frame(value)):
        raise ValueError(
            f"{name} must be an array or a Dask array or series, got {type(value).__name__}"
        )
    if value.ndim != 1:
        raise ValueError(
            f"{name} must have one dimension, got {value.ndim}; for a dataframe with one column, "
            "pass the column"
        )
    own = _known_sizes(value)
    if sizes is not None and own is not None and own != sizes:
        if sum(own) != sum(sizes):
            raise ValueError(
                f"X and {name} have inconsistent numbers of samples: {sum(sizes)} and {sum(own)}"
            )
        value = value.rechunk((sizes,))
    found = list(np.ravel(value.to_delayed()))
    if len(found) != len(of_x):
        raise ValueError(
            f"X has {len(of_x)} partitions and {name} has {len(found)}, of unknown sizes, so that "
            f"their rows cannot be matched: give both the same partitions, or call "
            "compute_chunk_sizes() of the arrays before"
        )
    return found


def known_bytes(X: Any) -> float:
    """The size of the features, if they are known to need no conversion; else NaN."""
    known = isinstance(X, da.Array) and X.dtype in (np.float32, np.float64)
    return float(X.nbytes) if known else math.nan


def persisted(parts: Sequence[Partition]) -> list[Partition]:
    """The partitions with features that stay where they are computed."""
    kept = dask.persist(*(part.x for part in parts))
    return [part._replace(x=x) for part, x in zip(parts, kept, strict=True)]


def in_memory(X: Any, parts: Sequence[Partition]) -> bool:
    """Whether the user persisted the features of all of these partitions on a cluster."""
    held = {future.key for future in futures_of(X)}
    return all(part.x.key in held for part in parts)


def _scheduler() -> tuple[Client | None, bool]:
    """The client of the cluster that runs the tasks, or None; and whether they run in processes
    that Dask starts for them."""
    get: Any = get_scheduler(collections=[dask.delayed(None)])
    client = getattr(get, "__self__", None)
    if isinstance(client, Client):
        return client, False
    return None, getattr(get, "__module__", "") == "dask.multiprocessing"


def runs_here() -> bool:
    """Whether tasks run in this process."""
    client, in_processes = _scheduler()
    if client is None:
        return not in_processes
    return any(name.startswith("inproc://") for name in client.scheduler_info()["workers"])


def room() -> float:
    """How many bytes of data may be persisted: on the workers, or without a cluster in this
    process."""
    client, in_processes = _scheduler()
    if in_processes:
        return 0.0  # each evaluation would send the data to the processes
    if client is None:
        return float(_SHARE * MEMORY_LIMIT - psutil.Process().memory_info().rss)
    total = 0.0
    for worker in client.scheduler_info()["workers"].values():
        limit = worker.get("memory_limit") or math.inf
        total += max(0.0, _SHARE * limit - worker.get("metrics", {}).get("memory", 0))
    return total
