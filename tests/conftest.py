"""One `backend` fixture over every backend and, for C, every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

import pyce

IN_CI = bool(os.environ.get("CI"))
WITHOUT_C = os.environ.get("PYCE_TEST_WITHOUT_C") == "1"
# What threads a process has, and what memory it uses, other systems than Linux do not tell.
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="there is no /proc")

hypothesis.settings.register_profile("local", deadline=None, max_examples=40)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("ci" if IN_CI else "local")


@dataclass(frozen=True)
class Backend:
    """A backend to test; `isa` is the instruction set that C is held to, else None."""

    name: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name

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
        """What a program in another process begins with, to share small work among threads, too."""
        if self.name == "numba":
            return "from pyce._backends import numba; numba._SMALL = 2**12\n"
        if self.name == "c":
            return "from pyce._backends import c; c.set_worth(2**10, 2**10)\n"
        return ""

    @contextmanager
    def selected(self):
        """Run on this backend in this thread (and, for C, on this instruction set everywhere).

        Even small work is shared among threads: it would be large work alone.
        """
        with pyce.use_backend(self.name):
            if self.name == "numba":
                from pyce._backends import numba

                numba._SMALL = 2**12
            if self.isa is None:
                yield self
                return
            from pyce._backends import c

            before = c.isa()
            c.set_isa(self.isa)
            c.set_worth(2**10, 2**10)
            try:
                yield self
            finally:
                c.set_isa(before)
                c.set_worth(2**16, 2**18)


def _found() -> list[Backend]:
    available = pyce.backends()
    reasons = pyce.info()["backends"]
    required = [] if WITHOUT_C else ["c"]
    if IN_CI:
        required.append("numba")
    for name in required:
        if name not in available:
            raise pytest.UsageError(f"the {name} backend must be tested: {reasons[name]}")
    found = []
    for name in available:
        isas = pyce.info()["isas"] if name == "c" else [None]
        found += [Backend(name, isa) for isa in isas]
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
    from pyce import _backends, _threads

    asked, limit, default = _threads._asked, _threads._limit, _backends._default
    yield
    _threads._asked, _threads._limit, _backends._default = asked, limit, default


def pytest_generate_tests(metafunc):
    """`c_backend`: the instruction sets of C only, for what is promised of C alone."""
    if "c_backend" in metafunc.fixturenames:
        metafunc.parametrize("c_backend", _of_c(), ids=str, indirect=True)


def _of_c() -> list[Backend]:
    return [b for b in BACKENDS if b.name == "c"]


@pytest.fixture
def c_backend(request):
    with request.param.selected():
        yield request.param


@pytest.fixture
def c_backends():
    """All instruction sets of C at once, to compare them."""
    if WITHOUT_C:
        pytest.skip("PYCE_TEST_WITHOUT_C=1")
    return _of_c()


@pytest.fixture
def many_processors(monkeypatch):
    """Threads as asked for, also on machines of few processors."""
    from pyce import _threads

    monkeypatch.setattr(_threads, "_affinity", lambda: 64)
    monkeypatch.setattr(_threads, "_quota_now", lambda: 64.0)


@pytest.fixture(params=[1, 300_000])
def past_the_cache(c_backend, request):
    """A function under which results are stored as ones too large for the caches: every result, and
    no row's exponentials are kept; or those of 300 kB, of which a row is not too large to keep.
    """
    from pyce._backends import c

    def call(function, *args, **options):
        before = c.set_cache(request.param)
        try:
            return function(*args, **options)
        finally:
            c.set_cache(before)

    return call


@pytest.fixture
def run_python():
    """Run a program in a fresh interpreter; returns the finished process, output as text.

    The parent's PYCE_* variables are not passed on. A program that fails fails the test, with its
    output, unless `check` is false; one that hangs is killed.
    """

    def run(*arguments, check=True, timeout=120, **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYCE_")}
        root = str(Path(pyce.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(
            [root, *filter(None, [environment.get("PYTHONPATH")])]
        )
        environment.update(variables)
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
