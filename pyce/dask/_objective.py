"""The objective of `SoftmaxRegression` and its gradient, summed over partitions.

An evaluation is one task for each partition, and the sums of their results in groups, in the order
of the partitions. So the result depends on neither the workers nor the order in which tasks end.
The coefficients are a node of the graph, which each worker receives once. A worker that is lost
takes nothing with it that Dask could not compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
from dask.utils import parse_bytes
from scipy.linalg.blas import daxpy, ddot

from pyce._types import Array
from pyce.dask._partition import add, evaluate

# Results that a task, or at the end the client, adds up.
_GROUP = 16
_WARNING = "distributed.admin.large-graph-warning-threshold"

_evaluate = dask.delayed(evaluate, pure=False)
_add = dask.delayed(add, pure=False)


class Objective:
    """The mean loss plus ridge·‖W‖²/2, and its gradient, at a flat vector of coefficients.

    The layout of the vector is that of `pyce.sklearn._objective.Objective`.
    """

    def __init__(
        self,
        data: Sequence[tuple[Any, Any]],
        *,
        total: float,
        features: int,
        columns: tuple[int, ...],
        fit_intercept: bool,
        dtype: np.dtype[Any],
    ) -> None:
        """Take Delayed objects of the features of each partition, and of its target and weights."""
        self.ridge = 0.0
        self.penalised = features * int(np.prod(columns))  # how many coefficients W has
        self._data, self._total = data, total
        self._columns, self._fit_intercept = columns, fit_intercept
        self._stored = self._dtype = dtype

    def widen(self) -> bool:
        """Compute in float64 from now on; returns whether that is a change.

        The features stay as they are: each evaluation converts one block at a time.
        """
        narrow = self._dtype != np.float64
        self._dtype = np.dtype(np.float64)
        return narrow

    def __call__(self, flat: Array, gradient: Array) -> float:
        """Write the gradient, and return the objective."""
        parameters = dask.delayed(flat.astype(self._dtype), pure=False, traverse=False)
        results = [
            _evaluate(x, prepared, parameters, self._columns, self._fit_intercept, self._stored)
            for x, prepared in self._data
        ]
        while len(results) > _GROUP:
            results = [_add(results[i : i + _GROUP]) for i in range(0, len(results), _GROUP)]
        # Dask warns of graphs with much data; the coefficients are meant to be in this one.
        limit = parse_bytes(dask.config.get(_WARNING)) + flat.nbytes
        with dask.config.set({_WARNING: limit}):
            total = add(dask.compute(*results))
        total /= self._total
        gradient[...] = total[1:]
        loss = float(total[0])
        if self.ridge:
            coefficients = flat[: self.penalised]
            loss += 0.5 * self.ridge * float(ddot(coefficients, coefficients))
            daxpy(coefficients, gradient, a=self.ridge)
        return loss
