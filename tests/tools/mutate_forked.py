"""For mutate.py: many mutants of pyce's Python modules against tests that are collected once.

    python mutate_forked.py MUTANTS SECONDS MOST TEST…

Reads MUTANTS, a JSON list of [module, source], and prints for each the test that failed, “crashed”,
“hangs” or “survived”. Each mutant is a forked child in which the functions of the module get the
code of the source; what cannot be changed so, as it is found when modules are imported, survives.
At most MOST cases of each test function are asked.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import signal
import sys
import time
import types

import pytest

sys.modules["numba"] = None  # type: ignore[assignment]


def put_in(module: types.ModuleType, source: str) -> None:
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update({k: getattr(module, k) for k in ("__package__", "__file__")})
    sys.modules[module.__name__] = changed  # as dataclasses look themselves up
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
    """In place of the loop over the tests: the loop over the mutants, each in a child."""

    def __init__(self, mutants: list[tuple[str, str]], seconds: float, most: int):
        self.mutants, self.seconds, self.most = mutants, seconds, most
        self.to = os.dup(1)  # pytest writes elsewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        # Other processes import the module as it is.
        items = [i for i in session.items if "run_python" not in getattr(i, "fixturenames", ())]
        cases = collections.defaultdict(list)
        for item in items:
            cases[item.nodeid.partition("[")[0]].append(item)
        session.items[:] = [i for c in cases.values() for i in c[:: -(-len(c) // self.most)]]
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
            put_in(importlib.import_module(module), source)
            for i, item in enumerate(session.items):
                after = session.items[i + 1] if i + 1 < len(session.items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if session.testsfailed:
                    said = item.nodeid
                    break
        except BaseException as error:
            said = f"{type(error).__name__} when it is put in"
        os.write(writing, said.encode())
        os._exit(0)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        given = json.load(file)
    sys.exit(
        pytest.main(
            ["-qq", "-p", "no:cacheprovider", "-k", "not avx and not fork", *sys.argv[4:]],
            plugins=[Forks(given, float(sys.argv[2]), int(sys.argv[3]))],
        )
    )
