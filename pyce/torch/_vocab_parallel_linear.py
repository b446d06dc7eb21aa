"""`pyce.torch.vocab_parallel_linear_cross_entropy`: a linear layer over several processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyce import _shards, _threads
from pyce._linear_chunks import checked_scales
from pyce._problem import ShardedProblem
from pyce._types import Array
from pyce.torch import _linear_autograd
from pyce.torch._linear_compute import Options, Tensors, check_layer
from pyce.torch._linear_layer import Layer, Needs, Part
from pyce.torch._public import publish
from pyce.torch._tensors import DTYPE_NAMES, as_array, check_memory, check_tensor
from pyce.torch._tracing import run_eagerly, saved_tensors_hooks
from pyce.torch._vocab_parallel import (
    Ranks,
    ShardOptions,
    check_call,
    check_not_traced,
    group_of,
    local,
    raise_on_all_ranks,
)

# More than any chunk: its rows are counted, since they must be the same on all ranks.
_UNLIMITED = 2**62


def vocab_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    group: Any = None,
    linear_bias: Tensor | None = None,
    vocab_size: int | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    chunk_bytes: int | None = None,
) -> Tensor:
    """`linear_cross_entropy` with the classes of the layer distributed over a process group.

    Each rank has the weight of some classes, in the order of the ranks: those of rank 0 are the
    first. All ranks have the same hidden states. The loss of a row with hidden state h is that of
    `cross_entropy` with the logits of all C classes

        x = κ · tanh(z/κ),    z = α · (W · h + β),    or x = z without `softcap`,

    and is the same on every rank. The logits exist in chunks of rows, and no rank has those of the
    classes of another.

    Parameters
    ----------
    input : Tensor
        The hidden states, of shape (..., D), the same on every rank: float32, float64, bfloat16 or
        float16, on the CPU. Half types are multiplied as float32, chunk by chunk. A `DTensor` must
        be replicated.
    linear_weight : Tensor
        W of this rank's classes, of shape (C_rank, D), in the dtype of `input`. The ranks may have
        different numbers of classes, at least one. A `DTensor` must be sharded along its first
        dimension, on a mesh of one dimension, which is the group unless `group` names the same
        ranks.
    target : Tensor
        Class indices of any integer dtype and of shape (...), the same on every rank, counted from
        the first class of rank 0; or probabilities of a floating dtype and of shape (..., C_rank),
        each rank those of its own classes.
    group : ProcessGroup, optional
        The default group if None, or that of the mesh of a `DTensor`. Its backend must gather and
        add tensors that are on the CPU, as gloo and MPI do.
    linear_bias : Tensor, optional
        β of this rank's classes, of shape (C_rank,), in the dtype of `input`.
    vocab_size : int, optional
        The number C of classes. Classes from the C-th on, counted from the first of rank 0, are
        padding: they have no influence, and the gradient of their weight is 0. By default, all
        classes count.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum of the losses by the number of rows that are not ignored. "none" only
        where no gradient is needed.
    ignore_index : int
        Rows with this class index have loss 0 and gradient 0, do not count in the mean, and take no
        time. For class indices only.
    label_smoothing : float
        ε in [0, 1], the part of the target that is spread evenly over all C classes.
    softcap : float, optional
        κ, from 1e-20 to 1e20: bounds the logits to (−κ, κ). None for no bound.
    logit_scale : float
        α, any finite number: the factor of the product.
    lse_square_scale : float
        λ of the z-loss: λ · lse² is added to each row's loss, with lse = log Σ_c exp(x_c). Any
        finite number.
    chunk_bytes : int, optional
        The most bytes of logits that exist at a time on this rank, by default 64 MiB; at least one
        row of them always does. The rank with the fewest rows in a chunk decides for all.

    Returns
    -------
    Tensor
        The loss in nats: a scalar, or for "none" of shape (...). It has the dtype of `input`, or
        float32 for other dtypes than float64 under autocast, and the same bytes on every rank. It
        is differentiable once with respect to `input`, `linear_weight` and `linear_bias`. The
        gradient of `input` is that of all classes, and so the same on every rank.

    Raises
    ------
    TypeError
        If an argument is not a tensor, if a dtype is not supported, or if the dtypes of `input`,
        `linear_weight` and `linear_bias` differ: under autocast, half types and float32 may.
    ValueError
        If a tensor is sparse, nested or not on the CPU; if shapes do not match; if an option is out
        of its range; if `vocab_size` exceeds the number of classes; if a `DTensor` has another
        layout than the above; or if dtypes, shapes, targets or options differ between the ranks, or
        whether `input` requires a gradient.
    IndexError
        If a class index is not in 0..C−1.
    NotImplementedError
        If probabilities, a number given as a tensor, or the losses of rows require a gradient;
        under transforms of `torch.func`, in forward-mode differentiation, and in `torch.export`.

    An error of one rank is raised on all of them, and all ranks find what differs between them;
    except that a rank of which no memory is left after the last exchange, and one in
    `torch.export`, raise an error alone. If a process ends, the others get the error of
    `torch.distributed`.

    Notes
    -----
    All communication is in the forward pass, which computes the gradients too: for each chunk the
    states of its rows, as in `vocab_parallel_cross_entropy`; three messages of 4 KiB that describe
    the arguments and tell of errors; and, if `input` requires a gradient, the sum of its gradients
    over the ranks. `torch.compile` leaves the call to eager mode.

    Examples
    --------
    >>> # torchrun --nproc-per-node 2: rank r has classes 16000·r to 16000·r + 15999
    >>> loss = pyce.torch.vocab_parallel_linear_cross_entropy(
    ...     hidden, head.weight, labels
    ... )  # doctest: +SKIP
    >>> loss.backward()  # doctest: +SKIP
    """
    options = ShardOptions(vocab_size, ignore_index, label_smoothing, reduction, lse_square_scale)
    tensors = input, linear_weight, linear_bias, target
    return run_eagerly(_run, tensors, group, options, (softcap, logit_scale, chunk_bytes))


def _run(tensors: Any, group: Any, options: ShardOptions, scales: tuple[Any, Any, Any]) -> Tensor:
    check_not_traced("vocab_parallel_linear_cross_entropy")
    ranks = Ranks(group_of(tensors[1], group))
    try:
        call = _Call(tensors, ranks, options, scales)
    except Exception as error:
        raise_on_all_ranks(ranks, error)
    if any(call.needs):
        loss: Tensor = _VocabParallelLinear.apply(*call.tensors[:4], ranks, call)
    else:
        loss, _ = _forward(ranks, call)
    return loss


class _Call:
    """The arguments of this rank, as far as it can check them alone.

    `scales` are those of `checked_scales`.
    """

    def __init__(
        self, tensors: Any, ranks: Ranks, options: ShardOptions, scales: tuple[Any, Any, Any]
    ) -> None:
        input, weight, bias, target = tensors
        for tensor, name in ((input, "input"), (weight, "linear_weight"), (target, "target")):
            check_tensor(tensor, name)
        if bias is not None:
            check_tensor(bias, "linear_bias")
            bias = local(bias, "linear_bias", 0, ranks)
        check_call(
            "vocab_parallel_linear_cross_entropy",
            target,
            options,
            softcap=scales[0],
            logit_scale=scales[1],
        )
        soft = target.is_floating_point()
        input = local(input, "input", None, ranks)
        weight = local(weight, "linear_weight", 0, ranks)
        target = local(target, "target", target.dim() - 1 if soft else None, ranks)
        self.options = options
        self.autocast = torch.is_autocast_enabled("cpu")
        # As numbers of Python, which the ranks can compare.
        softcap, logit_scale, self.chunk_bytes = checked_scales(*scales)
        self.chosen = Options(
            reduction=options.reduction,
            softcap=softcap,
            logit_scale=logit_scale,
            lse_square_scale=options.lse_square_scale,
            ignore_index=options.ignore_index,
            autocast=self.autocast,
        )
        check_layer(input, weight, bias, self.autocast)
        for tensor, name in ((input, "input"), (weight, "linear_weight"), (bias, "linear_bias")):
            if tensor is not None:
                check_memory(tensor, name)
        self.tensors = Tensors(input, weight, bias, target, None, None)
        with_grad = torch.is_grad_enabled()
        self.needs = Needs(
            with_grad and input.requires_grad,
            with_grad and weight.requires_grad,
            with_grad and bias is not None and bias.requires_grad,
        )
        if any(self.needs) and options.reduction == "none":
            raise NotImplementedError(
                "no gradients of the losses of rows are computed: the reduction must be mean or sum"
            )

    def problem(self) -> tuple[ShardedProblem, int, dict[str, Any]]:
        """The problem of all rows; the most rows of a chunk; what ranks must have in common."""
        input, weight, _, target, _, _ = self.tensors
        classes, features = weight.shape
        wide = np.float64 if input.dtype is torch.float64 else np.float32
        p = _shards.local_problem(
            np.broadcast_to(wide(0), (*input.shape[:-1], classes)),
            as_array(target, "target"),
            **self.options._asdict(),
            what="the logits",
            given_dtype=DTYPE_NAMES[input.dtype],
        )
        buffers = 2 if any(self.needs) and self.chosen.softcap is not None else 1
        of_row = classes * np.dtype(wide).itemsize * buffers
        most = max(1, self.chunk_bytes // of_row)
        return (
            p,
            most,
            {
                "number of features": features,
                "softcap": self.chosen.softcap,
                "logit_scale": self.chosen.logit_scale,
                "whether input requires a gradient": self.needs.input,
            },
        )


class _Head:
    """The layer, as `pyce._shards.Head`."""

    layer: Layer

    def __init__(self, call: _Call, rows: Tensor | None) -> None:
        self._call, self._rows = call, rows
        self.scale = call.chosen.logit_scale if any(call.needs) else None
        self._last: tuple[Part, Tensor]

    def allocate(self, classes: int, rows: int) -> None:
        input, weight, bias = (None if t is None else t.detach() for t in self._call.tensors[:3])
        assert input is not None
        assert weight is not None
        self.layer = Layer(
            input.reshape(-1, input.shape[-1]) if input.numel() else input.flatten(0, -2),
            weight[:classes],
            None if bias is None else bias[:classes],
            softcap=self._call.chosen.softcap,
            logit_scale=self._call.chosen.logit_scale,
            rows=self._rows,
            chunk_bytes=_UNLIMITED,
            chunk_rows=max(1, rows),
            needs=self._call.needs,
            narrow_input=False,
        )

    def chunks(self) -> Iterator[tuple[slice | Array, Array]]:
        for part, logits in self.layer.chunks():
            self._last = part, logits
            yield part if isinstance(part, slice) else part.numpy(), logits.numpy()

    def add(self) -> None:
        part, gradient = self._last
        self.layer.uncap(gradient)
        self.layer.add(part, gradient)


def _forward(ranks: Ranks, call: _Call) -> tuple[Tensor, Any]:
    """The loss, and the gradients of input, weight and bias, None for those that are not needed."""
    input, weight = call.tensors[:2]
    found: list[_Head] = []

    def make() -> Any:
        p, most, described = call.problem()
        valid = p.valid()
        rows = None if valid is None else torch.from_numpy(np.flatnonzero(valid))
        found.append(_Head(call, rows))
        return p, tuple(p.logits.shape), described, most, found[0]

    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        _threads.at_most(torch.get_num_threads()),
    ):
        loss = _shards.linear_cross_entropy(ranks, make)
        layer = found[0].layer
        if layer.of_input is not None:
            dist.all_reduce(layer.of_input, group=ranks.group)
        of_input, of_weight, of_bias = layer.gradients()
        if of_input is not None and input.dtype is torch.bfloat16:
            of_input = of_input.bfloat16()
        gradients = (of_input, _padded(of_weight, len(weight)), _padded(of_bias, len(weight)))
        result = torch.from_numpy(np.asarray(loss)).to(call.chosen.dtype_of_loss(input.dtype))
        if call.options.reduction == "none":
            result = result.reshape(input.shape[:-1])
        return result, gradients


def _padded(gradient: Tensor | None, classes: int) -> Tensor | None:
    """The gradient of the classes that count, with zeros for those that are padding."""
    if gradient is None or len(gradient) == classes:
        return gradient
    return torch.cat([gradient, gradient.new_zeros(classes - len(gradient), *gradient.shape[1:])])


class _VocabParallelLinear(torch.autograd.Function):  # type: ignore[misc]
    """`_forward` with its derivatives, which the forward pass computes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        ranks: Ranks,
        call: _Call,
    ) -> Tensor:
        loss, gradients = _forward(ranks, call)
        ctx.options, ctx.needs = call.chosen, call.needs
        ctx.has_hooks = saved_tensors_hooks() is not None
        ctx.save_for_backward(input, weight, bias, target, *gradients)
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        input, weight, bias, target, *gradients = ctx.saved_tensors
        tensors = Tensors(input, weight, bias, target, None, None)
        return *_linear_autograd.scaled(ctx, tensors, gradients, grad_loss), None, None, None


publish(vocab_parallel_linear_cross_entropy)
