"""What the ranks of `test_mpi.py` run by `mpiexec -n N python -m mpi4py`: every check on all.

A check that fails on one rank ends all: mpi4py aborts. The names of those that ended are printed.
"""

import os
import signal
import sys
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import oracle
from bounds import check_array, check_loss
from mpi4py import MPI

import pyce
import pyce.mpi
from pyce._check.regimes import Case

WORLD = MPI.COMM_WORLD
RANK, RANKS = WORLD.Get_rank(), WORLD.Get_size()
ROWS, CLASSES = 6, 5000
# The bounds of the shards for each number of ranks.
ALIGNED = {1: (0, 5000), 2: (0, 4096, 5000), 3: (0, 2048, 2048, 5000)}
UNEQUAL = {1: (0, 2100), 2: (0, 1, 2100), 3: (0, 0, 1500, 2100)}
SMALL = {1: (0, 10), 2: (0, 3, 10), 3: (0, 10, 10, 10)}


class Counted(MPI.Intracomm):
    """Counts the collectives."""

    calls = 0

    def Allgather(self, *arguments):
        self.calls += 1
        return super().Allgather(*arguments)


def shard(array, bounds):
    """The columns of this rank."""
    return array[..., bounds[RANK] : bounds[RANK + 1]]


def loss_of_all(loss):
    """The loss, which must have the same bytes on every rank."""
    assert len(set(WORLD.allgather(np.asarray(loss).tobytes()))) == 1
    return loss


def call(x, target, bounds, out=None, **options):
    """Loss and gradient of this rank's classes, after a check that the loss alone is the same."""
    t = np.asarray(target)
    t = shard(t, bounds) if t.dtype.kind != "i" else t
    local = shard(x, bounds)
    loss, grad = pyce.mpi.cross_entropy_with_grad(local, t, out=out, **options)
    assert grad.dtype == local.dtype.newbyteorder("=") or grad is out
    assert grad.shape == local.shape
    again = pyce.mpi.cross_entropy(shard(x, bounds), t, **options)
    if out is None or not np.shares_memory(x, out):
        assert type(loss) is type(again)
        assert np.asarray(loss).tobytes() == np.asarray(again).tobytes()
    return loss_of_all(loss), grad


def raised(function, *arguments, **options):
    """Type and message of the error of a call."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("no error")


def aligned_shards_have_the_bytes_of_one_process():
    """With three collectives, as the shards have different numbers of blocks."""
    if pyce.get_backend() != "c":
        return
    rng = np.random.default_rng(1)
    bounds = ALIGNED[RANKS]
    comm = Counted(WORLD)
    labels = rng.integers(0, CLASSES, ROWS)
    labels[1] = -100
    probs = rng.random((ROWS, CLASSES), np.float32)
    s = rng.random(ROWS)
    s[3] = 0.0
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for spread, integer in ((1, np.int64), (30, np.int32))[dtype == "float16" :]:
            x = rng.standard_normal((ROWS, CLASSES)) * spread
            x = x.astype(ml_dtypes.finfo(dtype).dtype)
            for target in (labels.astype(integer), probs):
                for options in (
                    {},
                    {"reduction": "none", "lse_square_scale": 0.01},
                    {"reduction": "sum", "label_smoothing": 0.1, "sample_weight": s},
                    {"normalizer": 3.7, "sample_weight": s},
                ):
                    loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
                    comm.calls = 0
                    found = call(x, target, bounds, comm=comm, **options)
                    assert comm.calls == (2 if RANKS == 1 else 6)
                    assert np.asarray(found[0]).tobytes() == np.asarray(loss).tobytes()
                    assert type(found[0]) is type(loss)
                    assert found[1].tobytes() == shard(grad, bounds).tobytes()


def any_shards_keep_the_accuracy():
    bounds = UNEQUAL[RANKS]
    for backend in [name for name in ("c", "numpy") if name in pyce.backends()]:
        for dtype in ("float32", "float64"):
            for regime, target, options in (
                ("confident30", "labels", {}),
                ("confident60", "labels", {"sample_weight": [0.5, 0.0, 3.0, -2.0]}),
                ("spread25", "labels", {"label_smoothing": 0.1}),
                ("wrong60", "labels", {"lse_square_scale": 0.5}),
                ("offset-1e4", "probabilities", {"sample_weight": [0.5, 0.0, 3.0, 1e-3]}),
            ):
                x, t, _ = Case(regime, 2100, 4, target).make(dtype)
                exact = oracle.reference(x, t, reduction="none", **options)
                with pyce.use_backend(backend):
                    loss, grad = call(x, t, bounds, reduction="none", **options)
                check_loss(loss, exact.loss)
                terms = None if exact.terms is None else shard(exact.terms, bounds)
                check_array(grad, shard(exact.grad, bounds), terms)


class Wrapped:
    """An object that is converted to an array without a copy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, *_, **__):
        return self.array


