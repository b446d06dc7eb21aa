"""`SoftmaxRegression`: the checks of scikit-learn, the solutions of `LogisticRegression`, and the
gradient at the optimum computed by NumPy."""

import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import pyce

pytest.importorskip("sklearn", minversion="1.6")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from sklearn_cases import DATA, gradient_at, scaled, synthetic, weights_of
from threadpoolctl import threadpool_limits

from pyce._extras import advice
from pyce.sklearn import SoftmaxRegression, SoftmaxRegressionCV, _objective


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


# ---------------------------------------------------------------------------------------------
# scikit-learn's conventions

quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@quiet
@parametrize_with_checks([SoftmaxRegression()])
def test_conventions(estimator, check):
    check(estimator)


@quiet
@parametrize_with_checks(
    [
        SoftmaxRegression(class_weight="balanced", warm_start=True, solver="newton-cholesky"),
        SoftmaxRegression(l1_ratio=0.5),
    ]
)
def test_conventions_with_options(estimator, check):
    check(estimator)


@quiet
@parametrize_with_checks([SoftmaxRegression()])
@pytest.mark.parametrize("name", [n for n in pyce.backends() if n != pyce.get_backend()])
def test_conventions_on_other_backends(estimator, check, name):
    with pyce.use_backend(name):
        check(estimator)


IN_ARRAY_API = """
import sys
import warnings
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator
import pyce
from pyce.sklearn import SoftmaxRegression, SoftmaxRegressionCV

warnings.simplefilter("ignore", ConvergenceWarning)
estimators = [SoftmaxRegression(), SoftmaxRegression(l1_ratio=0.5), SoftmaxRegressionCV(Cs=3, cv=3)]
passed = 0
for backend in sys.argv[1:]:
    with pyce.use_backend(backend):
        for one in estimators:
            for estimator, check in estimator_checks_generator(one):
                if "array_api" in str(check):
                    check(estimator)
                    passed += 1
print(passed)
"""


def test_conventions_with_array_api_dispatch():
    """scikit-learn skips these checks unless SCIPY_ARRAY_API=1 is set before SciPy is imported."""
    offered = sum("array_api" in str(c) for _, c in estimator_checks_generator(SoftmaxRegression()))
    result = subprocess.run(
        [sys.executable, "-c", IN_ARRAY_API, *pyce.backends()],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == offered * 3 * len(pyce.backends())


# ---------------------------------------------------------------------------------------------
# The solution

OPTIONS = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "strong penalty": {"C": 1e-3},
    "balanced": {"class_weight": "balanced"},
    "class weights": {"class_weight": {0: 3.0, 1: 0.2}},
}


@pytest.mark.parametrize("weights", ["none", "samples"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", DATA)
def test_the_solution_is_that_of_logistic_regression(data, options, weights):
    X, y = DATA[data]()
    sample_weight = weights_of(y, weights)
    ours = SoftmaxRegression(**OPTIONS[options], tol=1e-7, max_iter=2000)
    theirs = LogisticRegression(**OPTIONS[options], tol=1e-7, max_iter=2000)
    ours.fit(X, y, sample_weight)
    assert gradient_at(ours, X, y, sample_weight) <= 1.01e-7
    if options == "balanced" and weights == "samples":
        return  # scikit-learn before 1.7 balances the numbers of samples, not their weights
    theirs.fit(X, y, sample_weight)
    for name in ("coef_", "intercept_", "classes_", "n_iter_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == other.shape and mine.dtype == other.dtype
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3 * scale)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-3 * scale)
    proba = theirs.predict_proba(X)
    np.testing.assert_allclose(ours.predict_proba(X), proba, atol=2e-4)
    scores = theirs.decision_function(X)
    np.testing.assert_allclose(ours.decision_function(X), scores, atol=2e-3 * np.abs(scores).max())


def test_the_way_to_the_solution_is_the_same():
    """The same objective and solver give the same iterations, except for rounding."""
    for load in (load_digits, load_iris, load_breast_cancer):
        X, y = scaled(load)
        ours, theirs = SoftmaxRegression().fit(X, y), LogisticRegression().fit(X, y)
        assert ours.n_iter_ == theirs.n_iter_
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-8)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert ours.score(X, y) == theirs.score(X, y)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_every_backend_finds_the_optimum(each, data, fit_intercept):
    X, y = DATA[data]()
    model = SoftmaxRegression(tol=1e-6, max_iter=2000, fit_intercept=fit_intercept)
    sample_weight = weights_of(y, "samples")
    assert gradient_at(model.fit(X, y, sample_weight), X, y, sample_weight) <= 1.01e-6
    assert model.intercept_.any() == fit_intercept


