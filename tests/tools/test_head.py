"""The benchmark of a language model's head: its data, checks, candidates and memory."""

import importlib.util

import numpy as np
import pytest
from conftest import needs_proc

import pyce
from pyce._bench import candidates, head, memory, peers
from pyce._bench.measure import Effort, Timings, Wrong, measure
from pyce._bench.workloads import HEAD_OPERATIONS, WORKLOADS, Data, Workload

SMALL = Workload((60, 360), "a test", features=24)
SHORT = Effort(blocks=2, rounds=1, seconds=0.01, most=0.5)
HEADS = [workload for workload in WORKLOADS if workload.features is not None]


@pytest.fixture(scope="module")
def data():
    return head.HeadData(SMALL)


def exact(data):
    """Loss and gradients by pyce's loss of all logits, in float64."""
    x, w = data.input.astype(np.float64), data.weight.astype(np.float64)
    with pyce.use_backend("numpy"):
        loss, grad = pyce.cross_entropy_with_grad(x @ w.T, data.labels)
    return loss, (grad @ w, grad.T @ x)


def test_names_and_operations():
    assert [w.name for w in HEADS] == ["head-256x256x8192", "head-1024x768x50257"]
    assert sum(w.quick for w in HEADS) == 1
    for workload in WORKLOADS:
        is_head = workload.features is not None
        assert (workload.operations == HEAD_OPERATIONS) == is_head
    arrays = 4 * 24 * (60 + 360)
    assert SMALL.bytes_moved("head-forward", "product", True) == arrays + 4 * 60 * 360
    assert SMALL.bytes_moved("head-fused", "product", False) == 2 * arrays + 8 * 60


def test_states_of_a_model_that_has_learnt_its_text(data):
    x, w = data.input.astype(np.float64), data.weight.astype(np.float64)
    words = w[:, 0] == 0
    p = pyce.softmax(x @ w.T)
    assert words[data.labels].all() and words.sum() == 360 // 12
    assert p[:, ~words].sum(axis=1).max() < 1e-4
    assert 0.01 < exact(data)[0] < 3


def test_renewed_arrays_hold_the_same_numbers(data):
    before = data.input.copy(), data.weight.copy()
    data.renew()
    assert np.array_equal(data.input, before[0]) and np.array_equal(data.weight, before[1])
    assert all(a.ctypes.data % 64 == 0 for a in (data.input, data.weight, *data.grads))


@pytest.mark.parametrize("operation", ["head-fused", "head-filtered"])
def test_wrong_results_are_detected(data, operation):
    loss, grads = exact(data)
    part = {"head-fused": 1e-4, "head-filtered": 3e-3}[operation]
    data.check_loss(loss)
    data.check_grad(grads, operation)
    data.check_grad(tuple(grad * (1 + part / 10) for grad in grads), operation)
    with pytest.raises(AssertionError, match="loss"):
        data.check_loss(loss * (1 + 1e-4))
    for i, name in enumerate(("input", "weight")):
        for factor, match in ((1 + part, "differs by"), (np.nan, "NaN")):
            wrong = list(grads)
            wrong[i] = grads[i] * factor
            with pytest.raises(AssertionError, match=f"gradient of {name} .*{match}"):
                data.check_grad(tuple(wrong), operation)
    for label in np.unique(data.labels):
        wrong = grads[0], grads[1].copy()
        wrong[1][label] = 0.0
        with pytest.raises(AssertionError, match=r"gradient of weight .*differs by"):
            data.check_grad(wrong, operation)


