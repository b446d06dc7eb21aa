"""pyce.torch's operators: PyTorch's checks of them, torch.compile, transforms and modes."""

import shutil

import pytest

torch = pytest.importorskip("torch")

from torch.testing import assert_close  # noqa: E402
from torch_cases import (  # noqa: E402
    WARNINGS,
    dtypes,
    example,
    kinds_of_target,
    ours,
    reductions,
    step,
    targets,
    theirs,
)

import pyce.torch  # noqa: E402

pytestmark = WARNINGS


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


@pytest.fixture(autouse=True, scope="module")
def _quickly_compiled():
    """TorchInductor's code, which is that around the operator, has no vectors: to find out which
    ones the compiler knows, it would compile and run a program for each instruction set.
    """
    from torch._inductor import config

    with config.patch({"cpp.vec_isa_ok": False}):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------
# PyTorch's checks


SAVED = ("nothing", "gradient", "lse")
# All combinations for labels and for probabilities, and each kind of options with each of both.
CHECKED = [
    (save, reduction, kind)
    for kind in kinds_of_target()
    for i, save in enumerate(SAVED)
    for j, reduction in enumerate(("mean", "sum", "none"))
    if i == j or kind in ("labels", "probabilities")
]


@pytest.mark.parametrize(("save", "reduction", "kind"), CHECKED)
def test_opcheck(save, reduction, kind):
    """The schema, the autograd registration, fake tensors, and tracing with dynamic shapes.

    The dtype of the results depends on the dtype, the reduction and what is saved, and not on the
    kind of target: float16 runs for two kinds.
    """
    float16 = [torch.float16] if kind in ("labels", "probabilities") else []
    for dtype in (torch.float64, *float16):
        logits, _ = example(dtype=dtype)
        target, options = kinds_of_target(dtype=dtype)[kind]
        done = torch.library.opcheck(
            torch.ops.pyce.cross_entropy.default,
            (
                logits if save != "nothing" else logits.detach(),
                target,
                options.get("weight"),
                reduction,
                options.get("ignore_index", -100),
                options.get("label_smoothing", 0.0),
                save,
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


def test_opcheck_of_logits_that_are_not_contiguous():
    logits = torch.randn(6, 10)[:, ::2]
    arguments = (logits, torch.arange(6) % 5, None, "mean", -100, 0.0, "gradient", False)
    done = torch.library.opcheck(torch.ops.pyce.cross_entropy.default, arguments)
    assert set(done.values()) == {"SUCCESS"}


# ---------------------------------------------------------------------------------------------
# torch.compile, transforms, modes


@compilers
@pytest.mark.parametrize("kind", ["labels", "weighted and smoothed", "probabilities"])
def test_compiled(compiler, kind):
    """One graph holds the operator and the operations around it."""
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
    """Only the backward pass is traced: it cannot depend on values there."""
    from torch._dynamo import compiled_autograd

    torch.compiler.reset()
    for dtype in (torch.float32, torch.float16):
        logits, target = example(dtype=dtype)
        expected = 2 * step(ours, logits, target)[1]
        loss = 2 * ours(logits, target)
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            loss.backward()
        assert_close(logits.grad, expected)


def test_compiled_backward_of_layers_and_choices():
    from torch._dynamo import compiled_autograd

    torch.compiler.reset()
    logits, index = example()
    weight = torch.randn(6, logits.shape[1], requires_grad=True)

    def loss():
        log_probs, entropy = pyce.torch.selective_log_softmax(logits, index, 1.5, True)
        rows = pyce.torch.linear_cross_entropy(logits, weight, index, reduction="none")
        mean = pyce.torch.linear_cross_entropy(logits, weight, index, softcap=3.0)
        return (log_probs * entropy + rows).sum() + 2 * mean

    expected = torch.autograd.grad(loss(), (logits, weight))
    traced = loss()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        traced.backward()
    assert_close((logits.grad, weight.grad), expected)


def test_the_compiled_graph_holds_the_operator():
    torch.compiler.reset()
    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    logits, target = example()
    torch.compile(pyce.torch.CrossEntropyLoss(), backend=look, fullgraph=True)(logits, target)
    assert any("pyce.cross_entropy" in name for name in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_in_channels_last(dtype):
    """The memory layout of the gradient is known when the graph is compiled."""
    images = torch.randn(2, 5, 3, 4).to(dtype).to(memory_format=torch.channels_last)
    target = torch.randint(5, (2, 3, 4))
    grads = []
    for function in (ours, torch.compile(ours, fullgraph=True)):
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()
        function(leaf, target).backward()
        assert leaf.grad.stride() == images.stride()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_exported_and_traced():
    logits, target = example()
    other = torch.randn(6, 5)
    program = torch.export.export(pyce.torch.CrossEntropyLoss(), (logits.detach(), target))
    assert torch.equal(program.module()(other, target), ours(other, target))
    traced = torch.jit.trace(lambda x, t: ours(x, t), (logits.detach(), target))
    assert torch.equal(traced(other, target), ours(other, target))


def test_calls_that_communicate_are_not_exported():
    class Of(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, *arguments):
            return self.function(*arguments)

    x, y = torch.randn(4, 5), torch.tensor([0, 4, -100, 3])
    for function, arguments in (
        (pyce.torch.vocab_parallel_cross_entropy, (x, y)),
        (pyce.torch.vocab_parallel_linear_cross_entropy, (x, torch.randn(6, 5), y)),
    ):
        with pytest.raises(NotImplementedError, match="cannot be traced"):
            torch.export.export(Of(function), arguments)


def test_compilers_pass_the_strides_that_they_traced():
    """The layout of the gradient follows from them."""
    exact = getattr(torch.Tag, "needs_exact_strides", None)
    wanted = exact or torch.Tag.needs_fixed_stride_order
    for name in ("cross_entropy", "cross_entropy_backward"):
        assert wanted in getattr(torch.ops.pyce, name).default.tags


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a module"])
def test_scripting_is_refused(inside):
    found = pyce.torch.CrossEntropyLoss()
    for what in (torch.nn.Sequential(found), ours) if inside else (found, ours):
        with pytest.raises(NotImplementedError, match=r"use torch\.compile"):
            torch.jit.script(what)


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
        images, labels = torch.randn(2, 5, 3, 4), torch.zeros(2, 3, 4).long()
        loss = ours(mode.from_tensor(images), mode.from_tensor(labels), reduction="none")
        assert loss.shape == (2, 3, 4)


@reductions
def test_fake_tensors_outside_of_their_mode(reduction):
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    logits, target = example()
    fake = mode.from_tensor(logits)
    loss = ours(fake, mode.from_tensor(target), reduction=reduction)
    assert loss.shape == ((6,) if reduction == "none" else ())
    with mode:
        loss.sum().backward()
    assert fake.grad.shape == logits.shape


@dtypes
@reductions
def test_a_step_with_its_backward_pass_is_captured(dtype, reduction):
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, target = example(dtype=dtype)
    target[2] = -100

    def gradient(x, scale):
        return torch.autograd.grad((ours(x, target, reduction=reduction) * scale).sum(), x)[0]

    scale = torch.tensor(3.0)
    graph = make_fx(gradient)(logits, scale)
    other = torch.randn(6, 5).to(dtype).requires_grad_()
    tolerance = {"rtol": 2**-7, "atol": 1e-3} if dtype.itemsize == 2 else {}
    assert_close(graph(other, 2 * scale), gradient(other, 2 * scale), **tolerance)


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_transforms_of_labels_and_weights_of_any_dtype(dtype):
    """PyTorch's own function takes int64, and weights of the logits' dtype."""
    from torch.func import grad

    logits = torch.randn(6, 5, dtype=torch.float64)
    target, weight = torch.tensor([0, 1, 2, 3, 4, 0]), torch.rand(5)
    expected = grad(lambda x: theirs(x, target, weight.double()))(logits)
    assert_close(grad(lambda x: ours(x, target.to(dtype), weight))(logits), expected)
    soft = torch.rand(6, 5).to(torch.bfloat16)
    expected = grad(lambda x: theirs(x, soft.double(), label_smoothing=0.1))(logits)
    assert_close(grad(lambda x: ours(x, soft, label_smoothing=0.1))(logits), expected)
    losses = []
    grad(lambda x: losses.append(ours(x, soft.double())) or losses[0])(logits.float())
    assert losses[0].dtype is torch.float32
    layer = grad(lambda w: pyce.torch.linear_cross_entropy(logits, w, target.to(dtype)))
    right = grad(lambda w: theirs(logits @ w.t(), target))
    assert_close(layer(logits[:5].clone()), right(logits[:5]))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_subclass_without_a_dispatch_of_its_own_needs_no_operator(dtype):
    class Plain(torch.Tensor):
        pass

    logits, target = example(dtype=dtype)
    expected = step(ours, logits, target)
    leaf = logits.detach().clone().as_subclass(Plain).requires_grad_()
    loss = ours(leaf, target)
    assert type(loss) is Plain
    ((node, _),) = loss.grad_fn.next_functions  # of the alias that has the type of the subclass
    assert type(node).__name__ == "_CrossEntropyBackward"
    loss.backward()
    assert torch.equal(loss.as_subclass(torch.Tensor), expected[0])
    assert torch.equal(leaf.grad.as_subclass(torch.Tensor), expected[1])


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
    """The default device does not matter."""
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
    """The dtype is that of PyTorch, and the logits are not cast."""
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
