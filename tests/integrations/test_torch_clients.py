"""Programs that use pyce.torch as part of something larger: processes, shards, workers."""

import pytest

torch = pytest.importorskip("torch")

# Two processes, each with half of a batch. They communicate through a file.
RANKS = """
import sys, warnings
import torch, torch.distributed as dist, torch.nn.functional as F
import torch.multiprocessing as mp

warnings.simplefilter("ignore")
torch.set_num_threads(1)

def data():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    return model, torch.randn(8, 6), torch.randint(4, (8,))

def loss_and_grads(model, x, y):
    F.cross_entropy(model(x), y).backward()
    return [p.grad for p in model.parameters()]

def check(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        got = got.full_tensor() if hasattr(got, "full_tensor") else got
        torch.testing.assert_close(got, wanted)

def replicated(rank, expected):
    from torch.nn.parallel import DistributedDataParallel
    model, x, y = data()
    half = slice(4 * rank, 4 * rank + 4)
    check(loss_and_grads(DistributedDataParallel(model), x[half], y[half]), expected)

def sharded(rank, expected):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    model, x, y = data()
    half = slice(4 * rank, 4 * rank + 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    check(loss_and_grads(model, x[half], y[half]), expected)

def distributed_logits(rank, function):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import loss_parallel
    mesh = init_device_mesh("cpu", (2,))
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

def run(rank, file):
    import pyce.torch
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model, x, y = data()
    expected = loss_and_grads(model, x, y)
    with pyce.torch.patched() as patch:
        replicated(rank, expected)
        sharded(rank, expected)
        assert patch.calls == 2, patch.calls
        distributed_logits(rank, F.cross_entropy)
    distributed_logits(rank, pyce.torch.cross_entropy)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(run, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch is built without it")
def test_two_processes(run_python, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(RANKS, encoding="utf-8")
    run_python(str(program), str(tmp_path / "store"))


LOADER = """
import torch, pyce, pyce.torch

class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        logits = torch.full((4, 3), float(i), requires_grad=True)
        loss = pyce.torch.cross_entropy(logits, torch.arange(4) % 3)
        loss.backward()
        return loss.item(), logits.grad, pyce.get_num_threads()

if __name__ == "__main__":
    own = pyce.get_num_threads()
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            Losses(), batch_size=2, num_workers=1, multiprocessing_context=method
        )
        for losses, grads, threads in loader:
            assert torch.allclose(losses.float(), torch.tensor(3.0).log())
            assert grads.shape == (2, 4, 3)
            assert set(threads.tolist()) == {1}, threads
    assert pyce.get_num_threads() == own
"""


def test_workers_of_a_data_loader_use_one_thread(run_python, tmp_path):
    program = tmp_path / "loader.py"
    program.write_text(LOADER, encoding="utf-8")
    run_python("-W", "ignore", str(program))
