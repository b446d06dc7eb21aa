"""Read the files of `python -m pyce bench`, in the format of pytest-benchmark.

The `extra_info` of each item holds:

    workload, stands_for, shape, dtype, target, axis, elements     from the registry
    operation      "forward", "fused", "backward" or "training"
    candidate      "floor", "pyce c", "pyce c, 1 thread", "torch", …
    kind           "floor", "backend", "variant" or "peer"
    backend        pyce's backend, or None
    threads, isa   the settings that it ran with; `isa` of C only
    bytes          bytes that the operation must move; target_bytes of them belong to the target
    blocks         the median of each block in seconds: the independent observations
    over_floor     for each block, the median ratio to the floor's time in the same round with the
                   same number of threads
    calls          number of calls in a round

`machine_info["pyce"]` of the file is `_machine.fingerprint()`, and the bandwidth of memory in bytes
per second: "bandwidth": {"read": …, "copy": …}. With `bench --isa`, the fingerprint's `isa` is the
instruction set that C was held to, and its `kind` names both that and the widest one.

`machine_info["others"]` is the mean number of processors that other programs used during the run,
or None where that is not known.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pyce._bench.disturbance import DISTURBED
from pyce._cli import Unusable

Key = tuple[str, str, str]  # workload, operation, candidate


@dataclass(frozen=True)
class Item:
    """The measurement of one candidate on one operation of one workload."""

    about: dict[str, Any]  # extra_info
    seconds: float  # the median of all rounds

    @property
    def key(self) -> Key:
        return self.about["workload"], self.about["operation"], self.about["candidate"]

    @property
    def rate(self) -> float:
        """Throughput: bytes that must be moved, per second."""
        return float(self.about["bytes"] / self.seconds)

    @property
    def over_floor(self) -> float | None:
        """Ratio of the time to the floor's; None without a floor."""
        blocks = self.about.get("over_floor")
        return statistics.median(blocks) if blocks else None


@dataclass(frozen=True)
class Run:
    """One file: the measurements of one call of `bench`."""

    path: Path
    content: dict[str, Any]

    @cached_property
    def items(self) -> dict[Key, Item]:
        found = {}
        for one in self.content["benchmarks"]:
            try:
                item = Item(one["extra_info"], float(one["stats"]["median"]))
                for name in ("blocks", "over_floor"):
                    item.about[name] = [float(number) for number in item.about[name]]
            except (TypeError, ValueError, OverflowError):
                raise Unusable(f"{self.path} has something other than numbers as times") from None
            if not all(isinstance(name, str) for name in item.key):
                raise Unusable(f"{self.path} has something other than text as names")
            found[item.key] = item
        return found

    @property
    def machine(self) -> dict[str, Any]:
        about: dict[str, Any] = self.content["machine_info"]["pyce"]
        return about

    @property
    def disturbed(self) -> str:
        """A sentence about other programs that ran during the run; "" if they hardly did."""
        others = self.content["machine_info"].get("others")
        if others is None or others < DISTURBED:
            return ""
        return (
            f"During the run, other programs used {others:.2g} processors on average, which "
            "makes times longer and ratios less certain."
        )

    @property
    def commit(self) -> str:
        """The commit, shortened, with a + if files had been changed; "" outside of a repository."""
        info = self.content.get("commit_info")
        return short_commit(info) if isinstance(info, dict) else ""

    @property
    def when(self) -> str:
        """Date and time, ISO 8601."""
        return str(self.content["datetime"])

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(workload for workload, _, _ in self.items))

    def candidates(self, *kinds: str) -> list[str]:
        """Names of the candidates of these kinds, or of all, in the order of the file."""
        return list(
            dict.fromkeys(
                item.about["candidate"]
                for item in self.items.values()
                if not kinds or item.about["kind"] in kinds
            )
        )


def short_commit(info: dict[str, Any]) -> str:
    """The commit of pytest-benchmark's description of a repository, as `Run.commit`."""
    name = str(info.get("id") or "")[:9]
    if name == "unversioned"[:9]:
        return ""  # how pytest-benchmark says that there is no repository
    return name + ("+" if name and info.get("dirty") else "")


def load(path: Path) -> Run:
    """Read a file of `bench`. Raises `Unusable` for any other file."""
    content = read(path)
    if not is_run(content):
        raise Unusable(f"{path} was not written by `python -m pyce bench`")
    return Run(path, content)


class Lacking(Unusable, KeyError):
    """A file lacks an entry that the files of `bench` and `check` have."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Entries(dict[str, Any]):
    """A JSON object of the file `path`; an entry that it lacks raises `Lacking`."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise Lacking(
            f"{self._path} lacks {name!r}: it was changed, or written by another version of pyce"
        )


def read(path: Path) -> Any:
    """Read a JSON file. Raises `Unusable` if that fails, and later for an entry that it lacks."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=partial(_Entries, path))
    except OSError as error:
        raise Unusable(f"can't read {path}: {error.strerror}") from None
    except ValueError as error:
        raise Unusable(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise Unusable(f"can't read {path}: it is nested too deeply") from None


def is_run(content: Any) -> bool:
    try:
        return "kind" in content["machine_info"]["pyce"] and all(
            {"candidate", "kind", "over_floor"} <= set(one["extra_info"])
            for one in content["benchmarks"]
        )
    except (KeyError, TypeError):
        return False
