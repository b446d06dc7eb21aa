"""The loss over a vocabulary that processes share: a cost model, and what is measured of it.

    python bench/ranks.py [--write PAGE] [--output FILE]

Measures, on this machine,

- processes of gloo, up to four, with one thread each: the CPU time of a call, and its bytes;
- one of 2 to 512 processes with all threads, in this process alone: the states of the others are
  copies of its own, and nothing is sent;

and prints two tables: these measurements with what the model says, and what the model says for a
network that this machine does not have. `--write` puts them between the markers `ranks-ISA` of a
page, ISA being the instruction set in use, and `--output` writes all figures as JSON, which
docs/drawings/several_machines.py draws.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import readme_tables
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytest_benchmark import utils

import pyce
from pyce import _cli, _machine, _shards
from pyce._bench import results
from pyce._bench.formats import duration, listed, ratio
from pyce._bench.workloads import Array
from pyce.torch._vocab_parallel import Ranks

VOCABULARY = 262_144
BLOCK = 2048  # PYCE_BLOCK of csrc/pyce.h
PROCESSES = (1, 2, 3, 4)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHOWN = (1, 2, 8, 64, 512)  # in the table
# The model's constants are computed from the measurements of these numbers of ranks.
FITTED = (2, 128, 512)
# The largest logits of a measurement, and the most rows.
ELEMENTS, ROWS = 2**24, 4096
# The networks of the model, in bytes per second and direction; and the time of a message, in s.
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
LATENCY = 20e-6


# ---------------------------------------------------------------------------------------------
# The model


def classes_of(ranks: int, rank: int = 0) -> int:
    """The classes of a rank: cut at multiples of the block as far as each has one."""
    blocks = VOCABULARY // BLOCK
    if ranks > blocks:
        return VOCABULARY // ranks
    return ((rank + 1) * blocks // ranks - rank * blocks // ranks) * BLOCK


def blocks_of(ranks: int) -> int:
    """The blocks of a row, over all ranks, that each rank adds up."""
    return sum(math.ceil(classes_of(ranks, rank) / BLOCK) for rank in range(ranks))


def state_bytes(ranks: int) -> int:
    """The bytes that a rank sends of each row: its label's logit, and two numbers a block.

    All ranks send as many as the one with the most classes.
    """
    most = max(classes_of(ranks, rank) for rank in range(ranks))
    return 8 * (1 + 2 * math.ceil(most / BLOCK)) if ranks > 1 else 0


def memory_bytes(ranks: int) -> int:
    """The bytes of a row that pass the memory of a rank: float32 logits, and all states twice.

    Loss and gradient of a row in one piece read each logit once and write each gradient once. Of a
    shard, the logits are read a second time. States are written as they arrive, and then read.
    """
    if ranks == 1:
        return 2 * 4 * VOCABULARY
    return 3 * 4 * classes_of(ranks) + 2 * ranks * state_bytes(ranks)


@dataclass(frozen=True)
class Costs:
    """Times in seconds on the machine that was measured.

    whole    of a logit in one piece, loss and gradient
    forward  of a logit in one piece, the loss alone
    logit    of a logit of a shard, loss and gradient
    block    of a block whose statistics are combined
    call     of a call, for each rank that takes part: their arguments are compared
    """

    whole: float
    forward: float
    logit: float
    block: float
    call: float

    def computing(self, ranks: int, rows: int) -> float:
        """For a row of a call with so many rows."""
        if ranks == 1:
            return self.whole * VOCABULARY
        return (
            self.logit * classes_of(ranks)
            + self.block * blocks_of(ranks)
            + self.call * ranks / rows
        )

    def parts(self, ranks: int, rows: int, speed: float) -> dict[str, float]:
        """The time of a row, by what takes it."""
        if ranks == 1:
            return {
                "own logits": self.whole * VOCABULARY,
                "combining": 0.0,
                "network": 0.0,
                "calls": 0.0,
            }
        return {
            "own logits": self.logit * classes_of(ranks),
            "combining": self.block * blocks_of(ranks),
            "network": (ranks - 1) * state_bytes(ranks) / speed,
            "calls": (self.call * ranks + (ranks - 1) * (2 * LATENCY + DESCRIPTION / speed)) / rows,
        }

    def gathering(self, ranks: int, rows: int, speed: float) -> float:
        """The time of a row if each rank gets all logits, and writes the gradient of its own."""
        if ranks == 1:
            return self.whole * VOCABULARY
        received = VOCABULARY - classes_of(ranks)
        return (
            self.forward * VOCABULARY
            + self.whole * classes_of(ranks)
            + 4 * received / speed
            + (ranks - 1) * LATENCY / rows
        )


# The bytes that each rank sends before the states.
DESCRIPTION = _shards.DESCRIPTION_BYTES


# ---------------------------------------------------------------------------------------------
# One rank, in this process alone


class Copies:
    """A group of ranks, of which this is the first and all others have the same logits.

    `seconds` is the time that was spent in `gather`.
    """

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.seconds = 0.0

    def gather(self, sent: Array, received: Array) -> None:
        start = perf_counter()
        received[:] = sent
        self.seconds += perf_counter() - start


def call_of(
    group: _shards.Group, logits: Array, labels: Array, grad: Array | None, reduction: str = "mean"
) -> Callable[[], Any]:
    """Loss and gradient of this rank's logits, by the function behind pyce.torch's."""

    def make() -> Any:
        p = _shards.local_problem(
            logits,
            labels,
            vocab_size=None,
            ignore_index=-100,
            label_smoothing=0.0,
            reduction=reduction,
            lse_square_scale=0.0,
            what="logits",
        )
        return p, logits.shape, grad

    return lambda: _shards.cross_entropy(group, make)


def one_rank(ranks: int, rows: int, rounds: int) -> float:
    """Seconds of a call of one of so many ranks, without what it waits for."""
    classes = classes_of(ranks)
    logits, labels = data(rows, classes)
    group = Copies(ranks)
    call = call_of(group, logits, labels, np.empty_like(logits))
    loss = call()
    # The states leave out the label's exponential, which is added once.
    own = pyce.logsumexp(logits)
    label = logits[np.arange(rows), labels]
    right = (own + np.log(ranks - (ranks - 1) * np.exp(label - own)) - label).mean()
    if not abs(loss - right) <= 1e-5 * abs(right):
        sys.exit(f"the loss of {ranks} ranks is {loss}, and should be {right}")
    seconds = []
    for _ in range(rounds):
        group.seconds = 0.0
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start - group.seconds)
    return statistics.median(seconds)


def data(rows: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """float32 logits, in memory that was written before, and labels among these classes."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, classes), np.float32)
    return logits, rng.integers(0, classes, rows)


