"""Softmax cross-entropy on the CPU, at the speed of memory.

>>> import numpy as np, pyce
>>> logits = np.array([[1.0, 2.0, 0.5]])
>>> loss, grad = pyce.cross_entropy_with_grad(logits, np.array([1]))
>>> print(round(float(loss), 3), grad.round(2))
0.464 [[ 0.23 -0.37  0.14]]

Kernels in C (SIMD chosen at run time, threads), in Numba, and a NumPy reference; the fastest that
is available runs. `pyce.info()` tells which.
"""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any

from pyce import _backends, _threadpoolctl
from pyce._info import info
from pyce._loss import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_with_grad,
    log_softmax,
    logsumexp,
    softmax,
)
from pyce._measures import (
    accuracy,
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    log_loss,
    nll_loss,
)
from pyce._threads import get_num_threads, set_num_threads
from pyce._version import __version__

__all__ = [
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
    "log_loss",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "set_backend",
    "set_num_threads",
    "softmax",
    "use_backend",
]

_threadpoolctl.watch()

# Each is imported when it is first asked for: they need more than NumPy, or take longer.
_LATER = ("sklearn", "torch", "training")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"pyce.{name}")
    raise AttributeError(f"module 'pyce' has no attribute {name!r}")


def backends() -> list[str]:
    """The backends that can be used on this machine, fastest first.

    Returns
    -------
    list of str
        Some of "c", "numba" and "numpy"; `info` says why others can't.

    Examples
    --------
    >>> "numpy" in pyce.backends()
    True
    """
    return [name for name in _backends.NAMES if _backends.why_not(name) is None]


def get_backend() -> str:
    """The backend that a call made here and now runs on.

    Returns
    -------
    str
        "c", "numba" or "numpy".

    Raises
    ------
    ValueError
        When PYCE_BACKEND or PYCE_ISA names what is not available.

    Examples
    --------
    >>> with pyce.use_backend("numpy"):
    ...     print(pyce.get_backend())
    numpy
    """
    return _backends.current().NAME


def set_backend(name: str) -> None:
    """Run on the named backend from now on, in the whole process.

    Where `use_backend` is active, it goes before.

    Parameters
    ----------
    name : str
        "c", "numba", "numpy", or "auto" for the fastest.

    Raises
    ------
    ValueError
        For a name that is unknown or can't be used here; nothing changes then.

    Examples
    --------
    >>> pyce.set_backend("numpy")
    >>> pyce.get_backend()
    'numpy'
    """
    _backends.set_default(name)


class use_backend:
    """Run on the named backend inside a with block, in this thread and task only.

    Blocks nest.

    Parameters
    ----------
    name : str
        As for `set_backend`.

    Raises
    ------
    ValueError
        On entry, as `set_backend`.

    Examples
    --------
    >>> with pyce.use_backend("numpy"):
    ...     print(pyce.get_backend())
    numpy
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tokens: list[Any] = []

    def __enter__(self) -> None:
        self._tokens.append(_backends.choose(self._name))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _backends.unchoose(self._tokens.pop())
