"""The solvers of `SoftmaxRegression`: L-BFGS, Newton, elastic net, mini-batches; progress."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pyce

pytest.importorskip("sklearn", minversion="1.6")

import sklearn
from scipy import sparse
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import rosen, rosen_der
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn_cases import DATA, gradient_at, synthetic, weights_of
from threadpoolctl import threadpool_limits

from pyce.sklearn import SoftmaxRegression, SoftmaxRegressionCV, _lbfgs, _objective, _team
from pyce.sklearn._line_search import line_search
from pyce.sklearn._newton import minimize_newton
from pyce.sklearn._orthants import minimize_l1


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
# L-BFGS


def quadratic(x):
    scale = np.logspace(0, 4, len(x))
    return 0.5 * (scale * x * x).sum(), scale * x


FUNCTIONS = {
    "Rosenbrock": (lambda x: (rosen(x), rosen_der(x)), np.tile([-1.2, 1.0], 6)),
    "quadratic": (quadratic, np.linspace(-3, 5, 40)),
    "log cosh": (lambda x: (np.log(np.cosh(x)).sum(), np.tanh(x)), np.linspace(-9, 12, 8)),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_steps_are_those_of_scipy(monkeypatch, name, parts):
    """Until rounding errors separate them; the functions require brackets and long steps."""
    function, start = FUNCTIONS[name]
    theirs, ours = [], []
    options = {"gtol": 1e-5, "ftol": _lbfgs.REDUCTION, "maxls": 50}
    found = scipy_minimize(
        lambda x: (theirs.append(x.copy()), function(x))[1],
        start,
        jac=True,
        method="L-BFGS-B",
        options=options,
    )

    def evaluate(x, gradient):
        ours.append(x.copy())
        value, gradient[...] = function(x)
        return value

    monkeypatch.setattr(_lbfgs, "_WORTH", 2)
    solution = _lbfgs.minimize(
        evaluate,
        start.copy(),
        max_iter=1000,
        tol=1e-5,
        team=_team.Team(parts),
        progress=lambda *_: None,
    )
    assert solution.problem is None
    assert np.abs(function(solution.x)[1]).max() <= 1e-5
    assert abs(solution.iterations - found.nit) <= 0.1 * found.nit
    np.testing.assert_allclose(ours[:12], theirs[:12], rtol=1e-6, atol=1e-9)


def test_the_line_search_ends_at_its_longest_step():
    """Of a function that decreases without end."""
    found = line_search(lambda step: (-step, -1.0), 0.0, -1.0, 1.0)
    assert found == (1e10, -1e10, -1.0)


def test_the_line_search_returns_from_an_overflow():
    """Of a parabola that is infinite for long steps."""

    def along(step):
        return (np.inf, np.nan) if step > 3 else ((step - 1) ** 2, 2 * (step - 1))

    found = line_search(along, 1.0, -2.0, 2000.0)
    assert found is not None
    assert 0.1 < found.step < 1.9


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("options", [{}, {"l1_ratio": 0.5}, {"solver": "newton-cholesky"}], ids=str)
def test_a_start_at_the_solution_takes_no_iteration(options):
    """Also with a tolerance of 0, if all derivatives are 0."""
    X, y = np.zeros((4, 2)), [0, 1, 1, 0]
    model = SoftmaxRegression(tol=0.0, fit_intercept=False, **options).fit(X, y)
    assert model.n_iter_ == [0]
    assert not model.coef_.any()


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("options", [{}, {"l1_ratio": 0.5}, {"solver": "newton-cholesky"}], ids=str)
@pytest.mark.parametrize("data", ["iris", "synthetic"])
def test_a_tolerance_of_0_ends_where_steps_change_rounding_errors(data, options):
    X, y = DATA[data]()
    model = SoftmaxRegression(tol=0.0, max_iter=1000, **options).fit(X, y)
    assert 1 < model.n_iter_[0] < (30 if "solver" in options else 1000)
    assert gradient_at(model, X, y) <= (1e-13 if "solver" in options else 1e-5)


# ---------------------------------------------------------------------------------------------
# Newton's method


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("form", [np.array, np.asfortranarray, sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("options", ["plain", "weights", "no intercept", "no penalty"])
def test_second_derivatives(monkeypatch, form, classes, options):
    """Differences of gradients, along directions in which the objective is not flat."""
    monkeypatch.setattr(_objective, "_WORTH", 1)
    monkeypatch.setattr(_objective, "_LEAST_ROWS", 40)
    monkeypatch.setattr(_objective, "_BLOCK_BYTES", 1)
    X, y = synthetic(250, 3, classes)
    columns, target = ((), y.astype(float)) if classes == 2 else ((classes,), y)
    weight = np.arange(250) % 3 - 0.1 if options == "weights" else None
    with ThreadPoolExecutor(1) as executor:
        objective = _objective.Objective(
            form(X),
            target,
            weight=weight,
            total=200.0,
            columns=columns,
            fit_intercept=options != "no intercept",
            team=_team.Team(2, executor),
        )
        objective.ridge = 0.0 if options == "no penalty" else 0.03
        rng = np.random.default_rng(2)
        x, direction = rng.standard_normal((2, objective.size))
        if classes > 2:
            direction = direction.reshape(-1, classes)
            direction = (direction - direction.mean(1, keepdims=True)).ravel()
        matrix = objective.hessian(x)
        ends = np.empty((2, objective.size))
        for end, step in zip(ends, (1e-5, -1e-5), strict=True):
            objective(x + step * direction, end)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    np.testing.assert_allclose(matrix @ direction, (ends[0] - ends[1]) / 2e-5, atol=1e-8)
    assert options == "weights" or np.linalg.eigvalsh(matrix)[0] > 1e-4


NEWTON = {"solver": "newton-cholesky"}


@pytest.mark.parametrize("weights", ["none", "samples"])
@pytest.mark.parametrize("options", [{}, {"C": 1e-3, "fit_intercept": False}, {"C": 100}])
@pytest.mark.parametrize("data", ["iris", "breast cancer", "synthetic", "digits"])
def test_newton_finds_the_optimum_in_few_steps(data, options, weights):
    X, y = DATA[data]()
    if data == "digits":
        X, y = X[:, ::8], y % 3
    sample_weight = weights_of(y, weights)
    model = SoftmaxRegression(**NEWTON, tol=1e-10, **options).fit(X, y, sample_weight)
    assert gradient_at(model, X, y, sample_weight) <= 1.01e-10
    assert 2 <= model.n_iter_[0] <= 15


@pytest.mark.parametrize("form", [np.array, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("data", ["iris", "breast cancer"])
def test_newton_of_float32(data, form):
    X, y = DATA[data]()
    X = X.astype(np.float32)
    model = SoftmaxRegression(**NEWTON, class_weight="balanced").fit(form(X), y)
    assert model.coef_.dtype == np.float32
    assert gradient_at(model, X, y) <= 1.1e-4


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [2, 3])
def test_newton_of_features_with_different_scales(classes):
    """Without a penalty, scaled features have the same probabilities after the same steps."""
    X, y = synthetic(500, 9, classes)
    plain, scaled = (
        SoftmaxRegression(**NEWTON, C=np.inf, tol=tol).fit(X * scales, y)
        for tol, scales in ((1e-9, 1.0), (1e-2, np.logspace(-8, 8, 9)))
    )
    assert scaled.n_iter_ <= plain.n_iter_ + 1
    expected = plain.predict_proba(X)
    np.testing.assert_allclose(scaled.predict_proba(X * np.logspace(-8, 8, 9)), expected, atol=1e-6)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("C", [1.0, np.inf])
@pytest.mark.parametrize("classes", [2, 3])
def test_newton_of_flat_directions(classes, C):
    """Equal, constant and zero features, and classes that can be separated."""
    X, y = synthetic(300, 3, classes)
    X = np.column_stack([X, X[:, 1], np.ones(300), np.zeros(300), -2 * X[:, 0]])
    model = SoftmaxRegression(**NEWTON, C=C, tol=1e-8).fit(X, y)
    assert gradient_at(model, X, y) <= 1.1e-8
    assert np.abs(model.coef_).max() < 100
    separable = SoftmaxRegression(**NEWTON, C=C).fit(X, X[:, :classes].argmax(1))
    assert np.isfinite(separable.coef_).all()
    assert separable.score(X, X[:, :classes].argmax(1)) > 0.95


@pytest.mark.parametrize("factor", [40, 1e5], ids=["far", "where all probabilities are 0 or 1"])
def test_newton_from_a_start_where_the_curvature_is_much_too_small(factor):
    """The first steps are too long, and those from the second start even after 30 halvings."""
    X, y = synthetic(200, 2, 3)
    model = SoftmaxRegression(**NEWTON, warm_start=True, tol=1e-9).fit(X, y)
    expected = model.coef_.copy()
    model.coef_ = factor * model.coef_[::-1]
    np.testing.assert_allclose(model.fit(X, y).coef_, expected, atol=1e-8)
    with pytest.warns(ConvergenceWarning, match="1 iterations: the maximum"):
        SoftmaxRegression(**NEWTON, max_iter=1).fit(X, y)


def test_newton_halves_a_step_that_decreases_too_little():
    """Of √(1 + x²), Newton's step leads from x to −x³: near 1, the objective hardly decreases."""
    at = []

    def evaluate(x, gradient):
        at.append(float(x[0]))
        np.divide(x, np.sqrt(1.0 + x * x), out=gradient)
        return float(np.sqrt(1.0 + x[0] ** 2))

    found = minimize_newton(
        evaluate,
        lambda x: np.diag((1.0 + x * x) ** -1.5),
        np.array([1.0 - 5e-5]),
        max_iter=9,
        tol=1e-9,
        progress=lambda *_: None,
    )
    assert found.within and found.iterations == 2
    np.testing.assert_allclose(at, [1.0 - 5e-5, -(1.0 - 1.5e-4), 5e-5, 0.0], atol=1e-7)


