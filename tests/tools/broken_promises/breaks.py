"""A break: one edit of a source file that makes a line of docs/semantics.md untrue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
# The modules of the mutation tester, and the test that reads docs/semantics.md.
sys.path += [str(ROOT / "tests" / "tools" / "mutation"), str(ROOT / "tests" / "documentation")]


class Break(NamedTuple):
    """`old`, which stands once in `file`, is replaced by `new`.

    `line` is the beginning of the behaviour in docs/semantics.md, long enough to be that of one
    line. All tests that the line names run, or only those of the functions `tests`: on the backend
    that `file` belongs to, or on `backend` ("c", "numpy" or "numba", or "c-scalar" for a file in
    C), and only those that pytest's -k selects by `which`. Of the cases that a test tries in a
    loop (every.py), those run whose values match the regular expression `cases`. A break in the
    kernels is one of those for `dtype`.
    """

    line: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    backend: str = ""
    which: str = ""
    cases: str = ""
    dtype: str = "f32"


class Unbroken(NamedTuple):
    """A line without a break, and why."""

    line: str
    reason: str
