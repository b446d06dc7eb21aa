"""Keep a file of `python -m pyce bench` as a baseline: `python bench/baseline.py FILE FOLDER`.

`python -m pyce compare FOLDER NEW` compares later runs with it. A baseline has pytest-benchmark's
format, as `pyce/_bench/results.py` describes it, without what a comparison does not need: the
single rounds (the medians of blocks stay), and the names of the host and of the build machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pyce import _cli
from pyce._bench import results

# The parts of an item that are kept, and the parts of its `extra_info` and `stats` that are not.
ITEM = ("group", "name", "fullname", "param", "extra_info", "stats")
LEFT_OUT = ("losses", "data", "total")
# The parts of `machine_info` that are kept; `pyce` is the fingerprint.
KEPT = ("machine", "python_implementation", "python_version", "system", "release", "pyce")


def keep(file: Path, folder: Path) -> Path:
    """Write the baseline of a run into a folder, and return its path."""
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
    """An item reduced to the parts that are kept, its figures rounded to five digits."""
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


def main(options: argparse.Namespace) -> int:
    _cli.writable(options.folder / "name.json")
    print(f"baseline: {keep(options.file, options.folder)}")
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/baseline.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("file", type=Path, metavar="FILE", help="a file of `python -m pyce bench`")
    made.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of baselines")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
