"""`binary_cross_entropy`: values, extreme logits, weights, shapes, dtypes and layouts."""

import math

import numpy as np
import oracle
from every import every
from samples import by_dtype

import pyce


@every("dtype", [np.float32, np.float64])
@every("weighted", [False, True])
@every("count", [1, 7, 16, 33, 1000])
def test_bernoulli_accuracy(backend, count, weighted, dtype):
    rng = np.random.default_rng(count)
    x = (rng.normal(size=count) * rng.choice([1e-3, 1, 10, 80], count)).astype(dtype)
    x[0] = 0.3
    t = rng.random(count).astype(dtype)
    t[::3] = 1
    t[1::3] = 0
    options = {}
    if weighted:
        options = {
            "weight": rng.uniform(0.2, 2, count).astype(dtype),
            "pos_weight": rng.uniform(0.2, 2, count).astype(dtype),
        }
    right = oracle.bernoulli(x, t, *options.values())
    exact, slope, terms = right.loss, right.grad, right.terms
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction="none", **options)
    normal = exact.hi >= oracle.smallest_normal(dtype)
    # The two weights, the two terms and their sum are rounded, too.
    assert oracle.ulp_error(loss, exact)[normal].max() <= 4
    normal = terms >= oracle.smallest_normal(dtype)
    assert oracle.ulp_error(grad, slope, terms)[normal].max() <= 6
    np.testing.assert_array_equal(
        pyce.binary_cross_entropy(x, t, reduction="none", **options), loss
    )
    assert (
        oracle.ulp_error(pyce.binary_cross_entropy(x, t, reduction="sum", **options), exact.sum())
        <= 4
    )
    mean, mean_grad = pyce.binary_cross_entropy_with_grad(x, t, **options)
    assert oracle.ulp_error(mean, exact.sum() / float(count)) <= 4
    assert oracle.ulp_error(mean_grad, slope / float(count), terms / count)[normal].max() <= 6


def test_bernoulli_of_a_million_elements(backend):
    """More pieces than the C backend keeps the sums of on the stack, the last one not whole."""
    x = np.random.default_rng(0).normal(size=65 * 16384 + 5)
    t = np.arange(len(x)) % 3 / 2
    exact = math.fsum(t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x))
    np.testing.assert_allclose(pyce.binary_cross_entropy(x, t), exact / len(x), rtol=1e-14)
    np.testing.assert_allclose(pyce.binary_cross_entropy(x, t, reduction="sum"), exact, rtol=1e-14)


def test_bernoulli_where_the_exponential_is_subnormal(backend):
    """exp(−x) from 2^−1022 down to 0: the loss is the exponential, or 0."""
    x = np.linspace(708, 750, 1000)
    loss, grad = pyce.binary_cross_entropy_with_grad(x, np.ones(1000), reduction="none")
    assert (loss >= 0).all() and (loss <= 1.01 * np.exp(-x) + 1e-323).all()
    assert (grad <= 0).all() and (-grad <= 1.01 * np.exp(-x) + 1e-323).all()
    wrong, slope = pyce.binary_cross_entropy_with_grad(-x, np.ones(1000), reduction="none")
    np.testing.assert_array_equal(wrong, x)
    np.testing.assert_array_equal(slope, -1)


@by_dtype
def test_bernoulli_far_out(backend, dtype):
    """Nothing overflows or is clipped: far out, a right logit costs 0 and a wrong one |x|."""
    x = np.array([1e4, -1e4, 1e4, -1e4, np.inf, -np.inf, np.nan], dtype)
    t = np.array([1, 0, 0, 1, 0, 1, 0])
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction="none")
    big = float(x[0])
    np.testing.assert_array_equal(loss[:4], [0, 0, big, big])
    np.testing.assert_array_equal(loss[4:6], [np.inf, np.inf])
    np.testing.assert_array_equal(grad[:6].astype(float), [0, 0, 1, -1, 1, -1])
    assert np.isnan(loss[6])
    assert np.isnan(float(grad[6]))
    loss, grad = pyce.binary_cross_entropy_with_grad(x[4:6], [1, 0], reduction="none")
    np.testing.assert_array_equal(loss, [0, 0])
    np.testing.assert_array_equal(grad.astype(float), [0, 0])


