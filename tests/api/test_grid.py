"""A grid of every public function × each of its arguments × every unusual form × every dtype.

Its tables: `ENTRIES` (what is called, with what arguments), `FORMS` (what can be odd about an
array), `OUTCOMES` (what a form of an argument comes to: a value, or an error and its words), and
`CONDITIONS` (what can be odd about a whole call). A value is held against the formulas of books and
against the same call with plain arrays: on C, bit for bit. Errors have the same words everywhere.
"""

import inspect
import re
from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from conftest import C_BACKENDS
from every import every

import pyce

DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
SHAPE, AXIS = (7, 6, 3), 1
CLASSES = 6
PATTERN = 0xA5
EPS = {d.name: float(ml_dtypes.finfo(d).eps) for d in DTYPES}
SMALLEST = {d.name: float(ml_dtypes.finfo(d).smallest_subnormal) for d in DTYPES}


def plain(a):
    """A contiguous, aligned copy in native byte order."""
    return np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True, subok=False)


# ---------------------------------------------------------------------------------------------
# What is called

SETTINGS = {
    *("backends", "get_backend", "get_num_threads", "info", "set_backend", "set_num_threads"),
    *("use_backend", "__version__"),
}
# Functions whose arrays have relations of their own, in test_linear.py and test_selective.py.
ELSEWHERE = {
    *("LinearGradients", "linear_cross_entropy", "linear_cross_entropy_with_grad"),
    *("linear_selective_log_softmax", "selective_log_softmax"),
}
# Parameters that are not arrays; test_errors.py tests bad values of them.
SCALARS = {
    *("axis", "eps", "ignore_index", "keepdims", "label_smoothing", "normalizer", "reduction"),
    *("lse_square_scale", "return_lse", "top_k"),
}


class Entry(NamedTuple):
    """A public function with the role of each array that it takes, and its options."""

    function: str
    roles: dict
    options: dict

    @property
    def call(self):
        return getattr(pyce, self.function)


def entries():
    none = {"axis": AXIS, "reduction": "none"}
    rows = {"weight": "class weights", "sample_weight": "row weights"}
    for target in ("labels", "probabilities"):
        logits = {"logits": "logits", "target": target, **rows}
        out = {"out": "out"}
        yield f"cross_entropy-{target}", "cross_entropy", logits, {**none, "return_lse": True}
        yield (
            f"cross_entropy_with_grad-{target}",
            "cross_entropy_with_grad",
            logits | out,
            {**none, "return_lse": True},
        )
        saved = {"grad_loss": "row weights", "lse": "lse"}
        yield (
            f"cross_entropy_backward-{target}",
            "cross_entropy_backward",
            saved | logits | out,
            none,
        )
        yield f"nll_loss-{target}", "nll_loss", {**logits, "log_probs": "log-probabilities"}, none
        yield f"log_loss-{target}", "log_loss", {**logits, "probs": "scores"}, none
    matrix = {"x": "logits", "out": "out"}
    yield "softmax", "softmax", matrix, {"axis": AXIS}
    yield "log_softmax", "log_softmax", matrix, {"axis": AXIS}
    yield "logsumexp", "logsumexp", {"x": "lone logits"}, {"axis": AXIS}
    yes_no = {"logits": "any logits", "target": "answers"}
    yes_no |= {"weight": "broadcast", "pos_weight": "broadcast"}
    for name in ("binary_cross_entropy", "binary_cross_entropy_with_grad"):
        yield name, name, yes_no, {"reduction": "none"}
    for target in ("labels", "one-hot"):
        roles = {"logits": "logits", "target": target}
        yield f"accuracy-{target}", "accuracy", roles, {"axis": AXIS}


def _entry(function, roles, options):
    taken = inspect.signature(getattr(pyce, function)).parameters
    return Entry(function, {name: roles[name] for name in taken if name in roles}, options)


ENTRIES = {name: _entry(*rest) for name, *rest in entries()}


def one_hot(labels, shape, axis):
    along = [1] * len(shape)
    along[axis] = -1
    return np.expand_dims(labels, axis) == np.arange(shape[axis]).reshape(along)


def arguments(entry, dtype, shape=SHAPE, axis=AXIS):
    """Plain arrays for every argument of an entry."""
    made = by_role(dtype, shape, axis)
    return {name: made[role].copy() for name, role in entry.roles.items()}


