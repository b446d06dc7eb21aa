"""Every error: its type, its message (the same from every backend), and that nothing is written.

The file is long because each wrong argument has a line in its tables, and docs/semantics.md
names its tests.
"""

import re
from contextlib import nullcontext
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from every import every

import pyce
from pyce import _backends

ROWS, CLASSES = 6, 5
X = np.linspace(-1, 1, ROWS * CLASSES).reshape(ROWS, CLASSES)
Y = np.array([0, 1, 2, 3, 4, 0])
T = np.full((ROWS, CLASSES), 0.2)
LSE = np.zeros(ROWS)
SENTINEL = 0xA5


def sentinel(shape, dtype=np.float64):
    out = np.empty(shape, dtype)
    out.view(np.uint8)[...] = SENTINEL
    return out


def losses(logits=X, target=Y, **kwargs):
    """Forward, fused and backward calls of the same problem, each with an output to check."""
    shape = np.shape(logits)
    ones = 1.0
    lse = np.zeros(np.shape(target))

    def fused(out):
        return pyce.cross_entropy_with_grad(logits, target, out=out, **kwargs)

    def backward(out):
        return pyce.cross_entropy_backward(ones, logits, target, lse, out=out, **kwargs)

    def forward(out):
        return pyce.cross_entropy(logits, target, **kwargs)

    dtype = getattr(logits, "dtype", np.dtype(float))
    out_dtype = dtype if dtype.kind in "fV" else np.float64
    return [(call, sentinel(shape or (1,), out_dtype)) for call in (forward, fused, backward)]


def check(kind, words, *args, **kwargs):
    """Check that all three calls raise `kind` with all the `words`, and write neither `out` nor
    inputs.
    """
    logits = args[0] if args else kwargs.get("logits", X)
    before = logits.copy() if isinstance(logits, np.ndarray) else None
    messages = set()
    for call, out in losses(*args, **kwargs):
        with pytest.raises(kind) as caught:
            call(out)
        assert type(caught.value) is kind
        message = str(caught.value)
        for word in words:
            assert re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", message), message
        assert (out.view(np.uint8) == SENTINEL).all(), "an output was written before the error"
        messages.add(message)
    if before is not None:
        assert before.tobytes() == logits.tobytes()
    assert len(messages) == 1, messages
    return messages.pop()


# ---------------------------------------------------------------------------------------------
# Indices out of range


OUT_OF_RANGE = [
    ("C", np.int8),
    ("C", np.uint8),
    ("C", np.int32),
    ("C", np.int64),
    ("C", np.uint64),
    (-1, np.int8),
    (-1, np.int16),
    (-1, np.int32),
    (-1, np.int64),
    (-99, np.int64),
    (-101, np.int32),
    (2**31 - 1, np.int32),
    (-(2**31), np.int32),
    (2**31, np.uint32),
    (2**32 - 1, np.uint32),
    (2**32 - 100, np.uint32),  # -100 after a wrap
    (2**32 - 100, np.dtype(np.uint32).newbyteorder()),
    (2**32, np.int64),
    (2**32 + 1, np.int64),
    (-(2**32), np.int64),
    (2**63 - 1, np.int64),
    (-(2**63), np.int64),
    (2**32, np.uint64),
    (2**32, np.dtype(np.int64).newbyteorder()),
    (2**63, np.uint64),
    (2**64 - 1, np.uint64),
    (2**64 - 100, np.uint64),  # -100 after a wrap: not the ignore_index
]


