"""pyce.torch.linear_cross_entropy, against PyTorch's function and products in float64.

The file is long because docs/semantics.md names its tests, and because every way to call the
function (eager, module, compiled, under torch.func) is compared on the same examples.
"""

import math
import os
import random
import subprocess
import sys
from contextlib import nullcontext

import pytest
from conftest import one_isa

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.testing import assert_close  # noqa: E402
from torch_cases import WARNINGS, dtypes, reductions  # noqa: E402

import pyce.torch  # noqa: E402
from pyce import _linear_chunks  # noqa: E402
from pyce.torch import _linear_compute, _linear_layer  # noqa: E402

pytestmark = WARNINGS

ours = pyce.torch.linear_cross_entropy
ROWS, FEATURES, CLASSES = 7, 5, 6
has_pytorchs = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="PyTorch has no linear_cross_entropy"
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    random.seed(0)  # for the sample inputs of PyTorch's OpInfo


def layer(dtype=torch.float64, bias=True):
    """Hidden states, weight and bias, and labels of which one is ignored."""
    shapes = [(ROWS, FEATURES), (CLASSES, FEATURES), *([(CLASSES,)] if bias else [])]
    tensors = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    target = torch.arange(ROWS) % CLASSES
    target[2] = -100
    return tensors, target


def call(tensors, target, **options):
    bias = tensors[2] if len(tensors) > 2 else None
    return ours(tensors[0], tensors[1], target, linear_bias=bias, **options)


def truth(tensors, target, reduction="mean", softcap=None, logit_scale=1.0, **options):
    """By float64 operations, with one row after the other in the oracle of the rows."""
    x, w, *b = (t.detach().double().requires_grad_() for t in tensors)
    z = logit_scale * (x @ w.t() + (b[0] if b else 0.0))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    weight = options.get("weight", torch.ones(w.shape[0])).double()
    rows = options.get("sample_weight", torch.ones(len(x))).double()
    smoothing, scale = options.get("label_smoothing", 0.0), options.get("lse_square_scale", 0.0)
    lse = z.logsumexp(1)
    if target.is_floating_point():
        t, v, counts = target.double(), torch.ones(len(x)).double(), rows
    else:
        valid = target != -100
        t = F.one_hot(target.clamp(min=0), w.shape[0]).double() * valid[:, None]
        v = weight[target.clamp(min=0)] * valid
        counts = rows * v
    smooth = smoothing / w.shape[0]
    if not target.is_floating_point():
        smooth = smooth * valid[:, None]
    b_c = weight * ((1 - smoothing) * t + smooth)
    losses = rows * ((b_c * (lse[:, None] - z)).sum(1) + scale * v * lse**2)
    if reduction == "none":
        return losses, (x, w, *b)
    total = losses.sum()
    if reduction == "mean":
        total = total / options.get("normalizer", counts.sum())
    return total, (x, w, *b)


def compare(tensors, target, dtype=None, **options):
    """Loss and gradients against `truth`."""
    dtype = dtype or tensors[0].dtype
    loss = call(tensors, target, **options)
    exact, leaves = truth(tensors, target, **{
        k: v for k, v in options.items() if k not in ("chunk_bytes", "options")
    })  # fmt: skip
    upstream = torch.rand(exact.shape).double() + 0.5
    grads = torch.autograd.grad(loss, tensors, upstream.to(loss.dtype))
    exact_grads = torch.autograd.grad(exact, leaves, upstream.to(loss.dtype).double())
    assert loss.dtype == dtype
    assert_close(loss, exact.to(dtype))
    for tensor, got, right in zip(tensors, grads, exact_grads, strict=True):
        assert got.dtype == tensor.dtype
        assert_close(got, right.to(tensor.dtype))


OPTIONS = {
    "plain": {},
    "weights": {
        "weight": torch.linspace(0.2, 2, CLASSES),
        "sample_weight": torch.linspace(0.5, 2, ROWS),
    },
    "smoothing": {"label_smoothing": 0.2},
    "softcap": {"softcap": 2.0, "logit_scale": 0.6},
    "z-loss": {"lse_square_scale": 0.1},
    "normalizer": {"normalizer": 11.0},
}


