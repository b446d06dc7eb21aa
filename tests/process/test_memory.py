"""What a call allocates besides its results."""

import tracemalloc

import numpy as np
import pytest
from conftest import C_BACKENDS, needs_proc, one_isa

import pyce

# A process for each case, which a process that has imported everything forks: what a case leaves
# in the allocator's hands would hide what the next one needs.
MEASURE = """
import os, tracemalloc
import ml_dtypes, numpy as np, pyce

pyce.set_num_threads(2)

def status(field):
    for line in open('/proc/self/status'):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def problem(rows, classes, axis, kind, soft):
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    shape = (rows, classes) if axis == 1 else (classes, rows)
    x = np.zeros(shape, dtype)
    x[...] = np.linspace(-3, 3, shape[1]).astype(dtype)
    out = np.ones_like(x)
    target = np.ones(shape, np.float32) if soft else np.zeros(rows, np.int64)
    return x, target, out

def calls(axis, x, target, out):
    for options in ({}, {'label_smoothing': 0.1}):
        loss, grad, lse = pyce.cross_entropy_with_grad(
            x, target, axis=axis, out=out, return_lse=True, **options)
        pyce.cross_entropy(x, target, axis=axis, **options)
        pyce.cross_entropy_backward(1.0, x, target, lse, axis=axis, out=out, **options)
    pyce.softmax(x, axis=axis, out=out)
    pyce.log_softmax(x, axis=axis, out=out)
    pyce.logsumexp(x, axis=axis)

def measure(rows, classes, *case):
    axis = case[0]
    # Compiled, threads started, and as many arrays of a row's and a column's length as will be.
    calls(axis, *problem(40, classes, *case))
    calls(axis, *problem(rows, 40, *case))
    big = problem(rows, classes, *case)
    big[2][...] = 0
    tracemalloc.start()
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # the high-water mark starts anew
    before = status('VmRSS')
    calls(axis, *big)
    traced = tracemalloc.get_traced_memory()[1]
    print(traced, status('VmHWM') - before, flush=True)

for case in CASES:
    child = os.fork()
    if child == 0:
        status_of_child = 1
        try:
            measure(*case)
            status_of_child = 0
        finally:
            os._exit(status_of_child)
    assert os.waitpid(child, 0)[1] == 0, case
"""

MIB = 2**20
# 8 MiB of logits, and less than 4 MiB are allowed.
ROWS, CLASSES = {"bfloat16": 512, "float32": 256, "float64": 128}, 8192
CASES = [
    (1, "float32", False),
    (1, "float32", True),
    (0, "float32", False),
    (0, "float32", True),
    (1, "bfloat16", False),
    (0, "bfloat16", False),
    (1, "float64", False),
]


@needs_proc
def test_memory_besides_inputs_and_outputs(backend, run_python):
    """1 MiB, two rows per thread and 32 bytes per row; never anything of the logits' size.

    Instruction sets have the same sizes of memory, from the same sources: one case shows it.
    """
    chosen = CASES[3:4] if backend in C_BACKENDS[1:] else CASES
    cases = [(ROWS[kind], CLASSES, axis, kind, soft) for axis, kind, soft in chosen]
    code = backend.share_small_work + f"CASES = {cases}\n" + MEASURE
    lines = run_python("-c", code, **backend.environment).stdout.splitlines()
    for (rows, classes, *case), line in zip(cases, lines, strict=True):
        traced, resident = map(int, line.split())
        threads, outputs = 2, 3 * 8 * rows
        allowed = MIB + 2 * threads * classes * 8 + 32 * rows + outputs
        assert traced <= allowed, case
        # Pages, malloc's own arenas and tracing come on top.
        assert resident <= allowed + 2 * MIB, case