@every("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@every("classes", [2, 10, 100, 3000])
@every("axis", [0, 1])
def test_index_out_of_range(backend, dtype, classes, axis):
    rows = 40
    x = np.zeros((classes, rows) if axis == 0 else (rows, classes), dtype)
    for value, kind in OUT_OF_RANGE:
        value = classes if value == "C" else value
        if value > np.iinfo(kind).max:
            continue
        y = np.zeros(rows, kind)
        y[23] = y[31] = value
        message = check(IndexError, [23, value, f"0..{classes - 1}", -100], x, y, axis=axis)
        # Compared word for word: the message is the same from every backend.
        assert message == (
            f"target of row 23 is {value}, outside the valid range 0..{classes - 1} "
            f"for {classes} classes (ignore_index is -100)"
        )


@every("first", [0, 1, 17, 999, 19_999])
def test_the_first_bad_row_is_named(backend, first):
    """Also when threads share the rows, and many rows are ignored or have bad labels, too."""
    x = np.zeros((20_000, 10), np.float32)
    y = np.zeros(20_000, int)
    y[first + 1 :: 3] = 10
    y[:first:2] = -100
    y[first] = -7
    check(IndexError, [f"row {first}", -7, "0..9"], x, y)


@pytest.mark.parametrize("value", [3, 7, 2**62])
def test_the_first_bad_row_before_one_beyond_int64(backend, value):
    """Labels of uint64: the first bad one fits int64, a later one does not."""
    y = np.array([2, 9, value, 2**63, 5], np.uint64)
    check(IndexError, ["row 2", value, "0..2"], np.zeros((5, 3)), y, ignore_index=9)
    y[2] = 0
    check(IndexError, ["row 3", 2**63, "0..2"], np.zeros((5, 3)), y, ignore_index=9)
    y = np.array([[2, 1], [2**63, 5]], np.uint64)
    check(IndexError, ["row 2", 2**63, "0..2"], np.zeros((2, 2, 3)), y)


def test_rows_are_counted_in_c_order(backend):
    x = np.zeros((2, 4, 3, 2))
    y = np.zeros((2, 3, 2), int)
    y[1, 2, 0] = 4
    y[1, 2, 1] = 5
    check(IndexError, ["row 10", 4, "0..3"], x, y, axis=1)
    check(IndexError, ["row 10", 4, "0..3"], x, np.asfortranarray(y), axis=1)


@every("reduction", ["mean", "sum", "none"])
@every("extra", ["weight", "smoothing", "ignore_index", "normalizer"])
def test_bad_index_with_options(backend, reduction, extra):
    y = np.array([0, 1, 2, 9, 4, 9])
    options = {
        "weight": {"weight": np.ones(5)},
        "smoothing": {"label_smoothing": 0.1},
        "ignore_index": {"ignore_index": 2},
        "normalizer": {"normalizer": 6.0},
    }[extra]
    for call, out in losses(X, y, reduction=reduction, **options)[:2]:
        with pytest.raises(IndexError, match=r"row 3 is 9, outside the valid range 0\.\.4"):
            call(out)
        assert (out.view(np.uint8) == SENTINEL).all()


def test_bad_index_in_place(backend):
    """The output is the logits, which are not changed."""
    x = X.copy()
    with pytest.raises(IndexError):
        pyce.cross_entropy_with_grad(x, Y + 1, out=x)
    assert (x == X).all()


@pytest.mark.parametrize("call", [pyce.nll_loss, pyce.log_loss, pyce.accuracy])
def test_other_functions_name_the_index_alike(backend, call):
    with pytest.raises(IndexError, match=r"target of row 4 is 5, outside the valid range 0\.\.4"):
        call(T, [0, 1, 2, 3, 5, 6])


# ---------------------------------------------------------------------------------------------
# Types


@pytest.mark.parametrize(
    "logits",
    [
        X.astype(complex),
        X.astype(np.complex64),
        X.astype(str),
        X.astype(object),
        X.astype(np.int64),
        X.astype(np.uint8),
        X > 0,
        X.astype(np.int16).view(np.recarray),
        X.astype(ml_dtypes.bfloat16).view(np.dtype(ml_dtypes.bfloat16).newbyteorder()),
        # On some processors, long double is double.
        *([X.astype(np.longdouble)] if np.dtype(np.longdouble).itemsize > 8 else []),
        X.astype("datetime64[s]"),
        np.zeros(ROWS, [("a", float), ("b", float)]),
        [[1j, 2]] * ROWS,
        [["a", "b"]] * ROWS,
        [[None, 1.0]] * ROWS,
        [[Decimal(1), Decimal(2)]] * ROWS,
    ],
    ids=lambda v: str(getattr(v, "dtype", type(np.asarray(v).flat[0]).__name__)),
)
def test_logits_that_are_not_floating(backend, logits):
    check(TypeError, ["logits", "float16", "bfloat16", "float32", "float64"], logits)
    for call in (pyce.softmax, pyce.log_softmax, pyce.logsumexp):
        with pytest.raises(TypeError, match="float16, bfloat16, float32 or float64"):
            call(logits)


@every("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ">f4"])
def test_floating_indices(backend, kind):
    check(TypeError, ["target", "indices", "integers", "probabilities"], X, Y.astype(kind))


def test_list_of_floating_indices(backend):
    check(TypeError, ["target", "indices"], X, [0.0, 1.0, 2.0, 3.0, 4.0, 0.0])


@every("target", [T.astype(complex), T.astype(object), T.astype(str), T > 0, Y > 0])
def test_targets_of_other_dtypes(backend, target):
    words = ["target", "class indices", "integer", "probabilities", target.dtype.kind != "O"]
    words[-1] = str(target.dtype) if words[-1] else "Python objects"
    check(TypeError, words, X, target)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Y > 0, ["bool", ".astype(int)", ".astype(float)"]),
        ((Y > 0).tolist(), ["bool", ".astype(int)"]),
        (list("abcdea"), ["<U1", "numpy.unique"]),
        (np.array(list("abcdea"), object), ["Python objects", "numpy.unique"]),
        (np.array(list("abcdea"), "S"), ["|S1", "numpy.unique"]),
        (None, ["None"]),
        ([None] * ROWS, ["Python objects"]),
        (Y.astype("timedelta64[s]"), ["timedelta64[s]"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_labels_that_are_not_integers(backend, target, words):
    """The message says what a target may be, and how to make it of this one."""
    for call in (pyce.cross_entropy, pyce.nll_loss, pyce.log_loss, pyce.accuracy):
        with pytest.raises(TypeError, match="target must be class indices") as caught:
            call(T, target)
        for word in words:
            assert word in str(caught.value)


def test_one_hot_targets_of_integers(backend):
    """They have the shape of the logits, but an integer dtype."""
    one_hot = np.eye(CLASSES, dtype=int)[Y]
    check(ValueError, [(6, 5), (6,), "one-hot", "target.astype(float)"], X, one_hot)
    expected = pyce.cross_entropy(X, Y)
    np.testing.assert_allclose(pyce.cross_entropy(X, one_hot.astype(float)), expected)
    assert pyce.accuracy(X, one_hot) == pyce.accuracy(X, Y)


@pytest.mark.parametrize(
    ("shape", "axis", "found", "fits"),
    [
        ((2, 21, 8, 8), -1, (2, 8, 8), 1),
        ((2, 4, 5), 1, (2, 4), 2),
        ((2, 4, 5), 1, (2, 4, 1), None),
        ((6, 4), 1, (5,), None),
        ((6, 4), 1, (), None),
    ],
)
def test_index_targets_for_another_class_axis(backend, shape, axis, found, fits):
    """The message names the axis that the target lacks, if there is one, and the parameter."""
    logits, target = np.zeros(shape, np.float32), np.zeros(found, np.int64)
    words = [found, shape, "without the class axis"]
    message = check(ValueError, words, logits, target, axis=axis)
    hint = f"; the target lacks axis {fits} instead: if the classes are there, pass axis={fits}"
    assert message.endswith("the class axis" + ("" if fits is None else hint))
    if fits is not None:
        assert pyce.cross_entropy(logits, target, axis=fits) > 0.0


def test_errors_name_the_argument_as_the_caller_knows_it(backend):
    for call, name in (
        (pyce.nll_loss, "log_probs"),
        (pyce.log_loss, "probs"),
        (pyce.cross_entropy, "logits"),
        (pyce.accuracy, "logits"),
    ):
        for kind, arguments, options in (
            (TypeError, (X.astype(int), Y), {}),
            (TypeError, (X, Y.astype(float)), {}),
            (ValueError, (X, Y[:2]), {}),
            (ValueError, (X, np.eye(4)), {}),
            (ValueError, (X, Y), {"axis": 2}),
            (ValueError, (X[:, :0], Y), {}),
            (ValueError, (1.0, Y), {}),
        ):
            with pytest.raises(kind) as caught:
                call(*arguments, **options)
            assert re.search(rf"(?<!\w){name}(?!\w)", str(caught.value)), str(caught.value)
            assert name == "logits" or "logits" not in str(caught.value)


@every("name", ["weight", "sample_weight"])
@every("dtype", [complex, object, str, bool])
def test_weights_of_other_dtypes(backend, name, dtype):
    length = CLASSES if name == "weight" else ROWS
    check(TypeError, [name], X, Y, **{name: np.ones(length).astype(dtype)})


def test_numbers_that_are_not(backend):
    check(TypeError, ["normalizer"], X, Y, normalizer="3")
    check(TypeError, ["normalizer"], X, Y, normalizer=[3.0])
    check(TypeError, ["label_smoothing"], X, Y, label_smoothing="0.1")
    for bad in ("1.0", [1.0, 2.0], 1j):
        with pytest.raises(TypeError, match="grad_loss"):
            pyce.cross_entropy_backward(bad, X, Y, LSE)
    with pytest.raises(TypeError, match=r"threads must be an integer, got 1\.5"):
        pyce.set_num_threads(1.5)


NOT_NUMBERS = [
    "1",
    b"1",
    1j,
    np.complex128(1.0),
    np.timedelta64(1, "s"),
    np.array("1"),
    np.array(["1"]),
    np.array([0.5]),
    np.array(0.5 + 0j),
    np.array(1, "timedelta64[s]"),
    {},
    None,
]


@every("value", NOT_NUMBERS)
def test_options_of_other_types(backend, value):
    for name in ("axis", "ignore_index", "label_smoothing", "normalizer"):
        if value is not None or name != "normalizer":
            check(TypeError, [name], X, Y, **{name: value})
    with pytest.raises(TypeError, match="grad_loss must be a real number"):
        pyce.cross_entropy_backward(value, X, Y, LSE)
    with pytest.raises(TypeError, match="top_k must be an integer"):
        pyce.accuracy(X, Y, top_k=value)
    with pytest.raises(TypeError, match="axis must be an integer"):
        pyce.softmax(X, axis=value)
    if value is not None:
        with pytest.raises(TypeError, match="eps must be a real number"):
            pyce.log_loss(T, Y, eps=value)
    check(ValueError, ["reduction", "mean", "sum", "none"], X, Y, reduction=value)
    with pytest.raises(ValueError, match="reduction must be one of"):
        pyce.binary_cross_entropy(X, T, reduction=value)
    with pytest.raises(ValueError, match="auto, c, numba, numpy"):
        pyce.set_backend(value)
    with pytest.raises(ValueError, match="auto, c, numba, numpy"), pyce.use_backend(value):
        pass


@pytest.mark.parametrize("value", [np.array("mean"), np.array(["mean"]), ["mean"]], ids=repr)
def test_names_that_are_arrays(backend, value):
    check(ValueError, ["reduction", "mean", "sum", "none"], X, Y, reduction=value)
    with pytest.raises(ValueError, match="auto, c, numba, numpy"):
        pyce.set_backend(np.array("numpy"))


def test_numbers_in_arrays_without_dimensions(backend):
    """They count as numbers, and so do fractions, decimals and integers of NumPy."""
    expected = pyce.cross_entropy(X, Y, label_smoothing=0.25, normalizer=2.0, ignore_index=1)
    for smoothing in (np.array(0.25), np.float32(0.25), Fraction(1, 4), Decimal("0.25")):
        for index in (np.array(1), np.int8(1), np.uint64(1)):
            got = pyce.cross_entropy(
                X,
                Y,
                label_smoothing=smoothing,
                normalizer=np.array(2),
                ignore_index=index,
                axis=np.array(-1),
                reduction=np.str_("mean"),
            )
            assert got == expected


def test_a_tensor_that_numpy_cannot_read(backend):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(ROWS, CLASSES, dtype=torch.bfloat16)
    for call in (pyce.softmax, lambda x: pyce.cross_entropy(x, Y)):
        with pytest.raises(TypeError, match=r"pyce\.torch takes tensors"):
            call(tensor)


def test_labels_of_numpys_string_dtype(backend):
    string = getattr(np.dtypes, "StringDType", None)
    if string is None:
        pytest.skip("NumPy has StringDType since version 2")
    for call in (pyce.cross_entropy, pyce.accuracy):
        with pytest.raises(TypeError, match=r"target must be class indices .*numpy\.unique"):
            call(X, np.array(list("abcdea"), string()))


def test_objects_that_numpy_does_not_convert(backend):
    """The message names the function that converts them."""
    sparse = pytest.importorskip("scipy.sparse")

    class Exporter:
        __dlpack__ = None

    for value, words in (
        (sparse.csr_matrix(X), r"csr_matrix: \.toarray\(\) converts it"),
        (Exporter(), r"Exporter: numpy\.from_dlpack converts it"),
    ):
        for call in (
            lambda value: pyce.cross_entropy(value, Y),
            lambda value: pyce.cross_entropy(X, value),
            lambda value: pyce.cross_entropy(X, Y, weight=value),
        ):
            with pytest.raises(TypeError, match=words):
                call(value)


def test_frames_with_dtypes_of_pandas(backend):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X).astype("Float64")
    with pytest.raises(TypeError, match=r"logits must be .*\.to_numpy\(dtype=...\) converts it"):
        pyce.cross_entropy(frame, Y)
    expected = pyce.cross_entropy(X, Y)
    assert pyce.cross_entropy(frame.to_numpy(dtype=np.float64), Y) == expected


# ---------------------------------------------------------------------------------------------
# Shapes


@every("shape", [(), (1,), (5,), (7,), (6, 1), (1, 6), (6, 5), (5, 6)])
def test_index_targets_of_other_shapes(backend, shape):
    check(ValueError, [shape, (ROWS, CLASSES)], X, np.zeros(shape, int))


@every("shape", [(), (5,), (7,), (6, 1), (1, 5), (5, 6), (6, 5, 1)])
def test_probability_targets_of_other_shapes(backend, shape):
    check(ValueError, [shape, (ROWS, CLASSES)], X, np.zeros(shape))


@every("shape", [(), (1,), (6,), (1, 5), (5, 1)])
def test_class_weights_of_other_shapes(backend, shape):
    check(ValueError, ["weight", (CLASSES,), shape], X, Y, weight=np.ones(shape))


@every("shape", [(), (1,), (5,), (6, 1), (6, 5)])
def test_sample_weights_of_other_shapes(backend, shape):
    check(ValueError, ["sample_weight", (ROWS,), shape], X, Y, sample_weight=np.ones(shape))


@pytest.mark.parametrize("shape", [(), (5,), (6, 1)], ids=str)
def test_backward_shapes(backend, shape):
    out = sentinel(X.shape)
    words = re.escape(str(shape))
    with pytest.raises(ValueError, match=f"lse.*{words}"):
        pyce.cross_entropy_backward(1.0, X, Y, np.ones(shape), out=out)
    with pytest.raises(ValueError, match=f"grad_loss.*{words}"):
        pyce.cross_entropy_backward(np.ones(shape), X, Y, LSE, reduction="none", out=out)
    assert (out.view(np.uint8) == SENTINEL).all()


def test_backward_requires_a_scalar_for_mean_and_sum(backend):
    for reduction in ("mean", "sum"):
        with pytest.raises(TypeError, match="grad_loss"):
            pyce.cross_entropy_backward(np.ones(ROWS), X, Y, LSE, reduction=reduction)


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 0), 1), ((3, 0), -1), ((0, 3), 0), ((0,), 0), ((2, 0, 4), 1)]
)
def test_no_classes(backend, shape, axis):
    x = np.zeros(shape)
    y = np.zeros(np.delete(shape, axis), int)
    check(ValueError, ["at least one class", shape], x, y, axis=axis)
    for call in (pyce.softmax, pyce.log_softmax, pyce.logsumexp):
        with pytest.raises(ValueError, match="at least one class"):
            call(x, axis=axis)