@one_isa
@reductions
@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_loss_and_gradients(backend, dtype, reduction, soft):
    if backend.name == "numba" and dtype is not torch.float32:
        return  # every backend is called alike, and Numba compiles for seconds for each dtype
    tensors, target = layer(dtype)
    if soft:
        target = torch.rand(ROWS, CLASSES).to(dtype)
    for name, options in OPTIONS.items():
        if reduction != "mean" and name == "normalizer":
            continue
        for chunk in (1, 3 * CLASSES * 8, None):
            compare(tensors, target, reduction=reduction, chunk_bytes=chunk, **options)
    compare(tensors[:2], target, reduction=reduction)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        chosen = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
        compare(tensors, target, reduction=reduction, options=chosen)


@pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="PyTorch has no such options"
)
def test_the_most_rows_of_a_chunk(monkeypatch):
    """That of `batch_chunk_size`, also where gradients are filtered."""
    evaluate, rows = _linear_compute._evaluate, []

    def noted(head, part, chunk):
        rows.append(len(chunk))
        evaluate(head, part, chunk)

    monkeypatch.setattr(_linear_compute, "_evaluate", noted)
    (x, w), target = layer(torch.float32, bias=False)
    chosen = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    for tolerance in (None, 0.1):
        rows.clear()
        ours(x, w, target, options=chosen, filter_tolerance=tolerance).backward()
        assert max(rows) == 2
        assert sum(rows) == (target != -100).sum()


