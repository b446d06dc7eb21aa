"""`pyce.torch.vocab_parallel_cross_entropy`: logits whose classes several processes hold."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyce import _shards, _threads
from pyce._types import Array
from pyce.torch import _autograd
from pyce.torch._cross_entropy import _refuse_script
from pyce.torch._tensors import HALF_TYPES, as_array, check_tensor, empty_gradient, is_served
from pyce.torch._tracing import forward_mode, is_compiling, transforms_active


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    *,
    group: Any = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    reduction: str = "none",
    lse_square_scale: float = 0.0,
) -> Tensor:
    """The cross-entropy of logits whose classes are distributed over the ranks of a process group.

    Each rank has the logits of some classes, in the order of the ranks: those of rank 0 are the
    first. The loss is that of all classes, as `pyce.torch.cross_entropy` computes it from the
    logits of all, and is the same on every rank; the gradient is that of the rank's own logits.
    With x_c the logits of all C classes, lse = log Σ_c exp(x_c), and ε the label smoothing, the
    loss of a row with the class index y is

        (1 − ε) · (lse − x_y) + ε/C · Σ_c (lse − x_c) + λ · lse².

    Parameters
    ----------
    vocab_parallel_logits : Tensor
        The logits of this rank's classes, of shape (..., C_rank): float32, float64, bfloat16 or
        float16, on the CPU. The ranks may have any numbers of classes, also none. A `DTensor` that
        is sharded along its last dimension is taken as well; its mesh is the group.
    target : Tensor
        Class indices of any integer dtype and of shape (...), the same on every rank, counted from
        the first class of rank 0; or probabilities of a floating dtype and of the shape of the
        logits, each rank those of its own classes.
    label_smoothing : float
        ε in [0, 1], over all classes.
    group : ProcessGroup, optional
        The default group if None. Its backend must gather tensors that are on the CPU, as gloo and
        MPI do.
    vocab_size : int, optional
        The number C of classes. Columns from the C-th on, counted from the first of rank 0, are
        padding: they have no influence, and their gradient is 0. By default, all columns count.
    ignore_index : int
        Rows with this class index have loss 0 and gradient 0 and do not count in the mean. For
        class indices only.
    reduction : {"none", "mean", "sum"}
        "mean" divides the sum of the losses by the number of rows that are not ignored.
    lse_square_scale : float
        λ of the z-loss. Any finite number.

    Returns
    -------
    Tensor
        The loss in nats: for "none" of shape (...), else a scalar. It has the dtype of the logits,
        or float32 for half types under autocast, and the same bytes on every rank. It is
        differentiable once with respect to the logits.

    Raises
    ------
    TypeError
        If an argument is not a tensor or a dtype is not supported.
    ValueError
        If a tensor is sparse, nested or not on the CPU; if shapes do not match; if an option is out
        of its range; if `vocab_size` exceeds the number of columns; if a `DTensor` is not sharded
        along its last dimension; or if dtypes, shapes, targets or options differ between the ranks.
    IndexError
        If a class index is not in 0..C−1.
    NotImplementedError
        If probabilities require a gradient; under transforms of `torch.func` and in forward-mode
        differentiation.

    An error of one rank is raised on all of them, and all ranks find what differs between them. If
    a process ends, the others get the error of `torch.distributed`.

    Notes
    -----
    `torch.compile` leaves the call to eager mode.

    The forward pass gathers the states of the rows, once: 16 bytes for each row and each 2048
    classes (float64: 24; with smoothing 32 more, with probabilities 48 more). A message of 4 KiB
    before it describes the arguments of each rank. The backward pass does not communicate: the
    gradient is computed in the forward pass, from a second pass over the logits, and kept in their
    dtype (float16: in float32).

    With the C backend, loss and gradient have the bytes that one process with all logits gets,
    for any number of ranks, if all ranks begin at multiples of 2048 classes. Elsewhere they have
    the same error bounds.

    Name and first arguments are those of Megatron-LM's
    ``megatron.core.tensor_parallel.vocab_parallel_cross_entropy``, which smooths labels over the
    classes of each rank instead of over all of them.

    Examples
    --------
    >>> # torchrun --nproc-per-node 2: rank r has classes 16000·r to 16000·r + 15999
    >>> loss = pyce.torch.vocab_parallel_cross_entropy(logits, labels).mean()  # doctest: +SKIP
    >>> loss.backward()  # doctest: +SKIP
    """
    if transforms_active() or forward_mode() or is_compiling():
        raise NotImplementedError(
            "vocab_parallel_cross_entropy communicates: it cannot be traced or transformed"
        )
    options = {
        "vocab_size": vocab_size,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "lse_square_scale": lse_square_scale,
    }
    run = _run
    if "torch._dynamo" in sys.modules:  # torch.compile, which may be tracing the caller's functions
        run = torch.compiler.disable(_run)
    loss: Tensor = run(vocab_parallel_logits, target, group, options)
    return loss


def _run(logits: Any, target: Any, group: Any, options: dict[str, Any]) -> Tensor:
    logits, group = _of_this_rank(logits, group)
    target, _ = _of_this_rank(target, group)
    ranks = _Ranks(group)
    needs_gradient = isinstance(logits, Tensor) and logits.requires_grad and torch.is_grad_enabled()
    if needs_gradient:
        loss = _VocabParallel.apply(logits, target, ranks, options)
    else:
        loss, _ = _forward(logits, target, ranks, options, False)
    if logits.dtype in HALF_TYPES and not torch.is_autocast_enabled("cpu"):
        loss = loss.to(logits.dtype)
    return loss.reshape(logits.shape[:-1]) if options["reduction"] == "none" else loss


def _of_this_rank(tensor: Any, group: Any) -> tuple[Any, Any]:
    """The local part of a tensor and its group; other tensors, and their group, as they are."""
    if not isinstance(tensor, Tensor) or is_served(tensor):
        return tensor, group
    distributed: Any = sys.modules["torch.distributed.tensor"]
    shard, replicate = distributed.Shard, distributed.Replicate
    (placement,) = tensor.placements if len(tensor.placements) == 1 else (None,)
    if not isinstance(placement, replicate) and placement != shard(tensor.dim() - 1):
        raise ValueError(
            "a DTensor must be on a mesh of one dimension, and sharded along its last dimension or "
            f"replicated: its placements are {tensor.placements}"
        )
    return tensor.to_local(), tensor.device_mesh.get_group()


class _Ranks:
    """The process group, as `pyce._shards.Group`."""

    def __init__(self, group: Any) -> None:
        if not dist.is_available():
            raise RuntimeError("this PyTorch was built without torch.distributed")
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = group
        if self.rank < 0:
            raise ValueError("this process is not a member of the group")

    def gather(self, array: Array) -> list[Array]:
        sent = torch.from_numpy(array)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return [tensor.numpy() for tensor in received]


def _forward(
    logits: Tensor, target: Tensor, ranks: _Ranks, options: dict[str, Any], with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, in float32 or float64, and its gradient: (rows, classes), float32 for float16."""
    gradient: Tensor | None = None

    def make() -> Any:
        nonlocal gradient
        check_tensor(logits, "vocab_parallel_logits")
        check_tensor(target, "target")
        if target.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("no gradient is computed for target: detach it")
        if options["ignore_index"] >= 0 and target.is_floating_point():
            raise ValueError("ignore_index is for class indices, and target holds probabilities")
        x = logits.float() if with_gradient and logits.dtype is torch.float16 else logits
        p = _shards.local_problem(
            as_array(x), as_array(target), **options, what="vocab_parallel_logits"
        )
        array = None
        if with_gradient:
            gradient = empty_gradient(x.detach().reshape(p.logits.shape), contiguous=True)
            array = as_array(gradient)
        return p, tuple(x.shape), array

    with _threads.at_most(torch.get_num_threads()):
        loss = _shards.cross_entropy(ranks, make)
    return torch.from_numpy(np.asarray(loss)), gradient


class _VocabParallel(torch.autograd.Function):  # type: ignore[misc]
    """`_forward` with its derivative, which the forward pass computes."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ranks: _Ranks, options: dict[str, Any]
    ) -> Tensor:
        loss, gradient = _forward(logits, target, ranks, options, True)
        assert gradient is not None
        soft = target.is_floating_point()
        ctx.options = options["reduction"], options["ignore_index"]
        ctx.like = logits.shape, logits.dtype
        ctx.save_for_backward(gradient, target.reshape(gradient.shape if soft else -1))
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, target = ctx.saved_tensors
        shape, dtype = ctx.like
        scaled = _autograd._scaled(ctx, gradient, target, grad_loss)
        return scaled.to(dtype).reshape(shape), None, None, None


vocab_parallel_cross_entropy.__module__ = "pyce.torch"
setattr(vocab_parallel_cross_entropy, "__prepare_scriptable__", _refuse_script)  # noqa: B010
