"""Rows whose classes are cut into shards: states, and loss and gradient from them."""

import functools
import itertools
import threading

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss
from conftest import join, one_isa

import pyce
from pyce import _shards
from pyce._backends import load
from pyce._problem import ShardedProblem
from pyce._selection import Selection

CLASSES = 5000
ALIGNED = ((0, 5000), (0, 2048, 5000), (0, 2048, 4096, 4096, 5000), (0, 0, 4096, 5000, 5000))
CUTS = ((0, 1, 700, 700, 5000), (0, 4999, 5000))
KINDS = ("plain", "smoothing", "probabilities", "smoothed probabilities", "ignored")


def make(kind, regime, classes, dtype, rows=6):
    """Logits, a target and options."""
    x, y, _ = cases.Case(regime, classes, rows).make(dtype)
    if "probabilities" in kind:
        y = np.random.default_rng(classes).random(x.shape).astype(dtype)
    if kind == "ignored":
        return x, np.where(np.arange(rows) % 3 == 1, -1, y), {"ignore_index": -1}
    return x, y, {"label_smoothing": 0.1} if "smooth" in kind else {}


def problem(x, target, bounds, own, *, ignore_index=-100, label_smoothing=0.0, **options):
    """The problem of one shard, its outputs filled with a number."""
    p = ShardedProblem()
    here = slice(bounds[own], bounds[own + 1])
    p.logits = x[..., here]
    p.dtype_name = x.dtype.name
    p.outer = p.rows = x.size // x.shape[-1] if x.size else 0
    p.axis, p.inner = x.ndim - 1, 1
    p.classes = x.shape[-1]
    p.contiguous = False
    labels = target.ndim == 1
    p.labels, p.probs = (target, None) if labels else (None, target[..., here])
    p.weight = p.lse = p.losses = p.grad = None
    p.sample_weight, p.normalizer = options.get("sample_weight"), options.get("normalizer")
    p.ignore_index, p.smoothing = ignore_index, label_smoothing
    p.lse_square_scale = options.get("lse_square_scale", 0.0)
    p.reduction = options.get("reduction", "mean")
    p.grad_loss = 1.0
    if p.logits.size:
        p.grad = np.full(p.logits.shape, 7, x.dtype)
    if p.reduction == "none":
        # The last number is not part of the losses.
        room = np.full(p.rows + 1, 7, np.float64 if x.dtype == np.float64 else np.float32)
        p.losses = room[:-1]
    p.bounds, p.own = bounds, own
    return p


def state_of(module, p):
    """The states of the rows of a shard, between numbers that must not be written."""
    size = p.rows * module.state_size(p, p.bounds[p.own + 1] - p.bounds[p.own])
    room = np.full(size + 2, 7.0)
    module.partial(p, room[1:-1])
    assert room[0] == room[-1] == 7.0
    return room[1:-1]


