"""Calls from compiled code on another backend than C: compiled code calls back to Python.

Python has the Numba backend's kernels compiled and cached, and its threads. The price is the GIL,
which each call takes and which the kernels release.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from pyce import _backends, _fpenv, _threads
from pyce._problem import Problem as BackendProblem
from pyce._types import Array, BackendName, Reduction
from pyce.numba import _c

_LABELS = {_c.INDEX32: np.int32, _c.INDEX64: np.int64}
_REDUCTIONS: dict[int, Reduction] = {
    _c.MEAN: "mean",
    _c.SUM: "sum",
    _c.NONE: "none",
    _c.QUOTIENT: "mean",
}
_functions: list[Any] = []  # which must not end while compiled code may call them


def address(name: BackendName) -> int:
    """The address of a C function that takes a `Problem` and runs it on a backend.

    It writes the status to the structure as the last thing. Before, that has the status
    INTERRUPTED: an interrupt may be raised as soon as Python runs, and ctypes ends the exception.
    """
    backend = _backends.load(name)

    def run(where: int) -> int:
        problem = _c.Problem.from_address(where)
        try:
            with _threads.at_most(problem.threads):
                status = _run(backend, problem)
        except KeyboardInterrupt:
            return 0  # the status says so
        except MemoryError:
            status = _c.NO_MEMORY
        except Exception:
            problem.status = _c.FAILED
            raise  # ctypes prints it
        problem.status = status
        return 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(run)
    _functions.append(function)
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _array(place: int | None, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """The array at an address; None for NULL."""
    if not place:
        return None
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * size).from_address(place), dtype).reshape(shape)


@_fpenv.default
def _run(backend: Any, c: _c.Problem) -> int:
    """Run a problem; returns a status."""
    p = BackendProblem()
    shape = (c.outer, c.classes, c.inner)
    p.dtype_name = _c.DTYPES[c.dtype]
    x = _array(c.logits.data, shape, p.dtype_name)
    p.logits = np.empty(shape, p.dtype_name) if x is None else x
    p.axis = 1
    p.outer, p.classes, p.inner = shape
    p.rows = p.outer * p.inner
    p.contiguous = True
    p.grad = _array(c.result.data, shape, p.dtype_name)
    p.lse = _array(c.lse, (p.rows,), np.float64)
    if c.operation == _c.SOFTMAX:
        backend.softmax(p.logits, 1, p.grad)
        return _c.OK
    if c.operation == _c.LOG_SOFTMAX:
        backend.log_softmax(p.logits, 1, p.grad)
        return _c.OK
    if c.operation == _c.LOGSUMEXP:
        backend.logsumexp(p.logits, 1, p.lse)
        return _c.OK
    p.labels = _array(c.labels, (p.rows,), _LABELS.get(c.target))
    p.probs = _array(c.probs.data, shape, _c.DTYPES[c.probs_dtype])
    p.weight = _array(c.weight, (p.classes,), np.float64)
    p.sample_weight = _array(c.sample_weight, (p.rows,), np.float64)
    p.losses = _array(c.losses, (p.rows,), p.dtype_name)
    p.ignore_index = c.ignore_index
    p.smoothing = c.smoothing
    p.lse_square_scale = c.lse_square_scale
    p.reduction = _REDUCTIONS[c.reduction]
    p.normalizer = c.normalizer if c.reduction == _c.QUOTIENT else None
    p.grad_loss = 1.0
    if p.labels is not None:
        bad = (p.labels != p.ignore_index) & ((p.labels < 0) | (p.labels >= p.classes))
        if bad.any():
            c.bad_row = int(np.argmax(bad))
            c.bad_value = int(p.labels[c.bad_row])
            return _c.BAD_LABEL
    loss = backend.forward(p) if p.grad is None else backend.forward_backward(p)
    reduced = _array(c.reduced, (1,), p.dtype_name)
    if reduced is not None:
        reduced[0] = loss
    return _c.OK