@has_pytorchs
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("", torch.float32),
        ("", torch.bfloat16),
        # They differ in PyTorch's `options`, whatever the dtype.
        ("chunked", torch.float32),
        ("chunked_none", torch.float32),
    ],
    ids=str,
)
def test_pytorchs_own_samples(variant, dtype):
    """Compared with PyTorch in float64: losses, gradients of all that has one, dtypes."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (
        op
        for op in op_db
        if op.name == "nn.functional.linear_cross_entropy" and op.variant_test_name == variant
    )
    samples = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 8
    for sample in samples:
        named = {"input": sample.input, "linear_weight": sample.args[0], "target": sample.args[1]}
        named |= sample.kwargs
        names = [k for k, v in named.items() if torch.is_tensor(v) and v.requires_grad]
        loss = ours(**named)
        upstream = torch.rand(loss.shape).to(loss.dtype)
        grads = torch.autograd.grad(loss, [named[k] for k in names], upstream)
        exact = {
            k: v.detach().double().requires_grad_(k in names)
            if torch.is_tensor(v) and v.is_floating_point()
            else v
            for k, v in named.items()
            if k != "options"
        }
        right = F.linear_cross_entropy(**exact)
        exact_grads = torch.autograd.grad(right, [exact[k] for k in names], upstream.double())
        assert loss.dtype == dtype
        for got, expected in zip((loss, *grads), (right, *exact_grads), strict=True):
            assert got.shape == expected.shape
            assert got.dtype == dtype
            assert_close(got, expected.to(dtype))


@reductions
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck_and_gradgradcheck(reduction, name):
    if reduction != "mean" and name == "normalizer":
        return
    tensors, target = layer()
    for goal in (target, torch.rand(ROWS, CLASSES).double().requires_grad_()):
        leaves = [*tensors, *([goal] if goal.requires_grad else [])]

        def loss(*leaves, goal=goal):
            return call(leaves[:3], *leaves[3:] or [goal], reduction=reduction,
                        chunk_bytes=100, **OPTIONS[name])  # fmt: skip

        assert gradcheck(loss, leaves, fast_mode=True)
        assert gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("positions", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
@reductions
def test_shapes(positions, reduction):
    x = torch.randn(*positions, FEATURES, requires_grad=True)
    w = torch.randn(CLASSES, FEATURES, requires_grad=True)
    for target in (torch.randint(CLASSES, positions), torch.rand(*positions, CLASSES)):
        loss, lse = ours(x, w, target, reduction=reduction, return_lse=True)
        assert loss.shape == (positions if reduction == "none" else ())
        assert lse.shape == positions
        assert lse.dtype == torch.float64
        assert not lse.requires_grad
        logits = (x @ w.t()).reshape(-1, CLASSES)
        goal = target.reshape(logits.shape if target.is_floating_point() else -1)
        expected = F.cross_entropy(logits, goal, reduction=reduction).reshape(loss.shape)
        assert_close(loss, expected, equal_nan=True)
        assert_close(lse, (x @ w.t()).logsumexp(-1).double(), rtol=1e-6, atol=1e-6)
        for got, right in zip(
            torch.autograd.grad(loss.sum(), (x, w)),
            torch.autograd.grad(expected.sum(), (x, w)),
            strict=True,
        ):
            assert_close(got, right, equal_nan=True)


def test_any_layout():
    (x, w), target = layer(bias=False)
    probs = torch.rand(CLASSES, ROWS, 2).double().permute(1, 2, 0)
    for hidden, weight in (
        (x.detach().t().contiguous().t(), w.detach().t().contiguous().t()),
        (x.detach().repeat(1, 2)[:, ::2], w.detach().flip(0)),
        (torch._neg_view(x.detach()), w.detach().repeat(2, 1)[::2]),
        (x.detach()[:1].expand(ROWS, FEATURES), w.detach()[:1].expand(CLASSES, FEATURES)),
    ):
        compare([hidden.requires_grad_(), weight.requires_grad_()], target, chunk_bytes=100)
    hidden = x.detach()[:, None].expand(ROWS, 2, FEATURES)
    expected = F.cross_entropy((hidden @ w.t()).reshape(-1, CLASSES), probs.reshape(-1, CLASSES))
    assert_close(ours(hidden, w, probs, chunk_bytes=100), expected)
    expected = F.cross_entropy(x[0] @ w.t(), probs[0, 0])
    assert not probs[0, 0].is_contiguous()
    assert_close(ours(x[0], w, probs[0, 0]), expected)


@reductions
def test_any_layout_of_the_gradient_of_the_loss(reduction):
    (x, w), target = layer(bias=False)
    loss = ours(x, w, target, reduction=reduction)
    upstream = torch.rand(loss.shape).double()
    expected = torch.autograd.grad(loss, (x, w), upstream, retain_graph=True)
    for other in (
        torch._neg_view(-upstream),
        torch.stack([upstream, upstream], -1)[..., 0],
        torch._neg_view(-upstream.flip(0).contiguous()).flip(0) if upstream.dim() else upstream,
    ):
        got = torch.autograd.grad(loss, (x, w), other, retain_graph=True)
        assert all(map(torch.equal, got, expected))


# ---------------------------------------------------------------------------------------------
# What is computed, saved and allocated


@pytest.fixture
def products(monkeypatch):
    """The matrix products of a chunk: a list of their names."""
    found = []
    for name in ("_multiply", "_to_input", "_to_weight"):
        function = getattr(_linear_layer.Layer, name)

        def counted(*arguments, name=name, function=function):
            found.append(name)
            return function(*arguments)

        monkeypatch.setattr(_linear_layer.Layer, name, counted)
    return found


@reductions
def test_only_the_products_that_are_needed(reduction, products):
    """A frozen input or weight takes one product less, and without gradients there is one."""
    (x, w, b), target = layer()
    for of_x, of_w in ((True, True), (True, False), (False, True), (False, False)):
        for of_b in (False, True):
            hidden, weight, bias = (
                t if needed else t.detach() for t, needed in ((x, of_x), (w, of_w), (b, of_b))
            )
            products.clear()
            loss = ours(hidden, weight, target, linear_bias=bias, reduction=reduction)
            if of_x or of_w or of_b:
                loss.sum().backward()
            again = reduction == "none" and (of_x or of_w or of_b)
            assert products.count("_multiply") == 1 + again
            assert products.count("_to_input") == of_x
            assert products.count("_to_weight") == of_w
    for context in (torch.no_grad, torch.inference_mode):
        products.clear()
        with context():
            assert not ours(x, w, target, reduction=reduction).requires_grad
        assert products == ["_multiply"]


@dtypes
def test_gradients_reach_the_leaves_without_a_copy(dtype):
    tensors, target = layer(dtype, bias=False)
    compare(tensors, target)
    saved = []

    def pack(tensor):
        saved.append(tensor.data_ptr())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call(tensors, target)
    assert len(saved) == 5  # input, weight, target, two gradients
    loss = call(tensors, target)
    places = [t.data_ptr() for t in loss.grad_fn.saved_tensors[6:8]]
    loss.backward(torch.tensor(0.5, dtype=dtype))
    if dtype is not torch.float16:  # whose gradients are rounded after they are scaled
        assert [t.grad.data_ptr() for t in tensors] == places


@reductions
def test_a_graph_may_be_used_again(reduction):
    tensors, target = layer()
    once = torch.autograd.grad(call(tensors, target, reduction=reduction).sum(), tensors)
    loss = (2 * call(tensors, target, reduction=reduction)).sum()
    for how in ({"retain_graph": True}, {"retain_graph": True}, {}):
        for got, right in zip(torch.autograd.grad(loss, tensors, **how), once, strict=True):
            assert_close(got, 2 * right)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_float16_gradients_are_scaled_before_they_are_rounded():
    x = torch.zeros(64, 4, dtype=torch.float16)
    x[:, 0] = 12.0
    x.requires_grad_()
    w = torch.zeros(1000, 4, dtype=torch.float16)
    w[0, 0] = 1.0
    w.requires_grad_()
    target = torch.zeros(64, dtype=torch.int64)
    for reduction in ("mean", "none"):
        loss = ours(x, w, target, reduction=reduction).float().sum()
        scale = 2.0**14 if reduction == "mean" else 2.0**8
        (scaled,) = torch.autograd.grad(loss * scale, w)
        exact, (_, wd) = truth((x, w), target, reduction=reduction)
        right = torch.autograd.grad(exact.sum() * scale, wd)[0]
        assert_close(scaled.double(), right, rtol=2e-3, atol=0.0)


PEAK = """
import sys
import torch, pyce.torch
torch.set_num_threads(1)
rows, features, classes, dtype = 2000, 64, 20000, getattr(torch, sys.argv[1])
torch.manual_seed(0)
x = torch.randn(rows, features).to(dtype).requires_grad_()
w = torch.randn(classes, features).to(dtype).requires_grad_()
y = torch.randint(classes, (rows,))
chunk = 4 << 20

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

