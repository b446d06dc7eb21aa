"""Workloads: their names, their arrays, and the comparison of results with the reference."""

import numpy as np
import pytest

import pyce
from pyce._bench.workloads import WORKLOADS, Data, matching

SMALL = next(w for w in WORKLOADS if w.name == "64x10")


def test_names_are_unique():
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    assert sum(workload.quick for workload in WORKLOADS) > 5


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["64x10"], {"64x10"}),
        (["llama"], {"512x128256"}),
        (["8x21*-axis1"], {"8x21x512x512-axis1"}),
        (["64x10-f"], {"64x10-float16", "64x10-float64"}),
        (["gpt-2", "Gemma*"], {"1024x50257", "256x262144"}),
        (["1024x1000-b"], {"1024x1000-bfloat16"}),
    ],
)
def test_workloads_are_chosen_by_name(patterns, expected):
    assert {workload.name for workload in matching(patterns)} == expected


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"'nothing'.*64x10"):
        matching(["64x10", "nothing"])


@pytest.mark.parametrize("name", ["64x10", "1024x1000-probabilities", "1024x1000-weight"])
def test_renewed_arrays_hold_the_same_numbers(name):
    data = Data(matching([name])[0])
    before = data.logits.copy(), np.copy(data.target)
    data.logits.fill(7)
    data.renew()
    np.testing.assert_array_equal(data.logits, before[0])
    np.testing.assert_array_equal(data.target, before[1])
    assert data.logits.ctypes.data % 64 == data.grad.ctypes.data % 64 == 0


def test_bytes_of_an_operation():
    data = Data(SMALL)
    copied = data.logits.nbytes + data.grad.nbytes
    assert SMALL.bytes_moved("fused", "copy", True) == copied
    assert SMALL.bytes_moved("fused", "copy", False) == copied + data.target.nbytes
    assert SMALL.bytes_moved("forward", "read", True) == data.logits.nbytes
    soft = Data(matching(["1024x1000-probabilities"])[0])
    assert soft.workload.target_bytes == soft.target.nbytes


def test_wrong_results_are_detected():
    data = Data(SMALL)
    loss, grad = pyce.cross_entropy_with_grad(data.logits, data.target)
    data.check_loss(loss)
    data.check_grad(grad, "fused")
    with pytest.raises(AssertionError):
        data.check_loss(np.float32(loss) * np.float32(1 + 1e-5))
    grad[5, 3] *= np.float32(1 + 1e-5)
    with pytest.raises(AssertionError, match="gradients differ"):
        data.check_grad(grad, "fused")
