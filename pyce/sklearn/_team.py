"""The threads of a fit."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

import pyce
from pyce._threads import at_most

Result = TypeVar("Result")

# The threads of a fit need BLAS on one thread each, and that setting is global to the process. So
# one fit at a time uses threads; fits that run at the same time use one thread.
_alone = threading.Lock()
_limits: ExitStack | None = None  # of BLAS, while a fit uses threads


def _after_fork() -> None:
    """Release in the child what a fit of another thread holds: that thread does not exist there."""
    global _alone, _limits
    _alone = threading.Lock()
    if _limits is not None:
        _limits.close()
        _limits = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of the process; finding them takes a millisecond.

    pyce is left out, since the end of a limit sets the numbers of threads of all libraries.
    """
    return ThreadpoolController().select(user_api="blas")


class Team:
    """The calling thread, and `threads` − 1 others."""

    def __init__(self, threads: int = 1, executor: Executor | None = None) -> None:
        self.threads = threads
        self._executor = executor

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of the tasks, the first of which runs on the calling thread."""
        if self._executor is None:
            return [task() for task in tasks]
        # `pyce.use_backend` sets the backend in the context of the caller.
        waiting = [
            self._executor.submit(contextvars.copy_context().run, task) for task in tasks[1:]
        ]
        return [tasks[0](), *(task.result() for task in waiting)]


@contextmanager
def team() -> Iterator[Team]:
    """As many threads as pyce may use, and BLAS on one thread, unless another fit runs."""
    global _limits
    with ExitStack() as stack:
        if not _alone.acquire(blocking=False):
            yield Team()
            return
        stack.callback(_alone.release)
        # In small products, the threads of NumPy's BLAS and of SciPy's slow each other down, since
        # both spin. In large ones, the threads of the fit take their place.
        _limits = stack.enter_context(ExitStack())
        _limits.enter_context(_libraries().limit(limits={"blas": 1}))
        stack.callback(_forget_limits)
        threads = pyce.get_num_threads()
        if threads < 2:
            yield Team()
            return
        stack.enter_context(at_most(1))  # in this context and in its copies
        yield Team(threads, stack.enter_context(ThreadPoolExecutor(threads - 1)))


def _forget_limits() -> None:
    global _limits
    _limits = None
