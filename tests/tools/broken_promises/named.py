"""Runs tests on one backend: python named.py BACKEND ISAS ARGUMENT…, the arguments being pytest's.

BACKEND is as `str` of a `Selection` writes it, for example c-scalar. Tests without a backend run
as well. With the ISAS "one", tests see no other instruction set of C than that of BACKEND: some
compare them, and a break of one would show there. Numba, whose import takes seconds, is hidden from
other backends' tests of pyce alone.
"""

from __future__ import annotations

import sys

import pytest


class OneBackend:
    def __init__(self, name: str):
        self.name = name

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self._is_of_it(item)]

    def _is_of_it(self, item) -> bool:
        given = getattr(item, "callspec", None)
        parameters = given.params if given else {}
        names = ("backend", "c_backend", "compute")
        chosen = [parameters[name] for name in names if name in parameters]
        return all(str(one) == self.name for one in chosen)


if __name__ == "__main__":
    name, isas, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    if name != "numba" and not any("numba" in argument for argument in arguments):
        sys.modules["numba"] = None  # type: ignore[assignment]
    if isas == "one":
        from pyce._backends import c

        c.isas = lambda: [name.partition("-")[2]]
    sys.exit(pytest.main(arguments, plugins=[OneBackend(name)]))