@pytest.mark.parametrize("logits", [np.float32(1.0), np.array(1.0), 1.0], ids=repr)
def test_no_dimensions(backend, logits):
    for call in (pyce.cross_entropy, pyce.cross_entropy_with_grad):
        with pytest.raises(ValueError, match="at least one dimension"):
            call(logits, 0)
    for call in (pyce.softmax, pyce.log_softmax, pyce.logsumexp):
        with pytest.raises(ValueError, match="at least one dimension"):
            call(logits)


@pytest.mark.parametrize("axis", [2, -3, 100])
def test_axis_out_of_range(backend, axis):
    check(ValueError, ["axis", axis, (ROWS, CLASSES)], X, Y, axis=axis)
    for call in (pyce.softmax, pyce.log_softmax, pyce.logsumexp):
        with pytest.raises(ValueError, match=f"axis {axis} is out of range"):
            call(X, axis=axis)


# ---------------------------------------------------------------------------------------------
# Options


@every("reduction", ["average", "MEAN", "", None, 0, "batchmean"])
def test_unknown_reduction(backend, reduction):
    words = ["mean", "sum", "none"]
    check(
        ValueError, [*words, *([repr(reduction)] if reduction else [])], X, Y, reduction=reduction
    )
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
        pyce.binary_cross_entropy(X, T, reduction=reduction)


