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
import ctypes
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from queue import Empty, SimpleQueue
from types import FunctionType
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
    U0,
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
from pyce._backends.numba._shards import (
    ShardJob,
    complete_rows,
    partial_rows,
    shards_scratch,
)
from pyce._backends.numba._tiles import tiles, tiles_scratch
from pyce._backends.numba._vectors import LANES
from pyce._types import Array

# Work, in elements, from which a call uses several threads, half of it if calls follow each other
# within so many ns, so that the threads are awake; and the work of the smallest part.
PARALLEL_WORK = 2**18
_AWAKE_NS = 200_000
PART_WORK = 2**14
# Parts for each thread, at most.
_PARTS = 16
# A thread that finished its work waits so many times, some 50 ns each, before it sleeps: to wake it
# takes longer than a small job.
_LINGER = 2000

# The counters of a job, int64, in cache lines of their own: parts that were drawn, parts that are
# done, and whether the caller works. Nobody draws before: a caller who is interrupted until then
# leaves nothing behind that writes to its arrays. Then whether the job has ended; helpers that have
# begun; those of them that have their scratch memory, or need none; and those that got none.
_DRAWN, _DONE, _OPEN, _ENDED = U(0), U(8), U(16), U(24)
_BEGUN, _READY, _FAILED, _COUNTERS = U(32), U(40), U(48), 57
_NOTHING = 2**31  # a part of no job

# ---------------------------------------------------------------------------------------------
# The functions that are compiled as entry points. All threads of a job call the same one.


@jit
def _first_part(counters: Array, calls: Array, caller: bool) -> Index:
    """The first part that this thread draws; the caller's thread opens the job before."""
    if caller:
        fetch_add(counters, _OPEN, 1)
        # Here the caller has released the GIL, which helpers need to take their task.
        fetch_add(calls, U0, 1)
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
def _is_in_time(counters: Array, caller: bool) -> bool:
    """Whether the job goes on. A helper that comes later has nothing to do."""
    if caller:
        return True
    fetch_add(counters, _BEGUN, 1)
    if fetch(counters, _ENDED) == 0:
        return True
    fetch_add(counters, _READY, 1)
    return False


@jit
def _wait(counters: Array, count: int, grain: int) -> None:
    """Let the caller wait for the parts that others have drawn, and until nobody allocates memory.

    CPython ends the process if tracemalloc.stop() is called while a thread without the GIL
    allocates.
    """
    while fetch(counters, _DONE) * grain < count:
        pause()
    fetch_add(counters, _ENDED, 1)
    while fetch(counters, _READY) + fetch(counters, _FAILED) < fetch(counters, _BEGUN):
        pause()


# Each entry point has its own values of these three names, in which they differ.
_job_type: Any = Job
_scratch: Any = rows_scratch
_kernel: Any = rows


def _run(
    counters: Array, calls: Array, caller: bool, count: int, grain: int, fields: tuple[Any, ...]
) -> None:
    """A kernel over `count` rows or blocks of the job with these fields.

    The caller adds 1 to calls[0], which helpers watch.
    """
    if not _is_in_time(counters, caller):
        return
    control = set_control(DEFAULT_CONTROL)
    job = _job_type(*fields)
    room = _scratch(job)
    if not caller:
        fetch_add(counters, _READY, 1)
    part = _first_part(counters, calls, caller)
    while part * grain < count:
        _kernel(part * grain, min((part + 1) * grain, count), job, room)
        part = _next_part(counters)
    if caller:
        _wait(counters, count, grain)
    set_control(control)


def _entry_of(name: str, job_type: Any, scratch: Any, kernel: Any) -> Callable[..., Any]:
    """`_run` for one kernel. Not a closure: Numba's cache would not know it in the next process."""
    names = {**globals(), "_job_type": job_type, "_scratch": scratch, "_kernel": kernel}
    return FunctionType(_run.__code__, names, name)


run_rows = _entry_of("run_rows", Job, rows_scratch, rows)
run_tiles = _entry_of("run_tiles", Job, tiles_scratch, tiles)
run_half_types = _entry_of("run_half_types", Job, half_types_scratch, half_types)
run_bernoulli = _entry_of("run_bernoulli", BernoulliJob, bernoulli_scratch, bernoulli)
run_partial = _entry_of("run_partial", ShardJob, shards_scratch, partial_rows)
run_complete = _entry_of("run_complete", ShardJob, shards_scratch, complete_rows)


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
            return cached.compile(types)
        except (OSError, EOFError, pickle.PickleError):
            # The file is damaged or cannot be written.
            return compiled.compile(types)

    found: list[Callable[..., Any]] = []

    def entry(*arguments: Any) -> Any:
        # The compiled function itself: Numba's dispatcher would inspect the type of every argument
        # at every call, and these are always the same.
        if not found:
            types = tuple([_type_of(argument) for argument in arguments])
            found.append(_uninterrupted(lambda: ready(types)))
        return found[0](*arguments)

    return entry


