"""pyce's losses in data-parallel training, on two and three ranks of gloo, against one process.

Each rank has a part of the rows; of the last part, all or all but one are ignored. The losses are
divided by the number of rows of a part, so that the average over the ranks, which
DistributedDataParallel and `fully_shard` take of the gradients, is that of the whole batch.
"""

import pytest

torch = pytest.importorskip("torch")

import ddp_ranks  # noqa: E402
import vocab_ranks  # noqa: E402

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

KINDS = ("ddp", "accumulate", "fsdp")
CASES = [(loss, kind, torch.float64) for loss in ddp_ranks.LOSSES for kind in KINDS]
CASES += [(loss, kind, torch.float32) for loss in ("function", "linear") for kind in KINDS]
# Of the largest number of a gradient, in units of its dtype's epsilon. The sums have another order.
MOST = 8


def batches():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(ddp_ranks.STEPS):
        x = torch.randn(36, ddp_ranks.FEATURES, generator=generator).double()
        y = torch.randint(0, ddp_ranks.CLASSES, (36,), generator=generator)
        y[5] = y[-18:] = -100
        y[18] = 3  # of the middle one of three parts
        found.append((x, y))
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_get_the_gradients_of_one_process(ranks):
    made = batches()
    of_ranks = vocab_ranks.run(ranks, ddp_ranks.train, made, CASES)
    exact = {loss: ddp_ranks.expected(made, loss) for loss in ddp_ranks.LOSSES}
    for case, *found in zip(CASES, *of_ranks, strict=True):
        loss, _, dtype = case
        for step, (right, gradients) in enumerate(exact[loss]):
            values = [of_rank[step] for of_rank in found]
            for value, actual in values:
                assert torch.equal(value, values[0][0]), case
                assert error(value, right) <= MOST, (case, step, error(value, right))
                for own, first, one in zip(actual, values[0][1], gradients, strict=True):
                    assert torch.equal(own, first), case
                    assert own.dtype is dtype, case
                    assert error(own, one) <= MOST, (case, step, error(own, one))


def error(actual, exact):
    """The largest difference, in epsilons of the dtype and of the largest number."""
    largest = (actual.double() - exact).abs().max() / exact.abs().max()
    return largest.item() / torch.finfo(actual.dtype).eps


def test_pytorch_computes_the_loss_of_distributed_logits():
    vocab_ranks.run(2, ddp_ranks.distributed_logits)
