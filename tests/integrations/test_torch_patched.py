"""pyce.torch.patched: PyTorch's function is replaced by pyce's."""

import threading

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch_cases import example, ours, theirs  # noqa: E402

import pyce.torch  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
        assert F.cross_entropy is ours
    thread.join()
    assert F.cross_entropy is theirs
