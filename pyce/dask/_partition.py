"""The functions that the tasks of a fit run, each on one partition.

A task runs on one thread, since a worker runs as many tasks at a time as it has threads. So its
result does not depend on the worker, either. BLAS is not limited here: its limit is one of the
process. Dask limits it in the worker processes that it starts, and `fit` in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_array, check_consistent_length, check_X_y, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from pyce._arguments import refuse_masked
from pyce._threads import at_most
from pyce._types import Array
from pyce.sklearn._classifier import checked_weights, columns_and_target
from pyce.sklearn._objective import Objective
from pyce.sklearn._team import Team

# The class number of each sample as the loss takes it, and the weights of the samples, or None.
Prepared = tuple[Array, Array | None]


class Summary(NamedTuple):
    """The properties of a partition that the client reads before the first iteration."""

    rows: int
    features: int
    dtype: np.dtype[Any]  # float32 or float64
    nbytes: int  # of the features in this dtype
    ready: bool  # whether an evaluation needs no copy of the features
    classes: Array  # the labels that occur, sorted
    sums: Array  # the sum of the weights of each


def summarize(x: Any, y: Any, weight: Any, number: int) -> Summary | str:
    """Check a partition; return a message if it cannot be used.

    The message is returned, not raised, so that the first partition in error is reported, and not
    the one whose task happens to fail first.
    """
    with at_most(1):
        try:
            return _summary(x, y, weight)
        except (TypeError, ValueError) as error:
            return f"partition {number}: {error}{_other_columns(x)}"


def _summary(x: Any, y: Any, weight: Any) -> Summary:
    for value, name in ((x, "X"), (y, "y"), (weight, "sample_weight")):
        refuse_masked(value, name)
    if x.shape[0] == len(y) == 0:
        none = np.empty(0)
        return Summary(0, x.shape[1], none.dtype, 0, True, none, none)
    if hasattr(y, "isna") and y.isna().any():  # scikit-learn cannot compare pandas' NA
        raise ValueError("Input y contains NaN")
    checked, y = check_X_y(x, y, accept_sparse="csr", dtype=(np.float64, np.float32))
    weight = checked_weights(weight, len(y))
    classes, labels = np.unique(y, return_inverse=True)
    check_classification_targets(np.repeat(classes, 2))  # unique labels alone cause a warning
    return Summary(
        rows=len(y),
        features=checked.shape[1],
        dtype=checked.dtype,
        nbytes=checked.data.nbytes + checked.indices.nbytes
        if issparse(checked)
        else checked.nbytes,
        ready=_ready(x, checked.dtype),
        classes=classes,
        sums=np.bincount(labels, weight, len(classes)),
    )


def _other_columns(x: Any) -> str:
    """The columns of a dataframe that hold no numbers, for a message."""
    dtypes: Any = getattr(x, "dtypes", None)
    if not hasattr(dtypes, "items"):
        return ""
    others = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "biuf"]
    return f"; columns that do not hold numbers: {', '.join(others)}" if others else ""


def _ready(x: Any, dtype: Any) -> bool:
    if issparse(x):
        return bool(x.format == "csr" and x.dtype == dtype)
    return bool(type(x) is np.ndarray and x.dtype == dtype and x.flags.forc and x.flags.aligned)


def features(x: Any, dtype: Any) -> Any:
    """The features of a partition as an evaluation reads them: no copy if they are `ready`."""
    if _ready(x, dtype):
        return x
    x = check_array(
        x, accept_sparse="csr", dtype=dtype, ensure_all_finite=False, ensure_min_samples=0
    )
    return x if issparse(x) else np.require(x, requirements=["C", "A"])


def prepare(
    y: Any, weight: Any, number: int, known: tuple[Array, Array | None], dtype: Any, x: Any = None
) -> Prepared:
    """The target and the weights of a partition, which all evaluations share.

    `known` has the classes, and their weights or None. `x` is not used: it makes Dask run this task
    on the worker that has the features.
    """
    classes, of_classes = known
    y = column_or_1d(y)
    labels = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    if len(y) and (classes[labels] != y).any():
        raise ValueError(
            f"partition {number}: the labels are not those that it had before; a partition must "
            "be the same each time it is computed: persist it, or seed its random numbers"
        )
    weight = checked_weights(weight, len(y))
    if of_classes is not None:
        weight = of_classes[labels] if weight is None else weight * of_classes[labels]
    return columns_and_target(classes, labels, dtype)[1], weight


def evaluate(
    x: Any,
    prepared: Prepared,
    parameters: Array,
    columns: tuple[int, ...],
    fit_intercept: bool,
    dtype: Any,
) -> Array:
    """The sum of the losses of a partition, and the gradient of this sum, in float64.

    `dtype` is that of the features; they are computed with in the dtype of `parameters`.
    """
    target, weight = prepared
    with at_most(1):
        objective = Objective(
            features(x, dtype),
            target,
            weight=weight,
            total=1.0,
            columns=columns,
            fit_intercept=fit_intercept,
            team=Team(),
        )
        if parameters.dtype != dtype:
            objective.widen()
        result = np.empty(1 + objective.size)
        result[0] = objective(parameters, result[1:])
    return result


def add(results: Sequence[Array]) -> Array:
    """The sum of arrays, from the first to the last."""
    total = np.array(results[0])
    for result in results[1:]:
        total += result
    return total


def apply(
    x: Any,
    model: Any,
    method: str,
    empty: Array,
    block_id: tuple[int, ...] | None = None,
    partition_info: dict[str, Any] | None = None,
) -> Array:
    """Call a method of an estimator with a partition; without rows, the result is `empty`.

    Dask passes the place of the partition: `block_id` for an array, else `partition_info`.
    """
    if x.shape[0] == 0:
        return empty
    number = block_id[0] if block_id is not None else (partition_info or {}).get("number")
    with at_most(1), _naming(number):
        result: Array = getattr(model, method)(x)
    return result


@contextmanager
def _naming(number: int | None) -> Iterator[None]:
    """Name the partition in errors of its data."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"partition {number}: {error}") from error


def right(x: Any, y: Any, weight: Any, number: int, model: Any) -> Array:
    """The weight of the samples whose prediction is right, and that of all."""
    if x.shape[0] == 0:
        return np.zeros(2)
    with at_most(1), _naming(number):
        y = column_or_1d(y)
        check_consistent_length(x, y)
        hits = model.predict(x) == y
        weight = checked_weights(weight, len(hits))
    if weight is None:
        return np.array([hits.sum(), len(hits)], float)
    return np.array([weight[hits].sum(), weight.sum()])


def ratio(sums: Sequence[Array]) -> np.float64:
    """The quotient of the two sums."""
    hits, all_ = add(sums)
    return np.float64(hits / all_)
