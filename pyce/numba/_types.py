"""The checks of types when Numba compiles a call: one that does not fit is a `TypingError`."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.errors import TypingError

from pyce._arguments import REDUCTIONS

REALS = (types.float32, types.float64)


def constant(value: Any) -> Any:
    """A default value or a constant in the source, as Python has it; else the type itself."""
    if isinstance(value, types.Omitted):
        return value.value
    if isinstance(value, types.Literal):
        return value.literal_value
    return None if isinstance(value, types.NoneType) else value


def is_absent(value: Any) -> bool:
    """Whether an optional argument is not given, or None."""
    return constant(value) is None


def _described(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, types.Array) else str(value)


def _refuse_optional(value: Any, what: str) -> None:
    if isinstance(value, types.Optional):
        raise TypingError(
            f"{what} may be None or not here, but a compiled call has one of the two: write two "
            "calls, with and without it"
        )


def check_logits(value: Any, what: str = "logits") -> None:
    """Logits are an array of float32 or float64."""
    if isinstance(value, types.Array) and value.dtype in REALS:
        if value.ndim == 0:
            raise TypingError(f"{what} must have at least one dimension, got shape ()")
        if not value.aligned:
            raise TypingError(f"{what} is not aligned: {what}.copy() is")
        return
    if isinstance(value, types.Array) and value.dtype == types.float16:
        raise TypingError(
            f"{what} is float16, which compiled code cannot pass to pyce: convert it by "
            ".astype(np.float32), or call pyce from Python"
        )
    raise TypingError(
        f"{what} must be an array of float32 or float64 in compiled code, got {_described(value)}"
    )


def check_target(target: Any, logits: Any) -> bool:
    """Whether the target has class indices; else it has probabilities."""
    if isinstance(target, types.Integer):
        if logits.ndim == 1:
            return True
        raise TypingError(
            f"target is one integer, but logits have {logits.ndim} dimensions: class indices have "
            "the shape of the logits without the class axis"
        )
    if not isinstance(target, types.Array):
        raise TypingError(
            "target must be an array of class indices of an integer dtype, or of probabilities of "
            f"float32 or float64, got {_described(target)}"
        )
    if isinstance(target.dtype, types.Integer):
        if target.ndim == logits.ndim:
            raise TypingError(
                f"integer target has as many dimensions as the logits, {target.ndim}: class "
                "indices have one less, without the class axis; one-hot rows and other "
                "probabilities must be floating, as target.astype(np.float64) makes them"
            )
        _check_dimensions(target, logits.ndim - 1, "index target")
        return True
    if target.dtype in REALS:
        if target.ndim == logits.ndim - 1:
            raise TypingError(
                f"target is {target.dtype} but shaped like class indices: indices must be "
                "integers, probabilities must have the shape of the logits"
            )
        _check_dimensions(target, logits.ndim, "probability target")
        return False
    advice = ""
    if isinstance(target.dtype, types.Boolean):
        advice = (
            ": target.astype(np.int64) makes class indices of booleans, "
            "target.astype(np.float64) one-hot rows"
        )
    raise TypingError(
        "target must be class indices of an integer dtype, or probabilities of float32 or float64, "
        f"got {_described(target)}{advice}"
    )


def is_one_hot(target: Any, logits: Any) -> bool:
    """Whether a target of `accuracy` has a value for each class, of any real dtype."""
    return (
        isinstance(target, types.Array)
        and target.ndim == logits.ndim
        and (isinstance(target.dtype, (types.Integer, types.Boolean)) or target.dtype in REALS)
    )


def check_reals(value: Any, ndim: int, what: str) -> None:
    """`weight` or `sample_weight`: None, or an array of real numbers with `ndim` dimensions."""
    if is_absent(value):
        return
    _refuse_optional(value, what)
    real = isinstance(value, types.Array) and (
        isinstance(value.dtype, types.Integer) or value.dtype in REALS
    )
    if not real:
        raise TypingError(f"{what} must be an array of real numbers, got {_described(value)}")
    _check_dimensions(value, ndim, what)


def _check_dimensions(value: Any, ndim: int, what: str) -> None:
    if value.ndim != ndim:
        raise TypingError(f"{what} must have {ndim} dimensions, got {value.ndim}")


def check_out(out: Any, logits: Any) -> None:
    """`out`: None, or a C-contiguous, writable array like the logits."""
    if is_absent(out):
        return
    _refuse_optional(out, "out")
    if not isinstance(out, types.Array):
        raise TypingError(f"out must be an array, got {out}")
    if out.dtype != logits.dtype:
        raise TypingError(f"out must have the dtype {logits.dtype} of the logits, got {out.dtype}")
    _check_dimensions(out, logits.ndim, "out")
    if out.layout != "C":
        raise TypingError("out must be C-contiguous, and known to be when the call is compiled")
    if not out.mutable:
        raise TypingError("out must be writable")


def check_integer(value: Any, what: str) -> None:
    value = constant(value)
    if not isinstance(value, (int, types.Integer)) or isinstance(value, bool):
        raise TypingError(f"{what} must be an integer, got {value}")


def check_number(value: Any, what: str, *, optional: bool = False) -> None:
    if optional and is_absent(value):
        return
    _refuse_optional(value, what)
    value = constant(value)
    if not isinstance(value, (int, float, types.Integer, types.Float, types.Boolean)):
        raise TypingError(f"{what} must be a real number, got {value}")


def reduction_of(value: Any) -> str:
    """The name of a reduction, which the type of the result depends on."""
    value = constant(value)
    if isinstance(value, types.UnicodeType):
        raise TypingError(
            "reduction must be a constant in compiled code, because the type of the result "
            "depends on it"
        )
    if value not in REDUCTIONS:
        raise TypingError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {value!r}")
    return str(value)


def flag_of(value: Any, what: str) -> bool:
    """A bool that the type of the result depends on."""
    value = constant(value)
    if not isinstance(value, bool):
        raise TypingError(
            f"{what} must be the constant True or False in compiled code, because the type of the "
            f"result depends on it; got {value}"
        )
    return value
