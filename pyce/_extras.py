"""The commands that install optional parts of pyce, for messages."""

from __future__ import annotations

import os


def sources() -> str | None:
    """The folder of the sources, if Python imports pyce from there; None for an installed pyce."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return root if os.path.exists(os.path.join(root, "csrc", "build_ffi.py")) else None


def advice(extra: str) -> str:
    """The command that installs the libraries of an extra.

    It names the distribution if it is installed, also in editable form: pip then adds what is
    missing. Where only the sources are used, it names their folder.
    """
    # Imported here, as it takes milliseconds and most programs never need it.
    from importlib.metadata import distributions

    name = "pyce-kernels"
    # Installers write METADATA. A build leaves an egg-info in the sources, which has none.
    if not any(found.read_text("METADATA") for found in distributions(name=name)):
        name = sources() or name
    return f"pip install '{name}[{extra}]'"
