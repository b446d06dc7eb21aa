"""The errors that compiled code raises: exceptions that make their message when they are raised.

Compiled code passes numbers and shapes, and Python formats them, so that no function is compiled
for texts. The words are those of `pyce._arguments`. In the errors that softmax raises too, `what`
is the name of the logits.
"""

from __future__ import annotations

from typing import Any

from pyce._arguments import index_shape_error
from pyce._problem import label_error

Shape = tuple[int, ...]


class _Builtin:
    """Pickles as the builtin exception that the class derives from, with its message."""

    args: Any

    def __reduce__(self) -> Any:
        builtin = next(c for c in type(self).__mro__ if c.__module__ == "builtins")
        return builtin, self.args


class LabelError(_Builtin, IndexError):
    """A label is neither a class nor `ignore_index`."""

    def __init__(self, row: int, value: int, classes: int, ignore_index: int) -> None:
        super().__init__(str(label_error(row, value, classes, ignore_index)))


class AxisError(_Builtin, ValueError):
    """The class axis is out of range."""

    def __init__(self, axis: int, shape: Shape, what: str) -> None:
        super().__init__(f"axis {axis} is out of range for {what} of shape {shape}")


class NoClassError(_Builtin, ValueError):
    """The class axis has length 0."""

    def __init__(self, axis: int, shape: Shape, what: str) -> None:
        super().__init__(f"{what} must have at least one class, got shape {shape} with axis {axis}")


class IndexShapeError(_Builtin, ValueError):
    """Class indices do not have the shape of the logits without the class axis."""

    def __init__(self, shape: Shape, logits: Shape, expected: Shape) -> None:
        super().__init__(index_shape_error(shape, expected, logits, "logits"))


class ProbabilityShapeError(_Builtin, ValueError):
    """Probabilities do not have the shape of the logits."""

    def __init__(self, shape: Shape, logits: Shape) -> None:
        super().__init__(
            f"probability target of shape {shape} does not fit logits of shape {logits}"
        )


class WeightShapeError(_Builtin, ValueError):
    """`weight` does not have one element for each class."""

    def __init__(self, shape: Shape, expected: Shape) -> None:
        super().__init__(f"weight must have shape {expected}, got {shape}")


class SampleWeightShapeError(_Builtin, ValueError):
    """`sample_weight` does not have one element for each row."""

    def __init__(self, shape: Shape, expected: Shape) -> None:
        super().__init__(f"sample_weight must have shape {expected}, got {shape}")


class OutShapeError(_Builtin, ValueError):
    """`out` does not have the shape of the logits."""

    def __init__(self, shape: Shape, expected: Shape, what: str) -> None:
        super().__init__(f"out must have the shape {expected} of {what}, got {shape}")


class OverlapError(_Builtin, ValueError):
    """`out` shares memory with the logits, but is not the same memory."""

    def __init__(self, what: str) -> None:
        super().__init__(f"out overlaps {what}: it must be exactly the same memory, or share none")


class SmoothingError(_Builtin, ValueError):
    """`label_smoothing` is outside [0, 1]."""

    def __init__(self, value: float) -> None:
        super().__init__(f"label_smoothing must lie in [0, 1], got {value!r}")


class FiniteError(_Builtin, ValueError):
    """`lse_square_scale` is not finite."""

    def __init__(self, value: float) -> None:
        super().__init__(f"lse_square_scale must be finite, got {value!r}")


class TopKError(_Builtin, ValueError):
    """`top_k` is below 1."""

    def __init__(self, value: int) -> None:
        super().__init__(f"top_k must be at least 1, got {value}")


class IntegerError(_Builtin, ValueError):
    """An integer argument exceeds int64."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} must fit a 64-bit integer, got {value}")


class Interrupted(KeyboardInterrupt, Exception):
    """Python raised KeyboardInterrupt in a call; Numba raises subclasses of Exception only."""