@pytest.mark.parametrize("data", DATA)
def test_float32_stays_float32(each, data):
    X, y = DATA[data]()
    narrow, wide = X.astype(np.float32), SoftmaxRegression().fit(X, y)
    model = SoftmaxRegression().fit(narrow, y)
    assert model.coef_.dtype == model.intercept_.dtype == np.float32
    assert gradient_at(model, narrow, y) <= 1.1e-4
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        assert getattr(model, method)(narrow).dtype == np.float32
    np.testing.assert_allclose(model.predict_proba(narrow), wide.predict_proba(X), atol=5e-3)


def test_no_penalty():
    X, y = synthetic(2000, 4, 3)
    model = SoftmaxRegression(C=np.inf, tol=1e-7).fit(X, y)
    assert gradient_at(model, X, y) <= 1.01e-7
    other = LogisticRegression(C=1e12, tol=1e-7).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), atol=1e-5)


def test_weights_count_samples():
    """Weight 2 equals a repeated sample, 0 no sample; doubling all weights halves the penalty."""
    X, y = synthetic(200, 4, 3)
    weight = np.arange(200) % 3
    options = {"tol": 1e-9, "max_iter": 1000}
    weighted = SoftmaxRegression(**options).fit(X, y, weight)
    repeated = SoftmaxRegression(**options).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-7)
    doubled = SoftmaxRegression(C=0.5, **options).fit(X, y, 2 * weight)
    np.testing.assert_allclose(weighted.coef_, doubled.coef_, atol=1e-7)
    alike, plain = (SoftmaxRegression().fit(X, y, w) for w in (1.0, None))
    np.testing.assert_allclose(alike.coef_, plain.coef_, atol=1e-12)


def test_a_class_without_weight_is_not_balanced():
    """Its samples have no effect, as without balancing."""
    X, y = synthetic(300, 4, 3)
    model = SoftmaxRegression(class_weight="balanced").fit(X, y, (y > 0).astype(float))
    assert np.isfinite(model.coef_).all()
    assert model.predict_proba(X)[:, 0].max() < 0.1


# ---------------------------------------------------------------------------------------------
# Kinds of X and y


@pytest.mark.parametrize("data", ["iris", "breast cancer"])
@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "csc_array", "coo_array"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sparse(each, kind, dtype, data):
    X, y = DATA[data]()
    X = np.where(np.abs(X) < 0.5, 0, X).astype(dtype)
    thin = getattr(sparse, kind)(X)
    model, dense = SoftmaxRegression().fit(thin, y), SoftmaxRegression().fit(X, y)
    assert model.coef_.dtype == dtype
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        there, here = getattr(model, method)(thin), getattr(dense, method)(X)
        tolerance = 1e-6 if dtype == np.float64 else 2e-3
        np.testing.assert_allclose(there, here, atol=tolerance * max(1, np.abs(here).max()))


def unaligned(X):
    raw = np.empty(X.nbytes + 1, np.uint8)
    view = raw[1:].view(X.dtype).reshape(X.shape)
    view[...] = X
    return view


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda X: X[::-1, ::-1][::-1, ::-1].copy()[::-1][::-1],
    "every other row": lambda X: np.repeat(X, 2, 0)[::2],
    "every other feature": lambda X: np.repeat(X, 2, 1)[:, ::2],
    "byte-swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "unaligned": unaligned,
    "list": np.ndarray.tolist,
    "object": lambda X: X.astype(object),
    "long double": lambda X: X.astype(np.longdouble),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    X, y = DATA["iris"]()
    other = LAYOUTS[layout](X)
    model, plain = SoftmaxRegression().fit(other, y), SoftmaxRegression().fit(X, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=1e-8)
    np.testing.assert_allclose(model.predict_proba(other), plain.predict_proba(X), atol=1e-8)


def test_blocks_are_views_and_contiguous(monkeypatch):
    """Arrays that BLAS would copy for each product are copied once, and no others."""
    blocks = []
    initialize = _objective._Rows.__init__

    def watched(self, X, *rest):
        initialize(self, X, *rest)
        blocks.extend(x for x, *_ in self._blocks)

    monkeypatch.setattr(_objective._Rows, "__init__", watched)
    X, y = DATA["iris"]()
    for given in (X, np.asfortranarray(X)):
        blocks.clear()
        SoftmaxRegression().fit(given, y)
        assert blocks and all(np.shares_memory(given, x) for x in blocks)
    for given in (np.repeat(X, 2, 1)[:, ::2], unaligned(X)):
        blocks.clear()
        SoftmaxRegression().fit(given, y)
        assert blocks and all(x.flags.c_contiguous and x.flags.aligned for x in blocks)


