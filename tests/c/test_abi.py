"""The C interface, called directly: invalid calls are refused, and write nothing.

All tests share the problems and buffers that are built at the top, so they are in one file.
"""

import ml_dtypes
import numpy as np
import pytest
from every import every

import pyce

_pyce = pytest.importorskip("pyce._pyce", reason="the C extension is not built")
ffi, lib = _pyce.ffi, _pyce.lib

BIG = 2**63 - 1
LEAST = -(2**63)
DTYPES = {
    "FLOAT32": np.dtype(np.float32),
    "FLOAT64": np.dtype(np.float64),
    "FLOAT16": np.dtype(np.float16),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
}
OPERATIONS = ("FORWARD", "FORWARD_BACKWARD", "BACKWARD", "SOFTMAX", "LOG_SOFTMAX", "LOGSUMEXP")
LOSSES = OPERATIONS[:3]
TARGETS = {"INDEX32": np.int32, "INDEX64": np.int64, "PROBABILITIES": None}
OPERANDS = ("logits", "result", "probs")
OUTPUTS = ("result", "lse", "losses", "reduced")


def number(name):
    return getattr(lib, f"PYCE_{name}")


def filled(shape, dtype):
    """An array of a byte pattern, in which every write is visible."""
    return np.full(np.prod(shape) * dtype.itemsize, 0xA5, np.uint8).view(dtype).reshape(shape)


class Raw:
    """A valid problem for pyce_run: the structure `c`, and `arrays` by the names of its fields.

    `set` changes fields, `run` makes the call. Outputs contain a pattern before the call, and so
    do the results in `c`.
    """

    def __init__(
        self,
        operation="FORWARD_BACKWARD",
        dtype="FLOAT32",
        target="INDEX64",
        reduction="SUM",
        shape=(6, 5, 1),
        weights=False,
    ):
        outer, classes, inner = shape
        rows = outer * inner
        rng = np.random.default_rng(0)
        kind = DTYPES[dtype]
        arrays = {"logits": rng.normal(size=shape).astype(kind)}
        loss = operation in LOSSES
        if operation not in ("FORWARD", "LOGSUMEXP"):
            arrays["result"] = filled(shape, kind)
        if loss and target == "PROBABILITIES":
            arrays["probs"] = rng.random(shape).astype(kind)
        elif loss:
            arrays["labels"] = rng.integers(0, classes, rows).astype(TARGETS[target])
        if loss and weights:
            arrays["weight"] = rng.uniform(0.5, 2, classes)
            arrays["sample_weight"] = rng.uniform(0.5, 2, rows)
            if operation != "FORWARD":
                arrays["grad_losses"] = rng.uniform(0.5, 2, rows)
        if operation == "BACKWARD":
            # exp sums of the middle axis
            x = arrays["logits"].astype(np.float64)
            arrays["lse"] = np.log(np.exp(x).sum(1)).reshape(-1)
        elif operation not in ("SOFTMAX", "LOG_SOFTMAX"):
            arrays["lse"] = filled(rows, np.dtype(float))
        if loss and operation != "BACKWARD" and reduction == "NONE":
            wide = np.dtype(np.float64 if dtype == "FLOAT64" else np.float32)
            arrays["losses"] = filled(rows, wide)
        if operation in ("FORWARD", "FORWARD_BACKWARD") and reduction != "NONE":
            arrays["reduced"] = filled(1, np.dtype(np.float64 if dtype == "FLOAT64" else "f4"))
        self.arrays = arrays
        self.c = ffi.new(
            "pyce_problem *",
            {
                "operation": number(operation),
                "dtype": number(dtype),
                "target": number(target if loss else "NO_TARGET"),
                "probs_dtype": number(dtype),
                "reduction": number(reduction),
                "threads": 2,
                "outer": outer,
                "classes": classes,
                "inner": inner,
                "grad_loss": 1.0,
                "normalizer": np.nan,
                "ignore_index": -100,
                "loss": -7.25,
                "bad_row": 77,
                "bad_value": 78,
            },
        )
        for name, array in arrays.items():
            self.point(name, array)
        for name in OPERANDS:
            operand = getattr(self.c, name)
            operand.outer_stride, operand.class_stride = classes * inner, inner

    def point(self, name, array, shift=0):
        """Let the field `name` point to an array, or `shift` bytes beyond its start."""
        address = array.__array_interface__["data"][0] + shift if array is not None else 0
        pointer = ffi.cast("void *", address)
        if name in OPERANDS:
            getattr(self.c, name).data = pointer
        elif name in ("losses", "reduced"):
            setattr(self.c, name, pointer)
        elif name == "labels":
            self.c.labels = pointer
        else:
            setattr(self.c, name, ffi.cast("double *", pointer))

    def set(self, **fields):
        """Change fields; those of an operand are written as `logits__class_stride`."""
        for name, value in fields.items():
            operand, _, field = name.partition("__")
            if field:
                setattr(getattr(self.c, operand), field, value)
            else:
                setattr(self.c, name, value)
        return self

    def run(self):
        return lib.pyce_run(self.c)

    def memory(self):
        """All bytes that a call could change."""
        return bytes(ffi.buffer(self.c)), {n: a.tobytes() for n, a in self.arrays.items()}

    def assert_refused(self, status="BAD_ARGUMENT"):
        before = self.memory()
        assert self.run() == number(status)
        assert self.memory() == before


def every_problem():
    for dtype in DTYPES:
        for operation in OPERATIONS:
            targets = TARGETS if operation in LOSSES else ("INDEX64",)
            for target in targets:
                for reduction in ("SUM", "NONE") if operation in LOSSES else ("SUM",):
                    for weights in (False, True) if operation in LOSSES else (False,):
                        yield {
                            "operation": operation,
                            "dtype": dtype,
                            "target": target,
                            "reduction": reduction,
                            "weights": weights,
                        }


@every("problem", every_problem())
def test_a_valid_problem_gives_the_results_of_python(c_backend, problem):
    """Otherwise the problems below could be refused for another reason."""
    raw = Raw(**problem, shape=(3, 5, 2))
    before = raw.memory()[1]
    assert raw.run() == lib.PYCE_OK
    a, operation = raw.arrays, problem["operation"]
    x = a["logits"]
    written = {n for n, array in a.items() if array.tobytes() != before[n]}
    assert written == {n for n in OUTPUTS if n in a and (n, operation) != ("lse", "BACKWARD")}
    if operation in LOSSES:
        target = a["probs"] if "probs" in a else a["labels"].reshape(3, 2)
        rows = a.get("sample_weight")
        options = {
            "axis": 1,
            "weight": a.get("weight"),
            "sample_weight": None if rows is None else rows.reshape(3, 2),
        }
        none = problem["reduction"] == "NONE"
        loss, lse = pyce.cross_entropy(
            x, target, reduction="none" if none else "sum", return_lse=True, **options
        )
        if operation != "BACKWARD":
            np.testing.assert_array_equal(a["lse"], lse.reshape(-1))
            got = a["losses"] if none else loss.dtype.type(raw.c.loss)
            np.testing.assert_array_equal(got, loss.reshape(-1) if none else loss)
        if none or operation == "BACKWARD":
            assert raw.c.loss == -7.25
        else:
            assert a["reduced"][0] == a["reduced"].dtype.type(raw.c.loss)
        if operation != "FORWARD":
            factors = a.get("grad_losses", np.ones(6)).reshape(3, 2)
            grad = pyce.cross_entropy_backward(factors, x, target, lse, reduction="none", **options)
            np.testing.assert_allclose(
                a["result"].astype(float), grad.astype(float), rtol=1e-2, atol=1e-2
            )
    elif operation == "LOGSUMEXP":
        np.testing.assert_array_equal(a["lse"], pyce.logsumexp(x, axis=1).reshape(-1))
    else:
        expected = getattr(pyce, operation.lower())(x, axis=1)
        assert a["result"].tobytes() == expected.tobytes()
    assert (raw.c.bad_row, raw.c.bad_value) == (77, 78)


