"""pyce inside functions that Numba compiles.

Numba takes seconds to compile a function, so that the tests share a few. Compiled code runs on one
backend in a process: `test_on_another_backend` runs most tests again in another process.
"""

import os
import pickle
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss
from conftest import WITHOUT_C, needs_proc

import pyce

numba = pytest.importorskip("numba")
import pyce.numba  # noqa: E402
from pyce.numba import _overloads  # noqa: E402

ROOT = Path(pyce.__file__).resolve().parents[1]
ON_C = not WITHOUT_C and os.environ.get("PYCE_BACKEND") not in ("numba", "numpy")


@pytest.fixture(scope="module")
def stored():
    """The folder of Numba's cache for `functions`, which other processes use as well."""
    with TemporaryDirectory() as folder:
        yield os.environ.get("STORED_FUNCTIONS", folder)


@pytest.fixture(scope="module")
def functions(stored):
    """A function for each kind of call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", stored)
        return compiled()


def compiled():
    # pyce checks that numbers are finite, whatever the caller lets LLVM assume.
    @numba.njit(nogil=True, cache=True, fastmath=True)
    def whole(x, y, weight, sample_weight, ignore, smoothing, square, axis, out):
        return pyce.cross_entropy_with_grad(
            x,
            y,
            axis=axis,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore,
            label_smoothing=smoothing,
            reduction="none",
            lse_square_scale=square,
            return_lse=True,
            out=out,
        )

    @numba.njit(cache=True)
    def plain(x, y):
        return pyce.cross_entropy_with_grad(x, y)

    @numba.njit(cache=True)
    def matrices(x, y, axis, k):
        return (
            pyce.softmax(x, axis),
            pyce.log_softmax(x, axis=axis),
            pyce.logsumexp(x, axis),
            pyce.accuracy(x, y, axis=axis, top_k=k, ignore_index=-1),
        )

    return {"whole": whole, "plain": plain, "matrices": matrices}


def batch(dtype=np.float32, shape=(5, 7, 11), axis=1, seed=0):
    """Logits, labels of which some are −1, class weights and sample weights."""
    rng = np.random.default_rng(seed)
    x = (4 * rng.standard_normal(shape)).astype(dtype)
    positions = shape[:axis] + shape[axis + 1 :]
    y = rng.integers(-1, shape[axis], positions)
    return x, y, rng.random(shape[axis]) + 0.5, rng.random(positions) + 0.5


# 3 and 300 classes are computed by different kernels, and the first of these shapes is too wide for
# tiles of the Numba backend.
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 2500, 3), 1), ((5, 7, 11), 1), ((4, 9, 300), -1), ((3, 2, 2), 0)]
)
def test_every_option(functions, shape, axis):
    x, y, w, s = batch(shape=shape, axis=axis % 3)
    options = {"axis": axis, "weight": w, "sample_weight": s, "ignore_index": -1}
    for smoothing, square in ((0.0, 0.0), (0.1, 0.25)):
        out = np.full_like(x, np.nan)
        losses, grad, lse = functions["whole"](x, y, w, s, -1, smoothing, square, axis, out)
        options.update(label_smoothing=smoothing, lse_square_scale=square, reduction="none")
        exact = oracle.reference(x, y, **options)
        assert losses.dtype == np.float32
        assert losses.shape == lse.shape == y.shape
        check_loss(losses, exact.loss)
        terms = exact.terms if smoothing else None
        check_array(out, exact.grad, terms)
        assert grad.ctypes.data == out.ctypes.data
        if ON_C:
            outside = pyce.cross_entropy_with_grad(x, y, return_lse=True, **options)
            inside = (losses, grad, lse)
            assert [a.tobytes() for a in inside] == [a.tobytes() for a in outside]
        np.testing.assert_allclose(
            lse, np.where(y == -1, 0, pyce.logsumexp(x.astype(np.float64), axis)), atol=2.0**-22
        )


def test_the_short_call(functions):
    for classes, rows in ((10, 64), (1000, 3)):
        x, y, _, _ = batch(shape=(rows, classes))
        y[y < 0] = 0
        loss, grad = functions["plain"](x, y)
        exact = oracle.reference(x, y)
        assert type(loss) is float  # as Numba returns every number
        check_loss(np.float32(loss), exact.loss)
        check_array(grad, exact.grad)


def test_softmax_logsumexp_and_accuracy(functions):
    x, y, _, _ = batch(shape=(5, 7, 11), axis=1)
    x[0, 2, 1] = x[0, 5, 1] = x[0].max() + 1  # equal: class 2 counts as larger
    y[0, 1] = 5
    x[1, 3, 2] = x[2, 4, 0] = np.nan  # at the label, and elsewhere
    y[1, 2], y[2, 0] = 3, 2
    p, log_p, lse, _ = functions["matrices"](x, y, 1, 2)
    valid = np.isfinite(x).all(1)
    rows = np.moveaxis(x, 1, -1)[valid]
    exact = oracle.softmax_rows(rows)
    check_array(np.moveaxis(p, 1, -1)[valid], exact.p)
    check_array(np.moveaxis(log_p, 1, -1)[valid], -exact.minus_log_p)
    np.testing.assert_allclose(lse[valid], exact.lse.hi, atol=2.0**-22)
    for result in (p, log_p):
        assert np.isnan(np.moveaxis(result, 1, -1)[~valid]).all()
    assert np.isnan(lse[~valid]).all()
    for k in (1, 2, 7, 9):
        expected = [
            np.sum((row > row[label]) | ((row == row[label]) & (np.arange(7) < label))) < k
            and not np.isnan(row[label])
            for row, label in zip(np.moveaxis(x, 1, -1).reshape(-1, 7), y.ravel(), strict=True)
            if label != -1
        ]
        assert functions["matrices"](x, y, 1, k)[3] == np.mean(expected)


def test_other_types():
    """float64, probabilities, a normalizer, other labels, layouts that need a copy, one row."""

    @numba.njit(fastmath=True)  # which has no effect on the treatment of NaN
    def losses(x, t, s, y, n):
        mean, lse = pyce.cross_entropy(x, t, sample_weight=s, normalizer=n, return_lse=True)
        return mean, lse, pyce.cross_entropy(x, y, reduction="sum"), pyce.accuracy(x, t)

    @numba.njit
    def one_row(x, y):
        return pyce.cross_entropy(x, y), pyce.logsumexp(x), pyce.logsumexp(x, keepdims=True)

    @numba.njit
    def accuracy_along(x, t):
        return pyce.accuracy(x, t, axis=1)

    rng = np.random.default_rng(1)
    x, t = rng.random((2, 20, 5, 3))
    assert accuracy_along(x, t) == pyce.accuracy(x, t, axis=1) != accuracy_along(x, x) == 1
    wide = rng.standard_normal((6, 9))
    x, t, s = wide[::2, ::-2], rng.random((5, 3)).T, rng.integers(1, 4, 3)
    y = np.array([4, 0, 2], np.uint64)
    mean, lse, total, accuracy = losses(x, t, s, y, 3.0)
    exact = oracle.reference(x, t, sample_weight=s, normalizer=3.0)
    check_loss(np.float64(mean), exact.loss)
    np.testing.assert_allclose(lse, exact.lse.hi, rtol=4e-16)
    check_loss(np.float64(total), oracle.reference(x, y, reduction="sum").loss)
    assert accuracy == pyce.accuracy(x, t)
    t[np.arange(3), x.argmax(1)] = np.nan  # which counts as the largest value, as in NumPy
    assert losses(x, t, s, y, 3.0)[3] == pyce.accuracy(x, t) == 1 != accuracy
    # As int64 this would be the ignored label −100.
    with pytest.raises(IndexError, match="row 1 is 18446744073709551516, outside"):
        losses(x, t, s, np.array([0, 2**64 - 100, 9], np.uint64), 3.0)
    loss, lse, kept = one_row(wide[0], 3)
    check_loss(np.float64(loss), oracle.reference(wide[0], np.array(3)).loss)
    assert lse == kept[0] == pyce.logsumexp(wide[0])


def test_numbers_of_any_integer_type():
    @numba.njit
    def accuracy(x, y, axis, k, ignore):
        return pyce.accuracy(x, y, axis=axis, top_k=k, ignore_index=ignore)

    x, y, _, _ = batch(shape=(6, 5))
    y[y < 0] = 3
    for numbers in ((1, 1, 3), (1, 2, 0), (2, 1, 3), (1, 0, 3), (1, 1, 2**64 - 100), (1, 2**63, 0)):
        axis, k, ignore = given = [np.uint64(number) for number in numbers]
        try:
            expected = pyce.accuracy(x, y, axis=axis, top_k=k, ignore_index=ignore)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                accuracy(x, y, *given)
        else:
            assert accuracy(x, y, *given) == expected


# ---------------------------------------------------------------------------------------------
# Errors


def test_errors_leave_the_output(functions):
    x, y, w, s = batch()
    bad = y.copy()
    bad[2, 3] = 7
    calls = [
        ((x, bad, w, s, -1, 0.0, 0.0, 1), IndexError),
        ((x, y, w, s, 0, 0.0, 0.0, 1), IndexError),
        ((x, y, w, s, -1, 0.0, 0.0, 3), ValueError),
        ((x, y[:, 1:].copy(), w, s, -1, 0.0, 0.0, 1), ValueError),
        ((x, y, w[1:], s, -1, 0.0, 0.0, 1), ValueError),
        ((x, y, w, s[1:], -1, 0.0, 0.0, 1), ValueError),
        ((x, y, w, s, -1, 1.5, 0.0, 1), ValueError),
        ((x, y, w, s, -1, np.nan, 0.0, 1), ValueError),
        ((x, y, w, s, -1, 0.0, np.inf, 1), ValueError),
        ((x[:, :0].copy(), y, w, s, -1, 0.0, 0.0, 1), ValueError),
    ]
    names = ("weight", "sample_weight", "ignore_index", "label_smoothing", "lse_square_scale")
    for arguments, kind in calls:
        out = np.full(arguments[0].shape, 7.0, np.float32)
        logits, target, *options, axis = arguments
        options = dict(zip(names, options, strict=True), axis=axis, reduction="none")
        with pytest.raises(kind) as outside:
            pyce.cross_entropy_with_grad(logits, target, out=out, **options)
        with pytest.raises(kind) as inside:
            functions["whole"](*arguments, out)
        assert str(inside.value) == str(outside.value)
        assert (out == 7.0).all()
        copy = pickle.loads(pickle.dumps(inside.value))
        assert (type(copy), str(copy)) == (kind, str(inside.value))
    for array, axis in ((x, 3), (x[:, :0].copy(), 1)):
        with pytest.raises(ValueError, match=r" x of|x must") as outside:
            pyce.softmax(array, axis)
        with pytest.raises(ValueError, match=r" x of|x must") as inside:
            functions["matrices"](array, y, axis, 1)
        assert str(inside.value) == str(outside.value)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        functions["matrices"](x, y, 1, 0)
    with pytest.raises(IndexError, match="row 25 is 7"):
        functions["matrices"](x, bad, 1, 1)


@pytest.mark.skipif(not ON_C, reason="other backends accept such arrays")
@pytest.mark.parametrize("which", ["x", "y", "w", "s", "out"])
def test_arrays_that_are_not_aligned(functions, which):
    """Numba's types do not tell them from others."""
    x, y, w, s = batch()
    arrays = {"x": x, "y": y, "w": w, "s": s, "out": np.full_like(x, 7.0)}
    array = arrays[which]
    memory = bytearray(array.nbytes + 1)
    arrays[which] = np.frombuffer(memory, array.dtype, array.size, 1).reshape(array.shape)
    arrays[which][...] = array
    x, y, w, s, out = arrays.values()
    with pytest.raises(ValueError, match="not aligned to its dtype"):
        functions["whole"](x, y, w, s, -1, 0.0, 0.0, 1, out)
    assert (out == 7.0).all()


