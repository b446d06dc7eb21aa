"""Adam, for `SoftmaxRegression.partial_fit`.

Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015), with the constants of
scikit-learn's `MLPClassifier`. A penalty on absolute values is applied by a proximal step in the
metric of the update, so coefficients become exactly 0.
"""

from __future__ import annotations

import math

import numpy as np

from pyce._types import Array

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """The moments of the gradients so far, in the dtype of the parameters."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self.first, self.second = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.steps = 0

    def step(
        self, parameters: Array, gradient: Array, rate: float, l1: float, penalised: int
    ) -> None:
        """Change the parameters by a step; the first `penalised` rows have the penalty `l1`."""
        self.steps += 1
        self.first *= _BETA1
        self.first += (1 - _BETA1) * gradient
        self.second *= _BETA2
        self.second += (1 - _BETA2) * gradient * gradient
        rate *= math.sqrt(1 - _BETA2**self.steps) / (1 - _BETA1**self.steps)
        scale = np.sqrt(self.second)
        scale += _EPSILON
        parameters -= rate * self.first / scale
        if l1:
            w = parameters[:penalised]
            bound = rate * l1 / scale[:penalised]
            w -= np.clip(w, -bound, bound)
