"""The data of pictures and page, taken from the files of bench; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from pyce._bench.results import Item, Run
from pyce._bench.significance import Change, compare

OPERATIONS = ("fused", "forward", "backward")
TITLES = {"fused": "loss and gradient", "forward": "loss alone", "backward": "gradient alone"}
FLOORS = {"fused": "copy", "forward": "read", "backward": "copy"}
# Of a language model's head, in units of one product of its hidden states with its weight.
HEAD_TITLES = {
    "head-forward": "loss alone",
    "head-fused": "loss and gradients",
    "head-filtered": "loss and gradients, columns left out",
}
REFERENCE = "pyce numpy"

Place = tuple[str, str]  # workload, operation


def name_of(item: Item) -> str:
    """The name of the candidate without its number of threads."""
    if item.about["kind"] == "floor":
        return "floor"
    if item.about["kind"] == "backend":
        return f"pyce {item.about['backend']}"
    return str(item.about["candidate"])


class Loss(NamedTuple):
    """A place where another candidate is faster than the backend that is selected by default."""

    workload: str
    operation: str
    faster: str
    ratio: float  # our time over theirs


@dataclass(frozen=True)
class Shown:
    """A run for one number of threads: pyce's own, or the largest that was measured."""

    run: Run

    @cached_property
    def _losses(self) -> list[Item]:
        return [item for item in self.run.items.values() if item.about["operation"] in OPERATIONS]

    @cached_property
    def threads(self) -> int:
        counts = {i.about["threads"] for i in self._losses if i.about["kind"] == "backend"}
        own: int = self.run.machine["threads"]
        return own if own in counts else max(counts, default=own)

    @cached_property
    def places(self) -> dict[Place, dict[str, Item]]:
        """{(workload, operation): {name: item}} of floor, backends and peers."""
        found: dict[Place, dict[str, Item]] = {}
        for item in self._losses:
            if item.about["kind"] == "variant":
                continue
            here = found.setdefault((item.about["workload"], item.about["operation"]), {})
            # The NumPy backend is measured with one number of threads only.
            here[name_of(item)] = max(
                here.get(name_of(item), item),
                item,
                key=lambda i: (i.about["threads"] == self.threads, i.about["threads"]),
            )
        return found

    @cached_property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(workload for workload, _ in self.places))

    @cached_property
    def operations(self) -> list[str]:
        found = {operation for _, operation in self.places}
        return [operation for operation in OPERATIONS if operation in found]

    @cached_property
    def names(self) -> list[str]:
        """All candidates except the floor: backends in the order of the file, then peers."""
        found: dict[str, bool] = {}
        for here in self.places.values():
            for name, item in here.items():
                if name != "floor":
                    found[name] = item.about["kind"] == "peer"
        return sorted(found, key=lambda name: found[name])

    @cached_property
    def ours(self) -> str:
        """The preferred backend, which is measured first."""
        return self.names[0] if self.names else ""

    @cached_property
    def training(self) -> dict[str, Item]:
        """{backend: item} of the training on digits."""
        return {i.about["backend"]: i for i in self.run.items.values() if "losses" in i.about}

    @cached_property
    def heads(self) -> list[Item]:
        """The items of a language model's head."""
        return [i for i in self.run.items.values() if i.about["operation"] in HEAD_TITLES]

    def over_floor(self, place: Place, name: str) -> float | None:
        here = self.places.get(place, {})
        if name not in here:
            return None
        own = here[name].over_floor
        if own is None and "floor" in here:
            own = here[name].seconds / here["floor"].seconds
        return own

    def ratio(self, place: Place, name: str) -> float | None:
        """Time of the candidate over the time of the preferred backend."""
        here = self.places.get(place, {})
        if name not in here or self.ours not in here:
            return None
        return here[name].seconds / here[self.ours].seconds

    @cached_property
    def losses(self) -> list[Loss]:
        """All places where another candidate is faster, the worst first."""
        found = []
        for (workload, operation), here in self.places.items():
            for name in here:
                ratio = self.ratio((workload, operation), name)
                if name not in ("floor", self.ours) and ratio is not None and ratio < 1:
                    found.append(Loss(workload, operation, name, 1 / ratio))
        return sorted(found, key=lambda loss: -loss.ratio)

    @cached_property
    def scaling(self) -> dict[Place, dict[str, dict[int, float]]]:
        """{(workload, operation): {name: {threads: speed-up over the fewest}}}."""
        times: dict[Place, dict[str, dict[int, float]]] = {}
        for item in self._losses:
            if item.about["kind"] in ("floor", "backend"):
                here = times.setdefault((item.about["workload"], item.about["operation"]), {})
                here.setdefault(name_of(item), {})[item.about["threads"]] = item.seconds
        found: dict[Place, dict[str, dict[int, float]]] = {}
        for place, by_name in times.items():
            for name, by_threads in by_name.items():
                if len(by_threads) > 1:
                    fewest = by_threads[min(by_threads)]
                    found.setdefault(place, {})[name] = {
                        count: fewest / by_threads[count] for count in sorted(by_threads)
                    }
        return found

    @cached_property
    def thread_counts(self) -> list[int]:
        return sorted(
            {
                count
                for by_name in self.scaling.values()
                for by_threads in by_name.values()
                for count in by_threads
            }
        )


