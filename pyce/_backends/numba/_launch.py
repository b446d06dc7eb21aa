"""Entry points: compilation, the cache on disk, and threads.

An *entry point* is what Python calls: a kernel over all pieces of a job, compiled on first use for
one combination of dtypes, in serial or parallel.

The cache. Numba stores compiled code per entry point, and by itself invalidates it by the file that
holds the entry point alone. The code depends on all modules of this package, so a digest of all of
them is added to what Numba compares.

Threads. Numba's "workqueue" layer aborts the process if two Python threads start parallel work at
the same time, and the other layers would run more threads than asked for. So one caller at a time
works in parallel, and the others work on their own thread.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from importlib import resources
from types import FunctionType, SimpleNamespace
from typing import Any

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from pyce import _threads
from pyce._backends.numba._bernoulli import bernoulli
from pyce._backends.numba._half_types import half_types
from pyce._backends.numba._jit import DEFAULT_CONTROL, OPTIONS, config, set_control
from pyce._backends.numba._job import BernoulliJob, Job
from pyce._backends.numba._rows import rows
from pyce._backends.numba._tiles import tiles
from pyce._types import Array

# Work, in elements, from which a call uses several threads. Numba's threads sleep between calls
# that are not close together, and are often woken on the processor of the caller, who waits for
# them: that costs a time slice of the scheduler, 4 ms. This much work takes about 2 ms.
PARALLEL_WORK = 2**22

# ---------------------------------------------------------------------------------------------
# The functions that are compiled as entry points. Without parallel=True, prange is range. The
# fields of a job come one by one: Numba inspects the type of every argument at every call, and is
# slow to look into tuples.


def run_rows(pieces: int, *fields: Any) -> None:
    """`rows` over all pieces of the `Job` with these fields."""
    for piece in numba.prange(pieces):
        control = set_control(DEFAULT_CONTROL)
        rows(piece, pieces, Job(*fields))
        set_control(control)


def run_tiles(pieces: int, *fields: Any) -> None:
    """`tiles` over all pieces of the `Job` with these fields."""
    for piece in numba.prange(pieces):
        control = set_control(DEFAULT_CONTROL)
        tiles(piece, pieces, Job(*fields))
        set_control(control)


def run_half_types(pieces: int, *fields: Any) -> None:
    """`half_types` over all pieces of the `Job` with these fields."""
    for piece in numba.prange(pieces):
        control = set_control(DEFAULT_CONTROL)
        half_types(piece, pieces, Job(*fields))
        set_control(control)


def run_bernoulli(pieces: int, *fields: Any) -> None:
    """`bernoulli` over all pieces of the `BernoulliJob` with these fields."""
    for piece in numba.prange(pieces):
        control = set_control(DEFAULT_CONTROL)
        bernoulli(piece, pieces, BernoulliJob(*fields))
        set_control(control)


# ---------------------------------------------------------------------------------------------
# Compilation


def _digest_of_sources() -> str:
    """A digest of the sources of this package; of nothing if an application is frozen without them.

    Numba then uses the executable of the application to invalidate its cache.
    """
    digest = hashlib.sha256()
    try:
        files = [f for f in resources.files("pyce._backends.numba").iterdir() if f.is_file()]
        for file in sorted(files, key=lambda f: f.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    except OSError:
        pass
    return digest.hexdigest()


# Computed now: sources that are edited later are not those that this process compiles.
_SOURCES = _digest_of_sources()
_compiled: dict[tuple[Callable[..., Any], bool, str], Callable[..., Any]] = {}


def entry_point(
    function: Callable[..., Any], arguments: tuple[Any, ...], parallel: bool = False
) -> Callable[..., Any]:
    """The entry point of `function` for the dtypes of the arrays among `arguments`."""
    dtypes = "".join([a.dtype.char for a in arguments if isinstance(a, np.ndarray)])
    found = _compiled.get((function, parallel, dtypes))
    if found is None:
        found = _compile(function, parallel, dtypes)
        _compiled[function, parallel, dtypes] = found
    return found


def _compile(function: Callable[..., Any], parallel: bool, dtypes: str) -> Callable[..., Any]:
    """`function`, to be compiled at its first call, or loaded from Numba's cache.

    Every entry point is a copy of the function under a name of its own, and so has its own file: if
    a file holds several, two processes that compile at the same time can leave the code of one
    under the name of another.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{'parallel' if parallel else 'serial'}_{dtypes}"
    options = {**OPTIONS, "parallel": parallel}
    compiled: Callable[..., Any] = numba.njit(**options)(copy)
    try:
        cached: Any = numba.njit(cache=True, **options)(copy)
        file = cached._cache._cache_file
        file._source_stamp = (file._source_stamp, _SOURCES)
    except (RuntimeError, AttributeError):
        # No directory for the files, or a Numba that keeps its stamp elsewhere.
        return compiled

    def entry(*arguments: Any) -> Any:
        try:
            return cached(*arguments)
        except (OSError, EOFError, pickle.PickleError):
            # Raised before the kernel ran: its file is damaged or cannot be written.
            return compiled(*arguments)

    return entry


# ---------------------------------------------------------------------------------------------
# Threads

# The callers that would work in parallel; the first of them does. A list and no lock, because an
# interrupt between acquiring a lock and entering `try` would leave it locked for ever.
_callers: list[object] = []
_compiler: Any = global_compiler_lock


def _orphaned() -> bool:
    """Whether Numba's threads were started before a fork by other code, and so do not exist."""
    if not getattr(numba.np.ufunc.parallel, "_is_initialized", False):
        return False
    try:
        return bool(len(os.listdir("/proc/self/task")) < config.NUMBA_NUM_THREADS)
    except OSError:  # not on every system
        return False


# In the child of a fork the parent's threads do not exist, and Numba's layers then abort the
# process: every caller works on its own thread there.
_forked = _threads.forked or _orphaned()


def _after_fork() -> None:
    global _forked
    _callers.clear()
    _forked = True
    _compiler.release()


if hasattr(os, "register_at_fork"):
    # A child that is forked while a thread compiles would wait for the compiler's lock for ever.
    os.register_at_fork(
        before=_compiler.acquire,
        after_in_parent=_compiler.release,
        after_in_child=_after_fork,
    )


def launch(function: Callable[..., Any], work: int, job: tuple[Any, ...]) -> None:
    """Run one of the functions above on a job of `work` elements, in parallel if that is faster."""
    fields = tuple([writable(a) if isinstance(a, np.ndarray) else a for a in job])
    threads = 1
    if work >= PARALLEL_WORK and not _forked:
        threads = min(_threads.budget(), config.NUMBA_NUM_THREADS)
    caller = object()
    try:
        if threads > 1:
            _callers.append(caller)
        if threads > 1 and _callers[0] is caller:
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                entry_point(function, fields, parallel=True)(threads, *fields)
            finally:
                numba.set_num_threads(before)
            return
    finally:
        if caller in _callers:
            _callers.remove(caller)
    entry_point(function, fields)(1, *fields)


def writable(a: Array) -> Array:
    """a, or a writable view of it.

    For Numba a read-only array has another type, for which it would compile every kernel again. No
    kernel writes to an array that is not an output.
    """
    if a.flags.writeable:
        return a
    interface = dict(a.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=a))
