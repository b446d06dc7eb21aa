"""The choice of the backend and of the number of threads."""

from __future__ import annotations

from types import TracebackType
from typing import SupportsIndex, cast

from pyce import _backends, _threads
from pyce._arguments import positive_number
from pyce._types import BackendChoice, BackendName


def backends() -> list[BackendName]:
    """The backends that can be used on this machine, in order of preference.

    Returns
    -------
    list of str
        Some of "c", "numba" and "numpy", the fastest on this machine first: C, but Numba before C
        on a processor for which C has only its plain kernels, unless PYCE_ISA is set. `info` says
        why the others cannot be used.

    Examples
    --------
    >>> "numpy" in pyce.backends()
    True
    """
    return [name for name in _backends.preference() if _backends.why_not(name) is None]


def get_backend() -> BackendName:
    """The backend that a call made now, in this thread and task, runs on.

    Returns
    -------
    str
        "c", "numba" or "numpy".

    Raises
    ------
    ValueError
        If PYCE_BACKEND or PYCE_ISA is set to a value that is unknown or cannot be used here; the
        message lists the choices.

    Examples
    --------
    >>> with pyce.use_backend("numpy"):
    ...     print(pyce.get_backend())
    numpy
    """
    return cast(BackendName, _backends.current().NAME)


def set_backend(name: BackendChoice) -> None:
    """Run on the named backend from now on, in the whole process.

    An active `use_backend` takes precedence.

    Parameters
    ----------
    name : {"auto", "c", "numba", "numpy"}
        "auto" is the backend that the environment variable PYCE_BACKEND names, or the first of
        `backends`. It is decided at the first call that needs it.

    Raises
    ------
    ValueError
        If the backend is unknown or cannot be used on this machine; the message lists the choices.
        Nothing is changed then.

    Examples
    --------
    >>> pyce.set_backend("numpy")
    >>> pyce.get_backend()
    'numpy'
    """
    _backends.set_default(name)


class use_backend:
    """Run on the named backend inside a with block, in this thread and task only.

    Blocks can be nested, and threads can enter the same object at the same time. A thread that is
    started inside the block runs on the backend as well if Python starts threads with the caller's
    context (`sys.flags.thread_inherit_context`), as free-threaded builds do by default.

    Parameters
    ----------
    name : {"auto", "c", "numba", "numpy"}
        "auto" is the backend that the environment variable PYCE_BACKEND names, or the first of
        `backends`. It is decided at the first call that needs it.

    Raises
    ------
    ValueError
        On entry, if the backend is unknown or cannot be used on this machine; the message lists the
        choices.
    RuntimeError
        On exit, if this thread or task is in no such block: a generator or a fixture may end in
        another one than it began in, where the choice remains.

    Examples
    --------
    >>> with pyce.use_backend("numpy"):
    ...     print(pyce.get_backend())
    numpy
    """

    def __init__(self, name: BackendChoice) -> None:
        self._name = name

    def __enter__(self) -> None:
        _backends.choose(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _backends.unchoose()


def set_num_threads(n: SupportsIndex) -> None:
    """Use at most `n` threads per call from now on, in every backend.

    The calling thread is one of them. Fewer run if the CPU affinity, the control group or a limit
    set by threadpoolctl allows fewer, or if a call is too small to share.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1.

    Examples
    --------
    >>> pyce.set_num_threads(1)
    >>> pyce.get_num_threads()
    1
    """
    _threads.ask(positive_number(n, "threads"))


def get_num_threads() -> int:
    """The number of threads that a large call made now may use.

    Returns
    -------
    int
        The least of the number set by `set_num_threads` or the environment variables
        PYCE_NUM_THREADS and OMP_NUM_THREADS (as it was when pyce was imported), the CPU affinity,
        the control group's quota and the limit set by threadpoolctl; at least 1. If none of the
        first three is set, the processes that torchrun or mpiexec started on this machine divide
        its processors and the quota. In a worker process of PyTorch's DataLoader it is 1, as the
        number of PyTorch's own threads, unless `set_num_threads` or PYCE_NUM_THREADS says
        otherwise.

    Raises
    ------
    ValueError
        If PYCE_NUM_THREADS is set to something other than an integer of at least 1.

    Examples
    --------
    >>> pyce.get_num_threads() >= 1
    True
    """
    return _threads.budget()