def test_who_does_what():
    own = pyce.get_num_threads()
    who = candidates.backends(["c", "numpy"], [own, own + 1])
    who += candidates.variants() + candidates.others(["torch", "JAX + optax"])
    found = {
        operation: {c.name for c in who if c.does(SMALL, operation)}
        for operation in (*HEAD_OPERATIONS, "fused")
    }
    loss = {"floor", "pyce c", "pyce numpy", "torch", "torch chunked"}
    if "c" in pyce.backends():
        loss.add("pyce torch")
    assert found["head-forward"] == loss
    assert found["head-fused"] - {candidates.PRODUCTS} == loss
    assert found["head-filtered"] == {name for name in loss if not name.startswith("torch")}
    assert found["fused"] == set()
    others = {c.name for c in who if c.does(WORKLOADS[0], "fused")}
    assert not others & {"torch chunked", candidates.PRODUCTS}
    assert not any(c.does(WORKLOADS[0], "head-fused") for c in who)
    long = {c.backend for c in who if c.does(HEADS[1], "head-fused")}
    assert [w.is_long for w in HEADS] == [False, True]
    assert long - {None} == {pyce.get_backend()} - ({"numba"} & {pyce.get_backend()})


def test_every_candidate_is_right(data):
    who = candidates.backends(list(pyce.backends()), [pyce.get_num_threads()])
    if importlib.util.find_spec("torch"):
        who += candidates.variants() + candidates.others(["torch"])
    who = [c for c in who if c.backend != "numba"]  # which would compile for half a minute
    found = measure(data, HEAD_OPERATIONS, who, SHORT)
    for (operation, name), timings in found.items():
        if name == "torch chunked" and isinstance(timings, head.Unsupported):
            continue
        assert isinstance(timings, Timings), (operation, name, timings)
        assert 1 <= len(timings.over_floor) <= SHORT.blocks
        checked = name not in ("floor", candidates.PRODUCTS)
        known = memory.added(lambda: None)[1] is not None
        assert (timings.memory is not None) == (checked and known)
    assert len(found) >= 2 * len(HEAD_OPERATIONS)


@pytest.mark.parametrize("name", ["64x10", "2x64x64x5", "2x5x64x64-axis1"])
def test_every_call_of_a_peer_gives_the_same(name):
    """PyTorch adds to the gradient of the call before, unless it is told not to."""
    pytest.importorskip("torch")
    data = Data(next(w for w in WORKLOADS if w.name == name))
    loss, grad = pyce.cross_entropy_with_grad(data.logits, data.target, **data.options)
    forward, fused = peers.torch_eager(data)
    np.testing.assert_allclose(forward().numpy(), loss, rtol=1e-5)
    for _ in range(2):
        found = fused()
        np.testing.assert_allclose(found[0].numpy(), loss, rtol=1e-5)
        np.testing.assert_allclose(found[1].numpy(), grad, rtol=1e-3, atol=1e-8)


def test_pytorchs_loss_is_compiled_once_for_a_workload(monkeypatch):
    """And again for another one, whose shape is not taken as the first of many."""
    torch = pytest.importorskip("torch")
    done = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda loss, **options: done.append(options) or loss)
    peers._compiled.cache_clear()
    try:
        small, other = (
            Data(next(w for w in WORKLOADS if w.name == name)) for name in ("64x10", "2x64x64x5")
        )
        for data in (small, small, other):
            peers.torch_compiled(data)
    finally:
        peers._compiled.cache_clear()
    assert done == ["reset", {"dynamic": False}] * 2


def test_a_wrong_candidate_is_not_measured(data):
    def lazy(data, operation):
        return lambda: (exact(data)[0], data.grads)

    who = candidates.Candidate("lazy", "variant", None, 1, head=lazy)
    found = measure(data, ["head-fused"], [who], SHORT)
    assert isinstance(found["head-fused", "lazy"], Wrong)


ADDED = """
import numpy as np
from pyce._bench import memory

# The memory of the smaller arrays would be used again, unless it is given back.
for mebibytes in (64, 8, 8, 8):
    # The array is freed before the end.
    result, added = memory.added(lambda: np.ones(mebibytes * 2**17).shape)
    assert result == (mebibytes * 2**17,)
    assert 0.9 * mebibytes < added / 2**20 < mebibytes + 16, (mebibytes, added)
"""


# In a process of its own, as the benchmark is: elsewhere, other tests may leave freed memory that
# glibc cannot give back, and the array is put there.
@needs_proc
def test_added_memory(run_python):
    run_python("-c", ADDED)


def test_added_memory_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert memory.added(lambda: 7) == (7, None)