def sharded(backend, x, target, bounds, **options):
    """Loss and gradient, after a check that all shards have the same loss."""
    module = load(backend.name)
    shards = [problem(x, target, bounds, own, **options) for own in range(len(bounds) - 1)]
    states = [state_of(module, p) for p in shards]
    losses = [module.complete(p, states) for p in shards]
    assert all(p.losses is None or p.losses.base[-1] == 7 for p in shards)
    losses = [p.losses if loss is None else loss for loss, p in zip(losses, shards, strict=True)]
    assert len({np.asarray(loss).tobytes() for loss in losses}) == 1
    return losses[0], np.concatenate([p.grad for p in shards if p.grad is not None], axis=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_any_cuts_keep_the_accuracy(backend, dtype, kind):
    for regime, scale in (("spread25", 0.0), ("confident30", 1.0), ("offset-1e4", 0.0)):
        for bounds in ((0, 1, 700, 700, 2100), (0, 2099, 2100)):
            x, target, options = make(kind, regime, 2100, dtype)
            options = {**options, "lse_square_scale": scale, "reduction": "none"}
            exact = oracle.reference(x, target, **options)
            loss, grad = sharded(backend, x, target, bounds, **options)
            check_loss(loss, exact.loss)
            check_array(grad, exact.grad, exact.terms)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_shards_at_multiples_of_2048_have_the_bytes_of_whole_rows(c_backend, dtype):
    rng = np.random.default_rng(1)
    for spread, order in ((1, "C"), (30, "F"), (400, "C")):
        x = (rng.standard_normal((7, CLASSES)) * spread).astype(ml_dtypes.finfo(dtype).dtype, order)
        labels = rng.integers(0, CLASSES, 7)
        labels[2] = -100
        probs = rng.random(x.shape).astype(np.float32)
        for target in (labels, labels.astype(np.int32), probs):
            for reduction, smoothing, scale in (
                ("mean", 0.0, 0.0),
                ("sum", 0.1, 1e-3),
                ("none", 0.0, 1.0),
            ):
                options = {
                    "reduction": reduction,
                    "label_smoothing": smoothing,
                    "lse_square_scale": scale,
                }
                expected = pyce.cross_entropy_with_grad(x, target, **options)
                for bounds in ALIGNED:
                    loss, grad = sharded(c_backend, x, target, bounds, **options)
                    assert np.asarray(loss).tobytes() == np.asarray(expected[0]).tobytes()
                    assert grad.tobytes() == expected[1].tobytes()


def test_rows_that_are_not_finite(backend):
    x = np.random.default_rng(2).standard_normal((8, CLASSES)).astype(np.float32)
    y = np.full(8, 3)
    x[0, 4500] = np.nan
    x[1, 20] = np.inf
    x[2] = -np.inf
    x[3, 700:] = -np.inf  # the last shards have nothing else
    x[4, 3] = -np.inf
    x[5, 4999] = np.nan
    y[5] = -100
    x[6, :700] = -1e30
    for target, smoothing in ((y, 0.0), (y, 0.1), (np.eye(CLASSES, dtype=np.float32)[y], 0.0)):
        options = {"reduction": "none", "label_smoothing": smoothing}
        whole = pyce.cross_entropy_with_grad(x, target, **options)
        for bounds in (*ALIGNED, *CUTS):
            parts = sharded(backend, x, target, bounds, **options)
            np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
            # With smoothing, p − ε/C may cancel: 4 ULP of ε/C.
            atol = 8e-12 if smoothing else 1e-37
            np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6, atol=atol)


def test_a_row_of_minus_infinity_whose_only_term_is_the_z_loss(backend):
    x, target = np.full((1, 3), -np.inf, np.float32), np.zeros((1, 3), np.float32)
    for bounds in ((0, 1, 3), (0, 0, 3)):
        options = {"reduction": "none", "lse_square_scale": 0.1}
        for result in sharded(backend, x, target, bounds, **options):
            assert np.isnan(result).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights_and_a_normalizer(backend, kind):
    x, target, options = make(kind, "spread25", 2100, "float64", rows=5)
    weights = (np.arange(5) / 3, np.array([np.inf, 1.0, 0.0, -np.inf, 2.0]))
    x[2] = np.nan  # of the weight 0 in the second case
    for sample_weight, normalizer in ((weights[0], None), (weights[0], 3.7), (weights[1], 3.7)):
        for reduction, scale in (("none", 0.0), ("mean", 0.0), ("sum", 0.5)):
            options.update(sample_weight=sample_weight, normalizer=normalizer)
            options.update(reduction=reduction, lse_square_scale=scale)
            whole = pyce.cross_entropy_with_grad(x, target, **options)
            parts = sharded(backend, x, target, (0, 1, 700, 700, 2100), **options)
            np.testing.assert_allclose(parts[0], whole[0], rtol=1e-14)
            atol = 1e-14 if "probabilities" in kind else 1e-300  # their terms cancel
            np.testing.assert_allclose(parts[1], whole[1], rtol=1e-13, atol=atol)
    options.update(ignore_index=0, sample_weight=None, lse_square_scale=0.0)
    if "probabilities" not in kind:
        none = np.zeros_like(target)
        loss, grad = sharded(backend, x, none, (0, 700, 2100), **{**options, "reduction": "mean"})
        assert loss == 0.0
        assert not grad.any()


