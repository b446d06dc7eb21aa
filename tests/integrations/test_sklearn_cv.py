"""`SoftmaxRegressionCV`, against `LogisticRegressionCV`."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import sklearn
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_cases import DATA, gradient_at, weights_of
from threadpoolctl import threadpool_limits

from pyce.sklearn import SoftmaxRegression, SoftmaxRegressionCV, _objective

RELEASE = tuple(map(int, sklearn.__version__.split(".")[:2]))


@pytest.fixture(autouse=True)
def few_blas_threads():
    """BLAS threads would wait for each other in small products on busy machines."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([SoftmaxRegressionCV(Cs=3, cv=3)])
def test_conventions(estimator, check):
    check(estimator)


OPTIONS = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "unordered folds": {"cv": StratifiedKFold(3, shuffle=True, random_state=0)},
    "ordered folds": {"cv": KFold(4)},
    "overlapping tests": {"cv": ShuffleSplit(3, random_state=0)},
    "balanced": {"class_weight": "balanced"},
    "log loss": {"scoring": "neg_log_loss"},
    "means of the folds": {"refit": False},
    "Newton": {"solver": "newton-cholesky"},
}


@pytest.mark.parametrize("weights", ["none", "samples"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", ["iris", "breast cancer"])
def test_the_choice_is_that_of_logistic_regression(data, options, weights):
    if RELEASE < (1, 9):
        pytest.skip("the attributes of scikit-learn have these shapes from 1.9 on")
    X, y = DATA[data]()
    sample_weight = weights_of(y, weights)
    common = {"Cs": [0.01, 0.1, 10.0], "tol": 1e-7, "max_iter": 1000, **OPTIONS[options]}
    ours = SoftmaxRegressionCV(**common).fit(X, y, sample_weight)
    other = {"scoring": "accuracy", "l1_ratios": (0.0,), "use_legacy_attributes": False, **common}
    theirs = LogisticRegressionCV(**other).fit(X, y, sample_weight)
    for name in ("C_", "l1_ratio_", "Cs_", "l1_ratios_", "classes_"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("scores_", "coefs_paths_", "coef_", "intercept_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == other.shape and mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, atol=1e-4, err_msg=name)
    assert ours.n_iter_.shape == theirs.n_iter_.shape
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix], ids=["dense", "sparse"])
def test_each_fit_of_the_path_is_the_optimum_of_its_fold(form):
    X, y = DATA["iris"]()
    X = X.astype(np.float32)
    folds = StratifiedKFold(3, shuffle=True, random_state=1)
    model = SoftmaxRegressionCV(Cs=[0.1, 1.0], l1_ratios=[0.0, 0.6], cv=folds).fit(form(X), y)
    assert model.coefs_paths_.dtype == np.float32
    for fold, (train, test) in enumerate(folds.split(X, y)):
        for i, l1_ratio in enumerate(model.l1_ratios_):
            for j, C in enumerate(model.Cs_):
                single = SoftmaxRegression(C=C, l1_ratio=l1_ratio).fit(X[train], y[train])
                single.coef_ = model.coefs_paths_[fold, i, j, :, :-1]
                single.intercept_ = model.coefs_paths_[fold, i, j, :, -1]
                assert gradient_at(single, X[train], y[train]) <= 1.1e-4
                assert single.score(X[test], y[test]) == model.scores_[fold, i, j]
    assert model.n_iter_.shape == model.scores_.shape == (3, 2, 2)
    best = model.scores_.mean(0).argmax()
    assert (model.l1_ratio_, model.C_) == (model.l1_ratios_[best // 2], model.Cs_[best % 2])


def test_later_fits_of_a_path_start_from_earlier_ones():
    X, y = DATA["digits"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = SoftmaxRegressionCV(Cs=[1.0, 1.1], cv=2).fit(X, y)
    assert (model.n_iter_[:, :, 1] < model.n_iter_[:, :, 0]).all()


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cholesky"])
def test_a_fit_that_starts_at_its_solution_has_no_iterations(solver):
    X, y = DATA["iris"]()
    model = SoftmaxRegressionCV(Cs=[0.1, 0.1], cv=3, solver=solver).fit(X, y)
    assert (model.n_iter_[:, :, 0] > 0).all() and (model.n_iter_[:, :, 1] == 0).all()
    paths = model.coefs_paths_
    np.testing.assert_array_equal(paths[:, :, 1], paths[:, :, 0])


def test_folds_share_the_data(monkeypatch):
    """Rows in the order of their folds are not copied; others are copied once for all folds."""
    seen = []
    initialize = _objective._Rows.__init__

    def watched(self, X, *rest):
        initialize(self, X, *rest)
        seen.extend(x for x, *_ in self._blocks)

    monkeypatch.setattr(_objective._Rows, "__init__", watched)
    X, y = DATA["iris"]()
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order], y[order]
    SoftmaxRegressionCV(Cs=2, cv=KFold(3)).fit(X, y)
    assert len(seen) == 5 and all(np.shares_memory(X, x) for x in seen)
    seen.clear()
    SoftmaxRegressionCV(Cs=2, cv=KFold(3, shuffle=True, random_state=0)).fit(X, y)
    assert len({id(x.base) for x in seen}) == 1 and not np.shares_memory(X, seen[0])


def test_folds_of_any_kind():
    """Masks choose what numbers choose, and a sample that a test set has twice counts twice."""
    X, y = DATA["iris"]()
    odd = np.arange(len(y)) % 2 == 1
    masks = [(~odd, odd), (odd, ~odd)]
    numbers = [(np.flatnonzero(training), np.flatnonzero(test)) for training, test in masks]
    twice = [(training, np.append(test, test[-30:])) for training, test in numbers]
    by_masks, by_numbers, weighted = (
        SoftmaxRegressionCV(Cs=[0.01, 0.1], cv=cv).fit(X, y) for cv in (masks, numbers, twice)
    )
    np.testing.assert_array_equal(by_masks.scores_, by_numbers.scores_)
    np.testing.assert_array_equal(by_masks.coefs_paths_, by_numbers.coefs_paths_)
    for fold, (_, test) in enumerate(twice):
        for i in range(2):
            W = weighted.coefs_paths_[fold, 0, i]
            right = (X[test] @ W[:, :-1].T + W[:, -1]).argmax(1) == y[test]
            assert weighted.scores_[fold, 0, i] == right.mean()
    assert (weighted.scores_ != by_numbers.scores_).any()
    with pytest.raises(ValueError, match="at least one fold"):
        SoftmaxRegressionCV(cv=[]).fit(X, y)
    with pytest.raises((ValueError, IndexError)):
        SoftmaxRegressionCV(cv=[(~odd[:-2], odd)]).fit(X, y)  # a mask of fewer samples


def test_one_value_of_C():
    X, y = DATA["iris"]()
    assert SoftmaxRegressionCV(Cs=1, cv=2).fit(X, y).Cs_ == [1e-4]


def test_a_fold_without_a_class():
    """The scorer knows all classes, as that of scikit-learn does."""
    X, y = DATA["iris"]()  # sorted by class
    model = SoftmaxRegressionCV(Cs=[0.1], cv=KFold(3), scoring="neg_log_loss").fit(X, y)
    assert np.isfinite(model.scores_).all() and model.coef_.shape == (3, 4)


def test_progress_and_warnings(capsys):
    X, y = DATA["iris"]()
    SoftmaxRegressionCV(Cs=[0.01, 0.1], cv=2, verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("fold 1 of 2, l1_ratio 0, C 0.01: ")
    with pytest.warns(ConvergenceWarning, match="5 of 5 fits"):
        model = SoftmaxRegressionCV(Cs=[0.01, 0.1], cv=2, max_iter=1).fit(X, y)
    assert (model.n_iter_ == 1).all()
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"Cs": 0}, "Cs must be at least 1"),
        ({"Cs": [1.0, -1.0]}, "each of Cs must be a number above 0, got -1.0"),
        ({"Cs": []}, "Cs must be one or more numbers"),
        ({"Cs": "ten"}, "Cs must be one or more numbers, got"),
        ({"l1_ratios": [0.5, 1.5]}, "each of l1_ratios must be .* got 1.5"),
        ({"refit": 1}, "refit must be True or False, got 1"),
        ({"max_iter": -1}, "max_iter must be .* got -1"),
    ],
)
def test_parameters_out_of_range(options, message):
    X, y = DATA["iris"]()
    model = SoftmaxRegressionCV(**options)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert not hasattr(model, "coef_")
