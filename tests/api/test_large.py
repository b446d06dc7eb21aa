"""More than 2^31 elements and 2^32 bytes: rows, classes, strides, labels, and the last element.

The logits are broadcast, never touched zeros or a sparse file, so only the gradient takes memory.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from conftest import BACKENDS, IN_CI

import pyce

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
WIDEST = [b for b in BACKENDS if b.name == "c"][:1]
# Plain C, which may emulate fused multiply-adds, and NumPy take a minute for so many elements.
FAST = [b for b in BACKENDS if b in WIDEST or b.isa == "avx2" or b.name == "numba"]
CLASSES = 2**31 + 4099
ROWS, FEW = 2**21 + 37, 1024


@pytest.fixture
def selected(request):
    with request.param.selected():
        yield request.param


def on(backends):
    return pytest.mark.parametrize("selected", backends, ids=str, indirect=True)


def need(gigabytes):
    """Skip the test where less memory is available, except in CI."""
    if IN_CI:
        return
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            known = dict(line.split(":") for line in lines)
        available = int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return
    if available < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of memory, {available / 1e9:.1f} GB are available")


def one_row():
    """(1, CLASSES) logits, 0 but for the last class, and the sum of their exponentials."""
    x = np.zeros((1, CLASSES), BFLOAT16)
    x[0, -1] = 2
    return x, CLASSES - 1 + math.exp(2)


def assert_near(actual, expected):
    np.testing.assert_allclose(np.float64(actual), expected, rtol=1e-6)


@pytest.mark.alone
@on(FAST)
def test_forward_of_many_rows(selected):
    need(5)
    x = np.zeros((ROWS, FEW), BFLOAT16)
    assert x.size > 2**31
    x[-1, -1] = 2
    y = np.full(ROWS, FEW - 1)
    loss, lse = pyce.cross_entropy(x, y, reduction="none", return_lse=True)
    last = math.log(FEW - 1 + math.exp(2))
    assert_near(lse[:-1], math.log(FEW))
    assert_near(lse[-1], last)
    assert_near(loss[:-1], math.log(FEW))
    assert_near(loss[-1], last - 2)


@pytest.mark.alone
@on([b for b in FAST if b.name == "c"])
def test_forward_of_one_row(selected):
    need(5)
    x, total = one_row()
    for label, logit in ((CLASSES - 1, 2.0), (CLASSES - 2, 0.0), (2**31, 0.0)):
        loss, lse = pyce.cross_entropy(x, [label], return_lse=True)
        assert_near(loss, math.log(total) - logit)
        assert_near(lse, math.log(total))
        if selected not in WIDEST:
            break


@on(WIDEST)
def test_forward_of_one_row_that_is_one_number(selected):
    x = np.broadcast_to(np.float32(0.5), (CLASSES, 1))
    for label in (np.int64(CLASSES - 1), np.int32(2**31 - 1)):
        loss = pyce.cross_entropy(x, np.array([label]), axis=0)
        assert_near(loss, math.log(CLASSES))


def test_labels_beyond_the_last_class(backend):
    """Found before anything is computed."""
    x = np.broadcast_to(np.float32(0.5), (2, CLASSES))
    for call in (pyce.cross_entropy, pyce.nll_loss, pyce.accuracy):
        for bad in (CLASSES, 2**32, 2**32 + 5):
            with pytest.raises(IndexError, match=f"row 1 is {bad}, .* 0..{CLASSES - 1} "):
                call(x, [CLASSES - 1, bad])


def test_losses_from_probabilities(backend):
    p = np.broadcast_to(np.exp(-np.arange(FEW) / 64).astype(np.float32), (ROWS, FEW))
    y = np.full(ROWS, 64)
    y[-1] = 128
    for call, expected in (
        (pyce.log_loss, [1, 2]),
        (pyce.nll_loss, [-math.exp(-1), -math.exp(-2)]),
    ):
        losses = call(p, y, reduction="none")
        assert_near(losses[:-1], expected[0])
        assert_near(losses[-1], expected[1])


@pytest.mark.alone
@on(WIDEST)
def test_a_gradient(selected):
    """Checks every element: some slices exactly, all others by sums of their bits."""
    need(6)
    y = np.arange(ROWS) % FEW
    row = np.zeros(FEW, BFLOAT16)
    row[7] = 3
    x, total = np.broadcast_to(row, (ROWS, FEW)), FEW - 1 + math.exp(3)
    memory = np.empty(max(ROWS * FEW, CLASSES) + 8, BFLOAT16)
    memory[ROWS * FEW :] = memory[CLASSES:] = 99
    out = memory[: ROWS * FEW].reshape(ROWS, FEW)
    loss, _ = pyce.cross_entropy_with_grad(x, y, reduction="sum", out=out)
    assert_near(loss, ROWS * math.log(total) - 3 * np.count_nonzero(y == 7))
    _, expected = pyce.cross_entropy_with_grad(x[:FEW], y[:FEW], reduction="sum")
    for part in (slice(0, FEW), slice(2**20, 2**20 + FEW), slice(ROWS - 37 - FEW, ROWS - 37)):
        assert (out[part].view(np.uint16) == expected.view(np.uint16)).all()
    assert (out[-37:].view(np.uint16) == expected[:37].view(np.uint16)).all()
    sums = bits(out[:-37]).reshape(-1, FEW * FEW // 4).sum(1)
    assert (sums == bits(expected).sum()).all()
    assert (memory[ROWS * FEW :] == 99).all()

    x, total = one_row()
    out = memory[:CLASSES].reshape(1, -1)
    memory[CLASSES:] = 99
    label = CLASSES - 2
    pyce.cross_entropy_with_grad(x, [label], out=out)
    plain = np.array([1 / total], np.float32).astype(BFLOAT16)
    last = np.array([math.exp(2) / total], np.float32).astype(BFLOAT16)
    assert list(out[0, label:]) == [-1, last[0]]
    assert list(out[0, : label : 2**29 - 1]) == [plain[0]] * 5
    size = 2**14
    whole = label // size * size
    sums = bits(memory[:whole]).reshape(-1, size // 4).sum(1)
    assert (sums == bits(np.repeat(plain, size)).sum()).all()
    assert (memory[whole:label] == plain).all()
    assert (memory[CLASSES:] == 99).all()


def bits(values):
    return values.reshape(-1).view(np.uint64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_strides(backend, dtype, axis, tmp_path):
    """A few numbers of a sparse file, with rows or the classes of a row far apart."""
    shape = (5, 70)
    step = 2**29 + 1
    assert (shape[0] - 1) * step > 2**31
    disk = np.memmap(tmp_path / "logits", dtype, "w+", shape=(4 * step + 100,))
    far = np.lib.stride_tricks.as_strided(disk, shape, (step * dtype.itemsize, dtype.itemsize))
    rng = np.random.default_rng(0)
    far[...] = plain = rng.normal(size=shape).astype(dtype)
    y = rng.integers(0, shape[axis], shape[1 - axis])
    for flip in (slice(None), slice(None, None, -1)):
        for target, near_target in ((y, y), (far, plain)):
            if target is far:
                target, near_target = far[flip], plain[flip]
            got = results(far[flip], target, axis)
            expected = results(np.ascontiguousarray(plain[flip]), near_target, axis)
            for one, other in zip(got, expected, strict=True):
                if backend.bitwise:
                    assert one.tobytes() == other.tobytes()
                wide = [a.astype(np.float64) for a in (one, other)]
                eps = 8 * float(ml_dtypes.finfo(dtype).eps)
                np.testing.assert_allclose(*wide, rtol=eps, atol=eps)


def results(x, target, axis):
    options = {"axis": axis, "reduction": "none"}
    loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
    ones = np.ones(lse.shape)
    yield from (loss, grad, lse, pyce.cross_entropy(x, target, **options))
    yield pyce.cross_entropy_backward(ones, x, target, lse, **options)
    yield from (pyce.softmax(x, axis), pyce.log_softmax(x, axis), pyce.logsumexp(x, axis))
    yield pyce.nll_loss(x, target, **options)
    yield np.asarray(pyce.accuracy(x, target, axis=axis))
    yield from pyce.binary_cross_entropy_with_grad(x, x, reduction="none")
