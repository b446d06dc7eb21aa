"""The registry of candidates: pyce's backends, variants of C, the floors, and other libraries.

To add a library, add its adapter to `peers.PEERS`. Backends come from pyce's own registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyce
from pyce._bench import calls, head, peers
from pyce._bench.calls import Call
from pyce._bench.floors import floor
from pyce._bench.head import HeadData
from pyce._bench.workloads import Data, Workload
from pyce._selection import Selection

# PyTorch's losses and pyce.torch's are compared for probabilities as well, and without a gradient.
OF_TORCH = ("torch", "torch.compile", "pyce torch")
# Those of other libraries and for them are measured for class indices, with and without a gradient.
OF_JAX = "pyce jax"
# The products of a head's loss and gradients, and nothing else.
PRODUCTS = "three products"


@dataclass(frozen=True)
class Candidate:
    """One implementation that can do the work of a workload.

    name    : as in tables, with the number of threads if it is not pyce's own
    kind    : "floor", "backend", "variant" (of the C backend) or "peer" (another library)
    bind    : (data, operation) -> the call to be measured; raises ImportError if something is not
              installed and `peers.Unsupported` if the candidate cannot do the work. None if the
              candidate is only for the head of a language model
    backend : of pyce, selected while the candidate runs; or None
    isa     : the instruction set that C is held to at the same time; or None
    spins   : whether its idle threads may spin and slow down the next candidate
    result  : whether it returns the workload's loss and gradient, to be compared with the reference
    head    : as `bind`, for the head of a language model; None if it does not have one
    """

    name: str
    kind: str
    bind: Callable[[Data, str], Call] | None
    threads: int
    backend: str | None = None
    isa: str | None = None
    spins: bool = False
    result: bool = True
    head: Callable[[HeadData, str], Call] | None = None

    def call(self, data: Data | HeadData, operation: str) -> Call:
        """The call to be measured, as `bind` or `head` returns it."""
        if isinstance(data, HeadData):
            assert self.head is not None
            return self.head(data, operation)
        assert self.bind is not None
        return self.bind(data, operation)

    def does(self, workload: Workload, operation: str) -> bool:
        """Whether the candidate is measured for this operation of this workload."""
        if operation not in workload.operations:
            return False
        if workload.features is not None:
            if self.name == PRODUCTS:
                return operation == "head-fused"
            if workload.is_long and self.backend not in (None, pyce.get_backend()):
                return False
            # Other libraries leave out no columns.
            return self.head is not None and (self.kind != "peer" or operation != "head-filtered")
        if self.bind is None:
            return False
        if self.name in OF_TORCH:
            return workload.target in ("index", "probabilities") and operation != "backward"
        if self.kind == "peer" or self.name == OF_JAX:
            return workload.target == "index" and operation != "backward"
        if self.kind == "variant":
            plain = self.name.endswith("plain")
            return operation == "fused" and plain == (workload.target != "index")
        return True

    @contextmanager
    def selected(self) -> Iterator[None]:
        """Apply the settings that the candidate runs with: backend, instruction set, threads."""
        if self.backend is None and self.kind != "floor":
            yield
            return
        with Selection(self.backend or pyce.get_backend(), self.isa).selected(self.threads):
            yield


def backends(names: Sequence[str], threads: list[int]) -> list[Candidate]:
    """The floor and these backends for each number of threads; NumPy once, since it has one."""
    own = pyce.get_num_threads()
    found = []
    for count in threads:
        of_head = count == own  # BLAS has its own number of threads
        found.append(
            Candidate(
                _named("floor", count, own),
                "floor",
                floor,
                count,
                head=head.floor if of_head else None,
            )
        )
        found += [
            Candidate(
                _named(f"pyce {name}", count, own),
                "backend",
                calls.operation,
                count,
                backend=name,
                spins=name == "numba" and count > 1,
                head=head.operation if of_head else None,
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
    """Other calls of the C backend, to be compared with its usual one or with another library."""
    if "c" not in pyce.backends():
        return []
    threads = pyce.get_num_threads()
    found = [
        Candidate(
            "pyce torch",
            "variant",
            _calls_of(peers.torch_on_pyce),
            threads,
            "c",
            spins=True,
            head=head.torch_on_pyce,
        ),
        Candidate(OF_JAX, "variant", _calls_of(peers.jax_on_pyce), threads, "c", spins=True),
        Candidate(PRODUCTS, "variant", None, threads, result=False, head=head.products),
        Candidate("pyce c, in place", "variant", calls.in_place, threads, "c", result=False),
        Candidate("pyce c, plain", "variant", calls.plain, threads, "c", result=False),
    ]
    info = pyce.info()
    if info["isa"] == "avx512" and "avx2" in info["isas"]:
        narrow = Candidate("pyce c, avx2", "variant", calls.operation, threads, "c", "avx2")
        found.append(narrow)
    return found


def others(names: list[str]) -> list[Candidate]:
    """The libraries of these names in `peers.PEERS`."""
    threads = pyce.get_num_threads()
    heads = {"torch": head.torch_all_logits}
    found = [
        Candidate(
            name, "peer", _calls_of(peers.PEERS[name]), threads, spins=True, head=heads.get(name)
        )
        for name in names
    ]
    if "torch" in names:
        chunked = Candidate(
            "torch chunked", "peer", None, threads, spins=True, head=head.torch_chunked
        )
        found.append(chunked)
    return found


def _calls_of(adapter: Callable[[Data], peers.Calls]) -> Callable[[Data, str], Call]:
    def bind(data: Data, operation: str) -> Call:
        return adapter(data)[operation == "fused"]

    return bind