@pytest.mark.parametrize(("slope", "curvature", "iterations"), [(1e-3, 1e6, 1), (0.5, 1.9, 10)])
def test_newton_goes_on_if_the_derivative_is_halved(slope, curvature, iterations):
    """Where the objective shows no decrease: a derivative that stays as it is, and x/2."""

    def evaluate(x, gradient):
        gradient[...] = slope if iterations == 1 else slope * x
        return 1e17

    found = minimize_newton(
        evaluate,
        lambda x: np.diag([curvature * slope]),
        np.array([1.0]),
        max_iter=30,
        tol=0.5 * 2.0**-10,
        progress=lambda *_: None,
    )
    assert (found.iterations, found.problem, found.within) == (iterations, None, iterations > 1)


def test_newton_takes_a_step_that_decreases_enough():
    """Of log cosh: from 0.8, the whole step does not halve the derivative."""
    at = []

    def evaluate(x, gradient):
        at.append(float(x[0]))
        np.tanh(x, out=gradient)
        return float(np.log(np.cosh(x[0])))

    found = minimize_newton(
        evaluate,
        lambda x: np.diag(np.cosh(x) ** -2.0),
        np.array([0.8]),
        max_iter=9,
        tol=1e-9,
        progress=lambda *_: None,
    )
    assert found.within
    for before, after in itertools.pairwise(at):
        np.testing.assert_allclose(after, before - np.sinh(2 * before) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "saga"}, "solver must be 'lbfgs' or 'newton-cholesky', got 'saga'"),
        ({"solver": None}, "solver must be .* got None"),
        ({**NEWTON, "l1_ratio": 0.5}, "solver='newton-cholesky' requires an l1_ratio of 0, got"),
    ],
)
def test_solvers_out_of_range(options, message):
    X, y = DATA["iris"]()
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(X, y)
    options["l1_ratios"] = [0.0, options.pop("l1_ratio", 0.0)]
    with pytest.raises(ValueError, match=message):
        SoftmaxRegressionCV(**options).fit(X, y)


