"""The floating-point environment of a caller changes no result, and no call changes it."""

import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fpenv import CONTROL, KNOWN, MACHINE, STATES, environment, get

import pyce
from pyce import _threads

pytestmark = pytest.mark.skipif(not KNOWN, reason="where the registers are is not known")

# The first lines of a program in another process.
HELPERS = (
    f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    "from fpenv import get, put\n"
)


def test_the_states_are_set_and_read():
    for word in STATES.values():
        with environment(word):
            seen = get()
        assert seen == word
    assert get() == STATES["default"]


@pytest.mark.parametrize("state", ["flush", "toward zero, flush"])
def test_the_states_do_what_they_are_for(state):
    """The tests below can only fail if the states take effect: they change results of NumPy."""
    tiny = np.full(4, 1e-300)
    with environment(STATES[state]):
        product = tiny * 1e-15
    assert (product == 0).all()
    assert (tiny * 1e-15 != 0).all()


def bits(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part).tobytes() for part in parts]


def inputs(dtype, rows, classes):
    """Logits whose losses and gradients are rounded everywhere, and often subnormal."""
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(rows, classes)) * rng.choice([1, 30, 300], (rows, 1))
    y = rng.integers(0, classes, rows)
    gap = {"float64": 730.0, "float32": 95.0}.get(np.dtype(dtype).name, 12.0)
    x[0] -= x[0].max() + gap
    x[0, y[0]] = 0.0  # a subnormal loss
    return np.asarray(x, dtype), y


def functions(x, y):
    """Every public function with its arguments bound, by name and options."""
    rng = np.random.default_rng(0)
    rows, classes = x.shape
    weight, sample_weight = rng.uniform(0.1, 3, classes), rng.uniform(0.1, 3, rows)
    ignored = np.where(rng.random(rows) < 0.3, -100, y)
    probs = rng.random(x.shape).astype(np.float32 if x.dtype.itemsize < 8 else np.float64)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    one_by_one = rng.random(rows)
    p = pyce.softmax(x)
    for reduction in ("mean", "sum", "none"):
        for name, options in {
            "plain": {},
            "smoothing": {"label_smoothing": 0.1},
            "weights": {"weight": weight, "sample_weight": sample_weight},
            "normalizer": {"normalizer": 7.0},
        }.items():
            about = {"reduction": reduction, **options}
            yield f"forward {reduction} {name}", lambda a=about: pyce.cross_entropy(x, ignored, **a)
            yield (
                f"fused {reduction} {name}",
                lambda a=about: pyce.cross_entropy_with_grad(x, y, return_lse=True, **a),
            )
        about = {"reduction": reduction}
        yield (
            f"probabilities {reduction}",
            lambda a=about: pyce.cross_entropy_with_grad(x, probs, **a),
        )
        yield f"from logs {reduction}", lambda a=about: pyce.nll_loss(np.asarray(x), y, **a)
        yield f"from probabilities {reduction}", lambda a=about: pyce.log_loss(p, y, **a)
        yield (
            f"Bernoulli {reduction}",
            lambda a=about: pyce.binary_cross_entropy_with_grad(x, probs, **a),
        )
        yield (
            f"Bernoulli loss {reduction}",
            lambda a=about: pyce.binary_cross_entropy(x, probs, **a),
        )
    yield "backward", lambda: pyce.cross_entropy_backward(1.7, x, y, lse)
    yield (
        "backward none",
        lambda: pyce.cross_entropy_backward(one_by_one, x, y, lse, reduction="none"),
    )
    # Arguments that are converted first.
    small, large, swapped = y.astype(np.int16), y.astype(np.uint64), y.astype(">i4")
    weight32, tiny = weight.astype(np.float32), np.full(classes, 1e-40, np.float32)
    listed = sample_weight.tolist()
    for kind, labels in {"int16": small, "uint64": large, ">i4": swapped}.items():
        yield f"labels {kind}", lambda t=labels: pyce.cross_entropy(x, t, sample_weight=listed)
    for kind, w in {"float32": weight32, "subnormal": tiny}.items():
        yield f"weight {kind}", lambda w=w: pyce.cross_entropy(x, y, weight=w, reduction="sum")
    if x.dtype.kind == "f":
        other = x.astype(x.dtype.newbyteorder(">"))
        yield "swapped", lambda: pyce.cross_entropy_with_grad(other, y)
    strided = np.asfortranarray(x)
    yield "strided", lambda: pyce.cross_entropy_with_grad(strided, y)
    yield "first axis", lambda: pyce.cross_entropy_with_grad(strided.T, y, axis=0)
    listed_integers = [[2**53 + 1, 2**60 + 129], [-(2**53) - 3, 5]]
    yield "lists", lambda: pyce.cross_entropy(listed_integers, [0, 1], reduction="none")
    yield "numbers", lambda: pyce.log_softmax([[0.1, 2**53 + 1], [0.5, 2.0]])
    hidden, matrix, few = x[:, :3], np.ascontiguousarray(x[:5, :3]), y % 5
    options = {"reduction": "sum", "sample_weight": sample_weight, "chunk_bytes": 1}
    for reduction in ("mean", "sum"):
        options = {**options, "reduction": reduction}
        yield (
            f"linear {reduction}",
            lambda a=options: pyce.linear_cross_entropy(hidden, matrix, few, **a),
        )
        yield (
            f"linear, fused {reduction}",
            lambda a=options: pyce.linear_cross_entropy_with_grad(hidden, matrix, few, **a)[0],
        )
    yield "chosen", lambda: pyce.selective_log_softmax(x, y)
    yield "softmax", lambda: pyce.softmax(x)
    yield "log_softmax", lambda: pyce.log_softmax(x)
    yield "logsumexp", lambda: pyce.logsumexp(x)
    yield "accuracy", lambda: pyce.accuracy(x, y)


DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(_threads, "processors", lambda: 3)
    monkeypatch.setattr(_threads, "_quota_now", lambda: 3.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_results_and_no_trace(backend, three_threads, dtype):
    """In every environment, control bits, rounding mode and sticky flags are not changed."""
    for classes in (7, 300):
        x, y = inputs(dtype, 90, classes)
        for name, call in functions(x, y):
            expected = bits(call())
            for state, word in STATES.items():
                with environment(word):
                    got = call()
                    after = get()
                assert after == word, (name, state, hex(after))
                assert bits(got) == expected, (name, state)


def test_the_loss_is_subnormal(backend):
    """Otherwise flush-to-zero would have no number to flush."""
    for dtype in (np.float32, np.float64):
        x, y = inputs(dtype, 90, 7)
        loss = pyce.cross_entropy(x[:1], y[:1])
        assert 0 < loss < np.finfo(dtype).tiny
        assert loss.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_state_of_numpy_has_no_effect(backend, dtype):
    """numpy.errstate, and warnings that are errors: overflow and underflow are no errors here."""
    x, y = inputs(dtype, 40, 7)
    x[1, :3] = np.nan, np.inf, -np.inf
    x[2] = -np.inf
    with np.errstate(all="ignore"):
        calls = dict(functions(x, y))
        tiny, huge = (np.full(7, np.longdouble(v)) for v in ("1e-4000", "1e4000"))
        rows, answers = np.full(40, 1e-320), np.zeros(x.shape, np.float32)
    for w in (tiny, huge):
        calls[f"weight {w[0]}"] = lambda w=w: pyce.cross_entropy_with_grad(x, y, weight=w)
        calls[f"Bernoulli weight {w[0]}"] = lambda w=w: pyce.binary_cross_entropy(
            x, answers, weight=w
        )
    for reduction in ("sum", "none"):
        about = {"sample_weight": rows, "reduction": reduction}
        calls[f"tiny {reduction}"] = lambda a=about: pyce.cross_entropy_with_grad(x, y, **a)
    for name, call in calls.items():
        with np.errstate(all="ignore"):
            expected = bits(call())
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                got = bits(call())
            except (FloatingPointError, Warning) as error:
                raise AssertionError(name) from error
        assert got == expected, name


def test_errors_leave_the_environment(backend):
    x, y = inputs(np.float32, 90, 7)
    word = STATES["toward zero, flush"]
    with environment(word):
        try:
            pyce.cross_entropy(x, y + 7)
        except IndexError:  # pytest.raises computes
            after = get()
    assert after == word


THREADS = """
import numpy as np
{numba}
import pyce
from pyce import _threads
_threads.processors = lambda: 3
_threads._quota_now = lambda: 3.0
rng = np.random.default_rng(0)
x = np.float32(rng.normal(size=(4000, 30)) * 40)
half, few, t = np.float16(x), x.reshape(4, -1), np.float32(rng.random(x.shape))
y = rng.integers(0, 30, 4000)

def answers():
    return [np.asarray(a).tobytes() for a in (
        *pyce.cross_entropy_with_grad(x, y), pyce.softmax(x), pyce.logsumexp(x),
        *pyce.cross_entropy_with_grad(few, y[:4]), pyce.softmax(half),
        *pyce.binary_cross_entropy_with_grad(x, t))]

pyce.get_backend()  # imported
put({word})
{start}
shared = answers()
assert get() & {control} == {word}, hex(get())
put({default})
assert answers() == shared, 'shared in the default environment'
pyce.set_num_threads(1)
assert answers() == shared, 'alone in the default environment'
print('fine')
"""
# Programs that start the threads without a computation of pyce.
START = {
    "c": """
from pyce._pyce import ffi, lib
source = np.zeros(2**22, np.uint8)
lib.pyce_copy(ffi.from_buffer(source.copy()), ffi.from_buffer(source), source.size, 0, 3)
""",
    "numba": """
@numba.njit(parallel=True)
def start(out):
    for i in numba.prange(out.size):
        for j in range(10**6):
            out[i] += j
start(np.zeros(8))
put({word})
""",
    "numpy": "",
}


@pytest.mark.parametrize("state", ["flush", "upward", "toward zero, flush"])
def test_threads_made_in_another_environment(backend, run_python, state):
    """A thread inherits the environment of its creator; threads of Numba may have been created
    before.
    """
    word = STATES[state]
    code = THREADS.format(
        word=word,
        control=CONTROL,
        default=STATES["default"],
        numba="import numba" if backend.name == "numba" else "",
        start=START[backend.name].format(word=word),
    )
    done = run_python(
        "-c",
        HELPERS + backend.share_small_work + code,
        NUMBA_NUM_THREADS="3",
        **backend.environment,
    )
    assert done.stdout.split() == ["fine"]


IMPORT = """
import numpy
{first}
for word in {words}:
    put(word)
    import pyce
    pyce.backends()
    pyce.cross_entropy(numpy.eye(3), [0, 1, 2])
    assert get() & {control} == word & {control}, (hex(word), hex(get()))
    put(word)
    pyce.cross_entropy(numpy.eye(3), [0, 1, 2])
    assert get() == word, (hex(word), hex(get()))
    for name in [name for name in sys.modules if name.startswith('pyce')]:
        del sys.modules[name]
print('fine')
"""


def test_import_leaves_the_environment(backend, run_python):
    """Except for sticky flags: the import system of Python computes with the times of files."""
    first = "import numba" if backend.name == "numba" else ""
    words = [STATES["upward"], STATES["toward zero, flush"]]
    code = HELPERS + IMPORT.format(first=first, words=words, control=CONTROL)
    assert run_python("-c", code, **backend.environment).stdout.split() == ["fine"]


LOAD = """
import ctypes
from importlib.util import find_spec
path = find_spec('pyce').submodule_search_locations[0] + {name!r}
for word in {words}:
    put(word)
    library = ctypes.PyDLL(path)
    assert get() == word, (hex(word), hex(get()))
print('fine')
"""


def test_loading_leaves_no_trace(c_backend, run_python):
    """The extension is not linked with code that sets flush-to-zero when it is loaded."""
    from pyce import _pyce

    code = LOAD.format(name="/" + Path(_pyce.__file__).name, words=[STATES["downward"]])
    assert run_python("-c", HELPERS + code).stdout.split() == ["fine"]


def test_nothing_is_built_for_fast_mathematics(c_backend):
    from pyce import _pyce

    with open(_pyce.__file__, "rb") as file:
        text = file.read()
    for name in (b"set_fast_math", b"crtfastmath"):
        assert name not in text


TRAPS = """
import numpy as np, pyce
x = np.float32(np.random.default_rng(0).normal(size=(3000, 40)) * 100)
x[5], x[6], x[7], x[8] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max
x[9, 3] = -np.inf
y = np.zeros(3000, np.int64)
def call():
    return [np.asarray(a).tobytes() for a in pyce.cross_entropy_with_grad(x, y)]
expected = call()
put({word})
got = call()
after = get()
put({default})
assert after == {word}, hex(after)
assert got == expected
print('fine')
"""


@pytest.mark.skipif(MACHINE != "x86_64", reason="other processors do not trap")
def test_traps_of_the_caller_do_not_spring(backend, run_python):
    """Kernels may raise the flags of invalid operations, divisions by zero and overflows."""
    word = 0x1F80 & ~(0x80 | 0x200 | 0x400)
    code = HELPERS + backend.share_small_work + TRAPS.format(word=word, default=STATES["default"])
    assert run_python("-c", code, **backend.environment).stdout.split() == ["fine"]


# ---------------------------------------------------------------------------------------------
# NaN


def nans(dtype):
    """NaN with either sign, quiet and signalling, with payloads."""
    exponent, mantissa = {
        "float16": (0x1F << 10, 10),
        "bfloat16": (0xFF << 7, 7),
        "float32": (0xFF << 23, 23),
        "float64": (0x7FF << 52, 52),
    }[dtype.name]
    quiet, sign = 1 << (mantissa - 1), 1 << (8 * dtype.itemsize - 1)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    for payload in (quiet, quiet | 5, 2 * quiet - 1, 1, quiet - 1, quiet >> 1):
        for negative in (0, sign):
            yield np.array(exponent | payload | negative, unsigned)


def same_but_for_nan(got, expected):
    for a, b in zip(got, expected, strict=True):
        a, b = (np.asarray(v) for v in (a, b))
        a, b = (v.astype(np.float64) if v.dtype.kind == "V" else v for v in (a, b))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 40, 600])
