"""What stands beside the softmax loss: other losses, accuracy, settings, the command."""

import asyncio
import contextvars
import json
import math
import threading
import types

import ml_dtypes
import numpy as np
import oracle
import pytest

import pyce
from pyce import _backends

DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sample(classes=5, rows=7):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


# ---------------------------------------------------------------------------------------------
# From log-probabilities and probabilities

KWARGS = {
    "plain": {},
    "weight": {"weight": np.linspace(0.5, 2, 5)},
    "sample_weight": {"sample_weight": np.linspace(0.5, 2, 7)},
    "smoothing": {"label_smoothing": 0.1},
    "normalizer": {"normalizer": 3.0},
    "everything": {
        "weight": np.linspace(0.5, 2, 5),
        "sample_weight": np.linspace(0.5, 2, 7),
        "label_smoothing": 0.1,
    },
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kwargs", KWARGS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("axis", [0, 1])
def test_three_ways_to_the_same_loss(backend, axis, soft, kwargs, reduction):
    x, y = sample()
    y[2] = -100
    target = np.random.default_rng(1).random(x.shape) if soft else y
    if axis == 0:
        x, target = x.T, target.T
    options = {"axis": axis, "reduction": reduction, **KWARGS[kwargs]}
    expected = pyce.cross_entropy(x, target, **options)
    p = pyce.softmax(x, axis=axis)
    from_logs = pyce.nll_loss(np.log(p), target, **options)
    from_probs = pyce.log_loss(p, target, **options)
    for got in (from_logs, from_probs):
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(got, expected, rtol=1e-13)


@by_dtype
def test_dtypes_of_the_losses(backend, dtype):
    p = np.full((3, 4), 0.25, dtype)
    result = np.float64 if dtype == np.float64 else np.float32
    for call, loss in ((pyce.log_loss, math.log(4)), (pyce.nll_loss, -0.25)):
        for reduction in ("mean", "none"):
            got = call(p, [0, 1, 2], reduction=reduction)
            assert got.dtype == result
            np.testing.assert_array_equal(got, result(loss))


def test_log_loss_of_zero(backend):
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    # 0 log 0 = 0: a certain right answer costs nothing.
    t = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(pyce.log_loss(p, t, reduction="none"), [0, np.log(2)])
    np.testing.assert_array_equal(pyce.log_loss(p, [0, 1], reduction="none"), [0, np.log(2)])
    # Probability 0 on the truth is infinite, and nothing is clipped in secret.
    np.testing.assert_array_equal(pyce.log_loss(p, [1, 2], reduction="none"), [np.inf, np.inf])
    assert pyce.log_loss(p, [0, 2]) == np.inf
    assert np.isfinite(pyce.log_loss(np.array([[1 - 1e-300, 1e-300]]), [1]))


@pytest.mark.parametrize("eps", [0.0, 1e-15, 1e-7, 0.01])
def test_log_loss_clips_on_request(backend, eps):
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]])
    got = pyce.log_loss(p, [1, 1, 0], eps=eps, reduction="none")
    with np.errstate(divide="ignore"):
        expected = -np.log(np.clip([0.0, 1.0, 0.3], eps, 1 - eps))
    np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_probabilities_are_taken_as_they_are(backend):
    """Not rescaled, and NaN where a negative one counts."""
    p = np.array([[2.0, 2.0], [0.25, 0.25], [-0.5, 1.0], [1.0, -0.5]])
    got = pyce.log_loss(p, [0, 0, 0, 0], reduction="none")
    np.testing.assert_array_equal(got, [-np.log(2), np.log(4), np.nan, 0.0])
    t = [[1.0, 0.0]] * 4
    np.testing.assert_array_equal(pyce.log_loss(p, t, reduction="none"), got)


def test_nll_loss_of_minus_infinity(backend):
    """A class that does not count may have any log-probability."""
    for other in (-np.inf, np.inf, np.nan):
        log_p = np.array([[-0.5, other]])
        assert pyce.nll_loss(log_p, [0]) == 0.5
        assert pyce.nll_loss(log_p, [[1.0, 0.0]]) == 0.5
        assert pyce.nll_loss(log_p, [1], weight=[1.0, 0.0], reduction="none") == 0
    assert pyce.nll_loss([[-0.5, -np.inf]], [1]) == np.inf
    assert pyce.nll_loss([[-0.5, -np.inf]], [[0.5, 0.5]]) == np.inf