def shapes_and_layouts():
    bounds = SMALL[RANKS]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 3, 10)).astype(np.float32)
    y = rng.integers(0, 8, (2, 3))
    t = rng.random((2, 3, 10)).astype(np.float32)
    for target in (y, t):
        loss, grad = pyce.cross_entropy_with_grad(
            x[..., :8], target if target is y else t[..., :8], label_smoothing=0.2
        )
        padded = np.zeros_like(x)
        padded[..., :8] = grad
        for given in (
            x,
            np.asfortranarray(x),
            x.astype(x.dtype.newbyteorder()),
            np.repeat(x, 2, axis=0)[::2],
        ):
            found = call(given, target, bounds, vocab_size=8, label_smoothing=0.2)
            np.testing.assert_allclose(found[0], loss, rtol=1e-6)
            np.testing.assert_allclose(found[1], shard(padded, bounds), rtol=1e-5, atol=1e-8)
            assert (found[1][..., max(0, 8 - bounds[RANK]) :] == 0).all()
        out = np.full(shard(x, bounds).shape, 7, np.float32)
        loss, grad = call(x, target, bounds, out=out, vocab_size=8, label_smoothing=0.2)
        assert grad is out
        assert out.tobytes() == found[1].tobytes()
        # In place, and in the byte order of the caller.
        for dtype in (out.dtype, out.dtype.newbyteorder()):
            local = shard(x, bounds).astype(dtype, order="C")
            local_target = target if target is y else shard(t, bounds)
            loss, grad = pyce.mpi.cross_entropy_with_grad(
                local, local_target, out=local, vocab_size=8, label_smoothing=0.2
            )
            assert grad is local
            assert (local == out).all()
    # Infinite weights, on each backend.
    weights = np.array([[np.inf, -np.inf, 0.0], [1.0, np.nan, 2.0]])
    for backend in [name for name in ("c", "numpy") if name in pyce.backends()]:
        for reduction, label_smoothing in (("none", 0.1), ("sum", 0.0), ("mean", 0.0)):
            options = {
                "sample_weight": weights,
                "reduction": reduction,
                "label_smoothing": label_smoothing,
            }
            with pyce.use_backend(backend):
                loss, grad = pyce.cross_entropy_with_grad(x, y, **options)
                found = call(x, y, bounds, **options)
            np.testing.assert_allclose(found[0], loss, rtol=1e-6)
            np.testing.assert_allclose(found[1], shard(grad, bounds), rtol=1e-5)
    # One row without further dimensions, no rows, lists, and no row that counts.
    row = x[0, 0]
    np.testing.assert_allclose(call(row, 3, bounds)[0], pyce.cross_entropy(row, 3), rtol=1e-6)
    assert call(x[:0], y[:0], bounds, reduction="sum")[0] == 0.0
    assert np.isnan(call(x[:0], y[:0], bounds)[0])
    assert pyce.mpi.cross_entropy(shard(x[0], bounds).tolist(), y[0].tolist()).dtype == np.float64
    loss, grad = call(x, np.full((2, 3), -100), bounds, normalizer=2.0)
    assert loss == 0.0
    assert not grad.any()