@every("value", [-1e-9, 1.0000001, 2, np.nan, np.inf, -np.inf])
def test_smoothing_out_of_range(backend, value):
    check(ValueError, ["label_smoothing", "0, 1", repr(value)], X, Y, label_smoothing=value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64 - 100])
def test_ignore_index_beyond_64_bits(backend, value):
    check(ValueError, ["ignore_index", value], X, Y, ignore_index=value)


@pytest.mark.parametrize("n", [0, -1, -(2**40)])
def test_too_few_threads(backend, n):
    before = pyce.get_num_threads()
    with pytest.raises(ValueError, match=f"threads.*{n}"):
        pyce.set_num_threads(n)
    assert pyce.get_num_threads() == before


@pytest.mark.parametrize("name", ["cuda", "", "C", None, 3])
def test_unknown_backend(backend, name):
    before = pyce.get_backend()
    for call in (pyce.set_backend, lambda n: pyce.use_backend(n).__enter__()):
        with pytest.raises(ValueError, match="auto, c, numba, numpy") as caught:
            call(name)
        assert repr(name) in str(caught.value)
    assert pyce.get_backend() == before


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k(backend, top_k):
    with pytest.raises(ValueError, match=f"top_k.*{top_k}"):
        pyce.accuracy(X, Y, top_k=top_k)


