"""The context manager that replaces PyTorch's `cross_entropy`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyce.torch._cross_entropy import cross_entropy

# Blocks that are active now, in all threads, and the function that the first of them replaced.
_active = 0
_replaced: Any = None
_lock = threading.Lock()


@contextmanager
def patched() -> Iterator[None]:
    """Replace `torch.nn.functional.cross_entropy` by pyce's inside a with block.

    `torch.nn.CrossEntropyLoss` calls that function, so a script that uses either of them runs on
    pyce without edits. The replacement holds for all threads of the process. Blocks may nest and
    overlap, and the end of the last one restores the function that the first one replaced. A name
    that was bound earlier, by ``from torch.nn.functional import cross_entropy``, remains PyTorch's.

    Returns
    -------
    context manager
        It returns nothing on entry.

    Examples
    --------
    >>> criterion = torch.nn.CrossEntropyLoss()
    >>> with pyce.torch.patched():
    ...     loss = criterion(torch.zeros(4, 10), torch.arange(4))
    """
    global _active, _replaced
    functional = torch.nn.functional
    with _lock:
        if not _active:
            _replaced = functional.cross_entropy
            functional.cross_entropy = cross_entropy
        _active += 1
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if not _active:
                functional.cross_entropy = _replaced
                _replaced = None


patched.__module__ = "pyce.torch"  # its public place
