"""Judges many mutants of Python modules by tests that are collected once.

    python forked.py MUTANTS MOST WHICH TEST…

MUTANTS is a file with a JSON list of [file, source]. One line is printed for the sources as they
are, and one for each mutant: the test that failed, “crashed…”, “hangs” or “survived”. Each mutant
is a forked child process in which the functions of the module get the code of the source; the file
gets the source, too, for the processes that the tests start. WHICH selects tests (pytest -k), and
at most MOST cases of each test function run: first those that failed for many earlier mutants, or
take little time.

What is only executed when a module is imported, as decorators, is not changed in the child: judge a
mutant that survives in a new process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import multiprocessing.context
import os
import resource
import signal
import sys
import time
import types
from collections import Counter
from pathlib import Path

import pytest
from sampled import few

sys.modules["numba"] = None  # type: ignore[assignment]
# A new server of forks would import everything again for each mutant.
_contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
_contexts["forkserver"] = _contexts["fork"]


def executed(module: types.ModuleType, source: str) -> types.ModuleType:
    """A module with the variables of another, whose source is executed in it."""
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update({k: getattr(module, k) for k in ("__package__", "__file__")})
    sys.modules[module.__name__] = changed  # dataclasses look up their module
    exec(compile(source, module.__file__ or "", "exec"), changed.__dict__)
    sys.modules[module.__name__] = module
    return changed


def replace(module: types.ModuleType, changed: types.ModuleType) -> None:
    """Give the functions and variables of `module` the code and the values of `changed`."""
    _replace(module.__name__, vars(module), vars(changed), vars(module).__setitem__)
    for name in set(vars(module)) - set(vars(changed)) - {"__builtins__", "__cached__"}:
        if not isinstance(getattr(module, name), types.ModuleType):
            delattr(module, name)


def _replace(module: str, old: dict, new: dict, put) -> None:
    for name, value in new.items():
        was = old.get(name)
        if name.startswith("__") and not isinstance(value, types.FunctionType):
            continue
        if isinstance(value, types.ModuleType) or was is value:
            continue
        if isinstance(value, type) and isinstance(was, type):
            # Those that PyTorch derives from a class refer to it, and have no code of the module.
            # A class that is public has the name of its package instead of that of the module.
            if value.__module__ == was.__module__ and f"{module}.".startswith(f"{was.__module__}."):
                _replace(module, dict(vars(was)), dict(vars(value)), lambda *_: None)
        elif not _replace_functions(was, value):
            put(name, value)


def _replace_functions(was, value) -> bool:
    """Give functions, or those in decorators' objects, the code of the new; whether there are."""
    if type(was) is not type(value):
        return False
    if isinstance(value, types.FunctionType):
        if value.__module__ != was.__module__:
            return True
        if value.__code__.co_freevars != was.__code__.co_freevars:
            return False
        was.__code__, was.__defaults__ = value.__code__, value.__defaults__
        was.__kwdefaults__ = value.__kwdefaults__
        for cell, other in zip(was.__closure__ or (), value.__closure__ or (), strict=True):
            _replace_functions(cell.cell_contents, other.cell_contents)
        return True
    found = False
    for name in (
        "fget",
        "__func__",
        "__wrapped__",
        "fun",
        "fwd",
        "bwd",
        "_init_fn",
        "_backward_fn",
        *(("func",) if isinstance(was, functools.cached_property) else ()),
    ):
        inner = getattr(was, name, None)
        if isinstance(inner, types.FunctionType):
            found |= _replace_functions(inner, getattr(value, name))
    if found and hasattr(was, "cache_clear"):
        was.cache_clear()
    return found


class Forks:
    """A plugin that runs the tests once for each mutant, in a child process."""

    def __init__(self, mutants: list[tuple[str, str]], most: int):
        self.mutants, self.most = mutants, most
        self.kills: Counter[str] = Counter()
        self.took: dict[str, float] = {}  # seconds of each test, without a change
        self.seconds = (0.0, 0.0)  # of processors and of the clock, without a change
        self.to = os.dup(1)  # what pytest writes is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        self.items = few(session.items, self.most)
        begin, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self._judge(session, None)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds = now.ru_utime - used.ru_utime, time.monotonic() - begin
        for file, source in self.mutants:
            path = Path(file)
            unchanged = path.read_text(encoding="utf-8")
            path.write_text(source, encoding="utf-8")
            try:
                self._judge(session, (file, source))
            finally:
                path.write_text(unchanged, encoding="utf-8")
        return True

    def _worth(self, test: str) -> float:
        """About how many mutants the test kills in a second."""
        return (self.kills[test] + 0.5) / (self.took.get(test, 0.0) + 0.05)

    def _judge(self, session, mutant: tuple[str, str] | None) -> None:
        session.items[:] = sorted(self.items, key=lambda item: -self._worth(item.nodeid))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.close(reading)
            self._child(session, mutant, writing)
        os.close(writing)
        said, *took = self._verdict(child, reading).split("\n")
        os.close(reading)
        for item, seconds in zip(session.items, took, strict=False):
            self.took[item.nodeid] = float(seconds)
        self.kills[said] += 1
        os.write(self.to, f"{said}\n".encode())

    def _verdict(self, child: int, reading: int) -> str:
        end = time.monotonic() + 6 * self.seconds[1] + 60 if self.seconds[1] else float("inf")
        said = ""
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                said = os.read(reading, 1_000_000).decode() or f"crashed with {status}"
                break
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what its tests started
        if not said:
            os.waitpid(child, 0)
        return said or "hangs"

    def _replace(self, file: str, source: str) -> str:
        """Put a mutant into this process; “survived”, or what happened instead."""
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = importlib.import_module(name)
        try:
            changed = executed(module, source)
        except BaseException as error:
            return f"{type(error).__name__} when the module is executed"
        try:
            replace(module, changed)
        except Exception as error:
            return f"no verdict: {error!r}"
        return "survived"

    def _child(self, session, mutant, writing) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        said = "survived"
        took = []
        if self.seconds[0]:
            limit = int(4 * self.seconds[0]) + 15
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            if mutant:
                said = self._replace(*mutant)
            for i, item in enumerate(session.items if said == "survived" else ()):
                after = session.items[i + 1] if i + 1 < len(session.items) else None
                begin = time.monotonic()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                took.append(f"{time.monotonic() - begin:.3g}")
                if session.testsfailed:
                    said = item.nodeid
                    break
        except BaseException as error:
            said = f"{type(error).__name__} outside of tests"
        os.write(writing, "\n".join([said, *([] if mutant else took)]).encode())
        os._exit(0)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        given = json.load(file)
    sys.exit(
        pytest.main(
            ["-qq", "-p", "no:cacheprovider", "-k", *sys.argv[3:]],
            plugins=[Forks(given, int(sys.argv[2]))],
        )
    )
