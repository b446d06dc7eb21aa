"""The registry of who is measured: pyce's backends and variants of C, the floors, and the peers.

To add a peer, add its adapter to `peers.PEERS`. A backend is found in pyce's own registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyce
from pyce._backends import check_name
from pyce._bench import measure, peers
from pyce._bench.measure import Call
from pyce._bench.workloads import Data, Workload


@dataclass(frozen=True)
class Candidate:
    """Someone who can do the work of a workload.

    name    : as in tables, with the number of threads where that is not pyce's own
    kind    : "floor", "backend", "variant" (of the C backend) or "peer"
    bind    : (data, operation) -> the call to be measured; raises ImportError where something is
              not installed and `peers.Unsupported` where the candidate can't do the work
    backend : of pyce, selected while it is measured; or None
    isa     : the instruction set that C is held to meanwhile; or None
    spins   : whether its idle threads may spin and disturb who comes next
    result  : whether its loss and gradient are the workload's, to be compared with the reference
    """

    name: str
    kind: str
    bind: Callable[[Data, str], Call]
    threads: int
    backend: str | None = None
    isa: str | None = None
    spins: bool = False
    result: bool = True

    def does(self, workload: Workload, operation: str) -> bool:
        """Whether this is measured at all for that work."""
        if self.kind == "peer":
            return workload.target == "index" and operation != "backward"
        if self.kind == "variant":
            plain = self.name.endswith("plain")
            return operation == "fused" and plain == (workload.target != "index")
        return True

    @contextmanager
    def selected(self) -> Iterator[None]:
        """What it needs set, for as long as it is measured."""
        if self.backend is None and self.kind != "floor":
            yield
            return
        before = pyce.get_num_threads()
        pyce.set_num_threads(self.threads)
        try:
            with (
                pyce.use_backend(check_name(self.backend or pyce.get_backend())),
                _held_to(self.isa),
            ):
                yield
        finally:
            pyce.set_num_threads(before)


@contextmanager
def _held_to(isa: str | None) -> Iterator[None]:
    if isa is None:
        yield
        return
    from pyce._backends import c

    before = c.isa()
    c.set_isa(isa)
    try:
        yield
    finally:
        c.set_isa(before)


def backends(names: Sequence[str], threads: list[int]) -> list[Candidate]:
    """The backends for each number of threads (NumPy's has one), and the floor."""
    own = pyce.get_num_threads()
    found = []
    for count in threads:
        found.append(Candidate(_named("floor", count, own), "floor", measure.floor, count))
        found += [
            Candidate(
                _named(f"pyce {name}", count, own),
                "backend",
                measure.operation,
                count,
                backend=name,
                spins=name == "numba" and count > 1,
            )
            for name in names
            if name != "numpy" or count == threads[0]
        ]
    return found


def _named(name: str, threads: int, own: int) -> str:
    if threads == own:
        return name
    return f"{name}, {threads} thread" + ("s" if threads > 1 else "")


def variants() -> list[Candidate]:
    """Calls of the C backend that the goals compare with its usual one, or with a peer's."""
    if "c" not in pyce.backends():
        return []
    threads = pyce.get_num_threads()
    found = [
        Candidate("pyce torch", "variant", _torch_step, threads, "c", spins=True),
        Candidate("pyce c, in place", "variant", _in_place, threads, "c", result=False),
        Candidate("pyce c, plain", "variant", _plain, threads, "c", result=False),
    ]
    if {"avx512", "avx2"} <= set(pyce.info()["isas"]):
        narrow = Candidate("pyce c, avx2", "variant", measure.operation, threads, "c", "avx2")
        found.append(narrow)
    return found


def _torch_step(data: Data, operation: str) -> Call:
    """Loss and gradient through PyTorch's autograd, as PyTorch's own are measured."""
    return peers.torch_on_pyce(data)[1]


def _in_place(data: Data, operation: str) -> Call:
    # The gradient of whatever the others left there: the time does not depend on the numbers.
    return lambda: pyce.cross_entropy_with_grad(
        data.grad, data.target, out=data.grad, **data.options
    )


def _plain(data: Data, operation: str) -> Call:
    """Index targets, without weights and smoothing, for the logits of a workload that has them."""
    return lambda: pyce.cross_entropy_with_grad(data.logits, data.labels, out=data.grad)


def others(names: list[str]) -> list[Candidate]:
    """The peers of these names."""
    threads = pyce.get_num_threads()
    return [
        Candidate(name, "peer", _calls_of(peers.PEERS[name]), threads, spins=True) for name in names
    ]


def _calls_of(adapter: Callable[[Data], peers.Calls]) -> Callable[[Data, str], Call]:
    def bind(data: Data, operation: str) -> Any:
        return adapter(data)[operation == "fused"]

    return bind
