"""scikit-learn classifiers whose loss and gradient are pyce's.

The objective, the solution and the stopping rule are those of scikit-learn's `LogisticRegression`
and `LogisticRegressionCV`.
"""

from __future__ import annotations

try:
    import scipy.linalg
    import scipy.sparse  # noqa: F401
    import sklearn.utils.validation
    import threadpoolctl  # noqa: F401

    sklearn.utils.validation.validate_data  # noqa: B018  since 1.6
except (ImportError, AttributeError) as error:
    from pyce._extras import advice

    raise ImportError(
        f"pyce.sklearn needs scikit-learn 1.6 or later: {advice('sklearn')} ({error})"
    ) from error

from pyce.sklearn._cv import SoftmaxRegressionCV
from pyce.sklearn._estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression", "SoftmaxRegressionCV"]
