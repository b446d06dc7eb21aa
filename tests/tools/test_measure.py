"""Candidates are measured in turn, in blocks, and only if their results are right."""

import time

import numpy as np

import pyce
from pyce._bench.candidates import Candidate, backends
from pyce._bench.measure import Effort, Timings, Wrong, in_turn, measure
from pyce._bench.workloads import WORKLOADS, Data

SMALL = next(w for w in WORKLOADS if w.name == "64x10")
# The limits of time do not matter: a call may take long on a busy machine.
SHORT = Effort(blocks=2, rounds=2, seconds=100, most=1000)


def candidate(name, call, kind="peer", **options):
    return Candidate(name, kind, lambda data, operation: call, pyce.get_num_threads(), **options)


def test_candidates_take_turns():
    order = []
    names = ["a", "b", "c"]
    calls = {name: lambda name=name: order.append(name) for name in names}
    chosen = {name: candidate(name, calls[name]) for name in names}
    samples = in_turn(calls, chosen, SHORT)
    assert {name: len(found) for name, (found, _) in samples.items()} == dict.fromkeys(names, 2)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    # One call of each to estimate its time, then two rounds.
    assert turns == names * 3


def test_every_block_has_its_median_over_the_floor():
    own = pyce.get_num_threads()
    found = measure(Data(SMALL), ["forward", "fused"], backends(["numpy"], [own]), SHORT)
    assert set(found) == {(o, n) for o in ("forward", "fused") for n in ("floor", "pyce numpy")}
    for timings in found.values():
        assert isinstance(timings, Timings), timings
        assert len(timings.blocks) == len(timings.over_floor) == SHORT.blocks
        assert all(len(block) == SHORT.rounds for block in timings.blocks)
        assert len(timings.samples) == SHORT.blocks * SHORT.rounds
    assert min(found["fused", "pyce numpy"].over_floor) > 1
    assert found["fused", "floor"].over_floor == [1, 1]


def test_wrong_candidates_are_not_measured():
    data = Data(SMALL)
    grad = np.zeros_like(data.logits)

    def fails():
        raise RuntimeError("no such thing")

    who = [
        candidate("wrong", lambda: (np.float32(1), grad)),
        candidate("fails", fails),
        candidate("right", lambda: pyce.cross_entropy_with_grad(data.logits, data.target)),
    ]
    found = measure(data, ["fused"], who, SHORT)
    assert isinstance(found["fused", "wrong"], Wrong)
    assert "no such thing" in str(found["fused", "fails"])
    assert isinstance(found["fused", "right"], Timings)


def test_the_gradient_of_another_candidate_does_not_pass():
    data = Data(SMALL)
    lazy = candidate("lazy", lambda: (pyce.cross_entropy(data.logits, data.target), data.grad))
    pyce.cross_entropy_with_grad(data.logits, data.target, out=data.grad)
    found = measure(data, ["fused"], [lazy], SHORT)
    assert isinstance(found["fused", "lazy"], Wrong)


def test_slow_candidates_have_fewer_rounds():
    calls = []

    def slow():
        calls.append(1)
        np.linalg.norm(np.ones(2**14))
        time.sleep(0.03)

    effort = Effort(blocks=10, rounds=10, seconds=0.01, most=0.05)
    who = [candidate("slow", slow, result=False)]
    found = measure(Data(SMALL), ["fused"], who, effort)
    assert 1 <= len(found["fused", "slow"].blocks) <= 3
    assert len(calls) < 20


def test_settings_are_restored():
    before = pyce.get_num_threads()
    with backends(["numpy"], [1])[1].selected():
        assert pyce.get_num_threads() == 1
        assert pyce.get_backend() == "numpy"
    assert pyce.get_num_threads() == before
