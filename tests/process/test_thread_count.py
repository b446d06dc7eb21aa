"""The number of threads: the setting, and the limits of CPU affinity and control groups."""

import json
import math
import os
import shutil
import sys
from unittest import mock

import numpy as np
import pytest

import pyce
from pyce import _machine, _threads


def test_set_num_threads():
    pyce.set_num_threads(1)
    assert pyce.get_num_threads() == 1
    assert pyce.info()["threads"] == 1
    pyce.set_num_threads(2**20)
    assert 1 <= pyce.get_num_threads() <= 2**20
    pyce.set_num_threads(np.int32(1))
    assert pyce.get_num_threads() == 1


def test_every_setting_is_told_to_those_who_ask_for_it(monkeypatch, many_processors):
    """Of the process: a compiled program of JAX calls pyce without Python."""
    monkeypatch.setattr(_threads, "_changed", [])
    seen = []
    _threads.notify(lambda: seen.append(_threads.of_process()))
    pyce.set_num_threads(6)
    assert seen[1:] == [6]
    _threads.limit(4)
    _threads.limit(6)  # the end of the limit
    assert seen[2:] == [4, 6]


def test_threads_are_limited_by_the_process(monkeypatch):
    """By its affinity and its quota; a fraction of a processor counts as one."""

    pyce.set_num_threads(5)
    for processors, quota, expected in ((8, math.inf, 5), (3, math.inf, 3), (8, 1.5, 2), (1, 9, 1)):
        monkeypatch.setattr(
            _threads.os, "sched_getaffinity", lambda _, n=processors: range(n), raising=False
        )
        monkeypatch.setattr(_threads, "_quota_now", lambda q=quota: q)
        assert pyce.get_num_threads() == expected
    monkeypatch.delattr(_threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(_threads, "_quota_now", lambda: math.inf)
    assert pyce.get_num_threads() == 4


def test_ranks_of_a_launcher_divide_the_processors(monkeypatch):
    """And the quota, but not an affinity, which they have from the launcher, nor what is asked."""
    monkeypatch.setattr(_threads, "_asked", None)
    monkeypatch.delenv("PYCE_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_of_openmp", None)
    monkeypatch.setattr(_threads.os, "cpu_count", lambda: 64)
    for ranks, processors, quota, expected in (
        *((1, 64, math.inf, 64), (4, 64, math.inf, 16), (4, 8, math.inf, 8)),
        *((3, 64, math.inf, 21), (100, 64, math.inf, 1), (4, 64, 9, 2)),
    ):
        monkeypatch.setattr(_threads, "_ranks", ranks)
        monkeypatch.setattr(_threads, "processors", lambda n=processors: n)
        monkeypatch.setattr(_threads, "_quota_now", lambda q=quota: q)
        assert pyce.get_num_threads() == expected, (ranks, processors, quota)
        with _threads.at_most(5):
            assert pyce.get_num_threads() == min(5, expected)
    monkeypatch.setattr(_threads, "_of_openmp", 7)
    assert pyce.get_num_threads() == 7
    with _threads.at_most(5):
        assert pyce.get_num_threads() == 2  # the variable is the caller's
    monkeypatch.setenv("PYCE_NUM_THREADS", "6")
    assert pyce.get_num_threads() == 6
    with _threads.at_most(5):
        assert pyce.get_num_threads() == 5


@pytest.mark.parametrize("name", _threads._RANKS)
def test_launchers_state_the_number_of_ranks(monkeypatch, name):
    for other in _threads._RANKS:
        monkeypatch.delenv(other, raising=False)
    assert _threads._ranks_here() == 1
    for text, expected in (("", 1), ("1", 1), ("4", 4), ("0", 1), ("many", 1)):
        monkeypatch.setenv(name, text)
        assert _threads._ranks_here() == expected


def test_ranks_of_mpiexec(run_python):
    """The launcher of the environment, if there is one: none of its ranks is told a number."""
    folders = (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join(folders))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    code = f"""if True:
        import os, subprocess, sys
        for name in {(*_threads._RANKS, "OMP_NUM_THREADS")}:
            os.environ.pop(name, None)
        # Open MPI requires both of root.
        os.environ |= dict.fromkeys(
            ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"], "1"
        )
        # One write of each process: their outputs are mixed.
        program = "import os, pyce; from pyce import _threads; threads = pyce.get_num_threads();"
        program += "os.write(1, f'{{threads}} {{_threads.processors()}} '.encode())"
        command = [{mpiexec!r}, "-n", "2", sys.executable, "-c", program]
        print(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    """
    share = max(1, min(os.cpu_count(), _threads._quota_now()) // 2)
    found = run_python("-c", code).stdout.split()
    assert len(found) == 4
    for threads, processors in zip(found[::2], found[1::2], strict=True):
        assert int(threads) == min(share, int(processors))


def kernel32(mask, works):
    """A stand-in for the library with the affinity mask of a process on Windows."""

    def get_mask(process, of_process, of_system):
        of_process._obj.value, of_system._obj.value = mask, 0xFF
        return works

    return mock.Mock(GetProcessAffinityMask=mock.Mock(side_effect=get_mask))


@pytest.mark.parametrize(
    ("mask", "works", "expected"), [(0b1011, 1, 3), (2**64 - 1, 1, 64), (0, 1, 96), (3, 0, 96)]
)
def test_threads_are_limited_by_the_affinity_mask_on_windows(monkeypatch, mask, works, expected):
    """A process on several groups of processors has no mask: then by the number of processors."""
    libraries = {"kernel32": kernel32(mask, works)}
    monkeypatch.setattr("ctypes.WinDLL", libraries.__getitem__, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(_threads, "_quota_now", lambda: math.inf)
    pyce.set_num_threads(10**6)
    assert pyce.get_num_threads() == expected
    assert _machine.processors() == expected


# What Windows lacks of the standard library and of the file system.
WITHOUT_POSIX = """
import builtins, importlib, os, runpy, signal, subprocess, sys
import numpy as np
if os.environ["PYCE_BACKEND"] == "numba":
    importlib.import_module("numba")
for name in ("fork", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "getuid",
             "geteuid", "getloadavg", "sysconf", "uname", "killpg", "setsid", "wait", "waitpid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGKILL", "SIGUSR1", "SIGHUP", "alarm", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None

def without(function):
    def call(path=".", *rest, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(path)
        return function(path, *rest, **options)
    return call

builtins.open, os.listdir = without(open), without(os.listdir)
import pyce, pyce._machine
assert pyce.get_num_threads() == pyce._machine.processors() == os.cpu_count()
x, y = np.float32(np.random.default_rng(0).normal(size=(3000, 100))), np.zeros(3000, int)
loss, grad = pyce.cross_entropy_with_grad(x, y)
assert loss > 0 and abs(grad.sum()) < 1e-3
pyce._machine.fingerprint()
sys.argv = ["pyce", "--json"]
runpy.run_module("pyce", run_name="__main__", alter_sys=True)
"""


def test_nothing_needs_what_windows_lacks(backend, run_python):
    done = run_python("-c", WITHOUT_POSIX, **backend.environment)
    assert json.loads(done.stdout)["backend"] == backend.name


AFFINITY = """
import os, threading, time
import numpy as np, pyce
from pyce import _threads
all_of_them = sorted(os.sched_getaffinity(0))
_threads._quota_now = lambda: float('inf')
x = np.float32(np.random.default_rng(0).normal(size=(20_000, 100)))
y = np.zeros(20_000, int)
one, two = all_of_them[:1], all_of_them[:2]

def call():
    return pyce.cross_entropy_with_grad(x, y)[1].tobytes()

def workers():
    return {int(t) for t in os.listdir('/proc/self/task')} - others

others = {int(t) for t in os.listdir('/proc/self/task')}
expected = call()
for allowed in (all_of_them, one, two, all_of_them, one):
    os.sched_setaffinity(0, allowed)
    assert pyce.get_num_threads() == len(allowed), (allowed, pyce.get_num_threads())
    assert call() == expected
    patience = time.monotonic() + 100
    while len(workers()) >= len(allowed) and time.monotonic() < patience:
        time.sleep(0.01)
    assert len(workers()) < len(allowed)
# The same threads, which would be too many: they run nowhere else than their caller may.
_threads.processors = lambda: 4
for allowed in (all_of_them, one, all_of_them[-1:], two, one):
    os.sched_setaffinity(0, allowed)
    assert call() == expected
    assert len(workers()) == 3
    for mask in map(os.sched_getaffinity, workers()):
        assert mask <= set(allowed), (mask, allowed)
print('fine')
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_changes(c_backend, run_python):
    """The next call uses the new number of threads, and moves existing threads."""
    if c_backend.isa != pyce.info()["isas"][0]:
        return  # one pool for all instruction sets
    code = c_backend.share_small_work + AFFINITY
    done = run_python("-c", code, OPENBLAS_NUM_THREADS="1", **c_backend.environment)
    assert done.stdout.split() == ["fine"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_is_read_anew(backend):
    before = os.sched_getaffinity(0)
    try:
        for processor in sorted(before)[:2]:
            os.sched_setaffinity(0, {processor})
            assert pyce.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


# ---------------------------------------------------------------------------------------------
# Quotas of control groups


def group(root, path, **files):
    directory = root.joinpath(*path.strip("/").split("/")) if path != "/" else root
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def quota(tmp_path, membership):
    from pyce._threads import cgroup_quota

    (tmp_path / "membership").write_text(membership)
    return cgroup_quota(tmp_path / "membership", tmp_path / "fs")


def test_quota_of_version_2(tmp_path):
    root = tmp_path / "fs"
    group(root, "/a/b", cpu__max="max 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == math.inf
    group(root, "/a", cpu__max="250000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 2.5
    group(root, "/a/b", cpu__max="300000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 2.5
    group(root, "/a/b", cpu__max="50000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 0.5
    assert quota(tmp_path, "0::/elsewhere\n") == math.inf


def test_quota_of_version_1(tmp_path):
    root = tmp_path / "fs" / "cpu"
    group(root, "/a/b", **{"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"})
    lines = "5:memory:/m\n4:cpu,cpuacct:/a/b\n"
    assert quota(tmp_path, lines) == math.inf
    group(root, "/a", **{"cpu__cfs_quota_us": "150000\n", "cpu__cfs_period_us": "100000\n"})
    assert quota(tmp_path, lines) == 1.5


def test_no_control_groups(tmp_path):
    from pyce._threads import cgroup_quota

    assert cgroup_quota(tmp_path / "none", tmp_path) == math.inf
    assert quota(tmp_path, "0::/a\n") == math.inf


def test_quota_is_read_anew(monkeypatch, tmp_path):
    """The quota is read again by a call, at most once a second."""

    pyce.set_num_threads(64)  # which may read it as well
    clock = [10**9]
    monkeypatch.setattr(_threads.time, "monotonic_ns", lambda: clock[0])
    # The quota of these files does not outlive the test, as it would for a second.
    monkeypatch.setattr(_threads, "_quota", _threads._quota)
    monkeypatch.setattr(_threads, "_quota_read_at", None)
    monkeypatch.setattr(_threads, "processors", lambda: 64)
    real = _threads.cgroup_quota
    group = tmp_path / "fs"
    group.mkdir()
    (tmp_path / "membership").write_text("0::/\n")
    monkeypatch.setattr(
        _threads, "cgroup_quota", lambda *_: real(tmp_path / "membership", tmp_path / "fs")
    )

    def now(text, seconds):
        (group / "cpu.max").write_text(text)
        clock[0] += int(seconds * 1e9)
        return pyce.get_num_threads()

    assert now("300000 100000\n", 0) == 3
    assert now("100000 100000\n", 0.5) == 3
    assert now("100000 100000\n", 0.6) == 1
    assert now("250000 100000\n", 1.1) == 3  # a fraction of a processor counts as a thread
    assert now("max 100000\n", 1.1) == 64
    assert now("50000 100000\n", 1.1) == 1


def test_a_control_group_with_a_strange_name(tmp_path):
    """Names of files are bytes."""
    from pyce._threads import cgroup_quota

    path = tmp_path / "membership"
    path.write_bytes(b"0::/a\xff\n")
    group = os.fsencode(tmp_path / "fs") + b"/a\xff"
    try:
        os.makedirs(group)
    except OSError:  # not on every file system
        assert cgroup_quota(path, tmp_path / "fs") == float("inf")
        return
    with open(group + b"/cpu.max", "w", encoding="utf-8") as file:
        file.write("200000 100000\n")
    assert cgroup_quota(path, tmp_path / "fs") == 2
