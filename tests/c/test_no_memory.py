"""Calls of the C interface, of which an allocation fails: they write nothing, or succeed.

No call leaves memory allocated that later ones do not use.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_vmath import compiler

pytest.importorskip("pyce._pyce", reason="the C extension is not built")

HERE = Path(__file__).parent

PROGRAM = """
import ctypes, itertools, sys, threading, time
import numpy as np
import xla_calls
from test_abi import Bernoulli, Common, Raw, Scaling, Selective, ffi, filled, lib, number

memory = ctypes.CDLL(None)
lib.pyce_set_thread_thresholds(1, 1)


class Shards:
    "pyce_partial, or pyce_complete from the states of all shards."

    def __init__(self, complete, outer, classes, reduction="SUM", threads=1):
        rng = np.random.default_rng(0)
        self.complete, self.threads, own = complete, threads, classes // 2
        self.x = rng.normal(size=(2, outer, own)).astype(np.float32)
        self.labels, self.bounds = np.zeros(outer, np.int64), np.array([0, own, classes])
        self.shards = ffi.new("pyce_shards *", {"count": 2, "own": 0})
        self.shards.bounds = at(self.bounds, "int64_t *")
        self.p = ffi.new("pyce_problem *")
        self.p.target, self.p.threads = lib.PYCE_INDEX64, threads
        self.p.outer, self.p.classes, self.p.inner = outer, classes, 1
        self.p.labels, self.p.grad_loss, self.p.reduction = at(self.labels), 1, lib.PYCE_SUM
        self.p.logits.outer_stride, self.p.logits.class_stride = own, 1
        self.p.ignore_index, self.p.loss = -100, -7.25
        size = outer * lib.pyce_state_size(self.p, own)
        self.states = [filled(size, np.dtype(float)) for _ in range(2)]
        self.losses = filled(outer, np.dtype(np.float32))
        self.result = filled((outer, own), np.dtype(np.float32))
        if complete:
            for i in 0, 1:
                self.partial(i)
            self.p.result = self.p.logits
            self.p.result.data, self.p.operation = at(self.result), lib.PYCE_FORWARD_BACKWARD
            self.p.reduction = number(reduction)
            if reduction == "NONE":
                self.p.losses = at(self.losses)
        self.shards.own, self.p.logits.data = 0, at(self.x[0])

    def partial(self, i):
        self.shards.own, self.p.logits.data = i, at(self.x[i])
        assert lib.pyce_partial(self.p, self.shards, at(self.states[i], "double *")) == 0

    def run(self):
        states = [at(state, "double *") for state in self.states]
        if self.complete:
            return lib.pyce_complete(self.p, self.shards, ffi.new("double *[]", states))
        return lib.pyce_partial(self.p, self.shards, states[0])

    def memory(self):
        arrays = *self.states, self.losses, self.result
        return self.p.loss, [array.tobytes() for array in arrays]


class Xla(xla_calls.Call):
    "A call from XLA, of two rows without a label in 0…classes−1."

    def __init__(self, kind, classes):
        handler = xla_calls.SAVING if kind == xla_calls.SAVED else "cross_entropy"
        super().__init__(kind, handler, classes, labels=(1, classes, -classes - 1))

    def run(self):
        statuses = {"8 pyce: out of memory": lib.PYCE_NO_MEMORY}
        return sum(statuses[message] for message in super().run())

    def memory(self):
        return [array.tobytes() for array in self.arrays.values()]


def at(array, kind="void *"):
    return ffi.cast(kind, array.ctypes.data)


def problem(*given, factors=None, ahead=False, **options):
    # Two threads share the rows of one shape.
    threads = 2 if options["shape"] == SHAPES[4] else 1
    raw = Raw(*given, **options).set(threads=threads)
    raw.threads = threads
    if factors:
        raw.arrays["sample_weight"][...] = factors[1]
        raw.arrays["sample_weight"][0] = factors[0]
    if ahead:  # the loss of the row with the largest factor is 0
        raw.arrays["labels"][...] = 0
        raw.arrays["logits"][0, 1:] = -np.inf
    return raw


def with_memory(call):
    "Arrays of a call of another function in `memory`."
    arrays = getattr(call, "arrays", None)
    if arrays is not None and not hasattr(call, "memory"):
        call.memory = lambda: ([a.tobytes() for a in arrays.values()], call.total[0])
    if isinstance(call, (Common, Bernoulli, Scaling)):
        call.arguments["threads"] = 1
    if isinstance(call, Common):
        call.memory = lambda: (call.raw.memory()[1], list(call.loss))
    return call


