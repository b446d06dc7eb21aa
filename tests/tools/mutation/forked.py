"""Judges many mutants of one Python module by tests that are collected once.

    python forked.py MUTANTS SECONDS MOST WHICH TEST…

MUTANTS is a file with a JSON list of [module, source]. For each, one line is printed: the test that
failed, “crashed…”, “hangs” or “survived”. Each mutant is a forked child process in which the
functions of the module get the code of the source. Changes that only take effect when a module is
imported survive. WHICH selects tests (pytest -k), and at most MOST cases of each test function run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import types

import pytest
from sampled import few

sys.modules["numba"] = None  # type: ignore[assignment]


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
        if name.startswith("__") or isinstance(value, types.ModuleType) or was is value:
            continue
        if isinstance(value, types.FunctionType) and isinstance(was, types.FunctionType):
            if value.__module__ == was.__module__ and not value.__closure__:
                was.__code__, was.__defaults__ = value.__code__, value.__defaults__
                was.__kwdefaults__ = value.__kwdefaults__
        elif isinstance(value, property) and isinstance(was, property):
            was.fget.__code__ = value.fget.__code__
        elif isinstance(value, type) and isinstance(was, type):
            if value.__module__ == was.__module__:
                _replace(dict(vars(was)), dict(vars(value)), lambda *_: None)
        else:
            put(name, value)


class Forks:
    """A plugin that runs the tests once for each mutant, in a child process."""

    def __init__(self, mutants: list[tuple[str, str]], seconds: float, most: int):
        self.mutants, self.seconds, self.most = mutants, seconds, most
        self.to = os.dup(1)  # what pytest writes is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        # The processes that `run_python` starts import the module without the change.
        items = [i for i in session.items if "run_python" not in getattr(i, "fixturenames", ())]
        session.items[:] = few(items, self.most)
        for module, source in self.mutants:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                self._child(session, module, source, writing)
            os.close(writing)
            os.write(self.to, f"{self._verdict(child, reading)}\n".encode())
            os.close(reading)
        return True

    def _verdict(self, child: int, reading: int) -> str:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                said = os.read(reading, 1_000_000).decode()
                return said if said else f"crashed with {status}"
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hangs"

    def _child(self, session, module, source, writing) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        said = "survived"
        try:
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
            plugins=[Forks(given, float(sys.argv[2]), int(sys.argv[3]))],
        )
    )
