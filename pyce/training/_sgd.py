"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyce._arguments import real

Array = npt.NDArray[Any]

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
        What is trained, changed in place: float32 or float64, writable.
    lr : float
        The learning rate, at least 0. An attribute that may be set between steps.
    momentum : float
        At least 0.
    dampening : float
        What of each gradient is kept out of the momentum's sum.
    weight_decay : float
        At least 0: an L2 penalty of weight_decay/2 · |p|².
    nesterov : bool
        Nesterov's momentum, as Sutskever and others (2013) write it; `momentum` must be positive
        and `dampening` 0.
    maximize : bool
        Ascend.

    Raises
    ------
    TypeError
        For parameters that are no floating arrays, and options that are no numbers.
    ValueError
        For no parameters, one that comes twice or is read-only, options outside of their ranges.

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
        """Change the parameters by one step.

        Parameters
        ----------
        gradients : sequence of array_like
            One for each parameter, in its shape; they are only read. None leaves a parameter as it
            is.

        Raises
        ------
        TypeError
            For complex gradients; nothing is changed then.
        ValueError
            For another number of gradients, or one of another shape; nothing is changed then.

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
            None if g is None else np.asarray(g, dtype=p.dtype)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        for i, (p, g) in enumerate(zip(self.parameters, given, strict=True)):
            if g is not None and g.shape != p.shape:
                raise ValueError(
                    f"gradient {i} of shape {g.shape} does not fit its parameter of shape {p.shape}"
                )
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
                b = self._buffers[i] = np.array(g)  # an array even of a scalar
            else:
                b *= self.momentum
                b += (1 - self.dampening) * g
            g = g + self.momentum * b if self.nesterov else b
        p -= float(self.lr) * g  # a rate of NumPy's float64 would make float32 wider

    def state_dict(self) -> dict[str, Any]:
        """The options and copies of the momentum buffers.

        Returns
        -------
        dict
            Each option under its name, and "buffers": an array or None for each parameter.

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
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : dict
            Of an optimizer of parameters of the same shapes; it is copied.

        Raises
        ------
        ValueError
            For missing or other names, buffers that do not fit, options outside of their ranges;
            nothing is changed then.

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