LAYOUTS = {
    "padded rows": lambda: (np.ones((500, 4500), np.float32)[:, :2000], 1),
    "stepped classes": lambda: (np.ones((500, 4000), np.float32)[:, ::2], 1),
    "reversed": lambda: (np.ones((500, 2000), np.float32)[::-1, ::-1], 1),
    "Fortran": lambda: (np.ones((2000, 500), np.float32).T, 1),
    "broadcast": lambda: (np.broadcast_to(np.float32(1), (500, 2000)), 1),
    "class axis first": lambda: (np.ones((2000, 500), np.float32), 0),
    "dimensions swapped": lambda: (np.ones((20, 50, 1000), np.float32).transpose(1, 2, 0), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_not_copied(backend, layout):
    """Whatever the strides: 4 MB of logits, and less than a third of that for everything else."""
    x, axis = LAYOUTS[layout]()
    y = np.zeros(np.delete(x.shape, axis), int)
    out = np.empty(x.shape, x.dtype)
    pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)
    pyce.cross_entropy(x, y, axis=axis)  # both compiled
    tracemalloc.start()
    try:
        pyce.cross_entropy(x, y, axis=axis)
        pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 3


def extra(call, out, compiles=True):
    """The most bytes that a call allocates besides its results and `out`."""
    if compiles:
        call()
    tracemalloc.start()
    try:
        results = call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results = results if isinstance(results, tuple) else (results,)
    return peak - sum(r.nbytes for r in results if isinstance(r, np.ndarray) and r is not out)


def calls_with_options(x, axis, target, out):
    """Every loss with weights of rows and classes, and with such that are extreme."""
    rows, classes = np.delete(x.shape, axis), x.shape[axis]
    lse, ones = np.zeros(rows), np.ones(rows)
    for size in (1.0, 1e300):
        options = {
            "weight": np.full(classes, size),
            "sample_weight": np.full(rows, size),
            "axis": axis,
        }
        for smoothing in (0.0, 0.1):
            loss_only = {**options, "label_smoothing": smoothing}
            for reduction in ("mean", "none"):
                about = {**loss_only, "reduction": reduction}
                factor = ones if reduction == "none" else 1.0
                yield size, lambda a=about: pyce.cross_entropy(x, target, **a)
                yield size, lambda a=about: pyce.cross_entropy_with_grad(x, target, out=out, **a)
                yield (
                    size,
                    lambda a=about, f=factor: pyce.cross_entropy_backward(
                        f, x, target, lse, out=out, **a
                    ),
                )
                yield size, lambda a=about: pyce.nll_loss(x, target, **a)
                yield size, lambda a=about: pyce.log_loss(x, target, eps=0.1, **a)


@one_isa  # what Python allocates
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((48, 8192), 1), ((8192, 48), 0), ((1, 300_000), 1), ((60_000, 4), 1)]
)
def test_memory_with_options(backend, shape, axis, soft):
    """Weights, extreme ones too, add nothing of the logits' size, nor do losses of probabilities.

    Extreme factors take up to 180 bytes of a row where Python takes them apart.
    """
    x = np.full(shape, 0.25, np.float32)
    rows, classes = x.size // shape[axis], shape[axis]
    target = np.full(shape, 0.1, np.float32)
    if not soft:
        target = np.zeros(np.delete(shape, axis), np.int64)
        target.reshape(-1)[2::3] = -100
    out = np.empty_like(x)
    pyce.set_num_threads(2)
    for size, call in calls_with_options(x, axis, target, out):
        in_python = size != 1.0 and backend.name != "c"
        # The losses of probabilities are computed by NumPy on every backend.
        of_row = 180 if in_python or (size != 1.0 and rows > classes) else 32
        allowed = MIB + 2 * 2 * 8 * classes + of_row * rows
        assert extra(call, out, compiles=backend.name == "numba") <= allowed


@pytest.mark.parametrize("axis", [0, 1])
def test_accuracy_copies_neither_logits_nor_one_hot_targets(backend, axis):
    """Whatever their strides and dtypes."""
    x = np.zeros((1024, 1024), np.float32)
    hot = np.zeros(x.shape, np.float32)
    targets = [hot, np.asfortranarray(hot), hot.astype(">f4"), hot > 0, hot.astype(np.int64)]
    for logits in (x, np.asfortranarray(x)):
        for target in (np.zeros(1024, int), *targets):
            call = lambda x=logits, t=target: (pyce.accuracy(x, t, axis=axis),)  # noqa: E731
            assert extra(call, None) <= MIB + 2 * 8 * 1024 + 32 * 1024