def test_a_label_out_of_range_leaves_the_outputs_as_they_were(backend):
    x = np.zeros((3, CLASSES), np.float32)
    module = load(backend.name)
    good = [problem(x, np.array([1, 2, 3]), CUTS[1], own) for own in range(2)]
    states = [state_of(module, p) for p in good]
    p = problem(x, np.array([1, 5000, -1]), CUTS[1], 0, reduction="none")
    room = np.full(states[0].shape, 7.0)
    for call in (lambda: module.partial(p, room), lambda: module.complete(p, states)):
        with pytest.raises(IndexError, match=r"row 1 is 5000, outside the valid range 0\.\.4999"):
            call()
    assert (room == 7).all()
    assert (p.losses == 7).all()
    assert (p.grad == 7).all()


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 0.0), ("mean", np.nan)])
def test_no_rows(backend, reduction, expected):
    x, y = np.zeros((0, CLASSES), np.float32), np.zeros(0, np.int64)
    module = load(backend.name)
    shards = [problem(x, y, CUTS[1], own, reduction=reduction) for own in range(2)]
    states = [state_of(module, p) for p in shards]
    for p in shards:
        np.testing.assert_equal(float(module.complete(p, states)), expected)


def test_c_refuses_shards_that_do_not_fit(c_backend):
    from pyce._pyce import ffi, lib

    from pyce._backends import c

    x = np.zeros((2, 10), np.float32)
    y = np.array([1, 2])
    state = np.full((2, 3), 7.0)
    pointer = ffi.from_buffer("double[]", state)
    assert lib.pyce_state_size(ffi.NULL, 10) == 0
    assert lib.pyce_state_size(ffi.new("pyce_problem *"), -1) == 0
    for bounds, own, change in (
        ((0, 4, 10), 0, {"inner": 2}),
        ((0, 4, 10), 0, {"classes": 11}),
        ((0, 4, 10), 0, {"operation": lib.PYCE_BACKWARD}),
        ((0, 4, 10), 0, {"outer": 2**61}),
        ((0, 4, 10), 0, {"weight": ffi.from_buffer("double[]", np.ones(10))}),
        ((0, 4, 10), 0, {"lse": ffi.from_buffer("double[]", np.ones(2))}),
        ((0, 4, 10), 2, {}),
        ((0, 4, 10), -1, {}),
        ((1, 4, 10), 0, {}),
        ((0, 11, 10), 0, {}),
    ):
        p = problem(x, y, (0, 4, 10), 0)
        p.bounds, p.own = bounds, own
        filled, keep_alive = c._sharded(p)
        filled.result.data = ffi.NULL
        filled.reduction = lib.PYCE_SUM
        for name, value in change.items():
            setattr(filled, name, value)
        assert lib.pyce_partial(filled, keep_alive[0], pointer) == lib.PYCE_BAD_ARGUMENT
        states = ffi.new("double *[]", [pointer, pointer])
        assert lib.pyce_complete(filled, keep_alive[0], states) == lib.PYCE_BAD_ARGUMENT
    p = problem(x, y, (0, 10), 0)
    filled, keep_alive = c._sharded(p)
    filled.result.data, filled.reduction = ffi.NULL, lib.PYCE_SUM
    shards = keep_alive[0]
    none = ffi.NULL
    logits = ffi.cast("double *", filled.logits.data)
    # An odd address, and bounds and states that the call would overwrite.
    room = np.array([0, 10, 7, 7], np.int64)
    in_room = ffi.cast("int64_t *", room.ctypes.data)
    odd = ffi.cast("int64_t *", room.ctypes.data + 1)
    bad = [
        ffi.new("pyce_shards *", {"count": 1, "own": 0, "bounds": at})
        for at in (none, odd, in_room)
    ]
    filled.reduced = none
    overwritten = ffi.cast("double *", in_room)
    addresses = ffi.new("double *[]", [pointer])
    for call in (
        lambda: lib.pyce_partial(filled, bad[0], pointer),
        lambda: lib.pyce_partial(filled, bad[1], pointer),
        lambda: lib.pyce_partial(filled, bad[2], overwritten),
        lambda: lib.pyce_partial(filled, ffi.cast("pyce_shards *", odd), pointer),
        lambda: lib.pyce_partial(filled, shards, ffi.cast("double *", shards)),
        lambda: lib.pyce_complete(filled, shards, ffi.cast("double **", odd)),
        lambda: lib.pyce_complete(losses_at(filled, in_room), bad[2], addresses),
        lambda: lib.pyce_complete(losses_at(filled, addresses), shards, addresses),
        lambda: lib.pyce_partial(filled, shards, none),
        lambda: lib.pyce_partial(filled, shards, logits),
        lambda: lib.pyce_partial(filled, none, pointer),
        lambda: lib.pyce_partial(none, shards, pointer),
        lambda: lib.pyce_complete(filled, shards, none),
        lambda: lib.pyce_complete(filled, shards, ffi.new("double *[]", [none])),
    ):
        assert call() == lib.PYCE_BAD_ARGUMENT
    assert (state == 7.0).all()
    assert room.tolist() == [0, 10, 7, 7]