def test_outputs_that_overlap(functions):
    def call(x, out):
        _, y, w, s = batch()
        return functions["whole"](x, y, w, s, -1, 0.0, 0.0, 1, out)[1]

    x = batch()[0]
    expected = call(x, np.empty_like(x))
    memory = np.zeros(x.size + 1, np.float32)
    shifted = memory[1:].reshape(x.shape)
    shifted[...] = x
    before = memory.copy()
    with pytest.raises(ValueError, match="out overlaps the logits"):
        call(shifted, memory[:-1].reshape(x.shape))
    with pytest.raises(ValueError, match=r"out must have the shape \(5, 7, 11\) of the logits"):
        call(shifted, memory[:77].reshape(1, 7, 11))
    np.testing.assert_array_equal(memory, before)
    assert call(shifted, shifted) is not None
    np.testing.assert_array_equal(shifted, expected)
    labels = np.zeros(2 * 385, np.float32).view(np.int64)
    out = labels.view(np.float32)[:385].reshape(x.shape)
    with pytest.raises(ValueError, match="out shares memory with another argument"):
        functions["whole"](x, labels[:55].reshape(5, 11), *batch()[2:], -1, 0.0, 0.0, 1, out)
    for given in (2, 3):  # the weights of classes, of samples
        arguments = [x, *batch()[1:]]
        shared = np.ones(385)
        size = arguments[given].size
        arguments[given] = shared[:size].reshape(arguments[given].shape)
        out = shared.view(np.float32)[size : size + 385].reshape(x.shape)
        with pytest.raises(ValueError, match="out shares memory with another argument"):
            functions["whole"](*arguments, -1, 0.0, 0.0, 1, out)
        assert (shared == 1).all()