@cache
def by_role(dtype, shape, axis):
    rng = np.random.default_rng(0)
    positions = tuple(np.delete(shape, axis))
    wide = np.float64 if dtype == np.float64 else np.float32
    x = rng.normal(size=shape).astype(dtype)
    labels = np.asarray(rng.integers(0, max(1, shape[axis]), positions))
    p = softmax(x.astype(float), axis) if x.size else x.astype(float)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(x.astype(float)).sum(axis))
    return {
        "logits": x,
        "lone logits": x,
        "any logits": x,
        "log-probabilities": np.log(p).astype(dtype),
        "scores": p.astype(dtype),
        "labels": labels,
        "probabilities": rng.random(shape).astype(wide),
        "one-hot": one_hot(labels, shape, axis).astype(dtype),
        "class weights": rng.uniform(0.5, 2, shape[axis]),
        "row weights": np.asarray(rng.uniform(0.5, 2, positions)),
        "lse": np.asarray(lse),
        "answers": rng.random(shape).astype(dtype),
        "broadcast": rng.uniform(0.5, 2, shape).astype(wide),
        "out": np.full(x.nbytes, PATTERN, np.uint8).view(dtype).reshape(shape),
    }


# ---------------------------------------------------------------------------------------------
# What it should give: the formulas as books have them, in float64


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def by_the_book(entry, a, axis):
    a = {k: v.astype(np.float64) if v.dtype.kind not in "iu" else v for k, v in a.items()}
    x = next(a[name] for name in ("logits", "x", "log_probs", "probs") if name in a)
    name = entry.function
    if name.startswith("binary"):
        yes, no = a["pos_weight"] * a["target"], 1 - a["target"]
        sigma = 1 / (1 + np.exp(-x))
        loss = -a["weight"] * (yes * np.log(sigma) + no * np.log(1 - sigma))
        grad = a["weight"] * (no * sigma - yes * (1 - sigma))
        return (loss, grad) if name.endswith("grad") else (loss,)
    y = a.get("target")
    if name == "accuracy":
        hit = x.argmax(axis) == (y if y.ndim < x.ndim else y.argmax(axis))
        return (hit.mean() if hit.size else np.nan,)
    p = softmax(x, axis) if x.size else x
    if name in ("softmax", "log_softmax", "logsumexp"):
        lse = np.log(np.exp(x).sum(axis))
        return ({"softmax": p, "log_softmax": np.log(p), "logsumexp": lse}[name],)
    if y.ndim < x.ndim:
        y = one_hot(y, x.shape, axis)
    along = [1] * x.ndim
    along[axis] = -1
    b = y * a["weight"].reshape(along)
    cost = {"nll_loss": -x, "log_loss": -np.log(x) if name == "log_loss" else 0}
    loss = (b * cost.get(name, -np.log(p))).sum(axis) * a["sample_weight"]
    if name in cost:
        return (loss,)
    scale = np.expand_dims(a["sample_weight"] * a.get("grad_loss", 1.0), axis)
    grad = (p * b.sum(axis, keepdims=True) - b) * scale
    lse = np.log(np.exp(x).sum(axis))
    return {
        "cross_entropy": (loss, lse),
        "cross_entropy_with_grad": (loss, grad, lse),
        "cross_entropy_backward": (grad,),
    }[name]


def run(entry, a, options):
    result = entry.call(**a, **{**entry.options, **options})
    return result if isinstance(result, tuple) else (result,)