def errors_are_raised_on_all_ranks():
    """Outputs are as they were."""
    bounds = SMALL[RANKS]
    x = np.random.default_rng(3).standard_normal((4, 10)).astype(np.float32)
    x, t = shard(x, bounds).copy(), shard(np.full((4, 10), 0.1), bounds)
    y = np.array([0, 9, -100, 3])
    s = np.ones(4)
    fine = (x, y, {})
    between_ranks = {"dtype", "rows", "targets", "soft", "weights", "normalizer", "option"}
    # On the last rank, on all others, and what all get.
    calls = {
        "label": ((x, y + 1, {}), (x, y + 1, {}), "IndexError", "row 1 is 10, outside the valid"),
        "wrap": ((x, y - 99, {}), (x, y - 99, {}), "IndexError", "row 0 is -99, outside"),
        "dtype": ((x.astype(float), y, {}), fine, "ValueError", "dtype of the logits is float64"),
        "integers": ((x.astype(int), y, {}), fine, "TypeError", "local_logits must be float16"),
        "rows": ((x[:3], y[:3], {}), fine, "ValueError", "shape of the logits"),
        "targets": ((x, y.clip(0), {}), fine, "ValueError", "the ranks differ: target"),
        "soft": ((x, t, {}), fine, "ValueError", "the ranks differ: target"),
        "shape": ((x, y[:3], {}), fine, "ValueError", "index target of shape (3,)"),
        "soft shape": ((x, t[:3], {}), (x, t, {}), "ValueError", "probability target of shape (3"),
        "none": ((x, None, {}), fine, "TypeError", "target must be class indices"),
        "dimensions": ((1.0, y, {}), fine, "ValueError", "at least one dimension"),
        "ragged": (
            ([[1.0], [2.0, 3.0]], y, {}),
            fine,
            "ValueError",
            "local_logits is not an array",
        ),
        "weights": ((x, y, {"sample_weight": 2 * s}), fine, "ValueError", "differ: sample_weight"),
        "weight shape": ((x, y, {"sample_weight": s[:2]}), fine, "ValueError", "shape (4,)"),
        "normalizer": ((x, y, {"normalizer": 2.0}), fine, "ValueError", "differ: normalizer"),
        "option": ((x, y, {"label_smoothing": 0.5}), fine, "ValueError", "label_smoothing is 0.5"),
        "smoothing": ((x, y, {"label_smoothing": 2.0}), fine, "ValueError", "[0, 1], got 2.0"),
        "reduction": ((x, y, {"reduction": "max"}), fine, "ValueError", "got 'max'"),
        "size": ((x, y, {"vocab_size": 11}),) * 2 + ("ValueError", "vocab_size is 11"),
        "classes": ((x[:, :0], y, {}),) * 2 + ("ValueError", "at least one class"),
    }
    for name, (last, others, kind, message) in calls.items():
        logits, target, options = last if RANK == RANKS - 1 else others
        if RANKS == 1 and name in between_ranks:
            continue
        out = np.full_like(logits if isinstance(logits, np.ndarray) else x, 7)
        found = raised(pyce.mpi.cross_entropy_with_grad, logits, target, out=out, **options)
        assert found[0] == kind, (name, found)
        assert message in found[1], (name, found)
        assert (out == 7).all(), name
        assert len(set(WORLD.allgather(found[0]))) == 1
    # The result of one rank alone.
    for out, kind, message in (
        (np.empty((4, 11), np.float32), "ValueError", "out must have the shape"),
        (np.empty(x.shape, np.float64), "TypeError", "out must have the dtype"),
        ([[1.0]], "TypeError", "out must be a numpy.ndarray"),
    ):
        given = out if RANK == 0 else np.full(x.shape, 7, np.float32)
        found = raised(pyce.mpi.cross_entropy_with_grad, x, y, out=given)
        assert found[0] == kind, found
        assert message in found[1], found
        assert ("rank 0: " in found[1]) == (RANK != 0)
        assert RANK == 0 or (given == 7).all()
    # Nor may it be memory of a target or of weights.
    probs, weights = np.full(x.shape, 0.1, np.float32), np.ones(max(4, x.size), np.float32)
    for target, options, out in (
        (probs, {}, probs),
        (Wrapped(probs), {}, probs),
        (y, {"sample_weight": weights[:4]}, weights[: x.size].reshape(x.shape)),
    ):
        given = out if RANK == 0 else np.full(x.shape, 7, np.float32)
        found = raised(pyce.mpi.cross_entropy_with_grad, x, target, out=given, **options)
        assert found[0] == "ValueError", found
        assert "memory" in found[1], found
        assert (probs == np.float32(0.1)).all()
        assert (weights == 1).all()
    # All ranks are still together.
    loss_of_all(pyce.mpi.cross_entropy(x, y))


