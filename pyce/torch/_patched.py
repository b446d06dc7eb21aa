"""The context manager that lets PyTorch's `cross_entropy` and `linear_cross_entropy` run on pyce.

It replaces the function of PyTorch's C++ library that `torch.nn.functional.cross_entropy` calls,
and leaves that function itself alone: names and modules that hold it run on pyce, too, and are
pickled as before. `torch.nn.functional.linear_cross_entropy` is written in Python and calls no
function that could be replaced: for the same reasons, it stays the same object and gets other code.
"""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from types import FunctionType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import has_torch_function

from pyce.torch._cross_entropy import cross_entropy, is_left_to_pytorch
from pyce.torch._linear import linear_cross_entropy
from pyce.torch._tracing import is_compiling

_library = torch._C._nn
_REDUCTIONS = {_reduction.get_enum(name): name for name in ("none", "mean", "sum")}

# Blocks that are active now, in all threads, and the function that the first of them replaced.
_active: list[patched] = []
_replaced: Any = None
_lock = threading.Lock()


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 0,  # the default of PyTorch's function, which its operator does not share
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch._C._nn.cross_entropy_loss` on pyce, and by itself for what pyce does not compute."""
    if not is_left_to_pytorch(input):
        try:
            loss = cross_entropy(
                input,
                target,
                weight,
                ignore_index=ignore_index,
                reduction=_REDUCTIONS.get(reduction, ""),
                label_smoothing=label_smoothing,
            )
        except (TypeError, ValueError, NotImplementedError):
            pass  # PyTorch computes it, or raises its own error
        else:
            _count()
            return loss
    function = _replaced or _library.cross_entropy_loss  # the last block may have ended
    return function(input, target, weight, reduction, ignore_index, label_smoothing)


# torch.jit.script compiles the call as that of PyTorch's own function.
torch.jit._builtins._register_builtin(_loss, "aten::cross_entropy_loss")


def _count() -> None:
    with _lock:
        for block in _active:
            block.calls += 1


# PyTorch's function, since 2.13, and a function with the code that it has outside of blocks.
_linear: Any = getattr(torch.nn.functional, "linear_cross_entropy", None)
_own_linear: Any = None
if _linear is not None:
    _own_linear = FunctionType(
        _linear.__code__, _linear.__globals__, _linear.__name__, _linear.__defaults__
    )
    _own_linear.__kwdefaults__ = _linear.__kwdefaults__
    _own_linear.__annotations__ = _linear.__annotations__


def _linear_inside(  # type: ignore[no-untyped-def]
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """The code of PyTorch's `linear_cross_entropy` inside a block.

    It runs with the names of PyTorch's module.
    """
    from pyce.torch._patched import _linear_loss

    return _linear_loss(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )


def _linear_loss(input: Any, linear_weight: Any, target: Any, **options: Any) -> Any:
    """`torch.nn.functional.linear_cross_entropy` on pyce, and by itself for what pyce does not
    compute.
    """
    tensors = input, linear_weight, target, options["linear_bias"], options["weight"]
    if (
        not has_torch_function(tensors)
        and isinstance(input, Tensor)
        and 1 <= input.dim() <= 2
        and not is_left_to_pytorch(input)
    ):
        try:
            loss = linear_cross_entropy(input, linear_weight, target, **options)
        except (TypeError, ValueError, NotImplementedError):
            pass  # PyTorch computes it, or raises its own error
        else:
            if not is_compiling():  # the compiler cannot trace a lock
                _count()
            return loss
    return _own_linear(input, linear_weight, target, **options)


class patched(ContextDecorator):
    """Let PyTorch's `cross_entropy` and `linear_cross_entropy` run on pyce inside a with block.

    These are the functions of `torch.nn.functional`; `linear_cross_entropy` exists since PyTorch
    2.13. `torch.nn.CrossEntropyLoss` and `torch.nn.LinearCrossEntropyLoss` call them, so a script
    that uses any of them runs on pyce without edits, whatever name it calls the function by. What
    pyce does not compute is computed by PyTorch as before: tensors on other devices, distributed
    tensors (`DTensor`), the transforms of `torch.func`. Errors in the arguments are PyTorch's, too,
    except that of a class index out of range, which is pyce's `IndexError`.

    The block holds for all threads of the process. Blocks may nest and overlap, and the end of the
    last one restores PyTorch's function. The context manager is also a decorator.

    Code that computes its loss by other functions is not affected, for example by
    `torch.nn.functional.log_softmax` and `nll_loss`. Code that `torch.compile` compiled before the
    block continues to run PyTorch's function, and code that it compiled inside the block continues
    to run pyce's: `torch.compiler.reset()` makes it compile again.

    Attributes
    ----------
    calls : int
        The number of calls that pyce computed so far in the block, by any thread. Under
        `torch.compile` a call counts when it is compiled, and not when it runs; a call of
        `linear_cross_entropy` does not count then.

    Returns
    -------
    patched
        The with statement returns the context manager.

    Examples
    --------
    >>> criterion = torch.nn.CrossEntropyLoss()
    >>> with pyce.torch.patched() as patch:
    ...     loss = criterion(torch.zeros(4, 10), torch.arange(4))
    >>> patch.calls
    1
    """

    calls: int

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> patched:
        global _replaced
        with _lock:
            if not _active:
                _replaced = _library.cross_entropy_loss
                _library.cross_entropy_loss = _loss
                if _linear is not None:
                    _linear.__code__ = _linear_inside.__code__
            _active.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _replaced
        with _lock:
            _active.remove(self)
            if not _active:
                _library.cross_entropy_loss = _replaced
                _replaced = None
                if _linear is not None:
                    _linear.__code__ = _own_linear.__code__


patched.__module__ = "pyce.torch"  # its public place