X, Y, T = np.ones((2, 3), np.float32), np.zeros(2, int), np.ones((2, 3))


def test_a_type_that_does_not_fit_ends_the_compilation():
    @numba.njit
    def loss(x, y):
        return pyce.cross_entropy(x, y)

    with pytest.raises(numba.TypingError, match=r"convert it by \.astype\(np.float32\)"):
        loss(X.astype(np.float16), Y)


def constant(value):
    return numba.types.literal(value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cross_entropy", {"logits": X.astype(np.float16)}, r"\.astype\(np.float32\)"),
        ("cross_entropy", {"logits": X.astype(int)}, "array of float32 or float64"),
        ("cross_entropy", {"logits": None}, "array of float32 or float64"),
        ("cross_entropy", {"logits": np.array(1, np.float32)}, "at least one dimension"),
        ("cross_entropy", {"target": T[0, :2]}, "shaped like class indices"),
        ("cross_entropy", {"target": T.astype(int)}, "one-hot rows"),
        ("cross_entropy", {"target": Y == 0}, "class indices of booleans"),
        ("cross_entropy", {"target": 1}, "target is one integer"),
        ("cross_entropy", {"target": (0, 1)}, "target must be an array"),
        ("cross_entropy", {"reduction": "sum"}, "a constant"),
        ("cross_entropy", {"reduction": constant("all")}, "mean, sum, none"),
        ("cross_entropy", {"return_lse": True}, "True or False"),
        ("cross_entropy", {"weight": "w"}, "real numbers"),
        ("cross_entropy", {"weight": T}, "1 dimensions, got 2"),
        ("cross_entropy", {"sample_weight": T[0, 0]}, "real numbers"),
        ("cross_entropy", {"weight": numba.types.Optional(numba.typeof(T[0]))}, "write two calls"),
        ("cross_entropy", {"label_smoothing": 1j}, "label_smoothing must be a real number"),
        ("cross_entropy", {"normalizer": 1j}, "normalizer must be a real number"),
        ("cross_entropy", {"lse_square_scale": "1"}, "lse_square_scale must be a real number"),
        ("cross_entropy", {"ignore_index": None}, "ignore_index must be an integer"),
        ("cross_entropy_with_grad", {"out": T}, "dtype float32 of the logits"),
        ("softmax", {"out": np.ones((3, 2), "f").T}, "C-contiguous"),
        ("softmax", {"out": np.broadcast_to(X[0], (2, 3)).view()}, "C-contiguous|writable"),
        ("softmax", {"axis": constant(True)}, "axis must be an integer"),
        ("accuracy", {"top_k": 1.5}, "top_k must be an integer"),
        ("logsumexp", {"axis": 0.5}, "axis must be an integer"),
        ("logsumexp", {"keepdims": constant(1)}, "True or False"),
    ],
)
def test_types_that_do_not_fit(name, arguments, message):
    """The check that Numba calls before it compiles anything."""
    given = {"logits": X, "target": Y} if name[:1] in "ca" else {"x": X}
    given = {
        key: value if isinstance(value, numba.types.Type) else numba.typeof(value)
        for key, value in {**given, **arguments}.items()
    }
    with pytest.raises(numba.TypingError, match=message):
        getattr(_overloads, f"_{name}")(**given)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32, np.float64])
