"""What pyce.h promises to who calls C without the Python side: every bad argument is refused."""

from types import FunctionType

import numpy as np
import pytest

pyce_c = pytest.importorskip("pyce._pyce", reason="the C extension is not built")
ffi, lib = pyce_c.ffi, pyce_c.lib

ROWS, CLASSES = 3, 4
LARGEST = 2**63 - 1


class Call:
    """A valid call of pyce_run, of which fields can be changed; keeps what the pointers need."""

    def __init__(self, operation=lib.PYCE_FORWARD_BACKWARD, **fields):
        self.kept = []
        self.grad = np.full((ROWS, CLASSES), 7, np.float32)
        self.losses = np.full(ROWS, 7, np.float32)
        self.lse = np.full(ROWS, 7, np.float64)
        p = self.problem = ffi.new("pyce_problem *")
        p.operation, p.dtype, p.threads = operation, lib.PYCE_FLOAT32, 1
        p.outer, p.classes, p.inner = ROWS, CLASSES, 1
        p.logits = self.operand(np.zeros((ROWS, CLASSES), np.float32))
        p.grad_loss, p.ignore_index = 1, -100
        if operation <= lib.PYCE_BACKWARD:
            p.target = lib.PYCE_INDEX64
            p.labels = self.pointer(np.zeros(ROWS, np.int64))
        if operation not in (lib.PYCE_FORWARD, lib.PYCE_LOGSUMEXP):
            p.result = self.operand(self.grad)
        if operation in (lib.PYCE_BACKWARD, lib.PYCE_LOGSUMEXP):
            p.lse = ffi.cast("double *", self.pointer(self.lse))
        for name, value in fields.items():
            setattr(p, name, value(self) if isinstance(value, FunctionType) else value)

    def pointer(self, array):
        self.kept.append(array)
        return ffi.cast("void *", ffi.from_buffer(array))

    def operand(self, array):
        return {
            "data": self.pointer(array),
            "offsets": ffi.NULL,
            "outer_stride": CLASSES,
            "class_stride": 1,
        }

    def run(self):
        return lib.pyce_run(self.problem)


def no_operand(call):
    return {"data": ffi.NULL, "offsets": ffi.NULL, "outer_stride": 0, "class_stride": 0}


def losses(call):
    return call.pointer(call.losses)


def probabilities(call):
    return call.operand(np.full((ROWS, CLASSES), 0.25, np.float32))


SOFT = {"target": lib.PYCE_PROBABILITIES, "labels": ffi.NULL}
LAST = lib.PYCE_LOGSUMEXP

VALID = {
    "fused": {},
    "a 32-bit label": {
        "target": lib.PYCE_INDEX32,
        "labels": lambda call: call.pointer(np.zeros(ROWS, np.int32)),
    },
    "probabilities": {**SOFT, "probs": probabilities},
    "rows' losses": {"reduction": lib.PYCE_NONE, "losses": losses},
    "the last reduction": {"reduction": lib.PYCE_QUOTIENT, "normalizer": 2.0},
    "the last dtype": {"dtype": lib.PYCE_BFLOAT16},
    "the last dtype of probabilities": {"probs_dtype": lib.PYCE_BFLOAT16},
    "no smoothing": {"smoothing": 0.0},
    "all smoothing": {"smoothing": 1.0},
    "no rows": {"outer": 0},
    "no positions": {"inner": 0},
    "no rows and no pointers": {
        "outer": 0,
        "labels": ffi.NULL,
        "logits": no_operand,
        "result": no_operand,
    },
    **{f"operation {i}": {"operation": i} for i in range(LAST + 1)},
}


@pytest.mark.parametrize("what", VALID)
def test_what_is_valid_runs(c_backend, what):
    assert Call(**VALID[what]).run() == lib.PYCE_OK


