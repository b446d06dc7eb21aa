"""Judges many mutants of one Python module by tests that are collected once.

    python forked.py MUTANTS FILE MOST WHICH TEST…

MUTANTS is a file with a JSON list of [module, source], the first unchanged. For each, one line is
printed: the test that failed, “crashed…”, “hangs” or “survived”. Each mutant is a forked child
process in which the functions of the module get the code of the source; FILE gets the source, too,
for the processes that the tests start. WHICH selects tests (pytest -k), and at most MOST cases of
each test function run: those that failed for earlier mutants first.

What is only executed when a module is imported, as decorators, is not changed in the child: judge a
mutant that survives in a new process.
"""

from __future__ import annotations

import contextlib
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

import pytest
from sampled import few

sys.modules["numba"] = None  # type: ignore[assignment]
# A new server of forks would import everything again for each mutant.
_contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
_contexts["forkserver"] = _contexts["fork"]


def replace(module: types.ModuleType, source: str) -> None:
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update({k: getattr(module, k) for k in ("__package__", "__file__")})
    sys.modules[module.__name__] = changed  # dataclasses look up their module
    exec(compile(source, module.__file__ or "", "exec"), changed.__dict__)
    sys.modules[module.__name__] = module
    _replace(vars(module), vars(changed), vars(module).__setitem__)
    for name in set(vars(module)) - set(vars(changed)) - {"__builtins__", "__cached__"}:
        if not isinstance(getattr(module, name), types.ModuleType):
            delattr(module, name)


def _replace(old: dict, new: dict, put) -> None:
    for name, value in new.items():
        was = old.get(name)
        if name.startswith("__") and name not in ("__init__", "__call__", "__enter__", "__exit__"):
            continue
        if isinstance(value, types.ModuleType) or was is value:
            continue
        if isinstance(value, type) and isinstance(was, type):
            if value.__module__ == was.__module__:
                _replace(dict(vars(was)), dict(vars(value)), lambda *_: None)
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
    ):
        inner = getattr(was, name, None)
        if isinstance(inner, types.FunctionType):
            found |= _replace_functions(inner, getattr(value, name))
    if found and hasattr(was, "cache_clear"):
        was.cache_clear()
    return found


class Forks:
    """A plugin that runs the tests once for each mutant, in a child process."""

    def __init__(self, mutants: list[tuple[str, str]], file: str, most: int):
        self.mutants, self.file, self.most = mutants, file, most
        self.kills: Counter[str] = Counter()
        self.seconds = (0.0, 0.0)  # of processors and of the clock, without a change
        self.to = os.dup(1)  # what pytest writes is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        items = few(session.items, self.most)
        unchanged = self.mutants[0][1]
        for module, source in self.mutants:
            session.items[:] = sorted(items, key=lambda item: -self.kills[item.nodeid])
            with open(self.file, "w", encoding="utf-8") as file:
                file.write(source)
            begin, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                os.close(reading)
                self._child(session, module, source, writing)
            os.close(writing)
            said = self._verdict(child, reading)
            os.close(reading)
            if source is unchanged:
                now = resource.getrusage(resource.RUSAGE_CHILDREN)
                self.seconds = now.ru_utime - used.ru_utime, time.monotonic() - begin
            self.kills[said] += 1
            os.write(self.to, f"{said}\n".encode())
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(unchanged)
        return True

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

    def _child(self, session, module, source, writing) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        said = "survived"
        if self.seconds[0]:
            limit = int(4 * self.seconds[0]) + 15
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            if source is not self.mutants[0][1]:
                replace(importlib.import_module(module), source)
            for i, item in enumerate(session.items):
                after = session.items[i + 1] if i + 1 < len(session.items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if session.testsfailed:
                    said = item.nodeid
                    break
        except BaseException as error:
            said = f"{type(error).__name__} when the module is executed"
        os.write(writing, said.encode())
        os._exit(0)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        given = json.load(file)
    sys.exit(
        pytest.main(
            ["-qq", "-p", "no:cacheprovider", "-k", *sys.argv[4:]],
            plugins=[Forks(given, sys.argv[2], int(sys.argv[3]))],
        )
    )