def step(n):
    x.grad = w.grad = None
    pyce.torch.linear_cross_entropy(x[:n], w[:64], y[:n] % 64, chunk_bytes=chunk).backward()
    x.grad = w.grad = None

step(8)
before = peak()
pyce.torch.linear_cross_entropy(x, w, y, chunk_bytes=chunk).backward()
wide = rows * features * 4 + classes * features * 4
bound = wide + chunk + (16 << 20)
if dtype is not torch.float32:
    bound += x.nbytes + w.nbytes
used = peak() - before
assert used <= bound < rows * classes * 4 // 4, (used, bound)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory(dtype):
    """Beyond the gradients, in float32 before they are rounded: a chunk and 16 MiB."""
    subprocess.run([sys.executable, "-c", PEAK, dtype], check=True)


@pytest.mark.skipif(
    os.environ.get("PYCE_TEST_EXHAUSTIVE") != "1",
    reason="PYCE_TEST_EXHAUSTIVE=1 has it run; see make test-exhaustive",
)
def test_more_than_two_to_the_31_logits():
    rows, classes = 70_000, 32_000
    assert rows * classes > 2**31
    w = torch.linspace(-1, 1, classes)[:, None].requires_grad_()
    x = torch.zeros(rows, 1, requires_grad=True)
    target = torch.full((rows,), classes - 1)
    loss, lse = ours(x, w, target, return_lse=True)
    loss.backward()
    assert_close(lse, torch.full((rows,), math.log(classes)).double(), rtol=1e-6, atol=0.0)
    # Of each row: Σ_c p_c · w_c − w_y = −1.
    assert_close(x.grad, torch.full((rows, 1), -1.0 / rows), rtol=1e-4, atol=0.0)


# ---------------------------------------------------------------------------------------------
# Values


