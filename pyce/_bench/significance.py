"""Which items became significantly slower or faster between two runs on one kind of machine.

Two views of each item are compared: seconds, and times over the floor's in the same round. A change
must show in both: if the whole machine has become slower, so has the floor, and if only the memory
has become faster for these arrays, the seconds have not grown. The smaller of the two changes
counts.

The observations are the medians of blocks (see `measure`). The Mann-Whitney test assumes nothing
about their distribution: ten blocks before and ten after give p = 0.00001 if each one after is
slower than all before. That is enough for Holm's correction for the number of tests of a run, some
hundreds.

Runs of the same code differ more than the blocks of one run, by what is constant within a run: the
addresses of the code, the clock frequency. The spread of the ratios of all items shows how much,
since most of them are of code that did not change. A ratio within that spread is no change.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pyce._bench.results import Item, Key, Run

# The probability to report any change if there is none.
LEVEL = 0.05
# Changes below this ratio are not reported, however certain.
LEAST = 1.05
# A change must exceed this many standard deviations of the ratios of all items.
DEVIATIONS = 4


@dataclass(frozen=True)
class Change:
    """One item of two runs.

    ratio   : time after over time before, in the view that changed less; above 1 is slower
    p       : the larger p of the two two-sided tests, corrected for the number of tests
    verdict : "slower", "faster", "same", or "unknown" if there are too few blocks, or if a time is
              not a positive number; ratio is then NaN and p is 1
    """

    key: Key
    ratio: float
    p: float
    verdict: str


def compare(before: Run, after: Run) -> list[Change]:
    """A `Change` for each of pyce's own items that both runs measured, in the order of `after`."""
    both = [
        (key, before.items[key], item)
        for key, item in after.items.items()
        if key in before.items and item.about["kind"] in ("backend", "variant")
    ]
    pairs = [(key, old, new) for key, old, new in both if is_measured(old) and is_measured(new)]
    found = {change.key: change for change in _changes(pairs)}
    return [found.get(key) or Change(key, math.nan, 1.0, "unknown") for key, _, _ in both]


def is_measured(item: Item) -> bool:
    """Whether all times of an item are positive numbers."""
    times = [item.seconds, *(value for view in _VIEWS for value in view(item))]
    return bool(seconds(item)) and all(0.0 < value < math.inf for value in times)


def _changes(pairs: list[tuple[Key, Item, Item]]) -> list[Change]:
    """The changes of (key, before, after) that have been measured."""
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
        # If the smallest p that these numbers of blocks can give does not pass, nothing can.
        elif _best_p(len(old), len(new)) * len(pairs) >= LEVEL:
            verdict = "unknown"
        found.append(Change(key, ratio, p, verdict))
    return found


def over_floor(item: Item) -> list[float]:
    """For each block, the time over the floor's, or the seconds if there is no floor."""
    found: list[float] = item.about["over_floor"] or item.about["blocks"]
    return found


def seconds(item: Item) -> list[float]:
    """For each block, the seconds per call."""
    found: list[float] = item.about["blocks"]
    return found


_VIEWS = (over_floor, seconds)


def _p(old: list[float], new: list[float]) -> float:
    from scipy.stats import mannwhitneyu

    # Exact: SciPy's approximation, the default for so many, never gives a p that passes.
    return float(mannwhitneyu(old, new, method="exact").pvalue)


def _agreed(ratios: list[float]) -> float:
    """The ratio nearest to 1, or 1 if there are ratios on both sides of it."""
    if min(ratios) < 1 < max(ratios):
        return 1.0
    return min(ratios, key=lambda ratio: abs(math.log(ratio)))


def spread(ratios: list[float]) -> float:
    """Standard deviation of the logarithms of the ratios, from their median absolute deviation.

    It ignores the few items that changed, and is 0 if all items changed alike.
    """
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) < 3:
        return 0.0
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(log - middle) for log in logs)


def holm(p_values: list[float]) -> list[float]:
    """The p values corrected for their number by Holm's step-down procedure."""
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
    """The two-sided p of samples that do not overlap: the smallest there is."""
    return 2 / math.comb(before + after, after)