def losses_at(filled, address):
    """A copy of a problem that writes the losses of its rows to an address."""
    from pyce._pyce import ffi, lib

    copy = ffi.new("pyce_problem *", filled[0])
    copy.reduction, copy.losses = lib.PYCE_NONE, ffi.cast("void *", address)
    return copy


def test_c_does_not_access_the_logits_of_a_shard_without_classes(c_backend):
    from pyce._pyce import ffi, lib

    from pyce._backends import c

    x, y = np.zeros((2, 10), np.float32), np.array([1, 2])
    good, empty = (problem(x, y, (0, 10, 10), own) for own in range(2))
    states = [state_of(c, p) for p in (good, empty)]
    filled, keep_alive = c._sharded(empty)
    # No memory is at these addresses.
    filled.logits.data = ffi.cast("void *", 4096)
    filled.logits.offsets = ffi.cast("int64_t *", 4096)
    filled.reduction = lib.PYCE_SUM
    room = np.full(2, 7.0)
    pointer = ffi.from_buffer("double[]", room)
    assert lib.pyce_partial(filled, keep_alive[0], pointer) == lib.PYCE_OK
    assert room.tolist() == states[1].tolist() == [0.0, 0.0]
    pointers = ffi.new("double *[]", [ffi.from_buffer("double[]", state) for state in states])
    assert lib.pyce_complete(filled, keep_alive[0], pointers) == lib.PYCE_OK
    assert filled.loss == pytest.approx(2 * np.log(10))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_shards_of_any_layout(backend, with_gradient, monkeypatch):
    """On the Numba backend, which copies blocks of rows, in several blocks."""
    module = load(backend.name)
    if backend.name == "numba":
        from pyce._backends.numba import _layout

        monkeypatch.setattr(_layout, "_COPIED", 100)
    rng = np.random.default_rng(3)
    whole = rng.standard_normal((2, 3, 40)).astype(np.float32)
    y = rng.integers(0, 40, 6)
    options = {"reduction": "none"}
    exact = oracle.reference(whole.reshape(6, 40), y, **options)
    bounds = (0, 1, 40)
    layouts = (
        np.ascontiguousarray,
        np.asfortranarray,
        lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
        lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: np.ascontiguousarray(a.reshape(6, -1)),
        lambda a: np.asfortranarray(a.reshape(6, -1)),
    )
    for layout in layouts:
        shards = [problem(whole, y, bounds, own, **options) for own in range(2)]
        for p in shards:
            p.logits = layout(p.logits)
            p.axis = p.logits.ndim - 1
            p.grad = p.grad.reshape(p.logits.shape) if with_gradient else None
        states = [state_of(module, p) for p in shards]
        for p in shards:
            module.complete(p, states)
            check_loss(p.losses, exact.loss)
        if with_gradient:
            grad = np.concatenate([p.grad for p in shards], axis=-1).reshape(6, 40)
            check_array(grad, exact.grad, exact.terms)


def test_threads_share_a_row_of_a_shard(c_backend, many_processors):
    x = np.random.default_rng(4).standard_normal((2, 60000)).astype(np.float32)
    targets = (np.array([5, 59999]), np.abs(x))
    for target in targets:
        options = {"reduction": "none", "label_smoothing": 0.1}
        whole = pyce.cross_entropy_with_grad(x, target, **options)
        for threads, bounds in ((2, (0, 20480, 60000)), (3, (0, 0, 60000)), (1, (0, 8192, 60000))):
            pyce.set_num_threads(threads)
            loss, grad = sharded(c_backend, x, target, bounds, **options)
            assert loss.tobytes() == whole[0].tobytes()
            assert grad.tobytes() == whole[1].tobytes()


# -- the exchange -----------------------------------------------------------------------------


class Members:
    """The ranks of a group, each in a thread of this process."""

    def __init__(self, size):
        self.size = size
        self.messages = [None] * size
        self.barrier = threading.Barrier(size, timeout=200)
        self.gathered = 0

    def gather(self, rank, sent, received):
        self.messages[rank] = sent.copy()
        self.barrier.wait()
        assert {one.shape for one in self.messages} == {sent.shape}
        assert not np.shares_memory(sent, received)
        received[...] = self.messages
        self.gathered += rank == 0
        self.barrier.wait()


