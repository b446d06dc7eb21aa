"""The z-loss: `lse_square_scale` in loss, fused call and backward, on every backend."""

from functools import cache

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss, round_once, same_bits

import pyce

ROWS = 6
# On both sides of the kernels for few, medium and many classes.
CLASSES = (1, 10, 65, 2100)
KINDS = ("plain", "weights", "smoothing", "weighted smoothing", "probabilities", "ignored")


@cache
def exact_of(kind, regime, classes, dtype, scale):
    """The oracle's answer, computed once for all backends."""
    x, target, options = make(kind, regime, classes, dtype)
    return oracle.reference(x, target, reduction="none", lse_square_scale=scale, **options)


def make(kind, regime, classes, dtype):
    """Logits, a target and options."""
    x, y, _ = cases.Case(regime, classes, ROWS).make(dtype)
    rng = np.random.default_rng(classes)
    w, s = rng.uniform(0.2, 2, classes), rng.uniform(0.2, 2, ROWS)
    options = {
        "plain": {},
        "weights": {"weight": w, "sample_weight": s},
        "smoothing": {"label_smoothing": 0.1},
        "weighted smoothing": {"label_smoothing": 1.0, "weight": w},
        "probabilities": {"weight": w, "sample_weight": s},
        "ignored": {"weight": w, "ignore_index": -1},
    }[kind]
    if kind == "probabilities":
        return x, rng.random(x.shape).astype(dtype), options
    if kind == "ignored":
        y = np.where(np.arange(ROWS) % 3 == 1, -1, y)
    return x, y, options


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_loss_and_gradient_with_the_square_of_the_lse(backend, dtype, kind):
    for regime, scale in (("spread25", 1e-4), ("confident30", 1.0), ("offset-1e4", 1e-2)):
        for classes in CLASSES:
            x, target, options = make(kind, regime, classes, dtype)
            exact = exact_of(kind, regime, classes, dtype, scale)
            options = {**options, "lse_square_scale": scale, "reduction": "none"}
            loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            check_loss(loss, exact.loss)
            check_array(grad, exact.grad, exact.terms)
            check_loss(pyce.cross_entropy(x, target, **options), exact.loss)
            ones = np.ones(ROWS)
            again = pyce.cross_entropy_backward(ones, x, target, lse, **options)
            check_array(again, exact.grad, exact.terms)


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_a_negative_scale_cancels_the_loss(backend, dtype):
    """Within 2 ULP of the larger term."""
    x = np.random.default_rng(0).normal(size=(20, 100)).astype(dtype)
    y = np.arange(20)
    plain = oracle.reference(x, y, reduction="none")
    for scale in (-0.2, -0.02):
        exact = oracle.reference(x, y, reduction="none", lse_square_scale=scale)
        loss = pyce.cross_entropy(x, y, reduction="none", lse_square_scale=scale)
        assert oracle.ulp_error(loss, exact.loss, np.abs(plain.loss.hi)).max() <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_term_alone_where_the_lse_is_near_0(backend, dtype):
    """Within 1 ULP of λ, half of the bound: an lse between −1 and 1 counts as 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 10))
    x += rng.uniform(-1, 1, (200, 1)) - np.log(np.exp(x).sum(axis=1, keepdims=True))
    x = x.astype(dtype)
    for scale in (1.0, -1.0, 0.7):
        options = {"reduction": "none", "lse_square_scale": scale}
        nothing = np.zeros_like(x)  # so that the term with lse is the loss
        exact = oracle.reference(x, nothing, **options)
        loss = pyce.cross_entropy(x, nothing, **options)
        assert oracle.ulp_error(loss, exact.loss, np.full(200, abs(scale))).max() <= 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_term_belongs_to_the_reduction(backend, kind, reduction):
    x, target, options = make(kind, "random", 10, np.float64)
    for more in ({}, {"normalizer": 7.0}) if reduction == "mean" else ({},):
        options = {**options, **more, "lse_square_scale": 0.1, "reduction": reduction}
        exact = oracle.reference(x, target, **options)
        loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
        check_loss(loss, exact.loss)
        check_array(grad, exact.grad, exact.terms)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types_with_the_square_of_the_lse(backend, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    for classes in (10, 100, 2100):
        x, y, _ = cases.Case("spread25", classes, ROWS).make(dtype)
        options = {"lse_square_scale": 0.01, "reduction": "none"}
        loss, grad = pyce.cross_entropy_with_grad(x, y, **options)
        wide, wide_grad = pyce.cross_entropy_with_grad(x.astype(np.float32), y, **options)
        np.testing.assert_array_equal(loss, wide)
        same_bits(grad, round_once(wide_grad, dtype))


def test_bad_rows_and_the_square_of_the_lse(backend):
    x = np.zeros((5, 4), np.float32)
    x[0, 1], x[1, 1], x[2], x[3, 0] = np.nan, np.inf, -np.inf, -np.inf
    options = {"lse_square_scale": 0.5, "reduction": "none"}
    loss, grad = pyce.cross_entropy_with_grad(x, [0] * 5, **options)
    assert np.isnan(loss[:3]).all()
    assert np.isnan(grad[:3]).all()
    assert loss[3] == np.inf
    exact = oracle.reference(x, [0] * 5, **options)
    check_array(grad[3:], exact.grad[3:], exact.terms[3:])
    assert np.isfinite(loss[4])


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("classes", [3, 100, 2500])
def test_rows_without_coefficients(backend, dtype, classes):
    """A weight of 0 makes the term 0 as well."""
    rng = np.random.default_rng(classes)
    x, y = rng.normal(size=(6, classes)).astype(dtype), np.full(6, 1)
    weight, s = np.full(classes, 0.5), np.ones(6)
    y[1] = weight[0] = 0
    weight[-1] = np.inf  # of no row
    s[4] = 0.0
    x[[1, 4]] = np.nan
    valid = np.array([0, 2, 3, 5])
    options = {"lse_square_scale": 0.5, "reduction": "none"}
    plain = {**options, "sample_weight": s[valid]}
    for target, given in ((y, {"weight": weight}), (np.eye(classes)[y], {})):
        with_nan = x.copy()
        if target is not y:
            with_nan[1] = 0.0
        loss, grad, lse = pyce.cross_entropy_with_grad(
            with_nan, target, sample_weight=s, return_lse=True, **given, **options
        )
        above = np.where(s == 0.0, np.inf, 1.0)
        again = pyce.cross_entropy_backward(
            above, with_nan, target, lse, sample_weight=s, **given, **options
        )
        bare = {"weight": np.full(classes, 0.5)} if given else {}
        exact = oracle.reference(x[valid], target[valid], **bare, **plain)
        check_loss(loss[valid], exact.loss)
        for g in (grad, again):
            check_array(g[valid], exact.grad, exact.terms)
            assert (g[4] == 0).all()
        assert loss[4] == 0
        if given:
            assert loss[1] == 0
            assert (grad[1] == 0).all()
            assert (again[1] == 0).all()


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_probabilities_of_zero_leave_the_term(backend, dtype):
    """lse² belongs to the row and not to its classes."""
    for classes in (3, 100, 2500):
        x = np.zeros((3, classes), dtype)
        x[1] = np.nan
        options = {"lse_square_scale": 1.0, "reduction": "none"}
        loss, grad = pyce.cross_entropy_with_grad(x, np.zeros(x.shape), **options)
        lse = np.log(classes)
        np.testing.assert_allclose(loss[[0, 2]], lse**2, rtol=1e-6)
        np.testing.assert_allclose(grad[[0, 2]], 2 * lse / classes, rtol=1e-6)
        assert np.isnan(loss[1])
        assert np.isnan(grad[1]).all()


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_the_terms_cancel_in_all_classes_but_the_label(backend, dtype):
    """A + 2λ·lse = 0: the gradient is −1 at the label and 0 elsewhere."""
    for classes in (1, 3, 100, 2500):
        x = np.full((20, classes), -np.inf, dtype)
        x[:, 0] = -1.0
        for options in ({}, {"label_smoothing": 0.5}):
            if classes > 1 and options:
                continue  # −inf at classes with b > 0
            _, grad = pyce.cross_entropy_with_grad(
                x, [0] * 20, lse_square_scale=0.5, reduction="none", **options
            )
            assert (grad[:, 0] == -1).all()
            assert (grad[:, 1:] == 0).all()


def test_a_scale_of_zero_changes_nothing(backend):
    x, y, _ = cases.Case("spread25", 100, ROWS).make(np.float32)
    one = pyce.cross_entropy_with_grad(x, y, lse_square_scale=0)
    other = pyce.cross_entropy_with_grad(x, y)
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite(backend, value):
    x, out = np.zeros((2, 3)), np.full((2, 3), 7.0)
    lse = pyce.logsumexp(x)
    calls = (
        lambda **o: pyce.cross_entropy(x, [0, 1], **o),
        lambda **o: pyce.cross_entropy_with_grad(x, [0, 1], out=out, **o),
        lambda **o: pyce.cross_entropy_backward(1.0, x, [0, 1], lse, out=out, **o),
    )
    for call in calls:
        with pytest.raises(ValueError, match="lse_square_scale must be finite, got"):
            call(lse_square_scale=value)
        with pytest.raises(TypeError, match="lse_square_scale must be a real number"):
            call(lse_square_scale="1")
    assert (out == 7).all()
