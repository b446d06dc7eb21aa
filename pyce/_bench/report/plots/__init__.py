"""The pictures of the report. Each module draws one kind, from `summaries` or a file of check."""

from __future__ import annotations

from collections.abc import Iterable

from pyce._bench.report.check_files import Check
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots import errors, history, ratios, threads, throughput, training
from pyce._bench.report.style import drawing, words
from pyce._bench.report.summaries import History, Shown


def draw(shown: Shown) -> list[Picture]:
    """All pictures of one run that it has figures for."""
    made: list[Picture] = []
    with drawing():
        if shown.places:
            made += [throughput.roofline(shown), ratios.over_floor(shown), *ratios.speed_ups(shown)]
        if len(shown.thread_counts) > 2:
            made += [threads.scaling_curves(shown)]
        elif shown.thread_counts:
            made += [threads.scaling_pairs(shown)]
        if shown.training:
            made += [training.digits(shown)]
    return made


def draw_history(histories: Iterable[History]) -> dict[str, list[Picture]]:
    """{kind of machine: a picture for each backend}, for kinds with more than one run."""
    made = {}
    with drawing():
        for number, runs in enumerate(histories, start=1):
            if len(runs.runs) > 1:
                drawn = (
                    history.history_of(runs, name, f"history-{number}-{place}")
                    for place, name in enumerate(runs.backends, start=1)
                )
                made[runs.kind] = [picture for picture in drawn if picture]
    return made


def draw_errors(check: Check, number: int) -> list[Picture]:
    """For each dtype: the distribution of the errors, and the largest error of each regime."""
    made: list[Picture] = []
    with drawing():
        for dtype, regimes in check.results.items():
            made += [
                errors.histogram(check, regimes, words(dtype), f"errors-{number}-{len(made) + 1}"),
                errors.largest(check, regimes, words(dtype), f"errors-{number}-{len(made) + 2}"),
            ]
    return made
