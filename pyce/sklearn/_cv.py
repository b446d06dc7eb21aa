"""`SoftmaxRegressionCV`: the strength of the penalty by cross-validation.

The folds share one array. If every sample is in one test set, the samples are put in the order of
their test sets, and the training set of a fold is what comes before and after its test set: two
ranges of rows. Other splits copy the training set of one fold at a time.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer, make_scorer
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted

from pyce._types import Array
from pyce.sklearn._classifier import (
    LinearSoftmaxClassifier,
    checked_weights,
    columns_and_target,
    distinct,
    total_weight,
)
from pyce.sklearn._estimator import SoftmaxRegression
from pyce.sklearn._lbfgs import Solution
from pyce.sklearn._objective import Objective, rows_of
from pyce.sklearn._solve import (
    NEWTON,
    Printer,
    check_C,
    check_l1_ratio,
    check_solver,
    solve,
    unflatten,
)
from pyce.sklearn._team import Team, team


class SoftmaxRegressionCV(LinearSoftmaxClassifier):
    """`SoftmaxRegression` with `C` and `l1_ratio` chosen by cross-validation.

    For each fold and each of `l1_ratios`, `fit` finds the coefficients for each of `Cs`, starting
    from those of the previous one, and scores them on the test set of the fold. It is
    `LogisticRegressionCV` of scikit-learn, faster.

    Parameters
    ----------
    Cs : int or array_like of floats
        Inverse strengths of the penalty, above 0, in the order in which they are used; from strong
        to weak takes least time. An integer n stands for n values from 1e-4 to 1e4, equally spaced
        in their logarithms.
    l1_ratios : array_like of floats
        Shares of the absolute values in the penalty, from 0 (L2) to 1 (L1).
    solver : {"lbfgs", "newton-cholesky"}
        The method of each fit. "newton-cholesky" is Newton's method, for few features and classes;
        it requires that all of `l1_ratios` are 0.
    fit_intercept : bool
        Whether to fit the intercepts; they are 0 if not.
    cv : int, cross-validation generator, iterable or None
        The folds, as for `sklearn.model_selection.cross_val_score`. None stands for 5 folds, and an
        integer for that many; both keep the proportions of the classes. To keep groups together,
        pass the pairs of index arrays that a splitter yields for them.
    scoring : str, callable or None
        The score on a test set, as for `sklearn.model_selection.cross_val_score`; larger is better.
        None stands for the accuracy.
    class_weight : dict, "balanced" or None
        Weights of the classes: the weight of each sample is multiplied by that of its class. A
        class that the dict does not name has weight 1. "balanced" gives every class the same sum of
        weights over all samples.
    max_iter : int
        Maximum number of iterations of the solver for each fit, at least 0.
    tol : float
        The solver stops when no derivative of the objective exceeds `tol` in magnitude, or when a
        step changes the objective by no more than rounding does. Finite and at least 0. With a
        share of absolute values above 0, the smallest sub-gradient takes the place of the
        derivatives.
    refit : bool
        If true, the values with the best mean score are chosen, and the coefficients are those for
        all samples. If false, the coefficients and the two values are means over the folds of those
        with the best score of each fold.
    verbose : int
        1 prints a line for each fit; 2 prints every iteration too; 0 prints nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        W, in the dtype of X: float32 or float64. With two classes, the shape is (1, n_features).
    intercept_ : ndarray of shape (n_classes,)
        b; with two classes, the shape is (1,).
    C_ : float
        The chosen inverse strength.
    l1_ratio_ : float
        The chosen share of the absolute values.
    Cs_ : ndarray of shape (n_cs,)
        All inverse strengths.
    l1_ratios_ : ndarray of shape (n_l1_ratios,)
        All shares.
    scores_ : ndarray of shape (n_folds, n_l1_ratios, n_cs)
        The scores on the test sets.
    coefs_paths_ : ndarray of shape (n_folds, n_l1_ratios, n_cs, n_classes, n_features + 1)
        The coefficients and intercepts of each fit; without intercepts, the last axis has the
        length n_features. With two classes, the axis of the classes has the length 1.
    n_iter_ : ndarray of shape (n_folds, n_l1_ratios, n_cs)
        Number of iterations of each fit: 0 if the solution for the previous C satisfies `tol`.
    n_features_in_ : int
        Number of features of the samples.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of these features; defined only if X had names.

    Examples
    --------
    >>> from pyce.sklearn import SoftmaxRegressionCV
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegressionCV(Cs=[0.01, 1.0], max_iter=500).fit(X, y)
    >>> print(model.C_, model.scores_.shape)
    1.0 (5, 1, 2)

    Notes
    -----
    The attributes are those of ``LogisticRegressionCV(use_legacy_attributes=False)`` of
    scikit-learn 1.9. Source of the formula:
    https://scikit-learn.org/stable/modules/linear_model.html#multinomial-case
    """

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Any = (0.0,),
        solver: str = "lbfgs",
        fit_intercept: bool = True,
        cv: Any = None,
        scoring: Any = None,
        class_weight: Any = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        refit: bool = True,
        verbose: int = 0,
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.refit = refit
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegressionCV:
        """Choose `C` and `l1_ratio`, and find the coefficients.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite. float32 and float64 keep their dtype; other dtypes are
            converted to float64.
        y : array_like of shape (n_samples,)
            Labels of at least two classes.
        sample_weight : float or array_like of shape (n_samples,), optional
            Weights of the samples in the objective and in the scores, used as given. In each
            training set the sum of the weights times the class weights must be above 0.

        Returns
        -------
        SoftmaxRegressionCV
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of range; if `y` has a single class; if a value is not finite; if
            shapes do not match; if a sum of weights is not above 0.

        Warns
        -----
        ConvergenceWarning
            If the solver stopped before it reached its tolerance in some of the fits.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegressionCV
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegressionCV(Cs=[0.01, 0.1], l1_ratios=[0.0, 1.0], cv=3, max_iter=500)
        >>> print(model.fit(X, y).coefs_paths_.shape)
        (3, 2, 2, 3, 5)
        """
        Cs, ratios = self._check_parameters()
        X, y, like = self._samples(X, y, sample_weight)
        classes, labels = distinct(y)
        given = checked_weights(sample_weight, len(y))
        weight = self._weights(classes, labels, given)
        total_weight(weight, len(y))
        columns, target = columns_and_target(classes, labels, X.dtype)
        splits = [
            (_indices(training, len(y)), _indices(test, len(y)))
            for training, test in check_cv(self.cv, y, classifier=True).split(X, y)
        ]
        if not splits:
            raise ValueError("cv must have at least one fold")
        samples, folds = _shared(_Samples(X, y, target, weight, given), splits)
        shape = (len(splits), len(ratios), len(Cs))
        size = (X.shape[1] + bool(self.fit_intercept)) * int(np.prod(columns))
        paths = np.empty((*shape, size), X.dtype)
        scores, iterations = np.empty(shape), np.empty(shape, np.int32)
        scorer = _scorer(self.scoring, classes)
        early = 0  # fits that stopped before they reached the tolerance
        with team() as threads:
            for fold, (training, ranges, test) in enumerate(folds):
                problem = self._problem(training, ranges, columns, threads)
                where = f"fold {fold + 1} of {len(splits)}"
                for i, j, name, solution in self._solutions(problem, ratios, Cs, where):
                    early += solution.problem is not None
                    model = self._model(classes, solution.x, X.shape[1], columns, X.dtype)
                    score = _score(scorer, model, test)
                    paths[fold, i, j], scores[fold, i, j] = solution.x, score
                    iterations[fold, i, j] = solution.iterations
                    if self.verbose:
                        text = f"{name}: {solution.iterations} iterations, score {score:.6g}"
                        print(text, flush=True)
            if self.refit:
                i, j = np.unravel_index(scores.sum(axis=0).argmax(), shape[1:])
                start = paths[:, i, j].mean(axis=0, dtype=np.float64)
                problem = self._problem(samples, None, columns, threads)
                solution = problem.solve(start, float(Cs[j]), float(ratios[i]), self, "all samples")
                flat = solution.x
                early += solution.problem is not None
            else:
                best = scores.reshape(len(splits), -1).argmax(axis=1)
                i, j = np.unravel_index(best, shape[1:])
                flat = paths[np.arange(len(splits)), i, j].mean(axis=0, dtype=np.float64)
        if early:
            warnings.warn(
                f"the solver did not converge in {early} of {scores.size + bool(self.refit)} fits: "
                "more iterations (max_iter), or features of the same scale, can help",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._take_features(like)
        self.classes_ = classes
        self.coef_, self.intercept_ = unflatten(flat, X.shape[1], columns, X.dtype)
        self.C_, self.l1_ratio_ = float(np.mean(Cs[j])), float(np.mean(ratios[i]))
        self.Cs_, self.l1_ratios_ = Cs, ratios
        self.scores_, self.n_iter_ = scores, iterations
        self.coefs_paths_ = paths.reshape(*shape, -1, *columns or (1,)).swapaxes(-1, -2)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The score of the predictions, as `scoring` defines it; the accuracy by default.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.
        y : array_like of shape (n_samples,)
            The right labels.
        sample_weight : array_like of shape (n_samples,), optional
            Weights of the samples.

        Returns
        -------
        float
            The score.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegressionCV
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegressionCV(Cs=3, max_iter=1000, scoring="neg_log_loss").fit(X, y)
        >>> print(-0.2 < model.score(X, y) < 0)
        True
        """
        check_is_fitted(self)
        options = {} if sample_weight is None else {"sample_weight": sample_weight}
        return float(get_scorer(self.scoring or "accuracy")(self, X, y, **options))

    def _check_parameters(self) -> tuple[Array, Array]:
        """`Cs` and `l1_ratios` as arrays."""
        self._check_solver_parameters()
        self._check_flags("fit_intercept", "refit")
        if isinstance(self.Cs, Integral):
            if self.Cs < 1:
                raise ValueError(f"Cs must be at least 1 or be values above 0, got {self.Cs!r}")
            Cs = np.logspace(-4, 4, int(self.Cs))
        else:
            Cs = np.array(self.Cs, ndmin=1)
        ratios = np.array(self.l1_ratios, ndmin=1)
        for values, name in ((Cs, "Cs"), (ratios, "l1_ratios")):
            if values.ndim != 1 or not len(values) or values.dtype.kind not in "fiu":
                raise ValueError(f"{name} must be one or more numbers, got {values.tolist()!r}")
        for value in Cs:
            check_C(float(value), "each of Cs")
        for value in ratios:
            check_l1_ratio(float(value), "each of l1_ratios")
        check_solver(self.solver, ratios.tolist())
        return Cs.astype(float), ratios.astype(float)

    def _problem(
        self,
        samples: _Samples,
        ranges: list[tuple[int, int]] | None,
        columns: tuple[int, ...],
        threads: Team,
    ) -> _Problem:
        weight = samples.weight
        if ranges is not None and weight is not None:
            weight = np.concatenate([weight[a:b] for a, b in ranges])
        rows = len(samples.y) if ranges is None else sum(b - a for a, b in ranges)
        total = total_weight(weight, rows)
        objective = Objective(
            samples.X,
            samples.target,
            weight=samples.weight,
            total=total,
            columns=columns,
            fit_intercept=self.fit_intercept,
            team=threads,
            ranges=ranges,
            newton=self.solver == NEWTON,
        )
        return _Problem(objective, total, threads)

    def _solutions(
        self, problem: _Problem, ratios: Array, Cs: Array, where: str
    ) -> Iterator[tuple[int, int, str, Solution]]:
        """For each of `ratios` and each of `Cs` their places, a name, and the solution.

        It starts from that of the C before. Its vector is changed when the next one is computed.
        """
        for i, ratio in enumerate(ratios):
            flat = np.zeros(problem.objective.size)
            for j, C in enumerate(Cs):
                name = f"{where}, l1_ratio {ratio:g}, C {C:g}"
                solution = problem.solve(flat, C, ratio, self, name)
                yield i, j, name, solution
                flat = solution.x

    @staticmethod
    def _model(
        classes: Array, flat: Array, features: int, columns: tuple[int, ...], dtype: Any
    ) -> SoftmaxRegression:
        """A fitted classifier, for scorers."""
        model = SoftmaxRegression()
        model.classes_, model.n_features_in_ = classes, features
        model.coef_, model.intercept_ = unflatten(flat, features, columns, dtype)
        return model


