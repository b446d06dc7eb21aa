"""Lets threadpoolctl see and limit pyce, whichever of the two is imported first.

pyce has to register a controller with threadpoolctl, but does not import it for that: it registers
at once if threadpoolctl is imported already, else as soon as it is.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

from pyce import _threads
from pyce._version import __version__

_NAME = "threadpoolctl"
_INTERNAL_API = "pyce"


def register() -> None:
    """Register a controller for the C extension, which threadpoolctl finds by its loaded library.

    Its limit holds for every backend. Without the extension, threadpoolctl does not find pyce.
    """
    try:
        threadpoolctl: Any = importlib.import_module(_NAME)
        importlib.import_module("pyce._pyce")
    except ImportError:  # without the extension
        return
    if not hasattr(threadpoolctl, "register"):  # too old
        return
    if _INTERNAL_API in getattr(
        threadpoolctl, "_ALL_INTERNAL_APIS", ()
    ):  # pyce was imported before
        return

    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "pyce"
        internal_api = _INTERNAL_API
        filename_prefixes = ("_pyce.",)
        check_symbols = ("PyInit__pyce",)

        # The module that is imported now: pyce may have been removed from `sys.modules` and
        # imported again.

        def get_num_threads(self) -> int:
            return int(importlib.import_module(_threads.__name__).budget())

        def set_num_threads(self, num_threads: int) -> None:
            importlib.import_module(_threads.__name__).limit(num_threads)

        def get_version(self) -> str:
            return __version__

    threadpoolctl.register(Controller)


class _Watch:
    """A finder that finds only threadpoolctl, by the other finders, and replaces its loader."""

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        # Other finders may search all finders as well, this one among them.
        if name != _NAME or getattr(self._searching, "now", False):
            return None
        self._searching.now = True
        try:
            for finder in sys.meta_path:
                find = None if finder is self else getattr(finder, "find_spec", None)
                spec = find and find(name, path, target)
                if spec:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader)
                    return spec
            return None
        finally:
            self._searching.now = False


class _Loader:
    """The loader of threadpoolctl, which calls `register` after loading."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _unwatch()
        register()


def watch() -> None:
    """Call `register`, now or when threadpoolctl is imported."""
    _unwatch()
    if _NAME in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Watch())


def _unwatch() -> None:
    """Remove the finder, also that of an earlier import of pyce, whose class is another."""
    own = (_Watch.__module__, _Watch.__qualname__)
    sys.meta_path[:] = [
        f for f in sys.meta_path if (type(f).__module__, type(f).__qualname__) != own
    ]
