"""What a rank of `test_torch_ddp.py` runs: steps of a small model, and losses of `DTensor`s."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import pyce.torch

FEATURES, HIDDEN, CLASSES = 6, 8, 11
STEPS = 2


class Model(torch.nn.Module):
    """A body and a head; with `loss`, the loss is part of the forward pass."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(FEATURES, HIDDEN)
        self.head = torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x, loss=None):
        hidden = torch.tanh(self.body(x))
        if loss is not None:
            return loss(hidden, self.head.weight, self.head.bias)
        return self.head(hidden)


def made(dtype):
    """The same model on every rank."""
    torch.manual_seed(0)
    return Model().to(dtype)


def mean(model, x, y, rows):
    """The mean of parts of equal size, in which no row is ignored."""
    return pyce.torch.cross_entropy(model(x), y.clamp(min=0)) * (len(y) / rows)


def function(model, x, y, rows):
    loss = pyce.torch.cross_entropy(model(x), y, label_smoothing=0.1, reduction="sum")
    return loss / rows


def module(model, x, y, rows):
    weight = torch.linspace(0.5, 2, CLASSES, dtype=x.dtype)
    return pyce.torch.CrossEntropyLoss(weight=weight, reduction="sum")(model(x), y) / rows


def patched(model, x, y, rows):
    with pyce.torch.patched() as patch:
        loss = F.cross_entropy(model(x), y, reduction="sum") / rows
    assert patch.calls == 1
    return loss


def linear(model, x, y, rows):
    def loss(hidden, weight, bias):
        return pyce.torch.linear_cross_entropy(
            hidden, weight, y, linear_bias=bias, normalizer=rows, chunk_bytes=200
        )

    return model(x, loss)


LOSSES = {each.__name__: each for each in (mean, function, module, patched, linear)}


def train(rank, ranks, batches, cases):
    """For each (loss, kind, dtype), and each step: its loss, and the gradients of all ranks."""
    return [steps(rank, ranks, batches, *case) for case in cases]


def steps(rank, ranks, batches, loss, kind, dtype):
    model = made(dtype)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = []
    for x, y in batches:
        x, y = (part.chunk(ranks)[rank] for part in (x.to(dtype), y))
        # The rows of the whole batch, divided by the number of ranks: each averages over all.
        rows = len(y)
        parts = [(x, y)]
        if kind == "accumulate":
            parts = list(zip(x.split(3), y.split(3), strict=True))
        total = torch.zeros((), dtype=dtype)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else model.no_sync():
                value = LOSSES[loss](model, *part, rows)
                value.backward()
            total += value.detach() / ranks
        dist.all_reduce(total)
        gradients = [each.grad for each in model.parameters()]
        if kind == "fsdp":
            gradients = [each.full_tensor() for each in gradients]
        found.append((total, [each.clone() for each in gradients]))
        optimizer.step()
        optimizer.zero_grad()
    return found


def expected(batches, loss):
    """The same in one process, by PyTorch's own function in float64."""
    model = made(torch.float64)
    options = {
        "mean": {},
        "function": {"label_smoothing": 0.1},
        "module": {"weight": torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)},
    }.get(loss, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = []
    for x, y in batches:
        target = y.clamp(min=0) if loss == "mean" else y
        value = F.cross_entropy(model(x), target, reduction="sum", **options) / len(y)
        value.backward()
        found.append((value.detach(), [each.grad.clone() for each in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    return found


def distributed_logits(rank, ranks):
    """PyTorch's own function runs for a DTensor, also under its `loss_parallel`."""
    with pyce.torch.patched() as patch:
        check_distributed_logits(ranks, F.cross_entropy)
        assert patch.calls == 1  # for the expected loss
    check_distributed_logits(ranks, pyce.torch.cross_entropy)


def check_distributed_logits(ranks, function):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = init_device_mesh("cpu", (ranks,))
    torch.manual_seed(0)
    logits, target = torch.randn(8, 6), torch.arange(8) % 6
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf, target)
    expected.backward()

    def step(placement):
        part = distribute_tensor(logits.clone(), mesh, [placement]).requires_grad_()
        to = placement if placement == Shard(0) else Replicate()
        loss = function(part, distribute_tensor(target, mesh, [to]))
        loss.backward()
        whole = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
        torch.testing.assert_close(whole, expected.detach())
        torch.testing.assert_close(part.grad.full_tensor(), leaf.grad)

    for placement in (Shard(0), Replicate()):
        step(placement)
    with loss_parallel():
        step(Shard(1))
