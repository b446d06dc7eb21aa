"""One `backend` fixture over every backend and, for C, every instruction set of this machine.

With pytest-xdist, each file runs in one process (`--dist loadfile`). Tests marked `alone` measure
time or need most of the memory: the other processes wait while one of them runs.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
from leftovers import _unchanged_by_a_file, _unchanged_by_a_test  # noqa: F401

import pyce
from pyce import _threads
from pyce._selection import Selection, selections

# Tests that need them set them: another number of threads is not what the others expect.
for name in ("OMP_NUM_THREADS", "PYCE_NUM_THREADS"):
    os.environ.pop(name, None)
_threads._of_openmp = None

IN_CI = bool(os.environ.get("CI"))
WITHOUT_C = os.environ.get("PYCE_TEST_WITHOUT_C") == "1"
# `make sanitize` preloads AddressSanitizer.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
# Only Linux lists the threads and the memory of a process there.
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="there is no /proc")

# Examples may take long, as on a busy machine; the fixture `backend` is the same for all of them.
hypothesis.settings.register_profile(
    "local",
    deadline=None,
    max_examples=40,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True
)
hypothesis.settings.load_profile("ci" if IN_CI else "local")


class Backend(Selection):
    """A backend to test; `isa` is the instruction set that C is held to, else None."""

    @property
    def bitwise(self) -> bool:
        """Whether the contract promises the same bytes for the same row, wherever it stands."""
        return self.name == "c"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make another process run on this backend."""
        chosen = {"PYCE_BACKEND": self.name}
        return {**chosen, "PYCE_ISA": self.isa} if self.isa else chosen

    @property
    def share_small_work(self) -> str:
        """First lines of a program in another process that shares small work among threads, too."""
        if self.name == "numba":
            return "from pyce._backends.numba import _launch; _launch.PARALLEL_WORK = 2**12\n"
        if self.name == "c":
            return "from pyce._backends import c; c.set_thread_thresholds(2**10, 2**10)\n"
        return ""

    @contextmanager
    def selected(self):
        """Run on this backend in this thread (and, for C, on this instruction set in all threads).

        Small work is shared among threads, too; by default, only large work is.
        """
        with super().selected():
            if self.name == "numba":
                from pyce._backends.numba import _launch

                with mock.patch.object(_launch, "PARALLEL_WORK", 2**12):
                    yield self
                return
            if self.isa is None:
                yield self
                return
            from pyce._backends import c

            thresholds = c.set_thread_thresholds(2**10, 2**10)
            try:
                yield self
            finally:
                c.set_thread_thresholds(*thresholds)


def _found() -> list[Backend]:
    available = pyce.backends()
    reasons = pyce.info()["backends"]
    required = [] if WITHOUT_C else ["c"]
    if IN_CI:
        required.append("numba")
    for name in required:
        if name not in available:
            raise pytest.UsageError(f"the {name} backend must be tested: {reasons[name]}")
    found = [Backend(one.name, one.isa) for one in selections(available)]
    if not found:
        raise pytest.UsageError("no backend to test")
    if "c" in available and not any(b.name == "c" for b in found):
        raise pytest.UsageError("the C backend names no instruction set to test")
    return found


BACKENDS = _found()
C_BACKENDS = [b for b in BACKENDS if b.name == "c"]
# For what instruction sets share, as threads and entry points: C on the widest of them alone.
one_isa = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b not in C_BACKENDS[1:]], ids=str, indirect=True
)
widest_isa = pytest.mark.parametrize("c_backend", C_BACKENDS[:1], ids=str, indirect=True)


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request):
    with request.param.selected():
        yield request.param


@pytest.fixture(autouse=True)
def _unchanged_settings():
    """No test leaves another thread count or default backend behind."""
    from pyce import _backends

    asked, limit, default = _threads._asked, _threads._limit, _backends._default
    yield
    _threads._asked, _threads._limit, _backends._default = asked, limit, default


@pytest.fixture(params=C_BACKENDS, ids=str)
def c_backend(request):
    """The instruction sets of C, for promises that C alone makes."""
    with request.param.selected():
        yield request.param


@pytest.fixture
def c_backends():
    """All instruction sets of C at once, to compare them."""
    if WITHOUT_C:
        pytest.skip("PYCE_TEST_WITHOUT_C=1")
    return C_BACKENDS


@pytest.fixture
def many_processors(monkeypatch):
    """Threads as asked for, also on machines of few processors."""
    monkeypatch.setattr(_threads, "processors", lambda: 64)
    monkeypatch.setattr(_threads, "_quota_now", lambda: 64.0)


@pytest.fixture(params=[1, 300_000])
def past_the_cache(c_backend, request):
    """A function that makes a call with another size of the last cache: 1 byte, so that every
    result is stored past the caches and no row's exponentials are kept; or 300 kB, so that large
    results are stored past the caches, and the exponentials of a row are kept.
    """
    from pyce._backends import c

    def call(function, *args, **options):
        before = c.set_cache(request.param)
        try:
            return function(*args, **options)
        finally:
            c.set_cache(before)

    return call


def join(threads, seconds=300):
    """Wait for threads to end; fail, naming those that have not after `seconds`."""
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    running = [thread.name for thread in threads if thread.is_alive()]
    if running:
        pytest.fail(f"still running after {seconds} s: {', '.join(running)}")


@pytest.fixture
def run_python():
    """Run a program in a fresh interpreter; returns the finished process, output as text.

    The parent's PYCE_* variables are not passed on. A program that fails fails the test, with its
    output, unless `check` is false. One that runs longer than `timeout` seconds is killed, and
    fails the test with the output so far.
    """

    def run(*arguments, check=True, timeout=600, **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYCE_")}
        root = str(Path(pyce.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(
            [root, *filter(None, [environment.get("PYTHONPATH")])]
        )
        environment.update(variables)
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            output = [(part or b"").decode() for part in (expired.stdout, expired.stderr)]
            pytest.fail("\n".join([f"still running after {timeout} s", *output]))
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


# ---------------------------------------------------------------------------------------------
# The processes that run tests


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: no other test runs at the same time")
    # A suite that was started in the background ignores SIGINT, and so would its child processes.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.pluginmanager.hasplugin("xdist"):
        import processes

        config.pluginmanager.register(processes)
    # Programs that tests start are not distributed: pytest-benchmark would refuse to measure.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def _locks(tmp_path_factory, request):
    """Two files that the processes of pytest-xdist lock; None where there is one process."""
    if not hasattr(request.config, "workerinput"):
        yield None
        return
    folder = tmp_path_factory.getbasetemp().parent
    with (
        open(folder / "turn", "w", encoding="utf-8") as turn,
        open(folder / "running", "w", encoding="utf-8") as running,
    ):
        yield turn, running


@pytest.fixture(autouse=True)
def _alone(request, _locks):
    """Tests share the lock `running`; one that is marked `alone` holds it exclusively. A test that
    waits for `running` holds `turn`, so that no other test begins meanwhile.
    """
    if _locks is None:
        yield
        return
    turn, running = _locks
    alone = request.node.get_closest_marker("alone")
    fcntl.flock(turn, fcntl.LOCK_EX)
    fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    fcntl.flock(turn, fcntl.LOCK_UN)
    yield
    fcntl.flock(running, fcntl.LOCK_UN)
