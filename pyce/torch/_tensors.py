"""Tensors as memory: which ones are accepted, where their elements lie, and as NumPy arrays."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyce._extras import advice
from pyce._problem import axis_in_memory

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
HALF_TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
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
        how = ""
        if isinstance(tensor, np.ndarray):
            how = ": torch.from_numpy makes one of it, and the functions of pyce itself take arrays"
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}{how}")
    if not tensor.is_cpu:
        how = "" if tensor.is_meta else ": .cpu() copies it there"
        raise ValueError(f"{name} must be on the CPU, and is on {tensor.device}{how}")
    if tensor.layout is not _STRIDED or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name} must be a dense (strided) tensor, and is {layout}")


def refuse_gradients(**numbers: Any) -> None:
    """Raise for a number given as a tensor that requires a gradient: its gradient would be lost."""
    for name, number in numbers.items():
        if isinstance(number, Tensor) and number.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"no gradient is computed for {name}: detach it")


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor's type has no __torch_dispatch__ that would have to see an operator."""
    kind = type(tensor)
    return kind in PLAIN_TYPES or kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def is_served(tensor: Tensor) -> bool:
    """Whether the operators of pyce accept the tensor; they have no sharding rules for DTensors."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is None or not isinstance(tensor, distributed.DTensor)


def class_axis_in_memory(logits: Tensor) -> int | None:
    """The place that the class axis has in memory; None if the logits are not contiguous then.

    It is the place 1 of the shape (0 if there is only one) for contiguous logits. The first and the
    last place are the others: channels-last images have the class axis in the last.
    """
    dimensions = logits.dim()
    axis = 1 if dimensions > 1 else 0
    if logits.is_contiguous():
        return axis
    if dimensions == 4 and logits.is_contiguous(memory_format=torch.channels_last):
        return 3
    return axis_in_memory(logits.shape, logits.stride(), axis, 1)


def in_memory_order(logits: Tensor) -> tuple[Tensor, int]:
    """The logits with the class axis where it is in memory, and that place.

    If they are not contiguous with the class axis anywhere, they are returned as they are.
    """
    axis = 1 if logits.dim() > 1 else 0
    to = class_axis_in_memory(logits)
    return (logits, axis) if to is None or to == axis else (logits.movedim(axis, to), to)


def empty_gradient(logits: Tensor, contiguous: bool = False) -> Tensor:
    """Uninitialised memory for a gradient, of the shape and dtype of `logits`.

    It is C-contiguous if that is asked for, and else in the memory order of the logits, for which
    they must be contiguous, perhaps with the class axis elsewhere.
    """
    if logits.nbytes < _HUGE_PAGES_FROM:
        if contiguous and not logits.is_contiguous():
            return torch.empty_like(logits, memory_format=torch.contiguous_format)
        return torch.empty_like(logits)  # an argument more would take longer
    x, axis = (logits, 1) if contiguous else in_memory_order(logits)
    if x.dtype is torch.bfloat16:
        gradient = torch.from_numpy(np.empty(x.shape, np.int16)).view(torch.bfloat16)
    else:
        gradient = torch.from_numpy(np.empty(x.shape, DTYPE_NAMES[x.dtype]))
    return gradient if x is logits else gradient.movedim(axis, 1)


def contiguous_address(tensor: Tensor) -> int:
    """`memory_address` of a contiguous tensor, and 0 of any other."""
    return memory_address(tensor) if tensor.is_contiguous() else 0


def memory_address(tensor: Tensor) -> int:
    """The address of the first element of a tensor whose elements fill a piece of memory.

    0 if the tensor is to be negated when it is read, or has no memory: its storage was freed or
    cut, or it is one of PyTorch's zeros without a storage.
    """
    if tensor.is_neg():
        return 0
    address: int = tensor.data_ptr()
    if not address:
        return 0
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    return address if begin and address + tensor.nbytes <= begin + storage.nbytes() else 0


def resolved(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its elements are not in memory as they are: to be negated when
    they are read, or zeros without a storage.
    """
    tensor = tensor.detach().resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def as_array(tensor: Tensor, name: str) -> Any:
    """The memory of the tensor, which errors call `name`, as a NumPy array."""
    tensor = resolved(tensor)
    check_memory(tensor, name)
    if tensor.dtype is not torch.bfloat16:
        try:
            return tensor.numpy()
        except TypeError:  # as float8 and quantized tensors
            conversion = "dequantize" if tensor.is_quantized else "float"
            raise TypeError(
                f"{name} is {tensor.dtype}, which pyce does not read: .{conversion}() converts it"
            ) from None
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            f"pyce.torch needs ml_dtypes here, for bfloat16: {advice('torch')}"
        ) from error
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def check_memory(tensor: Tensor, name: str) -> None:
    """Raise unless the storage of the tensor contains all elements, or it is known to be zeros."""
    if tensor.numel() and not tensor._is_zerotensor() and not _has_memory(tensor):
        raise ValueError(
            f"{name} is a tensor without memory: its storage was freed, cut or never made"
        )


def _has_memory(tensor: Tensor) -> bool:
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.storage_offset() + 1 + steps
    storage = tensor.untyped_storage()
    return bool(storage.data_ptr()) and int(end * tensor.itemsize) <= storage.nbytes()
