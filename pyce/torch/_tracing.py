"""Which of PyTorch's mechanisms are active in this thread.

PyTorch has no public names for most of these questions: all of its private names that this package
uses stand here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

# True while torch.compile or torch.export trace the caller.
is_compiling = torch.compiler.is_compiling
# True inside torch.func's transforms: vmap, grad, jvp, hessian.
transforms_active = torch._C._are_functorch_transforms_active
# The number of active TorchDispatchModes: fake tensors, make_fx, profilers of operators.
dispatch_modes = torch._C._len_torch_dispatch_stack
# Not None while torch.jit.trace records the caller.
tracing_state = torch._C._get_tracing_state
# Whether a tensor is one that torch.autograd.grad(is_grads_batched=True) passes.
is_batched = torch._C._functorch.is_legacy_batchedtensor
# Whether the graph that the backward pass walks will be walked again (retain_graph, create_graph).
# Versions of PyTorch without this function cannot tell: it may be.
graph_is_retained = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
# The innermost pair of saved-tensor hooks that is active, or None. The argument: ignore those
# that torch.compile traces.
saved_tensors_hooks = partial(torch._C._autograd._top_saved_tensors_default_hooks, True)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is active."""
    return bool(forward_ad._current_level >= 0)


def run_eagerly(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that `torch.compile` leaves to eager mode."""
    if "torch._dynamo" in sys.modules:  # torch.compile, which may be tracing the caller's functions
        function = torch.compiler.disable(function)
    return function(*arguments)