def test_log_loss_against_scikit_learn_by_hand(backend):
    """Of three rows: -(log 0.9 + log 0.8 + log 0.35) / 3."""
    p = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.25, 0.4, 0.35]]
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.35)) / 3
    np.testing.assert_allclose(pyce.log_loss(p, [0, 1, 2]), expected, rtol=1e-15)


@pytest.mark.parametrize("call", [pyce.nll_loss, pyce.log_loss])
def test_ignored_rows_of_the_other_losses(backend, call):
    p = np.array([[0.5, 0.5], [np.nan, np.nan], [0.25, 0.75]])
    y = np.array([0, -100, 1])
    np.testing.assert_array_equal(call(p, y), call(p[[0, 2]], y[[0, 2]]))
    assert call(p, y, reduction="none")[1] == 0
    assert np.isnan(call(p, [-100] * 3))
    assert call(p, [-100] * 3, normalizer=2.0) == 0
    assert call(p, [-100] * 3, reduction="sum") == 0


# ---------------------------------------------------------------------------------------------
# Bernoulli


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [1, 7, 16, 33, 1000])
def test_bernoulli_accuracy(backend, count, weighted, dtype):
    rng = np.random.default_rng(count)
    x = (rng.normal(size=count) * rng.choice([1e-3, 1, 10, 80], count)).astype(dtype)
    x[0] = 0.3
    t = rng.random(count).astype(dtype)
    t[::3] = 1
    t[1::3] = 0
    options = {}
    if weighted:
        options = {
            "weight": rng.uniform(0.2, 2, count).astype(dtype),
            "pos_weight": rng.uniform(0.2, 2, count).astype(dtype),
        }
    right = oracle.bernoulli(x, t, *options.values())
    exact, slope, terms = right.loss, right.grad, right.terms
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction="none", **options)
    normal = exact.hi >= oracle.smallest_normal(dtype)
    # Two weights, two terms and their sum are rounded besides the functions themselves.
    assert oracle.ulp_error(loss, exact)[normal].max() <= 4
    normal = terms >= oracle.smallest_normal(dtype)
    assert oracle.ulp_error(grad, slope, terms)[normal].max() <= 6
    np.testing.assert_array_equal(
        pyce.binary_cross_entropy(x, t, reduction="none", **options), loss
    )
    assert (
        oracle.ulp_error(pyce.binary_cross_entropy(x, t, reduction="sum", **options), exact.sum())
        <= 4
    )
    mean, mean_grad = pyce.binary_cross_entropy_with_grad(x, t, **options)
    assert oracle.ulp_error(mean, exact.sum() / float(count)) <= 4
    assert oracle.ulp_error(mean_grad, slope / float(count), terms / count)[normal].max() <= 6


@by_dtype
def test_bernoulli_far_out(backend, dtype):
    """Neither overflow nor a secret clip: confident and right costs 0, wrong costs |x|."""
    x = np.array([1e4, -1e4, 1e4, -1e4, np.inf, -np.inf, np.nan], dtype)
    t = np.array([1, 0, 0, 1, 0, 1, 0])
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction="none")
    big = float(x[0])
    np.testing.assert_array_equal(loss[:4], [0, 0, big, big])
    np.testing.assert_array_equal(loss[4:6], [np.inf, np.inf])
    np.testing.assert_array_equal(grad[:6].astype(float), [0, 0, 1, -1, 1, -1])
    assert np.isnan(loss[6])
    assert np.isnan(float(grad[6]))


@by_dtype
def test_bernoulli_weight_of_zero(backend, dtype):
    """It makes 0 of an infinite loss; NaN stays."""
    x = np.array([np.inf, -np.inf, 1.0, np.nan], dtype)
    for kwargs in ({"weight": 0}, {"weight": [0, 0, 0, 0]}):
        loss, grad = pyce.binary_cross_entropy_with_grad(
            x, [0, 1, 1, 1], reduction="none", **kwargs
        )
        np.testing.assert_array_equal(loss, [0, 0, 0, np.nan])
        np.testing.assert_array_equal(grad.astype(float), [0, 0, 0, np.nan])
    loss = pyce.binary_cross_entropy(x[:2], [0, 1], pos_weight=0, reduction="none")
    np.testing.assert_array_equal(loss, [np.inf, 0])
    assert np.isnan(pyce.binary_cross_entropy(x[2:3], [np.nan], weight=0))


