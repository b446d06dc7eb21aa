"""The predictions of the classifiers of `pyce.sklearn`, and the checks of their data."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, compute_class_weight
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import pyce
from pyce._arguments import refuse_masked
from pyce._types import Array

_DTYPES = (np.float64, np.float32)  # others are converted to the first


class LinearSoftmaxClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with the scores W·x + b, and the softmax of the scores as probabilities."""

    class_weight: Any
    fit_intercept: bool
    max_iter: int
    tol: float
    verbose: int
    warm_start: bool

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
            If the classifier was not fitted before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> from pyce.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression(tol=1e-8).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 2])
        >>> print(model.decision_function([[1.5]]).shape)
        (1, 3)
        """
        check_is_fitted(self)
        refuse_masked(X, "X")
        X = validate_data(self, X, accept_sparse="csr", dtype=_DTYPES, reset=False)
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
            If the classifier was not fitted before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that it was fitted with.

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
            If the classifier was not fitted before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that it was fitted with.

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
            If the classifier was not fitted before.
        ValueError
            If a value is not finite, or if the number or the names of the features differ from
            those that it was fitted with.

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

    def _samples(
        self, X: Any, y: Any, sample_weight: Any, reset: bool = True, dtype: Any = _DTYPES
    ) -> tuple[Any, Array, LinearSoftmaxClassifier]:
        """X and y of a fit, checked. X is in CSR format or contiguous in C or Fortran order.

        The third result has the number and the names of the features, for `_take_features`.
        """
        for value, name in ((X, "X"), (y, "y"), (sample_weight, "sample_weight")):
            refuse_masked(value, name)
        # A fit that is refused later leaves the classifier as it was, with its features.
        like = copy.copy(self)
        X, y = validate_data(like, X, y, accept_sparse="csr", dtype=dtype, reset=reset)
        if not issparse(X) and not (X.flags.forc and X.flags.aligned):
            X = np.require(X, requirements=["C", "A"])  # BLAS would copy each block each time
        check_classification_targets(y)
        return X, y, like

    def _take_features(self, like: LinearSoftmaxClassifier) -> None:
        """Have the number and the names of the features that `like` has."""
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))
            else:
                self.__dict__.pop(name, None)

    def _check_solver_parameters(self) -> None:
        if not (isinstance(self.tol, Real) and 0 <= self.tol < np.inf):
            raise ValueError(f"tol must be a finite number of at least 0, got {self.tol!r}")
        for name in ("max_iter", "verbose"):
            value: int = getattr(self, name)
            if not (isinstance(value, Integral) and value >= 0):
                raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
        weight = self.class_weight
        balanced = isinstance(weight, str) and weight == "balanced"  # `==` of an array is no bool
        if not (weight is None or isinstance(weight, dict) or balanced):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {weight!r}")

    def _check_flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

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

    def _weights(self, classes: Array, labels: Array, given: Array | None) -> Array | None:
        """The weights of the samples times those of their classes; None if all are 1."""
        if self.class_weight is None:
            return given
        sums = np.bincount(labels, given, len(classes))
        of_samples: Array = self._weights_of_classes(classes, sums)[labels]
        return of_samples if given is None else given * of_samples

    def _weights_of_classes(self, classes: Array, sums: Array) -> Array:
        """The weights of the classes, of which `sums` has the sums of the samples' weights."""
        if not isinstance(self.class_weight, str):
            weights: Array = compute_class_weight(self.class_weight, classes=classes, y=classes)
            return weights
        balanced: Array = np.zeros(len(classes))
        np.divide(sums.sum(), len(classes) * sums, out=balanced, where=sums > 0)
        return balanced


def checked_weights(given: Any, samples: int) -> Array | None:
    """The weights of the samples as an array, or None if there are none."""
    if given is None:
        return None
    weight: Array = check_array(
        np.full(samples, given) if isinstance(given, Real) else given,
        ensure_2d=False,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if weight.shape != (samples,):
        raise ValueError(
            f"sample_weight must have shape {(samples,)}, one for each sample of X, "
            f"got {weight.shape}"
        )
    return weight


def distinct(y: Array) -> tuple[Array, Array]:
    """The classes, sorted, and the class number of each label."""
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(
            f"the labels must be of at least 2 classes, but there is only one class: "
            f"{classes.tolist()[0]!r}"
        )
    return classes, np.searchsorted(classes, y)


def total_weight(weight: Array | None, samples: int) -> float:
    """The sum of the weights, which must be above 0."""
    total = float(samples if weight is None else weight.sum())
    if not total > 0:
        raise ValueError(f"sample and class weights must not add up to zero or less, got {total}")
    return total


def columns_and_target(
    classes: Array, labels: Array, dtype: np.dtype[Any]
) -> tuple[tuple[int, ...], Array]:
    """The shape of the scores of a sample, and the target of the loss.

    With two classes there is one score, and the target says how probable the second class is.
    """
    if len(classes) == 2:
        return (), labels.astype(dtype)
    return (len(classes),), labels