def rows_for(ranks: int) -> int:
    return min(ROWS, max(1, ELEMENTS // classes_of(ranks)))


def costs(measured: dict[int, float], call: float, rounds: int) -> Costs:
    """The constants, from the seconds of a row for the numbers of ranks in FITTED."""
    few, many, most = FITTED

    def without_calls(ranks: int) -> float:
        return measured[ranks] - call * ranks / rows_for(ranks)

    logit = (without_calls(few) - without_calls(many)) / (classes_of(few) - classes_of(many))
    block = (without_calls(most) - logit * classes_of(most)) / blocks_of(most)
    logits, labels = data(rows_for(1), VOCABULARY)
    forward = median_of(lambda: pyce.cross_entropy(logits, labels), rounds) / logits.size
    return Costs(measured[1] / VOCABULARY, forward, logit, block, call)


def median_of(call: Callable[[], object], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def simulated(ranks: Sequence[int], rounds: int) -> tuple[dict[int, float], Costs]:
    """Seconds of a row for numbers of ranks, and the constants, with the present threads."""
    most = max(FITTED)
    call = one_rank(most, 1, 4 * rounds) / most
    wanted = sorted({1, *FITTED, *ranks})
    measured = {each: one_rank(each, rows_for(each), rounds) / rows_for(each) for each in wanted}
    return measured, costs(measured, call, rounds)


# ---------------------------------------------------------------------------------------------
# Processes of gloo


class Counting(Ranks):
    """A group of torch.distributed that counts the bytes of the states that this rank sends.

    `seconds` is the CPU time that was spent in `gather`.
    """

    bytes = 0
    seconds = 0.0

    def gather(self, sent: Array, received: Array) -> None:
        if sent.dtype == np.float64:
            self.bytes += sent[1:].nbytes  # after a flag
        before = process_time()
        super().gather(sent, received)
        self.seconds += process_time() - before


def process(rank: int, folder: str, sizes: Sequence[int], rows: int, rounds: int) -> None:
    """Measure calls in groups of the first processes, of these sizes; this is one of them."""
    torch.set_num_threads(1)
    pyce.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", max(sizes))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=max(sizes))
    found = {}
    for ranks in sizes:
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            found[ranks] = of_process(group, rank, rows, rounds)
        dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def of_process(group: Any, rank: int, rows: int, rounds: int) -> dict[str, float]:
    """Times of a row, in s, and the bytes of states that the rank sends of it."""
    counting = Counting(group)
    ranks = counting.size
    whole, labels = data(rows, VOCABULARY)
    begin = sum(classes_of(ranks, r) for r in range(rank))
    logits = whole[:, begin : begin + classes_of(ranks, rank)].copy()
    call = call_of(counting, logits, labels, np.empty_like(logits))
    if call() != pyce.cross_entropy(whole, labels):
        sys.exit("the ranks have another loss than one process")
    del whole
    counting.bytes = 0
    call()
    sent = counting.bytes
    found: dict[str, list[float]] = {"computing": [], "sending": [], "wall": []}
    for _ in range(rounds):
        dist.barrier(group=group)
        counting.seconds = 0.0
        start, before = perf_counter(), process_time()
        call()
        found["sending"].append(counting.seconds)
        found["computing"].append(process_time() - before - counting.seconds)
        found["wall"].append(perf_counter() - start)
    times = {name: statistics.median(seconds) / rows for name, seconds in found.items()}
    return {"sent": sent / rows, **times}


def processes(sizes: Sequence[int], rows: int, rounds: int) -> dict[int, dict[str, float]]:
    """For groups of these sizes: the means over their processes."""
    multiprocessing.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, sizes, rows, rounds
        mp.start_processes(process, arguments, max(sizes), start_method="forkserver")
        read = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return {
        ranks: {
            name: statistics.mean(one[str(ranks)][name] for one in read[:ranks])
            for name in read[0][str(ranks)]
        }
        for ranks in sizes
    }


# ---------------------------------------------------------------------------------------------
# The tables


def table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| ---: |" * 1 + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def measured_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    one = Costs(**found["one thread"])
    for ranks in PROCESSES:
        about = found["processes"][str(ranks)]
        model = one.computing(ranks, rows_for(1))
        yield [
            str(ranks),
            f"{classes_of(ranks):,}",
            f"{state_bytes(ranks):,}",
            f"{about['sent']:,.0f}",
            duration(model),
            duration(about["computing"]),
            duration(about["sending"]),
            duration(about["wall"]),
        ]


def modelled_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    all_threads = Costs(**found["all threads"])
    for ranks in SHOWN:
        row = [
            str(ranks),
            f"{classes_of(ranks):,}",
            size_text(memory_bytes(ranks)),
            size_text((ranks - 1) * state_bytes(ranks)),
            size_text(4 * (VOCABULARY - classes_of(ranks))),
            duration(all_threads.computing(ranks, rows_for(ranks))),
            duration(found["ranks"][str(ranks)]),
        ]
        for speed in NETWORKS.values():
            parts = all_threads.parts(ranks, ROWS, speed)
            total = sum(parts.values())
            row.append(f"{duration(total)}, {max(parts, key=parts.__getitem__)}")
            gathering = all_threads.gathering(ranks, ROWS, speed)
            row.append(f"{duration(gathering)} ({ratio(gathering / total)} ×)")
        yield row


def markdown(found: dict[str, Any]) -> str:
    one, every = Costs(**found["one thread"]), Costs(**found["all threads"])
    networks = [f"{words} at {name}" for name in NETWORKS for words in ("states", "logits instead")]
    checked = [ranks for ranks in RANKS if ranks not in (1, *FITTED)]
    errors = [
        found["ranks"][str(ranks)] / every.computing(ranks, rows_for(ranks)) - 1
        for ranks in checked
    ]
    real = table(
        (
            *("processes", "classes of each", "bytes it sends", "counted"),
            *("CPU time, model", "measured", "and in gloo", "wall time"),
        ),
        measured_rows(found),
    )
    model = table(
        (
            *("ranks", "classes of each", "through memory", "states received"),
            *("logits instead", "computing, model", "measured", *networks),
        ),
        modelled_rows(found),
    )
    least = [
        f"{ranks} ranks at {name} ({duration(seconds)})"
        for name, speed in NETWORKS.items()
        for ranks, seconds in [fastest(every, speed)]
    ]
    threads = found["threads"]
    return f"""\
{found["machine"]}; torch {found["torch"]}. {VOCABULARY:,} classes, float32, class indices; \
loss and gradient, medians, all figures for one row.

**Processes on this machine**, one thread each, gloo, {rows_for(1)} rows a call:

{real}

**The model** for ranks with the {threads} threads of this machine, and {ROWS:,} rows a call; what \
takes the most time is named. In brackets: how many times as long it takes to gather the logits.

{model}

Of {listed(map(str, RANKS))} ranks, the states of a row take the least time with {listed(least)}.

With the constants of {listed(map(str, FITTED))} ranks, the model's computing times of \
{listed(map(str, checked))} ranks differ from those measured by {100 * min(errors):+.0f} % to \
{100 * max(errors):+.0f} %. The constants, with {threads} threads (one thread): a logit of a shard \
{nanoseconds(every.logit)} ({nanoseconds(one.logit)}), in one piece {nanoseconds(every.whole)} \
({nanoseconds(one.whole)}), a block to combine {nanoseconds(every.block)} \
({nanoseconds(one.block)}), a call {duration(every.call)} for each rank.
"""


def fastest(costs: Costs, speed: float) -> tuple[int, float]:
    """The number of ranks with the least time of a row, and that time."""
    times = {ranks: sum(costs.parts(ranks, ROWS, speed).values()) for ranks in RANKS}
    best = min(times, key=times.__getitem__)
    return best, times[best]


def size_text(count: int) -> str:
    """A number of bytes with three digits, in decimal units as the speeds of networks."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def nanoseconds(seconds: float) -> str:
    return f"{seconds * 1e9:.3g} ns"


def measure(rounds: int) -> dict[str, Any]:
    every = pyce.get_num_threads()
    of_processes = processes(PROCESSES, rows_for(1), rounds)
    ranks, all_threads = simulated(RANKS, rounds)
    pyce.set_num_threads(1)
    _, one_thread = simulated((), rounds)
    pyce.set_num_threads(every)
    commit_info: Any = utils.get_commit_info
    return {
        "machine": readme_tables.measured_on(
            _machine.fingerprint(),
            datetime.date.today().isoformat(),
            results.short_commit(commit_info()),
        ),
        "torch": version("torch"),
        "threads": every,
        "processes": {str(each): about for each, about in of_processes.items()},
        "ranks": {str(each): seconds for each, seconds in ranks.items()},
        "all threads": asdict(all_threads),
        "one thread": asdict(one_thread),
    }


def main(options: argparse.Namespace) -> int:
    found = measure(options.rounds)
    text = markdown(found)
    print(text)
    if options.output:
        _cli.writable(options.output)
        _cli.write(options.output, json.dumps(found, indent=1) + "\n")
    if options.write:
        readme_tables.replace(options.write, f"ranks-{pyce.info()['isa']}", text)
    return _cli.FINE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python bench/ranks.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, default=15, help="calls of each (default: %(default)s)")
    made.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown file with the markers")
    made.add_argument("--output", type=Path, metavar="FILE", help="all figures, as JSON")
    return made


if __name__ == "__main__":
    sys.exit(_cli.run(main, parser().parse_args()))
