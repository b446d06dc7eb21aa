"""pyce.torch: PyTorch's own checks, and that it does what PyTorch's function does."""

import copy
import gc
import inspect
import pickle
import random
import shutil
import threading
import tracemalloc
import warnings
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import pyce  # noqa: E402
import pyce.torch  # noqa: E402
from pyce import _threads  # noqa: E402

# What PyTorch says of its own parts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

theirs = F.cross_entropy
ours = pyce.torch.cross_entropy

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
HAS_CXX = any(shutil.which(name) for name in ("g++", "c++", "clang++"))
compilers = pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(not HAS_CXX, reason="there is no C++ compiler")
        ),
    ],
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    random.seed(0)  # OpInfo's


def example(rows=6, classes=5, dtype=torch.float32):
    logits = (3 * torch.randn(rows, classes)).to(dtype).requires_grad_()
    return logits, torch.arange(rows) % classes


def kinds_of_target(classes=5, rows=6, dtype=torch.float32):
    """Target, and the options that fit it."""
    labels = torch.tensor([0, -100, 3, 4, 1, 0])[:rows]
    weight = torch.rand(classes) + 0.1
    soft = torch.rand(rows, classes).to(dtype)
    return {
        "labels": (labels, {}),
        "weighted": (labels, {"weight": weight.to(dtype)}),
        "smoothed": (labels, {"label_smoothing": 0.2}),
        "weighted and smoothed": (labels, {"weight": weight.to(dtype), "label_smoothing": 0.2}),
        "ignored": (labels.clamp(min=0), {"ignore_index": 0}),
        "probabilities": (soft, {"weight": weight.to(dtype), "label_smoothing": 0.2}),
    }


targets = pytest.mark.parametrize("kind", list(kinds_of_target()))


def step(function, logits, target, **options):
    """Loss and gradient."""
    loss = function(logits, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), logits)


def true_step(logits, target, **options):
    """The same by PyTorch in float64."""
    for name, value in options.items():
        if isinstance(value, torch.Tensor):
            options[name] = value.double()
    if target.is_floating_point():
        target = target.detach().double()
    return step(theirs, logits.detach().double().requires_grad_(), target, **options)


# ---------------------------------------------------------------------------------------------
# What it computes


def test_the_signature_is_pytorchs():
    def plain(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert plain(ours) == plain(theirs)
    assert plain(pyce.torch.CrossEntropyLoss) == plain(torch.nn.CrossEntropyLoss)


def samples(dtype):
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == "nn.functional.cross_entropy")
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(found) > 15
    return found


@dtypes
def test_pytorchs_own_samples(dtype, backend):
    """Their results, in float64: values, gradients of the logits and of probabilities, dtypes."""
    for sample in samples(dtype):
        logits, target = sample.input, *sample.args
        leaves = [t for t in (logits, target) if t.requires_grad]
        loss = ours(logits, target, **sample.kwargs)
        upstream = torch.rand(loss.shape).to(loss.dtype)
        grads = torch.autograd.grad(loss, leaves, upstream)
        kwargs = {
            k: v.double() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()
        }
        exact = [t.detach().double().requires_grad_() for t in leaves]
        truth = theirs(exact[0], exact[1] if len(exact) > 1 else target, **kwargs)
        true_grads = torch.autograd.grad(truth, exact, upstream.double())
        assert loss.dtype == dtype
        for got, expected in zip((loss, *grads), (truth, *true_grads), strict=True):
            assert got.shape == expected.shape
            assert got.dtype == dtype
            assert_close(got, expected.to(dtype))


