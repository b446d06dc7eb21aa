"""`pyce.dask.SoftmaxRegression` on a cluster of two processes: workers that end during a fit, data
larger than their memory, and what they send."""

import os
import signal
import time
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask
import dask.array as da
import distributed
from conftest import SANITIZED
from sklearn_cases import DATA

from pyce import sklearn as in_memory
from pyce.dask import SoftmaxRegression, _collection, _estimator

MEMORY = 400 * 2**20  # of a worker


@pytest.fixture(scope="module")
def client():
    if SANITIZED:
        pytest.skip("AddressSanitizer takes more memory than a worker may have, which would wait")
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": MEMORY}
    with (
        mock.patch.dict(os.environ),  # Dask sets what the workers shall have in this process, too
        distributed.LocalCluster(dashboard_address=":0", **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def spread(client):
    """Iris on both workers, and the solution in memory."""
    X, y = DATA["iris"]()
    theirs = in_memory.SoftmaxRegression(tol=1e-6).fit(X, y)
    return da.from_array(X, chunks=(15, -1)), da.from_array(y, chunks=15), theirs


def wait_for_both(client):
    """Until both workers run and their nannies know it, so that they restart them again."""
    client.wait_for_workers(2, timeout=300)
    deadline = time.monotonic() + 200
    for nanny in client.cluster.workers.values():
        while nanny.process is None or nanny.process.status.name != "running":
            assert time.monotonic() < deadline, nanny
            time.sleep(0.05)


def counting(path, limit=None):
    """A function that appends to a file when a block is computed, and once ends its process."""
    ended = path.with_suffix(".ended")

    def load(block):
        with open(path, "a", encoding="utf-8") as file:
            file.write("x")
        if limit and path.stat().st_size > limit and not ended.exists():
            ended.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    return load


def test_persisted_data_are_used_where_they_are(client, spread, tmp_path):
    X, y, theirs = spread
    path = tmp_path / "calls"
    X = X.map_blocks(counting(path), meta=np.empty((0, 0))).persist()
    distributed.wait(X)
    before = client.who_has(X)
    assert len({worker for workers in before.values() for worker in workers}) == 2
    model = SoftmaxRegression(tol=1e-6).fit(X, y)
    assert model.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-9)
    result = model.predict(X)
    np.testing.assert_array_equal(result.compute(), theirs.predict(X.compute()))
    assert float(model.score(X, y)) == theirs.score(X.compute(), y.compute())
    assert path.stat().st_size == X.npartitions
    assert client.who_has(X).keys() == before.keys()


def test_the_workers_keep_what_fits_into_their_memory(client, spread, tmp_path, monkeypatch):
    """Each partition is computed once. What fits depends on what the workers use already, so that
    the share of their limits is larger here.
    """
    X, y, _ = spread
    monkeypatch.setattr(_collection, "_SHARE", 10.0)
    assert 2 * MEMORY < _collection.room() < 20 * MEMORY
    path = tmp_path / "calls"
    X = X.map_blocks(counting(path), meta=np.empty((0, 0)))
    SoftmaxRegression(tol=1e-1).fit(X, y)
    assert path.stat().st_size == X.npartitions


def test_the_bytes_do_not_depend_on_the_scheduler(client, spread):
    X, y, _ = spread
    on_cluster = SoftmaxRegression().fit(X, y)
    with dask.config.set(scheduler="synchronous"):
        here = SoftmaxRegression().fit(X, y)
    assert on_cluster.coef_.tobytes() == here.coef_.tobytes()


def test_nothing_stays_behind(client, spread):
    X, y, _ = spread
    SoftmaxRegression().fit(X, y)
    deadline = time.monotonic() + 200
    while any(client.has_what().values()):
        assert time.monotonic() < deadline, client.has_what()
        time.sleep(0.05)


def test_a_worker_that_is_lost(client, spread, monkeypatch):
    """Dask computes its partitions again."""
    X, y, theirs = spread
    pids = client.run(os.getpid)
    seen = []

    class Killer(_estimator.Printer):
        def __call__(self, iteration, *values):
            seen.append(iteration)
            if iteration == 3:
                os.kill(next(iter(pids.values())), signal.SIGKILL)

    monkeypatch.setattr(_estimator, "Printer", Killer)
    model = SoftmaxRegression(tol=1e-6, persist=True).fit(X, y)
    assert len(seen) == theirs.n_iter_ == model.n_iter_
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-9)
    wait_for_both(client)
    assert client.run(os.getpid) != pids


def test_a_worker_that_is_lost_in_the_middle_of_an_evaluation(client, spread, tmp_path):
    X, y, theirs = spread
    path = tmp_path / "calls"
    X = X.map_blocks(counting(path, limit=60), meta=np.empty((0, 0)))
    model = SoftmaxRegression(tol=1e-6, persist=False).fit(X, y)
    assert path.with_suffix(".ended").exists()
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-9)
    wait_for_both(client)


def test_errors_name_the_partition(client, spread):
    X, y, _ = spread
    X = X.map_blocks(
        lambda block, block_id: np.where(block_id[0] > 3, np.nan, block), meta=np.empty((0, 0))
    )
    with pytest.raises(ValueError, match=r"^partition 4: Input X contains NaN"):
        SoftmaxRegression().fit(X, y)


def test_data_larger_than_the_memory(client):
    """Each block repeats 1000 rows 40 times, so a fit of these rows has the same solution."""
    features, blocks, times = 100, 32, 40

    def rows_of(block):
        return np.random.default_rng(0).normal(size=(1000, features)) + block / blocks

    def generated(block_id):
        return np.tile(rows_of(block_id[0]), (times, 1))

    chunks = ((1000 * times,) * blocks, (features,))
    X = da.map_blocks(generated, chunks=chunks, dtype=float, meta=np.empty((0, 0)))
    assert X.nbytes > 1.2 * 2 * MEMORY
    assert X.nbytes > _collection.room()
    y = (X[:, 0] + X[:, 1] > 1).astype(int) + (X[:, 2] > 0.5)
    pids = client.run(os.getpid)
    options = {"max_iter": 1, "tol": 0.0}
    with pytest.warns(UserWarning, match="1 iteration"):
        model = SoftmaxRegression(**options).fit(X, y)
    assert client.run(os.getpid) == pids  # no worker was restarted for its memory
    rows = np.concatenate([rows_of(block) for block in range(blocks)])
    labels = (rows[:, 0] + rows[:, 1] > 1).astype(int) + (rows[:, 2] > 0.5)
    with pytest.warns(UserWarning, match="1 iteration"):
        theirs = in_memory.SoftmaxRegression(C=times, **options).fit(rows, labels)
    np.testing.assert_allclose(model.coef_, theirs.coef_, rtol=1e-6, atol=1e-9)


def test_large_coefficients_cause_no_warning(client, recwarn):
    """Dask warns of graphs of more than 10 MB; the coefficients have 12 MB."""
    X = da.random.default_rng(0).normal(size=(60, 30_000), chunks=(30, -1))
    SoftmaxRegression(tol=10.0).fit(X, np.arange(60) % 50)
    assert not list(recwarn)


def test_threads_in_this_process():
    """A worker with several threads runs as many tasks, each on one thread."""
    X, y = DATA["digits"]()
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        model = SoftmaxRegression().fit(da.from_array(X, chunks=(400, -1)), y)
    theirs = in_memory.SoftmaxRegression().fit(X, y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-9)
