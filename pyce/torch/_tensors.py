"""Tensors as memory: which ones are accepted, where their elements lie, and as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
HALF_TYPES = frozenset({torch.float16, torch.bfloat16})
# Tensors of these types have no __torch_dispatch__ that would have to see an operator.
PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})

_STRIDED = torch.strided
# For arrays of at least this many bytes NumPy requests huge pages from the system, and PyTorch does
# not: they reduce the time that the system takes to provide the memory to a quarter.
_HUGE_PAGES_FROM = 1 << 22


def check_tensor(tensor: Any, name: str) -> None:
    """Raise unless `tensor` is a dense tensor on the CPU.

    Shapes, dtypes and values are checked by pyce's functions.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, and is on {tensor.device}")
    if tensor.layout is not _STRIDED or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name} must be a dense (strided) tensor, and is {layout}")


def empty_gradient(input: Tensor) -> Tensor:
    """Uninitialised memory for a gradient: C-contiguous, of the shape and dtype of `input`."""
    if input.nbytes < _HUGE_PAGES_FROM:
        return torch.empty_like(input, memory_format=torch.contiguous_format)
    if input.dtype is torch.bfloat16:
        return torch.from_numpy(np.empty(input.shape, np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.empty(input.shape, DTYPE_NAMES[input.dtype]))


def address_of(tensor: Tensor, extent: int) -> int:
    """The address of the first element; 0 if the storage ends before `extent` bytes from it."""
    address: int = tensor.data_ptr()
    storage = tensor.untyped_storage()
    begin: int = storage.data_ptr()
    return address if begin and address + extent <= begin + storage.nbytes() else 0


def as_array(tensor: Tensor) -> Any:
    """The memory of the tensor as a NumPy array."""
    tensor = tensor.detach().resolve_neg()
    if tensor.numel() and not address_of(tensor, _extent(tensor)):
        raise ValueError("a tensor without memory: its storage was freed, cut or never made")
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "pyce.torch needs ml_dtypes here, for bfloat16: pip install 'pyce[torch]'"
        ) from error
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return int((1 + steps) * tensor.itemsize)