def near(actual, expected, dtype, bound=16):
    """Equal but for some units in the last place of the largest number, as terms cancel."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    wide = "float64" if dtype == np.float64 else "float32"
    eps = bound * max(EPS[actual.dtype.name], EPS[wide])
    got, expected = actual.astype(np.float64), expected.astype(np.float64)
    size = np.abs(expected)
    allowed = eps * np.max(size, initial=0.0, where=np.isfinite(size)) + SMALLEST[actual.dtype.name]
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(got - expected) <= allowed) | (got == expected))
    wrong &= ~(np.isnan(got) & np.isnan(expected))
    assert not wrong.any(), (dtype, got[wrong], expected[wrong])


# ---------------------------------------------------------------------------------------------
# What can be odd about an array. Each makes an array from a plain one; the values may be others.


def byte_swapped(a):
    return a.astype(a.dtype.newbyteorder()) if a.dtype.kind != "V" else a.copy()


def unaligned(a):
    room = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    room[...] = a
    return room


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def zero_stride(a):
    return np.lib.stride_tricks.as_strided(a, a.shape, (0, *a.strides[1:]))


def all_zero_strides(a):
    return np.lib.stride_tricks.as_strided(a, a.shape, (0,) * a.ndim)


def negative_stride(a):
    return a[::-1].copy()[::-1]


def negative_strides(a):
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def stepped(a):
    room = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)[..., ::2]
    room[...] = a
    return room


def fortran(a):
    return np.asfortranarray(a)


def overlapping_itself(a):
    """In every direction, the next element begins one element later in memory."""
    return np.lib.stride_tricks.as_strided(a.copy(), a.shape, (a.itemsize,) * a.ndim)


def empty(a):
    return np.empty((0, *a.shape[1:]), a.dtype)


def no_dimensions(a):
    return np.array(a.reshape(-1)[0])


def one_more_dimension(a):
    return a[np.newaxis].copy()


def as_dtype(dtype):
    return lambda a: np.ones(a.shape).astype(dtype)


def structured(a):
    return np.zeros(a.shape, [("a", float), ("b", float)])


def floats(a):
    """Numbers with a fraction where integers belong; the same numbers elsewhere."""
    return a.astype(np.float32) + np.float32(0.25) if a.dtype.kind in "iu" else a.copy()


FORMS = {
    "byte-swapped": byte_swapped,
    "unaligned": unaligned,
    "read-only": read_only,
    "zero stride": zero_stride,
    "all zero strides": all_zero_strides,
    "negative stride": negative_stride,
    "negative strides": negative_strides,
    "stepped": stepped,
    "Fortran order": fortran,
    "overlapping itself": overlapping_itself,
    "in the output's memory": None,  # see `shared`
    "exactly the output": None,
    "empty": empty,
    "0-d": no_dimensions,
    "one more dimension": one_more_dimension,
    "complex": as_dtype(complex),
    "object": as_dtype(object),
    "text": as_dtype(str),
    "dates": as_dtype("datetime64[s]"),
    "booleans": as_dtype(bool),
    "integers": as_dtype(np.int32),
    "structured": structured,
    "floats": floats,
}

VALUE = "value"
FLOATING = (TypeError, r"must be float16, bfloat16, float32 or float64, got ")
TARGET = (
    TypeError,
    r"^target must be class indices of an integer dtype, or probabilities of .*, got ",
)
OUT_DTYPE = (TypeError, r"^out must have the dtype \w+ of (the logits|x), got ")
OUT_SHAPE = (ValueError, r"^out must have the shape \(.*\) of (the logits|x), got \(")
REAL = (TypeError, r"must be real numbers, got ")
CONTIGUOUS = (ValueError, r"^out must be C-contiguous$")
WRONG_SHAPE = (ValueError, r"shape \(")
OVERLAP = (ValueError, r"^out overlaps (the logits|x): ")
SHARED = (ValueError, r"^out shares memory with another argument$")
LAYOUTS = [*FORMS][:10]
NO_REALS = ("complex", "object", "text", "dates", "structured")

# role: form -> VALUE, or the error and its words
LOGITS = {
    **dict.fromkeys(LAYOUTS, VALUE),
    "in the output's memory": OVERLAP,
    "exactly the output": VALUE,
    "empty": WRONG_SHAPE,
    "0-d": (ValueError, r"must have at least one dimension, got shape \(\)"),
    "one more dimension": WRONG_SHAPE,
    **dict.fromkeys((*NO_REALS, "booleans", "integers"), FLOATING),
    "floats": VALUE,
}
REALS = {
    **dict.fromkeys(LAYOUTS, VALUE),
    "in the output's memory": SHARED,
    "exactly the output": SHARED,
    "empty": WRONG_SHAPE,
    "0-d": WRONG_SHAPE,
    "one more dimension": WRONG_SHAPE,
    **dict.fromkeys((*NO_REALS, "booleans"), REAL),
    "integers": VALUE,
    "floats": VALUE,
}
OUTCOMES = {
    "logits": LOGITS,
    "log-probabilities": LOGITS,
    "scores": LOGITS,
    "lone logits": {**LOGITS, "empty": VALUE, "one more dimension": VALUE},
    "any logits": {**LOGITS, "0-d": WRONG_SHAPE},
    "labels": {
        **REALS,
        **dict.fromkeys((*NO_REALS, "booleans"), TARGET),
        "floats": (TypeError, r"shaped like class indices: indices must be integers"),
    },
    "probabilities": {
        **LOGITS,
        "in the output's memory": SHARED,
        "exactly the output": SHARED,
        "0-d": WRONG_SHAPE,
        **dict.fromkeys((*NO_REALS, "booleans"), TARGET),
        "integers": (ValueError, r"^integer target of shape .*: class indices have the shape "),
    },
    "one-hot": {
        **LOGITS,
        "in the output's memory": SHARED,
        "exactly the output": SHARED,
        "0-d": WRONG_SHAPE,
        **dict.fromkeys(NO_REALS, TARGET),
        "booleans": VALUE,
        "integers": VALUE,
    },
    "class weights": REALS,
    "row weights": REALS,
    "lse": REALS,
    "answers": {**REALS, "booleans": VALUE},
    "broadcast": {**REALS, "booleans": VALUE, "0-d": VALUE},
    "out": {
        "byte-swapped": OUT_DTYPE,
        "unaligned": VALUE,
        "read-only": (ValueError, r"^out must be writable$"),
        **dict.fromkeys(LAYOUTS[3:], CONTIGUOUS),
        "in the output's memory": VALUE,
        "exactly the output": VALUE,
        **dict.fromkeys(("empty", "0-d", "one more dimension"), OUT_SHAPE),
        **dict.fromkeys((*NO_REALS, "booleans", "integers"), OUT_DTYPE),
        "floats": VALUE,
    },
}


def memory_of(a):
    """All the memory that an array is seen through, as bytes."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a.tobytes()


