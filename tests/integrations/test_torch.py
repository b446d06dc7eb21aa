"""pyce.torch.cross_entropy and its module: results, errors and threads, compared with PyTorch."""

import copy
import inspect
import pickle
import random
import warnings

import numpy as np
import pytest
from conftest import one_isa

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
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
    true_step,
)

import pyce  # noqa: E402
import pyce.torch  # noqa: E402
from pyce import _threads  # noqa: E402

pytestmark = WARNINGS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    random.seed(0)  # for the sample inputs of PyTorch's OpInfo


# ---------------------------------------------------------------------------------------------
# What it computes


def test_the_signature_is_pytorchs():
    def plain(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    added = ("lse_square_scale", inspect.Parameter.KEYWORD_ONLY, 0.0)
    assert plain(ours) == [*plain(theirs), added]
    assert plain(pyce.torch.CrossEntropyLoss) == [*plain(torch.nn.CrossEntropyLoss), added]


def samples(dtype):
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == "nn.functional.cross_entropy")
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(found) > 15
    return found


@one_isa
@dtypes
def test_pytorchs_own_samples(dtype, backend):
    """Compared with PyTorch in float64: losses, gradients of logits and probabilities, dtypes."""
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


@one_isa
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


@one_isa
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
@reductions
def test_gradients_of_the_loss_negated_lazily(reduction):
    """Whatever was saved: the gradient, or lse if probabilities need a gradient, too."""
    logits, labels = example(dtype=torch.float64)
    for target in (labels, torch.rand(logits.shape).double().requires_grad_()):
        loss = ours(logits, target, reduction=reduction)
        upstream = torch.rand(loss.shape).double()
        expected = torch.autograd.grad(loss, logits, upstream, retain_graph=True)
        (got,) = torch.autograd.grad(loss, logits, torch._neg_view(-upstream))
        assert torch.equal(got, *expected)


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
    """p − 1 would be 0: the gradient at the target is minus the sum of the others."""
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
    """With the same model and batches, losses differ by rounding only."""
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
# Errors

LOGITS = torch.zeros(4, 3)
LABELS = torch.tensor([0, 1, 2, 1])

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch warns that sparse rows are new
    SPARSE_ROWS = torch.eye(4).to_sparse_csr()

REFUSED = {
    "no tensor": ((LOGITS.numpy(), LABELS), {}, TypeError, "tensor, got ndarray: torch.from_numpy"),
    "a list of labels": ((LOGITS, [0, 1, 2, 1]), {}, TypeError, "target must be a tensor"),
    "a list of weights": ((LOGITS, LABELS, [1.0] * 3), {}, TypeError, "weight must be a tensor"),
    "integer logits": ((LABELS.reshape(4, 1), LABELS), {}, TypeError, "input must be float16"),
    "complex logits": ((LOGITS + 1j, LABELS), {}, TypeError, "input must be float16"),
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
    "labels of a single row": ((LOGITS[0], LABELS[:3]), {}, ValueError, "target of shape (3,)"),
    "classes last": (
        (torch.zeros(2, 3, 5), LABELS[None, :3].repeat(2, 1)), {}, ValueError, "input.movedim(2, 1)"
    ),
    "other weights": ((LOGITS, LABELS, torch.ones(4)), {}, ValueError, "weight must have shape"),
    "a label too large": ((LOGITS, LABELS + 1), {}, IndexError, "target of row 2 is 3"),
    "a negative label": ((LOGITS, LABELS - 1), {}, IndexError, "target of row 0 is -1"),
    "unknown reduction": ((LOGITS, LABELS), {"reduction": "avg"}, ValueError, "reduction must be"),
    "smoothing": ((LOGITS, LABELS), {"label_smoothing": 2.0}, ValueError, "label_smoothing"),
    "size_average": ((LOGITS, LABELS), {"size_average": False}, ValueError, "say reduction="),
    "reduce": ((LOGITS, LABELS), {"reduce": True}, ValueError, "say reduction="),
    "ignored probabilities": (
        (LOGITS, torch.rand(4, 3)), {"ignore_index": 0}, ValueError, "class indices"
    ),
    "gradient of weights": (
        (LOGITS, LABELS, torch.ones(3, requires_grad=True)), {}, NotImplementedError, "weight"
    ),
}  # fmt: skip


