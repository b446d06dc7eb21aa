"""Cross-entropy of rows whose classes several processes hold, each some of them.

A package for one way of communication (`pyce.torch` for `torch.distributed`) provides

- a `Group`, whose `gather` is the only communication, and
- a function `make` that checks the arguments of this rank with `local_problem` and finds memory for
  the gradient,

and calls `cross_entropy(group, make)` on every rank, which returns the loss of all classes. For the
linear layer at the end of a model, `linear_cross_entropy(group, make)` does so chunk by chunk.

The ranks exchange two messages. The first describes what each rank was called with, in a fixed
number of bytes. The second has the states of the rows (`Backend.partial`), from which each rank
computes the loss of all classes and the gradient of its own (`Backend.complete`). Messages must
have one size on all ranks, and only the first message tells how many states there are, where the
classes of a rank begin, and whether the ranks agree: with one message alone, ranks that disagree
would wait for each other.

An error of one rank is raised on all of them, and so is a difference between their arguments: no
rank leaves before the exchange that the others wait in, and memory for the second message is
allocated before the first. If a rank has fewer classes than another, that memory may be too little;
a third message, between the two, then tells whether all ranks have found more. The only errors that
the others do not get are those of a rank that has not even memory for the first message, 4 KiB of
each rank, and of one that has no memory left to compute with after the last exchange.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np

from pyce import _arguments as arguments
from pyce._backends import Backend, current, load
from pyce._dtypes import compute_dtype
from pyce._problem import ShardedProblem, rows_of_array
from pyce._types import Array, Scalar
from pyce._version import __version__

# The bytes of a message that describes a call, and the characters of an error message in it.
DESCRIPTION_BYTES = 4096
_MESSAGE = 500
# The entries of a description that may differ between the ranks.
_OWN = ("classes", "rows of a chunk")
# The types that errors of one rank have on the others: the first of these of which an error is an
# instance, the last if it is of none.
_ERRORS = (TypeError, ValueError, IndexError, NotImplementedError, MemoryError, RuntimeError)


class Group(Protocol):
    """The processes that hold the classes of the same rows, in the order of the classes."""

    rank: int
    size: int

    def gather(self, sent: Array, received: Array) -> None:
        """Write `sent` of rank r to received[r], for all ranks.

        Both arrays are C-contiguous, uint8 or float64, share no memory, and have the same shapes on
        all ranks. `gather` allocates nothing of their size.
        """


class Head(Protocol):
    """A linear layer with the weight of this rank's classes."""

    scale: float | None  # a factor of the gradients of logits; None if there are none

    def allocate(self, classes: int, rows: int) -> None:
        """Find memory for the first `classes` classes of this rank and chunks of `rows` rows."""

    def chunks(self) -> Iterator[tuple[slice | Array, Array]]:
        """The rows that count, in chunks, and their logits, which are memory of this object."""

    def add(self) -> None:
        """Add what the last chunk brings to the gradients of the layer.

        The gradient of its logits, times `scale`, is in their memory.
        """


def local_problem(
    logits: Any,
    target: Any,
    *,
    vocab_size: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    lse_square_scale: Any,
    sample_weight: Any = None,
    normalizer: Any = None,
    what: str,
    given_dtype: str | None = None,
) -> ShardedProblem:
    """The problem of this rank, as far as its own arguments determine it, and these checked.

    `logits` are (..., classes of this rank), which errors call `what`. `given_dtype` is the dtype
    that the ranks must have in common, by default that of the logits: a caller that has widened its
    logits gives the one before. `classes` of the problem is `vocab_size`, or 0 for None; the bounds
    of the shards are not known yet. The outputs are None.
    """
    x, name = arguments.floating(logits, what)
    if x.ndim == 0:
        raise ValueError(f"{what} must have at least one dimension, got shape ()")
    p = ShardedProblem()
    positions = x.shape[:-1]
    p.outer = p.rows = math.prod(positions)
    p.axis, p.inner = x.ndim - 1, 1
    p.logits = x
    p.dtype_name = name
    p.classes = 0 if vocab_size is None else arguments.positive_number(vocab_size, "vocab_size")
    p.ignore_index = arguments.index_number(ignore_index, "ignore_index")
    p.smoothing = arguments.fraction(label_smoothing, "label_smoothing")
    p.reduction = arguments.reduction_name(reduction)
    p.lse_square_scale = arguments.finite(lse_square_scale, "lse_square_scale")
    p.normalizer = None if normalizer is None else arguments.real(normalizer, "normalizer")
    p.weight = p.sample_weight = p.grad = p.lse = p.losses = None
    if sample_weight is not None:
        p.sample_weight = arguments.reals(sample_weight, positions, "sample_weight").reshape(-1)
    p.grad_loss = 1.0
    p.labels = p.probs = p.large_labels = None
    t = arguments.as_array(target, "target")
    if t.dtype.kind in "iu":
        if t.dtype.itemsize == 8 and t.dtype.kind == "u" and np.any(t > arguments.INDEX_LIMIT.max):
            # `_cut` raises the error, which names the number of classes.
            p.large_labels, t = t, t.astype(np.int64)
        p.labels = arguments.indices(t, positions, x.shape, what, p.classes, p.ignore_index)
    else:
        p.probs = arguments.probabilities(target, t, positions, x.shape, what)
    p.given_dtypes = given_dtype or name, t.dtype.newbyteorder("=").name
    return p


