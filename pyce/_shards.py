"""Cross-entropy of rows whose classes several processes hold, each some of them.

The processes, "ranks", exchange twice: first a description of what each was called with, of a fixed
size, and then the states of their rows (`Backend.partial`), from which each computes the loss of
all classes and the gradient of its own (`Backend.complete`). No rank leaves before the exchange
that the others wait in: an error of one rank is raised on all of them, and so is a difference
between their arguments.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from pyce import _arguments as arguments
from pyce._backends import Backend, current, load
from pyce._dtypes import dtype_name
from pyce._problem import ShardedProblem
from pyce._types import Array, Scalar
from pyce._version import __version__

# The bytes of a description, and the characters of an error message in it.
_DESCRIPTION = 4096
_MESSAGE = 500
# The errors that are raised on all ranks as what they are on one; others become RuntimeError.
_ERRORS = (TypeError, ValueError, IndexError, NotImplementedError, MemoryError)


class Group(Protocol):
    """The processes that hold the classes of the same rows, in the order of the classes."""

    rank: int
    size: int

    def gather(self, array: Array) -> list[Array]:
        """The arrays of all ranks, which are of one shape and dtype."""


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
) -> ShardedProblem:
    """The problem of this rank, as far as its own arguments determine it, and these checked.

    `logits` are (..., classes of this rank), which errors call `what`. `classes` of the problem is
    `vocab_size`, or 0 for None; the bounds of the shards are not known yet. The outputs are None.
    """
    x, name = arguments.floating(logits, what)
    if x.ndim == 0:
        raise ValueError(f"{what} must have at least one dimension, got shape ()")
    p = ShardedProblem()
    positions = x.shape[:-1]
    p.outer = p.rows = math.prod(positions)
    p.axis = p.inner = 1
    p.logits = x.reshape(p.rows, x.shape[-1])
    p.dtype_name = name
    p.contiguous = False
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
    t = arguments.as_array(target, "target")
    p.labels = p.probs = None
    if t.dtype.kind in "iu":
        most = int(arguments.INDEX_LIMIT.max)
        p.labels = arguments.indices(t, positions, x.shape, what, most, p.ignore_index)
        return p
    if dtype_name(t.dtype) is None:
        raise TypeError(
            "target must be class indices of an integer dtype, or probabilities of float16, "
            f"bfloat16, float32 or float64, got {t.dtype}"
        )
    if t.shape != x.shape:
        raise ValueError(
            f"probability target of shape {t.shape} does not fit {what} of shape {x.shape}: each "
            "rank has the probabilities of its own classes"
        )
    p.probs = arguments.floating(t, "target")[0].reshape(p.logits.shape)
    return p


def cross_entropy(
    group: Group, make: Callable[[], tuple[ShardedProblem, tuple[int, ...], Array | None]]
) -> Scalar | Array:
    """The loss of all classes, the same on every rank; the gradient of those of this rank.

    `make` returns the result of `local_problem`, the shape of the logits, and the array for the
    gradient, of the shape and dtype of `logits` of the problem, or None. It is called here so that
    an error of it is raised on all ranks. Losses of rows, for the reduction "none", are (rows,).
    """
    failure: Exception | None = None
    try:
        p, shape, grad = make()
        backend = _backend()
        described = _described(p, shape, backend)
    except Exception as error:
        failure = error
        described = {"error": [type(error).__name__, str(error)[:_MESSAGE]]}
    gathered = group.gather(_packed(described))
    if failure is not None:
        raise failure
    all_described = [json.loads(bytes(one).rstrip(b"\0")) for one in gathered]
    _check_agreement(all_described)
    _cut(p, [one["classes"] for one in all_described], group.rank)
    if p.reduction == "none":
        p.losses = np.empty(p.rows, np.float64 if p.dtype_name == "float64" else np.float32)
    if group.size == 1:
        return _alone(p, grad)
    states = _exchange(group, p, backend)
    own = p.logits.shape[1]
    if grad is not None:
        grad[:, own:] = 0
        p.grad = grad[:, :own] if own else None
    assert backend.complete is not None
    loss = backend.complete(p, states)
    return _loss_of(p, loss)


def _alone(p: ShardedProblem, grad: Array | None) -> Scalar | Array:
    """The same with all classes on one rank."""
    backend = current()
    own = p.logits.shape[1]
    if not backend.CHECKS_LABELS:
        p.check_labels()
    p.contiguous = p.logits.flags.c_contiguous
    if p.probs is not None:
        p.contiguous = p.contiguous and p.probs.flags.c_contiguous
    if grad is None:
        loss = backend.forward(p)
    else:
        p.grad = grad if grad.shape[1] == own else np.empty_like(p.logits, order="C")
        loss = backend.forward_backward(p)
        if p.grad is not grad:
            grad[:, :own], grad[:, own:] = p.grad, 0
    return _loss_of(p, loss)


def _loss_of(p: ShardedProblem, loss: Scalar | None) -> Scalar | Array:
    if p.losses is not None:
        return p.losses
    assert loss is not None
    return loss


def _backend() -> Backend:
    backend = current()
    return load("numpy") if backend.partial is None else backend


def _described(p: ShardedProblem, shape: tuple[int, ...], backend: Backend) -> dict[str, Any]:
    """What the ranks must have in common, by the names that errors give it; and `classes`."""
    if p.labels is not None:
        target = f"{p.labels.dtype} indices {_checksum(p.labels)}"
    else:
        assert p.probs is not None
        target = f"{dtype_name(p.probs.dtype)} probabilities"
    return {
        "classes": shape[-1],
        "version of pyce": __version__,
        "backend": backend.NAME,
        "dtype of the logits": p.dtype_name,
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
    packed = np.zeros(_DESCRIPTION, np.uint8)
    packed[: len(text)] = np.frombuffer(text, np.uint8)
    return packed


def _check_agreement(all_described: list[dict[str, Any]]) -> None:
    """Raise the error of the first rank that has one, or for the first difference."""
    for rank, described in enumerate(all_described):
        if "error" in described:
            kind, message = described["error"]
            raise _error_of(rank, kind, message)
    first = all_described[0]
    for name, expected in first.items():
        for rank, described in enumerate(all_described):
            if name != "classes" and described.get(name) != expected:
                raise ValueError(
                    f"the ranks differ: {name} is {_text(described.get(name))} on rank {rank} "
                    f"and {_text(expected)} on rank 0"
                )


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _error_of(rank: int, kind: str, message: str) -> Exception:
    found = {error.__name__: error for error in _ERRORS}.get(kind, RuntimeError)
    return found(f"rank {rank}: {message}")


def _cut(p: ShardedProblem, classes: list[int], rank: int) -> None:
    """Set the bounds of the shards, and leave out the columns from `vocab_size` on."""
    total = sum(classes)
    if p.classes > total:
        raise ValueError(f"vocab_size is {p.classes}, but the ranks have {total} classes in all")
    if total == 0:
        raise ValueError("there must be at least one class on one of the ranks")
    p.classes = p.classes or total
    p.bounds = tuple(min(n, p.classes) for n in accumulate(classes, initial=0))
    p.own = rank
    own = p.bounds[rank + 1] - p.bounds[rank]
    p.logits = p.logits[:, :own]
    if p.probs is not None:
        p.probs = p.probs[:, :own]


def _exchange(group: Group, p: ShardedProblem, backend: Backend) -> list[Array]:
    """The states of all ranks. A rank that cannot compute its own tells the others."""
    assert backend.partial is not None and backend.state_size is not None
    sizes = [
        p.rows * backend.state_size(p, end - begin)
        for begin, end in zip(p.bounds, p.bounds[1:], strict=False)
    ]
    sent = np.zeros(1 + max(sizes))
    failure: Exception | None = None
    try:
        sent[1 : 1 + sizes[p.own]] = backend.partial(p).ravel()
    except Exception as error:
        failure, sent[0] = error, 1.0
    gathered = group.gather(sent)
    if failure is not None:
        raise failure
    for rank, one in enumerate(gathered):
        if one[0]:
            raise RuntimeError(f"rank {rank} could not compute its part of the loss")
    return [one[1 : 1 + size] for one, size in zip(gathered, sizes, strict=True)]
