"""Softmax cross-entropy and its gradient on the CPU, fast and accurate.

>>> import numpy as np, pyce
>>> logits = np.array([[1.0, 2.0, 0.5]])
>>> loss, grad = pyce.cross_entropy_with_grad(logits, np.array([1]))
>>> print(round(float(loss), 3), grad.round(2))
0.464 [[ 0.23 -0.37  0.14]]

The kernels are written in C (SIMD instructions chosen at run time, threads), in Numba and in NumPy
(the reference). The one that is fastest on this machine runs; `pyce.info()` shows which and why.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyce import _threadpoolctl
from pyce._binary import binary_cross_entropy, binary_cross_entropy_with_grad
from pyce._info import info
from pyce._linear import LinearGradients, linear_cross_entropy, linear_cross_entropy_with_grad
from pyce._linear_selective import linear_selective_log_softmax
from pyce._loss import cross_entropy, cross_entropy_backward, cross_entropy_with_grad
from pyce._metrics import accuracy
from pyce._probabilities import log_loss, nll_loss
from pyce._selective import selective_log_softmax
from pyce._settings import (
    backends,
    get_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
    use_backend,
)
from pyce._softmax import log_softmax, logsumexp, softmax
from pyce._version import __version__

__all__ = [
    "LinearGradients",
    "__version__",
    "accuracy",
    "backends",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_with_grad",
    "get_backend",
    "get_num_threads",
    "info",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_selective_log_softmax",
    "log_loss",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "selective_log_softmax",
    "set_backend",
    "set_num_threads",
    "softmax",
    "use_backend",
]

_threadpoolctl.watch()

# Imported at their first use, because they need other libraries or take longer to import.
_LATER = ("dask", "jax", "mpi", "numba", "sklearn", "torch", "training")


if TYPE_CHECKING:
    # For type checkers, a `__getattr__` would give every misspelt name a type.
    from pyce import dask as dask
    from pyce import jax as jax
    from pyce import mpi as mpi
    from pyce import numba as numba
    from pyce import sklearn as sklearn
    from pyce import torch as torch
    from pyce import training as training
else:

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return importlib.import_module(f"pyce.{name}")
        raise AttributeError(f"module 'pyce' has no attribute {name!r}")