def cross_entropy(
    group: Group, make: Callable[[], tuple[ShardedProblem, tuple[int, ...], Array | None]]
) -> Scalar | Array:
    """The loss of all classes, the same on every rank; the gradient of those of this rank.

    `make` returns the result of `local_problem`, the shape of the logits, and the array for the
    gradient, C-contiguous and of the shape and dtype of `logits` of the problem, or None. It is
    called here so that an error of it is raised on all ranks. Losses of rows, for the reduction
    "none", are (rows,).
    """

    def prepare() -> tuple[Any, dict[str, Any]]:
        p, shape, grad = make()
        backend = _backend()
        if p.reduction == "none":
            p.losses = np.empty(p.rows, compute_dtype(p.dtype_name))
        room = None
        if group.size > 1:
            room = _room(group, _size(p, backend, shape[-1], p.rows))
        return (p, grad, backend, room), _described("cross_entropy", p, shape, backend)

    (p, grad, backend, room), described = _agreed(group, prepare)
    _check_agreement(described)
    classes = [one["classes"] for one in described]
    _cut(p, classes, group.rank)
    if group.size == 1:
        return _alone(p, grad)
    sizes = _sizes(p, backend, p.rows)
    if any(_size(p, backend, count, p.rows) < max(sizes) for count in classes):
        room, _ = _agreed(group, lambda: (_room(group, max(sizes)), {}))
    assert backend.partial is not None
    states = _exchanged(group, partial(backend.partial, p), sizes, room)
    own = p.logits.shape[-1]
    if grad is not None:
        p.grad = grad[..., :own] if own else None
    assert backend.complete is not None
    loss = backend.complete(p, states)
    if grad is not None:
        grad[..., own:] = 0
    return _loss_of(p, loss)


