"""Data-parallel training: a classifier of handwritten digits, on several processes.

    torchrun --nproc-per-node 2 examples/ddp.py
    python examples/ddp.py
    python examples/ddp.py --help

Every process has the whole model and a part of each batch. DistributedDataParallel averages the
gradients of the processes. So that the average is the gradient of the batch's mean loss, however
the batch was cut, each process multiplies the sum of its losses by the number of processes and
divides it by the number of rows of the whole batch. The training is then the same on any number of
processes, up to rounding.
"""

from __future__ import annotations

import argparse
import os
from time import perf_counter

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential
from torch.nn.parallel import DistributedDataParallel

import pyce.torch


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) and labels (n,) for training, then those for the test: every fifth."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = (images / 16).float()
    held_out = torch.arange(len(labels)) % 5 == 0
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total(number: Tensor) -> float:
    """The sum of a number over all processes."""
    number = number.clone()
    if dist.is_initialized():
        dist.all_reduce(number)
    return number.item()


def train(options: argparse.Namespace) -> float:
    """Train on this process's rows; returns the accuracy on held-out images, on every process."""
    rank, ranks = 0, 1
    if dist.is_initialized():
        rank, ranks = dist.get_rank(), dist.get_world_size()

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    images, labels, test_images, test_labels = digits()
    torch.manual_seed(options.seed)  # the same weights and batches on every process
    model: Module = Sequential(Linear(64, options.width), ReLU(), Linear(options.width, 10))
    if ranks > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    start = perf_counter()
    for epoch in range(options.epochs):
        losses = torch.zeros((), dtype=torch.float64)
        for batch in torch.randperm(len(labels)).split(options.batch):
            rows = batch[rank::ranks]
            logits = model(images[rows])
            loss = pyce.torch.cross_entropy(logits, labels[rows], reduction="sum")
            optimizer.zero_grad()
            (loss * (ranks / len(batch))).backward()
            optimizer.step()
            losses += loss.detach()
        say(f"epoch {epoch + 1}/{options.epochs}: loss {total(losses) / len(labels):.4f}")
    seconds = perf_counter() - start
    with torch.no_grad():
        found = model(test_images[rank::ranks]).argmax(1)
    accuracy = total((found == test_labels[rank::ranks]).sum()) / len(test_labels)
    say(
        f"accuracy on {len(test_labels)} held-out images: {accuracy:.4f}. Processes: {ranks}, "
        f"threads of each: {torch.get_num_threads()}. Training took {seconds:.1f} s."
    )
    return accuracy


def main(options: argparse.Namespace) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # torchrun sets OMP_NUM_THREADS=1 for each process unless it is set.
    torch.set_num_threads(options.threads or max(1, processors() // here))
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    try:
        train(options)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python examples/ddp.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--epochs", type=int, default=20, help="default: %(default)s")
    add("--batch", type=int, default=64, help="rows, default: %(default)s")
    add("--width", type=int, default=128, help="default: %(default)s")
    add("--rate", type=float, default=2e-3, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--threads", type=int, help="of each process; default: its part of the processors")
    return made


if __name__ == "__main__":
    main(parser().parse_args())
