"""What a run may change, kept aside and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from typing import Any

import numpy as np

# These can't be changed where they stand: it is enough to put back what holds them.
_FIXED = (int, float, complex, str, bytes, np.generic, type(None))


def kept(state: Any) -> ExitStack:
    """A context at whose end everything in `state` is as it was when this was called.

    TypeError or ValueError for what could not be put back.
    """
    stack = ExitStack()  # one that fails does not keep the others from being put back
    for restore in _restorers(state, "state"):
        stack.callback(restore)
    return stack


def _restorers(item: Any, where: str) -> Iterator[Callable[[], object]]:
    if isinstance(item, np.ndarray):
        if not item.flags.writeable:
            raise ValueError(f"{where} can't be restored: the array is read-only")
        yield _of_array(item)
    elif isinstance(item, (list, tuple, MutableMapping)):
        pairs = item.items() if isinstance(item, MutableMapping) else enumerate(item)
        for key, value in pairs:
            if not isinstance(value, _FIXED):
                yield from _restorers(value, f"{where}[{key!r}]")
        if not isinstance(item, tuple):
            yield _of_container(item)
    elif _has(item, "state_dict") and _has(item, "load_state_dict"):
        yield _of_object(item)
    else:
        raise TypeError(
            f"{where} can't be restored: {type(item).__name__} is neither a NumPy array, a list or "
            "dict of such, nor an object with state_dict() and load_state_dict()"
        )


def _has(item: Any, method: str) -> bool:
    return not isinstance(item, type) and callable(getattr(item, method, None))


def _of_array(array: Any) -> Callable[[], object]:
    saved = copy.deepcopy(array)

    def restore() -> None:
        array[...] = saved

    return restore


def _of_container(container: Any) -> Callable[[], object]:
    """For steps that put new arrays in the place of the old, as in `state["w"] = w - lr * grad`."""
    saved = copy.copy(container)

    def restore() -> None:
        container.clear()
        container.update(saved) if isinstance(container, MutableMapping) else container.extend(
            saved
        )

    return restore


def _of_object(item: Any) -> Callable[[], object]:
    saved = copy.deepcopy(item.state_dict())
    return lambda: item.load_state_dict(saved)