def test_read_only_and_mapped(tmp_path):
    X, y = DATA["iris"]()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    weight = np.ones(len(y))
    for array in (y, weight):
        array.flags.writeable = False
    model = SoftmaxRegression().fit(mapped, y, weight)
    np.testing.assert_allclose(model.coef_, SoftmaxRegression().fit(X, y).coef_, atol=1e-12)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["cherry", "apple", "banana"]),
        np.array(["cherry", "apple", "banana"], object),
        np.array([-5, 7, 300], np.int16),
        np.array([2.0, 0.0, 1.0]),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels(labels):
    X, y = DATA["iris"]()
    model = SoftmaxRegression().fit(X, labels[y])
    other = LogisticRegression().fit(X, labels[y])
    np.testing.assert_array_equal(model.classes_, np.sort(labels))
    assert model.classes_.dtype == other.classes_.dtype
    np.testing.assert_array_equal(model.predict(X), other.predict(X))
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), atol=1e-8)


@pytest.mark.parametrize("labels", [[False, True], ["no", "yes"], [-1, 1]], ids=str)
def test_two_labels(labels):
    X, y = DATA["breast cancer"]()
    labels = np.array(labels)
    model = SoftmaxRegression().fit(X, labels[y])
    assert model.coef_.shape == (1, X.shape[1]) and model.intercept_.shape == (1,)
    scores = model.decision_function(X)
    assert scores.shape == y.shape
    np.testing.assert_array_equal(model.predict(X), labels[(scores > 0).astype(int)])
    proba = LogisticRegression().fit(X, labels[y]).predict_proba(X)
    np.testing.assert_allclose(model.predict_proba(X), proba, atol=1e-8)


# ---------------------------------------------------------------------------------------------
# Predictions


@pytest.mark.parametrize("data", ["digits", "breast cancer"])
def test_probabilities(each, data):
    X, y = DATA[data]()
    model = SoftmaxRegression().fit(X, y)
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.classes_[proba.argmax(1)], model.predict(X))
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), proba, rtol=1e-12)


def test_logarithms_of_certain_predictions():
    """Logarithms are accurate also where probabilities round to 0 and 1."""
    model = SoftmaxRegression().fit([[-1.0], [1.0]], [0, 1])
    score = model.coef_[0, 0] * 1e5
    np.testing.assert_allclose(
        model.predict_log_proba([[1e5], [-1e5]]),
        [[-score, 0], [0, -score]],
        rtol=1e-12,
        atol=1e-300,
    )
    few = model.predict_log_proba([[60.0]])[0]
    z = model.decision_function([[60.0]])[0]
    np.testing.assert_allclose(few, [-z - np.exp(-z), -np.exp(-z)], rtol=1e-9)


def test_before_fitting():
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(SoftmaxRegression(), method)([[1.0]])


# ---------------------------------------------------------------------------------------------
# Stopping and starting


