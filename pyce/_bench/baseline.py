"""Baselines: files of `bench` that are kept, to be compared with.

The format is pytest-benchmark's, as `results` describes it, without what is of no use later: the
single rounds (the blocks' medians stay) and the names of the host and of what it was built on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyce._bench import results

# What each item keeps, and of its `extra_info` and `stats` what it does not.
ITEM = ("group", "name", "fullname", "param", "extra_info", "stats")
LEFT_OUT = ("losses", "data", "total")
# Of `machine_info`; `pyce` is the fingerprint.
KEPT = ("machine", "python_implementation", "python_version", "system", "release", "pyce")


def keep(file: Path, folder: Path) -> Path:
    """Write the baseline of a run into a folder; returns its path."""
    run = results.load(file)
    content = json.loads(json.dumps(run.content))
    content["machine_info"] = {
        name: value for name, value in content["machine_info"].items() if name in KEPT
    }
    items = [_short(one) for one in content.pop("benchmarks")]
    name = f"{run.machine['kind']}--{run.when[:10]}-{run.commit or run.machine['pyce']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in items)
    head = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{head},\n "benchmarks": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return path


def _short(one: dict[str, Any]) -> dict[str, Any]:
    """An item without what is of no use later, its figures to five digits."""
    kept = {name: one[name] for name in ITEM}
    for part in ("extra_info", "stats"):
        kept[part] = {
            name: _rounded(value) for name, value in one[part].items() if name not in LEFT_OUT
        }
    return kept


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
