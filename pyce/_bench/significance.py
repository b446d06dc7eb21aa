"""What became slower or faster between two runs on machines of one kind: beyond noise, or not.

Compared are seconds, and times over the floor's of the same round; a change must show in both. All
of a machine may be slower than it was, and then so is its memory; or memory alone may be faster for
these arrays, and then nothing took longer. What counts is the smaller change of the two.

The observations are the medians of blocks (see `measure`), and the test is Mann and Whitney's,
which asks nothing of their distribution: ten blocks before and ten after give a p of 0.00001 when
each one after is slower than all before. That is enough for Holm's correction, which allows for the
many tests of a run: some hundreds.

Runs of the same code differ by more than blocks of one run do, by what no block sees: where the
system put the code, how fast the clock was. How much shows in how far the items' ratios lie apart,
most of which are of code that did not change; what is not well beyond that is no change.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pyce._bench.results import Item, Key, Run

# The chance to call anything at all changed where nothing is.
LEVEL = 0.05
# Changes below this are of no interest, however certain.
LEAST = 1.05
# Beyond how many standard deviations of the items' ratios a change must be.
DEVIATIONS = 4


@dataclass(frozen=True)
class Change:
    """One item of two runs.

    ratio   : the time after over that before, in the view that changed less; above 1 is slower
    p       : of the two-sided test that is less sure, corrected for the number of tests
    verdict : "slower", "faster", "same", or "unknown" where there were too few blocks to tell
    """

    key: Key
    ratio: float
    p: float
    verdict: str


def compare(before: Run, after: Run) -> list[Change]:
    """A `Change` for each of pyce's own items that both runs measured, in the order of `after`."""
    pairs = [
        (key, before.items[key], item)
        for key, item in after.items.items()
        if key in before.items and item.about["kind"] in ("backend", "variant")
    ]
    views = [[(view(old), view(new)) for view in _VIEWS] for _, old, new in pairs]
    p_values = holm([max(_p(old, new) for old, new in pair) for pair in views])
    changes = [[_ratio(old, new) for old, new in pair] for pair in views]
    apart = max((spread(list(view)) for view in zip(*changes, strict=True)), default=0.0)
    least = max(LEAST, math.exp(DEVIATIONS * apart))
    ratios = [_agreed(both) for both in changes]
    found = []
    for (key, _, _), ((old, new), *_), p, ratio in zip(pairs, views, p_values, ratios, strict=True):
        verdict = "same"
        if p < LEVEL and max(ratio, 1 / ratio) > least:
            verdict = "slower" if ratio > 1 else "faster"
        # The smallest p that so many blocks can give must pass for the test to mean anything.
        elif _best_p(len(old), len(new)) * len(pairs) >= LEVEL:
            verdict = "unknown"
        found.append(Change(key, ratio, p, verdict))
    return found


def over_floor(item: Item) -> list[float]:
    """Block by block: time over the floor's; seconds where there is no floor."""
    found: list[float] = item.about["over_floor"] or item.about["blocks"]
    return found


def seconds(item: Item) -> list[float]:
    """Block by block."""
    found: list[float] = item.about["blocks"]
    return found


_VIEWS = (over_floor, seconds)


def _p(old: list[float], new: list[float]) -> float:
    from scipy.stats import mannwhitneyu

    # Exact: SciPy's approximation, its default for so many, can't pass the correction.
    return float(mannwhitneyu(old, new, method="exact").pvalue)


def _agreed(ratios: list[float]) -> float:
    """The ratio that is nearest to 1; 1 if they are on both sides of it."""
    if min(ratios) < 1 < max(ratios):
        return 1.0
    return min(ratios, key=lambda ratio: abs(math.log(ratio)))


def spread(ratios: list[float]) -> float:
    """The standard deviation of the ratios' logarithms, from the median of their distances.

    So it does not see the few that did change, and if all changed alike, that is no spread.
    """
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) < 3:
        return 0.0
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(log - middle) for log in logs)


def holm(p_values: list[float]) -> list[float]:
    """Each p as it must be read beside the others (Holm's step-down correction)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _ratio(old: list[float], new: list[float]) -> float:
    return statistics.median(new) / statistics.median(old)


def _best_p(before: int, after: int) -> float:
    """The two-sided p when the samples do not overlap."""
    return 2 / math.comb(before + after, after)