class _Problem(NamedTuple):
    """The objective for the samples of a training set, and the sum of their weights."""

    objective: Objective
    total: float
    threads: Team

    def solve(
        self, start: Array, C: float, l1_ratio: float, model: SoftmaxRegressionCV, name: str
    ) -> Solution:
        printer = Printer(2 if model.verbose > 1 else 0, model.max_iter, f"{name}, ")
        return solve(
            self.objective,
            start,
            C=C,
            l1_ratio=l1_ratio,
            solver=model.solver,
            total=self.total,
            max_iter=model.max_iter,
            tol=model.tol,
            team=self.threads,
            progress=printer,
        )


def _scorer(scoring: Any, classes: Array) -> Any:
    """The scorer, told all classes if it takes them: a test set may lack some."""
    scorer = get_scorer(scoring or "accuracy")
    function = getattr(scorer, "_score_func", None)
    if function is None or "labels" not in inspect.signature(function).parameters:
        return scorer
    options = dict(scorer._kwargs, labels=classes)
    if len(classes) == 2 and "pos_label" in inspect.signature(function).parameters:
        options.setdefault("pos_label", classes[1])
    return make_scorer(
        function,
        response_method=scorer._response_method,
        greater_is_better=scorer._sign == 1,
        **options,
    )


def _score(scorer: Any, model: SoftmaxRegression, test: _Samples) -> float:
    options = {} if test.given is None else {"sample_weight": test.given}
    return float(scorer(model, test.X, test.y, **options))


