"""The measurement of small calls from compiled code, which `make bench-compiled` writes."""

import importlib

import pytest
from bench_scripts import FOLDER

import pyce


@pytest.mark.skipif("c" not in pyce.backends(), reason="the C function is called by its address")
def test_three_ways_give_the_same_loss(monkeypatch):
    pytest.importorskip("numba")
    pytest.importorskip("pytest_benchmark")
    monkeypatch.syspath_prepend(FOLDER)
    compiled_calls = importlib.import_module("compiled_calls")
    monkeypatch.setattr(compiled_calls, "ROUNDS", 1)
    # `calls` compares the losses.
    assert all(seconds > 0 for seconds in compiled_calls.calls(4, 3))
