"""`SoftmaxRegression`: blocks of rows, the threads that share them, and memory."""

import os
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pyce

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.exceptions import ConvergenceWarning
from sklearn_cases import DATA, gradient_at, synthetic, weights_of
from threadpoolctl import threadpool_info, threadpool_limits

from pyce.sklearn import SoftmaxRegression, _lbfgs, _objective, _team


@pytest.fixture(autouse=True)
def few_blas_threads():
    """BLAS threads would wait for each other in small products on busy machines."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(params=pyce.backends())
def each(request):
    """Every backend, C on one instruction set, since all give the same bytes."""
    with pyce.use_backend(request.param):
        yield request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, on four threads, for data of any size."""
    monkeypatch.setattr(_objective, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(_objective, "_LEAST_ROWS", 31)
    monkeypatch.setattr(_objective, "_WORTH", 1)
    monkeypatch.setattr(_objective, "_ROWS_WORTH", 20)
    monkeypatch.setattr(_lbfgs, "_WORTH", 20)
    monkeypatch.setattr(pyce, "get_num_threads", lambda: 4)


def limits():
    """The thread limits of BLAS, and of pyce if threadpoolctl finds it."""
    libraries = (lib for lib in threadpool_info() if lib["user_api"] in ("blas", "pyce"))
    return [lib["num_threads"] for lib in libraries]


@pytest.mark.parametrize("data", ["digits", "breast cancer", "iris"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_blocks_and_threads_change_nothing(small_blocks, data, dtype, fit_intercept):
    X, y = DATA[data]()
    X, weight = X.astype(dtype), weights_of(y, "samples")
    columns = (len(np.unique(y)),) if data != "breast cancer" else ()
    target = y if columns else y.astype(dtype)
    point = np.random.default_rng(2).normal(size=(X.shape[1] + fit_intercept, *columns)).ravel()
    results = []
    for threads in (1, 2, 4):
        with ThreadPoolExecutor(3) as executor:
            objective = _objective.Objective(
                X,
                target,
                weight=weight,
                total=weight.sum(),
                columns=columns,
                fit_intercept=fit_intercept,
                team=_team.Team(threads, executor),
            )
            objective.ridge = 0.01
            assert len(objective._parts) == threads
            assert sum(len(s._blocks) for s in objective._parts) > len(X) / 32
            gradients = np.empty((2, len(point)))
            values = [objective(point, gradient) for gradient in gradients]
            results.append((values[0], gradients[0]))
            again = values[1], gradients[1]
        assert again[0] == results[-1][0]
        np.testing.assert_array_equal(again[1], results[-1][1])
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    for loss, gradient in results[1:]:
        np.testing.assert_allclose(loss, results[0][0], rtol=tolerance)
        np.testing.assert_allclose(gradient, results[0][1], atol=10 * tolerance)


@pytest.mark.parametrize("data", ["digits", "breast cancer"])
def test_fits_in_blocks_on_threads(small_blocks, each, data):
    X, y = DATA[data]()
    seen = set()
    threadpool_limits(2, "blas")  # the fixture of this test restores it
    evaluate = _objective._Rows.evaluate

    def watched(part, parameters):
        seen.add((threading.get_ident(), pyce.get_backend()))
        assert set(limits()) <= {1}
        return evaluate(part, parameters)

    before, threads = limits(), set(threading.enumerate())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_objective._Rows, "evaluate", watched)
        model = SoftmaxRegression(tol=1e-3).fit(X, y)
    assert len(seen) > 1 and {name for _, name in seen} == {each}
    assert gradient_at(model, X, y) <= 1.01e-3
    assert limits() == before
    started = set(threading.enumerate()) - threads
    assert not any("ThreadPoolExecutor" in t.name for t in started)


def test_fits_at_the_same_time(small_blocks):
    """One of them uses threads; all are correct, and the limits of BLAS are restored."""
    X, y = DATA["digits"]()
    alone = SoftmaxRegression().fit(X, y)
    before = limits()
    with ThreadPoolExecutor(4) as executor:
        models = list(executor.map(lambda _: SoftmaxRegression().fit(X, y), range(8)))
    for model in models:
        np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), atol=1e-6)
    assert limits() == before
    assert not _team._alone.locked()


FORK = """
import os, signal, threading
import pyce
from pyce.sklearn import _team
from threadpoolctl import threadpool_info, threadpool_limits

def limits():
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

pyce.get_num_threads = lambda: 2
before, fits, ends = limits(), threading.Event(), threading.Event()

def fit():
    with _team.team():
        fits.set()
        ends.wait()

def forked():
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        free = limits()
        with _team.team() as team:
            pass
        os._exit(not (free == limits() == limits_then and team.threads == 2))
    assert os.waitpid(pid, 0)[1] == 0

other = threading.Thread(target=fit, daemon=True)
other.start()
fits.wait()
assert limits() == [1] * len(before)
limits_then = before
forked()
ends.set()
other.join()
# The limits that the last fit saved are not restored by a fork after its end.
threadpool_limits(1, "blas")
limits_then = limits()
forked()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_fork_is_free_of_the_fits_of_others(run_python):
    """A thread that used the threads during a fork does not exist in the child to release them."""
    run_python("-c", FORK, OPENBLAS_NUM_THREADS="2")


def test_errors_leave_the_threads_free(small_blocks, monkeypatch):
    X, y = DATA["iris"]()

    def fails(part, parameters):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_objective._Rows, "evaluate", fails)
        with pytest.raises(MemoryError):
            SoftmaxRegression().fit(X, y)
    assert not _team._alone.locked()
    assert SoftmaxRegression().fit(X, y).score(X, y) > 0.9


def blas():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_blas_is_limited_during_a_fit(monkeypatch):
    """In every fit that runs alone; another one at the same time has no threads."""
    monkeypatch.setattr(pyce, "get_num_threads", lambda: 4)
    threadpool_limits(2, "blas")  # the fixture of this test restores it
    before = blas()
    with _team.team() as team:
        assert team.threads == 4
        assert blas() == {1}
        with _team.team() as other:
            assert other.threads == 1
    assert blas() == before


@pytest.mark.parametrize(
    ("rows", "features", "threads"),
    [(1797, 64, 1), (1500, 10**4, 4), (90, 10**6, 2), (200_000, 50, 4)],
)
def test_small_data_stays_on_the_caller(rows, features, threads):
    """A thread has enough multiplications, and enough rows for the gradient that it adds."""
    X = np.broadcast_to(np.zeros(features), (rows, features))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_objective, "_Rows", lambda X, target, weight, ranges, *_: ranges)
        objective = _objective.Objective(
            X,
            np.zeros(rows),
            weight=None,
            total=rows,
            columns=(10,),
            fit_intercept=True,
            team=_team.Team(4),
        )
    assert len(objective._parts) == threads
    assert objective._parts[0][0][0] == 0 and objective._parts[-1][-1][1] == rows


def test_nothing_of_the_size_of_the_scores():
    X, y = synthetic(40_000, 5, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        SoftmaxRegression(max_iter=2).fit(X[:2000], y[:2000])
        tracemalloc.start()
        try:
            SoftmaxRegression(max_iter=5).fit(X, y)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < X[:, :1].nbytes * 40