def exists(entry, name, form):
    """Whether the form is possible: sharing memory with an output needs an output."""
    about_out = form in ("in the output's memory", "exactly the output")
    return not about_out or ("out" in entry.roles and name != "out")


CELLS = [
    (entry, name, form)
    for entry, (_, roles, _) in ENTRIES.items()
    for name in roles
    for form in FORMS
    if exists(ENTRIES[entry], name, form)
]


def test_the_grid_is_full():
    """No function, argument, role or form is missing."""
    assert {e.function for e in ENTRIES.values()} == set(pyce.__all__) - SETTINGS - ELSEWHERE
    for entry in ENTRIES.values():
        taken = set(inspect.signature(entry.call).parameters) - SCALARS
        assert set(entry.roles) == taken, entry.function
    assert set(OUTCOMES) == {role for e in ENTRIES.values() for role in e.roles.values()}
    for role, forms in OUTCOMES.items():
        assert set(forms) == set(FORMS), role
    assert len(CELLS) == len(set(CELLS))
    assert len(CELLS) == sum(
        len(FORMS) * len(e.roles) - 2 * (len(e.roles) if "out" not in e.roles else 1)
        for e in ENTRIES.values()
    )
    counts = {"shape": 0, "axis": 0, "labels": 0}
    for entry in ENTRIES.values():
        takes = inspect.signature(entry.call).parameters
        counts["shape"] += 1
        counts["axis"] += "axis" in takes
        counts["labels"] += "labels" in entry.roles.values()
        if "ignore_index" in takes:
            with_labels = [e for e in ENTRIES.values() if "labels" in e.roles.values()]
            assert entry.function in {e.function for e in with_labels}
    assert len(WHOLE) == len(set(WHOLE))
    assert len(WHOLE) == sum(counts[about] for _, _, about in CONDITIONS.values())


def shared(a, name, exactly):
    """Argument `name` moved into the last bytes of the output; or the first, of another dtype."""
    out, moved = a["out"], a[name]
    start = 0 if exactly else (out.nbytes - moved.itemsize) // 8 * 8
    room = np.zeros(out.nbytes + moved.nbytes + 8, np.uint8)
    out = room[: out.nbytes].view(out.dtype).reshape(out.shape)
    out.view(np.uint8)[...] = PATTERN
    if exactly:
        other = np.int16 if moved.dtype.kind in "iu" else np.float32
        moved = moved.astype(out.dtype if moved.shape == out.shape else other)
    place = room[start : start + moved.nbytes].view(moved.dtype).reshape(moved.shape)
    place[...] = moved
    return {**a, "out": out, name: place}


