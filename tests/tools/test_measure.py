"""Candidates are measured in turn, in blocks, and only if their results are right."""

import sys
import time
import types

import numpy as np
import pytest
from every import every

import pyce
from pyce._bench import calls, candidates, floors
from pyce._bench.candidates import Candidate, backends
from pyce._bench.measure import Effort, Timings, Wrong, in_turn, measure
from pyce._bench.suite import bench_digits
from pyce._bench.suite.bench_digits import measured  # noqa: F401  a fixture
from pyce._bench.suite.bench_loss import bench_loss
from pyce._bench.suite.plan import Plan
from pyce._bench.workloads import OPERATIONS, WORKLOADS, Data, matching
from pyce._selection import held_to

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
    found = measure(Data(SMALL), OPERATIONS, backends(["numpy"], [own]), SHORT)
    assert set(found) == {(o, n) for o in OPERATIONS for n in ("floor", "pyce numpy")}
    for timings in found.values():
        assert isinstance(timings, Timings), timings
        assert len(timings.blocks) == len(timings.over_floor) == SHORT.blocks
        assert all(len(block) == SHORT.rounds for block in timings.blocks)
        assert len(timings.samples) == SHORT.blocks * SHORT.rounds
    assert min(found["fused", "pyce numpy"].over_floor) > 1
    assert found["fused", "floor"].over_floor == [1, 1]


def test_steps_are_told_in_their_order():
    told = []
    own = pyce.get_num_threads()
    who = backends(["numpy"], [own])
    measure(Data(SMALL), ["forward", "fused"], who, SHORT, lambda *step: told.append(step))
    names = [f"{o}, {c.name}" for o in ("forward", "fused") for c in who]
    assert [what for _, what in told] == names * SHORT.blocks
    assert [part for part, _ in told] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_wrong_candidates_are_not_measured():
    data = Data(SMALL)
    grad = np.zeros_like(data.logits)

    def fails():
        raise RuntimeError("no such thing")

    who = [
        candidate("wrong", lambda: (np.float32(1), grad)),
        candidate("fails", fails),
        candidate("fails unchecked", fails, result=False),
        candidate("right", lambda: pyce.cross_entropy_with_grad(data.logits, data.target)),
    ]
    found = measure(data, ["fused"], who, SHORT)
    assert isinstance(found["fused", "wrong"], Wrong)
    assert "no such thing" in str(found["fused", "fails"])
    assert "no such thing" in str(found["fused", "fails unchecked"])
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


def test_variants_of_c_do_what_their_names_say():
    data = Data(SMALL)
    data.grad[...] = data.logits
    loss, grad = calls.in_place(data, "fused")()
    data.check_loss(loss)
    data.check_grad(grad, "fused")
    assert grad is data.grad
    data = Data(matching(["64x10-probabilities"])[0])
    loss, grad = calls.plain(data, "fused")()
    assert grad is data.grad
    right = pyce.cross_entropy_with_grad(data.logits, data.labels)
    assert loss == right[0]
    np.testing.assert_array_equal(grad, right[1])


def test_who_is_measured():
    """Other libraries for class indices and not for the gradient alone; variants for one call."""
    who = candidates.backends(["numpy"], [pyce.get_num_threads()])
    who += candidates.variants() + candidates.others(["torch", "scikit-learn"])
    found = {
        (target, operation): {c.name for c in who if c.does(workload, operation)}
        for target, workload in (
            ("index", matching(["64x10"])[0]),
            ("probabilities", matching(["64x10-probabilities"])[0]),
            ("weight", matching(["1024x1000-weight"])[0]),
        )
        for operation in OPERATIONS
    }
    everywhere = {"floor", "pyce numpy"}
    with_c = "c" in pyce.backends()
    torch = {"torch", *(["pyce torch"] if with_c else [])}
    others = {*torch, "scikit-learn", *([candidates.OF_JAX] if with_c else [])}
    for target, operation in found:
        expected = set(everywhere)
        if operation != "backward":
            expected |= {"index": others, "probabilities": torch, "weight": set()}[target]
        variants = {name for name in found[target, operation] if name.startswith("pyce c")}
        assert found[target, operation] - variants == expected, (target, operation)
        plain = {"pyce c, plain"}
        if operation != "fused" or not with_c:
            assert variants == set()
        else:
            assert (variants == plain) is (target != "index")
            assert ("pyce c, in place" in variants) is (target == "index")


