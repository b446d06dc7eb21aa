"""The context manager that lets PyTorch's `cross_entropy` run on pyce.

It replaces the function of PyTorch's C++ library that `torch.nn.functional.cross_entropy` calls,
and leaves that function itself alone: names and modules that hold it run on pyce, too, and are
pickled as before.
"""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from pyce.torch._cross_entropy import cross_entropy, is_left_to_pytorch

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
    reduction: int = 1,
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
            with _lock:
                for block in _active:
                    block.calls += 1
            return loss
    function = _replaced or _library.cross_entropy_loss  # the last block may have ended
    return function(input, target, weight, reduction, ignore_index, label_smoothing)


# torch.jit.script compiles the call as that of PyTorch's own function.
torch.jit._builtins._register_builtin(_loss, "aten::cross_entropy_loss")


class patched(ContextDecorator):
    """Let `torch.nn.functional.cross_entropy` run on pyce inside a with block.

    `torch.nn.CrossEntropyLoss` calls that function, so a script that uses either of them runs on
    pyce without edits, whatever name it calls the function by. What pyce does not compute is
    computed by PyTorch as before: tensors on other devices, distributed tensors (`DTensor`), the
    transforms of `torch.func`. Errors in the arguments are PyTorch's, too, except that of a class
    index out of range, which is pyce's `IndexError`.

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
        `torch.compile` a call counts when it is compiled, and not when it runs.

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


patched.__module__ = "pyce.torch"  # its public place