class _Samples(NamedTuple):
    """Samples, and what belongs to each of them; `given` are the weights without classes."""

    X: Any
    y: Array
    target: Array
    weight: Array | None
    given: Array | None

    def take(self, rows: Any) -> _Samples:
        """The samples with these numbers, or those of a slice, without a copy of the latter."""
        X = rows_of(self.X, rows.start, rows.stop) if isinstance(rows, slice) else self.X[rows]
        others: list[Any] = [None if value is None else value[rows] for value in self[1:]]
        return _Samples(X, *others)


_Fold = tuple[_Samples, "list[tuple[int, int]] | None", _Samples]


def _indices(chosen: Any, samples: int) -> Array:
    """The numbers of the samples that a splitter chose, by their numbers or by a mask."""
    numbers: Array = np.asarray(chosen)
    if numbers.dtype == bool and numbers.shape == (samples,):
        return np.flatnonzero(numbers)
    return numbers


def _shared(
    samples: _Samples, splits: list[tuple[Array, Array]]
) -> tuple[_Samples, Iterator[_Fold]]:
    """The samples, perhaps in another order, and for each fold its training and its test set.

    A training set is given as samples and the ranges that belong to it, None for all of them.
    """
    n = len(samples.y)
    tests = [np.unique(test) for _, test in splits]
    fold_of = np.full(n, -1)
    for fold, test in enumerate(tests):
        fold_of[test] = fold
    partition = sum(len(test) for _, test in splits) == n and bool((fold_of >= 0).all())
    partition = partition and all(
        np.array_equal(np.sort(train), np.flatnonzero(fold_of != fold))
        for fold, (train, _) in enumerate(splits)
    )
    if not partition:
        return samples, ((samples.take(train), None, samples.take(test)) for train, test in splits)
    if (np.diff(fold_of) < 0).any():
        samples = samples.take(np.argsort(fold_of, kind="stable"))
    ends = np.cumsum([len(test) for test in tests]).tolist()

    def folds() -> Iterator[_Fold]:
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            ranges = [(a, b) for a, b in ((0, start), (stop, n)) if a < b]
            yield samples, ranges, samples.take(slice(start, stop))

    return samples, folds()
