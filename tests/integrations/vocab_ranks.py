"""What a rank of `test_torch_vocab_parallel.py` runs, and how ranks are started and joined."""

import datetime
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import pyce
import pyce.torch

TIMEOUT = datetime.timedelta(seconds=20)


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


def errors(rank, ranks, calls):
    """Type and message of the errors of some calls, for each rank its (logits, target, options)."""
    found = []
    for call in calls:
        logits, target, options = call[rank]
        try:
            pyce.torch.vocab_parallel_cross_entropy(logits, target, **options)
        except Exception as error:
            found.append((type(error).__name__, str(error)))
        else:
            found.append(None)
    # All ranks are still together.
    loss = pyce.torch.vocab_parallel_cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
    found.append(round(loss.item(), 6))
    return found


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


def distributed_tensor(rank, ranks, logits, target):
    """Loss and gradient of a DTensor with the placement of `loss_parallel`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    x = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    loss = pyce.torch.vocab_parallel_cross_entropy(x, target, reduction="mean")
    loss.backward()
    assert isinstance(x.grad, DTensor)
    assert tuple(x.grad.placements) == (Shard(1),)
    try:
        rows = distribute_tensor(logits, mesh, [Shard(0)])
        pyce.torch.vocab_parallel_cross_entropy(rows, target)
    except ValueError as error:
        message = str(error)
    return loss.detach(), x.grad.to_local(), message


def compiled(rank, ranks, logits, target):
    """Loss and gradient inside torch.compile."""

    def step(x):
        return pyce.torch.vocab_parallel_cross_entropy(2 * x, target).sum()

    x = logits.requires_grad_()
    loss = torch.compile(step, backend="eager")(x)
    loss.backward()
    return loss.detach(), x.grad
