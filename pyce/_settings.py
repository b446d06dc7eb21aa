"""What calls run on: the choice of the backend and of the number of threads."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pyce import _backends, _threads
from pyce._arguments import positive_number


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


def set_num_threads(n: int) -> None:
    """Use at most `n` threads per call from now on, in every backend.

    The calling thread counts as one of them. Fewer run where the CPU affinity, the control group or
    a limit set by threadpoolctl allows fewer.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        When `n` is no whole number.
    ValueError
        For `n` below 1.

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
        The smallest of what `set_num_threads` or the environment asks for, the CPU affinity, the
        control group's quota and the limit set by threadpoolctl; at least 1.

    Raises
    ------
    ValueError
        When PYCE_NUM_THREADS is set to something other than a whole number of at least 1.

    Examples
    --------
    >>> pyce.get_num_threads() >= 1
    True
    """
    return _threads.budget()
