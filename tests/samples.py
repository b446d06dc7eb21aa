"""Small problems, and comparisons of results, that the tests of the API share."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from every import every

import pyce

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
FLOATS = DTYPES[2:]

by_dtype = every("dtype", DTYPES)
by_float = every("dtype", FLOATS)
# Few, some and many classes use different kernels.
by_classes = every("classes", [2, 3, 10, 40, 100, 700])


def log_probs(x):
    """log softmax of benign float64 rows, from the textbook."""
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sample(classes=5, rows=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


def near(actual, expected, dtype=np.float64, size=0.1):
    """Equal but for rounding, where `size` is that of the terms whose difference it is."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=20 * eps, atol=20 * eps * size
    )


def every_way(x, target, **kwargs):
    """The gradient fused and from the saved lse, after checking that all losses agree."""
    loss = pyce.cross_entropy(x, target, **kwargs)
    fused, grad = pyce.cross_entropy_with_grad(x, target, **kwargs)
    np.testing.assert_array_equal(fused, loss)
    _, lse = pyce.cross_entropy(x, target, return_lse=True, **kwargs)
    ones = np.ones(lse.shape) if kwargs.get("reduction") == "none" else 1.0
    back = pyce.cross_entropy_backward(ones, x, target, lse, **kwargs)
    return loss, grad, back
