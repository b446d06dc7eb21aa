"""The protocol of backends, their registry, and the choice between them.

A backend is one module or package in this package with the names of the protocol `Backend`. To add
one, write it, add a line to `_REGISTRY` with the function that imports it, and its name to the
types in `pyce._types`; tests and benchmarks take it from the registry. Backends import neither each
other nor the registry nor the argument checks: they get a `Problem`, rely on it, and write to its
arrays.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, cast

from pyce._extras import advice, sources
from pyce._problem import Problem, ShardedProblem
from pyce._types import Array, BackendChoice, BackendName, Scalar


class Backend(Protocol):
    """The attributes and functions of a backend module.

    Arguments have been checked, and results are written to the arrays that are passed. No function
    depends on the caller's floating-point environment or changes it, status flags included.
    """

    # Attributes of the module, which no other module sets.

    @property
    def NAME(self) -> str:
        """The name in `_REGISTRY`."""

    @property
    def CHECKS_LABELS(self) -> bool:
        """Whether the functions that take a `Problem` raise IndexError for labels out of range.

        They do so before they write anything. If not, `Problem.check_labels` runs before them.
        """

    @property
    def at_addresses(self) -> AtAddresses | None:
        """Computes the loss in memory that is not a NumPy array, such as a tensor's.

        None if the backend reads NumPy arrays only.
        """

    @property
    def scale_at(self) -> ScaleAt | None:
        """Multiplies a saved gradient by a number, in memory that is not a NumPy array.

        None if the backend has `at_addresses` None.
        """

    @property
    def selective(self) -> Selective | None:
        """Log-probabilities with a temperature; None to leave them to NumPy and `softmax`."""

    @property
    def partial(self) -> Callable[[ShardedProblem, Array], None] | None:
        """Writes the states of the rows after the classes of the own shard.

        They are float64, flat and C-contiguous, `state_size` numbers for each row, and only this
        backend reads them. Labels are checked before anything is written. None if the backend
        leaves shards to the NumPy backend.
        """

    @property
    def state_size(self) -> Callable[[ShardedProblem, int], int] | None:
        """Returns the numbers of a row's state after the classes of a shard, if there are so many.

        It depends on the dtype, the target and the smoothing only. None where `partial` is.
        """

    @property
    def complete(self) -> Callable[[ShardedProblem, list[Array]], Scalar | None] | None:
        """From the states of all shards, does for the own shard what `forward_backward` does.

        The loss is that of all classes and the same for every shard; the gradient is that of the
        own classes and is not written if p.grad is None. None where `partial` is.
        """

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
    """Cross-entropy in memory that is not a NumPy array."""

    def __call__(
        self,
        loss: int,
        lse: int,
        grad: int,
        loss_dtype: str,
        grad_loss: float,
        grad_losses: int,
        dtype: str,
        reduction: str,
        outer: int,
        classes: int,
        inner: int,
        logits: int,
        labels: int,
        probs: int,
        probs_dtype: str,
        weight: int,
        smoothing: float,
        ignore_index: int,
        most_threads: Callable[[], int],
        /,
    ) -> bool:
        """Compute loss and gradient, or the gradient from a saved lse; whether that was done.

        False means that nothing was written and that the caller has to pass NumPy arrays instead,
        which finds the error and its message. The caller has checked everything but the values of
        the labels.

        Parameters
        ----------
        loss_dtype
            "float16" or "bfloat16" to round the reduced loss to that; only without `lse` and for
            logits that are not float64. Else "".
        grad_loss, grad_losses
            Without `loss`, the derivative of the final result with respect to the loss: a number,
            or with "none" float64 for each row. With `loss`, 1 and 0.
        dtype
            "float16", "bfloat16", "float32" or "float64", that of the logits and the gradient.
        reduction
            "mean", "sum" or "none".
        outer, classes, inner
            The shape of logits, probs and gradient, C-contiguous. The labels, the lse and the
            losses of the rows have the shape (outer, inner).
        logits, labels, probs, weight, loss, lse, grad, grad_losses
            Addresses, 0 for what is not given. Either `labels`, int64, or `probs`, in
            `probs_dtype`, are the target. `weight` is float64 (classes,). `loss` is written: one
            element, or with "none" one for each row, in float64 for float64 logits, else in
            float32. `lse`, float64, is written as well, or read if there is no `loss`.
        smoothing, ignore_index
            As in `Problem`.
        most_threads
            How many threads may work at most; called only for a call large enough to share.
        """


class ScaleAt(Protocol):
    """The backward pass from a saved gradient, in memory that is not a NumPy array."""

    def __call__(
        self,
        dtype: str,
        size: int,
        saved: int,
        result: int,
        factor: int,
        factor_dtype: str,
        most_threads: Callable[[], int],
        /,
    ) -> bool:
        """Multiply the numbers at `saved` by that at `factor`; whether that was done.

        False means that nothing was written: the factor is not finite.

        Parameters
        ----------
        dtype
            "float16", "bfloat16", "float32" or "float64", that of the result.
        size
            How many numbers there are.
        saved, result, factor
            Addresses. The numbers at `saved` have the dtype of the result, and `result` may be the
            same address, except that they are float32 if the result is float16.
        factor_dtype
            The dtype of the one number at `factor`.
        most_threads
            How many threads may work at most; called only for a call large enough to share.
        """


class Selective(Protocol):
    """The log-softmax of rows divided by a temperature, and what follows from it."""

    def __call__(
        self,
        x: Array,
        temperature: float,
        index: Array | None,
        log_probs: Array | None,
        entropy: Array | None,
        softmax: Array | None,
        log_softmax: Array | None,
        /,
    ) -> None:
        """Write those results of the logits x (..., classes), of any strides, that are not None.

        They are C-contiguous.

        Parameters
        ----------
        index, log_probs
            The classes chosen in each row, int64 (rows, k), which have been checked, and their
            log-probabilities (rows, k) in the dtype of the loss. Both are given or neither.
        entropy
            (rows,) in the dtype of the loss.
        softmax, log_softmax
            float64 (rows, classes).
        """


# Each backend is imported by a statement, not by a computed name: tools that freeze a program, such
# as PyInstaller, include the modules that import statements name.


def _import_c() -> Any:
    from pyce._backends import c

    return c


def _import_numba() -> Any:
    from pyce._backends import numba

    return numba


def _import_numpy() -> Any:
    from pyce._backends import numpy

    return numpy


def _why_not_c() -> str | None:
    reason = None
    try:
        # The extension imports it as well, but tools that freeze a program cannot see that.
        import _cffi_backend  # noqa: F401
    except ImportError as error:
        reason = f"the C extension needs cffi: pip install cffi ({error})"
    else:
        try:
            import pyce._pyce  # noqa: F401
        except ImportError as error:
            reason = f"{_why_no_extension(error)} ({error})"
    if reason:
        _broken["c"] = reason
    return reason


def _why_no_extension(error: ImportError) -> str:
    """The advice for an error at the import of the extension, when cffi can be imported."""
    if not isinstance(error, ModuleNotFoundError) or error.name != "pyce._pyce":
        return "the C extension cannot be loaded"
    if not os.path.isdir(os.path.dirname(__file__)):  # an archive, which extensions cannot be in
        return "the C extension was not included in this program: add pyce._pyce, as a file"
    root = sources()
    if root:
        # In its folder Python imports the sources, also where pyce is installed.
        return (
            f"the C extension was not built in the sources in {root}: build it with `make build`, "
            "or start Python in another folder to import the pyce that is installed"
        )
    return "the C extension was not built: install a C compiler, then reinstall pyce-kernels"


def _why_not_numba() -> str | None:
    # Importing numba takes a second, so it is imported at its first use only.
    if not importlib.util.find_spec("numba"):
        return f"numba is not installed: {advice('numba')}"
    return "NUMBA_DISABLE_JIT is set" if _without_jit() else None


# In order of preference: name, function that imports it, and function that returns why it cannot be
# used on this machine, or None for a backend that always can. `preference` says when Numba precedes
# C.
_REGISTRY: tuple[tuple[BackendName, Callable[[], Any], Callable[[], str | None] | None], ...] = (
    ("c", _import_c, _why_not_c),
    ("numba", _import_numba, _why_not_numba),
    ("numpy", _import_numpy, None),
)
NAMES: tuple[BackendName, ...] = tuple(name for name, _, _ in _REGISTRY)

# The backends imported so far, and the one that "auto" stands for.
_loaded: dict[str, Backend] = {}
# Why "auto" stands for that one.
_auto_reason = ""
# The first thread that decided what "auto" stands for.
_warns: dict[str, int] = {}
# Why backends that seemed available could not be imported.
_broken: dict[str, str] = {}
_default: BackendChoice = "auto"
_chosen: ContextVar[BackendChoice | None] = ContextVar("pyce_backend", default=None)
# The values of `_chosen` outside the blocks that this thread or task is in.
_outer: ContextVar[tuple[BackendChoice | None, ...]] = ContextVar("pyce_outer", default=())


def _environment() -> BackendChoice:
    return check_name(os.environ.get("PYCE_BACKEND") or "auto", "PYCE_BACKEND")


def check_name(name: Any, what: str = "backend") -> BackendChoice:
    """`name` if it is "auto" or a registered backend; else ValueError with the choices."""
    choices: tuple[BackendChoice, ...] = ("auto", *NAMES)
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}; got {name!r}")
    # The name itself: str() of a member of an enumeration of strings is another.
    return choices[choices.index(name)]


def why_not(name: BackendName) -> str | None:
    """Why the named backend cannot be used on this machine; None if it can."""
    if name in _loaded:
        return None
    if name in _broken:
        return _broken[name]
    _, _, reason = _REGISTRY[NAMES.index(name)]
    return reason() if reason else None


def _without_jit() -> bool:
    """Whether the environment turns Numba's compiler off, read as Numba reads it."""
    try:
        return bool(int(os.environ.get("NUMBA_DISABLE_JIT") or 0))
    except ValueError:
        return False