@targets
@reductions
@dtypes
def test_the_bytes_are_pyces(kind, reduction, dtype, backend):
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]
    loss, grad = step(ours, logits, target, reduction=reduction, **options)
    arrays = {k: v.float().numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    wide = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
    if dtype is torch.bfloat16:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        wide["bfloat16"] = ml_dtypes.bfloat16
    numpy_dtype = wide[str(dtype).split(".")[1]]
    if "weight" in arrays:
        arrays["weight"] = options["weight"].double().numpy()
    x = logits.detach().double().numpy().astype(numpy_dtype)
    t = target.double().numpy().astype(numpy_dtype) if target.is_floating_point() else target
    expected, expected_grad = pyce.cross_entropy_with_grad(
        x, np.asarray(t), reduction=reduction, **arrays
    )
    assert torch.equal(loss, torch.as_tensor(np.asarray(expected)).to(dtype))
    assert torch.equal(grad.double(), torch.from_numpy(expected_grad.astype(np.float64)))


@pytest.mark.parametrize(
    "shape", [(5,), (6, 5), (1, 5), (6, 1), (0, 5), (2, 5, 3), (2, 5, 3, 1, 2), (2, 5, 0)], ids=str
)
@reductions
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_shapes(shape, reduction, soft):
    logits = torch.randn(shape, requires_grad=True)
    classes = shape[1] if len(shape) > 1 else shape[0]
    rows = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    target = torch.rand(shape) if soft else torch.randint(classes, rows)
    mine = step(ours, logits, target, reduction=reduction)
    for got, expected in zip(mine, step(theirs, logits, target, reduction=reduction), strict=True):
        assert got.shape == expected.shape
        assert_close(got, expected, equal_nan=True)


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every second class": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "one row again and again": lambda x: x[:1].expand(x.shape),
    "negated lazily": lambda x: torch._neg_view(-x),
    "unaligned": lambda x: torch.frombuffer(
        bytearray(b"\0" + x.detach().numpy().tobytes()), dtype=x.dtype, offset=1
    ).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*neg_view")
def test_layouts(layout, backend):
    x, target = example()
    logits = LAYOUTS[layout](x.detach()).requires_grad_()
    for got, expected in zip(
        step(ours, logits, target), true_step(logits.resolve_neg(), target), strict=True
    ):
        assert_close(got, expected.float())


@pytest.mark.filterwarnings("ignore:.*neg_view")
def test_targets_and_weights_negated_lazily():
    logits, target = example()
    weight = torch.rand(5) + 0.1
    expected = ours(logits, target, weight)
    assert torch.equal(ours(logits, torch._neg_view(-target), torch._neg_view(-weight)), expected)
    with pytest.raises(IndexError, match="target of row 1 is -1"):
        ours(logits, torch._neg_view(target))


def test_segmentation_in_channels_last():
    logits = torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    target = torch.randint(5, (2, 3, 4))
    assert not logits.is_contiguous()
    for got, expected in zip(step(ours, logits, target), true_step(logits, target), strict=True):
        assert_close(got, expected.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_targets(dtype):
    logits, target = example()
    assert torch.equal(ours(logits, target.to(dtype)), ours(logits, target))


def test_every_digit_of_a_confident_model():
    """Where p − 1 has none left: the gradient at the target is minus the sum of the others."""
    logits = torch.tensor([[40.0, 1.0, 0.0], [0.0, 90.0, 5.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    loss, grad = step(ours, logits, labels)
    exact = logits.detach().double()
    others = torch.exp(exact - exact.max(1, keepdim=True).values)
    others = others.masked_fill(F.one_hot(labels, 3).bool(), 0).sum(1)
    assert_close(loss.double(), torch.log1p(others).mean(), rtol=3e-7, atol=0.0)
    at_target = grad.gather(1, labels[:, None])[:, 0].double()
    assert_close(at_target, -(others / (1 + others)) / 2, rtol=3e-7, atol=0.0)


def test_training_follows_pytorch():
    """The same model, the same batches: losses that differ by rounding alone."""
    curves = []
    for criterion in (torch.nn.CrossEntropyLoss(), pyce.torch.CrossEntropyLoss()):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(20):
            x, y = torch.randn(64, 20), torch.randint(10, (64,))
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)


# ---------------------------------------------------------------------------------------------
# Derivatives


@targets
@reductions
def test_gradcheck_and_gradgradcheck(kind, reduction, backend):
    logits, _ = example(rows=3, dtype=torch.float64)
    target, options = kinds_of_target(rows=3, dtype=torch.float64)[kind]
    leaves = [logits]
    if target.is_floating_point():
        leaves.append(target.requires_grad_())

    arguments = {"reduction": reduction, **options}
    weight = arguments.pop("weight", None)

    def loss(x, t=target):
        return ours(x, t, weight, **arguments)

    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


def test_gradgradcheck_of_probabilities_that_need_no_gradient():
    logits, _ = example(dtype=torch.float64)
    target, options = kinds_of_target(dtype=torch.float64)["probabilities"]
    assert gradgradcheck(lambda x: ours(x, target, **options), [logits])


def test_gradgradcheck_where_no_class_has_weight():
    logits, target = example(dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert gradgradcheck(lambda x: ours(x, target, weight, reduction="sum"), [logits])


@dtypes
def test_third_derivatives(dtype):
    def third(function, logits):
        loss = function(logits, target)
        for _ in range(2):
            (first,) = torch.autograd.grad(loss, logits, create_graph=True)
            loss = (first.to(loss.dtype) ** 2).sum()
        return torch.autograd.grad(loss, logits)[0]

    logits, target = example(dtype=dtype)
    expected = third(theirs, logits.detach().double().requires_grad_())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.03)
    assert_close(third(ours, logits).double(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_loss_and_a_penalty_on_its_gradient(dtype, scale):
    """Both derivatives in one walk, each with a factor."""

    def penalised(function, logits):
        loss = function(logits, target)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        total = scale * (loss + 3 * (first.to(loss.dtype) ** 2).sum())
        return torch.autograd.grad(total, logits)[0]

    logits, target = example(dtype=dtype)
    expected = penalised(theirs, logits.detach().double().requires_grad_())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.01)
    assert_close(penalised(ours, logits).double(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@reductions
def test_rows_that_are_all_ignored_have_derivatives_of_zero(dtype, reduction):
    logits, _ = example(dtype=dtype)
    loss = ours(logits, torch.full((6,), -100), label_smoothing=0.1, reduction=reduction)
    (first,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad((first + first**2).sum(), logits)
    assert first.count_nonzero() == second.count_nonzero() == 0


@reductions
def test_derivatives_of_no_rows(reduction):
    logits = torch.zeros(0, 5, requires_grad=True)
    for target in (torch.zeros(0, 5), torch.zeros(0, 5, requires_grad=True), torch.zeros(0).long()):
        leaves = [t for t in (logits, target) if t.requires_grad]
        loss = ours(logits, target, reduction=reduction).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        (second,) = torch.autograd.grad(sum(g.sum() for g in first), logits)
        assert [g.shape for g in (*first, second)] == [(0, 5)] * (len(leaves) + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@reductions
@targets
def test_many_gradients_in_one_pass(dtype, reduction, kind):
    """As Jacobians are computed."""
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]
    leaves = [logits]
    if target.is_floating_point():
        leaves.append(target.requires_grad_())
    loss = ours(logits, target, reduction=reduction, **options)
    upstream = torch.rand(3, *loss.shape).to(dtype)

    def backward(u):
        return torch.autograd.grad(loss, leaves, u, retain_graph=True)

    one_by_one = [backward(u) for u in upstream]
    for together in (
        torch.vmap(backward)(upstream),
        torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True),
    ):
        for got, expected in zip(together, zip(*one_by_one, strict=True), strict=True):
            assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_tangent_of_what_comes_from_above(dtype):
    from torch.autograd import forward_ad

    logits, target = example(dtype=dtype)
    once = step(ours, logits, target)[1]
    loss = ours(logits, target)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3.0))
        (grad,) = torch.autograd.grad(loss, logits, upstream)
        assert_close(forward_ad.unpack_dual(grad).tangent, 3 * once)


@pytest.mark.parametrize("keep", ["nothing", "gradient", "lse"])
@reductions
@targets
def test_opcheck(keep, reduction, kind):
    """The schema, the autograd registration, fake tensors, and what torch.compile makes of it."""
    for dtype in (torch.float64, torch.float16):
        logits, _ = example(dtype=dtype)
        target, options = kinds_of_target(dtype=dtype)[kind]
        done = torch.library.opcheck(
            torch.ops.pyce.cross_entropy.default,
            (
                logits if keep != "nothing" else logits.detach(),
                target,
                options.get("weight"),
                reduction,
                options.get("ignore_index", -100),
                options.get("label_smoothing", 0.0),
                keep,
                dtype is torch.float16,
            ),
        )
        assert len(done) == 4
        assert set(done.values()) == {"SUCCESS"}


@reductions
def test_opcheck_of_the_backward_operator(reduction):
    logits, target = example(dtype=torch.float16)
    lse = logits.detach().double().logsumexp(1)
    grad_loss = torch.ones(6 if reduction == "none" else (), dtype=torch.float16)
    arguments = (grad_loss, logits.detach(), target, lse, None, reduction, -100, 0.1)
    done = torch.library.opcheck(torch.ops.pyce.cross_entropy_backward.default, arguments)
    assert len(done) == 4
    assert set(done.values()) == {"SUCCESS"}


@dtypes
@reductions
def test_what_comes_from_above_scales_the_gradient(dtype, reduction):
    logits, target = example(dtype=dtype)
    loss = ours(logits, target, reduction=reduction)
    upstream = torch.rand(loss.shape).to(dtype) + 0.5
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    exact = logits.detach().double().requires_grad_()
    truth = theirs(exact, target, reduction=reduction)
    (truth,) = torch.autograd.grad(truth, exact, upstream.double())
    assert grad.dtype == dtype
    assert_close(grad, truth.to(dtype))


@dtypes
@reductions
def test_a_graph_may_be_walked_again(dtype, reduction):
    """Whoever changes the gradient that he got changes nothing that another walk needs."""
    logits, target = example(dtype=dtype)
    once = step(ours, logits, target, reduction=reduction)[1]
    for scale in (1.0, 2.0):
        loss = (scale * ours(logits, target, reduction=reduction)).sum()
        for _ in range(3):
            logits.grad = None
            loss.backward(retain_graph=True)
            assert torch.equal(logits.grad, scale * once)
            logits.grad.zero_()
        logits.grad = None
        loss.backward()
        assert torch.equal(logits.grad, scale * once)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_losses_of_the_same_logits_add_up():
    logits, target = example()
    once = step(ours, logits, target)[1]
    (ours(logits, target) + ours(logits, target)).backward()
    ours(logits, target).backward()
    assert_close(logits.grad, 3 * once)


def test_float16_gradients_survive_by_the_scale_of_the_loss():
    """As PyTorch's: 10⁻⁹ is nothing in float16, and 65536 times that is something."""
    logits = torch.zeros(64, 1000, dtype=torch.float16)
    logits[:, 0] = 12.0
    logits.requires_grad_()
    target = torch.zeros(64, dtype=torch.int64)
    loss = ours(logits, target)
    (unscaled,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 2.0**14, logits)
    exact = true_step(logits, target)[1] * 2.0**14
    assert (unscaled[:, 1:] == 0).any() or unscaled[:, 1:].max() < 1e-6
    assert_close(scaled.double(), exact, rtol=2e-3, atol=0.0)


# ---------------------------------------------------------------------------------------------
# Memory


def saved_by(function):
    """What autograd keeps for the backward pass, and the result."""
    kept = []

    def pack(tensor):
        kept.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        return kept, function()


@pytest.mark.parametrize("shape", [(6, 5), (1100, 1024), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_gradient_is_kept_and_handed_on_where_it_lies(shape, dtype, scale):
    logits = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    kept, loss = saved_by(lambda: ours(logits, target))
    assert sorted(n for _, n in kept) == sorted([logits.numel(), target.numel()])
    (place,) = (p for p, n in kept if n == logits.numel())
    assert place != logits.data_ptr()
    loss.backward(torch.tensor(scale, dtype=dtype))
    assert logits.grad.data_ptr() == place
    assert logits.grad.is_contiguous()
    expected = true_step(logits, target)[1] * scale
    assert_close(logits.grad, expected.to(dtype))


def test_the_summed_losses_of_rows_need_no_scaling_either():
    logits, target = example()
    kept, loss = saved_by(lambda: ours(logits, target, reduction="none"))
    loss.sum().backward()
    assert logits.grad.data_ptr() in [p for p, _ in kept]


def test_float16_keeps_the_logits_where_they_lie():
    logits, target = example(dtype=torch.float16)
    kept, _ = saved_by(lambda: ours(logits, target))
    assert sorted(n for _, n in kept) == sorted([6, 6, logits.numel()])
    assert logits.data_ptr() in [p for p, _ in kept]


@dtypes
@pytest.mark.parametrize("way", ["fast", "general"])
def test_the_kernels_read_the_tensors_own_memory(dtype, way, monkeypatch, backend):
    read = []
    logits, target = example(dtype=dtype)
    weight = None
    if way == "general":
        target = target.int()

    def at_addresses(**arguments):
        read.extend([arguments["logits"], arguments["labels"]])
        return there(**arguments)

    def with_arrays(x, t, **options):
        read.extend([x.__array_interface__["data"][0], t.__array_interface__["data"][0]])
        return general(x, t, **options)

    with_grad = dtype is not torch.float16
    name = "cross_entropy_with_grad" if with_grad else "cross_entropy"
    general = getattr(pyce, name)
    monkeypatch.setattr(pyce, name, with_arrays)
    if backend.name == "c":
        from pyce._backends import c

        there = c.at_addresses
        monkeypatch.setattr(c, "at_addresses", at_addresses)
    ours(logits, target, weight)
    assert read == [logits.data_ptr(), target.data_ptr()]


def largest(function):
    """The most memory that PyTorch or NumPy took at once, in bytes, and the result."""
    with torch.profiler.profile(profile_memory=True) as profile:
        tracemalloc.start()
        result = function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result, max([peak, *(e.self_cpu_memory_usage for e in profile.events())])


@dtypes
@reductions
def test_inference_allocates_and_keeps_nothing(dtype, reduction):
    rows, classes = 300, 4096
    logits = torch.randn(rows, classes).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,))

    def call():
        return ours(logits, target, reduction=reduction)

    for context in (torch.no_grad, torch.inference_mode):
        with context():
            call()  # what is made once
            kept, (loss, most) = saved_by(lambda: largest(call))
        assert kept == []
        assert loss.grad_fn is None
        assert most < logits.numel()  # bytes: a fraction of the logits
    _, most = largest(call)
    assert dtype is torch.float16 or most >= logits.numel() * logits.element_size()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@reductions
def test_the_backward_pass_allocates_nothing(scale, reduction):
    logits = torch.randn(300, 4096, requires_grad=True)
    target = torch.randint(4096, (300,))
    for loss in (ours(logits, target, reduction=reduction) for _ in range(2)):
        logits.grad = None
        most = largest(lambda loss=loss: loss.backward(torch.full(loss.shape, scale)))[1]
    assert most < logits.numel()


def test_the_gradient_is_freed_with_the_graph_and_not_with_the_loss():
    logits, target = example()
    middle = logits * 2
    loss = ours(middle, target)
    gradients = []
    middle.register_hook(lambda grad: gradients.append(weakref.ref(grad.untyped_storage())))
    loss.backward()
    logits.grad = None
    gc.collect()
    assert [g() for g in gradients] == [None]
    assert loss.item() > 0


# ---------------------------------------------------------------------------------------------
# torch.compile, transforms, modes


@compilers
@pytest.mark.parametrize("kind", ["labels", "weighted and smoothed", "probabilities"])
def test_compiled(compiler, kind):
    """In one graph, with what is around it, and the operator in it."""
    torch.compiler.reset()
    target, options = kinds_of_target()[kind]

    def model(x, function):
        return function(2 * x + 1, target, **options)

    for dtype in (torch.float32, torch.float16):
        logits, _ = example(dtype=dtype)
        compiled = torch.compile(lambda x: model(x, ours), backend=compiler, fullgraph=True)
        loss = compiled(logits)
        (grad,) = torch.autograd.grad(loss, logits)
        expected = model(logits, ours)
        assert_close(loss, expected)
        assert_close(grad, torch.autograd.grad(expected, logits)[0])
    with torch.no_grad():
        assert_close(compiled(logits), expected)


@compilers
def test_compiled_for_any_batch(compiler):
    torch.compiler.reset()
    compiled = torch.compile(ours, backend=compiler, dynamic=True, fullgraph=True)
    for rows in (4, 6, 9):
        logits, target = example(rows)
        for got, expected in zip(
            step(compiled, logits, target), step(ours, logits, target), strict=True
        ):
            assert_close(got, expected)


def test_compiled_transforms():
    from torch.func import grad, vmap

    torch.compiler.reset()
    logits, target = example()
    logits = logits.detach()
    for transform in (vmap, grad, lambda f: vmap(grad(f))):
        compiled = torch.compile(transform(ours), backend="aot_eager")
        assert_close(compiled(logits, target), transform(theirs)(logits, target))


def test_compiled_backward():
    """The backward pass alone is traced: what it does there can't depend on numbers."""
    from torch._dynamo import compiled_autograd

    torch.compiler.reset()
    for dtype in (torch.float32, torch.float16):
        logits, target = example(dtype=dtype)
        expected = 2 * step(ours, logits, target)[1]
        loss = 2 * ours(logits, target)
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            loss.backward()
        assert_close(logits.grad, expected)


def test_the_compiled_graph_holds_the_operator():
    torch.compiler.reset()
    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    logits, target = example()
    torch.compile(pyce.torch.CrossEntropyLoss(), backend=look, fullgraph=True)(logits, target)
    assert any("pyce.cross_entropy" in name for name in seen)


def test_exported_and_traced():
    logits, target = example()
    other = torch.randn(6, 5)
    program = torch.export.export(pyce.torch.CrossEntropyLoss(), (logits.detach(), target))
    assert torch.equal(program.module()(other, target), ours(other, target))
    traced = torch.jit.trace(lambda x, t: ours(x, t), (logits.detach(), target))
    assert torch.equal(traced(other, target), ours(other, target))


def test_modes_see_the_operator():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, target = example()
    graph = make_fx(lambda x, t: ours(x, t))(logits.detach(), target)
    assert "pyce.cross_entropy" in graph.code
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(logits)
        loss = ours(fake, mode.from_tensor(target), reduction="none")
        assert loss.shape == (6,)
        loss.sum().backward()
        assert fake.grad.shape == (6, 5)


def test_transforms_get_what_pytorch_computes():
    logits, target = example()
    logits = logits.detach()
    from torch.func import grad, hessian, vmap

    for function in (ours, theirs):
        per_row = vmap(grad(function))(logits, target)
        assert_close(per_row, step(theirs, logits.clone().requires_grad_(), target)[1] * 6)
    assert_close(
        hessian(lambda x: ours(x, target))(logits), hessian(lambda x: theirs(x, target))(logits)
    )
    import torch.autograd.forward_ad as forward_ad

    tangents = []
    for function in (ours, theirs):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits, torch.ones_like(logits).cumsum(1))
            tangents.append(forward_ad.unpack_dual(function(dual, target)).tangent)
    assert_close(*tangents)


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    logits, target = example()
    loss = checkpoint(lambda x: ours(2 * x, target), logits, use_reentrant=False)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad, torch.autograd.grad(ours(2 * logits, target), logits)[0])


def test_tensors_that_override_functions_are_asked():
    seen = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    logits, target = example()
    loss = ours(logits.detach().as_subclass(Asked), target, reduction="none")
    assert seen == [ours]
    assert type(loss) is Asked
    assert torch.equal(loss.as_subclass(torch.Tensor), ours(logits, target, reduction="none"))


def test_modes_that_override_functions_are_asked():
    from torch.overrides import TorchFunctionMode

    seen = []

    class Asked(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Asked():
        ours(*example())
    assert ours in seen


@targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_results_are_where_the_logits_are(kind, dtype):
    """Whatever the default device is."""
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]
    expected = step(ours, logits, target, **options)
    torch.set_default_device("meta")
    try:
        found = step(ours, logits, target, **options)
        loss = ours(logits, target, **options)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        torch.autograd.grad(first.sum(), logits)
    finally:
        torch.set_default_device(None)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_autocast(dtype, soft):
    """The dtype that PyTorch gives; but no copy of the logits is cast."""
    logits, target = example(dtype=dtype)
    if soft:
        target = torch.rand(6, 5)
    with torch.autocast("cpu"):
        expected = theirs(logits, target)
        loss = ours(logits, target)
    assert loss.dtype == expected.dtype
    assert_close(loss, expected)
    loss.backward()
    assert logits.grad.dtype == dtype
    assert_close(logits.grad, torch.autograd.grad(expected, logits)[0])


def test_autocast_around_a_model():
    x, y = torch.randn(8, 20), torch.arange(8)
    model = torch.nn.Linear(20, 10)
    grads = []
    for function in (ours, theirs):
        model.zero_grad()
        with torch.autocast("cpu"):
            loss = function(model(x), y)
        assert loss.dtype == torch.float32
        loss.backward()
        grads.append(model.weight.grad)
    assert_close(*grads, rtol=0.02, atol=1e-3)


# ---------------------------------------------------------------------------------------------
# Errors


LOGITS = torch.zeros(4, 3)
LABELS = torch.tensor([0, 1, 2, 1])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch's word on how new they are
    SPARSE_ROWS = torch.eye(4).to_sparse_csr()
REFUSED = {
    "no tensor": ((LOGITS.numpy(), LABELS), {}, TypeError, "input must be a tensor, got ndarray"),
    "a list of labels": ((LOGITS, [0, 1, 2, 1]), {}, TypeError, "target must be a tensor"),
    "a list of weights": ((LOGITS, LABELS, [1.0] * 3), {}, TypeError, "weight must be a tensor"),
    "integer logits": ((LABELS.reshape(4, 1), LABELS), {}, TypeError, "logits must be float16"),
    "complex logits": ((LOGITS + 1j, LABELS), {}, TypeError, "logits must be float16"),
    "floating labels": ((LOGITS, LABELS.float()), {}, TypeError, "indices must be integers"),
    "boolean labels": ((LOGITS, LABELS > 0), {}, TypeError, "target"),
    "another device": ((LOGITS.to("meta"), LABELS), {}, ValueError, "on the CPU, and is on meta"),
    "labels elsewhere": ((LOGITS, LABELS.to("meta")), {}, ValueError, "target must be on the CPU"),
    "sparse logits": ((LOGITS.to_sparse(), LABELS), {}, ValueError, "dense .*sparse_coo"),
    "sparse rows": ((SPARSE_ROWS, LABELS), {}, ValueError, "dense .*sparse_csr"),
    "sparse target": ((LOGITS, LOGITS.to_sparse()), {}, ValueError, "target must be a dense"),
    "no dimension": ((torch.tensor(1.0), torch.tensor(0)), {}, ValueError, "at least one dim"),
    "no classes": ((torch.zeros(2, 0), LABELS[:2]), {}, ValueError, "at least one class"),
    "other rows": ((LOGITS, LABELS[:3]), {}, ValueError, "(3,)"),
    "other weights": ((LOGITS, LABELS, torch.ones(4)), {}, ValueError, "weight must have shape"),
    "a label too large": ((LOGITS, LABELS + 1), {}, IndexError, "target of row 2 is 3"),
    "a negative label": ((LOGITS, LABELS - 1), {}, IndexError, "target of row 0 is -1"),
    "unknown reduction": ((LOGITS, LABELS), {"reduction": "avg"}, ValueError, "reduction must be"),
    "smoothing": ((LOGITS, LABELS), {"label_smoothing": 2.0}, ValueError, "label_smoothing"),
    "size_average": ((LOGITS, LABELS), {"size_average": False}, ValueError, "say reduction="),
    "reduce": ((LOGITS, LABELS), {"reduce": True}, ValueError, "say reduction="),
    "ignored probabilities": (
        (LOGITS, torch.rand(4, 3)), {"ignore_index": 1}, ValueError, "class indices"
    ),
    "gradient of weights": (
        (LOGITS, LABELS, torch.ones(3, requires_grad=True)), {}, NotImplementedError, "weight"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("with_grad", [False, True])
def test_refused(case, with_grad, backend):
    arguments, options, error, words = REFUSED[case]
    if with_grad and isinstance(arguments[0], torch.Tensor) and arguments[0].is_floating_point():
        arguments = (arguments[0].detach().requires_grad_(), *arguments[1:])
    before = [torch.clone(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        ours(*arguments, **options)
    for argument, was in zip(arguments, before, strict=True):
        if isinstance(argument, torch.Tensor):
            assert argument.grad is None
            if argument.device.type == "cpu" and argument.layout is torch.strided:
                assert torch.equal(argument, was)


def test_nested_tensors_are_refused():
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=layout)
        with pytest.raises(ValueError, match="dense"):
            ours(nested, LABELS)


def test_freed_memory_is_not_read(backend):
    for weight in (None, torch.ones(3)):
        logits, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
        logits.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="without memory"):
            ours(logits, LABELS, weight)
        labels.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="without memory"):
            ours(LOGITS, labels, weight)


def test_freed_memory_is_not_read_through_a_view(run_python):
    """Whose address is not 0; in a process of its own, which would end with it."""
    code = """
import itertools, torch, pyce.torch

def freed(tensor):
    view = torch.cat([tensor[:1], tensor])[1:]
    view.untyped_storage().resize_(0)
    return view

def cut(tensor):
    whole = tensor.repeat(*[1] * (tensor.dim() - 1), 2)
    view = whole[..., ::2] if tensor.dim() == 2 else tensor.clone()
    view.untyped_storage().resize_(view.untyped_storage().nbytes() - view.itemsize * tensor.dim())
    return view

for backend in pyce.backends():
    with pyce.use_backend(backend):
        for integer in (torch.int64, torch.int32):
            for floating in (torch.float32, torch.float64):
                whole = [
                    torch.zeros(4, 3, dtype=floating),
                    torch.ones(4, dtype=integer),
                    torch.ones(3, dtype=floating),
                ]
                for i, spoil in itertools.product(range(3), (freed, cut)):
                    tensors = [spoil(t) if i == j else t for j, t in enumerate(whole)]
                    try:
                        pyce.torch.cross_entropy(*tensors)
                    except ValueError as error:
                        assert "without memory" in str(error)
                    else:
                        raise AssertionError
"""
    run_python("-c", code)


def test_weights_that_need_a_gradient_may_be_used_without_one():
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(ours(LOGITS, LABELS, weight), ours(LOGITS, LABELS))


def test_pytorch_is_asked_for_by_the_name_of_the_extra(run_python):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pyce\n"
        "try: pyce.torch\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install 'pyce[torch]'" in run_python("-c", code).stdout


# ---------------------------------------------------------------------------------------------
# The module, and putting it in PyTorch's place


def test_the_module_is_pytorchs():
    weight = torch.rand(5)
    options = {"ignore_index": 0, "reduction": "sum", "label_smoothing": 0.1}
    mine = pyce.torch.CrossEntropyLoss(weight, **options)
    other = torch.nn.CrossEntropyLoss(weight, **options)
    assert isinstance(mine, torch.nn.CrossEntropyLoss)
    assert repr(mine) == repr(other)
    assert mine.state_dict().keys() == other.state_dict().keys() == {"weight"}
    logits, target = example()
    assert_close(mine(logits, target), other(logits, target))
    assert mine.double().weight.dtype == torch.float64
    for again in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(again(logits, target), mine(logits, target))
    with pytest.raises(ValueError, match="say reduction="):
        pyce.torch.CrossEntropyLoss(size_average=True)


def test_patched():
    logits, target = example()
    criterion = torch.nn.CrossEntropyLoss()

    def operation():
        return criterion(logits, target).grad_fn.name(), F.cross_entropy is ours

    theirs_now = operation()
    assert theirs_now[1] is False
    with pyce.torch.patched():
        inside = operation()
        assert inside[1] is True
        assert "_CrossEntropy" in inside[0]
        with pyce.torch.patched():
            assert operation() == inside
        assert operation() == inside
    assert operation() == theirs_now
    with pytest.raises(KeyError), pyce.torch.patched():
        raise KeyError
    assert F.cross_entropy is theirs


def test_patched_compiles_again():
    torch.compiler.reset()
    logits, target = example()
    compiled = torch.compile(torch.nn.CrossEntropyLoss(), backend="eager")

    def is_ours():
        return "pyce" in compiled(logits, target).grad_fn.name()

    assert not is_ours()
    with pyce.torch.patched():
        assert is_ours()
    assert not is_ours()


def test_patches_that_overlap():
    """In two threads, the first to come the first to go."""
    first, second, ended = threading.Event(), threading.Event(), threading.Event()

    def other():
        with pyce.torch.patched():
            first.set()
            second.wait(30)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    first.wait(30)
    with pyce.torch.patched():
        second.set()
        ended.wait(30)
        assert F.cross_entropy is ours
    thread.join()
    assert F.cross_entropy is theirs


@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=["fast", "general"])
def test_no_more_threads_than_pytorch_is_allowed(kind, monkeypatch):
    seen = []
    budget = _threads.budget
    monkeypatch.setattr(_threads, "_unlimited", lambda: 8.0)
    monkeypatch.setattr(_threads, "budget", lambda: seen.append(budget()) or seen[-1])
    before = torch.get_num_threads()
    logits, target = example(1000, 1000)
    asked = []
    if "c" in pyce.backends():
        from pyce._backends import c

        function = c._cross_entropy
        monkeypatch.setattr(c, "_cross_entropy", lambda *a: asked.append(a[3]) or function(*a))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.clear(), asked.clear()
            with torch.no_grad():
                ours(logits, target.to(kind))
            assert (asked or seen) == [threads]
    finally:
        torch.set_num_threads(before)