def test_types_of_weights(dtype):
    """Integers and floats are real numbers, for classes and for samples."""
    for name, shape in (("weight", 3), ("sample_weight", 2)):
        given = {"logits": X, "target": Y, name: np.ones(shape, dtype)}
        types = {key: numba.typeof(value) for key, value in given.items()}
        assert callable(_overloads._cross_entropy(**types))
        types[name] = numba.types.Optional(types[name])
        with pytest.raises(numba.TypingError, match=f"{name} may be None .* write two calls"):
            _overloads._cross_entropy(**types)


def test_on_another_backend(run_python, functions, stored):
    """The functions in the cache are the same for every backend.

    The Numba backend is called in the same way as NumPy, but its kernels take long to compile: one
    of them runs in `test_cached_functions_work_in_other_processes`.
    """
    if not ON_C:
        pytest.skip("the other tests run on it")
    tests = "every_option or short_call or softmax or errors_leave or overlap"
    variables = {"PYCE_BACKEND": "numpy", "STORED_FUNCTIONS": stored}
    run_python("-m", "pytest", "-q", "-x", __file__, "-k", tests, **variables)


INTERRUPTED = """
import os, signal, numba, numpy as np, pyce.numba

@numba.njit
def calls(x, n):
    for i in range(n):
        pyce.softmax(x, out=x)
    return n

calls(np.ones((2, 3)), 1)
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    print("not interrupted", calls(np.ones((2, 3)), 10**5))
except KeyboardInterrupt:
    print("interrupted")

from pyce._backends import numpy as backend
for error in (KeyboardInterrupt(), MemoryError(), ArithmeticError("of the backend")):
    def fails(*_):
        raise error
    backend.softmax = fails
    try:
        calls(np.ones((2, 3)), 1)
    except BaseException as raised:
        print(type(raised).__name__, *raised.args)
"""