@by_dtype
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0,), (3, 0)], ids=str)
def test_bernoulli_shapes_and_dtypes(backend, dtype, shape):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=shape).astype(dtype), rng.random(shape).astype(dtype)
    result = np.float64 if dtype == np.float64 else np.float32
    for reduction in ("mean", "sum", "none"):
        expected = shape if reduction == "none" else ()
        loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction=reduction)
        assert loss.dtype == result
        assert loss.shape == expected
        assert grad.shape == shape
        assert grad.dtype == dtype
        np.testing.assert_array_equal(pyce.binary_cross_entropy(x, t, reduction=reduction), loss)
    if x.size == 0:
        assert np.isnan(pyce.binary_cross_entropy(x, t))
        assert pyce.binary_cross_entropy(x, t, reduction="sum") == 0


def test_bernoulli_weights_broadcast(backend):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 3)), rng.random((4, 3))
    for w_shape in ((), (3,), (4, 1), (1, 3), (4, 3)):
        for pw_shape in ((), (3,), (4, 1), (4, 3)):
            w, pw = rng.uniform(0.5, 2, w_shape), rng.uniform(0.5, 2, pw_shape)
            right = oracle.bernoulli(x, t, w, pw)
            exact, slope = right.loss, right.grad
            loss, grad = pyce.binary_cross_entropy_with_grad(
                x, t, weight=w, pos_weight=pw, reduction="none"
            )
            np.testing.assert_allclose(loss.ravel(), exact.hi, rtol=1e-14)
            np.testing.assert_allclose(grad.ravel(), slope.hi, rtol=1e-13, atol=1e-15)
            # The mean is over the elements, whatever the weights.
            mean = pyce.binary_cross_entropy(x, t, weight=w, pos_weight=pw)
            np.testing.assert_allclose(mean, exact.hi.mean(), rtol=1e-14)


@by_dtype
def test_bernoulli_layouts(backend, dtype):
    rng = np.random.default_rng(0)
    plain, t = rng.normal(size=(40, 30)).astype(dtype), rng.integers(0, 2, (40, 30))
    expected = pyce.binary_cross_entropy_with_grad(plain, t, reduction="none")
    big = np.zeros((80, 30), dtype)
    big[::2] = plain
    for x in (np.asfortranarray(plain), big[::2], plain[::-1].copy()[::-1]):
        for kind in (np.int64, np.bool_, np.float32, np.float64):
            got = pyce.binary_cross_entropy_with_grad(x, t.astype(kind), reduction="none")
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[1], expected[1])


# ---------------------------------------------------------------------------------------------
# Accuracy


def test_accuracy_counts(backend):
    x = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]], float)
    assert pyce.accuracy(x, [0, 1, 2, 0]) == 1.0
    assert pyce.accuracy(x, [0, 1, 2, 1]) == 0.75
    assert pyce.accuracy(x, [1, 2, 1, 2]) == 0.0
    assert pyce.accuracy(x, [1, 2, 1, 2], top_k=2) == 1.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=2) == 0.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=3) == 1.0
    assert pyce.accuracy(x, [2, 0, 0, 1], top_k=99) == 1.0
    assert pyce.accuracy(x.T, [0, 1, 2, 1], axis=0) == 0.75
    assert isinstance(pyce.accuracy(x, [0, 1, 2, 0]), float)


def test_accuracy_of_ties(backend):
    """The first of equals wins, as in np.argmax."""
    x = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [5.0, 5.0, 5.0]])
    for y in np.ndindex(3, 3, 3):
        expected = np.mean(np.argmax(x, axis=1) == y)
        assert pyce.accuracy(x, list(y)) == expected
        order = np.argsort(-x, axis=1, kind="stable")[:, :2]
        expected = np.mean((order == np.array(y)[:, None]).any(1))
        assert pyce.accuracy(x, list(y), top_k=2) == expected


@by_dtype
def test_accuracy_ignores_rows(backend, dtype):
    x = np.eye(4, dtype=dtype)
    assert pyce.accuracy(x, [0, 0, -100, 3]) == 2 / 3
    assert pyce.accuracy(x, [0, 0, 2, 3], ignore_index=0) == 1.0
    assert math.isnan(pyce.accuracy(x, [-100] * 4))
    assert math.isnan(pyce.accuracy(np.zeros((0, 4), dtype), np.zeros(0, int)))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8, bool, np.float16])