def _type_of(argument: Any) -> Any:
    """Numba's type of an argument. Arrays count as writable; kernels write to outputs alone."""
    if isinstance(argument, tuple):
        return numba.types.Tuple([_type_of(item) for item in argument])
    found = numba.typeof(argument)
    return found.copy(readonly=False) if isinstance(argument, np.ndarray) else found


def _uninterrupted(work: Callable[[], Any]) -> Any:
    """The result of `work`. Ctrl-C ends the call, and `work` goes on without it.

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


def _this_processor() -> Callable[[], int]:
    """The function of the C library that tells which processor the calling thread runs on."""
    with suppress(AttributeError, OSError, TypeError):  # not on this system
        found: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
        return found
    return lambda: -1


_processor = _this_processor()


class _Helper:
    """The state of a helper, which callers read."""

    def __init__(self) -> None:
        self.thread = 0  # as the system numbers it; 0 until it has begun
        self.asleep = False
        self.processor = -1  # that it was last seen on
        self.excluded = -1  # that it may not use: where its caller ran last
        self.allowed: set[int] = set()  # what it may use apart from that: what its caller may


class _Helpers:
    """Threads that wait for tasks, which are entry points with their arguments."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self.all: list[_Helper] = []
        # How many calls shared their work. An array, since `linger` reads it without the GIL.
        self.calls = np.zeros(1, np.int64)
        self._linger: Callable[..., Any]
        self.last_end = 0  # of a call that may be shared, in ns of the monotonic clock

    @property
    def count(self) -> int:
        """The number of threads."""
        return len(self.all)

    def call(self, number: int, entry: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Let `number` threads call `entry`; there may be fewer, and they may come late."""
        if not self.all:
            # Compiled here, not in a helper.
            self._linger = entry_point(linger, (self.calls,))
            self._linger(self.calls, -1)
        try:
            while len(self.all) < number:
                helper = _Helper()
                _thread.start_new_thread(self._help, (helper,))
                self.all.append(helper)
        except RuntimeError:  # no more threads: the others do the work
            number = len(self.all)
        self._place()
        for _ in range(number):
            self.tasks.put((entry, arguments))

    def are_worth_waking(self, work: int) -> bool:
        """Whether a call with this work should be shared; notes its time."""
        now = time.monotonic_ns()
        awake = now - self.last_end < _AWAKE_NS
        self.last_end = now
        return awake or work >= PARALLEL_WORK

    def _place(self) -> None:
        """Let helpers run where the caller may, but let none wake or stay on its processor.

        Linux tends to wake a thread on the processor of the thread that wakes it, where the two
        would take turns.
        """
        here = _processor()
        if here < 0:
            return
        with suppress(AttributeError, OSError):  # not on this system, or not permitted
            allowed = os.sched_getaffinity(0)
            for helper in self.all:
                conflicts = helper.asleep or helper.processor == here
                same = helper.allowed == allowed and (not conflicts or helper.excluded == here)
                if same or not helper.thread:
                    continue
                if helper.allowed != allowed:  # else keep the set that is there
                    helper.allowed = allowed
                helper.excluded = here if conflicts else -1
                os.sched_setaffinity(helper.thread, allowed - {helper.excluded} or allowed)

    def take_back(self) -> None:
        """Withdraw the tasks that no thread has begun, so that none holds the caller's arrays."""
        try:
            while not self.tasks.empty():
                self.tasks.get_nowait()
        except Empty:
            pass

    def _help(self, helper: _Helper) -> None:
        helper.thread = threading.get_native_id()
        while True:
            helper.asleep = True
            entry, arguments = self.tasks.get()
            helper.asleep = False
            try:
                entry(*arguments)
            except BaseException:  # no memory: the caller does the work
                arguments[0][_FAILED] += 1
            del entry, arguments
            helper.processor = _processor()
            seen = int(self.calls[0])
            if self.tasks.empty():
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
    fields = tuple(job)
    entry = entry_point(function, fields)
    counters = np.zeros(_COUNTERS, np.int64)
    threads = 1
    if 2 * work >= PARALLEL_WORK and entry in _called and _helpers.are_worth_waking(work):
        threads = min(_threads.budget(), config.NUMBA_NUM_THREADS)
    caller = object()
    try:
        if threads > 1:
            _callers.append(caller)
        if threads > 1 and _callers[0] is caller:
            grain = max(1, count // (threads * _PARTS), count * PART_WORK // work)
            whole = int(WIDTH if 2 * grain > WIDTH else LANES)  # tiles, or vectors
            if count > whole:
                grain = -(-grain // whole) * whole
            calls = _helpers.calls
            try:
                _helpers.call(threads - 1, entry, (counters, calls, False, count, grain, fields))
                entry(counters, calls, True, count, grain, fields)
            finally:
                _helpers.take_back()
            _helpers.last_end = time.monotonic_ns()
            return
    finally:
        if caller in _callers:
            _callers.remove(caller)
    entry(counters, counters[-1:], True, count, max(1, count), fields)
    _called.add(entry)
