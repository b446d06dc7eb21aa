"""Baselines: files of `bench` that are kept, to be compared with.

The format is pytest-benchmark's, as `results` describes it, without what is of no use later: the
single rounds (the blocks' medians stay) and the names of the host and of what it was built on.
"""

from __future__ import annotations

import json
from pathlib import Path

from pyce._bench import results

# Of `machine_info`; `pyce` is the fingerprint.
KEPT = ("machine", "python_implementation", "python_version", "system", "release", "pyce")


def keep(file: Path, folder: Path) -> Path:
    """Write the baseline of a run into a folder; returns its path."""
    run = results.load(file)
    content = json.loads(json.dumps(run.content))
    content["machine_info"] = {
        name: value for name, value in content["machine_info"].items() if name in KEPT
    }
    for one in content["benchmarks"]:
        one["stats"].pop("data", None)
        one["extra_info"].pop("losses", None)
    name = f"{run.machine['kind']}--{run.when[:10]}-{run.commit or run.machine['pyce']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
