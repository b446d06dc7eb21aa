"""`SoftmaxRegression`."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import unique_labels

import pyce
from pyce._types import Array
from pyce.sklearn._adam import Adam
from pyce.sklearn._classifier import (
    LinearSoftmaxClassifier,
    checked_weights,
    columns_and_target,
    distinct,
    total_weight,
)
from pyce.sklearn._objective import Objective
from pyce.sklearn._solve import (
    NEWTON,
    Printer,
    check_C,
    check_l1_ratio,
    check_solver,
    solve,
    unflatten,
    warn_unless_converged,
)
from pyce.sklearn._team import team


class SoftmaxRegression(LinearSoftmaxClassifier):
    """Softmax regression with an elastic-net penalty: `LogisticRegression` of scikit-learn, faster.

    With the scores z_i = W·x_i + b of the sample i and its weight s_i, `fit` minimises

        Σ_i s_i · (log Σ_c exp(z_ic) − z_iy) / Σ_i s_i
            + ((1 − l1_ratio) · ‖W‖² / 2 + l1_ratio · Σ |W_cj|) / (C · Σ_i s_i)

    by L-BFGS, by Newton's method, or with `l1_ratio` above 0 by a projected L-BFGS. With two
    classes, each sample has one score, that of the second class relative to the first, and the loss
    is `pyce.binary_cross_entropy`. `partial_fit` makes steps of Adam on the same objective.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, above 0; `numpy.inf` for none. The intercepts are not
        penalised.
    l1_ratio : float
        The share of the absolute values in the penalty, from 0 to 1: 0 is the squared (L2) penalty,
        1 the penalty on absolute values (L1), with which many coefficients are exactly 0.
    solver : {"lbfgs", "newton-cholesky"}
        The method of `fit`. "newton-cholesky" is Newton's method. It takes few iterations, whatever
        the scales of the features, and reaches a small `tol`. An iteration computes the matrix of
        second derivatives, which needs memory for 8 · ((n_features + 1) · n_classes)² bytes and
        more: it pays for few features and classes, especially if features differ in scale or are
        correlated. It requires an `l1_ratio` of 0.
    fit_intercept : bool
        Whether to fit the intercepts b; they are 0 if not.
    class_weight : dict, "balanced" or None
        Weights of the classes: the weight of each sample is multiplied by that of its class. A
        class that the dict does not name has weight 1. "balanced" gives every class the same sum of
        weights.
    max_iter : int
        Maximum number of iterations of the solver, at least 0.
    tol : float
        The solver stops when no derivative of the objective exceeds `tol` in magnitude, or when a
        step changes the objective by no more than rounding does. Finite and at least 0. With
        `l1_ratio` above 0, the smallest sub-gradient takes the place of the derivatives.
    warm_start : bool
        Whether `fit` starts from the previous solution, if there is one, and not from 0.
    verbose : int
        1 prints the progress of `fit` at most once a second, and its end; 2 prints every iteration.
        `partial_fit` prints one line for each call. 0 prints nothing.
    batch_size : int
        Number of samples of a step of `partial_fit`.
    learning_rate_init : float
        Size of the steps of `partial_fit`, above 0 and finite.
    random_state : int, RandomState or None
        Determines the order in which `partial_fit` takes the samples of a call. An integer gives
        the same results each time.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        W, in the dtype of X: float32 or float64. With two classes, the shape is (1, n_features).
    intercept_ : ndarray of shape (n_classes,)
        b; with two classes, the shape is (1,).
    n_iter_ : ndarray of shape (1,)
        Number of iterations that the solver made, plus the number of calls of `partial_fit` since.
    n_features_in_ : int
        Number of features of the samples.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of these features; defined only if X had names.

    Examples
    --------
    >>> from pyce.sklearn import SoftmaxRegression
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression(max_iter=200).fit(X, y)
    >>> print(round(model.score(X, y), 3))
    0.973
    >>> print(model.predict_proba(X[:1]).round(3))
    [[0.982 0.018 0.   ]]

    Notes
    -----
    The objective and the stopping rule are those of ``LogisticRegression(solver="lbfgs")`` of
    scikit-learn 1.9, so the solutions agree up to the tolerance. Newton's method has the same
    stopping rule. With `l1_ratio` the objective is that of ``LogisticRegression(solver="saga")``.
    Source of the formula:
    https://scikit-learn.org/stable/modules/linear_model.html#multinomial-case
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        solver: str = "lbfgs",
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        warm_start: bool = False,
        verbose: int = 0,
        batch_size: int = 256,
        learning_rate_init: float = 0.01,
        random_state: Any = None,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.verbose = verbose
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Find the coefficients.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite. float32 and float64 keep their dtype; other dtypes are
            converted to float64. Arrays that are contiguous in C or Fortran order are not copied.
        y : array_like of shape (n_samples,)
            Labels of at least two classes.
        sample_weight : float or array_like of shape (n_samples,), optional
            Weights of the samples, used as given. The sum of the weights times the class weights
            must be above 0.

        Returns
        -------
        SoftmaxRegression
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of range; if `y` has a single class; if a value is not finite; if
            shapes do not match; if the sum of the weights is not above 0; if, with `warm_start`,
            the number of classes or features differs from that of the previous solution.

        Warns
        -----
        ConvergenceWarning
            If the solver stopped before it reached its tolerance. The coefficients are the best
            that it found.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0]], ["no", "no", "yes"])
        >>> print(model.classes_, model.coef_.shape)
        ['no' 'yes'] (1, 1)
        """
        self._check_parameters()
        X, y, like = self._samples(X, y, sample_weight)
        classes, labels = distinct(y)
        weight = self._weights(classes, labels, checked_weights(sample_weight, len(y)))
        total = total_weight(weight, len(labels))
        columns, target = columns_and_target(classes, labels, X.dtype)
        start = self._start(X.shape[1], columns)
        printer = Printer(self.verbose, self.max_iter)

        with team() as threads:
            objective = Objective(
                X,
                target,
                weight=weight,
                total=total,
                columns=columns,
                fit_intercept=self.fit_intercept,
                team=threads,
                newton=self.solver == NEWTON,
            )
            solution = solve(
                objective,
                start,
                C=self.C,
                l1_ratio=self.l1_ratio,
                solver=self.solver,
                total=total,
                max_iter=self.max_iter,
                tol=self.tol,
                team=threads,
                progress=printer,
            )
        printer.end()
        warn_unless_converged(solution)
        self._take_features(like)
        self.classes_ = classes
        self.coef_, self.intercept_ = unflatten(solution.x, X.shape[1], columns, X.dtype)
        self.n_iter_ = np.array([solution.iterations], np.int32)
        self._adam: Adam | None = None
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> SoftmaxRegression:
        """Improve the coefficients by one pass over the samples, in steps of `batch_size` samples.

        A step is one of Adam on the objective of `fit` for these samples, with the loss estimated
        from those of the step. So repeated calls with the same samples approach the solution of
        `fit`, and if the samples of a data set arrive in k parts, `C` is to be multiplied by k for
        the same strength of the penalty. "balanced" weights are those of the samples of a call. The
        first call starts from 0, or from the solution of a previous `fit`.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite. The first call determines the dtype of the coefficients:
            float32 for float32, float64 for other dtypes.
        y : array_like of shape (n_samples,)
            Labels, all of them among the classes.
        classes : array_like of shape (n_classes,), optional
            All labels that occur in this call and in later ones, at least two. The first call
            requires them, unless `fit` was called before; in later calls they may be left out.
        sample_weight : float or array_like of shape (n_samples,), optional
            Weights of the samples, used as given. The sum of the weights times the class weights
            must be above 0.

        Returns
        -------
        SoftmaxRegression
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of range; if `classes` is missing in the first call, has fewer
            than two labels, or differs from that of earlier calls; if a label is not among the
            classes; if a value is not finite; if shapes do not match; if the sum of the weights is
            not above 0. The coefficients stay as they were.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression(batch_size=16, random_state=0)
        >>> for _ in range(50):
        ...     model = model.partial_fit(X, y, classes=[0, 1, 2])
        >>> print(model.score(X, y) > 0.95)
        True
        """
        self._check_parameters()
        first = not hasattr(self, "classes_")
        known = None if first else self.classes_
        if classes is not None:
            classes = unique_labels(classes)
            if known is not None and not np.array_equal(classes, known):
                raise ValueError(f"classes must be those of earlier calls, {known}, got {classes}")
            known = classes
        if known is None:
            raise ValueError("the first call of partial_fit requires classes")
        if len(known) < 2:
            raise ValueError(f"classes must have at least 2 labels, got {known}")
        dtype = (np.float64, np.float32) if first else self.coef_.dtype
        X, y, like = self._samples(X, y, sample_weight, reset=first, dtype=dtype)
        labels = np.minimum(np.searchsorted(known, y), len(known) - 1)
        if (known[labels] != y).any():
            unknown = y[known[labels] != y].tolist()[0]
            raise ValueError(f"the label {unknown!r} is not among the classes {known}")
        weight = self._weights(known, labels, checked_weights(sample_weight, len(y)))
        total = total_weight(weight, len(labels))
        columns, target = columns_and_target(known, labels, X.dtype)
        shape = (X.shape[1] + bool(self.fit_intercept), *columns)
        parameters = np.zeros(shape, X.dtype)
        if not first:
            parameters[: X.shape[1]] = self.coef_.T.reshape(-1, *columns)
            if self.fit_intercept:
                parameters[X.shape[1]] = self.intercept_.reshape(columns)
        adam = copy.deepcopy(getattr(self, "_adam", None))
        if adam is None or adam.first.shape != shape:  # fit_intercept may have changed
            adam = Adam(shape, X.dtype)
        loss = self._pass(X, target, weight, total, parameters, adam)
        self._adam = adam
        iterations = 1 if first else int(self.n_iter_[0]) + 1
        if self.verbose:
            print(f"iteration {iterations}, by partial_fit: mean loss {loss:.6g}", flush=True)
        self._take_features(like)
        self.classes_ = known
        self.coef_, self.intercept_ = unflatten(parameters, X.shape[1], columns, X.dtype)
        self.n_iter_ = np.array([iterations], np.int32)
        return self

    def _pass(
        self,
        X: Any,
        target: Array,
        weight: Array | None,
        total: float,
        parameters: Array,
        adam: Adam,
    ) -> float:
        """Change `parameters` by the steps of a pass over the samples; the mean of their losses."""
        samples, features = X.shape
        strength = 1.0 / (self.C * total)
        coefficients = parameters[:features]
        order = check_random_state(self.random_state).permutation(samples)
        gradient = np.empty_like(parameters)
        mean = 0.0
        for start in range(0, samples, self.batch_size):
            which = order[start : start + self.batch_size]
            x = X[which]
            z = x @ coefficients
            if self.fit_intercept:
                z += parameters[features]
            some = None if weight is None else weight[which]
            if z.ndim == 2:
                loss, z = pyce.cross_entropy_with_grad(
                    z, target[which], sample_weight=some, reduction="sum", out=z
                )
            else:
                loss, z = pyce.binary_cross_entropy_with_grad(
                    z, target[which], weight=some, reduction="sum"
                )
            mean += float(loss) / total
            z *= samples / (len(which) * total)  # an estimate of the mean over all samples
            gradient[:features] = x.T @ z
            gradient[:features] += (1 - self.l1_ratio) * strength * coefficients
            if self.fit_intercept:
                gradient[features] = z.sum(axis=0)
            adam.step(
                parameters, gradient, self.learning_rate_init, self.l1_ratio * strength, features
            )
        return mean

    def _check_parameters(self) -> None:
        check_C(self.C)
        check_l1_ratio(self.l1_ratio)
        check_solver(self.solver, self.l1_ratio)
        self._check_solver_parameters()
        self._check_flags("fit_intercept", "warm_start")
        if not (isinstance(self.batch_size, Integral) and self.batch_size > 0):
            raise ValueError(f"batch_size must be a whole number above 0, got {self.batch_size!r}")
        rate = self.learning_rate_init
        if not (isinstance(rate, Real) and 0 < rate < np.inf):
            raise ValueError(f"learning_rate_init must be a finite number above 0, got {rate!r}")
