"""Hand the times of a session to pytest-benchmark; without the plan of `bench`, the default one."""

from __future__ import annotations

from typing import Any

import pytest

from pyce import _machine
from pyce._bench import floors
from pyce._bench.disturbance import OtherPrograms
from pyce._bench.measure import Effort, Timings
from pyce._bench.suite.plan import Plan

PLAN = pytest.StashKey[Plan]()
OTHERS = pytest.StashKey[OtherPrograms]()


def pytest_configure(config: Any) -> None:
    given = config.pluginmanager.getplugin("pyce-bench")
    config.stash[OTHERS] = OtherPrograms()
    config.stash[PLAN] = plan = given.plan if given else Plan()
    if config.getoption("benchmark_disable"):
        plan.effort = Effort(blocks=1, rounds=1, seconds=0, most=0)


def pytest_sessionfinish(session: Any) -> None:
    session.config.stash[PLAN].begin(None)


def pytest_generate_tests(metafunc: Any) -> None:
    plan = metafunc.config.stash[PLAN]
    if {"workload", "operation", "candidate"} <= set(metafunc.fixturenames):
        # By name, since pytest-benchmark writes the parameters into its file.
        items = [(w.name, operation, c.name) for w, operation, c in plan.items()]
        names = ("workload", "operation", "candidate")
        metafunc.parametrize(names, items, ids=["-".join(item) for item in items])
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", training_backends(plan))


def training_backends(plan: Plan) -> list[str]:
    named = [c.backend for c in plan.candidates if c.kind == "backend" and c.backend]
    return list(dict.fromkeys(named))


@pytest.fixture
def plan(request: Any) -> Plan:
    made: Plan = request.config.stash[PLAN]
    return made


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info["pyce"] = {**_machine.fingerprint(), "bandwidth": floors.bandwidth()}
    machine_info["others"] = config.stash[OTHERS].processors()


class in_turn:
    """A clock for pytest-benchmark that replays times measured before, round by round.

    pytest-benchmark itself would call one candidate after another, not in turn.
    """

    def __init__(self, samples: list[float]) -> None:
        self._samples = iter(samples)
        self._ending = False
        self.__name__ = "in_turn"

    def __call__(self) -> float:
        """0 at the beginning of a round, and the seconds of the round at its end."""
        shown = next(self._samples) if self._ending else 0.0
        self._ending = not self._ending
        return shown


@pytest.fixture
def record(request: Any) -> Any:
    """A function that hands times to pytest-benchmark, with a group and `extra_info`."""

    def leave(timings: Timings, group: str, info: dict[str, Any]) -> None:
        samples = timings.samples
        marker = pytest.mark.benchmark(group=group, timer=in_turn(samples))
        request.node.add_marker(marker)
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(info)
        benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)

    return leave