class Member:
    def __init__(self, members, rank):
        self.members, self.rank, self.size = members, rank, members.size

    def gather(self, sent, received):
        self.members.gather(self.rank, sent, received)


def exchanged(backend, calls, *, with_gradient=True, fails=None):
    """What `_shards.cross_entropy` gives each rank, a loss or an error; and the exchanges.

    `calls` has the logits, target and options of each rank. `fails` is a function of the rank and
    the memory of its messages that may raise an error.
    """
    grads = [None] * len(calls)

    def call(member):
        x, target, options = calls[member.rank]

        def make():
            p = local(x, target, **options)
            grad = np.full(p.logits.shape, 7, p.logits.dtype) if with_gradient else None
            grads[member.rank] = grad
            return p, x.shape, grad

        return _shards.cross_entropy(member, make)

    found, gathered = on_ranks(backend, len(calls), call, fails)
    return found, grads, gathered


def local(x, target, **options):
    """The result of `local_problem` with the usual options but for those given."""
    given = {"vocab_size": None, "ignore_index": -100, "label_smoothing": 0.0}
    given |= {"reduction": "mean", "lse_square_scale": 0.0, **options}
    return _shards.local_problem(x, target, **given, what="local_logits")


def on_ranks(backend, size, call, fails=None):
    """What `call` gives for each of some ranks, a result or an error; and their exchanges."""
    members = Members(size)
    found = [None] * size
    room = _shards._room

    def room_of(group, size):
        if fails is not None:
            fails(group.rank, size)
        return room(group, size)

    def run(rank):
        try:
            with pyce.use_backend(backend.name):
                found[rank] = call(Member(members, rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shards, "_room", room_of)
        for thread in threads:
            thread.start()
        join(threads)
    return found, members.gathered


def cut(x, bounds):
    return [x[..., begin:end] for begin, end in itertools.pairwise(bounds)]


@one_isa
def test_exchanges_of_several_ranks(backend):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, 12)).astype(np.float32)
    y = rng.integers(0, 10, (2, 3))
    options = {"vocab_size": 10, "reduction": "none"}
    expected = pyce.cross_entropy_with_grad(x[..., :10], y, reduction="none")
    # Equal shards have memory for their messages. C's states of 1 and of 11 classes have one size.
    few = 2
    for bounds, exchanges in (((0, 12), 1), ((0, 6, 12), few), ((0, 1, 12), few), ((0, 0, 12), 3)):
        if backend.name != "c" and exchanges == 3:
            exchanges = few  # states have one size
        calls = [(part, y, options) for part in cut(x, bounds)]
        losses, grads, gathered = exchanged(backend, calls)
        assert gathered == exchanges
        for loss in losses:
            np.testing.assert_allclose(loss, expected[0].ravel(), rtol=1e-6)
        grad = np.concatenate(grads, axis=-1)
        np.testing.assert_allclose(grad[..., :10], expected[1], rtol=1e-6, atol=1e-9)
        assert not grad[..., 10:].any()
        losses, _, _ = exchanged(backend, calls, with_gradient=False)
        np.testing.assert_allclose(losses[-1], expected[0].ravel(), rtol=1e-6)


def texts(found):
    assert all(isinstance(one, Exception) for one in found), found
    return {type(one) for one in found}, [str(one) for one in found]


class Overflowing:
    """A target whose error is of a type that other ranks do not raise."""

    def __array__(self, *_, **__):
        raise OverflowError("no array")