@one_isa
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("with_grad", [False, True])
def test_refused(case, with_grad, backend):
    arguments, options, error, words = REFUSED[case]
    if with_grad and isinstance(arguments[0], torch.Tensor) and arguments[0].is_floating_point():
        arguments = (arguments[0].detach().requires_grad_(), *arguments[1:])
    before = [torch.clone(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")) as raised:
        ours(*arguments, **options)
    assert "logits" not in str(raised.value)  # PyTorch's name is input
    for argument, was in zip(arguments, before, strict=True):
        if isinstance(argument, torch.Tensor):
            assert argument.grad is None
            if argument.device.type == "cpu" and argument.layout is torch.strided:
                assert torch.equal(argument, was)


def test_the_message_of_another_device_says_how_to_leave_it():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # needs no such device
        elsewhere = torch.empty(4, 3, device="cuda")
    with pytest.raises(ValueError, match=r"must be on the CPU, and is on cuda:0: \.cpu\(\) copies"):
        ours(elsewhere, LABELS)


def test_nested_tensors_are_refused():
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=layout)
        with pytest.raises(ValueError, match="dense"):
            ours(nested, LABELS)


@pytest.mark.parametrize(
    ("convert", "conversion"),
    [
        (lambda t: t.to(torch.float8_e4m3fn), "float"),
        (lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.qint8), "dequantize"),
    ],
    ids=["float8", "quantized"],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch is about to remove quantized tensors
def test_dtypes_that_numpy_lacks_are_refused_by_name(convert, conversion):
    message = rf"is torch\.\w+, which pyce does not read: \.{conversion}\(\) converts it"
    with pytest.raises(TypeError, match=f"input {message}"):
        ours(convert(LOGITS), LABELS)
    with pytest.raises(TypeError, match=f"target {message}"):
        ours(LOGITS, convert(LABELS))
    with pytest.raises(TypeError, match=f"weight {message}"):
        ours(LOGITS, LABELS, convert(torch.ones(LOGITS.shape[1])))
    with pytest.raises(TypeError, match=f"index {message}"):
        pyce.torch.selective_log_softmax(LOGITS, convert(LABELS))


@one_isa
def test_freed_memory_is_not_read(backend):
    for weight in (None, torch.ones(3)):
        logits, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
        logits.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="without memory"):
            ours(logits, LABELS, weight)
        labels.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="without memory"):
            ours(LOGITS, labels, weight)


def zeros(*shape, dtype=torch.float32):
    """Zeros without a storage, as the derivatives of PyTorch contain."""
    return torch._efficientzerotensor(shape, dtype=dtype)


@dtypes
def test_zeros_without_a_storage(backend, dtype):
    logits = torch.randn(3, 4).to(dtype)
    hidden, head, labels = torch.randn(3, 5).to(dtype), torch.randn(4, 5).to(dtype), LABELS[:3] % 4
    layer = pyce.torch.linear_cross_entropy
    for function, arguments in (
        (ours, (zeros(3, 4, dtype=dtype), labels)),
        (ours, (logits, zeros(3, 4, dtype=dtype))),
        (ours, (logits, zeros(3, dtype=torch.int64))),
        (ours, (logits, labels, zeros(4, dtype=dtype))),
        (layer, (zeros(3, 5, dtype=dtype), head, labels)),
        (layer, (hidden, zeros(4, 5, dtype=dtype), labels)),
        (layer, (hidden, head, zeros(3, dtype=torch.int64))),
        (pyce.torch.selective_log_softmax, (zeros(3, 4, dtype=dtype), labels)),
        (pyce.torch.selective_log_softmax, (logits, zeros(3, dtype=torch.int64))),
    ):
        found = []
        for first, *others in (arguments, [a.clone() for a in arguments]):
            leaf = first.detach().requires_grad_()
            loss = function(leaf, *others)
            found.append((function(first, *others), *torch.autograd.grad(loss.sum(), leaf)))
        assert_close(*found, rtol=0.0, atol=0.0, equal_nan=True)
    for function, arguments in ((ours, ()), (layer, (head,))):
        leaf = (hidden if arguments else logits).requires_grad_()
        for reduction in ("mean", "none"):
            loss = function(leaf, *arguments, labels, reduction=reduction)
            (grad,) = torch.autograd.grad(loss, leaf, zeros(*loss.shape, dtype=dtype))
            assert not grad.any()


def test_freed_memory_is_not_read_through_a_view(run_python):
    """The address of a view is not 0. In a new process, since reading it would crash."""
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


# ---------------------------------------------------------------------------------------------
# The module and threads


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


@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=["fast", "general"])
def test_as_many_threads_as_pytorch_is_allowed(kind, monkeypatch, many_processors):
    """Whatever OMP_NUM_THREADS says, which torchrun sets to 1: PyTorch has read it."""
    monkeypatch.setattr(_threads, "_of_openmp", 1)
    monkeypatch.delenv("PYCE_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_asked", None)
    seen = []
    budget = _threads.budget
    monkeypatch.setattr(_threads, "budget", lambda *n: seen.append(budget(*n)) or seen[-1])
    before = torch.get_num_threads()
    logits, target = example(2100, 2000)  # enough for several threads on every backend
    asked = []
    if pyce.get_backend() == "numpy":
        pytest.skip("NumPy computes on one thread")
    if pyce.get_backend() == "c":
        from pyce._backends import c

        function = c._cross_entropy_at
        monkeypatch.setattr(c, "_cross_entropy_at", lambda *a: asked.append(a[3]) or function(*a))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.clear(), asked.clear()
            with torch.no_grad():
                ours(logits, target.to(kind))
            assert (asked or seen) == [threads]
    finally:
        torch.set_num_threads(before)