# ---------------------------------------------------------------------------------------------
# Elastic net


@pytest.mark.parametrize("weights", ["none", "samples"])
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("data", DATA)
def test_the_elastic_net_has_its_optimum(each, data, l1_ratio, weights):
    """The smallest sub-gradient, by NumPy: no coefficient is 0 or not 0 without reason."""
    X, y = DATA[data]()
    sample_weight = weights_of(y, weights)
    model = SoftmaxRegression(l1_ratio=l1_ratio, C=0.3, tol=1e-6, max_iter=1000)
    model.fit(X, y, sample_weight)
    assert gradient_at(model, X, y, sample_weight) <= 1.01e-6
    assert 0 < (model.coef_ == 0).mean() < 1


@pytest.mark.parametrize("data", ["iris", "synthetic", "more features than samples"])
@pytest.mark.parametrize("options", [{"l1_ratio": 0.3}, {"l1_ratio": 1.0, "fit_intercept": False}])
def test_the_elastic_net_is_that_of_saga(data, options):
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8):
        pytest.skip("l1_ratio alone selects the penalty from scikit-learn 1.8 on")
    X, y = DATA[data]()
    options = {"C": 0.3, "tol": 1e-7, "max_iter": 5000, **options}
    ours = SoftmaxRegression(**options).fit(X, y)
    theirs = LogisticRegression(**options, solver="saga", random_state=0).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-5)
    np.testing.assert_array_equal(ours.coef_ == 0, theirs.coef_ == 0)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("shift", [0, 10])
