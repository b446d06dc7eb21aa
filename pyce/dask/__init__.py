"""Softmax regression on Dask arrays and dataframes, whose partitions stay on their workers.

The objective, the solution and the stopping rule are those of `pyce.sklearn.SoftmaxRegression`.
"""

# The modules, from the bottom up:
#
#   _partition   what the tasks compute: the functions that run on the workers
#   _collection  the partitions of X, y and the weights, and whether they stay in memory
#   _objective   the sum of losses and gradients over the partitions
#   _estimator   the estimator

from __future__ import annotations

try:
    import dask.array  # noqa: F401
    import distributed  # noqa: F401
except ImportError as error:
    from pyce._extras import advice

    raise ImportError(f"pyce.dask needs Dask: {advice('dask')} ({error})") from error

from pyce.dask._estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]
