"""Two classifiers in NumPy, with the loss and gradient of pyce."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import pyce
from pyce._arguments import as_array, positive_number
from pyce._types import Array


class _Classifier:
    """Base class; subclasses compute the logits, and the gradients of the parameters."""

    parameters: list[Array]
    _names: tuple[str, ...]

    def _forward(self, x: Array) -> tuple[Array, Array]:
        """The input of the last layer, and the logits."""
        raise NotImplementedError

    def _backward(self, x: Array, given: Array, grad: Array) -> list[Array]:
        """The gradients of the parameters, from the gradient of the logits."""
        raise NotImplementedError

    def logits(self, x: Any) -> Array:
        """The scores of the classes.

        Parameters
        ----------
        x : array_like
            Samples of shape (N, …), real numbers: the product of the axes after the first is the
            number of features of the model.

        Returns
        -------
        ndarray
            Logits of shape (N, classes), in the dtype of the model.

        Raises
        ------
        TypeError
            If `x` does not hold real numbers.
        ValueError
            If the number of features does not match the model.

        Examples
        --------
        >>> from pyce.training import LinearClassifier
        >>> images = np.zeros((2, 8, 8))
        >>> LinearClassifier(features=64, classes=10).logits(images).shape
        (2, 10)
        """
        return self._forward(self._flat(x))[1]

    def loss_and_gradients(
        self, x: Any, y: Any, *, label_smoothing: float = 0.0
    ) -> tuple[Any, list[Array]]:
        """The mean loss of a batch, and its gradients with respect to the parameters.

        The loss is the mean of log Σ_c exp(z_c) − z_y over the rows, with the logits z.

        Parameters
        ----------
        x : array_like
            Samples of shape (N, …), real numbers: the product of the axes after the first is the
            number of features of the model.
        y : array_like
            Class indices of an integer dtype and of shape (N,), of which rows with −100 are
            ignored; or probabilities of a floating dtype and of shape (N, classes).
        label_smoothing : float
            ε in [0, 1]: targets t are replaced by (1 − ε) · t + ε/classes.

        Returns
        -------
        loss : numpy scalar
            The loss in nats, in the dtype of the model.
        gradients : list of ndarray
            The gradient of each of `parameters`, in its shape and dtype.

        Raises
        ------
        TypeError
            If `x` does not hold real numbers, or the dtype of `y` is not supported.
        ValueError
            If shapes do not match, or `label_smoothing` is outside [0, 1].
        IndexError
            If a class index is out of range. The message names the first such row.

        Examples
        --------
        >>> from pyce.training import LinearClassifier
        >>> model = LinearClassifier(features=4, classes=3, seed=0)
        >>> loss, gradients = model.loss_and_gradients(np.zeros((2, 4)), [0, 2])
        >>> print(round(float(loss), 4), gradients[1].round(2))
        1.0986 [-0.17  0.33 -0.17]
        """
        x = self._flat(x)
        given, scores = self._forward(x)
        # The gradient overwrites the logits, which are not needed any more.
        loss, grad = pyce.cross_entropy_with_grad(
            scores, y, label_smoothing=label_smoothing, out=scores
        )
        return loss, self._backward(x, given, grad)

    def _flat(self, x: Any) -> Array:
        """x as an array of shape (N, features) in the dtype of the model."""
        x = as_array(x, "x")
        first = self.parameters[0]
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x must be real numbers, got {x.dtype}")
        if x.ndim < 2 or math.prod(x.shape[1:]) != len(first):
            raise ValueError(
                f"x must be (N, …) with {len(first)} features for each sample, got {x.shape}"
            )
        flat: Array = x.astype(first.dtype, copy=False).reshape(len(x), len(first))
        return flat

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters.

        Returns
        -------
        dict of ndarray
            Each parameter under its name.

        Examples
        --------
        >>> from pyce.training import LinearClassifier
        >>> sorted(LinearClassifier(features=4, classes=3).state_dict())
        ['bias', 'weight']
        """
        return {n: p.copy() for n, p in zip(self._names, self.parameters, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the parameters to the values of `state`.

        They are written in place, so an optimizer that has the parameters trains the new values.

        Parameters
        ----------
        state : dict of array_like
            A value for each parameter under its name, in its shape. The values are copied.

        Raises
        ------
        ValueError
            If a name or a shape does not match. Nothing is changed then.

        Examples
        --------
        >>> from pyce.training import LinearClassifier
        >>> first, second = (LinearClassifier(features=4, classes=3, seed=s) for s in (1, 2))
        >>> second.load_state_dict(first.state_dict())
        >>> x = np.ones((1, 4))
        >>> bool((first.logits(x) == second.logits(x)).all())
        True
        """
        if set(state) != set(self._names):
            raise ValueError(
                f"the state needs {', '.join(self._names)}; it has {', '.join(map(str, state))}"
            )
        values = [
            np.asarray(as_array(state[name], name), dtype=p.dtype)
            for name, p in zip(self._names, self.parameters, strict=True)
        ]
        for name, p, value in zip(self._names, self.parameters, values, strict=True):
            if p.shape != value.shape:
                raise ValueError(f"{name} has the shape {p.shape}, not {value.shape}")
        for p, value in zip(self.parameters, values, strict=True):
            p[...] = value


class LinearClassifier(_Classifier):
    """Softmax regression: logits = x·W + b.

    Parameters
    ----------
    features, classes : int
        The number of features of a sample and the number of classes, at least 1.
    seed : int or numpy.random.Generator, optional
        Seed of the initial weights, which are normal with variance 1/features. The bias is 0.
    dtype : {float32, float64}
        The dtype of the parameters and of all computations.

    Attributes
    ----------
    parameters : list of ndarray
        W of shape (features, classes) and b of shape (classes,).

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If a number is below 1, or `dtype` is neither float32 nor float64.

    Examples
    --------
    >>> from pyce.training import LinearClassifier
    >>> model = LinearClassifier(features=4, classes=3, seed=0)
    >>> model.logits(np.ones((2, 4))).shape
    (2, 3)
    """

    _names = ("weight", "bias")

    def __init__(
        self, features: int, classes: int, *, seed: Any = None, dtype: Any = np.float32
    ) -> None:
        features, classes = (
            positive_number(features, "features"),
            positive_number(classes, "classes"),
        )
        rng, dtype = np.random.default_rng(seed), _dtype(dtype)
        self.parameters = [_normal(rng, features, classes, 1, dtype), np.zeros(classes, dtype)]

    def _forward(self, x: Array) -> tuple[Array, Array]:
        weight, bias = self.parameters
        return x, x @ weight + bias

    def _backward(self, x: Array, given: Array, grad: Array) -> list[Array]:
        return [x.T @ grad, grad.sum(axis=0)]


class HiddenLayerClassifier(_Classifier):
    """One hidden layer of rectified linear units: logits = max(x·W₁ + b₁, 0)·W₂ + b₂.

    Parameters
    ----------
    features, hidden, classes : int
        The number of features of a sample, of hidden units and of classes, at least 1.
    seed : int or numpy.random.Generator, optional
        Seed of the initial weights, which are normal with variances 2/features (He and others,
        arXiv:1502.01852, 2015) and 1/hidden. The biases are 0.
    dtype : {float32, float64}
        The dtype of the parameters and of all computations.

    Attributes
    ----------
    parameters : list of ndarray
        W₁ of shape (features, hidden), b₁ (hidden,), W₂ (hidden, classes) and b₂ (classes,).

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If a number is below 1, or `dtype` is neither float32 nor float64.

    Examples
    --------
    >>> from pyce.training import HiddenLayerClassifier
    >>> model = HiddenLayerClassifier(features=4, hidden=16, classes=3, seed=0)
    >>> model.logits(np.ones((2, 4))).shape
    (2, 3)
    """

    _names = ("weight1", "bias1", "weight2", "bias2")

    def __init__(
        self,
        features: int,
        hidden: int,
        classes: int,
        *,
        seed: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        features, hidden = positive_number(features, "features"), positive_number(hidden, "hidden")
        classes = positive_number(classes, "classes")
        rng, dtype = np.random.default_rng(seed), _dtype(dtype)
        self.parameters = [
            _normal(rng, features, hidden, 2, dtype),
            np.zeros(hidden, dtype),
            _normal(rng, hidden, classes, 1, dtype),
            np.zeros(classes, dtype),
        ]

    def _forward(self, x: Array) -> tuple[Array, Array]:
        weight1, bias1, weight2, bias2 = self.parameters
        hidden = x @ weight1 + bias1
        np.maximum(hidden, 0, out=hidden)
        return hidden, hidden @ weight2 + bias2

    def _backward(self, x: Array, given: Array, grad: Array) -> list[Array]:
        back = grad @ self.parameters[2].T
        back[given <= 0] = 0
        return [x.T @ back, back.sum(axis=0), given.T @ grad, grad.sum(axis=0)]


def _normal(
    rng: np.random.Generator, inputs: int, outputs: int, gain: float, dtype: np.dtype[Any]
) -> Array:
    return rng.normal(0, math.sqrt(gain / inputs), (inputs, outputs)).astype(dtype)


def _dtype(value: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(value)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    return dtype
