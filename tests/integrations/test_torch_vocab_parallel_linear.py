"""`pyce.torch.vocab_parallel_linear_cross_entropy` on 1 to 3 ranks of gloo against PyTorch."""

import pytest

torch = pytest.importorskip("torch")

import vocab_ranks  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import pyce.torch  # noqa: E402

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

ROWS, FEATURES, CLASSES = 12, 8, 90
BOUNDS = {1: (0, 90), 2: (0, 40, 90), 3: (0, 1, 70, 90)}
CHUNK = 5 * 70 * 4  # five rows of the rank with the most classes
OPTIONS = (
    {},
    {"reduction": "sum", "label_smoothing": 0.1, "softcap": 3.0},
    {"lse_square_scale": 0.01, "logit_scale": 0.7, "chunk_bytes": CHUNK, "ignore_index": 7},
    {"vocab_size": 72, "softcap": 5.0, "logit_scale": 1.5, "chunk_bytes": CHUNK},
)


def problems(ranks):
    """(input, weight, bias, target, bounds, options)."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 70, (3, 4), generator=generator)
    y[0, :2] = torch.tensor([7, -100])
    t = torch.rand(3, 4, CLASSES, generator=generator)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.randn(3, 4, FEATURES, generator=generator).to(dtype)
        w = torch.randn(CLASSES, FEATURES, generator=generator).to(dtype)
        b = torch.randn(CLASSES, generator=generator).to(dtype)
        for options in OPTIONS:
            index = y.clamp(min=0) if "ignore_index" in options else y
            yield x, w, b, index, BOUNDS[ranks], options
        yield x, w, None, t, BOUNDS[ranks], OPTIONS[1]


def expected(input, weight, bias, target, options):
    """Loss, losses of the rows, and gradients in float64, from all logits."""
    options = dict(options)
    tensors = [
        None if t is None else t.double().clone().requires_grad_() for t in (input, weight, bias)
    ]
    x, w, b = tensors
    z = options.pop("logit_scale", 1.0) * torch.nn.functional.linear(x, w, b)
    if cap := options.pop("softcap", None):
        z = cap * torch.tanh(z / cap)
    size = options.pop("vocab_size", CLASSES)
    z = z.reshape(ROWS, CLASSES)[:, :size]
    soft = target.is_floating_point()
    t = target.reshape(ROWS, CLASSES)[:, :size].double() if soft else target.reshape(ROWS)
    options.pop("chunk_bytes", None)
    scale, reduction = options.pop("lse_square_scale", 0.0), options.pop("reduction", "mean")
    losses = cross_entropy(z, t, reduction="none", **options)
    valid = torch.ones(ROWS, dtype=torch.bool)
    if not soft:
        valid = t != options.get("ignore_index", -100)
    losses = losses + torch.where(valid, scale * z.logsumexp(1) ** 2, 0.0)
    loss = losses.sum() / (valid.sum() if reduction == "mean" else 1)
    (3 * loss).backward()
    return (
        loss.detach(),
        losses.detach().reshape(3, 4),
        [None if t is None else t.grad for t in tensors],
    )


@pytest.mark.parametrize(("ranks", "backend"), [(1, "c"), (2, "numpy"), (3, "c")])
def test_ranks_agree_with_pytorch_in_float64(ranks, backend):
    if backend not in pyce.backends():
        pytest.skip(f"without the {backend} backend")
    made = list(problems(ranks))
    of_ranks = vocab_ranks.run(ranks, vocab_ranks.linear, backend, made)
    for (x, w, b, t, _, options), *found in zip(made, *of_ranks, strict=True):
        loss, losses, (of_input, of_weight, of_bias) = expected(x, w, b, t, options)
        for of_rank in found:
            assert torch.equal(of_rank[0], found[0][0])
            assert torch.equal(of_rank[1], found[0][1])
            assert torch.equal(of_rank[2], found[0][2])
            close(of_rank[0], loss)
            close(of_rank[1], losses)
            close(of_rank[2], of_input)
            if x.dtype is torch.bfloat16:
                is_rounded_after_the_sum(of_rank[2], of_input)
        close(torch.cat([one[3] for one in found]), of_weight)
        if b is not None:
            close(torch.cat([one[4] for one in found]), of_bias)
        chunks = [one[5] for one in found]
        assert len({len(of_rank) for of_rank in chunks}) == 1
        if "chunk_bytes" in options:
            assert len(chunks[0]) > 1
            assert max(max(of_rank) for of_rank in chunks) <= CHUNK


def close(actual, exact):
    epsilon = torch.finfo(actual.dtype).eps
    if actual.dtype not in (torch.float64, torch.float32):
        epsilon *= 2
    largest = exact.abs().max().item()
    torch.testing.assert_close(
        actual.double(), exact, rtol=32 * epsilon, atol=64 * epsilon * max(1.0, largest)
    )


def is_rounded_after_the_sum(actual, exact):
    """The parts of the ranks are added before they are rounded to 8 bits, and once more when the
    gradient of the loss multiplies the sum.
    """
    roundings, of_float32 = 2**-7 * exact.abs(), 2**-16 * exact.abs().max()
    assert ((actual.double() - exact).abs() <= roundings + of_float32).all()


def test_errors_are_raised_on_all_ranks():
    x, w = torch.randn(4, 5), torch.randn(6, 5)
    y = torch.tensor([0, 9, -100, 3])
    found = vocab_ranks.run(2, vocab_ranks.linear_errors, x, w, y)
    both = torch.cat([w, w]).requires_grad_()
    expected = cross_entropy(torch.nn.functional.linear(x, both), y)
    expected.backward()
    for rank, (errors, loss, ignored, of_weight) in enumerate(found):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert ignored == 0.0
        torch.testing.assert_close(of_weight, both.grad[6 * rank : 6 * rank + 6])
        for error, (kind, message) in zip(
            errors,
            (
                ("ValueError", "does not fit linear_weight"),
                ("ValueError", "whether input requires a gradient is True on rank 1"),
                ("ValueError", "softcap is 2.0 on rank 1 and None on rank 0"),
                ("IndexError", "target of row 0 is 100, outside the valid range 0..11"),
                ("ValueError", "chunk_bytes"),
                ("NotImplementedError", "the reduction must be mean or sum"),
                ("NotImplementedError", "no gradient is computed for softcap"),
                ("ValueError", "function is cross_entropy on rank 1 and linear_cross_entropy on"),
                ("none", ""),
                ("ValueError", "logit_scale is 2.0 on rank 1 and 3.0 on rank 0"),
                ("MemoryError", "no memory" if rank else "rank 1 could not compute its part"),
                ("MemoryError", "no memory"),
            ),
            strict=True,
        ):
            assert error is not None
            assert error[0] == kind, error
            assert message in error[1], error


def test_a_weight_that_is_a_dtensor():
    """And the dtypes of autocast: the loss is float32, and `input` and weight may differ."""
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    y = torch.tensor([0, 6, -100, 3])
    loss = pyce.torch.linear_cross_entropy(x, w, y)
    loss.backward()
    found = vocab_ranks.run(2, vocab_ranks.linear_dtensor, x.detach(), w.detach(), y)
    torch.testing.assert_close(torch.cat([one[2] for one in found]), w.grad)
    half, w = x.detach().bfloat16().requires_grad_(), w.detach().requires_grad_()
    with torch.autocast("cpu"):
        wide = pyce.torch.linear_cross_entropy(half, w, y)
    wide.backward()
    assert wide.dtype == torch.float32
    torch.testing.assert_close(torch.cat([one[5] for one in found]), w.grad)
    for of_rank in found:
        torch.testing.assert_close(of_rank[0], loss.detach())
        torch.testing.assert_close(of_rank[1], x.grad)
        torch.testing.assert_close(of_rank[3], wide.detach())
        torch.testing.assert_close(of_rank[4], half.grad)


def test_a_call_is_not_traced(monkeypatch):
    """It is refused before it communicates, so that no other rank waits; torch.export itself is
    tried in test_torch_operators.py.
    """
    monkeypatch.setattr("pyce.torch._vocab_parallel.is_compiling", lambda: True)
    with pytest.raises(NotImplementedError, match="cannot be traced"):
        pyce.torch.vocab_parallel_linear_cross_entropy(
            torch.randn(4, 5), torch.randn(6, 5), torch.tensor([0, 5, -100, 3])
        )
