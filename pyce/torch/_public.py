"""The public place of the functions and classes of `pyce.torch`."""

from __future__ import annotations

from typing import Any, NoReturn


def publish(*objects: Any) -> None:
    """Give functions and classes their public place, where pickles find them.

    `torch.jit.script` refuses them, and the modules that contain them, with an error that says so.
    """
    for one in objects:
        one.__module__ = "pyce.torch"
        one.__prepare_scriptable__ = _refuse_script


def _refuse_script(*_: object) -> NoReturn:
    """Raise: `torch.jit.script` calls this function with an object before it compiles it."""
    raise NotImplementedError(
        "torch.jit.script cannot compile pyce.torch: use torch.compile, torch.export or "
        "torch.jit.trace, or script torch.nn.CrossEntropyLoss"
    )