def linear_cross_entropy(
    group: Group,
    make: Callable[[], tuple[ShardedProblem, tuple[int, ...], dict[str, Any], int, Head]],
) -> Scalar | Array:
    """As `cross_entropy`, for logits that a linear layer computes, chunk by chunk.

    `make` returns the result of `local_problem` for logits of the same shape, whose values are not
    read; that shape; what else the ranks must have in common, by the names that errors give it; the
    most rows of a chunk, of which the ranks take the least; and the layer. The states of each chunk
    are a message of their own: the memory of its logits is that of the next. Two more messages tell
    that all ranks have found memory, and that all have finished, so that the caller may add up the
    gradients of the ranks.
    """

    def prepare() -> tuple[Any, dict[str, Any]]:
        p, shape, others, most, head = make()
        backend = _backend()
        described = _described("linear_cross_entropy", p, shape, backend)
        return (p, head, backend), {**described, **others, "rows of a chunk": most}

    (p, head, backend), described = _agreed(group, prepare)
    _check_agreement(described)
    most = min(one["rows of a chunk"] for one in described)
    _cut(p, [one["classes"] for one in described], group.rank)

    def allocate() -> tuple[Any, dict[str, Any]]:
        p.check_labels()
        valid = p.valid()
        count = p.rows if valid is None else int(np.count_nonzero(valid))
        rows = -(-count // max(1, -(-count // most)))  # of all chunks but the last
        head.allocate(p.logits.shape[-1], rows)
        room = _room(group, max(_sizes(p, backend, rows)))
        losses = np.zeros(p.rows, compute_dtype(p.dtype_name))
        with np.errstate(all="ignore"):
            scale = float(np.float64(head.scale or 0.0) / p.denominator())
        return (count, rows, room, losses, scale), {}

    (count, rows, room, losses, scale), _ = _agreed(group, allocate)
    work = _Chunks(p, backend, head, scale, losses)
    for start in range(0, count, rows or 1):
        sizes = _sizes(p, backend, min(rows, count - start))
        states = _exchanged(group, work.write_state, sizes, room)
        work.complete(states)
    _agreed(group, work.finish)
    if p.reduction != "none":
        return _loss_of(p, p.reduce(losses.astype(np.float64)))
    found: Array = losses
    return found


class _Chunks:
    """The chunks of `linear_cross_entropy` on this rank, whose losses are written to `losses`.

    An error between two messages is raised with the next one, in which the others learn of it.
    """

    def __init__(
        self, p: ShardedProblem, backend: Backend, head: Head, scale: float, losses: Array
    ) -> None:
        self._p, self._backend, self._head = p, backend, head
        self._scale, self._losses = scale, losses
        self._chunks = iter(head.chunks())
        self._rows: slice | Array
        self._part: ShardedProblem
        self._failure: Exception | None = None

    def write_state(self, state: Array) -> None:
        """Compute the logits of the next chunk, and write the states of its rows."""
        self._raise_failure()
        self._rows, logits = next(self._chunks)
        self._part = _rows_of(self._p, self._rows, logits)
        assert self._backend.partial is not None
        self._backend.partial(self._part, state)

    def complete(self, states: list[Array]) -> None:
        """Compute losses and gradients of this chunk from the states of all ranks."""
        part, has_grad = self._part, self._head.scale is not None
        try:
            if has_grad and part.logits.size:
                part.grad, part.grad_loss = part.logits, self._scale
            assert self._backend.complete is not None
            self._backend.complete(part, states)
            self._losses[self._rows] = part.losses
            if has_grad:
                self._head.add()
        except Exception as error:
            self._failure = error

    def finish(self) -> tuple[None, dict[str, Any]]:
        """Raise the error of the last chunk, of which the last message tells the others."""
        self._raise_failure()
        return None, {}

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _rows_of(p: ShardedProblem, rows: slice | Array, logits: Array) -> ShardedProblem:
    """The problem of some rows, whose logits are (rows, classes of the own shard)."""
    part = ShardedProblem()
    part.logits, part.dtype_name = logits, p.dtype_name
    part.outer = part.rows = len(logits)
    part.axis = part.inner = 1
    part.classes, part.bounds, part.own = p.classes, p.bounds, p.own
    part.labels = None if p.labels is None else p.labels[rows]
    part.probs = None if p.probs is None else rows_of_array(p.probs, rows)
    part.weight = part.sample_weight = part.lse = part.normalizer = part.grad = None
    part.ignore_index = p.ignore_index
    part.smoothing, part.lse_square_scale = p.smoothing, p.lse_square_scale
    part.reduction, part.grad_loss = "none", 1.0
    part.losses = np.empty(part.rows, compute_dtype(p.dtype_name))
    return part


def _alone(p: ShardedProblem, grad: Array | None) -> Scalar | Array:
    """As `cross_entropy`, with all classes on one rank, which exchanges nothing."""
    backend = current()
    own = p.logits.shape[-1]
    if not backend.CHECKS_LABELS:
        p.check_labels()
    p.contiguous = p.logits.flags.c_contiguous
    if p.probs is not None:
        p.contiguous = p.contiguous and p.probs.flags.c_contiguous
    if grad is None:
        loss = backend.forward(p)
    else:
        p.grad = grad if grad.shape[-1] == own else np.empty(p.logits.shape, p.logits.dtype)
        loss = backend.forward_backward(p)
        if p.grad is not grad:
            grad[..., :own], grad[..., own:] = p.grad, 0
    return _loss_of(p, loss)


def _loss_of(p: ShardedProblem, loss: Scalar | None) -> Scalar | Array:
    """The losses of the rows if they are requested, else the reduced loss."""
    if p.losses is not None:
        return p.losses
    assert loss is not None
    return loss


def _backend() -> Backend:
    """The selected backend, or NumPy if that cannot compute shards."""
    backend = current()
    return load("numpy") if backend.partial is None else backend


# ---------------------------------------------------------------------------------------------
# The first message


def _agreed(
    group: Group, work: Callable[[], tuple[Any, dict[str, Any]]]
) -> tuple[Any, list[dict[str, Any]]]:
    """The result of `work`, and what it describes on each rank. An error of it is raised on all."""
    failure: Exception | None = None
    result = None
    try:
        result, described = work()
        sent = _packed(described)
    except Exception as error:
        failure = error
        sent = _packed({"error": [_kind_of(error), str(error)[:_MESSAGE]]})
    received = np.empty((group.size, DESCRIPTION_BYTES), np.uint8)
    group.gather(sent, received)
    if failure is not None:
        raise failure
    all_described = [json.loads(bytes(one).rstrip(b"\0")) for one in received]
    for rank, one in enumerate(all_described):
        if "error" in one:
            kind, message = one["error"]
            raise _ERRORS[kind](f"rank {rank}: {message}")
    return result, all_described


def _described(
    function: str, p: ShardedProblem, shape: tuple[int, ...], backend: Backend
) -> dict[str, Any]:
    """The properties that the ranks must share, by the names that errors use; and `classes`."""
    logits_dtype, target_dtype = p.given_dtypes
    target = f"{target_dtype} probabilities"
    if p.labels is not None:
        target = f"{target_dtype} indices {_checksum(p.labels)}"
    return {
        "classes": shape[-1],
        "version of pyce": __version__,
        "function": function,
        "backend": backend.NAME,
        "dtype of the logits": logits_dtype,
        "shape of the logits without the classes": list(shape[:-1]),
        "target": target,
        "vocab_size": p.classes or None,
        "ignore_index": p.ignore_index,
        "label_smoothing": p.smoothing,
        "reduction": p.reduction,
        "lse_square_scale": p.lse_square_scale,
        "sample_weight": _checksum(p.sample_weight),
        "normalizer": repr(p.normalizer),  # NaN equals itself
    }


def _checksum(array: Array | None) -> str | None:
    return None if array is None else f"of checksum {zlib.crc32(array.data):08x}"


def _packed(described: dict[str, Any]) -> Array:
    text = json.dumps(described, ensure_ascii=False).encode(errors="replace")
    packed = np.zeros(DESCRIPTION_BYTES, np.uint8)
    packed[: len(text)] = np.frombuffer(text, np.uint8)
    return packed


def _check_agreement(all_described: list[dict[str, Any]]) -> None:
    """Raise ValueError for the first difference."""
    first = all_described[0]
    for name, expected in first.items():
        for rank, described in enumerate(all_described):
            if name not in _OWN and described.get(name) != expected:
                raise ValueError(
                    f"the ranks differ: {name} is {_text(described.get(name))} on rank {rank} "
                    f"and {_text(expected)} on rank 0"
                )


def _text(value: Any) -> str:
    """A value of a description as an error shows it: JSON has made lists of tuples."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _kind_of(error: Exception) -> int:
    """The place in `_ERRORS` of the type that the error has on the other ranks."""
    return [*(isinstance(error, kind) for kind in _ERRORS[:-1]), True].index(True)


def _cut(p: ShardedProblem, classes: list[int], rank: int) -> None:
    """Set the bounds of the shards, and leave out the columns from `vocab_size` on.

    The ranks have the same labels, so that an error is raised on all of them.
    """
    total = sum(classes)
    if p.classes > total:
        raise ValueError(f"vocab_size is {p.classes}, but the ranks have {total} classes in all")
    if total == 0:
        raise ValueError("there must be at least one class on one of the ranks")
    p.classes = p.classes or total
    if p.large_labels is not None:
        arguments.refuse_large(p.large_labels, p.classes, p.ignore_index)
    p.bounds = tuple(min(n, p.classes) for n in accumulate(classes, initial=0))
    p.own = rank
    own = p.bounds[rank + 1] - p.bounds[rank]
    p.logits = p.logits[..., :own]
    if p.probs is not None:
        p.probs = p.probs[..., :own]


# ---------------------------------------------------------------------------------------------
# The second message: a number that is not 0 if the rank failed and tells the type of the error, and
# the states of its rows


def _sizes(p: ShardedProblem, backend: Backend, rows: int) -> list[int]:
    """The numbers of the message of each rank about so many rows."""
    return [_size(p, backend, end - begin, rows) for begin, end in pairwise(p.bounds)]


def _size(p: ShardedProblem, backend: Backend, classes: int, rows: int) -> int:
    """The numbers of the message of a rank with so many classes about so many rows."""
    assert backend.state_size is not None
    return 1 + rows * backend.state_size(p, classes)


def _room(group: Group, size: int) -> Array:
    """Memory for the messages of all ranks, and once more for that of this one."""
    return np.empty((group.size + 1) * size)


def _exchanged(
    group: Group, work: Callable[[Array], None], sizes: list[int], room: Array
) -> list[Array]:
    """The states of all ranks; `work` writes those of this one, or tells the others that it failed.

    `sizes` are the numbers of their messages.
    """
    size = max(sizes)
    messages = room[: (group.size + 1) * size].reshape(-1, size)
    received, sent = messages[:-1], messages[-1]
    own = sizes[group.rank]
    failure: Exception | None = None
    sent[0], sent[own:] = 0.0, 0.0
    try:
        work(sent[1:own])
    except Exception as error:
        failure = error
        sent[:] = 1 + _kind_of(error)
    group.gather(sent, received)
    if failure is not None:
        raise failure
    for rank, one in enumerate(received):
        if one[0]:
            raise _ERRORS[int(one[0]) - 1](f"rank {rank} could not compute its part of the loss")
    return [one[1:n] for one, n in zip(received, sizes, strict=True)]