def test_accuracy_of_one_hot_targets(backend, kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4, 5)), rng.integers(0, 4, (6, 5))
    hot = np.moveaxis(np.eye(4)[y], -1, 1).astype(kind)
    for k in (1, 2):
        expected = pyce.accuracy(x, y, axis=1, top_k=k)
        assert pyce.accuracy(x, hot, axis=1, top_k=k) == expected
    assert pyce.accuracy(x, y, axis=1) == np.mean(np.argmax(x, axis=1) == y)


def test_accuracy_of_nan(backend):
    """A row that is NaN at its target is wrong; NaN elsewhere is not ahead of anything."""
    x = np.array([[np.nan, 1.0], [np.nan, 1.0], [0.0, 1.0]])
    assert pyce.accuracy(x, [0, 0, 1]) == 1 / 3


# ---------------------------------------------------------------------------------------------
# Choosing a backend


def others(name):
    return [other for other in pyce.backends() if other != name]


@pytest.fixture
def other(backend, monkeypatch):
    """The name of another backend than `backend`; a stand-in where there is no other."""
    if not others(backend.name):
        monkeypatch.setitem(_backends._loaded, "numba", types.SimpleNamespace(NAME="numba"))
    return others(backend.name)[0]


def test_backends_are_listed_fastest_first():
    order = ["c", "numba", "numpy"]
    listed = pyce.backends()
    assert listed == [name for name in order if name in listed]
    assert listed[-1] == "numpy"


def test_use_backend_nests(backend):
    assert pyce.get_backend() == backend.name
    for other in others(backend.name):
        with pyce.use_backend(other):
            assert pyce.get_backend() == other
            with pyce.use_backend(backend.name):
                assert pyce.get_backend() == backend.name
            assert pyce.get_backend() == other
            with pyce.use_backend("auto"):
                assert pyce.get_backend() in pyce.backends()
        assert pyce.get_backend() == backend.name


def test_use_backend_ends_with_an_error(backend):
    with pytest.raises(ZeroDivisionError), pyce.use_backend(pyce.backends()[-1]):
        1 / 0  # noqa: B018
    assert pyce.get_backend() == backend.name


def test_one_use_backend_in_itself(backend, other):
    """The same object, entered twice."""
    again = pyce.use_backend(other)
    with again:
        with again:
            assert pyce.get_backend() != backend.name
        assert pyce.get_backend() != backend.name
    assert pyce.get_backend() == backend.name


def test_set_backend():
    for name in pyce.backends():
        pyce.set_backend(name)
        assert pyce.get_backend() == name
        assert pyce.info()["backend"] == name
        for other in others(name):
            with pyce.use_backend(other):
                assert pyce.get_backend() == other
                pyce.set_backend(name)  # goes behind
                assert pyce.get_backend() == other
    pyce.set_backend("auto")
    assert pyce.get_backend() == pyce.backends()[0]


@pytest.mark.parametrize("name", ["c", "numba"])
def test_a_backend_that_is_not_available(monkeypatch, name):
    """Asked for, it raises with the reason and what there is; nothing takes its place."""
    monkeypatch.setattr(_backends, "_loaded", {})
    monkeypatch.setattr(_backends, "_broken", {name: "left out"})
    before = _backends._default
    for ask in (pyce.set_backend, lambda n: pyce.use_backend(n).__enter__()):
        with pytest.raises(ValueError, match=rf"{name}.*left out.*available: .*numpy"):
            ask(name)
        assert _backends._default == before
    monkeypatch.setenv("PYCE_BACKEND", name)
    pyce.set_backend("auto")
    with pytest.raises(ValueError, match="left out"):
        pyce.cross_entropy([[1.0, 2.0]], [0])
    assert name not in pyce.backends()


def test_auto_warns_without_c(monkeypatch):
    """The fastest that there is runs; that it is not C is said once."""
    monkeypatch.setattr(_backends, "_loaded", {})
    monkeypatch.setattr(_backends, "_broken", {"c": "left out", "numba": "left out"})
    monkeypatch.delenv("PYCE_BACKEND", raising=False)
    pyce.set_backend("auto")
    with pytest.warns(RuntimeWarning, match="left out") as caught:
        assert pyce.get_backend() == "numpy"
        pyce.cross_entropy([[1.0, 2.0]], [0])
    assert len(caught) == 1


