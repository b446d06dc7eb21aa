"""pyce.torch.patched: PyTorch's function runs on pyce."""

import io
import pickle
import threading
import warnings

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.testing import assert_close  # noqa: E402
from torch_cases import WARNINGS, example, kinds_of_target, ours, targets, theirs  # noqa: E402

import pyce.torch  # noqa: E402

pytestmark = WARNINGS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def is_pyces(function=F.cross_entropy):
    return "_CrossEntropy" in function(*example()).grad_fn.name()


def test_patched():
    criterion = torch.nn.CrossEntropyLoss()
    for function in (F.cross_entropy, cross_entropy, criterion):
        assert not is_pyces(function)
        with pyce.torch.patched():
            assert is_pyces(function)
            with pyce.torch.patched():
                assert is_pyces(function)
            assert is_pyces(function)
        assert not is_pyces(function)
        with pytest.raises(KeyError), pyce.torch.patched():
            raise KeyError
        assert not is_pyces(function)
    assert F.cross_entropy is theirs


@targets
def test_every_kind_of_target(kind):
    logits, _ = example()
    target, options = kinds_of_target()[kind]
    for reduction in ("mean", "sum", "none"):
        expected = ours(logits, target, reduction=reduction, **options)
        with pyce.torch.patched():
            assert torch.equal(
                F.cross_entropy(logits, target, reduction=reduction, **options), expected
            )


def test_calls_are_counted():
    logits, target = example()
    with pyce.torch.patched() as outer:
        F.cross_entropy(logits, target)
        with pyce.torch.patched() as inner:
            F.cross_entropy(logits, target)
            assert (outer.calls, inner.calls) == (2, 1)
        F.nll_loss(F.log_softmax(logits, 1), target)
        F.cross_entropy(logits.to("meta"), target.to("meta"))
        torch.func.grad(F.cross_entropy)(logits.detach(), target)
    F.cross_entropy(logits, target)
    assert (outer.calls, inner.calls) == (2, 1)


def test_a_call_of_the_function_below_has_pytorchs_defaults():
    """`torch.nn.functional.cross_entropy` gives all of its arguments, and other callers may not."""
    logits, target = example()
    target[1] = -100
    for arguments in ((logits, target), (logits, target, None, 1)):
        expected = torch._C._nn.cross_entropy_loss(*arguments)
        with pyce.torch.patched() as patch:
            found = torch._C._nn.cross_entropy_loss(*arguments)
        assert patch.calls == 1
        assert_close(found, expected)


def test_patched_as_a_decorator():
    assert pyce.torch.patched()(is_pyces)()
    assert not is_pyces()


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "meta"},
        {"size_average": False},
        {"reduce": False},
        {"reduction": "elementwise_mean"},
    ],
    ids=lambda a: next(iter(a)),
)
def test_pytorch_computes_what_pyce_does_not(arguments):
    logits, target = example()
    options = dict(arguments)
    if device := options.pop("device", None):
        logits, target = logits.to(device), target.to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = F.cross_entropy(logits, target, **options)
        with pyce.torch.patched():
            found = F.cross_entropy(logits, target, **options)
    assert found.device == expected.device
    assert found.shape == expected.shape
    if not device:
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.zeros(4, 3), torch.zeros(5).long()), {}),
        ((torch.zeros(4, 3).long(), torch.zeros(4).long()), {}),
        ((torch.zeros(4, 3), torch.zeros(4).long()), {"reduction": "average"}),
        ((torch.zeros(4, 3), torch.zeros(4).long()), {"label_smoothing": 2.0}),
        ((torch.zeros(4, 3), torch.zeros(4).long(), torch.ones(3, requires_grad=True)), {}),
    ],
)
def test_errors_are_pytorchs(arguments, options):
    with pytest.raises(Exception) as expected:
        F.cross_entropy(*arguments, **options)
    with pyce.torch.patched(), pytest.raises(expected.type) as found:
        F.cross_entropy(*arguments, **options)
    assert str(found.value) == str(expected.value)


def test_an_invalid_index_is_named():
    with pyce.torch.patched(), pytest.raises(IndexError, match="target of row 1 is 7"):
        F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = F.cross_entropy
        self.criterion = torch.nn.CrossEntropyLoss()


