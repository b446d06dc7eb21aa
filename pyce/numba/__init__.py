"""pyce inside functions that Numba compiles.

`cross_entropy`, `cross_entropy_with_grad`, `softmax`, `log_softmax`, `logsumexp` and `accuracy` of
pyce can be called in functions that `numba.njit` compiles. Numba imports this module when it first
compiles or loads a function, through the entry point group ``numba_extensions``. Where pyce is not
installed but used from its sources, ``import pyce.numba`` does the same.

docs/numba.md describes what compiled calls accept.
"""

from __future__ import annotations

try:
    import numba  # noqa: F401
except ImportError as error:
    from pyce._extras import advice

    raise ImportError(f"pyce.numba needs Numba: {advice('numba')} ({error})") from error

from pyce.numba import _c, _overloads  # noqa: F401

_c.register()


def init() -> None:
    """Make pyce's functions known to Numba.

    The import of this module has done it; Numba calls this function as an entry point.
    """
