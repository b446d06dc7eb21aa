"""`pyce.torch.vocab_parallel_cross_entropy` on 1, 2 and 3 ranks of gloo against one process."""

import pytest

torch = pytest.importorskip("torch")

import vocab_ranks  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import pyce.torch  # noqa: E402

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

ROWS, CLASSES = 6, 5000
ALIGNED = {1: (0, 5000), 2: (0, 2048, 5000), 3: (0, 2048, 4096, 5000)}
UNEQUAL = {1: (0, 5000), 2: (0, 1, 5000), 3: (0, 700, 700, 5000)}
SMALL = {1: (0, 10), 2: (0, 3, 10), 3: (0, 10, 10, 10)}
OPTIONS = (
    {},
    {"reduction": "mean"},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "mean", "lse_square_scale": 0.01, "ignore_index": 7},
)


def problems(ranks, cuts):
    """(logits, target, bounds, options) for each dtype and kind of target, in two dimensions."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    y[:2] = torch.tensor([7, -100])
    t = torch.rand(ROWS, CLASSES, generator=generator)
    t /= t.sum(1, keepdim=True)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for dtype, spread in zip(dtypes, (30, 1, 30, 1), strict=True):
        x = (torch.randn(ROWS, CLASSES, generator=generator) * spread).to(dtype)
        for options in OPTIONS:
            index = y.clamp(min=0) if "ignore_index" in options else y
            yield x, index, cuts[ranks], options
            if "ignore_index" not in options:
                yield x, t, cuts[ranks], options


def expected(logits, target, options):
    """Loss and gradient in one process."""
    x = logits.clone().requires_grad_()
    loss = pyce.torch.cross_entropy(x, target, **{"reduction": "none", **options})
    (loss * torch.linspace(1, 2, loss.numel()).reshape(loss.shape)).sum().backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_aligned_shards_have_the_bytes_of_one_process(ranks):
    if "c" not in pyce.backends():
        pytest.skip("without the C backend")
    made = list(problems(ranks, ALIGNED))
    of_ranks = vocab_ranks.run(ranks, vocab_ranks.losses, "c", made)
    for (x, target, _, options), *found in zip(made, *of_ranks, strict=True):
        loss, grad = expected(x, target, options)
        for loss_of_rank, _, collectives in found:
            assert torch.equal(loss_of_rank, loss)
            # Two ranks have states of different sizes.
            assert collectives == {1: 1, 2: 3, 3: 2}[ranks]
        parts = torch.cat([one[1] for one in found], 1)
        assert torch.equal(parts, grad)


@pytest.mark.parametrize(("ranks", "backend"), [(2, "numpy"), (3, "c")])
def test_any_shards_agree_with_pytorch_in_float64(ranks, backend):
    if backend not in pyce.backends():
        pytest.skip(f"without the {backend} backend")
    made = list(problems(ranks, UNEQUAL))
    x, y = made[0][0][:, :10].contiguous(), made[0][1].clamp(0, 9)
    made.append((x, y, SMALL[ranks], {}))
    # Two leading dimensions, padding columns, and no rows.
    made.append((x.view(2, 3, 10), y.clamp(max=7).view(2, 3), SMALL[ranks], {"vocab_size": 8}))
    made.append((x, x.softmax(1), SMALL[ranks], {"vocab_size": 8, "label_smoothing": 0.1}))
    made.append((x[:0], y[:0], SMALL[ranks], {"reduction": "sum"}))
    of_ranks = vocab_ranks.run(ranks, vocab_ranks.losses, backend, made)
    for (x, target, _, options), *found in zip(made, *of_ranks, strict=True):
        options = dict(options)
        size = options.pop("vocab_size", x.shape[-1])
        scale = options.pop("lse_square_scale", 0.0)
        z = x.double().clone().requires_grad_()
        flat = z.reshape(-1, x.shape[-1])[:, :size]
        t = target.reshape(-1)
        if target.is_floating_point():
            t = target[..., :size].double()
        loss = cross_entropy(flat, t, **{"reduction": "none", **options})
        if scale:
            valid = t != options.get("ignore_index", -100)
            loss = loss + scale * (flat.logsumexp(1) ** 2)[valid].mean()
        loss = loss.reshape(found[0][0].shape)
        (loss * torch.linspace(1, 2, loss.numel()).reshape(loss.shape)).sum().backward()
        epsilon = torch.finfo(x.dtype).eps
        for loss_of_rank, _, _ in found:
            assert torch.equal(loss_of_rank, found[0][0])
            close(loss_of_rank, loss.detach(), epsilon)
        close(torch.cat([one[1] for one in found], -1), z.grad, epsilon)


def close(actual, exact, epsilon):
    """Differences p − t cancel, here and in PyTorch's own result."""
    largest = exact.abs().max().item() if exact.numel() else 0.0
    rtol, atol = (
        max(8 * epsilon, 1e-13),
        4 * epsilon * max(largest, 1.0 if epsilon < 1e-15 else 0.0),
    )
    torch.testing.assert_close(actual.double(), exact, rtol=rtol, atol=atol)