def a_rank_without_memory():
    """MemoryError on all ranks, wherever one of them lacks memory."""
    from pyce._backends import current

    bounds = SMALL[RANKS]
    x = shard(np.zeros((4, 10), np.float32), bounds)
    y = np.array([0, 9, -100, 3])
    backend = current()
    computed = backend.partial

    def fail(*_):
        raise MemoryError("no memory for the states")

    if RANKS == 1:
        return
    out = np.full(x.shape, 7, np.float32)
    backend.partial = fail if RANK == RANKS - 1 else computed
    try:
        found = raised(pyce.mpi.cross_entropy_with_grad, x, y, out=out)
    finally:
        backend.partial = computed
    assert found[0] == "MemoryError", found
    assert (out == 7).all()
    loss_of_all(pyce.mpi.cross_entropy(x, y))


def other_communicators():
    x = np.zeros((1, 2), np.float32)
    # The ranks in the reverse order; the label is the first class of the last process.
    reverse = WORLD.Split(0, RANKS - RANK)
    x[0, 0] = RANK == RANKS - 1
    loss, grad = pyce.mpi.cross_entropy_with_grad(x, [0], comm=reverse)
    expected = np.log(np.e + 2 * RANKS - 1) - 1
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert (grad[0, 0] < 0) == (RANK == RANKS - 1)
    counted = Counted(WORLD)
    assert pyce.mpi.cross_entropy(x, [2 * RANKS - 2], comm=counted) == loss
    assert counted.calls == min(RANKS, 2)
    tracemalloc.start()
    pyce.mpi.cross_entropy(np.zeros((1, 10**6), np.float32), [0])
    # No gradient is computed for the loss alone.
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()
    alone = pyce.mpi.cross_entropy(x, [0], comm=MPI.COMM_SELF)
    assert alone == pyce.cross_entropy(x, [0])
    for comm, kind, message in (
        (MPI.COMM_NULL, "ValueError", "not one of its ranks"),
        (WORLD.Split(MPI.UNDEFINED), "ValueError", "not one of its ranks"),
        ("world", "TypeError", "got str"),
    ):
        found = raised(pyce.mpi.cross_entropy, x, [0], comm=comm)
        assert found[0] == kind, found
        assert message in found[1], found
    if RANKS > 1:
        half = WORLD.Split(RANK % 2)
        between = half.Create_intercomm(0, WORLD, 1 - RANK % 2)
        assert raised(pyce.mpi.cross_entropy, x, [0], comm=between)[0] == "TypeError"
        between.Free()
        half.Free()
    reverse.Free()


def threads_with_a_communicator_each():
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return
    x, y = np.random.default_rng(5).standard_normal((64, 3000)), np.arange(64)
    cut = tuple(i * 3000 // RANKS for i in range(RANKS + 1))
    expected = pyce.mpi.cross_entropy_with_grad(shard(x, cut), y)
    comms = [WORLD.Dup() for _ in range(3)]
    same = []

    def run(comm):
        for _ in range(5):
            loss, grad = pyce.mpi.cross_entropy_with_grad(shard(x, cut), y, comm=comm)
            same.append(loss == expected[0] and grad.tobytes() == expected[1].tobytes())

    threads = [threading.Thread(target=run, args=(comm,)) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 15
    for comm in comms:
        comm.Free()


CHECKS = (
    aligned_shards_have_the_bytes_of_one_process,
    any_shards_keep_the_accuracy,
    shapes_and_layouts,
    errors_are_raised_on_all_ranks,
    a_rank_without_memory,
    other_communicators,
    threads_with_a_communicator_each,
)


def loss_of_the_living():
    """The last rank is killed; the others wait in the exchange until mpiexec ends them."""
    pids = WORLD.allgather(os.getpid())
    if RANK == 0:
        print(*pids, flush=True)
    WORLD.Barrier()
    if RANK == RANKS - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pyce.mpi.cross_entropy(np.zeros((4, 5)), [0, 9, -100, 3])
    print("has a loss", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["killed"]:
        loss_of_the_living()
        sys.exit()
    for check in CHECKS:
        check()
        WORLD.Barrier()
        if RANK == 0:
            print(check.__name__, flush=True)