def test_a_narrower_variant_of_c_needs_a_wider_c():
    isas = pyce.info()["isas"]
    for isa in isas:
        with held_to(isa):
            names = [candidate.name for candidate in candidates.variants()]
        assert ("pyce c, avx2" in names) == (isa == "avx512" and "avx2" in isas)


def test_whose_threads_spin():
    found = {(c.name, c.spins) for c in backends(["c", "numba", "numpy"], [70, 1])}
    assert {name for name, spins in found if spins} == {"pyce numba, 70 threads"}
    assert len(found) == 7


@every("with_c", [True, False])
def test_the_bandwidth_is_of_the_bytes_read_and_written(monkeypatch, with_c):
    monkeypatch.setattr(floors, "_LARGE", 2**16)
    monkeypatch.setattr(floors, "shortest", lambda call, repeat: call() or 0.5)
    if not with_c:
        monkeypatch.setattr(floors, "lib", None)
    found = floors.bandwidth()
    reads = {"read": 2**17} if floors.lib else {}
    assert found == {**reads, "copy": 2**18}


def test_the_shortest_time_of_some_calls():
    times = iter([0.03, 0.0, 0.03])
    assert floors.shortest(lambda: time.sleep(next(times)), repeat=3) < 0.03
    assert next(times, None) is None


class OneResult:
    """A plan with one candidate and its outcome."""

    def __init__(self, who, outcome):
        self.workload = lambda name: SMALL
        self.candidate = lambda name: who
        self.outcome = lambda *_: outcome


def recorded(outcome, kind="backend", **options):
    """What the suite writes of an outcome."""
    found = []
    plan = OneResult(candidate("it", None, kind, **options), outcome)
    bench_loss("64x10", "fused", "it", plan, lambda *entry: found.append(entry))
    ((timings, group, about),) = found
    assert timings is outcome and group == "64x10 fused"
    return about


def test_entries_of_a_file():
    timings = Timings([[3.0, 1.0, 2.0], [5.0, 5.0]], [1.5, 2.5], calls=7)
    about = recorded(timings, backend="c", isa="avx2")
    assert about["isa"] == "avx2" and about["backend"] == "c"
    assert about["blocks"] == [2, 5] and about["over_floor"] == [1.5, 2.5]
    assert about["calls"] == 7 and about["workload"] == "64x10" and about["elements"] == 640
    assert recorded(timings, backend="c")["isa"] == pyce.info()["isa"]
    assert recorded(timings, backend="numpy")["isa"] is None
    copied = 2 * 4 * 640
    assert recorded(timings, "floor")["bytes"] == copied
    assert about["bytes"] == copied + about["target_bytes"] == copied + 8 * 64


def test_what_is_missing_is_left_out_and_what_is_wrong_fails():
    for error, kinds in ((Wrong("x"), ("peer",)), (ImportError("x"), ("peer", "variant"))):
        for kind in kinds:
            with pytest.raises(pytest.skip.Exception, match="it: x"):
                recorded(error, kind)
    for error, said in ((Wrong("x"), "it: x"), (MemoryError(), "it: MemoryError")):
        with pytest.raises(pytest.fail.Exception, match=said):
            recorded(error)