# For each driver; rows that two threads share; and the losses of many rows to be added up.
SHAPES = (6, 5, 1), (20, 100, 1), (3, 2500, 1), (2, 40, 30), (2, 20_000, 1), (260, 2049, 1)
# Factors that are extreme; with the last, the loss is computed twice.
FACTORS = None, (1e300, 1.0), (2.0**400, 2.0**-400)


def calls():
    for operation in "FORWARD", "FORWARD_BACKWARD", "BACKWARD":
        for shape in SHAPES[: 5 if operation == "BACKWARD" else 6]:
            for reduction in ("SUM",) if shape == SHAPES[-1] else ("SUM", "NONE"):
                for factors in FACTORS:
                    yield lambda o=operation, s=shape, r=reduction, f=factors: problem(
                        o, "FLOAT32", reduction=r, shape=s, weights=True, factors=f,
                        ahead=f == FACTORS[-1],
                    )
    for operation in "SOFTMAX", "LOG_SOFTMAX", "LOGSUMEXP":
        for shape in SHAPES[:-1]:
            yield lambda o=operation, s=shape: problem(o, "FLOAT64", shape=s)
    yield lambda: problem(shape=(300_000, 1, 1))  # labels in many pieces
    for *size, threads in (6, 500, 1), (3, 9000, 1), (2, 40_000, 2):
        yield lambda s=size, n=threads: Shards(False, *s, threads=n)
        for reduction in "SUM", "NONE":
            yield lambda s=size, r=reduction, n=threads: Shards(True, *s, r, n)
    yield Common
    yield Scaling
    yield lambda: Bernoulli(n=65 * 2**14)
    for dtype in "FLOAT32", "FLOAT64":
        yield lambda d=dtype: Selective(d)
    for kind in xla_calls.FORWARD, xla_calls.BOTH, xla_calls.SAVED, xla_calls.BACKWARD:
        for classes in 3, 2500, 20_000:
            yield lambda k=kind, n=classes: Xla(k, n)


# What lasts if two threads share: the pool, a worker, and buffers, each in two parts, of the
# worker and of the main thread, which calls some functions as well.
POOL = 6


def attempt(call, number, later=False):
    "Status of a call whose allocation of this number fails, or this and all that follow."
    # In a thread that has no memory yet.
    found = []

    def run():
        memory.refuse_memory(number, later)
        status = call.run()
        found.extend([status, memory.was_not_refused()])

    thread = threading.Thread(target=run)
    before = memory.allocations()
    thread.start()
    thread.join()
    several = getattr(call, "threads", 1) > 1
    kept = max(before, POOL) if several else before
    for _ in range(1000):  # a thread frees its buffer when it ends, after it can be joined
        if memory.allocations() <= kept:
            break
        time.sleep(0.01)
    assert memory.allocations() <= kept, (number, later, found)
    return found


attempt(Raw(), -1)
Raw().run()
refused = 0
for i, make in enumerate(calls()):
    expected = with_memory(make())
    assert attempt(expected, -1)[0] == lib.PYCE_OK, i
    for number_of, later in itertools.product(range(100), (False, True)):
        call = with_memory(make())
        before = call.memory()
        status, complete = attempt(call, number_of, later)
        if status == lib.PYCE_OK:
            after = call.memory(), expected.memory()
            if isinstance(call, Raw):
                after = [arrays for _, arrays in after]
            assert after[0] == after[1], i
            if complete:
                break
        else:
            assert status == lib.PYCE_NO_MEMORY, (i, status)
            assert call.memory() == before, (i, number_of)
            refused += 1
    assert number_of, i
print(refused)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or "LD_PRELOAD" in os.environ,
    reason="preloads a library for Linux",
)
def test_a_call_without_memory_writes_nothing_and_leaves_none_allocated(run_python, tmp_path):
    library = tmp_path / "watch_memory.so"
    source = HERE / "preload" / "watch_memory.c"
    command = [*compiler(), "-O2", "-fPIC", "-shared", "-fno-builtin", "-o", str(library)]
    subprocess.run([*command, str(source)], check=True, timeout=600)
    tests = f"{HERE}:{HERE.parent}"
    program = f"import sys; sys.path[:0] = {tests!r}.split(':')\n" + PROGRAM
    done = run_python("-c", program, LD_PRELOAD=str(library))
    assert int(done.stdout) > 600
