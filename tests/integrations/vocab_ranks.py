"""What a rank of `test_torch_vocab_parallel.py` runs, and how ranks are started and joined."""

import datetime
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import pyce
import pyce.torch
from pyce.torch import _linear_layer

TIMEOUT = datetime.timedelta(seconds=200)


def run(ranks, work, *arguments, lost=()):
    """The results of work(rank, ranks, *arguments) on each of some ranks of gloo.

    Those in `lost` are expected to end without a result, which is None.
    """
    # Imports PyTorch once for all ranks.
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed.tensor"])
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _start, (ranks, folder, work, arguments), ranks, join=False, start_method="forkserver"
        )
        for process in context.processes if lost else ():
            process.join(2 * TIMEOUT.total_seconds())
        while not lost and not context.join():
            pass
        paths = [Path(folder, str(rank)) for rank in range(ranks)]
        return [torch.load(path) if path.exists() else None for path in paths]


def _start(rank, ranks, folder, work, arguments):
    torch.set_num_threads(1)
    pyce.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    torch.save(work(rank, ranks, *arguments), f"{folder}/{rank}")
    dist.destroy_process_group()


def shards_of(tensor, bounds, rank):
    """A copy of the columns of one rank, as a parameter would be."""
    return tensor[..., bounds[rank] : bounds[rank + 1]].clone()


def losses(rank, ranks, backend, problems):
    """Loss, gradient and number of collectives for each (logits, target, bounds, options)."""
    calls = []
    gather = dist.all_gather
    dist.all_gather = lambda *args, **options: (calls.append(1), gather(*args, **options))
    found = []
    with pyce.use_backend(backend):
        for logits, target, bounds, options in problems:
            x = shards_of(logits, bounds, rank).requires_grad_()
            t = shards_of(target, bounds, rank) if target.is_floating_point() else target
            calls.clear()
            loss = pyce.torch.vocab_parallel_cross_entropy(x, t, **options)
            forward = len(calls)
            (loss * torch.linspace(1, 2, loss.numel()).reshape(loss.shape)).sum().backward()
            assert len(calls) == forward
            with torch.no_grad():
                again = pyce.torch.vocab_parallel_cross_entropy(x, t, **options)
            torch.testing.assert_close(again, loss.detach(), rtol=0, atol=0, equal_nan=True)
            found.append((loss.detach(), x.grad, forward))
    dist.all_gather = gather
    return found


def linear(rank, ranks, backend, problems):
    """Loss, gradients and chunks for each (input, weight, bias, target, bounds, options)."""
    chunks = _linear_layer.Layer.chunks
    sizes = []

    def watched(layer):
        for part, logits in chunks(layer):
            sizes.append(logits.nbytes)
            yield part, logits

    _linear_layer.Layer.chunks = watched
    found = []
    with pyce.use_backend(backend):
        for input, weight, bias, target, bounds, options in problems:
            x = input.clone().requires_grad_()
            here = slice(bounds[rank], bounds[rank + 1])
            w = weight[here].clone().requires_grad_()
            b = None if bias is None else bias[here].clone().requires_grad_()
            t = shards_of(target, bounds, rank) if target.is_floating_point() else target
            sizes.clear()
            loss = pyce.torch.vocab_parallel_linear_cross_entropy(x, w, t, linear_bias=b, **options)
            seen = list(sizes)
            (3 * loss).backward()
            with torch.no_grad():
                again = pyce.torch.vocab_parallel_linear_cross_entropy(
                    x, w, t, linear_bias=b, **{**options, "reduction": "none"}
                )
            of_bias = None if b is None else b.grad
            found.append((loss.detach(), again, x.grad, w.grad, of_bias, seen))
    _linear_layer.Layer.chunks = chunks
    return found


def linear_errors(rank, ranks, input, weight, target):
    """Errors of calls in which rank 1 differs, and that of a rank that fails after an exchange."""
    call = pyce.torch.vocab_parallel_linear_cross_entropy
    other = rank == 1
    found = [
        _error_of(call, input, weight[:, :-1] if other else weight, target),
        _error_of(call, input.clone().requires_grad_(other), weight, target),
        _error_of(call, input, weight, target, softcap=2.0 if other else None),
        _error_of(call, input, weight, target + 100),
        _error_of(call, input, weight, target, chunk_bytes=0 if other else None),
        _error_of(call, input, weight.clone().requires_grad_(), target, reduction="none"),
        _error_of(call, input, weight, target, softcap=torch.tensor(2.0, requires_grad=other)),
        # One rank calls the other function.
        _error_of(pyce.torch.vocab_parallel_cross_entropy, input @ weight.T, target)
        if other
        else _error_of(call, input, weight, target),
        # Numbers of other types than those of Python are numbers, on one rank alone as well.
        _error_of(call, input, weight, target, softcap=np.float32(2) if other else 2)
        or ("none", ""),
        _error_of(call, input, weight, target, logit_scale=torch.tensor(2.0 if other else 3.0)),
    ]
    add = _linear_layer.Layer.add

    def fails(*arguments):
        if other:
            raise MemoryError("no memory")
        add(*arguments)

    _linear_layer.Layer.add = fails
    weight = weight.clone().requires_grad_()
    for rows_of_chunk in (1, len(input)):
        size = rows_of_chunk * len(weight) * weight.itemsize
        found.append(_error_of(call, input, weight, target, chunk_bytes=size))
    _linear_layer.Layer.add = add
    # All ranks are still together.
    loss = call(input, weight, target)
    ignored = call(input, weight, torch.full_like(target, -100), reduction="sum")
    (loss + ignored).backward()
    return found, loss.item(), ignored.item(), weight.grad


