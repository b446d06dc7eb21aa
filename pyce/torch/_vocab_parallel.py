"""`pyce.torch.vocab_parallel_cross_entropy`: logits whose classes several processes hold."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyce import _arguments as arguments
from pyce import _shards, _threads
from pyce._types import Array
from pyce.torch import _autograd
from pyce.torch._public import publish
from pyce.torch._tensors import (
    DTYPE_NAMES,
    HALF_TYPES,
    as_array,
    check_tensor,
    empty_gradient,
    is_served,
    refuse_gradients,
)
from pyce.torch._tracing import (
    forward_mode,
    is_compiling,
    run_eagerly,
    saved_tensors_hooks,
    transforms_active,
)


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
        float16, on the CPU, with any strides. The ranks may have any numbers of classes, also none.
        A `DTensor` that is sharded along its last dimension is taken as well, on a mesh of one
        dimension, which is the group unless `group` names the same ranks.
    target : Tensor
        Class indices of any integer dtype and of shape (...), the same on every rank, counted from
        the first class of rank 0; or probabilities of a floating dtype and of the shape of the
        logits, each rank those of its own classes. A `DTensor` of class indices must be replicated,
        and one of probabilities sharded as the logits are.
    label_smoothing : float
        ε in [0, 1], over all classes.
    group : ProcessGroup, optional
        The default group if None, or that of the mesh of a `DTensor`. Its backend must gather
        tensors that are on the CPU, as gloo and MPI do.
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
        of its range; if `vocab_size` exceeds the number of columns; if a `DTensor` has another
        layout than the above; or if dtypes, shapes, targets or options differ between the ranks.
    IndexError
        If a class index is not in 0..C−1.
    NotImplementedError
        If probabilities, or a number given as a tensor, require a gradient; under
        transforms of `torch.func`, in forward-mode differentiation, and in `torch.export`.

    An error of one rank is raised on all of them, and all ranks find what differs between them;
    except that a rank of which no memory is left after the last exchange, and one in
    `torch.export`, raise an error alone. If a process ends, the others get the error of
    `torch.distributed`.

    Notes
    -----
    `torch.compile` leaves the call to eager mode.

    The forward pass gathers two messages of each rank. The first, of 4 KiB, describes its
    arguments: without it, ranks that disagree would wait for each other. The second has the states
    of its rows. If the ranks differ in the number of their classes, a third, of 4 KiB, may be
    between them. The backward pass does not communicate: the gradient is computed in the forward
    pass, from a second pass over the logits, and kept in their dtype (float16: in float32).

    With the C backend, the state of a row has 16 bytes for each 2048 classes of the rank, or part
    of them (float64: 24; with smoothing 32 more, with probabilities 48 more), and for class indices
    8 more. With Numba it has 64 bytes, with NumPy 72. Each rank receives the states of all ranks,
    each as long as those of the rank with the most classes.

    With the C backend, loss and gradient have the bytes that one process with all logits gets, for
    any number of ranks, if all ranks begin at multiples of 2048 classes and there are more than 64
    classes in all. The sign of a NaN may differ, and the last bit of float16 gradients, which one
    process computes in another way if there are more than 65,536 logits. At other bounds, loss and
    gradient have the same error bounds.

    Name and first arguments are those of Megatron-LM's
    ``megatron.core.tensor_parallel.vocab_parallel_cross_entropy``, which smooths labels over the
    classes of each rank instead of over all of them.

    Examples
    --------
    >>> # torchrun --nproc-per-node 2: rank r has classes 16000·r to 16000·r + 15999
    >>> loss = pyce.torch.vocab_parallel_cross_entropy(logits, labels).mean()  # doctest: +SKIP
    >>> loss.backward()  # doctest: +SKIP
    """
    options = ShardOptions(vocab_size, ignore_index, label_smoothing, reduction, lse_square_scale)
    return run_eagerly(_run, vocab_parallel_logits, target, group, options)


class ShardOptions(NamedTuple):
    """The options that `_shards.local_problem` checks, by its names."""

    vocab_size: Any
    ignore_index: Any
    label_smoothing: Any
    reduction: Any
    lse_square_scale: Any


def check_not_traced(name: str) -> None:
    """Raise while a call is traced: there are no numbers to communicate."""
    if is_compiling():
        raise NotImplementedError(f"{name} communicates: it cannot be traced")


def _run(logits: Any, target: Any, group: Any, options: ShardOptions) -> Tensor:
    check_not_traced("vocab_parallel_cross_entropy")
    ranks = Ranks(group_of(logits, group))
    try:
        x, t = _of_this_rank(logits, target, ranks, options)
    except Exception as error:
        raise_on_all_ranks(ranks, error)
    if x.requires_grad and torch.is_grad_enabled():
        loss = _VocabParallel.apply(x, t, ranks, options)
    else:
        loss, _ = _forward(x, t, ranks, options, False)
    if x.dtype in HALF_TYPES and not torch.is_autocast_enabled("cpu"):
        loss = loss.to(x.dtype)
    return loss.reshape(x.shape[:-1]) if options.reduction == "none" else loss


