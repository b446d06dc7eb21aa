"""Cross-entropy for PyTorch: `torch.nn.functional.cross_entropy` on pyce's kernels.

    import pyce.torch

    loss = pyce.torch.cross_entropy(logits, labels)   # the signature and semantics of PyTorch's
    loss.backward()

The tensors' own memory is read and written; nothing is copied. Where a gradient will be needed it
is computed together with the loss, in the one pass over the logits that the loss needs anyway, and
the backward pass hands it on. CPU tensors only.
"""

# What a call does, and why there are two ways to PyTorch's autograd:
#
#   cross_entropy ─ eager ──────────────► _CrossEntropy, an autograd.Function ─┐
#                 └ traced or intercepted ► pyce::cross_entropy, an operator ──┴─► _run ─► pyce
#
# torch.compile, torch.export and whatever else looks at PyTorch's operators must see one. But an
# operator written in Python takes longer than all else in a small batch, which is most of what a
# small batch takes; nobody sees it in an eager call.

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("pyce.torch needs PyTorch: pip install 'pyce[torch]'") from error

from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

import pyce
from pyce import _arguments as arguments
from pyce import _threads
from pyce._backends import current

__all__ = ["CrossEntropyLoss", "cross_entropy", "patched"]

_torch_cross_entropy = torch.nn.functional.cross_entropy

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
# What a loss is computed in.
_LOSSES = {
    dtype: torch.empty(
        (), dtype=torch.float64 if dtype is torch.float64 else torch.float32, device="cpu"
    )
    for dtype in _NAMES
}
_HALVES = frozenset({torch.float16, torch.bfloat16})
_PLAIN = frozenset({Tensor, torch.nn.Parameter})

# Who looks at the operators that are called, and has to see one.
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_is_batched = torch._C._functorch.is_legacy_batchedtensor

# What the forward pass keeps for the backward pass.
_NOTHING = "nothing"
_GRADIENT = "gradient"  # ∂(Σ loss)/∂logits, which the backward pass has only to scale
_LSE = "lse"  # the logits' log-sum-exp, from which it computes the gradient, scaled