# ---------------------------------------------------------------------------------------------
# Fields


OUT_OF_RANGE = [
    *(("operation", v) for v in (-1, 6, 2**31 - 1, -(2**31))),
    *(("dtype", v) for v in (-1, 4, 2**31 - 1, -(2**31))),
    *(("target", v) for v in (-1, 4, 2**31 - 1, -(2**31))),
    *(("probs_dtype", v) for v in (-1, 4, 2**31 - 1, -(2**31))),
    *(("reduction", v) for v in (-1, 4, 2**31 - 1, -(2**31))),
    *(("threads", v) for v in (0, -1, -(2**31))),
    *(("outer", v) for v in (-1, LEAST)),
    *(("classes", v) for v in (0, -1, LEAST)),
    *(("inner", v) for v in (-1, LEAST)),
    *(("smoothing", v) for v in (-1e-9, 1.0000001, np.nan, np.inf, -np.inf)),
    *(("lse_square_scale", v) for v in (np.nan, np.inf, -np.inf)),
]


@every(("field", "value"), OUT_OF_RANGE)
@every("reduction", ["SUM", "NONE"])
def test_a_field_out_of_range(field, value, reduction):
    for operation in OPERATIONS:
        Raw(operation, reduction=reduction, weights=True).set(**{field: value}).assert_refused()
        # Also without rows.
        empty = Raw(operation, reduction=reduction).set(outer=0, inner=0)
        empty.set(**{field: value}).assert_refused()


# outer, classes, inner: the product is above 2^63, or the product in bytes is, or the product plus
# the overhead of the rows.
TOO_LARGE = [
    (BIG, 2, 1),
    (BIG, 1, 2),
    (1, BIG, 2),
    (1, 2, BIG),
    (2**32, 2**32, 1),
    (2**32, 1, 2**32),
    (1, 2**32, 2**32),
    (2**31, 2**31, 2),
    (2**22, 2**21, 2**21),
    (2**62, 4, 4),
    (BIG, 1, 1),
    (1, BIG, 1),
    (1, 1, BIG),
    (2**60, 1, 1),
    (1, 2**60, 1),
    (1, 1, 2**60),
    (2**30, 2**30, 1),
    (2**58, 2, 1),
    (2**58, 1, 1),
    (1, 1, 2**58),
]


@every("sizes", TOO_LARGE)
@every("dtype", DTYPES)
def test_sizes_whose_product_does_not_fit(sizes, dtype):
    outer, classes, inner = sizes
    for operation in OPERATIONS:
        for target in TARGETS:
            raw = Raw(operation, dtype, target).set(outer=outer, classes=classes, inner=inner)
            # Without strides only the product can be refused.
            for name in ("logits", "probs"):
                raw.set(**{f"{name}__outer_stride": 0, f"{name}__class_stride": 0})
            raw.assert_refused()