@one_isa
def test_errors_of_one_rank_are_those_of_all(backend):
    x = np.zeros((3, 5), np.float32)
    y = np.array([0, 9, -100])
    large = np.array([0, 2**63, 3], np.uint64)
    fine = (x, y, {})
    for first, last, kind, message in (
        ((x, large, {}),) * 2
        + (IndexError, f"target of row 1 is {2**63}, outside the valid range 0..9 for 10 classes"),
        (fine, (x, y.astype(np.float32), {}), TypeError, "shaped like class indices"),
        (fine, (x, y > 0, {}), TypeError, "target must be class indices of an integer dtype"),
        (fine, (x, y.astype(np.int32), {}), ValueError, "target is int32 indices"),
        (fine, (x, y, {"given_dtype": "float16"}), ValueError, "the logits is float16 on rank 1"),
        (fine, (x[0, 0], y, {}), ValueError, "at least one dimension"),
        (fine, (x[:2], y[:2], {}), ValueError, "classes is (2,) on rank 1 and (3,) on rank 0"),
        (fine, (x.astype(np.float64), y, {}), ValueError, "the logits is float64 on rank 1 and"),
        (fine, (x, Overflowing(), {}), (RuntimeError, OverflowError), "no array"),
        ((x, y, {"vocab_size": 10}), fine, ValueError, "vocab_size is None on rank 1 and 10 on"),
        (fine, (x, y, {"sample_weight": np.ones(3)}), ValueError, "sample_weight is of checksum"),
        (fine, (x, y, {"ignore_index": 0}), ValueError, "ignore_index is 0 on rank 1 and -100 on"),
    ):
        found, _, exchanges = exchanged(backend, [first, last])
        kinds, messages = texts(found)
        assert kinds == set(kind if isinstance(kind, tuple) else [kind])
        assert all(message in text for text in messages), messages
        # The rank itself raises its own error.
        assert messages[1] == messages[0].removeprefix("rank 1: ")
        assert exchanges == 1


@one_isa
def test_memory_that_one_rank_lacks(backend):
    x = np.zeros((3, 5000), np.float32)
    y = np.array([0, 9, -100])

    def lacks(least, rank, size):
        if rank == 1 and size >= least:
            raise MemoryError("no memory")

    calls = [(part, y, {}) for part in cut(x, (0, 4999, 5000))]
    # With C, the states of rank 1 are 10 numbers, and those of rank 0, which it must receive, 22.
    for least, expected in ((1, 1), (11, 2)) if backend.name == "c" else ((1, 1),):
        found, _, exchanges = exchanged(backend, calls, fails=functools.partial(lacks, least))
        kinds, messages = texts(found)
        assert kinds == {MemoryError}
        assert all("no memory" in text for text in messages)
        assert exchanges == expected


@one_isa
def test_states_that_one_rank_cannot_compute(backend, monkeypatch):
    module = load(backend.name)
    partial = module.partial

    def fails(p, state):
        if p.own == 1:
            raise MemoryError("no memory")
        partial(p, state)

    monkeypatch.setattr(module, "partial", fails)
    x, y = np.zeros((3, 5), np.float32), np.array([0, 9, -100])
    found, _, exchanges = exchanged(backend, [(x, y, {})] * 2)
    assert exchanges == 2
    assert isinstance(found[0], MemoryError)
    assert str(found[0]) == "rank 1 could not compute its part of the loss"
    assert isinstance(found[1], MemoryError)


def test_a_backend_that_leaves_shards_to_numpy(monkeypatch):
    first = pyce.backends()[0]
    monkeypatch.setattr(load(first), "partial", None)
    monkeypatch.setattr(load(first), "complete", None)
    x, y = np.zeros((3, 5), np.float32), np.array([0, 9, -100])
    losses, _, _ = exchanged(Selection(first), [(x, y, {})] * 2)
    assert losses == [np.float32(np.log(10))] * 2


def test_one_rank_checks_labels_and_layouts(backend):
    """One rank exchanges one message, and computes as one process does."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((7, 9)).astype(np.float32)
    t = rng.random((7, 9)).astype(np.float32)
    for logits, target in ((x, t), (np.asfortranarray(x), t), (x, np.asfortranarray(t)), (x, t[0])):
        logits = logits[0] if target.ndim == 1 else logits
        for size in (9, 7):
            used = logits[..., :size], target[..., :size]
            expected = pyce.cross_entropy_with_grad(*map(np.ascontiguousarray, used))
            calls = [(logits, target, {"vocab_size": size})]
            (loss,), (grad,), exchanges = exchanged(backend, calls)
            assert exchanges == 1
            np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
            np.testing.assert_allclose(grad[..., :size], expected[1], rtol=1e-5, atol=1e-8)
            assert not grad[..., size:].any()
            (loss,), _, _ = exchanged(backend, calls, with_gradient=False)
            np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    (error,), (grad,), _ = exchanged(backend, [(x, np.array([0, 9, 1, 2, 3, 4, 5]), {})])
    assert isinstance(error, IndexError)
    assert "row 1 is 9, outside the valid range 0..8" in str(error)
    assert (grad == 7).all()
    # One class in all, which has the probability 1.
    (loss,), _, _ = exchanged(backend, [(x[:, :1], np.zeros(7, np.int64), {})])
    assert loss == 0.0
