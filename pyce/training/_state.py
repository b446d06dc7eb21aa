"""Saves the state that a run changes, and restores it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from typing import Any

import numpy as np

# Values of these types are immutable: restoring their containers restores them.
_IMMUTABLE = (int, float, complex, str, bytes, np.generic, type(None))


def restored(state: Any) -> ExitStack:
    """A context that restores `state`, as it was at the time of this call, when it ends.

    Raises TypeError or ValueError for a state that cannot be restored.
    """
    stack = ExitStack()  # the others are restored also if one of them raises
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
            if not isinstance(value, _IMMUTABLE):
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
    """For steps that replace arrays by new ones, as in `state["w"] = w - lr * grad`."""
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