@pytest.mark.parametrize("eps", [-0.1, 0.5, 1.0, np.nan])
def test_eps_of_log_loss(backend, eps):
    with pytest.raises(ValueError, match="eps"):
        pyce.log_loss(T, Y, eps=eps)


# ---------------------------------------------------------------------------------------------
# Outputs


def unfit_outputs():
    readonly = sentinel(X.shape)
    readonly.flags.writeable = False
    strided = sentinel((ROWS, 2 * CLASSES))[:, ::2]
    yield "shape", ValueError, "shape", sentinel((CLASSES, ROWS))
    yield "more dimensions", ValueError, "shape", sentinel((1, ROWS, CLASSES))
    yield "flat", ValueError, "shape", sentinel(ROWS * CLASSES)
    yield "dtype", TypeError, "dtype", sentinel(X.shape, np.float32)
    yield "byte order", TypeError, "dtype", sentinel(X.shape, X.dtype.newbyteorder())
    yield "integers", TypeError, "dtype", sentinel(X.shape, np.int64)
    yield "list", TypeError, "ndarray", X.tolist()
    yield "read-only", ValueError, "writable", readonly
    yield "strided", ValueError, "contiguous", strided
    yield "Fortran", ValueError, "contiguous", np.asfortranarray(sentinel(X.shape))
    yield "reversed", ValueError, "contiguous", sentinel(X.shape)[::-1]


