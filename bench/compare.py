"""Measure pyce against its peers and its goals: `python -m bench.compare [-k TEXT]`.

All candidates run in one process on the same buffers, in turn (A B C A B C ...), and the median of
each counts: what disturbs one, disturbs all. Before its turn each candidate makes a call that does
not count, so that it finds the caches and its own threads as it would when called alone. Each
result is checked first. The goals (bench/goals.py) need some calls of the C backend beside: in
place, on one thread, without AVX-512, and for other targets the plain call on the same logits.
Writes bench/results/peers.json and the same as tables, peers.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter, sleep
from typing import Any

import numpy as np

import pyce
from bench import measure, report
from bench.measure import Call
from bench.peers import PEERS, Unsupported, versions
from bench.workloads import WORKLOADS, Array, Data, Workload

# Seconds for the rounds of one workload and operation, all candidates together.
BUDGET = 3.0
# Seconds of rest between candidates: OpenMP's idle threads spin for some milliseconds, and would
# take a processor from the next candidate.
REST = 0.02
# Elements above which the backend's variants are measured: what selects them costs some time.
LARGE = 50_000
# Relative difference that a peer's result may show. It is not there to judge their accuracy.
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-2, "float32": 1e-4, "float64": 1e-9}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("-k", metavar="TEXT", default="", help="only workloads named like this")
    options = parser.parse_args()
    chosen = [w for w in WORKLOADS if options.k in w.name]
    results: list[dict[str, Any]] = []
    for number, workload in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {workload.name} ({workload.stands_for})", flush=True)
        try:
            results += compare(workload)
        except ImportError as error:
            print(f"  left out: {error}")
    measured = {"machine": measure.machine(), "versions": versions(), "results": results}
    measure.RESULTS.mkdir(exist_ok=True)
    (measure.RESULTS / "peers.json").write_text(json.dumps(measured, indent=1) + "\n")
    text = report.peers_markdown(measured)
    (measure.RESULTS / "peers.md").write_text(text)
    print("\n" + text)


def compare(workload: Workload) -> list[dict[str, Any]]:
    """Measure all candidates on one workload: one record for each candidate and operation."""
    data = Data(workload)
    peers = {}
    plain = workload.target == "index"
    for name, adapter in PEERS.items() if plain else ():
        try:
            peers[name] = adapter(data)
        except (ImportError, Unsupported) as error:
            print(f"  no {name}: {error}")
    records = []
    for operation in ("forward", "fused") if plain else ("fused",):
        floors = measure.floors(data, measure.FLOOR_OF[operation])
        candidates = dict(floors)
        for backend in pyce.backends():
            name = f"pyce {backend}"
            with selected(name):
                candidates[name] = call = measure.operation(data, operation)
                check(data, call, operation)
        for name, calls in peers.items():
            call = calls[operation == "fused"]
            try:
                check(data, call, operation, TOLERANCE[workload.dtype])
            except Exception as error:  # a peer's failure, of whatever kind, is no failure of ours
                print(f"  {operation:8} {name:18} left out: {str(error).strip().splitlines()[0]}")
            else:
                candidates[name] = call
        if operation == "fused" and data.logits.size > LARGE:
            candidates.update(variants(data))
        medians = interleaved(candidates)
        medians["floor"] = min(medians.pop(name) for name in floors)
        for name, median in medians.items():
            print(f"  {operation:8} {name:18} {measure.readable(median)}", flush=True)
            records.append(
                {
                    "workload": workload.name,
                    "stands_for": workload.stands_for,
                    "target": workload.target,
                    "target_bytes": 0 if plain else data.target.nbytes,
                    "bytes": 2 * data.logits.nbytes,
                    "operation": operation,
                    "candidate": name,
                    "seconds": median,
                }
            )
    return records


def selected(candidate: str) -> AbstractContextManager[None]:
    """Where a candidate of pyce runs on its backend."""
    if candidate.startswith("pyce "):
        return pyce.use_backend(candidate.removeprefix("pyce ").split(",")[0])
    return nullcontext()


def variants(data: Data) -> dict[str, Call]:
    """Calls of the C backend for the goals that are about itself."""
    if "c" not in pyce.backends():
        return {}
    from pyce._backends import c

    fused = measure.operation(data, "fused")
    if data.workload.target != "index":
        rows = data.logits.shape[:-1]
        labels = np.random.default_rng(0).integers(0, data.logits.shape[-1], rows)
        return {
            "pyce c, plain": lambda: pyce.cross_entropy_with_grad(
                data.logits, labels, out=data.grad
            )
        }

    def one_thread() -> Any:
        threads = pyce.get_num_threads()
        pyce.set_num_threads(1)
        try:
            return fused()
        finally:
            pyce.set_num_threads(threads)

    def narrow() -> Any:
        isa = pyce.info()["isa"]
        c.set_isa("avx2")
        try:
            return fused()
        finally:
            c.set_isa(isa)

    def in_place() -> Any:
        # The gradient of what other candidates left there; the time does not depend on it.
        return pyce.cross_entropy_with_grad(data.grad, data.target, out=data.grad, **data.options)

    found: dict[str, Call] = {"pyce c, 1 thread": one_thread, "pyce c, in place": in_place}
    if {"avx512", "avx2"} <= set(c.isas()):
        found["pyce c, avx2"] = narrow
    return found


def check(data: Data, call: Call, operation: str, tolerance: float | None = None) -> None:
    """AssertionError unless loss and gradient are the reference's, whoever computes them."""
    data.grad.fill(np.nan)  # so that no candidate's gradient passes for another's
    if operation == "forward":
        data.check_loss(call(), tolerance)
    else:
        loss, grad = call()
        data.check_loss(loss, tolerance)
        data.check_grad(as_array(grad), tolerance)


def as_array(grad: Any) -> Array:
    if hasattr(grad, "detach") and str(grad.dtype) == "torch.bfloat16":
        grad = grad.float()  # NumPy does not know torch's bfloat16
    return np.asarray(grad)


def interleaved(candidates: dict[str, Call]) -> dict[str, float]:
    """The median time of each candidate in seconds, measured in turn."""
    times, iterations = {}, {}
    for name, call in candidates.items():
        with selected(name):
            times[name] = measure.seconds(call, repeat=2)
        iterations[name] = measure.iterations(times[name])
    turn = sum(REST + times[name] * (iterations[name] + 1) for name in candidates)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    for _ in range(max(3, measure.rounds(BUDGET, turn))):
        for name, call in candidates.items():
            sleep(REST)
            with selected(name):
                call()
                start = perf_counter()
                for _ in range(iterations[name]):
                    call()
                samples[name].append((perf_counter() - start) / iterations[name])
    gc.enable()
    return {name: statistics.median(sample) for name, sample in samples.items()}


if __name__ == "__main__":
    main()