def test_errors_are_raised_on_all_ranks():
    x, y = torch.randn(4, 5), torch.tensor([0, 9, -100, 3])
    fine = (x, y, {})
    large = torch.tensor([0, 2**63, 1, 3], dtype=torch.uint64)
    calls = {
        # On rank 0, on rank 1, and what both get.
        "label": ((x, y + 1, {}), (x, y + 1, {}), "IndexError", "row 1 is 10, outside"),
        "dtype": (fine, (x.double(), y, {}), "ValueError", "dtype of the logits is float64 on"),
        "rows": (fine, (x[:3], y[:3], {}), "ValueError", "(3,) on rank 1 and (4,) on rank 0"),
        "target": (fine, (x, y.clamp(min=0), {}), "ValueError", "the ranks differ: target"),
        "option": (fine, (x, y, {"label_smoothing": 0.5}), "ValueError", "label_smoothing is 0.5"),
        "shape": (fine, (x, y[:3], {}), "ValueError", "index target of shape (3,)"),
        "type": (fine, (x, None, {}), "TypeError", "target must be a tensor"),
        "integers": (fine, (x.long(), y, {}), "TypeError", "vocab_parallel_logits must be float16"),
        "smoothing": (fine, (x, y, {"label_smoothing": 2.0}), "ValueError", "[0, 1], got 2.0"),
        "size": ((x, y, {"vocab_size": 11}),) * 2 + ("ValueError", "vocab_size is 11"),
        "classes": ((x[:, :0], y, {}),) * 2 + ("ValueError", "at least one class"),
        "soft": (fine, (x, x.softmax(1), {}), "ValueError", "the ranks differ: target"),
        "gradient": (
            (x, x.softmax(1).requires_grad_(), {}),
            (x, x.softmax(1), {}),
            "NotImplementedError",
            "no gradient is computed for target",
        ),
        "both gradients": (
            (x.clone().requires_grad_(), x.softmax(1).requires_grad_(), {}),
            (x, x.softmax(1), {}),
            "NotImplementedError",
            "no gradient is computed for target",
        ),
        "gradient of a number": (
            fine,
            (x, y, {"label_smoothing": torch.tensor(0.5, requires_grad=True)}),
            "NotImplementedError",
            "no gradient is computed for label_smoothing",
        ),
        "transform": (
            fine,
            (x, y, {"transform": "grad"}),
            "NotImplementedError",
            "cannot be transformed",
        ),
        "batched": (
            (x[None], y, {"transform": "vmap"}),
            fine,
            "NotImplementedError",
            "cannot be transformed",
        ),
        "shape of indices": (
            fine,
            (x, y.float(), {}),
            "TypeError",
            "shaped like class indices",
        ),
        "large": ((x, large, {}),) * 2 + ("IndexError", f"row 1 is {2**63}, outside the valid"),
        "ignored": (
            (x, x.softmax(1), {"ignore_index": None}),
            (x, x.softmax(1), {}),
            "TypeError",
            "ignore_index must be an integer",
        ),
    }
    found = vocab_ranks.run(2, vocab_ranks.errors, [(a, b) for a, b, _, _ in calls.values()])
    for of_rank in found:
        assert of_rank.pop() == pytest.approx(1.386294)
        for (name, (_, _, kind, message)), got in zip(calls.items(), of_rank, strict=True):
            assert got is not None, name
            assert got[0] == kind, (name, got)
            assert message in got[1], (name, got)