@every("sizes", [(0, BIG // 64, 1), (0, 5, BIG), (BIG, 5, 0), (0, 1, 0)])
@every("operation", OPERATIONS)
def test_no_rows(operation, sizes):
    """Without rows nothing is read or written, whatever the sizes and pointers are."""
    raw = Raw(operation).set(outer=sizes[0], classes=sizes[1], inner=sizes[2])
    for name in raw.arrays:
        raw.point(name, None)
    before = raw.memory()[1]
    assert raw.run() == lib.PYCE_OK
    assert raw.memory()[1] == before
    assert raw.c.loss == (0 if operation in ("FORWARD", "FORWARD_BACKWARD") else -7.25)


def test_no_rows_and_arrays_that_have_elements():
    """`weight` and `reduced` are checked as with rows."""
    for operation, reduction in (("FORWARD", "SUM"), ("FORWARD_BACKWARD", "MEAN")):
        raw = Raw(operation, "FLOAT64", reduction=reduction, weights=True).set(outer=0)
        weight, reduced = raw.arrays["weight"], raw.arrays["reduced"]
        raw.arrays["room"] = room = filled(7, np.dtype(float))
        for name, array in (("weight", weight), ("reduced", reduced)):
            for shift in range(1, 8):
                raw.point(name, room, shift)
                raw.assert_refused()
            setattr(raw.c, name, ffi.cast(ffi.typeof(getattr(raw.c, name)), 2**64 - 8))
            raw.assert_refused()
            raw.point(name, array)
        for shift in (0, 8, 32):
            raw.point("reduced", weight, shift)
            raw.assert_refused()
        raw.point("reduced", None)
        assert raw.run() == lib.PYCE_OK
        raw.point("reduced", reduced)
        assert raw.run() == lib.PYCE_OK
        np.testing.assert_array_equal(reduced, 0.0 if reduction == "SUM" else np.nan)
    # Where they are not allowed, and without the target that the operation needs.
    spare = filled(5, np.dtype(float))
    for operation, reduction, name in (
        ("FORWARD", "NONE", "reduced"),
        ("BACKWARD", "SUM", "reduced"),
        ("SOFTMAX", "SUM", "reduced"),
        ("LOGSUMEXP", "SUM", "weight"),
    ):
        raw = Raw(operation, "FLOAT64", reduction=reduction).set(outer=0)
        raw.arrays["spare"] = spare
        raw.point(name, spare)
        raw.assert_refused()
    Raw("FORWARD").set(outer=0, target=lib.PYCE_NO_TARGET).assert_refused()
    Raw("SOFTMAX").set(outer=0, target=lib.PYCE_INDEX64).assert_refused()
    Raw("SOFTMAX").set(outer=0, lse_square_scale=1.0).assert_refused()


# The address of the last class or row does not fit 64 bits, or not the address space.
FAR_STRIDES = [
    {"class_stride": BIG},
    {"class_stride": LEAST},
    {"class_stride": -BIG},
    {"class_stride": BIG // 4 + 1},
    {"class_stride": LEAST // 4},
    {"class_stride": 2**60},
    {"class_stride": -(2**58)},
    {"outer_stride": BIG},
    {"outer_stride": LEAST},
    {"outer_stride": BIG // 5 + 1},
    {"outer_stride": LEAST // 5},
    {"outer_stride": -(2**58)},
    {"outer_stride": 2**60},
    {"outer_stride": BIG // 5 - 100, "class_stride": 100},  # their sum is too large
    {"outer_stride": 2**57, "class_stride": 2**60 - 2**57},
    {"outer_stride": -(2**57), "class_stride": -(2**58)},
    {"outer_stride": -(2**60), "class_stride": 2**60},  # at both ends
]


@every("strides", FAR_STRIDES)
@every("operand", OPERANDS)
def test_strides_that_reach_too_far(operand, strides):
    fields = {f"{operand}__{name}": value for name, value in strides.items()}
    raw = Raw("FORWARD_BACKWARD", "FLOAT64", "PROBABILITIES")
    raw.set(**fields).assert_refused()
    if "class_stride" in strides and len(strides) == 1:
        offsets = np.arange(6) * 5
        operand = getattr(raw.c, operand)
        operand.outer_stride = LEAST  # ignored, because there are offsets
        operand.offsets = ffi.from_buffer("int64_t[]", offsets)
        raw.assert_refused()


@pytest.mark.parametrize("stride", ["class_stride", "outer_stride"])
def test_a_result_with_one_element_for_many(stride):
    raw = Raw("SOFTMAX").set(**{f"result__{stride}": 0})
    raw.assert_refused()
    # The logits and probabilities may be broadcast.
    raw = Raw(target="PROBABILITIES").set(**{f"logits__{stride}": 0, f"probs__{stride}": 0})
    assert raw.run() == lib.PYCE_OK


@every(("shape", "stride"), [((6, 1, 1), "class_stride"), ((1, 5, 1), "outer_stride")])
@every("value", [0, 99, -99])
def test_a_stride_along_which_there_is_one_element(shape, stride, value):
    """It may be any number, and the array is contiguous all the same."""
    strides = {f"{name}__{stride}": value for name in ("logits", "result")}
    plain, raw = Raw(shape=shape), Raw(shape=shape).set(**strides)
    assert plain.run() == raw.run() == lib.PYCE_OK
    assert raw.arrays["result"].tobytes() == plain.arrays["result"].tobytes()
    raw = Raw(shape=shape).set(**strides)
    raw.point("result", raw.arrays["labels"])
    raw.assert_refused()
    # In place, although the two strides differ.
    raw = Raw(shape=shape).set(**{f"logits__{stride}": value})
    raw.point("result", raw.arrays["logits"])
    assert raw.run() == lib.PYCE_OK
    assert raw.arrays["logits"].tobytes() == plain.arrays["result"].tobytes()


def test_offsets_in_place_of_the_stride_of_a_result():
    plain, raw = Raw("SOFTMAX"), Raw("SOFTMAX").set(result__outer_stride=0)
    offsets = np.arange(6) * 5
    raw.c.result.offsets = ffi.from_buffer("int64_t[]", offsets)
    assert plain.run() == raw.run() == lib.PYCE_OK
    assert raw.arrays["result"].tobytes() == plain.arrays["result"].tobytes()


def test_no_problem():
    assert lib.pyce_run(ffi.NULL) == lib.PYCE_BAD_ARGUMENT
    room = bytearray(ffi.sizeof("pyce_problem") + 8)
    at = ffi.cast("char *", ffi.from_buffer(room))
    good = Raw()
    for shift in range(1, 8):
        ffi.memmove(at + shift, good.c, ffi.sizeof("pyce_problem"))
        before = bytes(room)
        # The shifted address may be aligned.
        if int(ffi.cast("uintptr_t", at + shift)) % ffi.alignof("pyce_problem"):
            misplaced = ffi.cast("pyce_problem *", at + shift)
            assert lib.pyce_run(misplaced) == lib.PYCE_BAD_ARGUMENT
            assert bytes(room) == before


# ---------------------------------------------------------------------------------------------
# Pointers


def pointers():
    """Every pointer of every operation: whether it is needed, and whether it is allowed."""
    for operation in OPERATIONS:
        for target in TARGETS if operation in LOSSES else ("NO_TARGET",):
            for reduction in ("SUM", "NONE"):
                loss, backward = operation in LOSSES, operation == "BACKWARD"
                result = operation not in ("FORWARD", "LOGSUMEXP")
                rows = loss and not backward and reduction == "NONE"
                soft = target == "PROBABILITIES"
                needed = {
                    "logits": True,
                    "result": result,
                    "probs": soft,
                    "labels": loss and not soft,
                    "lse": backward or operation == "LOGSUMEXP",
                    "losses": rows,
                    "weight": False,
                    "sample_weight": False,
                    "grad_losses": False,
                    "reduced": False,
                }
                allowed = {
                    **needed,
                    "lse": operation not in ("SOFTMAX", "LOG_SOFTMAX"),
                    "weight": loss,
                    "sample_weight": loss,
                    "grad_losses": loss and result,
                    "reduced": loss and not backward and not rows,
                }
                for name in needed:
                    yield operation, target, reduction, name, needed[name], allowed[name]


@every(("operation", "target", "reduction", "name", "needed", "allowed"), pointers())
def test_pointers_are_there_if_and_only_if_needed(
    operation, target, reduction, name, needed, allowed
):
    raw = Raw(operation, "FLOAT32", "INDEX64" if target == "NO_TARGET" else target, reduction)
    raw.point(name, None)
    if needed:
        raw.assert_refused()
    else:
        assert raw.run() == lib.PYCE_OK
    spare = raw.arrays.get(name, filled(64, np.dtype(float)))
    if name == "labels" and name not in raw.arrays:
        spare = np.zeros(6, np.int64)
    raw.arrays["spare"] = spare
    raw.point(name, spare)
    if allowed:
        assert raw.run() == lib.PYCE_OK
    else:
        raw.assert_refused()


@every("dtype", DTYPES)
@every("target", TARGETS)
@every("operation", LOSSES)
def test_pointers_between_elements(operation, target, dtype):
    """Unaligned pointers are refused: C does not define an access through them."""
    raw = Raw(operation, dtype, target, "NONE", weights=True)
    for name, array in list(raw.arrays.items()):
        room = np.zeros(array.nbytes + 8, np.uint8)
        room[: array.nbytes] = array.view(np.uint8).reshape(-1)
        raw.arrays[f"room of {name}"] = room
        for shift in range(1, array.itemsize):
            raw.point(name, room, shift)
            raw.assert_refused()
        raw.point(name, array)
    for name in OPERANDS:
        if name in raw.arrays:
            room = np.zeros(7 * 8 + 1, np.uint8)
            for shift in (1, 4, 7):
                getattr(raw.c, name).offsets = ffi.cast(
                    "int64_t *", room.__array_interface__["data"][0] + shift
                )
                raw.assert_refused()
            getattr(raw.c, name).offsets = ffi.NULL
    assert raw.run() == lib.PYCE_OK


@pytest.mark.parametrize("name", ["logits", "result", "labels", "weight", "losses", "lse"])
def test_arrays_that_would_leave_the_address_space(name):
    raw = Raw("FORWARD_BACKWARD", "FLOAT64", reduction="NONE", weights=True)
    end = ffi.cast("void *", 2**64 - 16)
    if name in OPERANDS:
        getattr(raw.c, name).data = end
    else:
        setattr(raw.c, name, ffi.cast(ffi.typeof(getattr(raw.c, name)), end))
    raw.assert_refused()


# ---------------------------------------------------------------------------------------------
# Arrays that overlap


def shared(operation, first, second):
    """A function that places the second array at an offset from the first, and the sizes of both.

    Their memory is `raw.arrays["shared"]`, so that writes after a refusal are detected.
    """
    target = "PROBABILITIES" if "probs" in (first, second) else "INDEX64"
    reduction = "SUM" if "reduced" in (first, second) else "NONE"
    raw = Raw(operation, "FLOAT64", target, reduction, shape=(6, 5, 1), weights=True)
    arrays = raw.arrays
    one, other = arrays[first], arrays[second]
    room = np.zeros(one.nbytes + 2 * other.nbytes, np.uint8)
    start = other.nbytes
    room[start : start + one.nbytes] = one.view(np.uint8).reshape(-1)
    arrays["shared"] = room
    raw.point(first, room, start)

    def slide(shift):
        raw.point(second, room, start + shift)
        return raw

    return slide, one.nbytes, other.nbytes


PAIRS = [
    (operation, output, other)
    for operation, outputs in (
        ("FORWARD", ("lse", "losses", "reduced")),
        ("FORWARD_BACKWARD", OUTPUTS),
        ("BACKWARD", ("result",)),
    )
    for output in outputs
    for other in ("logits", "probs", "labels", "weight", "sample_weight", "grad_losses", *OUTPUTS)
    if output != other
    and not (operation == "FORWARD" and other in ("result", "grad_losses"))
    and not (operation == "BACKWARD" and other in ("losses", "reduced"))
    and {output, other} != {"losses", "reduced"}
]


@every(("operation", "output", "other"), PAIRS)
def test_an_output_that_is_something_else(operation, output, other):
    slide, size, length = shared(operation, output, other)
    for shift in {8 - length, -8, 0, 8, size - 8}.intersection(range(1 - length, size)):
        raw = slide(shift)
        if (output, other, shift) == ("result", "logits", 0):
            continue  # in place
        raw.assert_refused()


@every("operation", ["FORWARD_BACKWARD", "BACKWARD", "SOFTMAX", "LOG_SOFTMAX"])
@every("dtype", DTYPES)
def test_in_place_and_side_by_side(operation, dtype):
    plain = Raw(operation, dtype)
    assert plain.run() == lib.PYCE_OK
    expected = plain.arrays["result"].tobytes()
    raw = Raw(operation, dtype)
    raw.point("result", raw.arrays["logits"])
    assert raw.run() == lib.PYCE_OK
    assert raw.arrays["logits"].tobytes() == expected
    # Adjacent arrays, and arrays of which each lies in the gaps of the other.
    x = Raw(operation, dtype).arrays["logits"][..., 0]
    for gap, place in ((0, 0), (1, 1)):
        room = np.zeros((2, 6, 5) if not gap else (6, 2, 5), x.dtype)
        logits, result = (room[0], room[1]) if not gap else (room[:, 0], room[:, 1])
        logits[...] = x
        raw = Raw(operation, dtype)
        raw.point("logits", logits)
        raw.point("result", result)
        stride = 5 * (1 + place)
        raw.set(logits__outer_stride=stride, result__outer_stride=stride)
        assert raw.run() == lib.PYCE_OK
        assert result.tobytes() == expected
        assert (logits == x).all()


def place_anywhere(rng, raw, name, steps=None):
    """Let an operand have random strides, or `steps`, in `room`; its view and its strides."""
    room, shape = raw.arrays["room"], (raw.c.outer, raw.c.classes, raw.c.inner)
    if steps is None:
        sizes = [int(rng.integers(1, 2 * shape[2] * n)) for n in shape[1::-1]]
        steps = [size * int(rng.choice([-1, 1])) for size in rng.permutation(sizes).tolist()]
    reach = [step * (n - 1) for step, n in zip(steps, shape[:2], strict=True)]
    first = int(rng.integers(0, 5)) - sum(min(r, 0) for r in reach)
    assert first + sum(max(r, 0) for r in reach) + shape[2] <= room.size
    size = room.itemsize
    raw.point(name, room, size * first)
    raw.set(**{f"{name}__outer_stride": steps[0], f"{name}__class_stride": steps[1]})
    view = np.lib.stride_tricks.as_strided(room[first:], shape, [size * s for s in (*steps, 1)])
    return view, steps


def is_same(a, b):
    """Whether two arrays have each element at the same place."""
    pairs = zip(a.shape, a.strides, b.strides, strict=True)
    return a.ctypes.data == b.ctypes.data and all(n == 1 or i == k for n, i, k in pairs)


def test_strided_arrays_that_overlap():
    """Logits and a result of any strides, or of the same, and logits and a flat array: refused
    exactly where NumPy finds an element of both.
    """
    rng = np.random.default_rng(0)
    found = {"SOFTMAX": [0, 0], "LOG_SOFTMAX": [0, 0], "LOGSUMEXP": [0, 0]}
    for i in range(900):
        operation = list(found)[i % 3]
        shape = tuple(int(n) for n in rng.integers(1, [7, 7, 3]))
        dtype = "FLOAT16" if operation == "SOFTMAX" else "FLOAT64"
        raw = Raw(operation, dtype, shape=shape).set(threads=1)
        raw.arrays["room"] = room = rng.normal(size=300).astype(DTYPES[dtype])
        view, steps = place_anywhere(rng, raw, "logits")
        if operation == "LOGSUMEXP":
            first = int(rng.integers(0, 100))
            raw.point("lse", room, 8 * first)
            other = room[first : first + shape[0] * shape[2]]
        else:
            given = steps if operation == "LOG_SOFTMAX" else None
            other, _ = place_anywhere(rng, raw, "result", given)
        overlap = np.shares_memory(view, other)
        if overlap and not (view.shape == other.shape and is_same(view, other)):
            raw.assert_refused()
        else:
            assert raw.run() == lib.PYCE_OK, (shape, view.strides, other.strides)
        found[operation][overlap] += 1
    assert min(min(counts) for counts in found.values()) > 30, found


@every(
    ("shape", "strides", "shift"),
    [
        ((6000, 3, 1), (10, 1), 10 * 5990),  # the last rows
        ((6000, 3, 1), (-10, 1), 10 * 5990),
        ((3000, 3, 1), (10, 40005), 40005 + 15000),  # some rows, in the other columns
        ((3, 3000, 1), (40005, 10), 40005 + 15000),
    ],
)
def test_many_rows_of_which_few_overlap(shape, strides, shift):
    """The search for them does not end before it finds them."""
    raw = Raw("SOFTMAX", "FLOAT64", shape=shape)
    raw.arrays["room"] = np.zeros(180_000)
    first = max(0, -strides[0] * (shape[0] - 1))
    for name, start in (("logits", first), ("result", first + shift)):
        raw.point(name, raw.arrays["room"], 8 * start)
        raw.set(**{f"{name}__outer_stride": strides[0], f"{name}__class_stride": strides[1]})
    raw.assert_refused()


@pytest.mark.parametrize("operand", ["logits", "result", "probs"])
def test_offsets(operand):
    plain = Raw(target="PROBABILITIES")
    assert plain.run() == lib.PYCE_OK
    order = np.array([3, 0, 5, 1, 4, 2])
    raw = Raw(target="PROBABILITIES")
    moved = np.empty_like(raw.arrays[operand])
    moved[order] = raw.arrays[operand]
    offsets = order * 5
    getattr(raw.c, operand).offsets = ffi.from_buffer("int64_t[]", offsets)
    raw.point(operand, moved)
    assert raw.run() == lib.PYCE_OK
    result = moved[order] if operand == "result" else raw.arrays["result"]
    assert result.tobytes() == plain.arrays["result"].tobytes()


@pytest.mark.parametrize("having", [("logits", "result"), ("logits",), ("result",)])
def test_offsets_are_not_looked_at_for_shared_memory(having):
    """Logits and result in the same memory, whose rows take turns."""
    plain, raw = Raw("SOFTMAX"), Raw("SOFTMAX")
    assert plain.run() == lib.PYCE_OK
    room = filled((6, 2, 5), np.dtype(np.float32))
    room[:, 0] = raw.arrays["logits"][..., 0]
    offsets = [np.arange(6) * 10 + first for first in (0, 5)]
    for name, of_rows in zip(("logits", "result"), offsets, strict=True):
        raw.set(**{f"{name}__outer_stride": 10})
        if name in having:
            raw.point(name, room)
            getattr(raw.c, name).offsets = ffi.from_buffer("int64_t[]", of_rows)
        else:
            raw.point(name, room, 4 * int(of_rows[0]))
    assert raw.run() == lib.PYCE_OK
    assert room[:, 1].tobytes() == plain.arrays["result"].tobytes()


def test_offsets_that_would_be_written():
    raw = Raw("SOFTMAX", "FLOAT64")
    offsets = raw.arrays["result"].reshape(-1).view(np.int64)
    offsets[:6] = np.arange(6) * 5
    raw.c.logits.offsets = ffi.cast("int64_t *", offsets.__array_interface__["data"][0])
    raw.assert_refused()


# ---------------------------------------------------------------------------------------------
# Labels


LABELS = [
    # dtype, value, ignore_index, whether the label is ignored; None: it is a valid label
    ("INDEX32", -1, -100, False),
    ("INDEX32", 5, -100, False),
    ("INDEX32", 2**31 - 1, -100, False),
    ("INDEX32", -(2**31), -100, False),
    ("INDEX32", -100, -100, True),
    ("INDEX32", -100, 2**32 - 100, False),  # equal in 32 bits
    ("INDEX32", 2, 2 + 2**32, None),
    ("INDEX32", 2, 2, True),
    ("INDEX32", -100, 2, False),
    ("INDEX32", 2**31 - 1, 2**31 - 1, True),
    ("INDEX32", -(2**31), -(2**31), True),
    ("INDEX64", -1, -100, False),
    ("INDEX64", 5, -100, False),
    ("INDEX64", BIG, -100, False),
    ("INDEX64", LEAST, -100, False),
    ("INDEX64", 2**32, -100, False),
    ("INDEX64", 2**32 + 2, -100, False),
    ("INDEX64", 2**32 - 100, -100, False),
    ("INDEX64", 2**53 + 1, 2**53, False),  # equal as doubles
    ("INDEX64", 2, 2, True),
    ("INDEX64", -100, 2, False),
    ("INDEX64", BIG, BIG, True),
    ("INDEX64", LEAST, LEAST, True),
    ("INDEX64", LEAST, BIG, False),
]


@every(("kind", "value", "ignore", "ignored"), LABELS)
@every("operation", LOSSES)
def test_labels_at_the_limits(c_backend, operation, kind, value, ignore, ignored):
    for shape in (6, 5, 1), (40, 100, 1), (3, 5, 37), (20, 3000, 1):
        raw = Raw(operation, "FLOAT32", kind, "NONE", shape=shape)
        labels = raw.arrays["labels"]
        rows = len(labels)
        label = shape[1] if value == 5 else value
        clean = np.where(labels == 2, 3, labels)  # 2 may be the value under test
        for row in (0, 5, rows - 1):
            labels[...] = clean
            labels[row] = label
            raw.set(ignore_index=ignore, bad_row=77, bad_value=78)
            if ignored is False:
                labels[-1] = label  # the first row is reported
                before = raw.memory()[1]
                assert raw.run() == lib.PYCE_BAD_LABEL
                assert raw.memory()[1] == before
                assert (raw.c.bad_row, raw.c.bad_value, raw.c.loss) == (row, label, -7.25)
                continue
            assert raw.run() == lib.PYCE_OK
            assert (raw.c.bad_row, raw.c.bad_value) == (77, 78)
            if operation != "FORWARD":
                result = raw.arrays["result"].swapaxes(1, 2).reshape(rows, -1)
                assert (result.any(1) == (np.arange(rows) != row if ignored else True)).all()
            if operation != "BACKWARD":
                assert (raw.arrays["losses"][row] == 0) == bool(ignored)


def test_labels_and_other_errors():
    """An invalid argument is found before the labels are read."""
    raw = Raw()
    raw.arrays["labels"][2] = 99
    raw.set(threads=0).assert_refused()
    raw.set(threads=1)
    assert raw.run() == lib.PYCE_BAD_LABEL
    assert (raw.c.bad_row, raw.c.bad_value) == (2, 99)


# ---------------------------------------------------------------------------------------------
# Threads and memory


@pytest.fixture
def set_thread_thresholds():
    """Sets the thread thresholds; the former ones are restored."""
    before = ffi.new("int64_t[2]")
    lib.pyce_get_thread_thresholds(before, before + 1)
    yield lib.pyce_set_thread_thresholds
    lib.pyce_set_thread_thresholds(*before)


@pytest.mark.parametrize(
    ("share", "wake"), [(2**14, 0), (0, 0), (LEAST, LEAST), (2**14, BIG), (BIG, BIG)]
)
@pytest.mark.parametrize("shape", [(4, 20_000, 1), (2000, 40, 1), (2, 40, 1000)], ids=str)
def test_as_many_threads_as_there_are_numbers(set_thread_thresholds, shape, share, wake):
    """More threads may be allowed than there are pieces of work."""
    expected = Raw(shape=shape).set(threads=1)
    assert expected.run() == lib.PYCE_OK
    # With low thresholds as many threads are created as are allowed, so only 3 are.
    set_thread_thresholds(share, wake)
    for threads in (2**31 - 1, 2**30, 2**30 + 1) if share == 2**14 else (3,):
        raw = Raw(shape=shape).set(threads=threads)
        assert raw.run() == lib.PYCE_OK
        assert raw.arrays["result"].tobytes() == expected.arrays["result"].tobytes()
        assert raw.c.loss == expected.c.loss


def test_thread_thresholds(set_thread_thresholds):
    """They are read back, at least 1 to share, and say which work the caller does alone."""
    found = ffi.new("int64_t[2]")
    for share, wake in ((2**16, 2**18), (1, -5), (0, 0), (LEAST, LEAST), (BIG // 2, BIG), (BIG, 7)):
        set_thread_thresholds(share, wake)
        lib.pyce_get_thread_thresholds(found, found + 1)
        assert [*found] == [max(share, 1), wake]
        assert lib.pyce_serial_below() == min(2 * max(share, 1), BIG)


@pytest.mark.parametrize("weight", [np.inf, 1e308])
def test_an_infinite_sum_of_weights_is_not_nan(weight):
    """Rows of finite weight get a gradient of 0, their part of an infinite denominator."""
    raw = Raw(target="PROBABILITIES", reduction="MEAN", weights=True)
    raw.arrays["sample_weight"][:2] = weight, 1e308
    assert raw.run() == lib.PYCE_OK
    assert (raw.arrays["result"][2:] == 0).all()


@pytest.mark.parametrize("operation", ["FORWARD", "FORWARD_BACKWARD"])
def test_sums_of_rows_that_exceed_the_memory(operation):
    """The sums of 2^57 / 5 rows, which are all the same memory, need more than 2^47 bytes."""
    raw = Raw(operation, target="PROBABILITIES")
    raw.set(outer=2**57 // 5, lse=ffi.NULL, reduced=ffi.NULL)
    for name in ("logits", "probs"):
        raw.set(**{f"{name}__outer_stride": 0})
    if operation == "FORWARD_BACKWARD":
        offsets = np.zeros(6, np.int64)  # not read
        raw.c.result.offsets = ffi.from_buffer("int64_t[]", offsets)
    raw.assert_refused("NO_MEMORY")


# ---------------------------------------------------------------------------------------------
# An lse that does not belong to the logits

WRONG_LSE = [
    *(0.0, -0.0, 1e-310, 46.0, -46.0, 88.8, -88.8, 127.0, -127.0, 129.0, 709.0, -746.0, 1e3, -1e3),
    *(-(2.0**20), 2.0**20, 2.0**20 + 1, -(2.0**31), 2.0**31, 2.0**52, 1e30, -1e30, 3.5e38, -3.5e38),
    *(1.7e308, -1.7e308, 5e-324, np.inf, -np.inf, np.nan),
]


@every("dtype", DTYPES)
@every("target", ["INDEX64", "PROBABILITIES"])
@every("shape", [(32, 3, 1), (32, 40, 1), (32, 100, 1), (32, 2500, 1), (1, 10, 32), (1, 2100, 32)])
def test_a_wrong_lse_affects_its_own_row_only(c_backend, shape, target, dtype):
    def run(lse):
        raw = Raw("BACKWARD", dtype, target, shape=shape, weights=True)
        raw.arrays["lse"][0:30] = lse
        raw.arrays["lse"][30:] = right[30:]
        assert raw.run() == lib.PYCE_OK
        rows = np.moveaxis(raw.arrays["result"], 1, -1).reshape(32, -1)
        return rows.astype(float), rows.tobytes()

    right = Raw("BACKWARD", dtype, target, shape=shape).arrays["lse"]
    assert len(WRONG_LSE) == 30
    plain, _ = run(right[:30])
    rng = np.random.default_rng(0)
    for _ in range(2):
        lse = rng.permutation(WRONG_LSE)
        take_right = rng.random(30) < 0.5
        mixed, first = run(np.where(take_right, right[:30], lse))
        keep = np.append(take_right, [True, True])
        np.testing.assert_array_equal(mixed[keep], plain[keep])
        assert run(np.where(take_right, right[:30], lse))[1] == first
        # If it is not finite, the gradient is NaN.
        bad = np.append(~take_right & ~np.isfinite(lse), [False, False])
        assert np.isnan(mixed[bad]).all()


# ---------------------------------------------------------------------------------------------
# The other entry points


class Common:
    """The arguments of pyce_cross_entropy, by name."""

    def __init__(
        self, operation="FORWARD_BACKWARD", dtype="FLOAT32", reduction="SUM", weighted=False
    ):
        raw = self.raw = Raw(operation, dtype, reduction=reduction)
        count = 6 if reduction == "NONE" else 1
        self.loss = ffi.new("double[]" if dtype == "FLOAT64" else "float[]", [-7.25] * count)
        self.weight = np.random.default_rng(1).uniform(0.5, 2, 5)
        self.arguments = {
            "operation": number(operation),
            "dtype": number(dtype),
            "reduction": number(reduction),
            "threads": 2,
            "outer": 6,
            "classes": 5,
            "inner": 1,
            "logits": raw.c.logits.data,
            "labels": ffi.cast("int64_t *", raw.c.labels),
            "weight": ffi.cast("double *", ffi.from_buffer(self.weight)) if weighted else ffi.NULL,
            "grad": raw.c.result.data,
            "smoothing": 0.0,
            "ignore_index": -100,
            "loss": ffi.cast("void *", self.loss),
        }

    def run(self, **changes):
        return lib.pyce_cross_entropy(*{**self.arguments, **changes}.values())

    def assert_refused(self, status="BAD_ARGUMENT", **changes):
        before = self.raw.memory(), list(self.loss)
        assert self.run(**changes) == number(status)
        assert (self.raw.memory(), list(self.loss)) == before


@every("weighted", [False, True])
@every("reduction", ["MEAN", "SUM", "NONE"])
@every("dtype", DTYPES)
def test_the_common_case(dtype, reduction, weighted):
    common = Common("FORWARD_BACKWARD", dtype, reduction, weighted)
    raw = Raw("FORWARD_BACKWARD", dtype, reduction=reduction)
    if weighted:
        raw.point("weight", common.weight)
    assert common.run() == raw.run() == lib.PYCE_OK
    name = "losses" if reduction == "NONE" else "reduced"
    assert bytes(ffi.buffer(common.loss)) == raw.arrays[name].tobytes()
    assert common.raw.arrays["result"].tobytes() == raw.arrays["result"].tobytes()


def at_addresses(common, loss_dtype, probs=(0, "FLOAT32"), **changes):
    """Call pyce_cross_entropy_at with the arguments of a `Common`."""
    numbers = {
        name: int(ffi.cast("uintptr_t", value)) if isinstance(value, ffi.CData) else value
        for name, value in {**common.arguments, **changes}.items()
    }
    values = list(numbers.values())
    after = list(numbers).index("labels") + 1
    values[after:after] = probs[0], number(probs[1])
    return lib.pyce_cross_entropy_at(*values, number(loss_dtype))


@every("weighted", [False, True])
@every("reduction", ["MEAN", "SUM", "NONE"])
@every("dtype", DTYPES)
def test_the_common_case_at_addresses(dtype, reduction, weighted):
    common, other = (Common("FORWARD_BACKWARD", dtype, reduction, weighted) for _ in range(2))
    loss_dtype = "FLOAT64" if dtype == "FLOAT64" else "FLOAT32"
    assert common.run() == at_addresses(other, loss_dtype) == lib.PYCE_OK
    assert bytes(ffi.buffer(common.loss)) == bytes(ffi.buffer(other.loss))
    assert common.raw.arrays["result"].tobytes() == other.raw.arrays["result"].tobytes()
    for half, convert in (("FLOAT16", np.float16), ("BFLOAT16", ml_dtypes.bfloat16)):
        if dtype == "FLOAT64" or reduction == "NONE":
            before = other.raw.memory(), list(other.loss)
            assert at_addresses(other, half) == lib.PYCE_BAD_ARGUMENT
            assert (other.raw.memory(), list(other.loss)) == before
            continue
        assert at_addresses(other, half) == lib.PYCE_OK
        found = np.frombuffer(ffi.buffer(other.loss), convert)
        assert found[0] == convert(common.loss[0])
        assert found[1] == np.array([common.loss[0]], np.float32).view(convert)[1]  # not written


@every("weighted", [False, True])
@every("reduction", ["MEAN", "SUM", "NONE"])
@every("dtype", DTYPES)
def test_probabilities_at_addresses(dtype, reduction, weighted):
    common = Common("FORWARD_BACKWARD", dtype, reduction, weighted)
    raw = Raw("FORWARD_BACKWARD", dtype, "PROBABILITIES", reduction=reduction)
    if weighted:
        raw.point("weight", common.weight)
    probs = int(ffi.cast("uintptr_t", raw.c.probs.data))
    loss_dtype = "FLOAT64" if dtype == "FLOAT64" else "FLOAT32"
    before = common.raw.memory(), list(common.loss)
    # Labels and probabilities:
    assert at_addresses(common, loss_dtype, (probs, dtype)) == lib.PYCE_BAD_ARGUMENT
    assert (common.raw.memory(), list(common.loss)) == before
    assert raw.run() == lib.PYCE_OK
    assert at_addresses(common, loss_dtype, (probs, dtype), labels=0) == lib.PYCE_OK
    name = "losses" if reduction == "NONE" else "reduced"
    assert bytes(ffi.buffer(common.loss)) == raw.arrays[name].tobytes()
    assert common.raw.arrays["result"].tobytes() == raw.arrays["result"].tobytes()


PLACES = {"logits": "logits", "labels": "labels", "grad": "result"}


def test_the_common_case_at_addresses_refuses():
    common = Common(dtype="FLOAT16")
    before = common.raw.memory(), list(common.loss)
    odd = ffi.cast("void *", ffi.cast("char *", common.arguments["loss"]) + 1)
    for loss_dtype, changes in (
        ("FLOAT64", {}),
        ("FLOAT16", {"loss": 0}),
        ("FLOAT16", {"loss": odd}),
        # The rounded loss is an output, too.
        *(
            ("BFLOAT16", {"loss": ffi.cast("char *", common.arguments[name]) + shift})
            for name in ("logits", "labels", "grad")
            for shift in (0, 2, common.raw.arrays[PLACES[name]].nbytes - 2)
        ),
        ("FLOAT16", {"logits": 0}),
        ("FLOAT32", {"labels": 0}),
    ):
        assert at_addresses(common, loss_dtype, **changes) == lib.PYCE_BAD_ARGUMENT
        assert (common.raw.memory(), list(common.loss)) == before


@pytest.mark.parametrize("reduction", ["SUM", "NONE"])
@pytest.mark.parametrize("operation", ["FORWARD", "FORWARD_BACKWARD"])
def test_the_common_case_refuses(operation, reduction):
    common = Common(operation, reduction=reduction, weighted=True)
    changes = [
        {name: value}
        for name, value in OUT_OF_RANGE
        if name in common.arguments and name != "operation"
    ]
    changes += [{"operation": v} for v in (-1, *range(2, 7), 2**31 - 1, -(2**31))]
    changes += [{"reduction": lib.PYCE_QUOTIENT}]
    changes += [dict(zip(("outer", "classes", "inner"), sizes, strict=True)) for sizes in TOO_LARGE]
    null = {"logits": ffi.NULL, "labels": ffi.NULL, "loss": ffi.NULL}
    changes += [{name: value} for name, value in null.items()]
    fused = operation == "FORWARD_BACKWARD"
    changes += [{"grad": ffi.NULL if fused else common.arguments["logits"]}]
    for name in ("logits", "labels", "weight", "grad", "loss"):
        pointer = common.arguments[name]
        if pointer != ffi.NULL:
            shifted = ffi.cast("char *", pointer) + 2
            changes += [{name: ffi.cast(ffi.typeof(pointer), shifted)}]
    if fused:
        changes += [{"grad": ffi.cast("char *", common.arguments["logits"]) + 4}]
        changes += [{"grad": ffi.cast("void *", common.arguments["labels"])}]
        changes += [{"grad": ffi.cast("void *", common.arguments["weight"])}]
    for change in changes:
        common.assert_refused(**change)
    common.raw.arrays["labels"][3] = 5
    common.assert_refused("BAD_LABEL")
    common.raw.arrays["labels"][3] = -100
    assert common.run() == lib.PYCE_OK


class Bernoulli:
    """The arguments of pyce_binary_cross_entropy, by name."""

    NAMES = ("logits", "target", "weight", "pos_weight", "losses", "grad")

    def __init__(self, dtype="FLOAT32", n=20):
        rng = np.random.default_rng(0)
        kind = DTYPES[dtype]
        self.arrays = {name: rng.random(n).astype(kind) for name in self.NAMES[:4]}
        self.arrays |= {name: filled(n, kind) for name in self.NAMES[4:]}
        self.total = ffi.new("double *", -7.25)
        self.arguments = {
            "dtype": number(dtype),
            "n": n,
            **{name: self.at(name) for name in self.NAMES},
            "scale": 1.0,
            "threads": 2,
            "total": self.total,
        }

    def at(self, name, shift=0):
        return ffi.cast("void *", self.arrays[name].__array_interface__["data"][0] + shift)

    def run(self, **changes):
        return lib.pyce_binary_cross_entropy(*{**self.arguments, **changes}.values())

    def assert_refused(self, **changes):
        def memory():
            return {n: a.tobytes() for n, a in self.arrays.items()}, self.total[0]

        before = memory()
        assert self.run(**changes) == lib.PYCE_BAD_ARGUMENT
        assert memory() == before


@pytest.mark.parametrize("dtype", ["FLOAT32", "FLOAT64"])
def test_the_bernoulli_loss_refuses(dtype):
    b = Bernoulli(dtype)
    for change in (
        *({"dtype": v} for v in (-1, *(number(n) for n in ("FLOAT16", "BFLOAT16")), 4, 2**31 - 1)),
        *({"n": v} for v in (-1, LEAST, BIG, BIG // 8, BIG // 8 + 1)),
        *({"threads": v} for v in (0, -1, -(2**31))),
        *({name: ffi.NULL} for name in ("logits", "target", "total")),
        {"logits": ffi.NULL, "grad": ffi.NULL},
        {"total": ffi.cast("double *", ffi.cast("char *", b.total) + 2)},
        *({name: b.at(name, 2)} for name in b.NAMES),
        *({name: ffi.cast("void *", 2**64 - 16)} for name in b.NAMES),
        *({out: b.at(name)} for out in b.NAMES[4:] for name in b.NAMES[1:] if out != name),
        {"losses": b.at("logits")},
        {"grad": b.at("logits", 8)},
        {"grad": b.at("logits"), "losses": b.at("logits")},
        *({"total": ffi.cast("double *", b.at(name, 8))} for name in b.NAMES),
        {"n": 0, "total": ffi.NULL},
    ):
        b.assert_refused(**change)
    assert b.run() == lib.PYCE_OK
    expected, total = b.arrays["grad"].tobytes(), b.total[0]
    b.total[0] = -7.25
    assert b.run(threads=1) == lib.PYCE_OK
    assert b.total[0] == total
    # In place, with any number of threads, and without losses.
    assert b.run(grad=b.at("logits"), losses=ffi.NULL, threads=2**31 - 1) == lib.PYCE_OK
    assert b.arrays["logits"].tobytes() == expected
    assert b.total[0] == total


def test_the_bernoulli_loss_of_nothing():
    b = Bernoulli()
    nothing = dict.fromkeys(b.NAMES, ffi.NULL)
    assert b.run(n=0, **nothing) == lib.PYCE_OK
    assert b.total[0] == 0


def test_copy_and_read():
    size = 3 * 2**18 + 5
    source = np.random.default_rng(0).integers(0, 256, size + 64, np.uint8)
    room = np.full(size + 128, 0xA5, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    to = ffi.cast("char *", room.__array_interface__["data"][0] + start)
    source_at = ffi.cast("char *", source.__array_interface__["data"][0])
    for refused in (
        (to, source_at, -1, 0, 1),
        (to, source_at, LEAST, 0, 1),
        (to, source_at, BIG, 0, 1),
        (to, source_at, BIG, 1, 1),
        (to, source_at, BIG - 2**18 + 1, 0, 1),
        (to, source_at, size, 0, 0),
        (to, source_at, size, 0, -(2**31)),
        (ffi.NULL, source_at, size, 0, 1),
        (to, ffi.NULL, size, 0, 1),
        (to + 1, source_at, size, 1, 1),  # streaming writes whole cache lines
        (to, to + 1, size, 0, 1),
        (to + 1, to, size, 0, 1),
        (to, to, size, 0, 1),
        (to, to, 1, 0, 1),
        (to + size - 1, to, size, 0, 1),
        (to, to + size - 1, size, 0, 1),
        (ffi.cast("void *", 2**64 - 16), source_at, size, 0, 1),
        (to, ffi.cast("void *", 2**64 - 16), size, 0, 1),
    ):
        assert lib.pyce_copy(*refused) == lib.PYCE_BAD_ARGUMENT, refused
        assert (room == 0xA5).all()
    for refused in (
        (source_at, -1, 1),
        (source_at, BIG, 1),
        (source_at, size, 0),
        (ffi.NULL, size, 1),
        (ffi.cast("void *", 2**64 - 16), size, 1),
    ):
        assert lib.pyce_read(*refused) == lib.PYCE_BAD_ARGUMENT, refused
    assert lib.pyce_copy(ffi.NULL, ffi.NULL, 0, 0, 1) == lib.PYCE_OK
    assert lib.pyce_read(ffi.NULL, 0, 1) == lib.PYCE_OK
    for streaming in (0, 1):
        for threads in (1, 3, 2**31 - 1):
            room[...] = 0xA5
            assert lib.pyce_copy(to, source_at, size, streaming, threads) == lib.PYCE_OK
            assert (room[start : start + size] == source[:size]).all()
            assert (room[:start] == 0xA5).all() and (room[start + size :] == 0xA5).all()
            assert lib.pyce_read(source_at, size, threads) == lib.PYCE_OK


def test_names_of_instruction_sets():
    names = []
    while (name := lib.pyce_isa(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    assert names == pyce.info()["isas"]
    for i in (-1, -2, -(2**31), len(names), 2**31 - 1):
        assert lib.pyce_isa(i) == ffi.NULL
    in_use = ffi.string(lib.pyce_isa_in_use())
    for name in (ffi.NULL, b"", b"mmx", in_use + b"x", in_use[:-1], in_use.upper()):
        assert lib.pyce_set_isa(name) == lib.PYCE_BAD_ARGUMENT
        assert ffi.string(lib.pyce_isa_in_use()) == in_use
    assert lib.pyce_set_isa(in_use) == lib.PYCE_OK


def test_the_size_of_the_cache():
    found = lib.pyce_set_cache(0)
    assert found > 0
    for size, then in ((12345, 12345), (-1, found), (BIG, BIG), (LEAST, found), (0, found)):
        lib.pyce_set_cache(size)
        assert lib.pyce_set_cache(0) == then
        assert Raw().run() == lib.PYCE_OK


def test_every_status_has_a_text():
    texts = {
        status: ffi.string(lib.pyce_status_text(status)).decode()
        for status in (-(2**31), -1, *range(4), 4, 2**31 - 1)
    }
    known = [number(n) for n in ("OK", "BAD_LABEL", "BAD_ARGUMENT", "NO_MEMORY")]
    assert sorted(known) == list(range(4))
    assert len({texts[s] for s in known}) == 4
    assert {texts[s] for s in texts if s not in known} == {"unknown status"}
    assert "unknown status" not in {texts[s] for s in known}
    assert ffi.string(lib.pyce_compiler())


class Scaling:
    """The arguments of pyce_scale_at, by name; `saved` is `result` where their dtypes agree."""

    def __init__(self, dtype="FLOAT32", factor_dtype="FLOAT32", n=37, factor=0.3):
        kind = DTYPES[dtype]
        rng = np.random.default_rng(0)
        self.saved = rng.normal(size=n).astype(np.float32 if dtype == "FLOAT16" else kind)
        self.saved[:4] = [0, -0.0, np.nan, -np.inf]
        self.result = filled(n, kind) if dtype == "FLOAT16" else self.saved
        self.factor = np.array([factor, 7]).astype(DTYPES[factor_dtype])
        self.arguments = {
            "dtype": number(dtype),
            "n": n,
            "threads": 2,
            "saved": self.saved.ctypes.data,
            "result": self.result.ctypes.data,
            "factor": self.factor.ctypes.data,
            "factor_dtype": number(factor_dtype),
        }

    def run(self, **changes):
        return lib.pyce_scale_at(*{**self.arguments, **changes}.values())

    def expected(self):
        wide = self.saved.dtype if self.saved.itemsize > 2 else np.dtype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            product = self.saved.astype(wide) * self.factor[0].astype(wide)
            return product.astype(self.result.dtype)

    def memory(self):
        return self.saved.tobytes(), self.result.tobytes(), self.factor.tobytes()


@every("factor_dtype", DTYPES)
@every("dtype", DTYPES)
def test_a_saved_gradient_times_a_number(dtype, factor_dtype, c_backend):
    """The bytes of NumPy's product, for every instruction set and number of threads.

    Threads share pieces of 16384 numbers. What follows the last number is not written.
    """
    cases = ((0, 1, 0.3), (1, 1, 1), (37, 1, -0.3), (37, 1, 0), (16_383, 1, 2), (300_000, 2, 3))
    for n, threads, factor in cases:
        s = Scaling(dtype, factor_dtype, n=n + 40, factor=factor)
        expected = s.expected()
        expected[n:] = s.result[n:]
        assert s.run(n=n, threads=threads) == lib.PYCE_OK
        np.testing.assert_array_equal(s.result.astype(float), expected.astype(float))
        assert (np.signbit(s.result) == np.signbit(expected))[np.isfinite(expected)].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_gradient_times_a_number_refuses(dtype):
    for factor in (np.nan, np.inf, -np.inf):
        s = Scaling(dtype, factor=factor)
        before = s.memory()
        assert s.run() == lib.PYCE_BAD_ARGUMENT
        assert s.memory() == before
    s = Scaling(dtype)
    before = s.memory()
    far = 2**64 - 4
    for change in (
        *({"dtype": v} for v in (-1, 4, 2**31 - 1)),
        *({"factor_dtype": v} for v in (-1, 4, 2**31 - 1)),
        *({"n": v} for v in (-1, LEAST, BIG, BIG // 8)),
        *({"threads": v} for v in (0, -1, -(2**31))),
        *({name: at} for name in ("saved", "result", "factor") for at in (0, far)),
        *({name: s.arguments[name] + 1} for name in ("saved", "result", "factor")),
        {"saved": 0, "result": 0},
        {"result": s.saved.ctypes.data + s.result.itemsize},
        {"factor": s.result.ctypes.data + 8 * s.factor.itemsize},
        *([{"result": s.saved.ctypes.data}] if dtype == "FLOAT16" else []),
    ):
        assert s.run(**change) == lib.PYCE_BAD_ARGUMENT, change
        assert s.memory() == before
    assert s.run(n=0, saved=0, result=0) == lib.PYCE_OK
    assert s.memory() == before


class Selective:
    """Arguments of pyce_selective_log_softmax, with all results."""

    def __init__(self, dtype="FLOAT64", rows=5, classes=7):
        loss = np.dtype(np.float64 if dtype == "FLOAT64" else np.float32)
        self.x = np.random.default_rng(0).normal(size=(rows, classes)).astype(DTYPES[dtype])
        self.index = np.tile(np.arange(2), (rows, 1))
        self.results = {
            "log_probs": filled((rows, 2), loss),
            "entropy": filled(rows, loss),
            "softmax": filled((rows, classes), np.dtype(np.float64)),
            "log_softmax": filled((rows, classes), np.dtype(np.float64)),
        }
        self.s = ffi.new("pyce_selective *")
        self.s.dtype, self.s.threads = number(dtype), 2
        self.s.outer, self.s.classes, self.s.inner = rows, classes, 1
        self.s.logits.data = ffi.cast("void *", self.x.ctypes.data)
        self.s.logits.outer_stride, self.s.logits.class_stride = classes, 1
        self.s.temperature, self.s.chosen = 0.7, 2
        for name, array in {"index": self.index, **self.results}.items():
            self.set(name, array.ctypes.data)

    def set(self, name, value):
        kind = {"index": "int64_t *", "softmax": "double *", "log_softmax": "double *"}
        pointer = name in self.results or name == "index"
        setattr(self.s, name, ffi.cast(kind.get(name, "void *"), value) if pointer else value)

    def run(self):
        return lib.pyce_selective_log_softmax(self.s)

    def memory(self):
        return b"".join(array.tobytes() for array in self.results.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_with_a_temperature_are_the_same_bytes(dtype, c_backends):
    """For every instruction set and number of threads, and they agree with each other."""
    for rows, classes in ((3, 1), (5, 3), (9000, 7), (40, 1000), (2, 20_000)):
        found = set()
        for c in c_backends:
            for threads in (1, 2):
                with c.selected():
                    s = Selective(dtype, rows, classes if classes > 1 else 2)
                    s.s.threads = threads
                    assert s.run() == lib.PYCE_OK
                found.add(s.memory())
        assert len(found) == 1, (rows, classes)
        log_p, p = s.results["log_softmax"], s.results["softmax"]
        z = s.x.astype(np.float64) / 0.7
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(log_p, z, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(p, np.exp(z), rtol=1e-12)
        tolerance = 1e-12 if dtype == "FLOAT64" else 1e-6
        np.testing.assert_allclose(s.results["log_probs"], z[:, :2], tolerance)
        np.testing.assert_allclose(s.results["entropy"], -(p * z).sum(axis=1), tolerance)


def test_results_with_a_temperature_refuse():
    s = Selective()
    before, far = s.memory(), 2**64 - 8
    for name, values in {
        "dtype": (-1, 4),
        "threads": (0, -1),
        "outer": (-1, BIG),
        "classes": (0, -1, BIG),
        "chosen": (-1, BIG),
        "temperature": (0.0, -1.0, np.inf, np.nan),
        "index": (0, far, s.index.ctypes.data + 1),
        "log_probs": (0, far, s.x.ctypes.data, s.index.ctypes.data),
        "entropy": (far, s.x.ctypes.data, s.results["softmax"].ctypes.data),
        "softmax": (far, s.x.ctypes.data, s.results["log_softmax"].ctypes.data),
        "log_softmax": (far, s.x.ctypes.data, s.index.ctypes.data),
    }.items():
        kept = getattr(s.s, name)
        for value in values:
            s.set(name, value)
            assert s.run() == lib.PYCE_BAD_ARGUMENT, (name, value)
            assert s.memory() == before
        setattr(s.s, name, kept)
    for bad in (-1, 7):
        s.index[4, 1] = bad
        assert s.run() == lib.PYCE_BAD_ARGUMENT
        assert s.memory() == before
    assert lib.pyce_selective_log_softmax(ffi.NULL) == lib.PYCE_BAD_ARGUMENT


def test_the_size_of_the_cache_can_be_set_and_is_found_again():
    found = lib.pyce_set_cache(1)
    assert found > 0
    assert lib.pyce_set_cache(-5) == 1
    assert lib.pyce_set_cache(0) == found
    assert lib.pyce_set_cache(0) == found
