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
    with pytest.raises(Exception, match="") as expected:
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
            second.wait(30)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    first.wait(30)
    with pyce.torch.patched():
        second.set()
        ended.wait(30)
        assert is_pyces()
    thread.join()
    assert not is_pyces()