def test_pickles_name_pytorch():
    before = Model()
    with pyce.torch.patched():
        inside = Model()
        pickles = [pickle.dumps(before), pickle.dumps(inside)]
        torch.save(before, io.BytesIO())
    pickles.append(pickle.dumps(inside))
    for data in pickles:
        assert b"pyce" not in data
        loaded = pickle.loads(data)
        assert loaded.loss is theirs
        assert type(loaded.criterion) is torch.nn.CrossEntropyLoss


def test_scripts_are_pytorchs():
    logits, target = example()
    with pyce.torch.patched():
        scripted = torch.jit.script(torch.nn.CrossEntropyLoss())
        assert_close(scripted(logits, target), ours(logits, target))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_inside(backend):
    torch.compiler.reset()
    logits, target = example()
    compiled = torch.compile(torch.nn.CrossEntropyLoss(), backend=backend, fullgraph=True)
    with pyce.torch.patched() as patch:
        loss = compiled(logits, target)
    assert patch.calls >= 1
    assert torch.equal(loss, ours(logits, target))
    assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(ours(logits, target), logits)
    )
    torch.compiler.reset()
    assert "yce" not in str(compiled(logits, target).grad_fn.name())


def test_patches_that_overlap():
    """In two threads: the first block ends first."""
    first, second, ended = threading.Event(), threading.Event(), threading.Event()

    def other():
        with pyce.torch.patched():
            first.set()
            second.wait(300)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    first.wait(300)
    with pyce.torch.patched():
        second.set()
        ended.wait(300)
        assert is_pyces()
    thread.join()
    assert not is_pyces()


# ---------------------------------------------------------------------------------------------
# linear_cross_entropy

pytorchs_linear = getattr(F, "linear_cross_entropy", None)
has_linear = pytest.mark.skipif(pytorchs_linear is None, reason="PyTorch has none")


def head():
    return torch.randn(6, 4, requires_grad=True), torch.randn(5, 4), torch.arange(6) % 5


@has_linear
def test_patched_linear():
    module = torch.nn.LinearCrossEntropyLoss(4, 5)
    x, w, y = head()
    own = pytorchs_linear.__code__

    def calls():
        return (
            pytorchs_linear(x, w, y),
            F.linear_cross_entropy(x, w, y, label_smoothing=0.1),
            module(x, y),
            pytorchs_linear(
                x, w, y, options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
            ),
        )

    expected = calls()
    with pyce.torch.patched() as patch:
        for got, right in zip(calls(), expected, strict=True):
            assert "_LinearCrossEntropy" in got.grad_fn.name()
            assert_close(got, right)
        assert patch.calls == 4
        assert F.linear_cross_entropy is pytorchs_linear
        assert pickle.loads(pickle.dumps(pytorchs_linear)) is pytorchs_linear
        with pyce.torch.patched():
            pass
        assert "_LinearCrossEntropy" in pytorchs_linear(x, w, y).grad_fn.name()
    assert pytorchs_linear.__code__ is own
    assert "_LinearCrossEntropy" not in pytorchs_linear(x, w, y).grad_fn.name()


@has_linear
def test_what_pyce_does_not_compute_of_a_layer():
    x, w, y = head()
    with pyce.torch.patched() as patch:
        for arguments, message in (
            ((x[None], w, y), "dimensionality 1 or 2, got 3"),
            ((x, w[0], y), "dimensionality at least 2, got 1"),
            ((x[:, 1:], w, y), "got 3 and 4, respectively"),
        ):
            with pytest.raises(RuntimeError, match=message):
                pytorchs_linear(*arguments)
        with pytest.raises(RuntimeError, match="ignore_index cannot be specified"):
            pytorchs_linear(x, w, torch.rand(6, 5), ignore_index=0)
        assert pytorchs_linear(x.to("meta"), w.to("meta"), y.to("meta")).is_meta
        found = torch.func.grad(pytorchs_linear)(x.detach(), w, y)
        assert patch.calls == 0
    assert_close(found, torch.autograd.grad(pytorchs_linear(x, w, y), x)[0])


@has_linear
def test_compiled_linear_inside():
    torch.compiler.reset()
    x, w, y = head()

    def model(x):
        return pytorchs_linear(2 * x, w, y)

    with pyce.torch.patched() as patch:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), model(x))
        assert patch.calls == 1
    torch.compiler.reset()