def test_too_few_iterations_warn():
    X, y = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="3 iterations"):
        model = SoftmaxRegression(max_iter=3).fit(X, y)
    assert model.n_iter_ == [3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftmaxRegression(max_iter=1000).fit(X, y)


def test_a_smaller_tolerance_is_closer():
    X, y = scaled(load_digits)
    for tol in (1e-2, 1e-4, 1e-6):
        model = SoftmaxRegression(tol=tol, max_iter=1000).fit(X, y)
        assert 0.01 * tol < gradient_at(model, X, y) <= 1.01 * tol


@pytest.mark.parametrize("data", ["iris", "breast cancer"])
def test_warm_start(data):
    X, y = DATA[data]()
    model = SoftmaxRegression(warm_start=True).fit(X, y)
    cold = model.n_iter_[0]
    np.testing.assert_allclose(model.fit(X, y).n_iter_, 0)
    model.set_params(C=1.1).fit(X, y)
    assert 0 < model.n_iter_[0] < cold
    assert SoftmaxRegression().fit(X, y).fit(X, y).n_iter_[0] == cold
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(X[:, :2], y)
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(X, np.arange(len(y)) % 5)


# ---------------------------------------------------------------------------------------------
# Within scikit-learn


def test_searches_and_pipelines():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
    search = GridSearchCV(pipeline, {"softmaxregression__C": [0.01, 1.0, 100.0]}, cv=3).fit(X, y)
    assert search.best_params_["softmaxregression__C"] != 0.01
    other = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_score(pipeline, X, y, cv=5)
    np.testing.assert_array_equal(scores, cross_val_score(other, X, y, cv=5))
    with_threads = GridSearchCV(
        pipeline, {"softmaxregression__C": [0.01, 1.0]}, cv=2, n_jobs=2
    ).fit(X, y)
    assert with_threads.best_score_ > 0.9


def test_copies():
    X, y = DATA["iris"]()
    model = SoftmaxRegression(C=2.0, tol=1e-5).fit(X, y)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    fresh = clone(model)
    assert fresh.get_params() == model.get_params() and not hasattr(fresh, "coef_")


# ---------------------------------------------------------------------------------------------
# Errors

X3, Y3 = [[0.0, 1.0], [1.0, 0.5], [2.0, 3.0]], [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C must be .* got 0"),
        ({"C": -1.0}, "C must be .* got -1.0"),
        ({"C": np.nan}, "C must be .* got nan"),
        ({"C": "1"}, "C must be .* got '1'"),
        ({"tol": -1e-9}, "tol must be .* got -1e-09"),
        ({"tol": np.inf}, "tol must be .* got inf"),
        ({"tol": None}, "tol must be .* got None"),
        ({"max_iter": -1}, "max_iter must be .* got -1"),
        ({"max_iter": 1.5}, "max_iter must be .* got 1.5"),
        ({"l1_ratio": 1.1}, "l1_ratio must be .* got 1.1"),
        ({"l1_ratio": None}, "l1_ratio must be .* got None"),
        ({"verbose": -1}, "verbose must be .* got -1"),
        ({"batch_size": 0}, "batch_size must be .* got 0"),
        ({"learning_rate_init": 0.0}, "learning_rate_init must be .* got 0.0"),
        ({"fit_intercept": 1}, "fit_intercept must be .* got 1"),
        ({"warm_start": "no"}, "warm_start must be .* got 'no'"),
        ({"class_weight": "even"}, "class_weight must be .* got 'even'"),
        ({"class_weight": [1, 2, 3]}, r"class_weight must be .* got \[1, 2, 3\]"),
        ({"class_weight": np.ones(3)}, "class_weight must be .* got array"),
        ({"class_weight": {7: 1.0, 1: 2.0}}, "not in class_weight"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(X3, Y3)


@pytest.mark.parametrize(
    ("X", "y", "sample_weight", "message"),
    [
        (X3, [1, 1, 1], None, "only one class: 1$"),
        (X3, [0.5, 1.5, 2.7], None, "continuous"),
        (X3, [0, 1], None, "inconsistent"),
        (X3, None, None, "requires y"),
        ([0.0, 1.0, 2.0], Y3, None, "2D array"),
        ([[0.0], [np.nan], [1.0]], Y3, None, "NaN"),
        ([[0.0], [np.inf], [1.0]], Y3, None, "infinity"),
        (np.array(X3) + 1j, Y3, None, "Complex"),
        (X3, Y3, [1.0, 2.0], r"shape \(3,\).*\(2,\)"),
        (X3, Y3, [[1.0], [2.0], [3.0]], r"\(3, 1\)"),
        (X3, Y3, [1.0, np.nan, 2.0], "sample_weight contains NaN"),
        (X3, Y3, [0.0, 0.0, 0.0], "got 0.0"),
        (X3, Y3, [1.0, -2.0, 0.0], "got -1.0"),
    ],
)
def test_data_that_do_not_fit(X, y, sample_weight, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression().fit(X, y, sample_weight)


def test_a_refused_fit_leaves_the_solution():
    X, y = DATA["iris"]()
    model = SoftmaxRegression().fit(X, y)
    before = model.coef_.copy()
    with pytest.raises(ValueError, match="add up"):
        model.fit(X, y, np.zeros(len(y)))
    np.testing.assert_array_equal(model.coef_, before)


@pytest.mark.parametrize("make", [SoftmaxRegression, lambda: SoftmaxRegressionCV(Cs=2, cv=2)])
def test_a_refused_fit_leaves_the_features(make):
    X, y = DATA["iris"]()
    model = make()
    with pytest.raises(ValueError, match="only one class"):
        model.fit(X[:, :2], np.zeros(len(y)))
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.fit(X, y)
    before = model.predict(X)
    with pytest.raises(ValueError, match="only one class"):
        model.fit(X[:, :2], np.zeros(len(y)))
    np.testing.assert_array_equal(model.predict(X), before)
    model = SoftmaxRegression()
    with pytest.raises(ValueError, match="not among the classes"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_features_out_of_all_bounds():
    """If scores overflow, the solver stops with a warning at most."""
    X, y = DATA["iris"]()
    for factor in (1e150, 1e300):
        for solver in ("lbfgs", "newton-cholesky"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert np.isfinite(SoftmaxRegression(solver=solver).fit(X * factor, y).coef_).all()


# ---------------------------------------------------------------------------------------------
# The module


def test_is_imported_on_request_only(run_python):
    code = (
        "import sys, pyce; print(sorted({'pyce.sklearn', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


def test_a_missing_library_is_named(run_python):
    for missing in ("sklearn", "scipy.sparse"):
        code = f"import sys; sys.modules[{missing!r}] = None; import pyce.sklearn"
        error = run_python("-c", code, check=False).stderr.strip().splitlines()[-1]
        assert error.startswith("ImportError: ") and advice("sklearn") in error