def test_the_chosen_backend_is_the_one_that_runs(backend, monkeypatch):
    calls = []
    module = _backends.load(backend.name)
    real = module.forward_backward
    monkeypatch.setattr(module, "forward_backward", lambda p: calls.append(backend.name) or real(p))
    pyce.cross_entropy_with_grad(np.eye(3), [0, 1, 2])
    assert calls == [backend.name]


def test_use_backend_is_of_its_thread(backend, other):
    pyce.set_backend(backend.name)
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def elsewhere():
        with pyce.use_backend(other):
            seen.append(pyce.get_backend())
            inside.set()
            leave.wait(30)
            seen.append(pyce.get_backend())
        seen.append(pyce.get_backend())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert inside.wait(30)
    assert pyce.get_backend() == backend.name
    leave.set()
    thread.join()
    assert seen == [other, other, backend.name]


def test_use_backend_is_of_its_task(backend):
    names = pyce.backends()

    async def task(name):
        with pyce.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert pyce.get_backend() == name
        return pyce.get_backend()

    async def main():
        return await asyncio.gather(*(task(name) for name in names * 2))

    assert asyncio.run(main()) == [backend.name] * (2 * len(names))


def test_a_copied_context_carries_the_choice(backend, other):
    context = contextvars.copy_context()
    with pyce.use_backend(other):
        assert context.run(pyce.get_backend) == backend.name


# ---------------------------------------------------------------------------------------------
# Threads, info, environment, the command


def test_set_num_threads():
    pyce.set_num_threads(1)
    assert pyce.get_num_threads() == 1
    assert pyce.info()["threads"] == 1
    pyce.set_num_threads(2**20)
    assert 1 <= pyce.get_num_threads() <= 2**20
    pyce.set_num_threads(np.int32(1))
    assert pyce.get_num_threads() == 1


def test_threads_are_limited_by_the_process(monkeypatch):
    """By its affinity and its quota, of which a part counts as a processor."""
    from pyce import _threads

    pyce.set_num_threads(5)
    for processors, quota, expected in ((8, math.inf, 5), (3, math.inf, 3), (8, 1.5, 2), (1, 9, 1)):
        monkeypatch.setattr(
            _threads.os, "sched_getaffinity", lambda _, n=processors: range(n), raising=False
        )
        monkeypatch.setattr(_threads, "_quota_now", lambda q=quota: q)
        assert pyce.get_num_threads() == expected
    monkeypatch.delattr(_threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(_threads, "_quota_now", lambda: math.inf)
    assert pyce.get_num_threads() == 4


def test_info(backend):
    report = pyce.info()
    assert set(report) == {
        "version",
        "backend",
        "backends",
        "isas",
        "isa",
        "threads",
        "compiler",
    }
    assert report["version"] == pyce.__version__
    assert report["backend"] == backend.name
    assert list(report["backends"]) == ["c", "numba", "numpy"]
    assert [n for n, reason in report["backends"].items() if reason is None] == pyce.backends()
    assert report["threads"] == pyce.get_num_threads()
    if "c" in pyce.backends():
        assert report["isa"] in report["isas"]
        assert report["isas"][-1] == "scalar"
        assert report["compiler"]
    if backend.isa:
        assert report["isa"] == backend.isa
    json.dumps(report)


PRINT_BACKEND = "import pyce; print(pyce.get_backend())"
RUN = "import numpy as np, pyce; print(pyce.cross_entropy(np.eye(3), [0, 1, 2]))"


def test_backend_from_the_environment(backend, run_python):
    assert run_python("-c", PRINT_BACKEND, **backend.environment).stdout.split() == [backend.name]
    done = run_python("-c", "import pyce; print(pyce.info()['isa'])", **backend.environment)
    if backend.isa:
        assert done.stdout.split() == [backend.isa]
    # What the program asks for goes before the environment.
    code = f"import pyce; pyce.set_backend({backend.name!r}); print(pyce.get_backend())"
    done = run_python("-c", code, PYCE_BACKEND="numpy")
    assert done.stdout.split() == [backend.name]


def test_auto_from_the_environment(run_python):
    for value in ("auto", ""):
        done = run_python("-c", PRINT_BACKEND, PYCE_BACKEND=value)
        assert done.stdout.split() == [pyce.backends()[0]]


def test_unknown_backend_in_the_environment(run_python):
    done = run_python("-c", RUN, check=False, PYCE_BACKEND="cuda")
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError")
    for word in ("PYCE_BACKEND", "cuda", "auto", "c", "numba", "numpy"):
        assert word in error
    # Only using it fails, not importing.
    run_python("-c", "import pyce", PYCE_BACKEND="cuda")


def test_unknown_instruction_set_in_the_environment(c_backend, run_python):
    for variables in ({}, {"PYCE_BACKEND": "c"}):
        done = run_python("-c", RUN, check=False, PYCE_ISA="mmx", **variables)
        assert done.returncode
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("ValueError")
        assert "mmx" in error
        for isa in pyce.info()["isas"]:
            assert isa in error


def test_unknown_instruction_set_in_the_test_hook(c_backend):
    from pyce._backends import c

    with pytest.raises(ValueError, match="scalar") as caught:
        c.set_isa("mmx")
    assert "'mmx'" in str(caught.value)
    assert c.isa() == c_backend.isa


def test_number_of_threads_from_the_environment(run_python):
    code = "import pyce; print(pyce.get_num_threads())"
    assert run_python("-c", code, PYCE_NUM_THREADS="1").stdout.split() == ["1"]
    assert run_python("-c", code, OMP_NUM_THREADS="1").stdout.split() == ["1"]
    assert run_python("-c", code, OMP_NUM_THREADS="1,4").stdout.split() == ["1"]
    # What the program asks for goes before the environment.
    asked = "import pyce; pyce.set_num_threads(1); print(pyce.get_num_threads())"
    assert run_python("-c", asked, PYCE_NUM_THREADS="1000").stdout.split() == ["1"]
    both = run_python("-c", code, OMP_NUM_THREADS="1", PYCE_NUM_THREADS="1000")
    assert both.stdout == run_python("-c", code, PYCE_NUM_THREADS="1000").stdout


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "2x"])
def test_bad_number_of_threads_in_the_environment(run_python, value):
    code = "import pyce; print(pyce.get_num_threads())"
    done = run_python("-c", code, check=False, PYCE_NUM_THREADS=value)
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError")
    assert "PYCE_NUM_THREADS" in error
    assert value in error