def test_the_elastic_net_does_not_stop_early(shift, l1_ratio):
    """A weak penalty on data with few coefficients that are 0 at the optimum: many change their
    signs on the way, so steps along directions that only fit the signs at their start are short.
    """
    X, y = synthetic(2000, 4, 3, seed=11)
    X += [shift, shift / 2, 0, 1]
    model = SoftmaxRegression(l1_ratio=l1_ratio, C=100, tol=1e-6, max_iter=5000).fit(X, y)
    assert gradient_at(model, X, y) <= 1.01e-6


def test_the_elastic_net_ends_after_two_steps_without_a_decrease():
    """The second of them without the saved steps, which the first has shown to be of no use."""
    at = []

    def evaluate(x, gradient):
        at.append(x.copy())
        np.multiply(x, [1.0, 100.0], out=gradient)
        return 1e17

    found = minimize_l1(
        evaluate,
        np.array([3.0, 2.0]),
        penalty=0.1,
        penalised=2,
        max_iter=9,
        tol=1e-9,
        progress=lambda *_: None,
    )
    assert (found.iterations, found.problem, found.within) == (2, None, False)
    for before, after in itertools.pairwise(at):
        slope = before * [1.0, 100.0] + 0.1
        np.testing.assert_allclose(after, before - slope / np.linalg.norm(slope), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_elastic_net_of_tiny_features(classes):
    """The squared gradient underflows."""
    X, y = synthetic(40, 3, classes)
    model = SoftmaxRegression(l1_ratio=1.0, C=1e300, tol=0, fit_intercept=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X * 1e-170, y)
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_elastic_net_of_sparse_data(dtype):
    X, y = DATA["iris"]()
    X = np.where(np.abs(X) < 0.5, 0, X).astype(dtype)
    model = SoftmaxRegression(l1_ratio=0.5, C=0.3).fit(sparse.csr_array(X), y)
    assert model.coef_.dtype == dtype
    assert gradient_at(model, X, y) <= 1.1e-4


def test_a_strong_l1_penalty_leaves_the_intercepts():
    X, y = DATA["iris"]()
    y = y[: len(y) - 20]
    model = SoftmaxRegression(l1_ratio=1.0, C=1e-3, tol=1e-8).fit(X[: len(y)], y)
    assert not model.coef_.any()
    frequencies = np.bincount(y) / len(y)
    np.testing.assert_allclose(model.predict_proba(X[:1])[0], frequencies, atol=1e-7)


def test_the_l1_penalty_of_a_warm_start():
    X, y = DATA["digits"]()
    model = SoftmaxRegression(l1_ratio=0.9, C=0.1, warm_start=True).fit(X, y)
    cold = model.n_iter_[0]
    assert model.fit(X, y).n_iter_[0] == 0
    assert 0 < model.set_params(C=0.11).fit(X, y).n_iter_[0] < cold
    with pytest.warns(ConvergenceWarning, match="2 iterations"):
        SoftmaxRegression(l1_ratio=0.9, max_iter=2).fit(X, y)


# ---------------------------------------------------------------------------------------------
# Mini-batches


@pytest.mark.parametrize("l1_ratio", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("data", ["iris", "breast cancer"])
@pytest.mark.parametrize("form", [np.array, sparse.csr_array], ids=["dense", "sparse"])
def test_partial_fit_is_adam(each, data, dtype, form, l1_ratio):
    """Three calls with all samples in a batch: scikit-learn's Adam with NumPy's gradient."""
    X, y = DATA[data]()
    weight, classes = weights_of(y, "samples"), np.unique(y)
    weight *= np.where(y == 1, 2.0, 1.0)
    model = SoftmaxRegression(
        l1_ratio=l1_ratio, C=0.02, class_weight={1: 2.0}, batch_size=len(y), random_state=0
    )
    columns = 1 if len(classes) == 2 else len(classes)
    W, b = np.zeros((columns, X.shape[1])), np.zeros(columns)
    adam = AdamOptimizer([W, b], learning_rate_init=0.01)
    strength = 1 / (0.02 * weight.sum())
    for _ in range(3):
        model.partial_fit(form(X.astype(dtype)), y, classes, weights_of(y, "samples"))
        z = X @ W.T + b
        if columns == 1:
            p = 1 / (1 + np.exp(-z)) - (y == 1)[:, None]
        else:
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True) - (y[:, None] == classes)
        p *= weight[:, None] / weight.sum()
        adam.update_params([W, b], [p.T @ X + (1 - l1_ratio) * strength * W, p.sum(0)])
        rate = adam.learning_rate / (np.sqrt(adam.vs[0]) + 1e-8)
        W[...] = np.sign(W) * np.maximum(np.abs(W) - rate * l1_ratio * strength, 0)
    assert model.coef_.dtype == dtype
    tolerance = 1e-10 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(model.coef_, W, atol=tolerance)
    np.testing.assert_allclose(model.intercept_, b, atol=tolerance)
    assert ((model.coef_ == 0) == (W == 0)).all()


def test_partial_fit_approaches_the_solution():
    X, y = DATA["iris"]()
    exact = SoftmaxRegression(class_weight="balanced").fit(X[10:], y[10:])
    y = np.array(["x", "y", "z"])[y]
    model = SoftmaxRegression(batch_size=50, class_weight="balanced", random_state=0)
    for _ in range(600):
        model.partial_fit(X[10:], y[10:], classes=["x", "y", "z"])
    assert model.n_iter_ == [600]
    np.testing.assert_allclose(model.predict_proba(X), exact.predict_proba(X), atol=0.05)


def test_partial_fit_takes_all_samples_in_random_order():
    X, y = DATA["synthetic"]()
    fits = [
        SoftmaxRegression(batch_size=64, random_state=seed).partial_fit(X, y, classes=range(5))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)
    assert (fits[0].coef_ != fits[2].coef_).all()
    assert fits[0].score(X, y) > 0.3


def test_partial_fit_continues_a_fit():
    X, y = DATA["iris"]()
    model = SoftmaxRegression(learning_rate_init=1e-6, batch_size=30).fit(X.astype(np.float32), y)
    before = model.coef_.copy()
    model.partial_fit(X[:60], y[:60])
    assert model.coef_.dtype == np.float32
    np.testing.assert_allclose(model.coef_, before, atol=1e-5)
    assert (model.coef_ != before).any()
    model.fit(X, y)
    np.testing.assert_array_equal(model.coef_, SoftmaxRegression().fit(X, y).coef_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": None}, "first call of partial_fit requires classes"),
        ({"classes": [1]}, "at least 2 labels"),
        ({"classes": [0, 1]}, "label 2 is not among"),
        ({"sample_weight": [0.0, 0.0, 0.0]}, "add up"),
        ({"y": [0, 1]}, "inconsistent"),
    ],
)
def test_partial_fit_refuses(arguments, message):
    given = {"X": [[0.0], [1.0], [2.0]], "y": [0, 1, 2], "classes": [0, 1, 2], **arguments}
    model = SoftmaxRegression()
    with pytest.raises(ValueError, match=message):
        model.partial_fit(**given)
    assert not hasattr(model, "coef_") and not hasattr(model, "classes_")