def test_the_default_plan_measures_all_threads_and_one(monkeypatch):
    for own, counts in ((1, {1}), (2, {1, 2}), (8, {1, 8})):
        monkeypatch.setattr(pyce, "get_num_threads", lambda own=own: own)
        floors_of = [c for c in Plan().candidates if c.kind == "floor"]
        assert {c.threads for c in floors_of} == counts
        assert floors_of[0].name == "floor" and floors_of[0].threads == own


def test_a_long_workload_has_fewer_blocks(monkeypatch):
    """Each call of a long one takes about a second, so that more time is spent on it."""
    asked = []

    def noted(data, operations, candidates, effort, tell):
        asked.append((data, effort))
        return {(operation, "floor"): Timings() for operation in operations}

    monkeypatch.setattr("pyce._bench.suite.plan.measure", noted)
    monkeypatch.setattr("pyce._bench.suite.plan.HeadData", lambda workload: "a head")
    for workload in (SMALL, *matching(["head-1024x768x50257"])):
        plan = Plan([workload], candidates=[candidate("floor", None, "floor")])
        plan.effort = Effort(most=2.0)
        plan.outcome(workload, workload.operations[0], plan.candidates[0])
    (data, short), (head, long) = asked
    assert isinstance(data, Data) and head == "a head"
    assert short == Effort(most=2.0)
    assert 1 < long.blocks < short.blocks and long.most > 2 * short.most


def test_a_training_is_checked_and_measured(monkeypatch, measured):  # noqa: F811
    """Here of images that are easier to tell apart, so that fewer steps suffice."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    x = np.column_stack([np.eye(10)[y] + rng.normal(0, 0.1, (200, 10)), np.ones(200)])
    x = x.astype(np.float32)
    monkeypatch.setattr(bench_digits, "digits", lambda: (x[:150], y[:150], x[150:], y[150:]))
    monkeypatch.setattr(bench_digits, "STEPS", 60)
    found = []
    plan = Plan([], candidates=backends(["numpy"], [pyce.get_num_threads()]))
    told = []
    plan.display = types.SimpleNamespace(doing=lambda *step: told.append(step))
    bench_digits.bench_digits("numpy", plan, measured, lambda *entry: found.append(entry))
    assert told == [("digits", 0, "training")]
    ((timings, group, about),) = found
    assert timings is measured["numpy"] and group == "digits training"
    losses = about["losses"]
    assert len(losses) == 60 and "60 steps" in about["stands_for"]
    assert losses[0] == pytest.approx(2.302585) and losses == sorted(losses, reverse=True)
    assert about["accuracy"] >= 0.95 and about["blocks"] == [np.median(timings.samples)]
    assert (about["candidate"], about["backend"], about["isa"]) == ("pyce numpy", "numpy", None)
    monkeypatch.setattr(pyce, "accuracy", lambda *_: 0.9)
    with pytest.raises(AssertionError):
        bench_digits.bench_digits("numpy", plan, measured, found.append)


def test_the_images_of_the_training(monkeypatch):
    """Other images, since to import scikit-learn would take seconds."""
    images, labels = np.arange(6 * 64).reshape(6, 64) % 17.0, np.arange(6)
    for name, functions in {
        "sklearn": {},
        "sklearn.datasets": {"load_digits": lambda return_X_y: (images, labels)},
        "sklearn.model_selection": {
            "train_test_split": lambda x, y, random_state: (x[:4], x[4:], y[:4], y[4:])
        },
    }.items():
        made = types.ModuleType(name)
        vars(made).update(functions)
        monkeypatch.setitem(sys.modules, name, made)
    x, y, x_test, y_test = bench_digits.digits.__wrapped__()
    assert x.dtype == np.float32 and x.shape == (4, 65) and x_test.shape == (2, 65)
    np.testing.assert_array_equal(np.vstack([x, x_test])[:, :64] * 16, images)
    np.testing.assert_array_equal(np.vstack([x, x_test])[:, 64], 1)
    np.testing.assert_array_equal([*y, *y_test], labels)