def test_command(backend, run_python):
    text = run_python("-m", "pyce", **backend.environment).stdout
    assert text.startswith(f"pyce {pyce.__version__}\n")
    for name in ("c", "numba", "numpy"):
        assert f"backend {name}" in text
    lines = [line.split() for line in text.splitlines() if "in use" in line]
    assert [line[1] for line in lines] == [backend.name]
    if backend.isa:
        assert f"instructions   {backend.isa}" in text
    assert ("WITHOUT its C kernels" in text) == ("c" not in pyce.backends())


def test_command_as_json(run_python):
    report = json.loads(run_python("-m", "pyce", "--json").stdout)
    assert report["backend"] == pyce.backends()[0]
    assert report["version"] == pyce.__version__


def test_command_tells_what_is_wrong(run_python):
    done = run_python("-m", "pyce", check=False, PYCE_BACKEND="cuda")
    assert done.returncode == 2
    assert "cuda" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------
# Quotas of control groups


def group(root, path, **files):
    directory = root.joinpath(*path.strip("/").split("/")) if path != "/" else root
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def quota(tmp_path, membership):
    from pyce._threads import cgroup_quota

    (tmp_path / "membership").write_text(membership)
    return cgroup_quota(tmp_path / "membership", tmp_path / "fs")


def test_quota_of_version_2(tmp_path):
    root = tmp_path / "fs"
    group(root, "/a/b", cpu__max="max 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == math.inf
    group(root, "/a", cpu__max="250000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 2.5
    group(root, "/a/b", cpu__max="300000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 2.5
    group(root, "/a/b", cpu__max="50000 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 0.5
    assert quota(tmp_path, "0::/elsewhere\n") == math.inf


def test_quota_of_version_1(tmp_path):
    root = tmp_path / "fs" / "cpu"
    group(root, "/a/b", **{"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"})
    lines = "5:memory:/m\n4:cpu,cpuacct:/a/b\n"
    assert quota(tmp_path, lines) == math.inf
    group(root, "/a", **{"cpu__cfs_quota_us": "150000\n", "cpu__cfs_period_us": "100000\n"})
    assert quota(tmp_path, lines) == 1.5


def test_no_control_groups(tmp_path):
    from pyce._threads import cgroup_quota

    assert cgroup_quota(tmp_path / "none", tmp_path) == math.inf
    assert quota(tmp_path, "0::/a\n") == math.inf