def test_an_interrupt_ends_a_call_of_another_backend(run_python):
    """So do errors of that backend."""
    done = run_python("-c", INTERRUPTED, PYCE_BACKEND="numpy")
    assert done.stdout.splitlines() == [
        "interrupted",
        "Interrupted",
        "MemoryError pyce could not allocate its scratch memory",
        "RuntimeError the backend failed with the error that was printed",
    ]
    assert "ArithmeticError: of the backend" in done.stderr


# ---------------------------------------------------------------------------------------------
# Other processes


CACHED = """
import sys
if sys.argv[1] == "without":
    sys.modules["pyce._pyce"] = None
import numba, numpy as np, pyce

@numba.njit(cache=True)
def loss(x, y):
    return pyce.cross_entropy_with_grad(x, y)

x = np.arange(6, dtype=np.float32).reshape(2, 3)
assert "pyce.numba" not in sys.modules
if sys.argv[1] == "another":
    from pyce.numba import _c
    _c._state[_c._PRESENT] += 1
try:
    mean, grad = loss(x, np.array([0, 2]))
    print(f"{mean:.6f}", grad.round(6).tolist(), sum(loss.stats.cache_hits.values()), flush=True)
    loss(x, np.array([0, 3]))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def installed(tmp_path):
    """A folder with the metadata of an installed pyce, for PYTHONPATH."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    group = re.search(r'(?m)^\[project.entry-points.numba_extensions\]\n(init = "(.*)")$', project)
    info = tmp_path / "path" / "pyce_kernels-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyce-kernels\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[numba_extensions]\ninit = {group[2]}\n")
    return str(info.parent)


