"""A test that leaves a setting of its process changed fails, and the setting is put back.

Which tests run in a process before another one, and when, depends on the number of processes and on
their speed. So no test may depend on what others leave behind.
"""

from __future__ import annotations

import _signal
import gc
import operator
import os
import random
import re
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import fpenv
import mpmath
import numpy as np
import pytest

from pyce import _threads


class Setting(NamedTuple):
    """A setting of the process or of its main thread: how it is read and put back."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    # What of two values differs: a list of keys, or whether they do.
    differ: Callable[[Any, Any], Any] = operator.ne


# Libraries set variables of their own when they are imported. Of new ones, only those count that
# pyce, its tests, or what both use may read.
_READ = re.compile(
    rb"(PYCE|OMP|OPENBLAS|MKL|BLIS|NUMBA|PYTHON|MALLOC|JAX|XLA|OMPI|MPI|MV2)|"
    rb"(LOCAL_WORLD_SIZE|WORLD_SIZE|RANK|CI|PATH|HOME|TMPDIR|COLUMNS|LINES|NO_COLOR|TERM)$"
)


def _environment() -> dict[bytes, bytes]:
    # Decoding all of them would take longer than everything else here.
    found = os.environ._data.copy()
    found.pop(b"PYTEST_CURRENT_TEST", None)
    return found


def _other_variables(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[bytes]:
    if before == after:
        return []
    names = (name for name in before | after if before.get(name) != after.get(name))
    return [name for name in names if name in before or _READ.match(name)]


def _put_environment(found: dict[bytes, bytes]) -> None:
    for name in _other_variables(found, _environment()):
        if name in found:
            os.environ[os.fsdecode(name)] = os.fsdecode(found[name])
        else:
            del os.environ[os.fsdecode(name)]


_SIGNALS = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGPIPE")
    if hasattr(signal, name)
]


def _put_handlers(found: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, found, strict=True):
        if handler is not None:  # one that was not set from Python
            signal.signal(number, handler)


def _of_the_system() -> Iterator[Setting]:
    yield Setting("the current directory", os.getcwd, os.chdir)
    # Without the enumerations of `signal`, which take most of its time.
    get = _signal.getsignal
    yield Setting("handlers of signals", lambda: [get(n) for n in _SIGNALS], _put_handlers)
    if os.name == "posix":
        yield Setting("environment variables", _environment, _put_environment, _other_variables)
        yield Setting(
            "the timer",
            lambda: signal.getitimer(signal.ITIMER_REAL) != (0, 0),
            lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
        )
        yield Setting(
            "blocked signals",
            lambda: _signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            lambda found: signal.pthread_sigmask(signal.SIG_SETMASK, found),
        )
    if hasattr(os, "sched_setaffinity"):
        yield Setting(
            "the CPU affinity",
            lambda: os.sched_getaffinity(0),
            lambda found: os.sched_setaffinity(0, found),
        )
    if fpenv.KNOWN:
        yield Setting(
            "the floating-point environment", lambda: fpenv.get() & fpenv.CONTROL, fpenv.put
        )


def _of_python() -> Iterator[Setting]:
    def path() -> list[str]:
        # The import of setuptools appends this folder.
        return [one for one in sys.path if not one.endswith("setuptools/_vendor")]

    def put_path(found: list[str]) -> None:
        sys.path[:] = found

    yield Setting("sys.path", path, put_path)
    yield Setting("gc.isenabled", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield Setting(
        "tracemalloc.is_tracing",
        tracemalloc.is_tracing,
        lambda on: tracemalloc.start() if on else tracemalloc.stop(),
    )
    yield Setting("sys.setswitchinterval", sys.getswitchinterval, sys.setswitchinterval)
    # Only if it is lower: PyTorch's compiler raises it to 2000, unless the result is in its cache.
    yield Setting(
        "sys.setrecursionlimit", sys.getrecursionlimit, sys.setrecursionlimit, operator.gt
    )


def _of_libraries() -> Iterator[Setting]:
    yield Setting("numpy.seterr", np.geterr, lambda found: np.seterr(**found))
    yield Setting("mpmath.mp.prec", lambda: mpmath.mp.prec, lambda n: setattr(mpmath.mp, "prec", n))
    yield Setting("at_most of pyce._threads", _threads._at_most.get, _threads._at_most.set)
    torch: Any = sys.modules.get("torch")
    if torch:
        yield Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads)
        yield Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype)
        yield Setting("torch.set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled)
        yield Setting(
            "torch.use_deterministic_algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        )
    jax: Any = sys.modules.get("jax")
    if jax:
        yield Setting(
            "jax_enable_x64",
            lambda: jax.config.jax_enable_x64,
            lambda on: jax.config.update("jax_enable_x64", on),
        )


def _names_of_pyce() -> dict[str, Any]:
    """What the names of pyce's modules stand for."""
    return {
        f"{module}:{name}": value
        for module, content in list(sys.modules.items())
        if module.split(".")[0] == "pyce"
        for name, value in list(vars(content).items())
    }


