"""How many threads a call may use: what was asked for, limited by what the process may run on.

Asked for: `set_num_threads`, else PYCE_NUM_THREADS, else OMP_NUM_THREADS, else every processor.
Limits: the CPU affinity of the calling thread, read at every large call; the CPU quotas of the
process's control group and its ancestors (version 1 and 2), re-read at most once a second; what
threadpoolctl was told; what the code that calls us runs on (`at_most`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pyce import _fpenv

_asked: int | None = None
_limit: float = math.inf
_at_most: ContextVar[float] = ContextVar("pyce_threads", default=math.inf)
_quota: float = math.inf
_quota_read_at: int | None = None  # ns

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


def budget() -> int:
    """How many threads may run, asked once for every call that is large enough to share."""
    return max(1, math.ceil(min(_unlimited(), _limit, _at_most.get())))


@contextmanager
def at_most(n: int) -> Iterator[None]:
    """At most `n` threads in calls made in this block, by this thread and task alone."""
    token = _at_most.set(n)
    try:
        yield
    finally:
        _at_most.reset(token)


def limit(n: int) -> None:
    """Use at most `n` threads, whatever was asked for, until told otherwise; for threadpoolctl.

    To end a limit, threadpoolctl sets the number that it found before. So a number that limits
    nothing is none: what was asked for, the affinity and the quota count again as they change.
    """
    global _limit
    _limit = n if n < _unlimited() else math.inf


def _unlimited() -> float:
    return min(_wanted(), _affinity(), _quota_now())


def _wanted() -> int:
    if _asked is not None:
        return _asked
    text = os.environ.get("PYCE_NUM_THREADS")
    if text:
        return _positive(text)
    # OMP_NUM_THREADS may be a list (one number per nesting level) and is not ours to complain of.
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(text)) if text.isdigit() else 2**31 - 1


def _positive(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"PYCE_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    return int(text)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system
        return os.cpu_count() or 1


def _quota_now() -> float:
    global _quota, _quota_read_at
    now = time.monotonic_ns()  # no float, whose arithmetic would leave flags in the caller
    if _quota_read_at is None or now - _quota_read_at >= 1_000_000_000:
        _quota = _read_quota()
        _quota_read_at = now
    return _quota


@_fpenv.default
def _read_quota() -> float:
    """In whole processors."""
    quota = cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return quota if quota == math.inf else math.ceil(quota)


def cgroup_quota(membership: Path, root: Path) -> float:
    """The smallest CPU quota, in processors, of the process's group and its ancestors; inf if none.

    `membership` lists the process's groups (a line `id:controllers:path` for each hierarchy),
    `root` is where the hierarchies are mounted.
    """
    try:
        lines = os.fsdecode(membership.read_bytes()).splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = [root] if not controllers else [root / controllers, root / "cpu"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                quota = min(quota, _quota_of(mount.joinpath(*parts[:depth])))
    return quota


def _quota_of(group: Path) -> float:
    try:
        limit, period = (group / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return int(limit) / int(period) if limit != "max" and int(limit) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf
