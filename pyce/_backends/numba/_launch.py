"""Entry points: compilation, the cache on disk, and threads.

An *entry point* is what Python calls: a kernel over all rows of a job, compiled on first use for
one combination of dtypes.

The cache. Numba stores compiled code per entry point, and by itself invalidates it by the file that
holds the entry point alone. The code depends on all modules of this package, so a digest of all of
them is added to what Numba compares.

Threads. Numba's own layers either end the process if two Python threads start parallel work at the
same time, or run more threads than asked for, or wait for a thread that is woken late. So there are
threads of Python here, which call the same entry point as the caller: it releases the GIL. All draw
parts of the job from a counter that the caller opens, so that a thread that is late takes fewer, or
none: the caller waits only for parts that were drawn. One caller at a time shares its work, and the
others work on their own thread.
"""

from __future__ import annotations

import _thread
import hashlib
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from queue import Empty, SimpleQueue
from types import FunctionType, SimpleNamespace
from typing import Any

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from pyce import _threads
from pyce._backends.numba._bernoulli import bernoulli, bernoulli_scratch
from pyce._backends.numba._half_types import half_types, half_types_scratch
from pyce._backends.numba._jit import (
    DEFAULT_CONTROL,
    OPTIONS,
    Index,
    U,
    config,
    fetch,
    fetch_add,
    jit,
    pause,
    set_control,
)
from pyce._backends.numba._job import BernoulliJob, Job
from pyce._backends.numba._lanes import WIDTH
from pyce._backends.numba._rows import rows, rows_scratch
from pyce._backends.numba._tiles import tiles, tiles_scratch
from pyce._types import Array

# Work, in elements, from which a call uses several threads; and that of the smallest part.
PARALLEL_WORK = 2**18
PART_WORK = 2**15
# Parts for each thread, at most.
_PARTS = 16
# A thread that finished its work waits so many times, some 50 ns each, before it sleeps: to wake it
# takes longer than a small job.
_LINGER = 2000

# The counters of a job, int64, in cache lines of their own: parts that were drawn, parts that are
# done, and whether the caller works. Nobody draws before: a caller who is interrupted until then
# leaves nothing behind that writes to its arrays.
_DRAWN, _DONE, _OPEN, _COUNTERS = U(0), U(8), U(16), 24
_NOTHING = 2**31  # a part of no job

# ---------------------------------------------------------------------------------------------
# The functions that are compiled as entry points. All threads of a job call the same one. The
# fields of a job come one by one: Numba inspects the type of every argument at every call, and is
# slow to look into tuples.


@jit
def _first_part(counters: Array, caller: bool) -> Index:
    """The first part that this thread draws; the caller's thread opens the job before."""
    if caller:
        fetch_add(counters, _OPEN, 1)
    turns = 0
    while fetch(counters, _OPEN) == 0:
        pause()
        turns += 1
        if turns > _LINGER:
            return _NOTHING
    return fetch_add(counters, _DRAWN, 1)


@jit
def _next_part(counters: Array) -> Index:
    """The part that this thread draws next, its last one being done."""
    fetch_add(counters, _DONE, 1)
    return fetch_add(counters, _DRAWN, 1)


@jit
def _wait(counters: Array, caller: bool, count: int, grain: int) -> None:
    """Let the caller wait for the parts that other threads have drawn."""
    while caller and fetch(counters, _DONE) * grain < count:
        pause()


def run_rows(counters: Array, caller: bool, count: int, grain: int, *fields: Any) -> None:
    """`rows` over the rows of the `Job` with these fields."""
    control = set_control(DEFAULT_CONTROL)
    job = Job(*fields)
    room = rows_scratch(job)
    part = _first_part(counters, caller)
    while part * grain < count:
        rows(part * grain, min((part + 1) * grain, count), job, room)
        part = _next_part(counters)
    _wait(counters, caller, count, grain)
    set_control(control)


def run_tiles(counters: Array, caller: bool, count: int, grain: int, *fields: Any) -> None:
    """`tiles` over the rows of the `Job` with these fields."""
    control = set_control(DEFAULT_CONTROL)
    job = Job(*fields)
    room = tiles_scratch(job)
    part = _first_part(counters, caller)
    while part * grain < count:
        tiles(part * grain, min((part + 1) * grain, count), job, room)
        part = _next_part(counters)
    _wait(counters, caller, count, grain)
    set_control(control)


def run_half_types(counters: Array, caller: bool, count: int, grain: int, *fields: Any) -> None:
    """`half_types` over the rows of the `Job` with these fields."""
    control = set_control(DEFAULT_CONTROL)
    job = Job(*fields)
    room = half_types_scratch(job)
    part = _first_part(counters, caller)
    while part * grain < count:
        half_types(part * grain, min((part + 1) * grain, count), job, room)
        part = _next_part(counters)
    _wait(counters, caller, count, grain)
    set_control(control)


def run_bernoulli(counters: Array, caller: bool, count: int, grain: int, *fields: Any) -> None:
    """`bernoulli` over the blocks of the `BernoulliJob` with these fields."""
    control = set_control(DEFAULT_CONTROL)
    job = BernoulliJob(*fields)
    room = bernoulli_scratch(job)
    part = _first_part(counters, caller)
    while part * grain < count:
        bernoulli(part * grain, min((part + 1) * grain, count), job, room)
        part = _next_part(counters)
    _wait(counters, caller, count, grain)
    set_control(control)


def linger(calls: Array, seen: int) -> None:
    """Wait a little for another call to be shared: until calls[0] is not `seen`."""
    turns = 0
    while fetch(calls, 0) == seen and turns < _LINGER:
        pause()
        turns += 1


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
_compiled: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}