BAD = {
    "operation below": {"operation": -1},
    "operation above": {"operation": LAST + 1},
    "dtype below": {"dtype": -1},
    "dtype above": {"dtype": lib.PYCE_BFLOAT16 + 1},
    "target below": {"target": -1},
    "target above": {"target": lib.PYCE_PROBABILITIES + 1},
    "probs_dtype below": {"probs_dtype": -1},
    "probs_dtype above": {"probs_dtype": lib.PYCE_BFLOAT16 + 1},
    "reduction below": {"reduction": -1},
    "reduction above": {"reduction": lib.PYCE_QUOTIENT + 1},
    "no threads": {"threads": 0},
    "no classes": {"classes": 0},
    "negative outer": {"outer": -1},
    "negative inner": {"inner": -1},
    "negative both": {"outer": -1, "inner": -1},
    "rows past 64 bits": {"outer": 2**40, "inner": 2**40},
    "elements past 64 bits": {"outer": 2**40, "classes": 2**40},
    "elements whose bytes are past 64 bits": {"outer": LARGEST // 8, "classes": 1},
    "smoothing below": {"smoothing": -1e-9},
    "smoothing above": {"smoothing": 1 + 1e-9},
    "smoothing NaN": {"smoothing": float("nan")},
    "a loss without a target": {"target": lib.PYCE_NO_TARGET, "labels": ffi.NULL},
    "softmax with a target": {"operation": lib.PYCE_SOFTMAX, **SOFT, "probs": probabilities},
    "index target without labels": {"labels": ffi.NULL},
    "32-bit index target without labels": {"target": lib.PYCE_INDEX32, "labels": ffi.NULL},
    "labels beside probabilities": {"target": lib.PYCE_PROBABILITIES, "probs": probabilities},
    "no probabilities": SOFT,
    "no logits": {"logits": no_operand},
    "no result": {"result": no_operand},
    "no result of softmax": {"operation": lib.PYCE_SOFTMAX, "result": no_operand},
    "no lse in the backward": {"operation": lib.PYCE_BACKWARD, "lse": ffi.NULL},
    "no lse in logsumexp": {"operation": lib.PYCE_LOGSUMEXP, "lse": ffi.NULL},
    "no losses": {"reduction": lib.PYCE_NONE},
    "losses that are not asked for": {"losses": losses},
    "losses of the backward": {
        "operation": lib.PYCE_BACKWARD,
        "reduction": lib.PYCE_NONE,
        "losses": losses,
    },
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_bad_is_refused_and_nothing_written(c_backend, what):
    call = Call(**BAD[what])
    assert call.run() == lib.PYCE_BAD_ARGUMENT
    for array in (call.grad, call.losses, call.lse):
        assert (array == 7).all()
    assert call.problem.bad_row == -1


def test_null_is_refused():
    assert lib.pyce_run(ffi.NULL) == lib.PYCE_BAD_ARGUMENT


def test_the_bad_label_is_told_and_nothing_written(c_backend):
    for kind, target in ((np.int32, lib.PYCE_INDEX32), (np.int64, lib.PYCE_INDEX64)):
        for value in (CLASSES, -1):
            y = np.array([0, value, -2], kind)
            call = Call(target=target, labels=lambda call, y=y: call.pointer(y))
            assert call.run() == lib.PYCE_BAD_LABEL
            assert (call.problem.bad_row, call.problem.bad_value) == (1, value)
            assert (call.grad == 7).all()


SHORT = {
    "operation": lib.PYCE_FORWARD_BACKWARD,
    "dtype": lib.PYCE_FLOAT32,
    "reduction": lib.PYCE_SUM,
    "threads": 1,
    "outer": ROWS,
    "classes": CLASSES,
    "inner": 1,
}


def short(loss=True, **changes):
    """pyce_cross_entropy of equal logits: (status, loss, gradient)."""
    x, y = np.zeros((ROWS, CLASSES), np.float32), np.zeros(ROWS, np.int64)
    grad, total = np.full_like(x, 7), ffi.new("double *", 7)
    status = lib.pyce_cross_entropy(
        *{**SHORT, **changes}.values(),
        ffi.from_buffer(x),
        ffi.cast("int64_t *", ffi.from_buffer(y)),
        ffi.from_buffer(grad),
        0.0,
        -100,
        total if loss else ffi.NULL,
    )
    return status, total[0], grad


@pytest.mark.parametrize("operation", [lib.PYCE_FORWARD, lib.PYCE_FORWARD_BACKWARD])
@pytest.mark.parametrize("reduction", [lib.PYCE_MEAN, lib.PYCE_SUM])
def test_the_short_call(c_backend, operation, reduction):
    status, loss, _ = short(operation=operation, reduction=reduction)
    assert status == lib.PYCE_OK
    rows = 1 if reduction == lib.PYCE_MEAN else ROWS
    assert loss == pytest.approx(rows * np.log(CLASSES))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": False},
        {"operation": -1},
        {"operation": lib.PYCE_BACKWARD},
        {"operation": lib.PYCE_SOFTMAX},
        {"reduction": -1},
        {"reduction": lib.PYCE_NONE},
        {"classes": 2**40, "inner": 2**40},
        {"dtype": 9},
    ],
    ids=str,
)
def test_the_short_call_refuses(c_backend, changes):
    status, loss, grad = short(**changes)
    assert status == lib.PYCE_BAD_ARGUMENT
    assert loss == 7
    assert (grad == 7).all()


