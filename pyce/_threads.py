"""How many threads a call may use: the number asked for, limited by what the process may run on.

The number asked for is that of `ask`, else of PYCE_NUM_THREADS, else 1 in a worker of PyTorch's
DataLoader, else of OMP_NUM_THREADS, else unlimited. The limits are the CPU affinity of the calling
thread, read at every large call (on Windows that of the process; macOS has none); the CPU quotas of
the process's control group and its ancestors (cgroup versions 1 and 2), read at most once a second;
the limit set through threadpoolctl; and `at_most` of the calling code, which replaces
OMP_NUM_THREADS: PyTorch reads that variable itself, and a program may ask PyTorch for more.

Where no number is asked for, the processes that a launcher (torchrun, mpiexec) started on this
machine divide its processors, and a quota: they may all have the affinity of the whole machine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyce import _fpenv

_asked: int | None = None
_limit: float = math.inf
_at_most: ContextVar[float] = ContextVar("pyce_threads", default=math.inf)
# The variables by which launchers tell a process how many they started on its machine.
_RANKS = (
    "LOCAL_WORLD_SIZE",  # torchrun
    "OMPI_COMM_WORLD_LOCAL_SIZE",  # Open MPI
    "MPI_LOCALNRANKS",  # MPICH and Intel MPI
    "MV2_COMM_WORLD_LOCAL_SIZE",  # MVAPICH
)
# Of a longer number of threads, so many digits count: there are fewer processors in any case.
_DIGITS = 18
_quota: float = math.inf
_quota_read_at: int | None = None  # ns
_changed: list[Callable[[], None]] = []

# Whether this process was forked from one that had imported pyce.
forked = False


def _after_fork() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def ask(n: int) -> None:
    """Use at most `n` threads per call from now on."""
    global _asked
    _asked = n
    _tell()


def notify(changed: Callable[[], None]) -> None:
    """Call a function now, and whenever `ask` or `limit` changes the number of threads."""
    _changed.append(changed)
    changed()


def _tell() -> None:
    for changed in _changed:
        changed()


def budget(most: float = math.inf) -> int:
    """The number of threads that a call may use; called for every call large enough to share.

    `most` is a limit for this call, as that of `at_most` is.
    """
    return max(1, math.ceil(min(_unlimited(min(most, _at_most.get())), _limit)))


def of_process() -> int:
    """As `budget`, without `at_most`: for calls that cannot ask when they are made."""
    return max(1, math.ceil(min(_unlimited(), _limit)))


@contextmanager
def at_most(n: int) -> Iterator[None]:
    """Use at most `n` threads for calls made in this block, by this thread and task only."""
    token = _at_most.set(n)
    try:
        yield
    finally:
        _at_most.reset(token)


def limit(n: int) -> None:
    """Use at most `n` threads, whatever was asked for, until the next call; for threadpoolctl.

    To end a limit, threadpoolctl sets the number that it found before. So a number that does not
    reduce the present one removes the limit: the number asked for, the affinity and the quota count
    again, also if they change.
    """
    global _limit
    _limit = n if n < _unlimited() else math.inf
    _tell()


def _unlimited(most: float = math.inf) -> float:
    return min(_wanted(most), most, processors(), _quota_now())


def _wanted(most: float) -> float:
    if _asked is not None:
        return _asked
    text = os.environ.get("PYCE_NUM_THREADS")
    if text:
        return _positive(text)
    if _is_data_loader_worker():
        return 1
    if most == math.inf and _of_openmp is not None:
        return _of_openmp
    if _ranks == 1:
        return math.inf
    return min(os.cpu_count() or 1, _quota_now()) // _ranks


def _ranks_here() -> int:
    """The number of processes that a launcher started on this machine, 1 without a launcher."""
    for name in _RANKS:
        number = _whole(os.environ.get(name, ""))
        if number is not None:
            return max(1, number)
    return 1


def _threads_of_openmp() -> int | None:
    """OMP_NUM_THREADS, or the first number of a list; OpenMP reports errors in it."""
    number = _whole(os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip())
    return None if number is None else max(1, number)


def _whole(text: str) -> int | None:
    """The number that the digits 0 to 9 write; None for any other text.

    int() takes digits of other alphabets, str.isdigit() even "²", and int() refuses long numbers:
    of those, the first digits are as good.
    """
    digits = text.lstrip("0")[:_DIGITS] or text[:1]
    return int(digits) if text.isascii() and text.isdigit() else None


# Read once, as OpenMP does: a program may set OMP_NUM_THREADS for the processes that it starts, as
# Dask's cluster does.
_ranks = _ranks_here()
_of_openmp = _threads_of_openmp()


def _is_data_loader_worker() -> bool:
    """Whether this process is a worker of PyTorch's DataLoader, where PyTorch uses one thread."""
    worker = sys.modules.get("torch.utils.data._utils.worker")
    return getattr(worker, "_worker_info", None) is not None


def _positive(text: str) -> int:
    number = _whole(text.strip())
    if not number:
        raise ValueError(f"PYCE_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    return number


def processors() -> int:
    """The number of processors in the affinity of the calling thread; on Windows of the process."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system
        return _affinity_on_windows() or os.cpu_count() or 1


def _affinity_on_windows() -> int:
    """The number of processors in the affinity mask of the process.

    0 on other systems, and where Windows reports no mask, since the process uses processors of
    several groups (there are more than 64).
    """
    if sys.platform != "win32":
        return 0
    import ctypes

    kernel = ctypes.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.GetProcessAffinityMask.argtypes = [ctypes.c_void_p] + 2 * [ctypes.c_void_p]
    mask, of_system = ctypes.c_size_t(), ctypes.c_size_t()
    both = ctypes.byref(mask), ctypes.byref(of_system)
    if not kernel.GetProcessAffinityMask(kernel.GetCurrentProcess(), *both):
        return 0
    return mask.value.bit_count()


def _quota_now() -> float:
    global _quota, _quota_read_at
    now = time.monotonic_ns()  # an integer: float arithmetic would set the caller's status flags
    if _quota_read_at is None or now - _quota_read_at >= 1_000_000_000:
        _quota = _read_quota()
        _quota_read_at = now
    return _quota


@_fpenv.default
def _read_quota() -> float:
    """The quota in processors, rounded up."""
    quota = cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup")
    return quota if quota == math.inf else math.ceil(quota)


def cgroup_quota(membership: str | os.PathLike[str], root: str | os.PathLike[str]) -> float:
    """The smallest CPU quota, in processors, of the process's group and its ancestors; inf if none.

    `membership` lists the process's groups (a line `id:controllers:path` for each hierarchy), and
    `root` is the directory that the hierarchies are mounted in.
    """
    # Without pathlib, whose import takes half the time of pyce's.
    try:
        with open(membership, "rb") as file:
            lines = os.fsdecode(file.read()).splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        places = [controllers, "cpu"] if controllers else [""]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for place in places:
            for depth in range(len(parts), -1, -1):
                quota = min(quota, _quota_of(os.path.join(root, place, *parts[:depth])))
    return quota


def _quota_of(group: str) -> float:
    try:
        limit, period = _words(group, "cpu.max")[:2]
    except (OSError, ValueError):
        try:
            limit = _words(group, "cpu.cfs_quota_us")[0]
            period = _words(group, "cpu.cfs_period_us")[0]
        except (OSError, IndexError):
            return math.inf
    try:
        return int(limit) / int(period) if limit != "max" and int(limit) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf


def _words(group: str, name: str) -> list[str]:
    with open(os.path.join(group, name), encoding="utf-8") as file:
        return file.read().split()
