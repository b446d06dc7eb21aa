"""`every`: the parameters of a test that are tried in a loop, within one test.

pytest-xdist takes milliseconds for a test, whatever it does. Thousands of tests that differ in
a number or a dtype would spend more time on that than on pyce. Backends and instruction sets remain
parameters of pytest, so that a test runs on one of them.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

# A test ends after this many cases that fail: the rest would repeat them.
MOST = 10


def every(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[..., Any]:
    """Decorate a test so that it tries all values of a parameter, or of several parameters at once.

    The arguments are those of `pytest.mark.parametrize`. With several decorators, all combinations
    are tried. Cases after one that fails are tried as well: the test fails with the traceback of
    the first one and a message that names each. It is skipped if all cases are skipped.
    """
    one = isinstance(names, str)
    rows = [{names: value} if one else dict(zip(names, value, strict=True)) for value in values]
    if not rows:
        raise ValueError(f"no values of {names}")

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        body, tables = getattr(test, "every", (test, []))
        tables = [rows, *tables]

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            _try_all(body, fixtures, tables)

        run.every = body, tables  # type: ignore[attr-defined]
        signature = inspect.signature(body)
        looped = {name for table in tables for name in table[0]}
        left = [p for name, p in signature.parameters.items() if name not in looped]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate


def _try_all(body: Callable[..., None], fixtures: dict[str, Any], tables: list[Any]) -> None:
    failed: list[tuple[str, BaseException]] = []
    skipped = None
    ran = False
    for rows in itertools.product(*tables):
        case = {name: value for row in rows for name, value in row.items()}
        try:
            body(**fixtures, **case)
            ran = True
        except pytest.skip.Exception as exception:
            skipped = exception
        except (Exception, pytest.fail.Exception) as exception:
            text = ", ".join(f"{name}={_shown(value)}" for name, value in case.items())
            failed.append((text, exception))
            if len(failed) == MOST:
                break
    if failed:
        lines = [f"{text}: {type(error).__name__}: {error}" for text, error in failed]
        end = ["the remaining cases were not tried"] if len(failed) == MOST else []
        raise AssertionError("\n".join(["failed with", *lines, *end])) from failed[0][1]
    if skipped is not None and not ran:
        raise skipped


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)