@pytest.mark.parametrize("name", ENTRIES)
@every("form", FORMS)
def test_cells(backend, name, form):
    """One form of each argument in turn, in each dtype."""
    entry = ENTRIES[name]
    cells = [(a, d) for e, a, f in CELLS if (e, f) == (name, form) for d in DTYPES]
    for argument, dtype in cells:
        expected = OUTCOMES[entry.roles[argument]][form]
        if expected != VALUE and backend in C_BACKENDS[1:]:
            continue  # what refuses it comes before the instruction sets
        a = arguments(entry, dtype)
        if (argument, form, dtype.kind) == ("out", "byte-swapped", "V"):
            expected = VALUE  # bfloat16 has one byte order
        if FORMS[form] is None:
            a = shared(a, argument, form == "exactly the output")
        else:
            a[argument] = FORMS[form](a[argument])
        before = {k: memory_of(v) for k, v in a.items()}
        if expected == VALUE:
            check_value(backend, entry, a, dtype, {})
        else:
            check_error(entry, a, {}, *expected)
        for k, v in a.items():
            written = k == "out" or ("out" in a and np.shares_memory(v, a["out"]))
            if expected != VALUE or not written:
                assert memory_of(v) == before[k], (argument, dtype, k)


def check_value(backend, entry, a, dtype, options, axis=AXIS, shape=SHAPE):
    values = {
        k: np.full(shape, v) if entry.roles[k] == "broadcast" and v.ndim == 0 else plain(v)
        for k, v in a.items()
    }
    books = {k: v for k, v in values.items() if k != "out"}
    got = run(entry, a, options)
    # With an lse that is not that of the logits, the result is unspecified.
    if "lse" not in a or np.array_equal(a["lse"], arguments(entry, dtype, shape, axis)["lse"]):
        for result, expected in zip(got, by_the_book(entry, books, axis), strict=True):
            near(result, expected, dtype)
    again = run(entry, values, options)
    for result, expected in zip(got, again, strict=True):
        result, expected = np.asarray(result), np.asarray(expected)
        assert result.dtype == expected.dtype
        if backend.bitwise:
            assert result.tobytes() == expected.tobytes(), dtype
        near(result, expected, dtype, bound=4)
    if "out" in a:
        assert any(result is a["out"] for result in got)


def check_error(entry, a, options, kind, words):
    message = words_of(entry, a, kind, options)
    assert re.search(words, message), message
    with pyce.use_backend("numpy"):
        assert words_of(entry, a, kind, options) == message


def words_of(entry, a, kind, options):
    with pytest.raises(kind) as caught:
        run(entry, a, options)
    assert type(caught.value) is kind
    return str(caught.value)


# ---------------------------------------------------------------------------------------------
# What can be odd about the whole call


def of_shape(shape, axis):
    return lambda entry, dtype: (arguments(entry, dtype, shape, axis), {"axis": axis}, shape)


def with_axis(axis):
    return lambda entry, dtype: (arguments(entry, dtype), {"axis": axis}, SHAPE)


def with_label(value, kind, ignore_index=-100):
    """The label of one row, and of a later one, is `value`; "C" is the number of classes."""

    def make(entry, dtype):
        a = arguments(entry, dtype)
        target = a["target"].astype(kind)
        target[1, 2] = target[5, 0] = CLASSES if value == "C" else value
        return {**a, "target": target}, {"axis": AXIS, "ignore_index": ignore_index}, SHAPE

    return make


NO_CLASSES = (ValueError, r"must have at least one class, got shape ")
NO_SUCH_AXIS = (ValueError, r"axis -?\d+ is out of range for \w+ of shape \(7, 6, 3\)$")
NO_SUCH_LABEL = (IndexError, rf"^target of row 5 is -?\d+, outside .* 0\.\.{CLASSES - 1} ")
LIMITS = [
    (kind, limit)
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
    for limit in (np.iinfo(kind).min, np.iinfo(kind).max)
    if limit != 0
]

