"""Command line, progress lines and the selection of workloads."""

from __future__ import annotations

import pytest

import pyce
from bench import measure

# Seconds for the rounds of one item; one round where a call takes longer.
BUDGET = 0.25


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every workload, not only the quick ones")


def pytest_report_header(config):
    about = measure.machine()
    lines = [f"pyce: {about['isa']}, {about['threads']} threads, {', '.join(pyce.backends())}"]
    if measure.lib is None:
        lines.append("NOTE: no C extension; the floor is numpy.copyto on one thread")
    return lines


def pytest_report_teststatus(report):
    """What an item measured, in place of PASSED."""
    measured = dict(report.user_properties).get("measured")
    if report.when == "call" and report.passed and measured:
        return "passed", ".", measured
    return None


@pytest.fixture
def measured(benchmark, record_property):
    """A function that benchmarks a call that is warm and leaves the item's progress line.

    It returns the median in seconds.
    """

    def run(call, floor=None):
        time = measure.seconds(call)
        iterations = measure.iterations(time)
        rounds = measure.rounds(BUDGET, time * iterations)
        benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        median = benchmark.stats.stats.median
        text = measure.readable(median)
        if floor:
            text += f" {median / floor:.3g} x floor"
        record_property("measured", text)
        return median

    return run
