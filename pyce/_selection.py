"""A backend, and for C an instruction set: what checks, benchmarks and tests run on in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyce
from pyce._backends import check_name


@dataclass(frozen=True)
class Selection:
    """A backend by name; `isa` is the instruction set that the C backend is held to, or None."""

    name: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name

    @contextmanager
    def selected(self, threads: int | None = None) -> Iterator[None]:
        """Run on this backend, with this number of threads if it is given.

        The backend is selected in the calling thread or task; the instruction set and the number
        of threads are settings of the whole process. All three are restored at the end.
        """
        with pyce.use_backend(check_name(self.name)), held_to(self.isa):
            if threads is None:
                yield
                return
            before = pyce.get_num_threads()
            pyce.set_num_threads(threads)
            try:
                yield
            finally:
                pyce.set_num_threads(before)


@contextmanager
def held_to(isa: str | None) -> Iterator[None]:
    """The C backend runs on this instruction set, if one is given, in the whole process."""
    if isa is None:
        yield
        return
    from pyce._backends import c

    before = c.isa()
    c.set_isa(isa)
    try:
        yield
    finally:
        c.set_isa(before)


def selections(names: Iterable[str]) -> list[Selection]:
    """These backends, each once; C once for each instruction set of this machine, widest first."""
    found: list[Selection] = []
    for name in names:
        isas = pyce.info()["isas"] if name == "c" else [None]
        found += [Selection(name, isa) for isa in isas]
    return found