# name: (what makes arguments and options, outcome, what it is about)
CONDITIONS = {
    "N = 0": (of_shape((0, 6, 3), 1), VALUE, "shape"),
    "N = 0, last": (of_shape((7, 0), 0), VALUE, "shape"),
    "C = 0": (of_shape((7, 0, 3), 1), NO_CLASSES, "axis"),
    "C = 0, N = 0": (of_shape((0, 0), 1), NO_CLASSES, "axis"),
    "C = 1": (of_shape((7, 1, 3), 1), VALUE, "shape"),
    "C = 1, one row": (of_shape((1,), 0), VALUE, "shape"),
    "one row": (of_shape((6,), -1), VALUE, "shape"),
    "huge class axis": (of_shape((1, 20_001), 1), VALUE, "shape"),
    "huge other axis": (of_shape((3, 5_001), 0), VALUE, "shape"),
    "many dimensions": (of_shape((1, 2, 1, 2, 1, 3, 1, 2), 5), VALUE, "shape"),
    "axis too large": (with_axis(3), NO_SUCH_AXIS, "axis"),
    "axis too small": (with_axis(-4), NO_SUCH_AXIS, "axis"),
    "axis 2**31": (with_axis(2**31), NO_SUCH_AXIS, "axis"),
    "axis 2**64": (with_axis(2**64), NO_SUCH_AXIS, "axis"),
    "axis -2**63": (with_axis(-(2**63)), NO_SUCH_AXIS, "axis"),
    "label C": (with_label("C", np.int64), NO_SUCH_LABEL, "labels"),
    "label C, unsigned": (with_label("C", np.uint8), NO_SUCH_LABEL, "labels"),
    "label -1": (with_label(-1, np.int64), NO_SUCH_LABEL, "labels"),
    "label -100, not ignored": (with_label(-100, np.int8, -1), NO_SUCH_LABEL, "labels"),
    **{
        f"label {np.dtype(kind)} {limit}": (with_label(limit, kind), NO_SUCH_LABEL, "labels")
        for kind, limit in LIMITS
    },
    # Values that would be labels or -100 in fewer bits are out of range, too.
    "label 2**32": (with_label(2**32, np.int64), NO_SUCH_LABEL, "labels"),
    "label 2**32 - 100": (with_label(2**32 - 100, np.int64), NO_SUCH_LABEL, "labels"),
    "label 2**64 - 100": (with_label(2**64 - 100, np.uint64), NO_SUCH_LABEL, "labels"),
    "int32 label -100, ignored 2**32 - 100": (
        with_label(-100, np.int32, 2**32 - 100),
        NO_SUCH_LABEL,
        "labels",
    ),
}


def concerns(entry, about):
    """Whether a condition is one of this entry: not all have an axis, or labels."""
    if about == "axis":
        return "axis" in entry.options
    return about == "shape" or "labels" in entry.roles.values()


WHOLE = [
    (entry, condition)
    for entry in ENTRIES
    for condition, (_, _, about) in CONDITIONS.items()
    if concerns(ENTRIES[entry], about)
]


@pytest.mark.parametrize("name", ENTRIES)
@every("condition", CONDITIONS)
def test_whole_call(backend, name, condition):
    entry = ENTRIES[name]
    make, expected, _ = CONDITIONS[condition]
    for dtype in DTYPES if (name, condition) in WHOLE else ():
        a, options, shape = make(entry, dtype)
        axis = options["axis"]
        if "axis" not in entry.options:
            options = {}
        before = {k: memory_of(v) for k, v in a.items()}
        if expected == VALUE:
            check_value(backend, entry, a, dtype, options, axis, shape)
            check_reductions(entry, a, dtype, options)
        else:
            check_error(entry, a, options, *expected)
        for k, v in a.items():
            if expected != VALUE or k != "out":
                assert memory_of(v) == before[k], (dtype, k)


def check_reductions(entry, a, dtype, options):
    """The sum of the rows' losses, and the mean of none of them."""
    if "reduction" not in entry.options or "grad_loss" in a:
        return
    rows = run(entry, a, options)[0]
    near(run(entry, a, {**options, "reduction": "sum"})[0], rows.sum(dtype=float), dtype)
    mean = run(entry, a, {**options, "reduction": "mean"})[0]
    assert np.isnan(mean) == (rows.size == 0)