@reductions
def test_rows_that_are_ignored_are_not_read(reduction):
    (x, w), target = layer(bias=False)
    found = []
    for value in (0.0, math.nan):
        hidden = x.detach().clone()
        hidden[2] = value
        hidden.requires_grad_()
        loss = ours(hidden, w, target, reduction=reduction, chunk_bytes=100)
        for above in (1.0, math.inf):
            upstream = torch.ones_like(loss)
            (upstream[2] if reduction == "none" else upstream).fill_(above)
            grads = torch.autograd.grad(loss, (hidden, w), upstream, retain_graph=True)
            assert (grads[0][2] == 0).all()
            if above == 1.0 or reduction == "none":
                found.append((loss, *grads))
    for other in found[1:]:
        for got, right in zip(other, found[0], strict=True):
            assert torch.equal(got, right)
    loss = ours(x, w, torch.full_like(target, -100), reduction=reduction)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    for above in (1.0, math.inf):
        upstream = torch.full_like(loss, above)
        for grad in torch.autograd.grad(loss, (x, w), upstream, retain_graph=True):
            assert (grad == 0).all()


@reductions
def test_a_row_without_coefficients_adds_nothing(reduction):
    """Whatever its hidden state is: 0 · NaN = 0 in the products, too."""
    (x, w), target = layer(bias=False)
    rows = torch.linspace(0, 2, ROWS)
    classes = torch.linspace(0, 1, CLASSES)
    for options in (
        {"sample_weight": rows},
        {"weight": classes},
        {"weight": classes, "softcap": 2.0},
        {"sample_weight": rows, "filter_tolerance": 0.1},
    ):
        found = []
        for value in (0.0, math.nan, math.inf):
            hidden = x.detach().clone()
            hidden[0] = value  # its label is the class 0
            hidden.requires_grad_()
            loss = ours(hidden, w, target, reduction=reduction, chunk_bytes=100, **options)
            found.append((loss, *torch.autograd.grad(loss.sum(), (hidden, w))))
        assert not found[0][1][0].any()
        for got in found[1:]:
            assert all(map(torch.equal, got, found[0]))


@reductions
def test_rows_that_are_ignored_where_all_logits_are_held(reduction):
    """In second derivatives, under torch.func, and for weights with more than two dimensions."""
    (x, w), target = layer(bias=False)
    deep = w.detach()[:, None].expand(CLASSES, 2, FEATURES).requires_grad_()
    many = target[:, None].expand(ROWS, 2)

    def second(x):
        loss = ours(x, w, target, reduction=reduction).sum()
        (grad,) = torch.autograd.grad(loss, w, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, w))

    def of_weight(w):
        return ours(hidden.detach(), w, target, reduction=reduction).sum()

    found = []
    for value in (0.0, math.nan):
        hidden = x.detach().clone()
        hidden[2] = value
        hidden.requires_grad_()
        loss, lse = ours(hidden, deep, many, reduction=reduction, return_lse=True)
        grads = torch.autograd.grad(loss.sum(), (hidden, deep))
        found.append((loss, lse, *grads, *second(hidden), torch.func.grad(of_weight)(w.detach())))
    for got, right in zip(*found, strict=True):
        assert torch.equal(got, right)


@dtypes
def test_weights_that_are_not_finite(dtype):
    """They give rows of NaN, and nothing else."""
    (x, w), target = layer(dtype, bias=False)
    target[2] = 0
    bad = w.detach().clone()
    bad[3, 1] = math.nan
    loss = ours(x, bad, target, reduction="none")
    assert loss.isnan().all()
    hidden = x.detach().clone()
    hidden[4] = math.nan
    for tolerance in (None, 0.01):
        hidden.requires_grad_()
        loss = ours(hidden, w.detach(), target, reduction="mean", normalizer=1.0,
                    filter_tolerance=tolerance)  # fmt: skip
        (grad,) = torch.autograd.grad(loss, hidden)
        assert grad.isnan().any(1).tolist() == [i == 4 for i in range(ROWS)]
        assert torch.isnan(ours(hidden, w, target, reduction="none")).sum() == 1
        hidden = hidden.detach()