def preference() -> tuple[BackendName, ...]:
    """The names of all backends, available or not, in the order in which "auto" tries them.

    The order is that of `_REGISTRY`, the fastest first, with one exception: if the C backend has
    only its slow plain kernels for this processor, Numba precedes it. In float32 on one thread of a
    Zen 3 server, on 2026-11-28, loss and gradient took 26 to 37 ns an element in plain C that calls
    the C library's fma for each operation, and 1 to 2 ns in Numba's vector code (1024×1000 and
    8192×100).

    PYCE_ISA keeps C first: a program that names an instruction set of the C backend asks for C.
    """
    if os.environ.get("PYCE_ISA") or why_not("c") is not None or _c_is_vectorised():
        return NAMES
    return ("numba", *(name for name in NAMES if name != "numba"))


def _c_is_vectorised() -> bool:
    from pyce._backends import c

    return c.is_vectorised()


class Unavailable(ValueError):
    """A backend that was asked for cannot be used on this machine."""


def load(name: BackendName) -> Backend:
    """The named backend, imported at its first use; `Unavailable` if it cannot be."""
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    reason = why_not(name)
    if reason is None:
        try:
            _, import_backend, _ = _REGISTRY[NAMES.index(name)]
            backend = cast(Backend, import_backend())
        except ImportError as error:
            reason = _broken[name] = f"{name} can't be imported: {error}"
        else:
            _loaded[name] = backend
            return backend
    usable = ", ".join(n for n in preference() if why_not(n) is None)
    raise Unavailable(f"backend {name!r} is not available: {reason}; available: {usable}")