def linear_dtensor(rank, ranks, input, weight, target):
    """Loss and gradients of a layer whose weight is a DTensor, and those of one under autocast."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    x = distribute_tensor(input, mesh, [Replicate()]).requires_grad_()
    w = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
    loss = pyce.torch.vocab_parallel_linear_cross_entropy(x, w, target)
    loss.backward()
    found = loss.detach(), x.grad.to_local(), w.grad.to_local()
    x, w = input.bfloat16().requires_grad_(), w.detach().to_local().requires_grad_()
    with torch.autocast("cpu"):
        loss = pyce.torch.vocab_parallel_linear_cross_entropy(x, w, target)
    loss.backward()
    return *found, loss.detach(), x.grad, w.grad


def _error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def errors(rank, ranks, calls):
    """Type and message of the errors of some calls, for each rank its (logits, target, options).

    Options of another name than the function's are functions that the call runs in.
    """
    found = []
    for call in calls:
        logits, target, options = call[rank]
        found.append(error_of(logits, target, **options))
    # All ranks are still together.
    loss = pyce.torch.vocab_parallel_cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
    found.append(round(loss.item(), 6))
    return found


def error_of(logits, target, transform=None, **options):
    """Type and message of the error of one call, which may run in a transform of `torch.func`."""

    def call(x):
        return pyce.torch.vocab_parallel_cross_entropy(x, target, **options).sum()

    try:
        call(logits) if transform is None else getattr(torch.func, transform)(call)(logits)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def loss_of_the_living(rank, ranks, problem):
    """The error that the other ranks get when the last one is killed instead of calling."""
    logits, target = problem
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        pyce.torch.vocab_parallel_cross_entropy(logits, target)
    except RuntimeError as error:
        return type(error).__name__
    return None


def distributed_tensor(rank, ranks, logits, target, probs):
    """Loss and gradient of a DTensor with the placement of `loss_parallel`; and errors."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    x = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    replicated = distribute_tensor(logits, mesh, [Replicate()])
    labels = distribute_tensor(target, mesh, [Replicate()])
    found = []
    for t in (target, labels, distribute_tensor(probs, mesh, [Shard(1)])):
        x.grad = None
        loss = pyce.torch.vocab_parallel_cross_entropy(x, t, reduction="mean")
        loss.backward()
        assert isinstance(x.grad, DTensor)
        assert tuple(x.grad.placements) == (Shard(1),)
        found.append((loss.detach(), x.grad.to_local()))
    mesh_of_two = init_device_mesh("cpu", (ranks, 1))
    turned = distribute_tensor(logits, DeviceMesh("cpu", [1, 0]), [Shard(1)])
    of_rows = distribute_tensor(target, mesh, [Shard(0)])
    local = x.detach().to_local()
    messages = [
        error_of(distribute_tensor(logits, mesh, [Shard(0)]), target),
        error_of(distribute_tensor(logits, mesh_of_two, [Shard(1), Replicate()]), target),
        # One rank alone:
        error_of(replicated if rank == 0 else local, target),
        error_of(x, of_rows if rank == 1 else target),
        error_of(x, distribute_tensor(probs, mesh, [Replicate()])),
        error_of(turned, target),
    ]
    return found, messages


def of_some_ranks(rank, ranks, logits, target):
    """Loss and gradient of a DTensor on a mesh that has all ranks but the last; its error."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = DeviceMesh("cpu", list(range(ranks - 1)))
    if rank == ranks - 1:
        return error_of(logits, target, group=dist.GroupMember.NON_GROUP_MEMBER)
    x = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    loss = pyce.torch.vocab_parallel_cross_entropy(x, target, reduction="mean")
    loss.backward()
    return loss.detach(), x.grad.to_local()


def precisions(rank, ranks, logits, target):
    """Loss and gradient where rank 0 alone needs one, and the error where dtypes differ; the loss
    under autocast.
    """
    x = logits.clone().requires_grad_(rank == 0)
    loss = pyce.torch.vocab_parallel_cross_entropy(x, target)
    if rank == 0:
        loss.sum().backward()
    error = error_of(x.detach() if rank else x.detach().float(), target)
    with torch.autocast("cpu"):
        wide = pyce.torch.vocab_parallel_cross_entropy(x.detach(), target)
    return loss.detach(), x.grad, error, wide


def hooked(rank, ranks, logits, target):
    """Whether a backward pass leaves the tensors of saved-tensor hooks as they are."""
    saved = []

    def pack(tensor):
        saved.append((tensor, tensor.clone()))
        return tensor

    x = logits.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = pyce.torch.vocab_parallel_cross_entropy(x, target, reduction="sum")
    (3 * loss).backward()
    return [torch.equal(tensor, copy) for tensor, copy in saved], x.grad


def compiled(rank, ranks, logits, target):
    """Loss and gradient inside torch.compile; and what `hooked` returns."""
    found = hooked(rank, ranks, logits, target)

    def step(x):
        return pyce.torch.vocab_parallel_cross_entropy(2 * x, target).sum()

    x = logits.requires_grad_()
    loss = torch.compile(step, backend="eager")(x)
    loss.backward()
    return loss.detach(), x.grad, *found
