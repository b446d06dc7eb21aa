"""The files of `python -m pyce bench`, which are pytest-benchmark's, read again.

Each item's `extra_info` holds:

    workload, stands_for, shape, dtype, target, axis, elements     of the registry
    operation      "forward", "fused", "backward" or "training"
    candidate      "floor", "pyce c", "pyce c, 1 thread", "torch", …
    kind           "floor", "backend", "variant" or "peer"
    backend        of pyce, or None
    threads, isa   that it ran with
    bytes          that the operation must move; target_bytes of them are the target's
    blocks         each block's median in seconds: the independent observations
    over_floor     each block's median of time over the floor's with as many threads, same round
    calls          how many calls a round is

and the file's `machine_info["pyce"]` the fingerprint of `_machine.fingerprint`.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyce._cli import Unusable

Key = tuple[str, str, str]  # workload, operation, candidate


@dataclass(frozen=True)
class Item:
    """What was measured of one candidate at one operation of one workload."""

    about: dict[str, Any]  # extra_info
    seconds: float  # the median of all rounds

    @property
    def key(self) -> Key:
        return self.about["workload"], self.about["operation"], self.about["candidate"]

    @property
    def rate(self) -> float:
        """Bytes that must be moved, per second."""
        return float(self.about["bytes"] / self.seconds)

    @property
    def over_floor(self) -> float | None:
        """The time over the floor's; None without a floor."""
        blocks = self.about.get("over_floor")
        return statistics.median(blocks) if blocks else None


@dataclass(frozen=True)
class Run:
    """One file: what one call of `bench` measured."""

    path: Path
    content: dict[str, Any]

    @cached_property
    def items(self) -> dict[Key, Item]:
        found = {}
        for one in self.content["benchmarks"]:
            item = Item(one["extra_info"], float(one["stats"]["median"]))
            found[item.key] = item
        return found

    @property
    def machine(self) -> dict[str, Any]:
        about: dict[str, Any] = self.content["machine_info"]["pyce"]
        return about

    @property
    def commit(self) -> str:
        """The commit it was measured at, short, with a + where files had been changed; or ""."""
        info = self.content.get("commit_info") or {}
        name = str(info.get("id") or "")[:9]
        if name == "unversioned"[:9]:
            return ""  # pytest-benchmark's word where there is no repository
        return name + ("+" if name and info.get("dirty") else "")

    @property
    def when(self) -> str:
        """Date and time, ISO 8601."""
        return str(self.content["datetime"])

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(workload for workload, _, _ in self.items))

    def candidates(self, *kinds: str) -> list[str]:
        """Names in the order of the file, of these kinds or of all."""
        return list(
            dict.fromkeys(
                item.about["candidate"]
                for item in self.items.values()
                if not kinds or item.about["kind"] in kinds
            )
        )


def load(path: Path) -> Run:
    """`Unusable` for what is no file of `bench`."""
    content = read(path)
    if not is_run(content):
        raise Unusable(f"{path} was not written by `python -m pyce bench`")
    return Run(path, content)


def read(path: Path) -> Any:
    """The JSON of a file, or `Unusable`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"can't read {path}: {error.strerror}") from None
    except ValueError as error:
        raise Unusable(f"{path} is no JSON: {error}") from None


def is_run(content: Any) -> bool:
    try:
        return "kind" in content["machine_info"]["pyce"] and all(
            {"candidate", "kind", "over_floor"} <= set(one["extra_info"])
            for one in content["benchmarks"]
        )
    except (KeyError, TypeError):
        return False
