"""The ordered registry of backends and the choice between them.

A backend is one module of this package with the functions of `Backend` below. To add one, write the
file and add a line to `_REGISTRY`; tests and benchmarks find it there. Backends import neither each
other nor this registry: they get a `Problem`, trust it, and write into the arrays it holds.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, cast

from pyce._problem import Problem
from pyce._types import Array, Scalar


class Backend(Protocol):
    """What a backend module provides.

    Arguments have been checked, and results are written to the arrays that are passed. No function
    depends on the caller's floating-point environment or changes it, status flags included.
    """

    NAME: str
    # Whether the functions that take a `Problem` raise IndexError for labels out of range, before
    # they write anything. If not, the caller runs `Problem.check_labels` first.
    CHECKS_LABELS: bool
    # For libraries whose memory is not NumPy's, such as pyce.torch; None if the backend computes on
    # NumPy arrays only.
    at_addresses: AtAddresses | None

    def forward(self, p: Problem) -> Scalar | None:
        """Write p.lse and p.losses where they are not None; return the loss in its dtype.

        With reduction "none" there is no such number, and None is returned.
        """

    def forward_backward(self, p: Problem) -> Scalar | None:
        """As `forward`, and write p.grad."""

    def backward(self, p: Problem) -> None:
        """Write p.grad from the saved p.lse; p.losses is None."""

    def softmax(self, x: Array, axis: int, out: Array) -> None:
        """Write the softmax of x to out, which has x's shape and dtype and is C-contiguous.

        `out` may be x itself.
        """

    def log_softmax(self, x: Array, axis: int, out: Array) -> None:
        """Write the log-softmax of x to out, which has x's shape and dtype and is C-contiguous.

        `out` may be x itself.
        """

    def logsumexp(self, x: Array, axis: int, out: Array) -> None:
        """Write log Σ exp of x along `axis` to out, float64 (rows,), one element per position."""

    def binary_cross_entropy(
        self,
        x: Array,
        t: Array,
        weight: Array | None,
        pos_weight: Array | None,
        loss: Array | None,
        grad: Array | None,
        scale: float,
    ) -> float:
        """The float64 sum of the weighted Bernoulli losses of the logits x for the targets t.

        All arrays are flat and contiguous, of one length and one dtype, float32 or float64. The
        weighted losses are written to `loss` and `scale` times their gradients to `grad`, unless
        these are None.
        """


class AtAddresses(Protocol):
    """Cross-entropy of class indices in memory that is not a NumPy array."""

    def __call__(
        self,
        *,
        dtype: str,
        reduction: str,
        outer: int,
        classes: int,
        inner: int,
        logits: int,
        labels: int,
        weight: int,
        grad: int,
        smoothing: float,
        ignore_index: int,
        loss: int,
        most_threads: Callable[[], int],
    ) -> bool:
        """Write the loss, and the gradient unless `grad` is 0; whether that was done.

        False means that nothing was written and that the caller has to take the way through NumPy,
        which finds the error and its message. The caller has checked everything but the values of
        the labels.

        Parameters
        ----------
        dtype
            "float16", "bfloat16", "float32" or "float64", that of the logits and the gradient.
        reduction
            "mean", "sum" or "none".
        outer, classes, inner
            The logits' shape, C-contiguous. The labels have the shape (outer, inner).
        logits, labels, weight, grad, loss
            Addresses. `labels` are int64, `weight` is float64 (classes,); `loss` has one element,
            or with "none" outer·inner, in float64 for float64 logits, else in float32. An address
            of 0 means no weight, or no gradient.
        smoothing, ignore_index
            As in `Problem`.
        most_threads
            How many threads may work at most; called only for a call large enough to share.
        """


# In order of preference: name, what must be importable, what to do when it is not.
_REGISTRY: tuple[tuple[str, str | None, str], ...] = (
    (
        "c",
        "pyce._pyce",
        "the C extension was not built: reinstall pyce where a C compiler is found",
    ),
    ("numba", "numba", "numba is not installed: pip install 'pyce[numba]'"),
    ("numpy", None, ""),
)
NAMES = tuple(name for name, _, _ in _REGISTRY)

_loaded: dict[str, Backend] = {}
_broken: dict[str, str] = {}
_default = "auto"
_chosen: ContextVar[str | None] = ContextVar("pyce_backend", default=None)


def _environment() -> str:
    return check_name(os.environ.get("PYCE_BACKEND") or "auto", "PYCE_BACKEND")


def check_name(name: Any, what: str = "backend") -> str:
    """`name` if it is "auto" or a registered backend; else ValueError with the choices."""
    if name != "auto" and name not in NAMES:
        raise ValueError(f"{what} must be one of auto, {', '.join(NAMES)}; got {name!r}")
    return str(name)


def why_not(name: str) -> str | None:
    """Why the named backend can't be used on this machine; None when it can."""
    if name in _loaded:
        return None
    if name in _broken:
        return _broken[name]
    _, needs, advice = _REGISTRY[NAMES.index(name)]
    if needs is None:
        return None
    if name == "numba":
        # Importing numba takes a second, so that is left to the first use.
        return None if importlib.util.find_spec(needs) else advice
    try:
        importlib.import_module(needs)
    except ImportError as error:
        _broken[name] = f"{advice} ({error})"
        return _broken[name]
    return None


class Unavailable(ValueError):
    """A backend that was asked for can't be used on this machine."""


def load(name: str) -> Backend:
    """The named backend, imported on first use; ValueError with the choices when it can't be."""
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    reason = why_not(name)
    if reason is None:
        try:
            backend = cast(Backend, importlib.import_module(f"{__name__}.{name}"))
        except ImportError as error:
            reason = _broken[name] = f"{name} can't be imported: {error}"
        else:
            _loaded[name] = backend
            return backend
    usable = ", ".join(n for n in NAMES if why_not(n) is None)
    raise Unavailable(f"backend {name!r} is not available: {reason}; available: {usable}")


def _best() -> Backend:
    for name in NAMES:
        if why_not(name) is None:
            try:
                backend = load(name)
            except Unavailable:
                continue  # found, but broken: the reason is kept for info()
            if name != "c":
                warnings.warn(
                    f"pyce runs on {name}, many times slower than it could: {why_not('c')}",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return backend
    raise RuntimeError("no backend is available, not even numpy")  # pragma: no cover


def current() -> Backend:
    """The backend that a call made here and now runs on."""
    name = _chosen.get() or _default
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    if name != "auto":
        return load(name)
    # Decided once: the environment's word if there is one, else the first that works.
    name = _environment()
    _loaded["auto"] = backend = _best() if name == "auto" else load(name)
    return backend


def set_default(name: str) -> None:
    global _default
    if check_name(name) != "auto":
        load(name)
    _default = name


def choose(name: str) -> Any:
    """Choose for this thread or task; returns the token that `unchoose` takes."""
    if check_name(name) != "auto":
        load(name)
    return _chosen.set(name)


def unchoose(token: Any) -> None:
    _chosen.reset(token)
