"""A scikit-learn classifier whose loss and gradient are pyce's.

The objective, the solver and its stopping rule are those of scikit-learn's `LogisticRegression`.
The evaluation of the objective differs: it goes through the rows in blocks. For each block, the
scores are written to a buffer that fits the cache, the gradient of the loss replaces the scores,
and its product with the rows is added to the gradient of the coefficients. X is read once for each
evaluation, and the scores stay in the cache. Many rows are divided among threads. Each thread runs
all three steps on its own blocks, with BLAS and pyce on one thread each, so threads wait for each
other only at the end of an evaluation.
"""

from __future__ import annotations

import contextvars
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

import pyce
from pyce._arguments import refuse_masked
from pyce._threads import at_most
from pyce._types import Array

try:
    from scipy.optimize import minimize
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, compute_class_weight
    from sklearn.utils.extmath import safe_sparse_dot
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
    from threadpoolctl import threadpool_limits
except ImportError as error:
    raise ImportError(
        "pyce.sklearn needs scikit-learn 1.6 or later: pip install 'pyce-kernels[sklearn]'"
        f" ({error})"
    ) from error

__all__ = ["SoftmaxRegression"]

# Size of the features and scores of a block, so that they fit the cache of a core; and the fewest
# rows of a block, so that the matrix products are efficient.
_BLOCK_BYTES = 2**21
_LEAST_ROWS = 1024
# Multiplications of an evaluation for each thread: a thread with fewer takes more time to wake than
# it saves.
_WORTH = 2**23


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax regression with an L2 penalty: `LogisticRegression` of scikit-learn, faster.

    With the scores z_i = W·x_i + b of the sample i and its weight s_i, `fit` minimises

        Σ_i s_i · (log Σ_c exp(z_ic) − z_iy) / Σ_i s_i  +  ‖W‖² / (2 · C · Σ_i s_i)

    by L-BFGS (`scipy.optimize.minimize`). With two classes, each sample has one score, that of the
    second class relative to the first, and the loss is `pyce.binary_cross_entropy`.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, above 0; `numpy.inf` for none. The intercepts are not
        penalised.
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
        step changes the objective by no more than rounding does. Finite and at least 0.
    warm_start : bool
        Whether `fit` starts from the previous solution, if there is one, and not from 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        W, in the dtype of X: float32 or float64. With two classes, the shape is (1, n_features).
    intercept_ : ndarray of shape (n_classes,)
        b; with two classes, the shape is (1,).
    n_iter_ : ndarray of shape (1,)
        Number of iterations that the solver made.
    n_features_in_ : int
        Number of features of the X that `fit` was called with.
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
    scikit-learn 1.9, so the solutions agree up to the tolerance. Source of the formula:
    https://scikit-learn.org/stable/modules/linear_model.html#multinomial-case
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        warm_start: bool = False,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

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
        for value, name in ((X, "X"), (y, "y"), (sample_weight, "sample_weight")):
            refuse_masked(value, name)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=(np.float64, np.float32))
        if not issparse(X) and not (X.flags.forc and X.flags.aligned):
            X = np.require(X, requirements=["C", "A"])  # BLAS would copy each block each time
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"the labels must be of at least 2 classes, but there is only one class: "
                f"{classes.tolist()[0]!r}"
            )
        labels = np.searchsorted(classes, y)
        weight = self._weights(X, y, classes, labels, sample_weight)
        total = float(len(labels) if weight is None else weight.sum())
        if not total > 0:
            raise ValueError(
                f"sample and class weights must not add up to zero or less, got {total}"
            )
        if len(classes) == 2:  # one score, and as target how probable the second class is
            labels = labels.astype(X.dtype)
        columns = () if len(classes) == 2 else (len(classes),)
        start = self._start(X.shape[1], columns)

        with _threads(X.shape, columns) as (threads, executor):
            objective = _Objective(
                X,
                labels,
                weight=weight,
                total=total,
                columns=columns,
                C=self.C,
                fit_intercept=self.fit_intercept,
                threads=threads,
                executor=executor,
            )
            found = minimize(
                objective,
                start,
                method="L-BFGS-B",
                jac=True,
                options={
                    "maxiter": self.max_iter,
                    "maxls": 50,
                    "gtol": self.tol,
                    "ftol": 64 * np.finfo(float).eps,
                },
            )
        iterations = min(found.nit, self.max_iter)
        if found.status != 0:
            warnings.warn(
                f"L-BFGS did not converge in {iterations} iterations: {found.message}\n"
                "More of them (max_iter), or features of the same scale, can help.",
                ConvergenceWarning,
                stacklevel=2,
            )
        solution = found.x.reshape(-1, *columns or (1,)).T.astype(X.dtype, order="C")
        self.classes_ = classes
        self.coef_ = solution[:, : X.shape[1]].copy()
        self.intercept_ = (
            solution[:, -1].copy() if self.fit_intercept else np.zeros(len(solution), X.dtype)
        )
        self.n_iter_ = np.array([iterations], np.int32)
        return self

    def decision_function(self, X: Any) -> Array:
        """The scores z = W·x + b.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            With two classes, the shape is (n_samples,), and a score above 0 means that the second
            class is more likely.

        Raises
        ------
        NotFittedError
            If `fit` was not called before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that `fit` was called with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression(tol=1e-8).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 2])
        >>> print(model.decision_function([[1.5]]).shape)
        (1, 3)
        """
        check_is_fitted(self)
        refuse_masked(X, "X")
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        scores: Array = safe_sparse_dot(X, self.coef_.T, dense_output=True)
        scores += self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """The most likely class of each sample.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels. Of classes that are equally likely, the first is returned.

        Raises
        ------
        NotFittedError
            If `fit` was not called before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that `fit` was called with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression(tol=1e-8).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 2])
        >>> print(model.predict([[-1.0], [9.0]]))
        [0 2]
        """
        scores = self.decision_function(X)
        which = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        labels: Array = self.classes_[which]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, exp(z_c) / Σ_k exp(z_k): `pyce.softmax` of the scores.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_` and in the dtype of the scores.

        Raises
        ------
        NotFittedError
            If `fit` was not called before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that `fit` was called with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression(tol=1e-8).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 2])
        >>> print(model.predict_proba([[0.0]]).round(2))
        [[0.85 0.12 0.04]]
        """
        logits = self._logits(X)
        return pyce.softmax(logits, out=logits)

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of the probabilities: `pyce.log_softmax` of the scores.

        They are accurate also where the probabilities round to 0 or 1, and never −inf.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Natural logarithms, in the order of `classes_` and in the dtype of the scores.

        Raises
        ------
        NotFittedError
            If `fit` was not called before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that `fit` was called with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression(tol=1e-8).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 2])
        >>> print((model.predict_log_proba([[5000.0]]) > -1e5).all())
        True
        """
        logits = self._logits(X)
        return pyce.log_softmax(logits, out=logits)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _logits(self, X: Any) -> Array:
        """A new array of the scores, (n_samples, n_classes) also with two classes."""
        scores = self.decision_function(X)
        if scores.ndim == 2:
            return scores
        logits = np.zeros((len(scores), 2), scores.dtype)
        logits[:, 1] = scores
        return logits

    def _check_parameters(self) -> None:
        if not (isinstance(self.C, Real) and self.C > 0):
            raise ValueError(f"C must be a number above 0, got {self.C!r}")
        if not (isinstance(self.tol, Real) and 0 <= self.tol < np.inf):
            raise ValueError(f"tol must be a finite number of at least 0, got {self.tol!r}")
        if not (isinstance(self.max_iter, Integral) and self.max_iter >= 0):
            raise ValueError(
                f"max_iter must be a whole number of at least 0, got {self.max_iter!r}"
            )
        for name in ("fit_intercept", "warm_start"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        weight = self.class_weight
        balanced = isinstance(weight, str) and weight == "balanced"  # `==` of an array is no bool
        if not (weight is None or isinstance(weight, dict) or balanced):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {weight!r}")

    def _weights(self, X: Any, y: Array, classes: Array, labels: Array, given: Any) -> Array | None:
        """The weights of the samples times those of their classes; None if all are 1."""
        weight: Array | None = None
        if given is not None:
            weight = check_array(
                np.full(len(y), given) if isinstance(given, Real) else given,
                ensure_2d=False,
                dtype=np.float64,
                input_name="sample_weight",
            )
            if weight.shape != y.shape:
                raise ValueError(
                    f"sample_weight must have shape {y.shape}, one for each sample of X, "
                    f"got {weight.shape}"
                )
        if self.class_weight is None:
            return weight
        if self.class_weight == "balanced":
            counts = np.bincount(labels, weight, len(classes))
            of_classes = np.divide(
                counts.sum(), len(classes) * counts, out=np.zeros(len(classes)), where=counts > 0
            )
        else:
            of_classes = compute_class_weight(self.class_weight, classes=classes, y=y)
        of_samples: Array = of_classes[labels]
        return of_samples if weight is None else weight * of_samples

    def _start(self, features: int, columns: tuple[int, ...]) -> Array:
        """The point from which the solver starts, flat: W transposed, then the intercepts."""
        start = np.zeros((features + bool(self.fit_intercept), *(columns or (1,))))
        if self.warm_start and hasattr(self, "coef_"):
            if self.coef_.shape != (start.shape[1], features):
                raise ValueError(
                    f"with warm_start the coefficients of shape {self.coef_.shape} must fit "
                    f"classes and features, which need {(start.shape[1], features)}"
                )
            start[:features] = self.coef_.T
            if self.fit_intercept:
                start[features] = self.intercept_
        return start.ravel()


# ---------------------------------------------------------------------------------------------
# The objective

# The threads of a fit need BLAS on one thread each, and that setting is global to the process. So
# one fit at a time uses threads; fits that run at the same time use one thread.
_alone = threading.Lock()
_limits: threadpool_limits | None = None  # of BLAS, while a fit uses threads


def _after_fork() -> None:
    """Release in the child what a fit of another thread holds: that thread does not exist there."""
    global _alone, _limits
    _alone = threading.Lock()
    if _limits is not None:
        _limits.restore_original_limits()
        _limits = None


def _forget_limits() -> None:
    global _limits
    _limits = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def _threads(
    shape: tuple[int, int], columns: tuple[int, ...]
) -> Iterator[tuple[int, Executor | None]]:
    """The number of threads of an evaluation, and an executor for all but the caller's."""
    global _limits
    rows, features = shape
    work = 2 * rows * features * int(np.prod(columns))
    worth = min(pyce.get_num_threads(), work // _WORTH)
    threads = min(worth, rows // _LEAST_ROWS)
    with ExitStack() as stack:
        # Products of few rows with many features run on the threads of BLAS. In small products,
        # the threads of NumPy's BLAS and of SciPy's slow each other down, since both spin.
        if threads < 2 <= worth or not _alone.acquire(blocking=False):
            yield 1, None
            return
        stack.callback(_alone.release)
        stack.callback(_forget_limits)
        _limits = stack.enter_context(threadpool_limits({"blas": 1}))
        if threads < 2:
            yield 1, None
            return
        stack.enter_context(at_most(1))  # in this context and in its copies
        yield threads, stack.enter_context(ThreadPoolExecutor(threads - 1))


class _Objective:
    """The penalised mean loss and its gradient at a flat vector of coefficients.

    The vector holds W transposed, (features, classes), and then the intercepts, so that scores are
    the product of X and the vector without a transposition.
    """

    def __init__(
        self,
        X: Any,
        target: Array,
        *,
        weight: Array | None,
        total: float,
        columns: tuple[int, ...],
        C: float,
        fit_intercept: bool,
        threads: int,
        executor: Executor | None,
    ) -> None:
        self._shape = (X.shape[1] + bool(fit_intercept), *columns)
        self._features = X.shape[1]
        self._dtype = X.dtype
        self._total = total
        self._penalty = 1.0 / (C * total)
        self._executor = executor
        bounds = [len(target) * i // threads for i in range(threads + 1)]
        self._parts = [
            _Rows(X, target, weight, start, stop, self._shape) for start, stop in pairwise(bounds)
        ]

    def __call__(self, flat: Array) -> tuple[float, Array]:
        parameters = flat.reshape(self._shape)
        narrow = parameters.astype(self._dtype, copy=False)
        first, *others = self._parts
        waiting = [
            # `pyce.use_backend` sets the backend in the context of the caller.
            self._executor.submit(contextvars.copy_context().run, part.evaluate, narrow)
            for part in others
            if self._executor
        ]
        first.evaluate(narrow)
        for part in waiting:
            part.result()
        coefficients = parameters[: self._features]
        loss = sum(part.loss for part in self._parts) / self._total
        loss += 0.5 * self._penalty * float(np.vdot(coefficients, coefficients))
        gradient = sum((part.gradient for part in others), first.gradient) / self._total
        gradient[: self._features] += self._penalty * coefficients
        return loss, gradient.ravel()


class _Rows:
    """Rows of one thread: the sum of their weighted losses, and the gradient of this sum."""

    def __init__(
        self,
        X: Any,
        target: Array,
        weight: Array | None,
        start: int,
        stop: int,
        shape: tuple[int, ...],
    ) -> None:
        features, columns = X.shape[1], shape[1:]
        row = (features + int(np.prod(columns))) * X.dtype.itemsize
        count = -(-(stop - start) // max(_LEAST_ROWS, _BLOCK_BYTES // row))
        bounds = [start + (stop - start) * i // count for i in range(count + 1)]
        blocks = [slice(a, b) for a, b in pairwise(bounds)]
        self._blocks = [(X[b], target[b], None if weight is None else weight[b]) for b in blocks]
        rows = max(len(t) for _, t, _ in self._blocks)
        self._features = features
        self._scores = np.empty((rows, *columns), X.dtype)
        # The intercepts, repeated for each row: adding them takes less time than broadcasting them.
        self._intercepts = np.empty_like(self._scores) if shape[0] > features else None
        self._ones = np.ones(rows, X.dtype)
        self._product = np.empty((features, *columns), X.dtype)
        self.loss = 0.0
        self.gradient = np.empty(shape)

    def evaluate(self, parameters: Array) -> None:
        """Set `loss` and `gradient`, summed in float64."""
        features, dense = self._features, not issparse(self._blocks[0][0])
        coefficients = parameters[:features]
        self.loss = 0.0
        self.gradient[...] = 0
        if self._intercepts is not None:
            self._intercepts[...] = parameters[features]
        for x, target, weight in self._blocks:
            z = self._scores[: len(target)]
            # np.dot, since np.matmul holds the GIL during products with few columns.
            z = np.dot(x, coefficients, out=z) if dense else x @ coefficients
            if self._intercepts is not None:
                z += self._intercepts[: len(z)]
            if z.ndim == 2:
                loss, z = pyce.cross_entropy_with_grad(
                    z, target, sample_weight=weight, reduction="sum", out=z
                )
            else:
                loss, z = pyce.binary_cross_entropy_with_grad(
                    z, target, weight=weight, reduction="sum"
                )
            self.loss += float(loss)
            self.gradient[:features] += np.dot(x.T, z, out=self._product) if dense else x.T @ z
            if self._intercepts is not None:
                self.gradient[features] += np.dot(self._ones[: len(z)], z)