@pytest.mark.parametrize("rows", [1, 40])
def test_filtered_gradients_are_within_the_bound(monkeypatch, rows):
    """Elements of each row's gradient are left out that add up to at most δ/2 of all of them.

    Several rows have columns in common, so that most of them lose less than one alone.
    """
    monkeypatch.setattr(_linear_chunks, "_WORTH_PACKING", 1.0)
    x = (4 * torch.randn(rows, 8)).double().requires_grad_()
    w = torch.randn(300, 8).double().requires_grad_()
    target = (x @ w.t()).argmax(1)
    logits = (x @ w.t()).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    loss = ours(x, w, target)
    exact = torch.autograd.grad(loss, (x, w))
    for dtype in (torch.float64, torch.bfloat16):
        hidden, weight = x.to(dtype), w.to(dtype)
        plain = torch.autograd.grad(ours(hidden, weight, target), (x, w))
        for tolerance in (2.0**-3, 2.0**-10):
            found = ours(hidden, weight, target, filter_tolerance=tolerance)
            grads = torch.autograd.grad(found, (x, w))
            if dtype is not torch.float64:
                for got, right in zip(grads, plain, strict=True):
                    assert (got - right).abs().max() <= (0.02 + tolerance) * right.abs().max()
                continue
            assert found == loss
            sizes = g.abs().sum(1)
            error = (grads[0] - exact[0]).abs()
            assert (error <= tolerance / 2 * sizes[:, None] * w.abs().amax(0) + 1e-15).all()
            error = (grads[1] - exact[1]).abs().sum(0)
            assert (error <= tolerance / 2 * (sizes[:, None] * x.abs()).sum(0) + 1e-15).all()
            assert error.max() > 0


def test_bad_arguments():
    (x, w, b), target = layer(torch.float32)

    def refused(error, match, *arguments, **options):
        before = [t.clone() for t in (x, w, b)]
        with pytest.raises(error, match=match):
            ours(*arguments, **options)
        assert all(map(torch.equal, (x, w, b), before))
        assert x.grad is w.grad is b.grad is None

    refused(ValueError, r"input of shape \(7, 4\) .* linear_weight of shape \(6, 5\)",
            x[:, 1:], w, target)  # fmt: skip
    refused(ValueError, r"linear_weight must have the shape \(C, D\)", x, w[0], target)
    refused(ValueError, r"linear_weight must have the shape \(C, D\)", x, w[:0], target)
    refused(ValueError, r"linear_bias of shape \(5,\) .* of shape \(6, 5\): expected \(6,\)",
            x, w, target, linear_bias=b[1:])  # fmt: skip
    for weight in (w, w[:, None].expand(CLASSES, 2, FEATURES)):
        refused(ValueError, r"target of shape \(6,\) does not fit input of shape \(7, 5\) and "
                r"linear_weight", x, weight, target[1:])  # fmt: skip
    refused(ValueError, r"input of shape \(2, 7, 5\) .* \(6, 2, 5\)", x.expand(2, 7, 5),
            w[:, None].expand(CLASSES, 2, FEATURES), target)  # fmt: skip
    refused(TypeError, "target is float32 but shaped like class indices", x, w, target + 0.5)
    refused(TypeError, "target must be a tensor, got NoneType", x, w, None)
    refused(TypeError, "input is float32, but linear_weight is float64", x, w.double(), target)
    refused(TypeError, "input is float32, but linear_bias is bfloat16", x, w, target,
            linear_bias=b.bfloat16())  # fmt: skip
    refused(TypeError, "input must be float16.* got torch.int64", x.long(), w.long(), target)
    refused(ValueError, "weight must be on the CPU", x, w.to("meta"), target)
    refused(ValueError, "ignore_index is for class indices", x, w, torch.rand(ROWS, CLASSES),
            ignore_index=1)  # fmt: skip
    refused(NotImplementedError, "no gradient is computed for sample_weight", x, w, target,
            sample_weight=torch.ones(ROWS, requires_grad=True))  # fmt: skip
    refused(ValueError, r"sample_weight must have shape \(7,\)", x, w, target,
            sample_weight=torch.ones(3))  # fmt: skip
    bad = target.clone()
    bad[5] = CLASSES
    refused(IndexError, r"target of row 5 is 6, outside the valid range 0\.\.5", x, w, bad)
    for name, value in (
        ("softcap", 0.0), ("softcap", -1.0), ("softcap", 1e39), ("softcap", 1e-40),
        ("chunk_bytes", 0), ("label_smoothing", 1.5),
        ("logit_scale", math.inf), ("lse_square_scale", math.nan), ("reduction", "average"),
        ("filter_tolerance", 2.0),
    ):  # fmt: skip
        refused(ValueError, name, x, w, target, **{name: value})
    refused(TypeError, "options must be a LinearCrossEntropyOptions, got dict", x, w, target,
            options={"batch_chunk_size": 2})  # fmt: skip
    for name, value in (("lse_square_scale", math.nan), ("softcap", -1.0), ("reduction", "x")):
        with pytest.raises(ValueError, match=name):
            torch.vmap(lambda x: ours(x, w, target, **{name: value}))(x.detach()[None])  # noqa: B023
    freed = torch.randn(ROWS, FEATURES)
    freed.untyped_storage().resize_(0)
    refused(ValueError, "input is a tensor without memory", freed, w, target)


