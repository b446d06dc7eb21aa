"""The same semantics as torch.nn.functional.cross_entropy, where torch is installed."""

import numpy as np
import pytest

import pyce

torch = pytest.importorskip("torch")
functional = torch.nn.functional


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("kind", ["labels", "ignored", "all ignored", "probabilities"])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 7), (2, 30, 3, 4)], ids=str)
def test_cross_entropy_is_that_of_torch(backend, shape, kind, weighted, smoothing, reduction):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * 3
    classes = shape[1]
    positions = (shape[0], *shape[2:])
    target = rng.integers(0, classes, positions)
    if kind == "ignored":
        target[rng.random(positions) < 0.4] = -100
        target.flat[0] = 1
    elif kind == "all ignored":
        target[...] = -100
    elif kind == "probabilities":
        target = rng.random(shape)
    weight = rng.uniform(0.1, 2, classes) if weighted else None

    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = functional.cross_entropy(
        theirs_x,
        torch.tensor(target),
        weight=None if weight is None else torch.tensor(weight),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    theirs.sum().backward()
    loss, grad = pyce.cross_entropy_with_grad(
        x, target, axis=1, weight=weight, label_smoothing=smoothing, reduction=reduction
    )
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)
    if kind == "all ignored" and reduction == "mean":
        assert (grad == 0).all()  # torch has NaN here
    else:
        np.testing.assert_allclose(grad, theirs_x.grad.numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pos_weight", [None, (3,), (4, 3)], ids=str)
@pytest.mark.parametrize("weight", [None, (3,), (4, 1), (4, 3)], ids=str)
def test_bernoulli_is_that_of_torch(backend, weight, pos_weight, reduction):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 3)) * 5, rng.random((4, 3))
    w = None if weight is None else rng.uniform(0.1, 2, weight)
    pw = None if pos_weight is None else rng.uniform(0.1, 2, pos_weight)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = functional.binary_cross_entropy_with_logits(
        theirs_x,
        torch.tensor(t),
        weight=None if w is None else torch.tensor(w),
        pos_weight=None if pw is None else torch.tensor(pw),
        reduction=reduction,
    )
    theirs.sum().backward()
    options = {"weight": w, "pos_weight": pw, "reduction": reduction}
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, **options)
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(pyce.binary_cross_entropy(x, t, **options), loss, rtol=0)
    np.testing.assert_allclose(grad, theirs_x.grad.numpy(), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll_loss_is_that_of_torch(backend, reduction):
    rng = np.random.default_rng(0)
    log_p = rng.normal(size=(6, 5))
    y = np.array([0, 1, 2, -100, 4, 0])
    w = rng.uniform(0.1, 2, 5)
    theirs = functional.nll_loss(
        torch.tensor(log_p), torch.tensor(y), weight=torch.tensor(w), reduction=reduction
    )
    ours = pyce.nll_loss(log_p, y, weight=w, reduction=reduction)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13)