def test_a_killed_rank_ends_the_others():
    x, y = torch.zeros(4, 5), torch.tensor([0, 9, -100, 3])
    first, last = vocab_ranks.run(2, vocab_ranks.loss_of_the_living, (x, y), lost=(1,))
    assert first is not None
    assert last is None


def test_a_dtensor_of_loss_parallel():
    x, y = torch.randn(4, 5), torch.tensor([0, 4, -100, 3])
    t = torch.rand(4, 5)
    found = vocab_ranks.run(2, vocab_ranks.distributed_tensor, x, y, t)
    for i, target in enumerate((y, y, t)):
        z = x.clone().requires_grad_()
        expected = pyce.torch.cross_entropy(z, target)
        expected.backward()
        torch.testing.assert_close(torch.cat([of_rank[i][1] for of_rank, _ in found], 1), z.grad)
        for of_rank, _ in found:
            torch.testing.assert_close(of_rank[i][0], expected.detach())
    for _, messages in found:
        kinds, texts = zip(*messages, strict=True)
        assert set(kinds) == {"ValueError"}
        for text, expected in zip(
            texts,
            (
                "vocab_parallel_logits is a DTensor and must have the placements (Shard(dim=1),)",
                "on a mesh of one dimension",
                "vocab_parallel_logits is a DTensor and must have the placements (Shard(dim=1),)",
                "target is a DTensor and must have the placements (Replicate(),)",
                "target is a DTensor and must have the placements (Shard(dim=1),)",
                "its mesh must have the ranks of the group, in their order: it has [1, 0]",
            ),
            strict=True,
        ):
            assert expected in text


def test_a_dtensor_communicates_in_the_group_of_its_mesh():
    x, y = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 4, -100, 3])
    expected = pyce.torch.cross_entropy(x, y)
    expected.backward()
    *found, other = vocab_ranks.run(3, vocab_ranks.of_some_ranks, x.detach(), y)
    assert other == ("ValueError", "this process is not a member of the group")
    torch.testing.assert_close(torch.cat([grad for _, grad in found], 1), x.grad)
    for loss, _ in found:
        torch.testing.assert_close(loss, expected.detach())


def test_float16_where_one_rank_needs_a_gradient():
    x = (torch.randn(4, 300) * 5).half()
    y = torch.tensor([0, 599, -100, 3])
    z = torch.cat([x, x], 1).requires_grad_()
    expected = pyce.torch.cross_entropy(z, y, reduction="none")
    expected.sum().backward()
    with torch.autocast("cpu"):
        wide = pyce.torch.cross_entropy(z.detach(), y, reduction="none")
    found = vocab_ranks.run(2, vocab_ranks.precisions, x, y)
    for loss, _, (kind, message), under_autocast in found:
        assert under_autocast.dtype == torch.float32
        torch.testing.assert_close(under_autocast, wide)
        assert torch.equal(loss, found[0][0])
        torch.testing.assert_close(loss, expected.detach())
        assert kind == "ValueError"
        assert "dtype of the logits is float16 on rank 1 and float32 on rank 0" in message
    torch.testing.assert_close(found[0][1], z.grad[:, :300])


def test_compiled_code_and_hooks_of_saved_tensors():
    x, y = torch.randn(4, 5), torch.tensor([0, 4, -100, 3])
    z = x.clone().requires_grad_()
    loss = pyce.torch.cross_entropy(2 * z, y, reduction="sum")
    loss.backward()
    (found,) = vocab_ranks.run(1, vocab_ranks.compiled, x, y)
    *of_compiled, unchanged, grad = found
    torch.testing.assert_close(of_compiled, [loss.detach(), z.grad])
    assert unchanged == [True, True]
    z = x.clone().requires_grad_()
    (3 * pyce.torch.cross_entropy(z, y, reduction="sum")).backward()
    torch.testing.assert_close(grad, z.grad)


def test_a_call_is_not_traced(monkeypatch):
    """It is refused before it communicates, so that no other rank waits; torch.export itself is
    tried in test_torch_operators.py.
    """
    monkeypatch.setattr("pyce.torch._vocab_parallel.is_compiling", lambda: True)
    with pytest.raises(NotImplementedError, match="cannot be traced"):
        pyce.torch.vocab_parallel_cross_entropy(torch.randn(4, 5), torch.tensor([0, 4, -100, 3]))