@by_dtype
def test_bernoulli_weight_of_zero(backend, dtype):
    """A weight of 0 makes the loss and the gradient 0, whatever the logit and the target are."""
    x = np.array([np.inf, -np.inf, 1.0, np.nan], dtype)
    for kwargs in ({"weight": 0}, {"weight": [0, 0, 0, 0]}):
        loss, grad = pyce.binary_cross_entropy_with_grad(
            x, [0, 1, 1, 1], reduction="none", **kwargs
        )
        np.testing.assert_array_equal(loss, [0, 0, 0, 0])
        np.testing.assert_array_equal(grad.astype(float), [0, 0, 0, 0])
    loss = pyce.binary_cross_entropy(x[:2], [0, 1], pos_weight=0, reduction="none")
    np.testing.assert_array_equal(loss, [np.inf, 0])
    assert pyce.binary_cross_entropy(x[2:3], [np.nan], weight=0) == 0


@by_dtype
@every("shape", [(), (3,), (2, 3), (2, 3, 4), (0,), (3, 0)])
def test_bernoulli_shapes_and_dtypes(backend, dtype, shape):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=shape).astype(dtype), rng.random(shape).astype(dtype)
    result = np.float64 if dtype == np.float64 else np.float32
    for reduction in ("mean", "sum", "none"):
        expected = shape if reduction == "none" else ()
        loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction=reduction)
        assert loss.dtype == result
        assert loss.shape == expected
        assert grad.shape == shape
        assert grad.dtype == dtype
        np.testing.assert_array_equal(pyce.binary_cross_entropy(x, t, reduction=reduction), loss)
    if x.size == 0:
        assert np.isnan(pyce.binary_cross_entropy(x, t))
        assert pyce.binary_cross_entropy(x, t, reduction="sum") == 0


def test_bernoulli_weights_broadcast(backend):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 3)), rng.random((4, 3))
    for w_shape in ((), (3,), (4, 1), (1, 3), (4, 3)):
        for pw_shape in ((), (3,), (4, 1), (4, 3)):
            w, pw = rng.uniform(0.5, 2, w_shape), rng.uniform(0.5, 2, pw_shape)
            right = oracle.bernoulli(x, t, w, pw)
            exact, slope = right.loss, right.grad
            loss, grad = pyce.binary_cross_entropy_with_grad(
                x, t, weight=w, pos_weight=pw, reduction="none"
            )
            np.testing.assert_allclose(loss.ravel(), exact.hi, rtol=1e-14)
            np.testing.assert_allclose(grad.ravel(), slope.hi, rtol=1e-13, atol=1e-15)
            # The mean is over the elements, whatever the weights.
            mean = pyce.binary_cross_entropy(x, t, weight=w, pos_weight=pw)
            np.testing.assert_allclose(mean, exact.hi.mean(), rtol=1e-14)


@by_dtype
def test_bernoulli_layouts(backend, dtype):
    rng = np.random.default_rng(0)
    plain, t = rng.normal(size=(40, 30)).astype(dtype), rng.integers(0, 2, (40, 30))
    expected = pyce.binary_cross_entropy_with_grad(plain, t, reduction="none")
    big = np.zeros((80, 30), dtype)
    big[::2] = plain
    for x in (np.asfortranarray(plain), big[::2], plain[::-1].copy()[::-1]):
        for kind in (np.int64, np.bool_, np.float32, np.float64):
            got = pyce.binary_cross_entropy_with_grad(x, t.astype(kind), reduction="none")
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[1], expected[1])
