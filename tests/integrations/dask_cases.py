"""Dask arrays with given blocks, for the tests of `pyce.dask`."""

import itertools

import numpy as np
import pytest

pytest.importorskip("dask")

import dask.array as da
from dask.highlevelgraph import HighLevelGraph

_numbers = itertools.count()


def blocks_of(parts, unknown=False):
    """A Dask array of these blocks; it states the columns and the dtype of the first."""
    first, name = parts[0], f"blocks-{next(_numbers)}"
    graph = {(name, i, *(0,) * (first.ndim - 1)): part for i, part in enumerate(parts)}
    rows = tuple(np.nan if unknown else len(part) for part in parts)
    chunks = (rows, *((n,) for n in first.shape[1:]))
    graph = HighLevelGraph.from_collections(name, graph)
    return da.Array(graph, name, chunks, first.dtype)


def chunked(values, sizes, unknown=False):
    """A Dask array with chunks of these sizes, also of 0 rows; the array may not know them."""
    values = np.asanyarray(values)
    ends = np.cumsum(sizes)
    return blocks_of([values[b - n : b] for b, n in zip(ends, sizes, strict=True)], unknown)
