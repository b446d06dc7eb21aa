"""Inputs of the tests of pyce.torch, and what PyTorch's function computes for them."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import pyce.torch  # noqa: E402

# Warnings of PyTorch about parts of its own.
WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


theirs = F.cross_entropy
ours = pyce.torch.cross_entropy
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def example(rows=6, classes=5, dtype=torch.float32):
    logits = (3 * torch.randn(rows, classes)).to(dtype).requires_grad_()
    return logits, torch.arange(rows) % classes


def kinds_of_target(classes=5, rows=6, dtype=torch.float32):
    """For each kind its target, and options for it."""
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
    """The loss and the gradient of its sum."""
    loss = function(logits, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), logits)


def true_step(logits, target, **options):
    """The loss and the gradient of its sum by PyTorch in float64."""
    for name, value in options.items():
        if isinstance(value, torch.Tensor):
            options[name] = value.double()
    if target.is_floating_point():
        target = target.detach().double()
    return step(theirs, logits.detach().double().requires_grad_(), target, **options)
