"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyce._arguments import as_array, real
from pyce._types import Array

_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


class SGD:
    """Stochastic gradient descent with the semantics of `torch.optim.SGD`, on NumPy arrays.

    For each parameter p with the gradient g (−g with `maximize`):

        g ← g + weight_decay · p
        b ← momentum · b + (1 − dampening) · g      (b ← g in the first step)
        p ← p − lr · (g + momentum · b  with Nesterov, else b; g without momentum)

    Parameters
    ----------
    parameters : iterable of ndarray
        The arrays to train, changed in place: float32 or float64, writable.
    lr : float
        The learning rate, at least 0. The attribute `lr` may be set between steps.
    momentum : float
        The factor of the momentum buffer b in each step, at least 0.
    dampening : float
        1 minus the factor of the gradient in the momentum buffer.
    weight_decay : float
        Factor of the L2 penalty weight_decay/2 · ‖p‖², at least 0.
    nesterov : bool
        Whether to use Nesterov's momentum, in the form of Sutskever and others (2013). It needs
        `momentum` above 0 and `dampening` 0.
    maximize : bool
        Whether to maximize the objective and not to minimize it.

    Attributes
    ----------
    parameters : list of ndarray
        The arrays that are trained.
    lr, momentum, dampening, weight_decay, nesterov, maximize
        The options.

    Raises
    ------
    TypeError
        If a parameter is not an array of float32 or float64, or an option is not a number.
    ValueError
        If there are no parameters; if one of them is listed twice or read-only; if an option is
        out of its range.

    Notes
    -----
    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html

    Examples
    --------
    >>> from pyce.training import SGD
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.step([2 * w])
    >>> print(w.round(6))
    [0.46 0.92]
    """

    def __init__(
        self,
        parameters: Iterable[Array],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        if isinstance(parameters, np.ndarray):
            raise TypeError("parameters must be a list of arrays, got one array")
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("there are no parameters to optimize")
        for i, p in enumerate(self.parameters):
            if not isinstance(p, np.ndarray) or p.dtype not in (np.float32, np.float64):
                what = p.dtype if isinstance(p, np.ndarray) else type(p).__name__
                raise TypeError(f"parameter {i} must be an array of float32 or float64, got {what}")
            if not p.flags.writeable:
                raise ValueError(f"parameter {i} is read-only")
            if any(p is other for other in self.parameters[:i]):
                raise ValueError(f"parameter {i} comes twice")
        self._set(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )
        self._buffers: list[Array | None] = [None] * len(self.parameters)

    def _set(
        self,
        lr: Any,
        momentum: Any,
        dampening: Any,
        weight_decay: Any,
        nesterov: Any,
        maximize: Any,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        for name, value in numbers.items():
            numbers[name] = real(value, name)
            if not numbers[name] >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
        numbers["dampening"] = real(dampening, "dampening")
        if nesterov and not (numbers["momentum"] > 0 and numbers["dampening"] == 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")
        self.lr = numbers["lr"]
        self.momentum = numbers["momentum"]
        self.dampening = numbers["dampening"]
        self.weight_decay = numbers["weight_decay"]
        self.nesterov = bool(nesterov)
        self.maximize = bool(maximize)

    def step(self, gradients: Sequence[Any]) -> None:
        """Update the parameters in place by one step.

        Parameters
        ----------
        gradients : sequence of array_like
            The gradient of each parameter, in its shape; they are not changed, unless they are
            parameters themselves. A parameter whose gradient is None is not updated.

        Raises
        ------
        TypeError
            If a gradient is complex. Nothing is updated then.
        ValueError
            If the number of gradients, or the shape of one of them, does not match the parameters.
            Nothing is updated then.

        Examples
        --------
        >>> from pyce.training import SGD
        >>> w = np.array([1.0, 2.0])
        >>> SGD([w], lr=0.5).step([[1, 2]])
        >>> print(w)
        [0.5 1. ]
        """
        if len(gradients) != len(self.parameters):
            raise ValueError(f"{len(gradients)} gradients for {len(self.parameters)} parameters")
        if any(np.iscomplexobj(g) for g in gradients):
            raise TypeError("gradients must be real numbers")
        given = [
            None if g is None else np.asarray(as_array(g, f"gradient {i}"), dtype=p.dtype)
            for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True))
        ]
        for i, (p, g) in enumerate(zip(self.parameters, given, strict=True)):
            if g is not None and g.shape != p.shape:
                raise ValueError(
                    f"gradient {i} of shape {g.shape} does not fit its parameter of shape {p.shape}"
                )
        # A gradient may be a parameter that is updated before, as the gradients of a product are.
        for i, g in enumerate(given):
            if g is not None and any(np.may_share_memory(g, p) for p in self.parameters[:i]):
                given[i] = g.copy()
        for i, (p, g) in enumerate(zip(self.parameters, given, strict=True)):
            if g is not None:
                self._descend(i, p, g)

    def _descend(self, i: int, p: Array, g: Array) -> None:
        if self.maximize:
            g = -g
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.momentum:
            b = self._buffers[i]
            if b is None:
                b = self._buffers[i] = np.array(g)  # an array also if g is a scalar
            else:
                b *= self.momentum
                b += (1 - self.dampening) * g
            g = g + self.momentum * b if self.nesterov else b
        p -= float(self.lr) * g  # a NumPy float64 would promote float32

    def state_dict(self) -> dict[str, Any]:
        """The options, and copies of the momentum buffers.

        Returns
        -------
        dict
            Each option under its name, and "buffers": a list with an array of the shape of each
            parameter, or None before its first step with momentum.

        Examples
        --------
        >>> from pyce.training import SGD
        >>> SGD([np.zeros(2)], lr=0.1).state_dict()["buffers"]
        [None]
        """
        state: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS}
        state["buffers"] = [None if b is None else b.copy() for b in self._buffers]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the options and the momentum buffers to those of `state`.

        Parameters
        ----------
        state : dict
            A result of `state_dict` of an optimizer whose parameters have the same shapes. Its
            arrays are copied.

        Raises
        ------
        ValueError
            If names are missing or unknown; if the buffers do not match the parameters; if an
            option is out of its range. Nothing is changed then.

        Examples
        --------
        >>> from pyce.training import SGD
        >>> w = np.zeros(2)
        >>> optimizer = SGD([w], lr=0.1)
        >>> optimizer.load_state_dict(SGD([w], lr=0.3).state_dict())
        >>> optimizer.lr
        0.3
        """
        wanted = {*_OPTIONS, "buffers"}
        if set(state) != wanted:
            differing = ", ".join(sorted(map(str, wanted ^ set(state))))
            raise ValueError(f"this is no state of SGD: {differing} missing or too many")
        buffers = [
            None if b is None else np.array(b, dtype=p.dtype)
            for p, b in zip(self.parameters, state["buffers"], strict=False)
        ]
        if len(buffers) != len(state["buffers"]) or len(buffers) != len(self.parameters):
            raise ValueError(
                f"{len(state['buffers'])} buffers for {len(self.parameters)} parameters"
            )
        for i, (p, b) in enumerate(zip(self.parameters, buffers, strict=True)):
            if b is not None and b.shape != p.shape:
                raise ValueError(
                    f"buffer {i} of shape {b.shape} does not fit its parameter of shape {p.shape}"
                )
        self._set(**{name: state[name] for name in _OPTIONS})
        self._buffers = buffers