# ---------------------------------------------------------------------------------------------
# PyTorch's mechanisms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@reductions
def test_autocast(dtype, reduction):
    """Half hidden states with a float32 weight, as in mixed precision."""
    (x, w, b), target = layer(torch.float32)
    hidden = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        compare([hidden, w, b], target, torch.float32, reduction=reduction)
        compare([x, w, b], target, torch.float32, reduction=reduction)
        (xd, wd, bd), _ = layer(torch.float64)
        compare([xd, wd, bd], target, reduction=reduction)
        with pytest.raises(TypeError, match="input is float64, but linear_weight is float32"):
            ours(xd, w, target)


@reductions
def test_compiled(reduction):
    """One graph, in which the loss is an operator."""
    torch.compiler.reset()
    tensors, target = layer(torch.float32)

    def model(x, w, b):
        return 2 * ours(x * 3, w, target, linear_bias=b, reduction=reduction, softcap=4.0)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, right = compiled(*tensors), model(*tensors)
    assert_close(loss, right)
    for got, expected in zip(
        torch.autograd.grad(loss.sum(), tensors),
        torch.autograd.grad(right.sum(), tensors),
        strict=True,
    ):
        assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@reductions
def test_opcheck(reduction, dtype):
    tensors, target = layer(dtype)
    arguments = (*tensors, target, torch.rand(CLASSES), torch.rand(ROWS), reduction, -100, 0.1,
                 None, 3.0, 1.0, 0.1, 100, None, None, False)  # fmt: skip
    done = torch.library.opcheck(
        torch.ops.pyce.linear_cross_entropy.default, (*arguments, True, True, True)
    )
    assert set(done.values()) == {"SUCCESS"}
    if reduction == "none":
        lse = torch.rand(ROWS).double()
        grad_loss = torch.rand(ROWS).to(dtype)
        detached = [t.detach() for t in arguments[:3]]
        done = torch.library.opcheck(
            torch.ops.pyce.linear_cross_entropy_backward.default,
            (grad_loss, lse, *detached, *arguments[3:], True, False, True),
        )
        assert set(done.values()) == {"SUCCESS"}


