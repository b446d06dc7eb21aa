"""`accuracy`: ties, ignored rows, one-hot targets and NaN."""

import math

import numpy as np
import pytest
from samples import by_dtype

import pyce


def test_accuracy_counts(backend):
    x = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]], float)
    assert pyce.accuracy(x, [0, 1, 2, 0]) == 1.0
    assert pyce.accuracy(x, [0, 1, 2, 1]) == 0.75
    assert pyce.accuracy(x, [1, 2, 1, 2]) == 0.0
    assert pyce.accuracy(x, [1, 2, 1, 2], top_k=2) == 1.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=2) == 0.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=3) == 1.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=99) == 1.0
    assert pyce.accuracy(x.T, [0, 1, 2, 1], axis=0) == 0.75
    assert isinstance(pyce.accuracy(x, [0, 1, 2, 0]), float)


def test_accuracy_of_ties(backend):
    """The first of equals wins, as in np.argmax."""
    x = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [5.0, 5.0, 5.0]])
    for y in np.ndindex(3, 3, 3):
        expected = np.mean(np.argmax(x, axis=1) == y)
        assert pyce.accuracy(x, list(y)) == expected
        order = np.argsort(-x, axis=1, kind="stable")[:, :2]
        expected = np.mean((order == np.array(y)[:, None]).any(1))
        assert pyce.accuracy(x, list(y), top_k=2) == expected


@by_dtype
def test_accuracy_ignores_rows(backend, dtype):
    x = np.eye(4, dtype=dtype)
    assert pyce.accuracy(x, [0, 0, -100, 3]) == 2 / 3
    assert pyce.accuracy(x, [0, 0, 2, 3], ignore_index=0) == 1.0
    assert pyce.accuracy(x[:, :1], [-100, 0, 0, 0]) == 1.0
    assert math.isnan(pyce.accuracy(x, [-100] * 4))
    assert math.isnan(pyce.accuracy(np.zeros((0, 4), dtype), np.zeros(0, int)))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8, bool, np.float16])
@pytest.mark.parametrize("size", [(6, 4, 5), (200, 4, 100)])  # one block, or several
def test_accuracy_of_one_hot_targets(backend, size, kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=size), rng.integers(0, 4, (size[0], size[2]))
    hot = np.moveaxis(np.eye(4)[y], -1, 1).astype(kind)
    for k in (1, 2):
        expected = pyce.accuracy(x, y, axis=1, top_k=k)
        assert pyce.accuracy(x, hot, axis=1, top_k=k) == expected
    assert pyce.accuracy(x, y, axis=1) == np.mean(np.argmax(x, axis=1) == y)


def test_accuracy_of_nan(backend):
    """A row that is NaN at its target is wrong; NaN elsewhere ranks below everything."""
    x = np.array([[np.nan, 1.0], [np.nan, 1.0], [0.0, 1.0]])
    assert pyce.accuracy(x, [0, 0, 1]) == 1 / 3