def bernoulli(dtype=lib.PYCE_FLOAT32, n=5, threads=1, logits=True, target=True, total=True):
    """pyce_binary_cross_entropy of logits 0 and targets 0: (status, sum, losses)."""
    x, t = np.zeros(5, np.float32), np.zeros(5, np.float32)
    losses, summed = np.full_like(x, 7), ffi.new("double *", 7)
    status = lib.pyce_binary_cross_entropy(
        dtype,
        n,
        ffi.from_buffer(x) if logits else ffi.NULL,
        ffi.from_buffer(t) if target else ffi.NULL,
        ffi.NULL,
        ffi.NULL,
        ffi.from_buffer(losses),
        ffi.NULL,
        1.0,
        threads,
        summed if total else ffi.NULL,
    )
    return status, summed[0], losses


def test_bernoulli_runs(c_backend):
    status, total, losses = bernoulli()
    assert status == lib.PYCE_OK
    assert total == pytest.approx(5 * np.log(2))
    assert losses == pytest.approx(np.log(2))
    assert bernoulli(n=0, logits=False, target=False)[:2] == (lib.PYCE_OK, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": lib.PYCE_FLOAT16},
        {"dtype": lib.PYCE_BFLOAT16},
        {"dtype": -1},
        {"n": -1},
        {"n": LARGEST // 8 + 1},
        {"threads": 0},
        {"logits": False},
        {"target": False},
        {"total": False},
    ],
    ids=str,
)
def test_bernoulli_refuses(c_backend, changes):
    status, _, losses = bernoulli(**changes)
    assert status == lib.PYCE_BAD_ARGUMENT
    assert (losses == 7).all()


def aligned(size):
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    return memory[start : start + size]


@pytest.mark.parametrize("size", [1, 255, 256, 257, 2**18 - 1, 2**18, 2**18 + 1, 10**6 + 3])
@pytest.mark.parametrize("streaming", [0, 1])
def test_copies_copy(c_backend, size, streaming):
    given = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    to = aligned(size + 64)
    status = lib.pyce_copy(ffi.from_buffer(to), ffi.from_buffer(given), size, streaming, 2)
    assert status == lib.PYCE_OK
    assert (to[:size] == given).all()
    assert not to[size:].any()
    assert lib.pyce_read(ffi.from_buffer(given), size, 2) == lib.PYCE_OK


def test_copies_refuse():
    a, b = aligned(256), aligned(256)
    to, given = ffi.from_buffer(a), ffi.from_buffer(b)
    assert lib.pyce_copy(to, given, 0, 1, 1) == lib.PYCE_OK
    assert lib.pyce_copy(ffi.NULL, ffi.NULL, 0, 0, 1) == lib.PYCE_OK
    for arguments in (
        (to, given, -1, 0, 1),
        (to, given, 256, 0, 0),
        (ffi.NULL, given, 256, 0, 1),
        (to, ffi.NULL, 256, 0, 1),
        (ffi.from_buffer(a[1:]), given, 64, 1, 1),
    ):
        assert lib.pyce_copy(*arguments) == lib.PYCE_BAD_ARGUMENT
    assert lib.pyce_read(ffi.NULL, 1, 1) == lib.PYCE_BAD_ARGUMENT
    assert lib.pyce_read(given, -1, 1) == lib.PYCE_BAD_ARGUMENT
    assert lib.pyce_read(given, 1, 0) == lib.PYCE_BAD_ARGUMENT


def test_every_status_has_its_words():
    words = [ffi.string(lib.pyce_status_text(i)).decode() for i in range(-1, 5)]
    assert words == [
        "unknown status",
        "success",
        "a label is out of range",
        "an argument is invalid",
        "out of memory",
        "unknown status",
    ]


def test_instruction_sets_are_chosen_by_name(c_backend):
    assert lib.pyce_set_isa(b"none such") == lib.PYCE_BAD_ARGUMENT
    assert lib.pyce_set_isa(ffi.NULL) == lib.PYCE_BAD_ARGUMENT
    assert ffi.string(lib.pyce_isa_in_use()).decode() == c_backend.isa
    assert lib.pyce_isa(100) == ffi.NULL


def test_the_cache_is_what_it_is_said_to_be():
    before = lib.pyce_set_cache(12345)
    try:
        assert before > 0
        assert lib.pyce_set_cache(1) == 12345
        assert lib.pyce_set_cache(0) == 1
        assert lib.pyce_set_cache(-5) == before  # asked anew, after 0
        assert lib.pyce_set_cache(-5) == before
    finally:
        lib.pyce_set_cache(before)
