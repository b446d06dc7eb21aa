"""`cross_entropy_backward`: its factor and the saved lse."""

import numpy as np
import oracle
from samples import by_classes, by_dtype, near, sample

import pyce


@by_classes
@by_dtype
def test_grad_loss_multiplies(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    y[4] = -100
    wide = x.astype(np.float64)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    for reduction in ("mean", "sum"):
        exact = oracle.reference(wide, y, reduction=reduction, grad_loss=-2.5)
        for factor in (-2.5, np.float32(-2.5), np.array(-2.5)):
            got = pyce.cross_entropy_backward(factor, x, y, lse, reduction=reduction)
            near(got, exact.grad.hi, dtype)
    g = np.random.default_rng(0).normal(size=35)
    exact = oracle.reference(wide, y, reduction="none", grad_loss=g)
    for factor in (g, list(g)):
        near(pyce.cross_entropy_backward(factor, x, y, lse, reduction="none"), exact.grad.hi, dtype)
    # A row that the loss does not depend on gets zeros, even for infinite logits elsewhere.
    zero = pyce.cross_entropy_backward(np.zeros(35), x, y, lse, reduction="none")
    assert (zero == 0).all()


def test_grad_loss_of_many_dimensions(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 6, 4, 2)), rng.integers(0, 6, (3, 4, 2))
    g = rng.normal(size=(3, 4, 2))
    _, lse = pyce.cross_entropy(x, y, axis=1, return_lse=True)
    exact = oracle.reference(x, y, axis=1, reduction="none", grad_loss=g)
    got = pyce.cross_entropy_backward(g, x, y, lse, axis=1, reduction="none")
    near(got, exact.grad.hi)
    got = pyce.cross_entropy_backward(
        np.asfortranarray(g), x, y, np.asfortranarray(lse), axis=1, reduction="none"
    )
    near(got, exact.grad.hi)


@by_classes
@by_dtype
def test_saved_lse_is_that_of_logsumexp(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    y[3] = -100
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    exact = oracle.reference(x, y, reduction="none").lse.hi
    wide = np.float32 if dtype.itemsize < 8 else np.float64
    near(lse, exact, wide)
    assert lse[3] == 0
    weight = np.linspace(0.5, 2.0, classes)
    for options in ({"weight": weight}, {"label_smoothing": 0.1}):  # computed in other ways
        _, lse = pyce.cross_entropy(x, y, return_lse=True, **options)
        near(lse, exact, wide)
        assert lse[3] == 0
    near(np.delete(pyce.logsumexp(x), 3), np.delete(exact, 3), wide)
