"""How times, ratios and sizes are written in tables, sentences and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def ratio(value: float) -> str:
    """A ratio with three digits, never with an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def memory(count: float) -> str:
    """A number of bytes with its unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def tick(value: float) -> str:
    """The label of a tick: groups of thousands, and powers of ten if the number is long."""
    if value >= 1e6 or 0 < value < 1e-3:
        return power_of_ten(value)
    return f"{value:,.0f}".replace(",", " ") if value >= 1000 else f"{value:.4g}"


def power_of_ten(value: float) -> str:
    """The nearest power of ten with a raised exponent; values from 0.01 to 1000 as they are."""
    if 0.01 < value < 1000:
        return f"{value:g}"
    digits = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
    return "10" + str(round(math.log10(value))).translate(digits)


def listed(names: Iterable[str], last: str = "and") -> str:
    """Names as in a sentence: "a, b and c"."""
    some = list(names)
    return f" {last} ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)