# From here on NumPy asks the system for huge pages, and PyTorch does not: a quarter of the time
# that the pages of a new gradient take.
_HUGE = 1 << 22


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, faster and more accurate.

    A row's loss is weight[y] · (lse − x_y) for a class index y, and
    Σ_c weight_c · t_c · (lse − x_c) for probabilities t, with lse = log Σ_c exp(x_c).

    Parameters
    ----------
    input : Tensor
        Logits, shape (C,), (N, C) or (N, C, d1, …): the class axis is the second, or the only one.
        float32, float64, bfloat16 or float16, on the CPU, of any strides.
    target : Tensor
        Class indices of any integer dtype, shape (), (N,) or (N, d1, …); or probabilities, floating
        and of the shape of `input`.
    weight : Tensor, optional
        Weight of each class, shape (C,).
    size_average, reduce : None
        Long deprecated in PyTorch; anything but None is refused.
    ignore_index : int
        Rows with this class index count for nothing. For class indices only.
    reduction : {"mean", "sum", "none"}
        "mean" divides by Σ weight[y] over the rows that count, for probabilities by the number of
        rows.
    label_smoothing : float
        In [0, 1]: how much of the target is spread evenly over the classes.

    Returns
    -------
    Tensor
        The loss in nats and in the dtype of `input` (float32 for half types where autocast is on,
        as PyTorch's): a scalar, or for "none" in the shape of index targets. Differentiable with
        respect to `input`, and to `target` if it is probabilities, any number of times.

    Raises
    ------
    TypeError
        Arguments that are no tensors; dtypes that do not fit.
    ValueError
        Tensors that are sparse, nested, or not on the CPU; shapes that do not fit; `size_average`
        or `reduce`; an unknown reduction; smoothing outside [0, 1].
    IndexError
        A class index out of range; it names the first such row.
    NotImplementedError
        A `weight` that requires a gradient.

    Notes
    -----
    Under `torch.func`'s transforms, which need more than a gradient, and in forward-mode
    differentiation, PyTorch's own function runs. At most as many threads work as both
    `torch.get_num_threads` and `pyce.get_num_threads` allow.

    float16 gradients are computed in the backward pass, with the loss's own gradient in them: with
    the scaled losses that float16 is trained with, they would otherwise be rounded to 0 too early.

    The semantics are those of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html; of
    PyTorch's rules only those about dtypes are widened: any integer target, any floating `weight`.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]], requires_grad=True)
    >>> loss = pyce.torch.cross_entropy(logits, torch.tensor([1, 2]))
    >>> loss.backward()
    >>> print(round(loss.item(), 4), [round(v, 3) for v in logits.grad[0].tolist()])
    0.287 [0.116, -0.186, 0.07]
    """
    if size_average is not None or reduce is not None:
        raise ValueError("size_average and reduce are not supported: say reduction= instead")
    plain = (
        type(input) in _PLAIN
        and type(target) in _PLAIN
        and (weight is None or type(weight) in _PLAIN)
    )
    traced = _is_compiling()
    if not traced and has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    _check(input, "input")
    _check(target, "target")
    if weight is not None:
        _check(weight, "weight")
        if weight.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("no gradient is computed for weight: detach it")
    if target.dtype in _NAMES and ignore_index >= 0:
        raise ValueError("ignore_index is for class indices, and target holds probabilities")
    if _transforms_active() or (not traced and forward_ad._current_level >= 0):
        return _torch_cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    keep = _NOTHING
    if (input.requires_grad or target.requires_grad) and torch.is_grad_enabled():
        late = target.requires_grad or input.dtype is torch.float16
        keep = _LSE if late else _GRADIENT
    wide = input.dtype in _HALVES and torch.is_autocast_enabled("cpu")
    options = (reduction, ignore_index, label_smoothing, keep, wide)
    if traced or not plain or _dispatch_modes() or _tracing_state() is not None:
        return torch.ops.pyce.cross_entropy(input, target, weight, *options)[0]
    if keep is _NOTHING:
        return _run(input, target, weight, *options)[0]
    return _apply(input, target, weight, options)[0]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc]
    """`torch.nn.CrossEntropyLoss` on pyce's kernels: the same module with the same state.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As for `cross_entropy`. `weight` is a buffer: it moves and is saved with the module.

    Raises
    ------
    ValueError
        For `size_average` or `reduce`; the others are checked when it is called.

    Examples
    --------
    >>> criterion = pyce.torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> print(round(criterion(torch.zeros(4, 10), torch.arange(4)).item(), 4))  # log 10
    2.3026
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        if size_average is not None or reduce is not None:
            raise ValueError("size_average and reduce are not supported: say reduction= instead")
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss, as of `cross_entropy` with the module's options.

        Parameters
        ----------
        input, target : Tensor
            As for `cross_entropy`; so are errors.

        Returns
        -------
        Tensor
            Likewise.

        Examples
        --------
        >>> criterion = pyce.torch.CrossEntropyLoss(reduction="none")
        >>> criterion(torch.zeros(2, 10), torch.tensor([3, -100])).tolist()
        [2.3025851249694824, 0.0]
        """
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


_patches = 0
_patched_over: Any = None
_patch_lock = threading.Lock()


@contextmanager
def patched() -> Iterator[None]:
    """Put `cross_entropy` in the place of PyTorch's inside a with block.

    `torch.nn.functional.cross_entropy` is replaced, and with it what `torch.nn.CrossEntropyLoss`
    calls, so that a script gains without edits. It is so for all threads of the process; blocks may
    nest and overlap, and the last one to end puts back what the first one found. A name that was
    bound before, by ``from torch.nn.functional import cross_entropy``, stays PyTorch's.

    Examples
    --------
    >>> criterion = torch.nn.CrossEntropyLoss()
    >>> with pyce.torch.patched():
    ...     loss = criterion(torch.zeros(4, 10), torch.arange(4))
    """
    global _patches, _patched_over
    functional = torch.nn.functional
    with _patch_lock:
        if not _patches:
            _patched_over = functional.cross_entropy
            functional.cross_entropy = cross_entropy
        _patches += 1
    try:
        yield
    finally:
        with _patch_lock:
            _patches -= 1
            if not _patches:
                functional.cross_entropy = _patched_over
                _patched_over = None


# ---------------------------------------------------------------------------------------------
# Checks: of what is PyTorch's; shapes, dtypes and values are `_arguments`' to check


def _check(tensor: Any, what: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_cpu:
        raise ValueError(f"{what} must be on the CPU, and is on {tensor.device}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(f"{what} must be a dense (strided) tensor, and is {layout}")


# ---------------------------------------------------------------------------------------------
# The computation


def _run(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    keep: str,
    wide: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss, and what `keep` says."""
    if (
        keep != _LSE
        and target.dtype is torch.int64
        and input.is_contiguous()
        and target.is_contiguous()
    ):
        found = _at_addresses(
            input, target, weight, reduction, ignore_index, label_smoothing, keep == _GRADIENT, wide
        )
        if found is not None:
            return found
    x = _array(input)
    options: dict[str, Any] = {
        "axis": 1 if x.ndim > 1 else 0,
        "weight": None if weight is None else _array(weight),
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    kept = None
    with _threads.at_most(torch.get_num_threads()):
        if keep == _GRADIENT:
            kept = _empty(input)
            loss, _ = pyce.cross_entropy_with_grad(x, _array(target), **options, out=_array(kept))
        elif keep == _LSE:
            loss, lse = pyce.cross_entropy(x, _array(target), **options, return_lse=True)
            kept = torch.from_numpy(lse)
        else:
            loss = pyce.cross_entropy(x, _array(target), **options)
    found = torch.from_numpy(np.asarray(loss))
    return found.to(torch.float32 if wide else input.dtype), kept


def _at_addresses(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    with_gradient: bool,
    wide: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """What nearly all calls ask for, without NumPy's arrays in between; else None.

    They would take a small batch as long as the computation. Whatever is out of order is left to
    the general way, which finds the words for it.
    """
    at_addresses = current().at_addresses
    shape = input.shape
    dtype = input.dtype
    if len(shape) == 2:
        inner = 1
        fits = target.dim() == 1 and target.numel() == shape[0]
    else:
        inner = math.prod(shape[2:])
        fits = len(shape) > 2 and target.shape == shape[:1] + shape[2:]
    address = _address(input, input.nbytes)
    labels = _address(target, target.nbytes)
    if (
        at_addresses is None
        or not fits
        or not (address and labels)
        or dtype not in _NAMES
        or input.is_neg()
        or target.is_neg()
        or reduction not in arguments.REDUCTIONS
        or not (label_smoothing == 0.0 or _is_fraction(label_smoothing))
        or not (ignore_index == -100 or _is_index(ignore_index))
    ):
        return None
    weights = 0
    if weight is not None:
        if (
            weight.dtype not in _NAMES
            or weight.shape != shape[1:2]
            or weight.is_neg()
            or not weight.is_contiguous()
            or not _address(weight, weight.nbytes)
        ):
            return None
        weight = weight.double()
        weights = weight.data_ptr()
    kept = _empty(input) if with_gradient else None
    of_all = reduction != "none"
    like = _LOSSES[dtype]
    loss = torch.empty_like(like) if of_all else like.new_empty(shape[:1] + shape[2:])
    done = at_addresses(
        dtype=_NAMES[dtype],
        reduction=reduction,
        outer=shape[0],
        classes=shape[1],
        inner=inner,
        logits=address,
        labels=labels,
        weight=weights,
        grad=kept.data_ptr() if kept is not None else 0,
        smoothing=float(label_smoothing),
        ignore_index=ignore_index,
        loss=loss.data_ptr(),
        most_threads=torch.get_num_threads,
    )
    if not done:
        return None
    return loss if wide or dtype not in _HALVES else loss.to(dtype), kept


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def _is_index(value: Any) -> bool:
    return type(value) is int and arguments.INDEX_LIMIT.min <= value <= arguments.INDEX_LIMIT.max


def _empty(input: Tensor) -> Tensor:
    """Memory for a gradient: C-contiguous, of the input's shape and dtype."""
    if input.nbytes < _HUGE:
        return torch.empty_like(input, memory_format=torch.contiguous_format)
    if input.dtype is torch.bfloat16:
        return torch.from_numpy(np.empty(input.shape, np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.empty(input.shape, _NAMES[input.dtype]))


def _address(tensor: Tensor, extent: int) -> int:
    """Where its elements lie, `extent` bytes; 0 where its storage does not hold them all."""
    address: int = tensor.data_ptr()
    storage = tensor.untyped_storage()
    begin: int = storage.data_ptr()
    return address if begin and address + extent <= begin + storage.nbytes() else 0


def _extent(tensor: Tensor) -> int:
    """Bytes from its first element to the end of its last."""
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return int((1 + steps) * tensor.itemsize)


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as a NumPy array."""
    tensor = tensor.detach().resolve_neg()
    if tensor.numel() and not _address(tensor, _extent(tensor)):
        raise ValueError("a tensor without memory: its storage was freed, cut or never made")
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "pyce.torch needs ml_dtypes here, for bfloat16: pip install 'pyce[torch]'"
        ) from error
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


# ---------------------------------------------------------------------------------------------
# Autograd


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """`_run` as autograd sees it.

    What is kept is an output too, though nobody outside gets it: so gradients of gradients can go
    through it, and nothing but it has to be kept.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any
    ) -> Any:
        outputs = _run(input, target, weight, *options)
        _keep(ctx, input, target, weight, options, outputs[1])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_kept: Tensor | None) -> Any:
        return *_backward(ctx, grad_loss, grad_kept), None, None


# autograd.Function.apply looks for torch.func's transforms, which we have seen to.
_apply = super(torch.autograd.Function, _CrossEntropy).apply


def _keep(
    ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any, kept: Any
) -> None:
    """Leave what the backward pass needs."""
    ctx.set_materialize_grads(False)
    ctx.options = options
    if options[3] == _LSE:
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(kept, target, weight, input)
    else:
        ctx.save_for_backward(kept, target, weight)


def _backward(ctx: Any, grad_loss: Tensor | None, grad_kept: Tensor | None) -> Any:
    """The gradients of input and target, from those of the loss and of what was kept."""
    saved = ctx.saved_tensors
    if len(saved) == 3:
        kept = saved[0]
        second = None
        if grad_kept is not None:
            second = _Rows(*saved, *ctx.options[:3]).curvature(kept, grad_kept)
        if grad_loss is None:
            return second, None
        gradient = _scaled(kept, grad_loss)  # last, for it may overwrite what was kept
        return gradient if second is None else gradient + second, None
    if grad_loss is None:
        return None, None
    kept, target, weight, input = saved
    options = ctx.options[:3]
    of_input = of_target = None
    if _differentiable(grad_loss):
        if ctx.needs_input_grad[0]:
            rows = _Rows(input, target, weight, *options)
            of_input = rows.gradient(input, grad_loss)
    elif ctx.needs_input_grad[0]:
        watched = _is_compiling() or _dispatch_modes() or type(input) not in _PLAIN
        gradient = torch.ops.pyce.cross_entropy_backward if watched else _operator_backward
        of_input = gradient(grad_loss, input, target, kept, weight, *options)
    if ctx.needs_input_grad[1]:
        rows = _Rows(input, target, weight, *options)
        of_target = rows.gradient_of_target(input, grad_loss)
    return of_input, of_target


def _differentiable(grad_loss: Tensor) -> bool:
    """Whether the backward pass must be in operations that PyTorch can differentiate and batch."""
    if torch.is_grad_enabled():
        return True
    if _is_compiling():
        return False
    # Last, gradients that autograd.grad batches itself, by is_grads_batched.
    return bool(_transforms_active() or forward_ad._current_level >= 0 or _is_batched(grad_loss))


# Whether the graph that is being walked will be walked again. Where PyTorch can't tell, it may be.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _scaled(kept: Tensor, grad_loss: Tensor) -> Tensor:
    """grad_loss · kept, in `kept` itself where nobody needs that any more."""
    free = not (
        _is_compiling()
        or _differentiable(grad_loss)
        or type(kept) is not Tensor
        or _graph_is_kept()
    )
    rows = grad_loss.dim()
    if not free or (rows and (any(grad_loss.stride()) or not grad_loss.numel())):
        factor = grad_loss.unsqueeze(1) if rows else grad_loss
        return kept.mul_(factor) if free else (kept * factor).to(kept.dtype)
    # The losses of rows, summed, have one number spread out over them.
    number = (grad_loss[(0,) * rows] if rows else grad_loss).item()
    return kept if number == 1.0 else kept.mul_(number)


class _Rows:
    """The rows in PyTorch's own differentiable operations, for what needs no speed.

    With the target's row t (smoothed, times the class weights), its sum T and the row's share s in
    the reduction, the gradient is g = s · (T · p − t).
    """

    def __init__(
        self,
        like: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
    ) -> None:
        self.axis = axis = 1 if like.dim() > 1 else 0
        classes = like.shape[axis]
        self.dtype = dtype = like.dtype if like.dtype is torch.float64 else torch.float32
        shape = [1] * like.dim()
        shape[axis] = classes
        weights = (
            like.new_ones(classes, dtype=dtype) if weight is None else weight.detach().to(dtype)
        )
        self.weights = weights.reshape(shape)
        self.kept = 1.0 - label_smoothing
        share: Any = 1.0
        if target.is_floating_point():
            self.target = self.weights * (self.kept * target.to(dtype) + label_smoothing / classes)
            if reduction == "mean":
                share = 1.0 / max(1, like.numel() // classes)
        else:
            index = target.long().unsqueeze(axis)
            counts = (index != ignore_index).to(dtype)
            index = torch.where(index != ignore_index, index, 0)
            own = self.weights.expand(like.shape).gather(axis, index) * counts
            even = self.weights * (label_smoothing / classes)
            self.target = (even * counts).scatter_add(axis, index, self.kept * own)
            if reduction == "mean":
                share = torch.where(counts == 0, 0.0, 1.0 / own.sum())
        self.share = share
        self.total = self.target.sum(axis, keepdim=True)

    def gradient(self, input: Tensor, grad_loss: Tensor) -> Tensor:
        """grad_loss · ∂loss/∂input."""
        p = input.to(self.dtype).softmax(self.axis)
        gradient = self._spread(grad_loss) * self.share * (self.total * p - self.target)
        return gradient.to(input.dtype)

    def gradient_of_target(self, input: Tensor, grad_loss: Tensor) -> Tensor:
        """grad_loss · ∂loss/∂target, of probabilities."""
        log_p = input.to(self.dtype).log_softmax(self.axis)
        factor = self._spread(grad_loss) * (-self.share * self.kept)
        return (factor * self.weights * log_p).to(input.dtype)

    def curvature(self, gradient: Tensor, direction: Tensor) -> Tensor:
        """∂⟨gradient, direction⟩/∂input = s · T · p · (direction − ⟨p, direction⟩).

        From the gradient alone: s · T · p = gradient + s · t. Without a target, T = 0, all is 0.
        """
        p = gradient.to(self.dtype) + self.share * self.target
        total = self.share * self.total
        direction = direction.to(self.dtype)
        mean = (p * direction).sum(self.axis, keepdim=True) / torch.where(total == 0, 1.0, total)
        return (p * (direction - mean)).to(gradient.dtype)

    def _spread(self, grad_loss: Tensor) -> Tensor:
        """The gradient of the loss, beside the rows."""
        row = grad_loss.to(self.dtype)
        return row.unsqueeze(self.axis) if row.dim() or self.target.dim() == 1 else row


# ---------------------------------------------------------------------------------------------
# Operators


def _operator(*inputs: Any) -> tuple[Tensor, Tensor]:
    loss, kept = _run(*inputs)
    return loss, loss.new_empty((0,), dtype=torch.float32) if kept is None else kept


def _operator_fake(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    keep: str,
    wide: bool,
) -> tuple[Tensor, Tensor]:
    """The shapes of what `_operator` gives."""
    axis = 1 if input.dim() > 1 else 0
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    loss = input.new_empty(
        rows if reduction == "none" else (), dtype=torch.float32 if wide else input.dtype
    )
    if keep == _GRADIENT:
        return loss, torch.empty_like(input, memory_format=torch.contiguous_format)
    return loss, (
        input.new_empty(rows, dtype=torch.float64)
        if keep == _LSE
        else input.new_empty((0,), dtype=torch.float32)
    )


def _operator_set_up(ctx: Any, inputs: Any, output: Any) -> None:
    input, target, weight, *options = inputs
    _keep(ctx, input, target, weight, options, output[1])


def _operator_autograd(ctx: Any, *gradients: Any) -> Any:
    return *_backward(ctx, *gradients), *(None,) * 6


def _operator_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    gradient = _empty(input)
    x = _array(input)
    number = grad_loss.to(torch.float64)
    with _threads.at_most(torch.get_num_threads()):
        pyce.cross_entropy_backward(
            number.numpy() if reduction == "none" else number.item(),
            x,
            _array(target),
            lse.numpy(),
            axis=1 if x.ndim > 1 else 0,
            weight=None if weight is None else _array(weight),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            out=_array(gradient),
        )
    return gradient


def _operator_backward_fake(grad_loss: Tensor, input: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


_OPTIONS = "Tensor? weight, str reduction, int ignore_index, float label_smoothing"
_forward_op = torch.library.custom_op(
    "pyce::cross_entropy",
    _operator,
    mutates_args=(),
    schema=f"(Tensor input, Tensor target, {_OPTIONS}, str keep, bool wide) -> (Tensor, Tensor)",
)
_forward_op.register_fake(_operator_fake)
_forward_op.register_autograd(_operator_autograd, setup_context=_operator_set_up)
_backward_op = torch.library.custom_op(
    "pyce::cross_entropy_backward",
    _operator_backward,
    mutates_args=(),
    schema=f"(Tensor grad_loss, Tensor input, Tensor target, Tensor lse, {_OPTIONS}) -> Tensor",
)
_backward_op.register_fake(_operator_backward_fake)