def entry_point(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The entry point of `function` for the dtypes of the arrays among `arguments`."""
    dtypes = "".join([a.dtype.char for a in arguments if isinstance(a, np.ndarray)])
    found = _compiled.get((function, dtypes))
    if found is None:
        # Of several threads that come here at once, all get the same.
        found = _compiled.setdefault((function, dtypes), _compile(function, dtypes))
    return found


def _compile(function: Callable[..., Any], dtypes: str) -> Callable[..., Any]:
    """`function`, compiled at its first call, or loaded from Numba's cache.

    Every entry point is a copy of the function under a name of its own, and so has its own file: if
    a file holds several, two processes that compile at the same time can leave the code of one
    under the name of another.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{dtypes}"
    compiled: Any = numba.njit(**OPTIONS)(copy)
    try:
        cached: Any = numba.njit(cache=True, **OPTIONS)(copy)
        file = cached._cache._cache_file
        file._source_stamp = (file._source_stamp, _SOURCES)
    except (RuntimeError, AttributeError):
        # No directory for the files, or a Numba that keeps its stamp elsewhere.
        cached = compiled

    def ready(types: tuple[Any, ...]) -> Any:
        try:
            cached.compile(types)
        except (OSError, EOFError, pickle.PickleError):
            # The file is damaged or cannot be written.
            compiled.compile(types)
            return compiled
        return cached

    found: list[Callable[..., Any]] = []

    def entry(*arguments: Any) -> Any:
        if not found:
            # As Numba's dispatcher sees them: what *fields receives is one tuple.
            named = copy.__code__.co_argcount
            given = [*arguments[:named], *([arguments[named:]] if arguments[named:] else [])]
            types = tuple([numba.typeof(argument) for argument in given])
            found.append(_uninterrupted(lambda: ready(types)))
        return found[0](*arguments)

    return entry


def _uninterrupted(work: Callable[[], Any]) -> Any:
    """What `work` returns. Ctrl-C ends the call, and `work` goes on without it.

    The main thread leaves it to another one: LLVM calls back to Python while it compiles, and a
    KeyboardInterrupt that is raised in such a function, and so is lost, ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return work()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


# ---------------------------------------------------------------------------------------------
# Threads


class _Helpers:
    """Threads that wait for tasks, which are entry points with their arguments."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self.count = 0
        # How many calls shared their work. An array, since `linger` reads it without the GIL.
        self.calls = np.zeros(1, np.int64)
        self._linger: Callable[..., Any]

    def call(self, number: int, entry: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Let `number` threads call `entry`; there may be fewer, and they may come late."""
        if not self.count:
            # Compiled here, not in a helper.
            self._linger = entry_point(linger, (self.calls,))
            self._linger(self.calls, -1)
        try:
            while self.count < number:
                _thread.start_new_thread(self._help, ())
                self.count += 1
        except RuntimeError:  # no more threads: the others do the work
            number = self.count
        for _ in range(number):
            self.tasks.put((entry, arguments))
        self.calls[0] += 1

    def take_back(self) -> None:
        """Withdraw the tasks that no thread has begun, so that none holds the caller's arrays."""
        try:
            while not self.tasks.empty():
                self.tasks.get_nowait()
        except Empty:
            pass

    def _help(self) -> None:
        while True:
            entry, arguments = self.tasks.get()
            seen = int(self.calls[0])
            with suppress(BaseException):  # no memory: the caller does the work
                entry(*arguments)
            del entry, arguments
            self._linger(self.calls, seen)


_helpers = _Helpers()
# The callers that would share their work; the first of them does. A list and no lock, because an
# interrupt between acquiring a lock and entering `try` would leave it locked for ever.
_callers: list[object] = []
# The entry points that have been called: compiling one takes so long that helpers would not wait.
_called: set[Callable[..., Any]] = set()
_compiler: Any = global_compiler_lock


def _after_fork() -> None:
    """In a child of a fork the parent's threads do not exist."""
    global _helpers
    _callers.clear()
    _helpers = _Helpers()
    _compiler.release()


if hasattr(os, "register_at_fork"):
    # A child that is forked while a thread compiles would wait for the compiler's lock for ever.
    os.register_at_fork(
        before=_compiler.acquire,
        after_in_parent=_compiler.release,
        after_in_child=_after_fork,
    )


def launch(function: Callable[..., Any], job: tuple[Any, ...], count: int, work: int) -> None:
    """Run one of the functions above on a job of `count` rows or blocks and `work` elements.

    Several threads share it if it is large.
    """
    fields = tuple([writable(a) if isinstance(a, np.ndarray) else a for a in job])
    entry = entry_point(function, fields)
    counters = np.zeros(_COUNTERS, np.int64)
    threads = 1
    if work >= PARALLEL_WORK and entry in _called:
        threads = min(_threads.budget(), config.NUMBA_NUM_THREADS)
    caller = object()
    try:
        if threads > 1:
            _callers.append(caller)
        if threads > 1 and _callers[0] is caller:
            grain = max(1, count // (threads * _PARTS), count * PART_WORK // work)
            if count > WIDTH:  # whole tiles
                grain = -(-grain // int(WIDTH)) * int(WIDTH)
            try:
                _helpers.call(threads - 1, entry, (counters, False, count, grain, *fields))
                entry(counters, True, count, grain, *fields)
            finally:
                _helpers.take_back()
            return
    finally:
        if caller in _callers:
            _callers.remove(caller)
    entry(counters, True, count, max(1, count), *fields)
    _called.add(entry)


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