# ---------------------------------------------------------------------------------------------
# Intervals and history


class Interval(NamedTuple):
    low: float
    middle: float
    high: float


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The sample median, and an interval that contains the true median with this confidence.

    Its ends are order statistics, so that nothing is assumed about the distribution. Fewer than six
    values cannot reach a confidence of 95 %: the interval is then their range.
    """
    ordered = sorted(values)
    n = len(ordered)
    outside, cut = 0.0, 0  # the number of values outside of the interval at each end
    while cut < n // 2:
        outside += 2 * math.comb(n, cut) / 2**n
        if outside > 1 - confidence:
            break
        cut += 1
    first = max(cut - 1, 0)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Interval(ordered[first], middle, ordered[n - 1 - first])


@dataclass(frozen=True)
class History:
    """Runs of one kind of machine, oldest first."""

    kind: str
    runs: list[Run]

    @cached_property
    def shown(self) -> list[Shown]:
        return [Shown(run) for run in self.runs]

    @cached_property
    def changes(self) -> list[list[Change]]:
        """The changes from each run to the next."""
        return [compare(before, after) for before, after in pairwise(self._tracked)]

    @cached_property
    def since_first(self) -> list[Change]:
        """Changes from the first run to the last, to which many small steps may add up."""
        return compare(self._tracked[0], self._tracked[-1]) if len(self.runs) > 2 else []

    @cached_property
    def _tracked(self) -> list[Run]:
        """The runs reduced to the items shown, since every further test weakens the others."""
        found = []
        for shown in self.shown:
            keys = {item.key for here in shown.places.values() for item in here.values()}
            content = shown.run.content
            some = [
                one for one in content["benchmarks"] if Item(one["extra_info"], 0.0).key in keys
            ]
            found.append(Run(shown.run.path, {**content, "benchmarks": some}))
        return found

    @property
    def labels(self) -> list[str]:
        return [f"{run.machine['pyce']} {run.commit}".strip() for run in self.runs]

    def last_two(self) -> tuple[str, str]:
        """Different names of the last two runs: their labels, or of one version their files."""
        before, after = self.labels[-2:]
        if before != after:
            return before, after
        return self.runs[-2].path.name, self.runs[-1].path.name

    @cached_property
    def backends(self) -> list[str]:
        names = (
            name
            for shown in self.shown
            for here in shown.places.values()
            for name, item in here.items()
            if item.about["kind"] == "backend"
        )
        return list(dict.fromkeys(names))

    @cached_property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(place for shown in self.shown for place in shown.places))

    def series(self, place: Place, name: str) -> dict[int, Interval]:
        """{number of the run: interval of the time over the floor's}."""
        found = {}
        for number, shown in enumerate(self.shown):
            item = shown.places.get(place, {}).get(name)
            if item and item.about["over_floor"]:
                found[number] = interval(item.about["over_floor"])
        return found

    def verdicts(self, place: Place, name: str) -> dict[int, str]:
        """{number of the run: "slower" or "faster"}, for runs that differ from the one before."""
        found = {}
        for number, changes in enumerate(self.changes, start=1):
            item = self.shown[number].places.get(place, {}).get(name)
            for change in changes:
                if item and change.key == item.key and change.verdict in ("slower", "faster"):
                    found[number] = change.verdict
        return found


def histories(runs: Iterable[Run]) -> list[History]:
    """One history for each kind of machine; times of different kinds are never compared."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(run.machine["kind"], []).append(run)
    return [History(kind, some) for kind, some in kinds.items()]