class Ranks:
    """The process group, as `pyce._shards.Group`."""

    def __init__(self, group: Any) -> None:
        if not dist.is_available():
            raise RuntimeError("this PyTorch was built without torch.distributed")
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.group = group
        if self.rank < 0:
            raise ValueError("this process is not a member of the group")

    def gather(self, sent: Array, received: Array) -> None:
        of_ranks = [torch.from_numpy(of_rank) for of_rank in received]
        dist.all_gather(of_ranks, torch.from_numpy(sent), group=self.group)


def raise_on_all_ranks(ranks: Ranks, error: Exception) -> NoReturn:
    """Raise an error of this rank, which has not communicated yet, on all of them."""

    def make() -> Any:
        raise error

    _shards.cross_entropy(ranks, make)
    raise error


def group_of(tensor: Any, group: Any) -> Any:
    """The group to communicate in: that of the mesh of a DTensor, unless another is given."""
    if group is None and isinstance(tensor, Tensor) and not is_served(tensor):
        mesh: Any = tensor.device_mesh
        if mesh.ndim == 1:
            return mesh.get_group()
    return group


def check_call(name: str, target: Tensor, options: ShardOptions, **numbers: Any) -> None:
    """Raise for a call under a transform, and for arguments that only NumPy's functions accept.

    numbers : further numbers that may be tensors, besides those in `options`
    """
    if transforms_active() or forward_mode():
        raise NotImplementedError(f"{name} communicates: it cannot be transformed")
    if target.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("no gradient is computed for target: detach it")
    refuse_gradients(
        label_smoothing=options.label_smoothing,
        lse_square_scale=options.lse_square_scale,
        **numbers,
    )
    index = arguments.index_number(options.ignore_index, "ignore_index")
    if index >= 0 and target.is_floating_point():
        raise ValueError("ignore_index is for class indices, and target holds probabilities")


def local(tensor: Any, name: str, sharded: int | None, ranks: Ranks) -> Tensor:
    """The part of a DTensor that this rank has; other tensors as they are.

    It must be sharded along the dimension `sharded`, or replicated if that is None.
    """
    if is_served(tensor):
        return tensor
    distributed: Any = sys.modules["torch.distributed.tensor"]
    expected = distributed.Replicate() if sharded is None else distributed.Shard(sharded)
    if tuple(tensor.placements) != (expected,):
        raise ValueError(
            f"{name} is a DTensor and must have the placements {(expected,)}, on a mesh of one "
            f"dimension: they are {tuple(tensor.placements)}"
        )
    mesh = tensor.device_mesh
    if mesh.mesh.tolist() != dist.get_process_group_ranks(ranks.group or dist.group.WORLD):
        raise ValueError(
            f"{name} is a DTensor and its mesh must have the ranks of the group, in their order: "
            f"it has {mesh.mesh.tolist()}"
        )
    return tensor.to_local()


def _of_this_rank(
    logits: Any, target: Any, ranks: Ranks, options: ShardOptions
) -> tuple[Tensor, Tensor]:
    """Logits and target as tensors of this rank, after the checks that pyce's functions lack."""
    check_tensor(logits, "vocab_parallel_logits")
    check_tensor(target, "target")
    check_call("vocab_parallel_cross_entropy", target, options)
    x = local(logits, "vocab_parallel_logits", logits.dim() - 1, ranks)
    classes = target.dim() - 1 if target.is_floating_point() else None
    return x, local(target, "target", classes, ranks)


def _forward(
    logits: Tensor, target: Tensor, ranks: Ranks, options: ShardOptions, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, in float32 or float64, and its gradient: (rows, classes), float32 for float16."""
    gradient: Tensor | None = None

    def make() -> Any:
        nonlocal gradient
        x = logits.float() if with_gradient and logits.dtype is torch.float16 else logits
        p = _shards.local_problem(
            as_array(x, "vocab_parallel_logits"),
            as_array(target, "target"),
            **options._asdict(),
            what="vocab_parallel_logits",
            given_dtype=DTYPE_NAMES.get(logits.dtype),
        )
        array = None
        if with_gradient:
            # Not a view, which could not be detached from the graph in place.
            like = torch.empty(1, dtype=x.dtype).expand(p.rows, x.shape[-1])
            gradient = empty_gradient(like, contiguous=True)
            array = as_array(gradient, "the gradient").reshape(p.logits.shape)
        return p, tuple(x.shape), array

    with _threads.at_most(torch.get_num_threads()):
        loss = _shards.cross_entropy(ranks, make)
    return torch.from_numpy(np.asarray(loss)), gradient


class _VocabParallel(torch.autograd.Function):  # type: ignore[misc]
    """`_forward` with its derivative, which the forward pass computes."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ranks: Ranks, options: ShardOptions
    ) -> Tensor:
        loss, gradient = _forward(logits, target, ranks, options, True)
        assert gradient is not None
        ctx.ignore_index = options.ignore_index
        ctx.like = logits.shape, logits.dtype
        if saved_tensors_hooks() is not None:
            ctx.has_hooks = True
        soft = target.is_floating_point()
        ctx.save_for_backward(gradient, target.reshape(gradient.shape if soft else -1))
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, target = ctx.saved_tensors
        shape, dtype = ctx.like
        scaled = _autograd.scaled(ctx, gradient, target, grad_loss, ctx.ignore_index)
        return scaled.to(dtype).reshape(shape), None, None, None


publish(vocab_parallel_cross_entropy)