def test_one_nan_is_like_another(backend, dtype, classes):
    """In rows that count, in ignored ones, at the target and off it, and in probabilities."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(24, classes)).astype(dtype)
    y = rng.integers(0, classes, 24)
    y[3] = y[17] = -100
    clean = pyce.cross_entropy_with_grad(plain, y, reduction="none")
    expected = None
    for bits_of_nan in nans(dtype):
        x = plain.copy()
        view = x.view(bits_of_nan.dtype)
        view[3] = view[5, y[5]] = view[9, (y[9] + 1) % classes] = bits_of_nan
        got = (
            *pyce.cross_entropy_with_grad(x, y, reduction="none", return_lse=True),
            pyce.cross_entropy(x, y),
            pyce.softmax(x),
            pyce.log_softmax(x),
            pyce.logsumexp(x),
            *pyce.cross_entropy_with_grad(plain, x, reduction="none"),
        )
        if expected is None:
            expected = got
        same_but_for_nan(got, expected)
        other = np.setdiff1d(np.arange(24), [5, 9])
        np.testing.assert_array_equal(got[0][other], clean[0][other])
        np.testing.assert_array_equal(
            got[1][other].astype(np.float64), clean[1][other].astype(np.float64)
        )
        assert np.isnan(got[0][[5, 9]]).all()
        assert np.isnan(got[1][[5, 9]].astype(np.float64)).all()
        assert got[0][3] == 0
        assert np.isnan(got[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 40])
def test_nan_as_a_saved_lse(backend, dtype, classes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, classes)).astype(dtype), rng.integers(0, classes, 24)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    expected = pyce.cross_entropy_backward(1.0, x, y, lse).astype(np.float64)
    expected[7] = np.nan
    for bits_of_nan in nans(np.dtype(np.float64)):
        lse[7] = bits_of_nan.view(np.float64)
        got = pyce.cross_entropy_backward(1.0, x, y, lse)
        np.testing.assert_array_equal(got.astype(np.float64), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nan_as_an_option(backend, reduction):
    """As a weight, a factor or the normalizer it is used as given, whatever its bits."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)), rng.integers(0, 5, 24)
    y[3] = -100
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    expected = None
    for bits_of_nan in nans(np.dtype(np.float64)):
        nan = bits_of_nan.view(np.float64)
        weight, sample_weight, broken = np.ones(5), np.ones(24), lse.copy()
        weight[2] = sample_weight[7] = broken[7] = nan
        factor = sample_weight if reduction == "none" else float(nan)
        got = (
            *pyce.cross_entropy_with_grad(x, y, reduction=reduction, weight=weight),
            *pyce.cross_entropy_with_grad(x, y, reduction=reduction, sample_weight=sample_weight),
            *pyce.cross_entropy_with_grad(x, y, reduction=reduction, normalizer=float(nan)),
            pyce.cross_entropy_backward(1.0, x, y, broken, reduction="sum"),
            pyce.cross_entropy_backward(factor, x, y, lse, reduction=reduction),
        )
        if expected is None:
            expected = got
        same_but_for_nan(got, expected)
    counts = y != -100
    if reduction == "mean":
        assert np.isnan(expected[4])
        assert np.isnan(expected[5][counts]).all()
        assert (expected[5][~counts] == 0).all()
    else:
        plain = pyce.cross_entropy_with_grad(x, y, reduction=reduction)
        same_but_for_nan(expected[4:6], plain)


def test_a_given_normalizer_of_nan_and_no_rows(backend):
    assert pyce.cross_entropy(np.eye(3), [-100] * 3, normalizer=float("nan")) == 0
