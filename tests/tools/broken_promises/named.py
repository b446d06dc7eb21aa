"""Runs tests on one backend: python named.py BACKEND ISAS CASES ARGUMENT…, the latter pytest's.

BACKEND is as `str` of a `Selection` writes it, for example c-scalar. Tests without a backend run
as well. With the ISAS "one", tests see no other instruction set of C than that of BACKEND: some
compare them, and a break of one would show there. CASES is a regular expression: of the cases that
a test tries in a loop (every.py), those are tried whose values, as text, match it. Numba, whose
import takes seconds, is hidden from other backends' tests of pyce alone.
"""

from __future__ import annotations

import re
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


class SomeCases:
    def __init__(self, cases: str):
        self.cases = cases

    def pytest_collection_finish(self):
        """Let the cases that do not match be skipped. The tests have been imported."""
        every = sys.modules.get("every")
        if every is None:
            return
        try_all = every._try_all

        def try_some(body, fixtures, tables):
            looped = {name for table in tables for name in table[0]}

            def only(**given):
                text = " ".join(every._shown(given[name]) for name in sorted(looped))
                if not re.search(self.cases, text):
                    pytest.skip("another case")
                body(**given)

            try_all(only, fixtures, tables)

        every._try_all = try_some


if __name__ == "__main__":
    name, isas, cases, arguments = *sys.argv[1:4], sys.argv[4:]
    if name != "numba" and not any("numba" in argument for argument in arguments):
        sys.modules["numba"] = None  # type: ignore[assignment]
    if isas == "one":
        from pyce._backends import c

        c.isas = lambda: [name.partition("-")[2]]
    sys.exit(pytest.main(arguments, plugins=[OneBackend(name), SomeCases(cases)]))