def _other_names(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Constants, functions and classes that have been replaced; modules are imported meanwhile."""
    fixed = (k for k in before if k in after and (k.split(":")[1].isupper() or callable(before[k])))
    return [k for k in fixed if before[k] is not after[k]]


def _put_names(found: dict[str, Any]) -> None:
    for place in _other_names(found, _names_of_pyce()):
        module, name = place.split(":")
        setattr(sys.modules[module], name, found[place])


@cache
def _pools() -> list[Any]:
    """The libraries of BLAS and OpenMP that threadpoolctl finds."""
    threadpoolctl = sys.modules.get("threadpoolctl")
    if threadpoolctl is None:
        return []
    found = threadpoolctl.ThreadpoolController().lib_controllers
    return [library for library in found if library.user_api != "pyce"]


def _put_limits(found: list[int]) -> None:
    for library, limit in zip(_pools(), found, strict=True):
        library.set_num_threads(limit)


@cache
def _of_a_test(*_imported: bool) -> list[Setting]:
    """What takes a microsecond to read: there are tens of thousands of tests."""
    return [*_of_the_system(), *_of_python(), *_of_libraries()]


@cache
def _of_a_file(*_imported: bool) -> list[Setting]:
    """The rest, which takes longer."""

    def limits() -> list[int]:
        return [library.get_num_threads() for library in _pools()]

    found = [
        Setting("pyce", _names_of_pyce, _put_names, _other_names),
        Setting("threads of BLAS and OpenMP", limits, _put_limits),
        Setting("numpy.set_printoptions", np.get_printoptions, _put_printoptions),
    ]
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib:
        rc = matplotlib.rcParams
        found.append(Setting("matplotlib.rcParams", lambda: dict(rc), rc.update))
    return found


def _put_printoptions(found: dict[str, Any]) -> None:
    np.set_printoptions(**found)


@contextmanager
def _unchanged(settings: list[Setting]) -> Iterator[None]:
    before = [setting.get() for setting in settings]
    yield
    changed = []
    for setting, was in zip(settings, before, strict=True):
        now = setting.get()
        keys = setting.differ(was, now)
        if not keys:
            continue
        setting.put(was)
        if isinstance(keys, list):
            was, now = ({key: one.get(key) for key in keys} for one in (was, now))
        changed.append(f"{setting.name}: {was} before, {now} after")
    if changed:
        pytest.fail("\n".join(["left changed in this process:", *changed]), pytrace=False)


def _imported() -> tuple[bool, ...]:
    return tuple(name in sys.modules for name in ("torch", "jax", "matplotlib"))


@pytest.fixture(autouse=True, scope="module")
def _unchanged_by_a_file():
    """Also by the fixtures that the tests of a file share, which end before this one does."""
    with _unchanged(_of_a_test(*_imported()) + _of_a_file(*_imported())):
        yield


@pytest.fixture(autouse=True)
def _unchanged_by_a_test():
    """Global random numbers are the same at the beginning of each test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch: Any = sys.modules.get("torch")
    if torch:
        torch.default_generator.manual_seed(0)
    with _unchanged(_of_a_test(*_imported())):
        yield