def test_cached_functions_work_in_other_processes(run_python, monkeypatch, tmp_path, installed):
    """Numba finds pyce by itself, and what it stores is valid in the next process, also without
    the C extension, but not with another version of the structure.
    """
    monkeypatch.setenv("PYTHONPATH", installed)
    script = tmp_path / "program.py"
    script.write_text(CACHED, encoding="utf-8")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    mean, grad = pyce.cross_entropy_with_grad(x, [0, 2])
    expected = f"{mean:.6f} {grad.round(6).tolist()}"
    for hits, extension in ((0, "with"), (1, "with"), (1, "without")):
        said = run_python("-W", "ignore", str(script), extension).stdout.splitlines()
        assert said[0] == f"{expected} {hits}"
        assert said[1].startswith("LabelError target of row 1 is 3, outside the valid range 0..2")
    said = run_python(str(script), "another").stdout
    assert said.startswith("RuntimeError this function was compiled")


THREADS = """
import os, sys
import numba, numpy as np, pyce, pyce.numba
from pyce import _threads
from pyce.numba._c import _thread_state

_threads.processors = lambda: 64
_threads._quota_now = lambda: 64.0
tasks = lambda: len(os.listdir("/proc/self/task"))

@numba.njit
def loss(x, y):
    return pyce.cross_entropy(x, y)

@numba.njit(parallel=True)
def losses(x, y, everywhere):
    result = np.zeros(len(x))
    for i in numba.prange(len(x)):
        if everywhere or _thread_state() == 0:  # in the threads that Python does not know
            result[i] = loss(x[i], y[i])
    return result

numba.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((8, 6000, 100), dtype=np.float32)
y = np.zeros((8, 6000), int)
pyce.set_num_threads(1)
parallel = losses(x, y, True)
loss(x[0], y[0])
before = tasks()
losses(x, y, True)
print(tasks() - before)
pyce.set_num_threads(3)
assert losses(x, y, False).any()
print(tasks() - before)
loss(x[0], y[0])
print(tasks() - before)
assert (parallel == [loss(*one) for one in zip(x, y)]).all()
"""


@needs_proc
@pytest.mark.skipif(WITHOUT_C, reason="the Numba backend uses one thread")
def test_threads_are_those_of_pyce(run_python):
    """As many as `set_num_threads` allows, and one in each thread of a parallel region.

    The thread of Python that begins the region may share its first call, before the others begin.
    """
    assert run_python("-c", THREADS, NUMBA_NUM_THREADS="2").stdout.split() == ["0", "0", "2"]


def test_the_example(run_python, tmp_path):
    if not (ROOT / "examples").is_dir():
        pytest.skip("examples are not part of an installed package")
    pytest.importorskip("sklearn")
    example = str(ROOT / "examples" / "compiled_training.py")
    # What takes long is to compile; without optimisation it takes less.
    said = run_python(example, "--epochs", "10", NUMBA_OPT="0").stdout
    final = re.findall(r"epoch (\d+) loss (\S+) accuracy (\S+)", said)
    assert len(final) == 10
    assert final[-1][0] == "10"
    assert float(final[-1][2]) > 0.9
    assert "the same losses" in said