@reductions
def test_fake_tensors_outside_of_their_mode(reduction):
    """Tensors that see operators need them, also where no mode is active."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    tensors, target = layer(torch.float32)
    fake = [mode.from_tensor(t) for t in tensors]
    loss, lse = call(fake, mode.from_tensor(target), reduction=reduction, return_lse=True)
    assert loss.shape == ((ROWS,) if reduction == "none" else ())
    assert lse.shape == (ROWS,)
    # The operator of the backward pass, which only "none" has, needs no mode either.
    with nullcontext() if reduction == "none" else mode:
        loss.sum().backward()
    assert [t.grad.shape for t in fake] == [t.shape for t in tensors]


@reductions
def test_transforms(reduction):
    from torch.func import grad, jvp, vmap

    tensors, target = layer()
    x, w, b = (t.detach() for t in tensors)

    def loss(x, w):
        return ours(x, w, target, linear_bias=b, reduction=reduction).sum()

    def right(x, w):
        return F.cross_entropy(x @ w.t() + b, target, reduction=reduction).sum()

    for got, expected in zip(grad(loss, (0, 1))(x, w), grad(right, (0, 1))(x, w), strict=True):
        assert_close(got, expected)
    tangents = torch.rand_like(x), torch.rand_like(w)
    assert_close(jvp(loss, (x, w), tangents), jvp(right, (x, w), tangents))
    batch = torch.stack([x, 2 * x])
    assert_close(vmap(loss, (0, None))(batch, w), vmap(right, (0, None))(batch, w))


@pytest.mark.parametrize(("rows", "features"), [(0, 2), (4, 0)])
def test_second_derivatives_of_no_rows_or_features(rows, features):
    weight, target = torch.rand(3, features), torch.zeros(rows, dtype=torch.int64)
    second = torch.func.hessian(lambda x: ours(x, weight, target, reduction="sum"))
    assert second(torch.zeros(rows, features)).shape == (rows, features) * 2


@reductions
def test_many_gradients_in_one_pass(reduction):
    tensors, target = layer()
    loss = call(tensors, target, reduction=reduction)
    upstream = torch.rand(3, *loss.shape).double()

    def backward(u):
        return torch.autograd.grad(loss, tensors, u, retain_graph=True)

    one_by_one = [backward(u) for u in upstream]
    for together in (
        torch.vmap(backward)(upstream),
        torch.autograd.grad(loss, tensors, upstream, is_grads_batched=True),
    ):
        for got, expected in zip(together, zip(*one_by_one, strict=True), strict=True):
            assert_close(got, torch.stack(expected))


class Tiny(torch.nn.Module):
    """Embedding, one layer, and a head with the embedding's weight, as Hugging Face's models."""

    def __init__(self, loss):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.body = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU())
        self.back = torch.nn.Linear(32, 16)
        self.lm_head = torch.nn.Linear(16, 50, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.loss = loss

    def forward(self, tokens, labels):
        hidden = self.back(self.body(self.embedding(tokens)))[:, :-1]
        return self.loss(hidden, self.lm_head.weight, labels[:, 1:])


def test_a_model_with_tied_weights_trains_as_with_pytorchs_loss():
    def theirs(hidden, weight, labels):
        return F.cross_entropy((hidden @ weight.t()).reshape(-1, 50), labels.reshape(-1))

    curves = []
    for loss in (theirs, lambda *a: ours(*a, chunk_bytes=999)):
        torch.manual_seed(0)
        model = Tiny(loss).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        curve = []
        for step in range(15):
            tokens = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(step % 3))
            labels = tokens.masked_fill(tokens == 0, -100)
            optimizer.zero_grad()
            value = model(tokens, labels)
            value.backward()
            optimizer.step()
            curve.append(value.item())
        curves.append(curve)
    assert curves[1][-1] < 0.9 * curves[1][0]
    assert_close(*curves, rtol=1e-9, atol=0.0)


@has_pytorchs
def test_module():
    import copy
    import pickle

    for out, bias in (((), False), ((), True), ((2, 3), True)):
        options = {"out_features": out, "bias": bias, "label_smoothing": 0.1}
        theirs = torch.nn.LinearCrossEntropyLoss(FEATURES, CLASSES, **options)
        module = pyce.torch.LinearCrossEntropyLoss(FEATURES, CLASSES, **options)
        module.load_state_dict(theirs.state_dict())
        x = torch.randn(ROWS, FEATURES)
        for target in (
            torch.randint(CLASSES, (ROWS, *out)), torch.rand(ROWS, CLASSES, *out)
        ):  # fmt: skip
            expected = theirs(x, target)
            for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                assert_close(one(x, target), expected)
    capped = pyce.torch.LinearCrossEntropyLoss(FEATURES, CLASSES, softcap=0.5, lse_square_scale=0.1)
    target = torch.zeros(ROWS).long()
    expected, _ = truth([x, capped.linear.weight], target, softcap=0.5, lse_square_scale=0.1)
    assert_close(capped(x, target), expected.float())