@pytest.mark.parametrize(
    ("kind", "word", "out"), [pytest.param(*rest, id=name) for name, *rest in unfit_outputs()]
)
def test_unfit_out(backend, kind, word, out):
    calls = [
        lambda: pyce.cross_entropy_with_grad(X, Y, out=out),
        lambda: pyce.cross_entropy_backward(1.0, X, Y, LSE, out=out),
        lambda: pyce.softmax(X, out=out),
        lambda: pyce.log_softmax(X, out=out),
    ]
    before = np.asarray(out).tobytes()
    messages = set()
    for call in calls:
        with pytest.raises(kind, match=word) as caught:
            call()
        messages.add(re.sub(r"\bx\b", "the logits", str(caught.value)))
        assert np.asarray(out).tobytes() == before
    assert len(messages) == 1


@every("shift", [1, -1, CLASSES, -CLASSES, ROWS * CLASSES - 1])
def test_out_that_overlaps_the_logits_in_part(backend, shift):
    memory = np.zeros(3 * X.size)
    x = memory[X.size : 2 * X.size].reshape(X.shape)
    x[...] = X
    start = X.size + shift
    out = memory[start : start + X.size].reshape(X.shape)
    before = memory.copy()
    for call in (
        lambda: pyce.cross_entropy_with_grad(x, Y, out=out),
        lambda: pyce.cross_entropy_backward(1.0, x, Y, LSE, out=out),
        lambda: pyce.softmax(x, out=out),
        lambda: pyce.log_softmax(x, out=out),
    ):
        with pytest.raises(ValueError, match="overlap"):
            call()
        assert memory.tobytes() == before.tobytes()


