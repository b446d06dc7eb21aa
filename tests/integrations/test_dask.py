"""`pyce.dask.SoftmaxRegression` without a cluster: the solutions of `pyce.sklearn` for any
partitions, the checks of scikit-learn on chunked data, lazy predictions and errors."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask
import dask.array as da
from dask_cases import blocks_of, chunked
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_cases import DATA, gradient_at, synthetic, weights_of
from threadpoolctl import threadpool_info, threadpool_limits

import pyce
from pyce import sklearn as in_memory
from pyce._extras import advice
from pyce.dask import SoftmaxRegression, _collection, _objective, _partition


@pytest.fixture(autouse=True)
def on_this_thread():
    with dask.config.set(scheduler="synchronous"), threadpool_limits(1, "blas"):
        yield


quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# ---------------------------------------------------------------------------------------------
# scikit-learn's conventions


class Chunked(SoftmaxRegression):
    """Makes Dask arrays of three chunks of the NumPy arrays that scikit-learn's checks use."""

    def fit(self, X, y, sample_weight=None):
        # What scikit-learn requires of one array is checked by `validate_data`, in memory.
        if isinstance(X, np.ndarray) and X.ndim == 2 and X.size and X.dtype != object:
            y = None if y is None else np.asarray(y)
            if y is not None and y.shape == (len(X),):
                X = da.from_array(X, chunks=(-(-len(X) // 3), -1))
        return super().fit(X, y, sample_weight)


@quiet
@parametrize_with_checks([Chunked()])
def test_conventions(estimator, check):
    check(estimator)


# ---------------------------------------------------------------------------------------------
# The solution

# Sizes of partitions, of 150 samples.
CUTS = {
    "one": (150,),
    "even": (50, 50, 50),
    "one row": (1, 1, 147, 1),
    "empty": (0, 70, 0, 0, 80, 0),
    "many": (7,) * 21 + (3,),
}
OPTIONS = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "balanced": {"class_weight": "balanced"},
    "class weights": {"class_weight": {0: 3.0, 1: 0.2}},
    "elastic net": {"l1_ratio": 0.5, "C": 0.3},
    "no penalty": {"C": np.inf, "tol": 1e-3},
}


def same_solution(ours, theirs, tolerance=1e-5):
    for name in ("coef_", "intercept_", "classes_", "n_iter_", "n_features_in_"):
        mine, other = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
        assert mine.shape == other.shape and mine.dtype == other.dtype, name
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=tolerance * scale)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=tolerance * scale)


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "unknown"])
@pytest.mark.parametrize("cut", CUTS)
def test_any_partitions_give_the_solution(cut, unknown):
    """The iris come in the order of their classes, so a partition may lack some of them."""
    X, y = DATA["iris"]()
    weight = weights_of(y, "samples")
    theirs = in_memory.SoftmaxRegression(tol=1e-7, max_iter=1000).fit(X, y, weight)
    cut = CUTS[cut]
    ours = SoftmaxRegression(tol=1e-7, max_iter=1000)
    ours.fit(chunked(X, cut, unknown), chunked(y, cut, unknown), chunked(weight, cut, unknown))
    same_solution(ours, theirs)
    assert gradient_at(ours, X, y, weight) <= 1.01e-7


