"""The lines of docs/semantics.md and docs/promises.md."""

from __future__ import annotations

import re
from typing import NamedTuple

from test_semantics import NAME, TABLE, lines


class Line(NamedTuple):
    section: str
    number: int
    behaviour: str
    tests: tuple[str, ...]  # as file::test in the folder tests


def semantics() -> list[Line]:
    found = lines(TABLE.read_text(encoding="utf-8"))
    return [Line(s, n, cells[0], tuple(NAME.findall(cells[1]))) for s, n, cells in found]


def promises() -> list[str]:
    """The rows of the table of accuracy, the list of determinism, the sentences on safety."""
    text = (TABLE.parent / "promises.md").read_text(encoding="utf-8")
    accuracy, determinism, safety = (
        re.split(r"^##", text.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        for title in ("Accuracy", "Determinism", "Safety")
    )
    table = accuracy.partition("<!--")[0]
    rows = re.findall(r"^\| (?!result|---)(.*) \|$", table, re.MULTILINE)
    items = re.findall(r"^- (.*)[,.]$", determinism, re.MULTILINE)
    sentences = re.split(r"(?<=\.)\s+", safety.strip())
    stated = (" ".join(s.split()) for s in sentences if "semantics.md" not in s)
    return [*rows, *items, *stated]


def only(beginning: str, texts: list[str]) -> int | None:
    """The index of the one text that begins so, or None."""
    found = [index for index, text in enumerate(texts) if text.startswith(beginning)]
    return found[0] if len(found) == 1 else None