def test_out_that_is_another_view_of_the_same_memory(backend):
    """An output with the memory of the logits in another order is not an in-place call."""
    square = np.linspace(0, 1, 25).reshape(5, 5).copy()  # which owns its memory
    before = square.copy()
    swapped = square.view(square.dtype.newbyteorder())
    for logits in (square.T, square[::-1], square[:, ::-1], swapped, swapped.T):
        with pytest.raises(ValueError, match="overlap"):
            pyce.cross_entropy_with_grad(logits, Y[:5], out=square)
        with pytest.raises(ValueError, match="overlap"):
            pyce.softmax(logits, out=square)
        assert (square == before).all()
    owner = np.asfortranarray(before)
    with pytest.raises(ValueError, match="overlap"):
        pyce.softmax(owner, out=owner.T)
    assert (owner == before).all()


@pytest.mark.parametrize(
    "name", ["labels", "probabilities", "weight", "sample_weight", "lse", "grad_loss"]
)
def test_out_that_is_the_memory_of_a_buffer(backend, name):
    """NumPy makes an array of a buffer without a copy, so that `out` may share its memory."""
    out = np.zeros(X.shape)
    flat = out.reshape(-1)
    if name == "probabilities":
        target, options = memoryview(out), {}
    elif name == "labels":
        target, options = memoryview(flat.view(np.int64)[:ROWS]), {}
    else:
        target = Y
        options = {name: memoryview(flat[: CLASSES if name == "weight" else ROWS])}
    given = {"grad_loss": np.ones(ROWS), "lse": LSE} | options
    with pytest.raises(ValueError, match="out shares memory with another argument"):
        pyce.cross_entropy_backward(
            logits=X, target=target, axis=-1, reduction="none", out=out, **given
        )
    if name not in ("lse", "grad_loss"):
        with pytest.raises(ValueError, match="out shares memory with another argument"):
            pyce.cross_entropy_with_grad(X, target, reduction="none", out=out, **options)
    assert not out.any()