@pytest.mark.parametrize("weights", ["none", "samples"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", ["iris", "breast cancer"])
def test_options(data, options, weights):
    X, y = DATA[data]()
    weight = weights_of(y, weights)
    options = {"tol": 1e-7, "max_iter": 1000, **OPTIONS[options]}
    theirs = in_memory.SoftmaxRegression(**options).fit(X, y, weight)
    cut = (len(y) // 3, len(y) - len(y) // 3)
    ours = SoftmaxRegression(**options).fit(
        chunked(X, cut), chunked(y, cut), None if weight is None else chunked(weight, cut)
    )
    same_solution(ours, theirs, 1e-3)
    assert gradient_at(ours, X, y, weight) <= 1.01 * ours.tol


def test_the_way_to_the_solution_is_the_same():
    X, y = DATA["digits"]()
    theirs = in_memory.SoftmaxRegression().fit(X, y)
    ours = SoftmaxRegression().fit(da.from_array(X, chunks=(100, 64)), y)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-9)


def test_the_order_in_which_tasks_end_changes_nothing(monkeypatch):
    """Also with more partitions than a task adds up."""
    X, y = DATA["digits"]()
    X = da.from_array(X, chunks=(45, 64))
    assert X.numblocks[0] > 2 * _objective._GROUP
    alone = SoftmaxRegression(tol=1e-2).fit(X, y)
    with dask.config.set(scheduler="threads", num_workers=4):
        threads = SoftmaxRegression(tol=1e-2).fit(X, y)
    assert alone.coef_.tobytes() == threads.coef_.tobytes()


@pytest.mark.parametrize("data", ["iris", "breast cancer"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_float32_stays_float32(data, form):
    X, y = DATA[data]()
    X = X.astype(np.float32)
    make = sparse.csr_matrix if form == "sparse" else np.asarray
    ours = SoftmaxRegression().fit(
        da.from_array(X, chunks=(40, -1)).map_blocks(make, dtype=X.dtype), y
    )
    theirs = in_memory.SoftmaxRegression().fit(make(X), y)
    same_solution(ours, theirs, 1e-3)
    assert ours.coef_.dtype == np.float32
    narrow, wide = (
        da.from_array(X, chunks=(40, -1)),
        da.from_array(X.astype(float), chunks=(40, -1)),
    )
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        assert getattr(ours, method)(narrow).dtype == np.float32
        assert getattr(ours, method)(wide).dtype == np.float64
        assert getattr(ours, method)(wide).compute().dtype == np.float64


def test_float32_reaches_the_tolerance_in_spite_of_rounding():
    """Rounding of scores in float32 is larger than the decreases that are left for the solver."""
    X, y = synthetic(100, 3, 3)
    X = (np.column_stack([X, np.zeros(100)]) + np.array([10, 30, 0, 5])).astype(np.float32)
    options = {"C": 100.0, "tol": 1e-6, "max_iter": 20_000}
    model = SoftmaxRegression(**options).fit(chunked(X, (40, 60)), y)
    assert model.coef_.dtype == np.float32
    X = X.astype(float)
    wide = in_memory.SoftmaxRegression(**options).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), wide.predict_proba(X), atol=2e-3)


@pytest.mark.parametrize("persist", [True, False, "auto"])
@pytest.mark.parametrize("form", ["float64", "int16", "both", "strided", "read-only", "coo"])
def test_blocks_of_other_forms(form, persist):
    """Blocks that an evaluation does not read as they are, or not of the dtype that is stated."""
    X, y = DATA["iris"]()
    X = (4 * X).round()

    def convert(block, block_id):
        if form == "strided":
            return np.repeat(block, 2, axis=1)[:, ::2]
        if form == "read-only":
            block = block.copy()
            block.flags.writeable = False
        if form == "coo":
            return sparse.coo_matrix(block)
        if form == "both":
            return block.astype([np.float32, np.float64][block_id[0] % 2])
        return block if form == "read-only" else block.astype(form)

    blocks = chunked(X, (40, 60, 50)).map_blocks(convert, dtype=X.dtype)
    ours = SoftmaxRegression(persist=persist).fit(blocks, chunked(y, (40, 60, 50)))
    same_solution(ours, in_memory.SoftmaxRegression().fit(X, y))


def test_features_are_computed_once_or_for_each_evaluation():
    X, y = DATA["iris"]()
    loads = []

    def load(block):
        loads.append(len(block))
        return block

    calls = {}
    for persist in (True, False):
        loads.clear()
        blocks = chunked(X, (100, 50)).map_blocks(load, meta=np.empty((0, 0)))
        model = SoftmaxRegression(persist=persist, tol=1e-2).fit(blocks, y)
        calls[persist] = len(loads)
    assert calls[True] == 2
    assert calls[False] >= 2 * (2 + model.n_iter_[0])  # with the check, and the start


def test_auto_persists_what_fits(monkeypatch, capsys):
    X, y = DATA["iris"]()
    for room, words in ((X.nbytes, "stay in memory"), (X.nbytes - 1, "computed again")):
        monkeypatch.setattr(_collection, "room", lambda room=room: room)
        for unknown, cut in ((False, (100, 50)), (True, (150,))):
            SoftmaxRegression(verbose=1).fit(chunked(X, cut, unknown), chunked(y, cut, unknown))
            assert words in capsys.readouterr().out
    monkeypatch.undo()
    with dask.config.set(scheduler="processes"):
        assert _collection.room() == 0
        assert not _collection.runs_here()
    assert _collection.runs_here()
    monkeypatch.setattr(_collection, "MEMORY_LIMIT", 2**50)
    used = 2**49 - _collection.room()
    assert 2**20 < used < 2**46


def test_half_of_the_memory_of_each_worker_may_be_filled(monkeypatch):
    class Cluster:
        def __init__(self, **workers):
            self.workers = workers

        def scheduler_info(self):
            return {"workers": self.workers}

    def room(**workers):
        monkeypatch.setattr(_collection, "_scheduler", lambda: (Cluster(**workers), False))
        return _collection.room()

    some = {"memory_limit": 1000, "metrics": {"memory": 100}}
    full = {"memory_limit": 600, "metrics": {"memory": 301}}
    new = {"memory_limit": 81, "metrics": {}}
    assert room() == 0
    assert room(a=some) == 400
    assert room(a=some, b=full, c=new, d={"memory_limit": 2}) == 400 + 0 + 40.5 + 1
    for unlimited in (0, None):
        assert room(a=full, b={"memory_limit": unlimited, "metrics": {"memory": 5}}) == np.inf


def test_warm_start():
    X, y = DATA["iris"]()
    X = da.from_array(X, chunks=(40, -1))
    model = SoftmaxRegression(warm_start=True).fit(X, y)
    cold = model.n_iter_[0]
    assert model.fit(X, y).n_iter_[0] == 0
    assert model.fit(X.compute(), y).n_iter_[0] == 0
    assert 0 < model.set_params(C=1.1).fit(X, y).n_iter_[0] < cold
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(X[:, :2], y)


def test_progress_and_warnings(capsys):
    X, y = DATA["digits"]()
    with pytest.warns(ConvergenceWarning, match="3 iterations") as caught:
        SoftmaxRegression(max_iter=3, verbose=2).fit(da.from_array(X, chunks=(900, -1)), y)
    assert [one.filename for one in caught] == [__file__]  # the line that calls `fit`
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == (
        "2 partitions with 1797 samples of 64 features and 10 classes; the features, "
        "898.50 kiB, stay in memory"
    )
    assert [line.partition(":")[0] for line in lines] == [
        f"iteration {i} of at most 3" for i in (1, 2, 3)
    ]


# ---------------------------------------------------------------------------------------------
# Labels, chunks, dataframes

LABELS = {
    "strings": np.array(["setosa", "versicolor", "a name that is longer than others"]),
    "objects": np.array(["b", "c", "a"], object),
    "negative": np.array([-5, 100, 3]),
    "unsigned": np.array([0, 200, 7], np.uint8),
    "floats": np.array([0.0, 2.0, 1.0]),
    "booleans": np.array([False, True, True]),
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels(labels):
    X, y = DATA["iris"]()
    y = LABELS[labels][y]
    theirs = in_memory.SoftmaxRegression().fit(X, y)
    parts = [y[:50], y[50:]]
    if labels == "strings":
        parts[0] = parts[0].astype("U6")  # those of the array have 31 characters
    ours = SoftmaxRegression().fit(chunked(X, (50, 100)), blocks_of(parts))
    assert ours.classes_.dtype == theirs.classes_.dtype
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    predicted = ours.predict(chunked(X, (30, 120)))
    assert predicted.dtype == theirs.classes_.dtype
    np.testing.assert_array_equal(predicted.compute(), theirs.predict(X))
    assert float(ours.score(chunked(X, (50, 100)), blocks_of(parts))) == theirs.score(X, y)


def test_many_classes_cause_no_warning():
    X = np.random.default_rng(0).normal(size=(60, 2))
    X, y = da.from_array(X, (30, 2)), da.from_array(np.arange(60) % 30, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(SoftmaxRegression(C=0.01).fit(X, y).classes_) == 30


def test_chunks_along_the_features_are_joined():
    X, y = DATA["breast cancer"]()
    theirs = in_memory.SoftmaxRegression().fit(X, y)
    blocks = da.from_array(X, chunks=(200, 7))
    ours = SoftmaxRegression().fit(blocks, y)
    same_solution(ours, theirs)
    np.testing.assert_array_equal(ours.predict(blocks).compute(), theirs.predict(X))
    assert float(ours.score(blocks, y)) == theirs.score(X, y)


def test_labels_and_weights_are_split_like_the_features():
    X, y = DATA["iris"]()
    weight = weights_of(y, "samples")
    theirs = in_memory.SoftmaxRegression().fit(X, y, weight)
    for of_y in (y, y.tolist(), da.from_array(y, chunks=7), chunked(y, (0, 150))):
        for X_blocks in (da.from_array(X, chunks=(60, 4)), chunked(X, (0, 90, 0, 60))):
            same_solution(SoftmaxRegression().fit(X_blocks, of_y, weight.tolist()), theirs)
    equal = SoftmaxRegression().fit(da.from_array(X, chunks=(60, 4)), y, 2.0)
    same_solution(equal, in_memory.SoftmaxRegression().fit(X, y, 2.0))


@pytest.mark.parametrize("kind", ["float64", "float32", "Int64", "category", "string", "bool"])
def test_dataframes(kind):
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    X, y = DATA["iris"]()
    frame = pd.DataFrame((4 * X).round(), columns=["a", "b", "c", "d"])
    names = pd.Series(np.array(["setosa", "versicolor", "virginica"])[y], name="species")
    if kind == "category":
        names = names.astype("category")
        frame["a"] = frame["a"].astype("category")  # of numbers
    elif kind == "string":
        names = names.astype("string")
    elif kind == "bool":
        frame["a"] = frame["a"] > 0
    else:
        frame = frame.astype(kind)
    whole = dd.from_pandas(frame.assign(species=names), npartitions=4)
    some = whole[whole["b"].astype(float) > -3]  # sizes of partitions are unknown
    known = frame["b"].astype(float) > -3
    theirs = in_memory.SoftmaxRegression().fit(frame[known], names[known].astype(object))
    data, labels = some[["a", "b", "c", "d"]], some["species"]
    ours = SoftmaxRegression().fit(data, labels)
    same_solution(ours, theirs, 1e-3)
    assert ours.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        result, other = getattr(ours, method)(data), getattr(theirs, method)(frame[known])
        assert isinstance(result, da.Array) and result.dtype == other.dtype
        computed = result.compute()
        if method == "predict":
            np.testing.assert_array_equal(computed, other)
        else:
            np.testing.assert_allclose(computed, other, atol=1e-2)
    assert float(ours.score(data, labels)) == theirs.score(
        frame[known], names[known].astype(object)
    )
    with pytest.raises(ValueError, match="feature names"):
        ours.predict(data[["b", "a", "c", "d"]])
    arrays = SoftmaxRegression().fit(
        data.astype(float).to_dask_array(), labels.astype(object).to_dask_array()
    )
    assert arrays.coef_.shape == (3, 4) and not hasattr(arrays, "feature_names_in_")


# ---------------------------------------------------------------------------------------------
# Predictions


@pytest.mark.parametrize("data", ["iris", "breast cancer"])
def test_predictions_are_lazy(data):
    X, y = DATA[data]()
    model = SoftmaxRegression().fit(X, y)
    cut = (0, 1, 99, 0, len(y) - 100)
    for unknown in (False, True):
        blocks = chunked(X, cut, unknown)
        lazy = {}
        for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
            lazy[method] = getattr(model, method)(blocks)
            assert isinstance(lazy[method], da.Array)
            assert lazy[method].ndim == getattr(model, method)(X).ndim
        score = model.score(blocks, chunked(y, cut, unknown))
        assert isinstance(score, da.Array) and score.shape == ()
        expected = {method: getattr(model, method)(X) for method in lazy}
        expected_score = model.score(X, y)
        model.fit(-X, y)  # the predictions are those of the earlier model
        for method, result in lazy.items():
            if method == "predict":
                np.testing.assert_array_equal(result.compute(), expected[method])
            else:
                np.testing.assert_allclose(result.compute(), expected[method], rtol=1e-12)
        assert float(score) == expected_score
        model.fit(X, y)
    half = model.predict(chunked(X, cut))[: len(y) // 2]
    np.testing.assert_array_equal(half.compute(), model.predict(X)[: len(y) // 2])


def test_the_score_with_weights():
    X, y = DATA["iris"]()
    weight = weights_of(y, "samples")
    model = SoftmaxRegression(max_iter=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    blocks = da.from_array(X, chunks=(40, 4))
    expected = model.score(X, y, weight)
    assert 0.5 < expected < 1
    assert float(model.score(blocks, y, weight)) == pytest.approx(expected, rel=1e-14)
    with pytest.raises(ValueError, match=r"partition 2: .*inconsistent"):
        model.score(chunked(X, (40, 60, 50), True), chunked(y, (40, 60, 1), True)).compute()


def test_before_fitting():
    X = da.zeros((4, 1), chunks=2)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(SoftmaxRegression(), method)(X)
    with pytest.raises(NotFittedError):
        SoftmaxRegression().score(X, [0, 1, 0, 1])


def test_copies():
    X, y = DATA["iris"]()
    model = SoftmaxRegression(C=2.0, persist=False).fit(da.from_array(X, chunks=(40, 4)), y)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    fresh = clone(model)
    assert fresh.get_params() == model.get_params() and not hasattr(fresh, "coef_")


def test_data_in_memory_are_fitted_in_memory():
    X, y = DATA["iris"]()
    ours, theirs = SoftmaxRegression().fit(X, y), in_memory.SoftmaxRegression().fit(X, y)
    assert ours.coef_.tobytes() == theirs.coef_.tobytes()
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.score(X, y) == theirs.score(X, y)


# ---------------------------------------------------------------------------------------------
# Threads


def test_a_task_uses_one_thread(monkeypatch):
    """Of pyce and of BLAS, whose limits end with the fit."""
    threads = set()
    make = _partition.Objective

    def watched(*arguments, **options):
        blas = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
        threads.add((pyce.get_num_threads(), *blas))
        return make(*arguments, **options)

    monkeypatch.setattr(_partition, "Objective", watched)
    X, y = DATA["digits"]()
    with threadpool_limits(2, "blas"), dask.config.set(scheduler="threads", num_workers=4):
        before = threadpool_info()
        SoftmaxRegression(tol=1e-1).fit(da.from_array(X, chunks=(100, -1)), y)
        assert threadpool_info() == before
    assert threads == {(1, 1)}


def test_a_task_of_predictions_uses_one_thread(many_processors):
    threads = set()

    class Watched(SoftmaxRegression):
        def decision_function(self, X):
            if isinstance(X, np.ndarray):
                threads.add(pyce.get_num_threads())
            return super().decision_function(X)

    X, y = DATA["iris"]()
    model = Watched(tol=1e-1).fit(X, y)
    assert pyce.get_num_threads() > 1
    blocks = da.from_array(X, chunks=(50, 4))
    for result in (model.predict(blocks), model.predict_proba(blocks), model.score(blocks, y)):
        threads.clear()
        result.compute()
        assert threads == {1}


# ---------------------------------------------------------------------------------------------
# Errors

X6, Y6 = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C must be .* got 0"),
        ({"l1_ratio": 1.1}, "l1_ratio must be .* got 1.1"),
        ({"tol": -1e-9}, "tol must be .* got -1e-09"),
        ({"max_iter": -1}, "max_iter must be .* got -1"),
        ({"verbose": -1}, "verbose must be .* got -1"),
        ({"fit_intercept": 1}, "fit_intercept must be .* got 1"),
        ({"warm_start": "no"}, "warm_start must be .* got 'no'"),
        ({"class_weight": "even"}, "class_weight must be .* got 'even'"),
        ({"class_weight": {7: 1.0, 1: 2.0}}, "not in class_weight"),
        ({"persist": "no"}, "persist must be .* got 'no'"),
        ({"persist": 1}, "persist must be .* got 1"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(chunked(X6, (3, 3)), Y6)


def changed(where, value):
    X = X6.copy()
    X[where] = value
    return chunked(X, (2, 2, 2))


def weights(*values):
    return chunked(np.array(values, float), (2, 2, 2))


@pytest.mark.parametrize(
    ("X", "y", "sample_weight", "message"),
    [
        (changed(3, np.nan), Y6, None, "^partition 1: Input X contains NaN"),
        (changed(5, np.inf), Y6, None, "^partition 2: Input X contains infinity"),
        (changed((), 1e300).astype("f4"), Y6, None, "^partition 0: Input X contains infinity"),
        (changed(0, 0) + 1j, Y6, None, "^partition 0: Complex"),
        (changed(0, 0).astype("U9"), Y6 * 0, None, "only one class: 0$"),
        (changed(0, 0).astype("U1").map_blocks(lambda x: np.char.add(x, "x")), Y6, None, "float"),
        (chunked(np.ma.masked_equal(X6, 5.0), (2, 4)), Y6, None, "^partition 1: X has masked"),
        (chunked(X6, (2, 4)), Y6 / 2 + 0.1, None, "^partition 0: .*continuous"),
        (chunked(X6, (2, 4)), [0.0, 1.0, 2.0, np.nan, 1.0, 2.0], None, "^partition 1: .*NaN"),
        (chunked(X6, (2, 4)), Y6 * 0, None, "only one class: 0$"),
        (chunked(X6, (2, 4)), None, None, "requires y"),
        (chunked(X6, (2, 4)), Y6[:5], None, "X and y have inconsistent .* 6 and 5"),
        (chunked(X6, (2, 4)), chunked(Y6, (2, 3)), None, "inconsistent .* 6 and 5"),
        (chunked(X6, (2, 4)), Y6[:, None], None, "y must have one dimension, got 2"),
        (chunked(X6, (2, 4)), dask.delayed(Y6), None, "y must be .* got Delayed"),
        (chunked(X6, (2, 4), True), Y6, None, "unknown, so y must be .* got ndarray"),
        (chunked(X6, (2, 4), True), chunked(Y6, (6,), True), None, "2 partitions and y has 1"),
        (chunked(X6, (2, 4), True), chunked(Y6, (3, 3), True), None, r"^partition 0: .*\[2, 3\]"),
        (chunked(X6, (2, 4)), Y6, Y6[:5], "X and sample_weight have inconsistent"),
        (
            chunked(X6, (2, 2, 2)),
            Y6,
            weights(1, 1, np.nan, 1, 1, 1),
            "^partition 1: .*sample_weight",
        ),
        (chunked(X6, (2, 2, 2)), Y6, weights(0, 0, 0, 0, 0, 0), "add up .* got 0.0"),
        (chunked(X6, (2, 2, 2)), Y6, weights(0, 0, -1, 0, 0, 0), "add up .* got -1.0"),
        (chunked(X6[:, 0], (2, 4)), Y6, None, "Expected 2D array for X, got 1D"),
        (dask.delayed(X6), Y6, None, "X must be .* got Delayed"),
        (X6, da.from_array(Y6, chunks=3), None, "y is a Dask collection, but X is not"),
        (chunked(X6, (2, 4))[:0], Y6[:0], None, "0 samples"),
        (chunked(X6, (2, 4), True)[:, :0], chunked(Y6, (2, 4), True), None, "0 feature"),
    ],
)
def test_data_that_do_not_fit(X, y, sample_weight, message):
    model = SoftmaxRegression().fit(X6, Y6)
    before = model.coef_.copy()
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(X, y, sample_weight)
    np.testing.assert_array_equal(model.coef_, before)


def test_blocks_that_contradict_each_other():
    wider = blocks_of([X6[:3], np.ones((3, 5))])
    with pytest.raises(ValueError, match="partition 1 has 5 features, but partition 0 has 2"):
        SoftmaxRegression().fit(wider, chunked(Y6, (3, 3), True))
    mixed = blocks_of([np.array(["a", "b", "a"]), np.array([0, 1, 0])])
    with pytest.raises(ValueError, match="partition 1 are numbers, those of partition 0 are not"):
        SoftmaxRegression().fit(chunked(X6, (3, 3)), mixed)
    objects = blocks_of([np.array(["a", None, 3], object), np.array(["a", "b", "c"], object)])
    with pytest.raises(ValueError, match="partition 0: "):
        SoftmaxRegression().fit(chunked(X6, (3, 3)), objects)


def test_labels_that_change():
    """A partition that is different each time it is computed."""
    calls = []

    def other(block):
        calls.append(1)
        return block + len(calls) // 3 * 10

    y = chunked(Y6, (3, 3)).map_blocks(other, meta=np.empty(0, int))
    with pytest.raises(ValueError, match=r"partition [01]: the labels are not those"):
        SoftmaxRegression().fit(chunked(X6, (3, 3)), y)


def test_unknown_chunks_along_the_features():
    some = chunked(X6, (6,)).rechunk({1: 1})
    X = some[:, some[0] >= 0]
    assert np.isnan(X.shape[1]) and X.numblocks[1] > 1
    with pytest.raises(ValueError, match="chunks along the features, and their sizes are unknown"):
        SoftmaxRegression().fit(X, Y6)


def test_a_column_of_categories_is_named():
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"size": X6[:, 0], "colour": pd.Categorical(["red", "blue"] * 3)})
    frame = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(ValueError, match=r"^partition 0: .*'colour' \(category\)"):
        SoftmaxRegression().fit(frame, dd.from_pandas(pd.Series(Y6), npartitions=2))


def test_missing_labels_of_a_dataframe():
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    names = pd.Series(["a", "b", "c", None, "b", "c"], dtype="string")
    X = dd.from_pandas(pd.DataFrame(X6, columns=["a", "b"]), npartitions=2)
    with pytest.raises(ValueError, match=r"^partition 1: Input y contains NaN"):
        SoftmaxRegression().fit(X, dd.from_pandas(names, npartitions=2))


def test_errors_of_predictions_name_the_partition():
    model = SoftmaxRegression().fit(X6, Y6)
    X = changed(3, np.nan)
    for result in (model.predict(X), model.predict_proba(X), model.score(X, Y6)):
        with pytest.raises(ValueError, match=r"^partition 1: Input X contains NaN"):
            result.compute()
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame(X.compute()), npartitions=3)
    with pytest.raises(ValueError, match=r"^partition 1: Input X contains NaN"):
        model.predict(frame).compute()


def test_names_that_are_missed_cause_one_warning():
    pd = pytest.importorskip("pandas")
    model = SoftmaxRegression().fit(pd.DataFrame(X6, columns=["a", "b"]), Y6)
    with pytest.warns(UserWarning, match="feature names") as caught:
        model.predict(chunked(X6, (2, 2, 2))).compute()
    assert len(caught) == 1


def test_overflow_ends_with_a_warning_at_most():
    X, y = DATA["iris"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SoftmaxRegression().fit(chunked(X * 1e300, (70, 80)), y)
    assert np.isfinite(model.coef_).all()


# ---------------------------------------------------------------------------------------------
# The module


def test_is_imported_on_request_only(run_python):
    code = "import sys, pyce; print({'pyce.dask', 'dask', 'distributed'} & set(sys.modules))"
    assert run_python("-c", code).stdout.strip() == "set()"


def test_a_missing_library_is_named(run_python):
    for missing in ("dask", "distributed"):
        code = f"import sys; sys.modules[{missing!r}] = None; import pyce.dask"
        error = run_python("-c", code, check=False).stderr.strip().splitlines()[-1]
        assert error.startswith("ImportError: ") and advice("dask") in error