def _best() -> Backend:
    for name in preference():
        if why_not(name) is None:
            try:
                backend = load(name)
            except Unavailable:
                continue  # installed, but its import fails; `_broken` keeps the reason for info()
            # Of threads that decide at the same time, one warns.
            this = threading.get_ident()
            if why_not("c") is not None and _warns.setdefault("thread", this) == this:
                much = "many times slower" if name == "numpy" else "slower"
                warnings.warn(
                    f"pyce runs on {name}, {much} than it could: {why_not('c')}",
                    RuntimeWarning,
                    stacklevel=_level_of_caller(),
                )
            return backend
    raise RuntimeError("no backend is available, not even numpy")  # pragma: no cover


def _level_of_caller() -> int:
    """The `stacklevel` that makes the calling function warn about the first line outside pyce."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "pyce":
        level, frame = level + 1, frame.f_back
    return level


def _reason_of_best(name: str) -> str:
    """Why `_best` returned the backend of this name."""
    if why_not("c") is not None:
        return "the fastest available without the C extension"
    isa = os.environ.get("PYCE_ISA")
    if isa:
        return f"PYCE_ISA={isa} names an instruction set of the C backend"
    if _c_is_vectorised():
        return "the fastest: C has vector kernels for this processor"
    slow = "C has only plain kernels for this processor"
    if name == "numba":
        return f"the fastest: {slow}, which are slower than Numba's"
    return f"{slow}; Numba would be faster, but is not available"


def current() -> Backend:
    """The backend that a call made now, in this thread and task, runs on."""
    name = _chosen.get() or _default
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    return load(name) if name != "auto" else _decide()


def _decide() -> Backend:
    """Decide what "auto" stands for: what the environment names, else the first that works.

    That is done once.
    """
    global _auto_reason
    name = _environment()
    if name == "auto":
        backend = _best()
        _auto_reason = _reason_of_best(backend.NAME)
    else:
        backend = load(name)
        _auto_reason = f"PYCE_BACKEND={name} selects it"
    _loaded["auto"] = backend
    return backend


def reason() -> str:
    """Why a call made now, in this thread and task, runs on `current()`, as text."""
    current()  # so that "auto" is decided
    chosen = _chosen.get()
    if (chosen or _default) == "auto":
        return _auto_reason
    return "use_backend selects it" if chosen else "set_backend selects it"


def set_default(name: BackendChoice) -> None:
    """Set the backend of the process."""
    global _default
    checked = check_name(name)
    if checked != "auto":
        load(checked)
    _default = checked


def choose(name: BackendChoice) -> None:
    """Set the backend of this thread or task, until `unchoose`."""
    checked = check_name(name)
    if checked != "auto":
        load(checked)
    _outer.set((*_outer.get(), _chosen.get()))
    _chosen.set(checked)


def unchoose() -> None:
    """Undo the last `choose` of this thread or task; RuntimeError if there is none."""
    if not _outer.get():
        raise RuntimeError("use_backend ends in another thread or task than it began in")
    *outer, before = _outer.get()
    _outer.set(tuple(outer))
    _chosen.set(before)
