"""The loss of a linear layer whose classes several ranks have: `_shards.linear_cross_entropy`."""

import numpy as np
from conftest import one_isa
from test_shards import local, on_ranks, texts

import pyce
from pyce import _shards


class Layer:
    """`_shards.Head` of input x (rows, features) and the weight w (classes of this rank, features).

    `valid` are the rows that count, in order: a slice or their numbers.
    """

    def __init__(self, x, w, valid, scale, fails):
        self.x, self.w, self.valid, self.scale, self.fails = x, w, valid, scale, fails
        self.sizes = []
        self.of_x, self.of_w = np.zeros_like(x), np.zeros_like(w)

    def allocate(self, classes, rows):
        self.fails("allocate")
        self.classes, self.rows = classes, rows
        self.room = np.empty((rows, classes))

    def chunks(self):
        numbers = np.arange(len(self.x))[self.valid]
        for start in range(0, len(numbers), self.rows):
            self.part = numbers[start : start + self.rows]
            if isinstance(self.valid, slice):
                self.part = slice(start, start + len(self.part))
            rows = self.x[self.part]
            self.sizes.append(len(rows))
            self.logits = np.matmul(rows, self.w[: self.classes].T, out=self.room[: len(rows)])
            self.fails("chunk")
            before = self.logits.copy()
            yield self.part, self.logits
            # Without gradients, nothing is written.
            assert self.scale is not None or np.array_equal(self.logits, before)

    def add(self):
        self.fails("add")
        self.of_x[self.part] += self.logits @ self.w[: self.classes]
        self.of_w[: self.classes] += self.logits.T @ self.x[self.part]


def linear(backend, x, w, target, bounds, *, most=3, scale=1.0, fails=None, **options):
    """Loss or error and layer of each rank, and the exchanges; see `_shards.linear_cross_entropy`.

    `fails` is a function of a step of a rank's layer, and of the rank, that may raise an error.
    """
    layers = [None] * (len(bounds) - 1)

    def call(member):
        here = slice(bounds[member.rank], bounds[member.rank + 1])
        soft = target.dtype.kind == "f"
        shape = (*target.shape[:-1],) if soft else target.shape
        like = np.broadcast_to(np.float64(0), (*shape, here.stop - here.start))
        t = np.ascontiguousarray(target[..., here]) if soft else target
        flat = (
            np.ones(len(x), bool) if soft else target.ravel() != options.get("ignore_index", -100)
        )
        valid = slice(0, len(x)) if flat.all() else np.flatnonzero(flat)
        layer = Layer(x, w[here], valid, scale, lambda step: fails and fails(step, member.rank))
        layers[member.rank] = layer
        rows = most[member.rank] if isinstance(most, tuple) else most

        def make():
            others = {"features": x.shape[1] + (0 if fails is None else fails("make", member.rank))}
            return local(like, t, **options), like.shape, others, rows, layer

        return _shards.linear_cross_entropy(member, make)

    found, gathered = on_ranks(backend, len(bounds) - 1, call)
    return found, layers, gathered


@one_isa
def test_a_linear_layer_over_ranks(backend):
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((8, 4)), rng.standard_normal((11, 4))
    y = rng.integers(0, 9, (2, 4))
    ignored = np.where(y == y[0, 1], -100, y)
    t = rng.random((8, 11))
    for target, bounds, options in (
        (y, (0, 5, 11), {"reduction": "sum"}),
        (ignored, (0, 0, 2, 11), {"label_smoothing": 0.1, "lse_square_scale": 0.3}),
        (y, (0, 3, 11), {"vocab_size": 9, "reduction": "none"}),
        (np.full((2, 4), 2), (0, 3, 11), {"ignore_index": 2, "reduction": "sum"}),
        (t, (0, 3, 11), {"label_smoothing": 0.1}),
        (t.reshape(2, 4, 11), (0, 3, 9, 11), {"vocab_size": 9}),
        (y, (0, 11), {"normalizer": 3.0}),
    ):
        size = options.get("vocab_size", 11)
        soft = target.dtype.kind == "f"
        given = {k: v for k, v in options.items() if k != "vocab_size"}
        flat = target.reshape(8, 11)[:, :size] if soft else target.ravel()
        loss, grad = pyce.cross_entropy_with_grad(x @ w[:size].T, flat, **given)
        count = 8 if soft else int(np.count_nonzero(flat != options.get("ignore_index", -100)))
        chunks = -(-count // 3)
        for scale in (2.0, None):
            # The least of the ranks' most rows, which are evened out.
            most = (3,) + (5,) * (len(bounds) - 2)
            found, layers, exchanges = linear(
                backend, x, w, target, bounds, most=most, scale=scale, **options
            )
            assert exchanges == 3 + chunks
            assert {tuple(layer.sizes) for layer in layers} == {
                {8: (3, 3, 2), 0: ()}.get(count, tuple(layers[0].sizes))
            }
            assert sum(layers[0].sizes) == count
            for of_rank in found:
                assert type(of_rank) is type(loss)
                np.testing.assert_allclose(of_rank, loss, rtol=1e-13)
            of_x = sum(layer.of_x for layer in layers)
            of_w = np.concatenate([layer.of_w for layer in layers])
            factor = scale or 0.0
            np.testing.assert_allclose(of_x, factor * (grad @ w[:size]), rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(of_w[:size], factor * (grad.T @ x), rtol=1e-11, atol=1e-13)
            assert not of_w[size:].any()


@one_isa
def test_a_linear_layer_that_fails_on_one_rank(backend):
    x, w, y = np.ones((8, 4)), np.ones((11, 4)), np.arange(8)

    for step, exchanges, own in (
        ("make", 1, "no memory for make"),
        ("allocate", 2, "no memory for allocate"),
        ("chunk", 3, "no memory for chunk"),
        ("add", 4, "no memory for add"),
    ):

        def fails(at, rank, step=step):
            if at == step and rank == 1:
                raise MemoryError(f"no memory for {step}")
            return 0

        found, _, gathered = linear(backend, x, w, y, (0, 4, 11), fails=fails)
        kinds, messages = texts(found)
        assert kinds == {MemoryError}
        assert messages[1] == own
        # An error of a step between exchanges reaches the others with the next one.
        others = own if exchanges < 3 else "could not compute its part of the loss"
        assert messages[0] == f"rank 1{':' if exchanges < 3 else ''} {others}"
        assert gathered == exchanges

    # After the last chunk, the last message says so.
    found, _, gathered = linear(backend, x, w, y, (0, 4, 11), most=8, fails=fails)
    assert texts(found)[1] == ["rank 1: no memory for add", "no memory for add"]
    assert gathered == 4
    found, _, _ = linear(backend, x, w, y + 5, (0, 4, 11))
    kinds, messages = texts(found)
    assert kinds == {IndexError}
    assert all("row 6 is 11, outside" in text for text in messages)
    found, _, _ = linear(backend, x, w, y, (0, 4, 11), fails=lambda _, rank: rank)
    assert texts(found)[1] == ["the ranks differ: features is 5 on rank 1 and 4 on rank 0"] * 2
