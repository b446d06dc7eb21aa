"""Files as `python -m pyce bench` writes them, made for tests."""

import json
import random
import re
import statistics
from pathlib import Path

import numpy as np

from pyce._bench import results
from pyce._bench.report.summaries import OPERATIONS
from pyce._bench.results import Run

MACHINE = {
    "kind": "some-cpu-2-threads",
    "processor": "Some CPU",
    "processors": 2,
    "caches": {"L1d": 2**15, "L2": 2**20, "L3": 2**25},
    "bandwidth": {"read": 4e10, "copy": 5e10},
    "backend": "c",
    "isa": "avx2",
    "isas": ["avx2", "scalar"],
    "threads": 2,
    "compiler": "gcc 12",
    "pyce": "0.1.0",
    "system": "Linux x86_64",
    "versions": {"Python": "3.12.1", "numpy": "2.0.0"},
}
ELEMENTS = {"64x10": 640, "1024x1000": 1_024_000, "2048x32000": 65_536_000}
# Times over the floor's.
TIMES = {"pyce c": 2.0, "pyce numba": 4.0, "pyce numpy": 60.0, "torch": 9.0, "JAX + optax": 5.0}


def item(workload, elements, operation, name, over, threads=2, noise=None):
    """An entry of pytest-benchmark's JSON, as `bench` writes it."""
    noise = noise or random.Random(0)
    floor = 2e-7 + elements * 8e-11 / threads
    blocks = [over * noise.lognormvariate(0, 0.02) for _ in range(8)]
    backend = name.removeprefix("pyce ") if name.startswith("pyce ") else None
    kind = "floor" if name == "floor" else "backend" if backend else "peer"
    suffix = ", 1 thread" if threads == 1 else ""
    about = {
        "workload": workload,
        "stands_for": "a test",
        "shape": [int(side) for side in re.findall(r"\d+", workload.split("-")[0])] or [elements],
        "dtype": "float32",
        "target": "index",
        "axis": -1,
        "elements": elements,
        "operation": operation,
        "candidate": name + suffix,
        "kind": kind,
        "backend": backend,
        "threads": threads,
        "isa": None,
        "bytes": 8 * elements,
        "target_bytes": 512,
        "blocks": [block * floor for block in blocks],
        "over_floor": blocks,
        "calls": 1,
    }
    return {"name": name, "extra_info": about, "stats": {"median": over * floor}}


def content(seed=0, slower=(), elements=ELEMENTS, kind=MACHINE["kind"], day=1, times=TIMES):
    """A file: every workload, operation and candidate; `slower` are (place, name, factor)."""
    noise = random.Random(seed)
    factors = {key: factor for *key, factor in slower for key in [tuple(key)]}
    entries = []
    for workload, size in elements.items():
        for operation in OPERATIONS:
            for name, over in {"floor": 1.0, **times}.items():
                if operation == "backward" and not name.startswith(("pyce", "floor")):
                    continue
                over = over * factors.get((workload, operation, name), 1)
                entries.append(item(workload, size, operation, name, over, 2, noise))
                if name in ("floor", "pyce c"):
                    entries.append(item(workload, size, operation, name, over, 1, noise))
    for backend in ("c", "numpy"):
        digits = {
            "workload": "digits",
            "stands_for": "regression",
            "dtype": "float32",
            "target": "index",
            "operation": "training",
            "candidate": f"pyce {backend}",
            "kind": "backend",
            "backend": backend,
            "threads": 2,
            "isa": None,
            "blocks": [0.1],
            "over_floor": [],
            "calls": 1,
            "accuracy": 0.96,
            "losses": [2.3 / (1 + step) for step in range(30)],
        }
        entries.append({"name": backend, "extra_info": digits, "stats": {"median": 0.1}})
    return {
        "machine_info": {"node": "a-host-name", "pyce": {**MACHINE, "kind": kind}},
        "commit_info": {"id": f"{day:09x}" + "0" * 31, "dirty": False},
        "benchmarks": entries,
        "datetime": f"2026-01-{day:02}T12:00:00.5+00:00",
        "version": "5.0.0",
    }


def run_of(**options):
    return Run(Path("made.json"), content(**options))


def written_run(
    tmp_path,
    name,
    items,
    kind="some-kind",
    when="2026-01-01T00:00:00",
    floor=1.0,
    others=None,
    **machine,
):
    """A file with `items`: {(workload, operation, candidate): [time over the floor, by block]}.

    `machine` holds parts of the fingerprint that differ from `MACHINE`. `floor` is how many times
    as fast it was as one that takes a microsecond, `others` how many processors other programs
    used.
    """
    benchmarks = []
    for (workload, operation, who), over in items.items():
        info = {
            "workload": workload,
            "operation": operation,
            "candidate": who,
            "kind": "floor" if who == "floor" else "backend" if who[:4] == "pyce" else "peer",
            "backend": who[5:].split(",")[0] if who[:4] == "pyce" else None,
            "elements": 1000,
            "bytes": 1000,
            "target_bytes": 0,
            "threads": 2,
            "blocks": [value * 1e-6 / floor for value in over],
            "over_floor": list(over),
        }
        benchmarks.append({"extra_info": info, "stats": {"median": statistics.median(over) * 1e-6}})
    content = {
        "machine_info": {
            "pyce": {**MACHINE, "kind": kind, "pyce": "1.0", **machine},
            "others": others,
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": when,
        "benchmarks": benchmarks,
    }
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return results.load(path)


def noisy(seed, factor=1.0, blocks=8, noise=0.05):
    rng = np.random.default_rng(seed)
    return {
        (f"w{i}", "fused", "pyce c"): (
            (factor if i < 3 else 1.0) * (2 + i) * np.exp(rng.normal(0, noise, blocks))
        ).tolist()
        for i in range(50)
    }
