"""The calls of pyce that are measured, each with its arguments bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyce
from pyce._bench.workloads import Data

Call = Callable[[], Any]


def operation(data: Data, name: str) -> Call:
    """The operation of this name, on the backend that is selected when it is called."""
    x, target, out, options = data.logits, data.target, data.grad, data.options
    if name == "forward":
        return lambda: pyce.cross_entropy(x, target, **options)
    if name == "fused":
        return lambda: pyce.cross_entropy_with_grad(x, target, out=out, **options)
    _, lse = pyce.cross_entropy(x, target, return_lse=True, **options)
    return lambda: pyce.cross_entropy_backward(1.0, x, target, lse, out=out, **options)


def in_place(data: Data, name: str) -> Call:
    """The fused operation in place, on whatever the gradient's memory holds."""
    # The time does not depend on the numbers.
    return lambda: pyce.cross_entropy_with_grad(
        data.grad, data.target, out=data.grad, **data.options
    )


def plain(data: Data, name: str) -> Call:
    """The fused operation with index targets and no options, on a workload that has others."""
    return lambda: pyce.cross_entropy_with_grad(data.logits, data.labels, out=data.grad)
