"""`SoftmaxRegression` on Dask collections."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes
from sklearn.utils.validation import check_is_fitted, validate_data

from pyce import sklearn as in_memory
from pyce._types import Array
from pyce.dask import _collection
from pyce.dask._collection import Partition
from pyce.dask._objective import Objective
from pyce.dask._partition import Summary, apply, features, prepare, ratio, right, summarize
from pyce.sklearn._classifier import LinearSoftmaxClassifier, distinct, total_weight
from pyce.sklearn._solve import (
    LBFGS,
    Printer,
    check_C,
    check_l1_ratio,
    solve,
    unflatten,
    warn_unless_converged,
)
from pyce.sklearn._team import Team, team

_summarize, _features, _prepare, _right, _ratio = (
    dask.delayed(function, pure=False) for function in (summarize, features, prepare, right, ratio)
)
_NO_SAMPLES = "X has 0 samples, but at least 1 is required"


class SoftmaxRegression(LinearSoftmaxClassifier):
    """`pyce.sklearn.SoftmaxRegression` on Dask arrays and dataframes.

    With the scores z_i = W·x_i + b of the sample i and its weight s_i, `fit` minimises

        Σ_i s_i · (log Σ_c exp(z_ic) − z_iy) / Σ_i s_i
            + ((1 − l1_ratio) · ‖W‖² / 2 + l1_ratio · Σ |W_cj|) / (C · Σ_i s_i)

    The partitions of the data stay on the workers. An evaluation of the objective is one task for
    each partition, which returns its loss and gradient. The solver, L-BFGS or with `l1_ratio` above
    0 a projected L-BFGS, runs in the process that calls `fit`. The solution is that of
    `pyce.sklearn.SoftmaxRegression` to the tolerance `tol`, whatever the partitions, and does not
    depend on the order in which tasks end. With two classes, each sample has one score, that of the
    second class relative to the first.

    The tasks run on the default scheduler of Dask: the cluster of a `dask.distributed.Client`, if
    there is one, else threads of this process. Each task uses one thread.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, above 0; `numpy.inf` for none. The intercepts are not
        penalised.
    l1_ratio : float
        The share of the absolute values in the penalty, from 0 to 1: 0 is the squared (L2) penalty,
        1 the penalty on absolute values (L1), with which many coefficients are exactly 0.
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
        1 prints the size of the data, the progress of `fit` at most once a second, and its end; 2
        prints every iteration. 0 prints nothing.
    persist : bool or "auto"
        Whether `fit` keeps the features in the memory of the workers while it runs. If not, each
        evaluation computes the partitions again, unless the user persisted them. "auto" keeps them
        if they fill at most half of the workers' memory limits, including what is in use.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        W: float32 if all partitions are, else float64. With two classes, the shape is
        (1, n_features).
    intercept_ : ndarray of shape (n_classes,)
        b; with two classes, the shape is (1,).
    n_iter_ : ndarray of shape (1,)
        Number of iterations that the solver made.
    n_features_in_ : int
        Number of features of the samples.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of these features; defined only if X was a dataframe.

    Examples
    --------
    >>> import dask.array as da
    >>> from pyce.dask import SoftmaxRegression
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
    >>> model = SoftmaxRegression(max_iter=200).fit(X, y)
    >>> print(round(float(model.score(X, y)), 3))
    0.973
    >>> print(model.predict_proba(X)[:1].compute().round(3))
    [[0.982 0.018 0.   ]]
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        warm_start: bool = False,
        verbose: int = 0,
        persist: bool | str = "auto",
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.verbose = verbose
        self.persist = persist

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Find the coefficients.

        Parameters
        ----------
        X : Dask array or Dask dataframe of shape (n_samples, n_features)
            Samples, all values finite. Blocks may be NumPy arrays or sparse matrices. float32 and
            float64 keep their dtype; other dtypes are converted to float64. Partitions may be empty
            and of unknown size; chunks along the features are joined. Data in memory are fitted by
            `pyce.sklearn.SoftmaxRegression`.
        y : Dask array or series, or array_like, of shape (n_samples,)
            Labels of at least two classes, of which each partition may have any. If the sizes of
            the partitions of X or y are unknown, y needs the same number of partitions as X, of the
            same sizes; it is split like X otherwise.
        sample_weight : float, Dask array or series, or array_like, of shape (n_samples,), optional
            Weights of the samples, used as given, with the partitions that y may have. The sum of
            the weights times the class weights must be above 0.

        Returns
        -------
        SoftmaxRegression
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of range; if `y` has a single class; if a value is not finite; if
            shapes or partitions do not match; if the sum of the weights is not above 0; if, with
            `warm_start`, the number of classes or features differs from that of the previous
            solution. The message names the first partition in error, counted from 0.

        Warns
        -----
        ConvergenceWarning
            If the solver stopped before it reached its tolerance. The coefficients are the best
            that it found.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.arange(4, chunks=2).reshape(4, 1)
        >>> model = SoftmaxRegression().fit(X, da.from_array(["no", "no", "yes", "yes"], chunks=2))
        >>> print(model.classes_, model.coef_.shape)
        ['no' 'yes'] (1, 1)
        """
        self._check_parameters()
        if not _collection.is_collection(X):
            return self._fit_in_memory(X, y, sample_weight)
        if y is None:
            raise ValueError("this estimator requires y to be passed, but the target y is None")
        # BLAS is on one thread in all tasks, also in those of this process.
        with team() if _collection.runs_here() else nullcontext(Team()) as threads:
            self._fit_partitions(X, y, sample_weight, threads)
        return self

    def _fit_partitions(self, X: Any, y: Any, sample_weight: Any, threads: Team) -> None:
        parts = _collection.partitions(X, y, sample_weight)
        held = self._keeps(_collection.known_bytes(X))
        if held:
            parts = _collection.persisted(parts)
        parts, summaries = _summaries(parts)
        features = _number_of_features(parts, summaries)
        copy.copy(self)._check_features(X, features, reset=True)  # errors before the fit
        nbytes = sum(summary.nbytes for summary in summaries)
        single = all(summary.dtype == np.float32 for summary in summaries)
        dtype = np.dtype(np.float32 if single else np.float64)
        if not all(summary.ready and summary.dtype == dtype for summary in summaries):
            held = self._keeps(nbytes)
            if held:
                converted = [part._replace(x=_features(part.x, dtype)) for part in parts]
                parts = _collection.persisted(converted)
        elif not held:
            held = _collection.in_memory(X, parts)
            if not held and self._keeps(nbytes):
                parts, held = _collection.persisted(parts), True
        classes, sums = _classes_and_sums(parts, summaries)
        of_classes = None
        if self.class_weight is not None:
            of_classes = self._weights_of_classes(classes, sums)
        total = total_weight(sums if of_classes is None else sums * of_classes, len(sums))
        columns: tuple[int, ...] = () if len(classes) == 2 else (len(classes),)
        start = self._start(features, columns)
        if self.verbose:
            _print_sizes(summaries, len(classes), held)
        known = dask.delayed((classes, of_classes), pure=False, traverse=False)
        prepared = dask.persist(
            *(
                _prepare(part.y, part.weight, part.number, known, dtype, part.x if held else None)
                for part in parts
            )
        )
        printer = Printer(self.verbose, self.max_iter)
        objective: Any = Objective(
            [(part.x, own) for part, own in zip(parts, prepared, strict=True)],
            total=total,
            features=features,
            columns=columns,
            fit_intercept=self.fit_intercept,
            dtype=dtype,
        )
        solution = solve(
            objective,
            start,
            C=self.C,
            l1_ratio=self.l1_ratio,
            solver=LBFGS,
            total=total,
            max_iter=self.max_iter,
            tol=self.tol,
            team=threads,
            progress=printer,
        )
        printer.end()
        warn_unless_converged(solution, stacklevel=4)
        self._check_features(X, features, reset=True)
        self.classes_ = classes
        self.coef_, self.intercept_ = unflatten(solution.x, features, columns, dtype)
        self.n_iter_ = np.array([solution.iterations], np.int32)

    def decision_function(self, X: Any) -> Any:
        """The scores z = W·x + b.

        Parameters
        ----------
        X : Dask array or dataframe, array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        Dask array or ndarray of shape (n_samples, n_classes)
            A Dask array with the partitions of `X`, not computed yet, for a Dask collection. With
            two classes, the shape is (n_samples,), and a score above 0 means that the second class
            is more likely.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite (for a Dask collection, when the result is computed; the
            message names the partition), or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.from_array([[0.0], [1.0], [2.0], [3.0]], chunks=(2, 1))
        >>> model = SoftmaxRegression(tol=1e-8).fit(X, [0, 0, 1, 2])
        >>> print(model.decision_function(X).compute().shape)
        (4, 3)
        """
        if not _collection.is_collection(X):
            return super().decision_function(X)
        return self._lazily("decision_function", X)

    def predict(self, X: Any) -> Any:
        """The most likely class of each sample.

        Parameters
        ----------
        X : Dask array or dataframe, array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        Dask array or ndarray of shape (n_samples,)
            Labels, for a Dask collection in a Dask array with the partitions of `X`, not computed
            yet. Of classes that are equally likely, the first is returned.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite (for a Dask collection, when the result is computed; the
            message names the partition), or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.from_array([[0.0], [1.0], [2.0], [3.0]], chunks=(2, 1))
        >>> model = SoftmaxRegression(tol=1e-8).fit(X, [0, 0, 1, 2])
        >>> print(model.predict(10 * X - 1).compute(), model.predict([[9.0]]))
        [0 2 2 2] [2]
        """
        if not _collection.is_collection(X):
            return super().predict(X)
        return self._lazily("predict", X)

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, exp(z_c) / Σ_k exp(z_k): `pyce.softmax` of the scores.

        Parameters
        ----------
        X : Dask array or dataframe, array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        Dask array or ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_` and in the dtype of the scores; for a Dask
            collection in a Dask array with the partitions of `X`, not computed yet.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite (for a Dask collection, when the result is computed; the
            message names the partition), or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.from_array([[0.0], [1.0], [2.0], [3.0]], chunks=(2, 1))
        >>> model = SoftmaxRegression(tol=1e-8).fit(X, [0, 0, 1, 2])
        >>> print(model.predict_proba(X)[:1].compute().round(2))
        [[0.85 0.12 0.04]]
        """
        if not _collection.is_collection(X):
            return super().predict_proba(X)
        return self._lazily("predict_proba", X)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithms of the probabilities: `pyce.log_softmax` of the scores.

        They are accurate also where the probabilities round to 0 or 1, and never −inf.

        Parameters
        ----------
        X : Dask array or dataframe, array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.

        Returns
        -------
        Dask array or ndarray of shape (n_samples, n_classes)
            Natural logarithms, in the order of `classes_` and in the dtype of the scores; for a
            Dask collection in a Dask array with the partitions of `X`, not computed yet.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite (for a Dask collection, when the result is computed; the
            message names the partition), or if the number or the names of the features differ from
            those that it was fitted with.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.from_array([[0.0], [1.0], [2.0], [3.0]], chunks=(2, 1))
        >>> model = SoftmaxRegression(tol=1e-8).fit(X, [0, 0, 1, 2])
        >>> print((model.predict_log_proba(1000 * X) > -1e5).all().compute())
        True
        """
        if not _collection.is_collection(X):
            return super().predict_log_proba(X)
        return self._lazily("predict_log_proba", X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """The accuracy: the weight of the samples whose most likely class is right, divided by all.

        Parameters
        ----------
        X : Dask array or dataframe, array_like or sparse matrix of shape (n_samples, n_features)
            Samples, all values finite.
        y : Dask array or series, or array_like, of shape (n_samples,)
            The true labels, with the partitions that `fit` requires.
        sample_weight : float, Dask array or series, or array_like, of shape (n_samples,), optional
            Weights of the samples, with the partitions that `fit` requires.

        Returns
        -------
        Dask array of shape (), or float
            A number from 0 to 1. That of a Dask collection is computed by `float()` or
            `.compute()`.

        Raises
        ------
        NotFittedError
            If the classifier was not fitted before.
        ValueError
            If a value is not finite or shapes do not match (for a Dask collection, when the result
            is computed; the message names the partition), or if the number or the names of the
            features differ from those that it was fitted with.

        Examples
        --------
        >>> import dask.array as da
        >>> from pyce.dask import SoftmaxRegression
        >>> X = da.from_array([[0.0], [1.0], [2.0], [3.0]], chunks=(2, 1))
        >>> model = SoftmaxRegression(tol=1e-8).fit(X, [0, 0, 1, 1])
        >>> print(float(model.score(X, [0, 0, 0, 1])))
        0.75
        """
        if not _collection.is_collection(X):
            return super().score(X, y, sample_weight)
        X = _collection.checked_features(X)
        model = self._snapshot(X)
        parts = _collection.partitions(X, y, sample_weight)
        if not parts:
            raise ValueError(_NO_SAMPLES)
        sums = [_right(part.x, part.y, part.weight, part.number, model) for part in parts]
        return da.from_delayed(_ratio(sums), shape=(), dtype=np.float64)

    def _check_parameters(self) -> None:
        check_C(self.C)
        check_l1_ratio(self.l1_ratio)
        self._check_solver_parameters()
        self._check_flags("fit_intercept", "warm_start")
        auto = isinstance(self.persist, str) and self.persist == "auto"
        if not (auto or isinstance(self.persist, (bool, np.bool_))):
            raise ValueError(f"persist must be True, False or 'auto', got {self.persist!r}")

    def _keeps(self, nbytes: float) -> bool:
        """Whether features of this size are to be persisted; not if the size is unknown, NaN."""
        if math.isnan(nbytes):
            return False
        if isinstance(self.persist, str):
            return nbytes <= _collection.room()
        return bool(self.persist)

    def _fit_in_memory(self, X: Any, y: Any, sample_weight: Any) -> SoftmaxRegression:
        for value, name in ((y, "y"), (sample_weight, "sample_weight")):
            if _collection.is_collection(value):
                raise ValueError(
                    f"{name} is a Dask collection, but X is not: pass X as a Dask array, or "
                    f"{name}.compute()"
                )
        parameters = self.get_params()
        del parameters["persist"]
        model = in_memory.SoftmaxRegression(**parameters)
        if self.warm_start and hasattr(self, "coef_"):
            model.coef_, model.intercept_ = self.coef_, self.intercept_
        model.fit(X, y, sample_weight)
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
        self.__dict__.update((k, v) for k, v in model.__dict__.items() if k.endswith("_"))
        return self

    def _check_features(self, X: Any, features: int, reset: bool = False) -> None:
        """Check the number and the names of the features of a Dask collection, or save them."""
        sample: Any = np.empty((1, features))
        if _collection.is_frame(X):
            import pandas

            sample = pandas.DataFrame(sample, columns=X.columns)
        validate_data(self, sample, skip_check_array=True, reset=reset)

    def _snapshot(self, X: Any) -> Any:
        """A Delayed copy of the model, which a later fit does not change."""
        check_is_fitted(self)
        unknown = math.isnan(X.shape[1])  # the tasks check it then
        self._check_features(X, self.n_features_in_ if unknown else X.shape[1])
        model = copy.copy(self)
        if not _collection.is_frame(X):  # whose names were missed here, once
            model.__dict__.pop("feature_names_in_", None)
        return dask.delayed(model, pure=False, traverse=False)

    def _lazily(self, method: str, X: Any) -> Any:
        """The Dask array of what a method returns for each partition."""
        X = _collection.checked_features(X)
        model = self._snapshot(X)
        dtypes = list(X.dtypes) if _collection.is_frame(X) else [X.dtype]
        single = self.coef_.dtype == np.float32 and all(dtype == np.float32 for dtype in dtypes)
        dtype = np.dtype(np.float32 if single else np.float64)
        columns: tuple[int, ...] = (len(self.classes_),)
        if method == "predict":
            dtype, columns = self.classes_.dtype, ()
        elif method == "decision_function" and len(self.classes_) == 2:
            columns = ()
        empty = np.empty((0, *columns), dtype)
        function = partial(apply, method=method, empty=empty)
        if _collection.is_frame(X):
            return X.map_partitions(function, model, meta=empty)
        return da.map_blocks(
            function,
            X,
            model,
            drop_axis=[] if columns else 1,
            chunks=(X.chunks[0], *((count,) for count in columns)),
            meta=empty,
        )


def _summaries(parts: list[Partition]) -> tuple[list[Partition], list[Summary]]:
    """The partitions that have rows, and the summary of each."""
    found = dask.compute(*(_summarize(part.x, part.y, part.weight, part.number) for part in parts))
    for summary in found:
        if isinstance(summary, str):
            raise ValueError(summary)
    pairs = [(part, summary) for part, summary in zip(parts, found, strict=True) if summary.rows]
    if not pairs:
        raise ValueError(_NO_SAMPLES)
    return [part for part, _ in pairs], [summary for _, summary in pairs]


def _print_sizes(summaries: list[Summary], classes: int, held: bool) -> None:
    """Print the sizes of the data, and whether the features stay in memory."""
    nbytes = format_bytes(sum(summary.nbytes for summary in summaries))
    where = "stay in memory" if held else "are computed again for each evaluation"
    print(
        f"{len(summaries)} partitions with {sum(summary.rows for summary in summaries)} samples of "
        f"{summaries[0].features} features and {classes} classes; the features, {nbytes}, {where}",
        flush=True,
    )


def _number_of_features(parts: list[Partition], summaries: list[Summary]) -> int:
    features = summaries[0].features
    for part, summary in zip(parts, summaries, strict=True):
        if summary.features != features:
            raise ValueError(
                f"partition {part.number} has {summary.features} features, but partition "
                f"{parts[0].number} has {features}"
            )
    return features


def _classes_and_sums(parts: list[Partition], summaries: list[Summary]) -> tuple[Array, Array]:
    """The labels of all partitions, sorted, and the sum of the weights of each."""
    numbers = [summary.classes.dtype.kind in "biuf" for summary in summaries]
    if any(numbers) and not all(numbers):
        of_numbers, of_others = (parts[numbers.index(kind)].number for kind in (True, False))
        raise ValueError(
            f"the labels must be all numbers or all strings: those of partition {of_numbers} are "
            f"numbers, those of partition {of_others} are not"
        )
    classes, places = distinct(np.concatenate([summary.classes for summary in summaries]))
    sums = np.concatenate([summary.sums for summary in summaries])
    return classes, np.bincount(places, sums, len(classes))
