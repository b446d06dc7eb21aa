"""Mutants that no test can see, with the reason: equivalent.txt, and the names below.

An entry of equivalent.txt is a changed line between its neighbours. It is recognised by what the
lines do, whatever the files, functions and variables are called; see `Mutant.key`.
"""

from __future__ import annotations

import re
from pathlib import Path

from mutant import Mutant, normalised, source

FILE = Path(__file__).with_name("equivalent.txt")
# Functions that choose between ways to the same result.
FUNCTIONS = {
    "bytes_of": "whether results bypass the caches",
    "prefetch_rows": "which memory is prefetched",
    "pyce_grain": "how rows are distributed among threads",
    "pyce_last_cache": "how large the last cache is taken to be",
    "pyce_pool_is_warm": "how many threads are used",
    "pyce_pool_note_call": "how many threads are used",
    "pyce_threads_for": "how many threads are used",
    "platform_cache_size": "how large the last cache is taken to be",
    "platform_pause": "how a thread that waits spins",
    "platform_request_huge_pages": "how large the pages of memory are",
}
# Numbers of Python that change how much is computed at a time, or what a benchmark or a demo does.
CONSTANTS = {
    "_BLOCK": "how many elements of an array are computed at a time",
    "REST": "how long a benchmark waits",
    "ROUND": "how long a benchmark measures",
    "WARM_UP": "how long a benchmark measures",
    "TOO_LONG": "how long a benchmark measures",
    "EFFORT": "how long a benchmark measures",
    "STEPS": "how long a training is measured",
    "RATE": "which training is measured",
    "SIDE, HIDDEN, BATCH": "how large a model of the demo is",
    "_DPI": "how large a picture is",
    "_FOOTER": "how large a picture is",
    "_SIZE": "how large a picture is",
}
# Arguments whose numbers only say how a picture of the report looks.
LOOKS = re.compile(
    r"\b(?:(?:e?line|markeredge)width|markersize|markerscale|fontsize|labelsize|zorder|ncols|pad)="
    r"\s*$"
)


def read() -> dict[tuple[str, ...], tuple[str, str]]:
    """{key of a mutant: (reason, changed line)} of equivalent.txt."""
    found = {}
    reason = ""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if line.startswith("= "):
            reason = line[2:]
        elif line.startswith("- "):
            hunk = [text[2:] for text in lines[i - 1 : i + 3]]
            found[normalised(*hunk)] = reason, hunk[2]
    return found


class Equivalents:
    """Says why no test can see a mutant, and which entries no mutant matches."""

    def __init__(self) -> None:
        self.entries = read()

    def reason(self, mutant: Mutant) -> str | None:
        entry = self.entries.get(mutant.key())
        if entry:
            return entry[0]
        if _is_look(mutant):
            return "how a picture looks"
        return CONSTANTS.get(_constant(mutant)) or FUNCTIONS.get(mutant.function())

    def unused(self, mutants: list[Mutant]) -> list[str]:
        """Entries and names without a mutant among `mutants`, which are all that there are."""
        keys, functions = {m.key() for m in mutants}, {m.function() for m in mutants}
        lines = [line for key, (_, line) in self.entries.items() if key not in keys]
        lines += [f"{name}()" for name in FUNCTIONS if name not in functions]
        constants = {_constant(m) for m in mutants}
        return lines + [name for name in CONSTANTS if name not in constants]


def _is_look(mutant: Mutant) -> bool:
    """Whether it is another number in one of the arguments `LOOKS`."""
    if mutant.name != "constant" or not mutant.file.startswith("pyce/_bench/report/"):
        return False
    return bool(LOOKS.search(source(mutant.file)[: mutant.start]))


def _constant(mutant: Mutant) -> str:
    """The name that the module gives a number, if the mutant is another number."""
    line = mutant.hunk()[1]
    return line.partition(" = ")[0] if mutant.name == "constant" else ""