def test_out_that_is_another_argument(backend):
    t = T.copy()
    for out in (t, t[:]):
        with pytest.raises(ValueError, match="another argument"):
            pyce.cross_entropy_with_grad(X, t, out=out)
    memory = np.ones(X.size)
    out = memory.reshape(X.shape)
    for name, value in (
        ("weight", memory[:CLASSES]),
        ("sample_weight", memory[:ROWS]),
    ):
        with pytest.raises(ValueError, match="another argument"):
            pyce.cross_entropy_with_grad(X, Y, out=out, **{name: value})
    with pytest.raises(ValueError, match="another argument"):
        pyce.cross_entropy_backward(1.0, X, Y, memory[:ROWS], out=out)
    with pytest.raises(ValueError, match="another argument"):
        pyce.cross_entropy_backward(memory[:ROWS], X, Y, LSE, reduction="none", out=out)
    owner = np.ones(X.shape)
    with pytest.raises(ValueError, match="another argument"):
        pyce.cross_entropy_with_grad(X, Y, weight=owner[0, :CLASSES], out=owner)
    column = np.ones(ROWS)
    with pytest.raises(ValueError, match="another argument"):
        pyce.cross_entropy_with_grad(X[:, :1], Y * 0, sample_weight=column, out=column[:, None])
    labels = np.zeros(X.size, np.int64)
    with pytest.raises(ValueError, match="another argument"):
        pyce.cross_entropy_with_grad(X, labels[:ROWS], out=labels.view(float).reshape(X.shape))
    assert (t == T).all()
    assert (memory == 1).all()
    assert (owner == 1).all()
    assert (column == 1).all()


def test_bernoulli_errors(backend):
    with pytest.raises(TypeError, match="logits"):
        pyce.binary_cross_entropy(X.astype(complex), T)
    with pytest.raises(TypeError, match="target"):
        pyce.binary_cross_entropy(X, T.astype(complex))
    with pytest.raises(ValueError, match=re.escape("(6, 1)") + ".*" + re.escape("(6, 5)")):
        pyce.binary_cross_entropy(X, T[:, :1])
    for name in ("weight", "pos_weight"):
        with pytest.raises(ValueError, match=f"{name} .*{re.escape('(4,)')}"):
            pyce.binary_cross_entropy(X, T, **{name: np.ones(4)})


@every("value", [[0.5], np.array([0.5]), (0.5,), "0.5", b"0.5", 0.5j])
def test_numbers_that_are_no_single_real_ones(backend, value):
    for name in ("normalizer", "label_smoothing"):
        with pytest.raises(TypeError, match=name):
            pyce.cross_entropy(X, Y, **{name: value})


def late_errors(monkeypatch):
    """Errors that no argument of the loss itself causes, each in a block."""
    monkeypatch.setenv("PYCE_BACKEND", "cuda")
    monkeypatch.delitem(_backends._loaded, "auto", raising=False)
    yield ValueError, "PYCE_BACKEND", pyce.use_backend("auto"), {}
    yield ValueError, "truth", nullcontext(), {"return_lse": np.array([1, 0])}


@pytest.mark.parametrize("soft", [False, True])
def test_errors_that_come_late(backend, monkeypatch, soft):
    """Also of logits whose classes are elsewhere in memory than those of the gradient."""
    channels_last = np.linspace(-1, 1, 120, dtype=np.float32).reshape(6, 5, 4).transpose(0, 2, 1)
    for x in (channels_last, channels_last.copy()):
        target = np.full(x.shape, 0.25) if soft else np.zeros((6, 5), int)
        for kind, words, block, options in late_errors(monkeypatch):
            out = sentinel(x.shape, np.float32)
            with block, pytest.raises(kind, match=words):
                pyce.cross_entropy_with_grad(x, target, axis=1, out=out, **options)
            assert (out.view(np.uint8) == SENTINEL).all()
            if not options:
                lse = np.zeros((6, 5))
                with block, pytest.raises(kind, match=words):
                    pyce.cross_entropy_backward(1.0, x, target, lse, axis=1, out=out)
                with block, pytest.raises(kind, match=words):
                    pyce.softmax(x, axis=1, out=out)
                assert (out.view(np.uint8) == SENTINEL).all()