def test_later_calls_of_partial_fit_refuse():
    X, y = DATA["iris"]()
    model = SoftmaxRegression().partial_fit(X, y, classes=[0, 1, 2])
    before = model.coef_.copy()
    for message, arguments in (
        ("those of earlier calls", {"X": X, "y": y, "classes": [0, 1]}),
        ("label 3 is not among", {"X": X, "y": y + 1}),
        ("features", {"X": X[:, :2], "y": y}),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(**arguments)
        np.testing.assert_array_equal(model.coef_, before)


# ---------------------------------------------------------------------------------------------
# Progress, probabilities, data frames


def test_progress(capsys):
    X, y = DATA["iris"]()
    for options in ({}, {"l1_ratio": 0.5}, NEWTON):
        model = SoftmaxRegression(verbose=2, **options).fit(X, y)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == model.n_iter_[0]
        assert lines[0].startswith("iteration 1 of at most 100: objective ")
        SoftmaxRegression(verbose=1, **options).fit(X, y)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.split(", ")[:2] == lines[-1].split(", ")[:2]
        SoftmaxRegression(**options).fit(X, y)
        assert capsys.readouterr().out == ""
    model = SoftmaxRegression(verbose=1).partial_fit(X, y, classes=[0, 1, 2])
    assert capsys.readouterr().out.startswith("iteration 1, by partial_fit: mean loss ")
    fitted = model.fit(X, y).n_iter_[0]
    capsys.readouterr()
    model.partial_fit(X, y)
    assert capsys.readouterr().out.startswith(f"iteration {fitted + 1}, by partial_fit: ")


@pytest.mark.parametrize("data", ["digits", "breast cancer"])
def test_float32_probabilities_are_at_most_1(each, data):
    X, y = DATA[data]()
    model = SoftmaxRegression(C=1e4, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X.astype(np.float32), y)
    for factor in (1, 30, 1000):
        proba = model.predict_proba(X.astype(np.float32) * np.float32(factor))
        assert proba.dtype == np.float32 and proba.min() >= 0 and proba.max() <= 1
        assert model.predict_log_proba(X.astype(np.float32)).max() <= 0


def test_pandas():
    """Column names go through pipelines and selections, and differing ones are refused."""
    pandas = pytest.importorskip("pandas")
    X, y = DATA["iris"]()
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    select = SelectFromModel(SoftmaxRegression(l1_ratio=1.0, C=0.05), threshold=1e-9)
    pipeline = make_pipeline(StandardScaler(), select, SoftmaxRegression())
    pipeline.set_output(transform="pandas").fit(frame, y)
    chosen = pipeline[:-1].transform(frame)
    assert 0 < chosen.shape[1] < 4
    assert list(pipeline[-1].feature_names_in_) == list(chosen.columns)
    model = SoftmaxRegression().partial_fit(frame, y, classes=[0, 1, 2])
    assert list(model.feature_names_in_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        model.partial_fit(frame[["b", "a", "c", "d"]], y)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("form", [np.array, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"l1_ratio": 0.5}, {"C": np.inf, **NEWTON}], ids=str)
def test_float32_reaches_the_tolerance_in_spite_of_rounding(options, classes, form):
    """Rounding of scores in float32 is larger than the decreases that are left for the solver."""
    X, y = synthetic(100, 3, classes)
    X = np.column_stack([X, np.zeros(100)]) + np.array([10, 30, 0, 5])
    X = X.astype(np.float32)
    model = SoftmaxRegression(tol=1e-6, max_iter=20_000, **options).fit(form(X), y)
    wide = SoftmaxRegression(tol=1e-6, max_iter=20_000, **options).fit(form(X.astype(float)), y)
    assert model.coef_.dtype == np.float32
    np.testing.assert_allclose(
        model.predict_proba(X.astype(float)), wide.predict_proba(X.astype(float)), atol=2e-3
    )
