"""Programs that use pyce.torch as part of something larger: the workers of a DataLoader."""

import pytest

torch = pytest.importorskip("torch")

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
