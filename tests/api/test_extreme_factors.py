"""Weights, grad_loss and normalizers so large or small that products of some of them overflow or
underflow, although the result does not.

The expected values are computed from the definition by mpmath, whose numbers have no largest one.
"""

import math

import ml_dtypes
import mpmath
import numpy as np
import pytest
from samples import DTYPES, by_dtype, by_float, near

import pyce
from pyce._dtypes import compute_dtype


def exact_rows(x, y, weight, s, above, denominator):
    """Losses without a denominator, gradients and Σ w_y·s: mpf (N,), (N, C) and a number."""
    with mpmath.workdps(50):
        losses, gradients, total = [], [], mpmath.mpf(0)
        for row, label, of_row, factor in zip(x, y, s, above, strict=True):
            e = [mpmath.exp(mpmath.mpf(v) - row.max()) for v in row.tolist()]
            sum_, others = mpmath.fsum(e), mpmath.fsum(e[:label] + e[label + 1 :])
            coefficient = mpmath.mpf(of_row) * mpmath.mpf(weight[label])
            total += coefficient
            log_p = mpmath.log1p(others / e[label])
            losses.append(coefficient * log_p)
            p = [v / sum_ for v in e]
            p[label] = -others / sum_
            gradients.append([mpmath.mpf(factor) * coefficient * v for v in p])
        d = total if denominator is None else mpmath.mpf(denominator)
        return losses, [[v / d for v in row] for row in gradients], d


def check(actual, exact, dtype, ulp):
    """Within `ulp` units, infinite where that is right, and small where it is below the normal
    numbers. `dtype` is that of the result.
    """
    info = ml_dtypes.finfo(dtype)
    largest, tiny, eps = float(info.max), float(info.smallest_normal), float(info.eps)
    for found, value in zip(np.ravel(actual).astype(np.float64).tolist(), exact, strict=True):
        if abs(value) < tiny:
            assert abs(found) <= tiny
            assert found * float(mpmath.sign(value)) >= 0.0
        elif math.isinf(found):
            assert abs(value) > largest * (1.0 - eps)
            assert found * float(mpmath.sign(value)) > 0.0
        else:
            assert abs(mpmath.mpf(found) - value) <= ulp * eps * abs(value), (found, value)


def check_problem(x, y, reduction, *, weight=None, sample_weight=None, normalizer=None, above=1.0):
    """Loss and gradient, fused, in place and from the saved lse."""
    rows, classes = x.shape
    options = {"weight": weight, "sample_weight": sample_weight, "reduction": reduction}
    if reduction == "mean":
        options["normalizer"] = normalizer
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    s = np.ones(rows) if sample_weight is None else np.asarray(sample_weight, np.float64)
    d = normalizer if reduction == "mean" else 1.0
    wide = x.astype(np.float64)
    losses, exact, d = exact_rows(wide, y, w, s, np.ones(rows), d)
    with mpmath.workdps(50):
        expected = losses if reduction == "none" else [mpmath.fsum(losses) / d]
    loss, grad, lse = pyce.cross_entropy_with_grad(x, y, return_lse=True, **options)
    check(loss, expected, compute_dtype(x.dtype.name), 2)
    check(pyce.cross_entropy(x, y, **options), expected, compute_dtype(x.dtype.name), 2)
    check(grad, [v for row in exact for v in row], x.dtype, 4)
    in_place = x.copy()
    pyce.cross_entropy_with_grad(in_place, y, out=in_place, **options)
    np.testing.assert_array_equal(in_place, grad)
    above = np.broadcast_to(above, rows)
    _, exact, _ = exact_rows(wide, y, w, s, above, normalizer if reduction == "mean" else 1.0)
    given = above if reduction == "none" else above[0]
    back = pyce.cross_entropy_backward(given, x, y, lse, **options)
    check(back, [v for row in exact for v in row], x.dtype, 4)


@by_float
def test_factors_beyond_the_largest_number(backend, dtype):
    """Factors of 1e400 times probabilities of 1e-100: for floats 1e60 and 1e-30."""
    far, size = (-230.0, 1e200) if dtype == np.float64 else (-69.0, 1e30)
    x = np.array([[0.0, far]], dtype)
    check_problem(x, [0], "mean", weight=[size, 1.0], normalizer=1.0 / size)
    check_problem(x, [0], "none", weight=[size, 1.0], sample_weight=[size])
    check_problem(x, [0], "sum", sample_weight=[size], above=-size)
    check_problem(x, [0], "sum", weight=[1.0 / size, 1.0], above=size)


@by_dtype
def test_denominators_out_of_range(backend, dtype):
    """The sum of the weights overflows, or its reciprocal does."""
    x = np.array([[0.5, -0.25, 1.0], [0.0, 1.5, -2.0], [1.0, 2.0, 3.0]]).astype(dtype)
    y = [0, 2, 1]
    for size in (1.5e308, -1e308, 1e-310, 1e-200):
        check_problem(x, y, "mean", weight=[size, size / 2, size])
        check_problem(x, y, "mean", sample_weight=[size, size / 2, size], above=4.0)
    # Their product is below the smallest number.
    check_problem(x, y, "mean", weight=[1e-200, 2e-200, 3e-200], sample_weight=[1e-180] * 3)
    check_problem(x, y, "mean", normalizer=1e-310, weight=[1e-310, 2e-300, 1e-305])


@by_float
@pytest.mark.parametrize("classes", [3, 100, 2500])
def test_masked_classes_and_products_that_overflow(backend, dtype, classes):
    """The gradient of a class of probability 0 is 0, whatever the factor."""
    x = np.zeros((2, classes), dtype)
    x[0, 1] = -math.inf
    y = np.array([0, 2])
    weight = np.full(classes, 1e200)
    t = np.eye(classes)[y]
    t[1] = 1.0 / classes
    for target in (y, t):
        for options in (
            {"sample_weight": [1e200, 1.0]},
            {"weight": weight},
            {"weight": weight, "sample_weight": [1e200, 1.0]},
        ):
            _, grad = pyce.cross_entropy_with_grad(x, target, reduction="sum", **options)
            assert grad[0, 1] == 0.0
            assert not np.isnan(grad).any()


@by_dtype
def test_random_factors(backend, dtype):
    """Of any size, in every combination."""
    rng = np.random.default_rng(int(dtype.num))
    far = 690.0 if dtype == np.float64 else 80.0
    for size in (40, 120, 300):
        for reduction in ("mean", "sum", "none"):

            def factors(*shape, size=size):
                return 10.0 ** rng.uniform(-size, size, shape) * rng.choice([1, 1, -1], shape)

            x = rng.uniform(-far / 2, far / 2, (4, 3)).astype(dtype)
            y = rng.integers(0, 3, 4)
            weight, s = factors(3), factors(4)
            normalizer = float(factors())
            above = factors(4) if reduction == "none" else float(factors())
            check_problem(
                x,
                y,
                reduction,
                weight=weight,
                sample_weight=s if size != 120 else None,
                normalizer=normalizer,
                above=above,
            )


@by_dtype
def test_other_rows_keep_their_bits(backend, dtype):
    """Rows without extreme factors are those of a batch without such rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5)).astype(dtype)
    y = rng.integers(0, 5, 20)
    s = np.linspace(0.5, 2.0, 20)
    plain = pyce.cross_entropy_with_grad(x, y, sample_weight=s, reduction="none", return_lse=True)
    s[[3, 17]] = 1e-290, 1e220
    found = pyce.cross_entropy_with_grad(x, y, sample_weight=s, reduction="none", return_lse=True)
    others = ~np.isin(np.arange(20), [3, 17])
    for a, b in zip(plain[:2], found[:2], strict=True):
        np.testing.assert_array_equal(a[others], b[others])
    np.testing.assert_array_equal(plain[2], found[2])


@by_float
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_soft_targets(backend, dtype, smoothing):
    """Sample weights and grad_loss that cancel, for probabilities and with smoothing."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 4)).astype(dtype)
    t = rng.random((6, 4))
    s = rng.uniform(0.5, 2.0, 6)
    for target in (t, rng.integers(0, 4, 6)):
        options = {"label_smoothing": smoothing}
        loss, plain, lse = pyce.cross_entropy_with_grad(
            x, target, sample_weight=s, return_lse=True, **options
        )
        for size in (2.0**-1000, 2.0**900):
            mean, grad = pyce.cross_entropy_with_grad(x, target, sample_weight=s * size, **options)
            near(mean, loss, dtype)
            near(grad, plain, dtype)
            above = pyce.cross_entropy_backward(
                1 / size, x, target, lse, sample_weight=s * size, reduction="sum", **options
            )
            near(above / s.sum(), plain, dtype)


@by_float
def test_small_products_of_soft_targets(backend, dtype):
    """Of a probability and a class weight, as small as docs/semantics.md says: a loss has all
    digits.
    """
    least = int(np.log2(np.finfo(dtype).smallest_normal)) + 1
    x = np.array([[0.5, -1.0, 2.0]], dtype)
    rest = exact_rows(x.astype(np.float64), [1], [1.0] * 3, [1.0], [1.0], 1.0)[0][0]
    for largest in (-61, -59, 0, 35, 37):
        bound = least + max(largest, 0)
        for of_weight in (bound, bound // 2, min(largest, 0)):
            t = np.array([[0.0, 1.3 * 2.0 ** (bound - of_weight), 0.0]], dtype)
            weight = [2.0**largest, 1.7 * 2.0**of_weight, 1.0 if largest > 0 else 0.0]
            scale = 2.0 ** (-bound - 20)
            loss = pyce.cross_entropy(x, t, weight=weight, sample_weight=[scale], reduction="sum")
            with mpmath.workdps(50):
                exact = mpmath.mpf(scale) * float(t[0, 1]) * weight[1] * rest
            check(loss, [exact], dtype, 2)


@by_dtype
def test_grad_loss_of_0(backend, dtype):
    """It makes the gradient 0, also of a row whose sample weight is infinite."""
    x = np.array([[0.5, -1.0, 2.0], [0.0, 1.0, -2.0]]).astype(dtype)
    y = [0, 2]
    s = np.array([math.inf, 1.0])
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    for options in ({"reduction": "sum"}, {"normalizer": 0.5}, {"normalizer": 1e-320}):
        grad = pyce.cross_entropy_backward(0.0, x, y, lse, sample_weight=s, **options)
        assert (grad == 0.0).all()
    above = np.array([0.0, 2.0])
    grad = pyce.cross_entropy_backward(above, x, y, lse, sample_weight=s, reduction="none")
    assert (grad[0] == 0.0).all()
    assert (grad[1] != 0.0).all()


@by_float
def test_lse_square_of_large_logits(backend, dtype):
    """The derivative of λ·lse² is a factor as well: no class of probability 0 gets NaN."""
    x = np.array([[float(np.finfo(np.float32).max), 0.0, -math.inf]], dtype)
    for size in (1e30, 1e200):
        options = {"sample_weight": [size], "lse_square_scale": 2.0, "reduction": "sum"}
        _, grad = pyce.cross_entropy_with_grad(x, [0], **options)
        assert grad[0, 0] > 1e38
        assert (grad[0, 1:] == 0.0).all()


@by_float
def test_class_weights_do_not_multiply_lse_square(backend, dtype):
    """Of probabilities, λ·lse² has no class weight: extreme ones are taken apart without it."""
    x = np.array([[0.5, -1.0, 0.25], [3.0, 1.0, -2.0]]).astype(dtype)
    t = np.array([[0.0, 0.75, 0.25], [0.0, 1.0, 0.0]])
    options = {"reduction": "sum", "lse_square_scale": 0.7}
    largest = 90 if dtype == np.float32 else 900
    for target in (t, np.roll(t, 1, axis=1)):
        for exponent in (-90, -70, -30, 38, 60, largest):
            # In most rows, the weights that are extreme belong to classes without a target.
            weight = np.array([2.0**exponent, 1.0, 1.5])
            for w in (weight, weight * 2.0**-largest):
                first, of_first = pyce.cross_entropy_with_grad(
                    x.astype(np.float64), target, weight=w, reduction="sum"
                )
                second, of_second = pyce.cross_entropy_with_grad(
                    x.astype(np.float64), target, weight=[0.0] * 3, **options
                )
                loss, grad = pyce.cross_entropy_with_grad(x, target, weight=w, **options)
                near(loss, np.float64(first) + second, dtype)
                sizes = np.abs(of_first) + np.abs(of_second)
                assert (
                    np.abs(grad - (of_first + of_second))
                    <= 20 * np.finfo(dtype).eps * sizes.max(axis=1, keepdims=True)
                ).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_of_log_probabilities(dtype):
    """The same of the other losses."""
    log_p = np.log(np.array([[0.25, 0.75], [0.5, 0.5]])).astype(dtype)
    mean = pyce.nll_loss(log_p, [0, 1])
    for size in (1e-310, 1.5e308):
        near(pyce.nll_loss(log_p, [0, 1], weight=[size, size]), mean, dtype)
        near(pyce.nll_loss(log_p, [0, 1], sample_weight=[size, size]), mean, dtype)
    near(
        pyce.nll_loss(log_p, [0, 1], weight=[1e300, 1e300], sample_weight=[1e200, 1e200]),
        mean,
        dtype,
    )


@by_float
def test_a_mean_of_products_that_underflow_and_a_weight_of_0(backend, dtype):
    """The denominator is 1e-400, and the row without a weight does not change its size."""
    x = np.array([[0.5, -1.0, 2.0], [0.0, 1.0, -2.0]]).astype(dtype)
    loss, grad = pyce.cross_entropy_with_grad(
        x, [1, 0], weight=[1e-200, 1.0, 1.0], sample_weight=[0.0, 1e-200]
    )
    of_one, grad_of_one = pyce.cross_entropy_with_grad(x[1:], [0])
    near(loss, of_one, dtype)
    near(grad[1:], grad_of_one, dtype)
    np.testing.assert_array_equal(grad[0], np.zeros(3))


@by_float
def test_an_infinite_weight_of_small_products(backend, dtype):
    """None of them is rounded to 0 before it is multiplied by infinity."""
    x = np.array([[0.0, 0.0, -80.0]]).astype(dtype)
    loss, grad = pyce.cross_entropy_with_grad(
        x, [0], weight=[2.0**-190, 1.0, 1.0], sample_weight=[math.inf], reduction="none"
    )
    np.testing.assert_array_equal(loss, [math.inf])
    np.testing.assert_array_equal(grad, [[-math.inf, math.inf, math.inf]])


@by_float
def test_a_sum_whose_largest_factor_belongs_to_a_small_loss(backend, dtype):
    """The other losses are tiny next to that factor, and are the sum all the same."""
    none = -math.inf
    x = np.array([[0.0, none, none], [0.0, -1.0, 0.5], [0.0, -60.0, -61.0]], dtype)
    y = [0, 1, 0]
    for large, small in ((1e300, 1e-30), (1e200, 1.0), (1e308, 1e-200)):
        s = [large, small, small]
        for weight in (None, [1.0, 2.0, 3.0]):
            check_problem(x, y, "sum", sample_weight=s, weight=weight)
            check_problem(x, y, "mean", sample_weight=s, weight=weight, normalizer=small)
        check_problem(x, y, "sum", weight=[large, small, 1.0])
    if dtype == np.float64:
        far = np.array([[0.0, none], [0.0, -700.0]])
        check_problem(far, [0, 0], "sum", sample_weight=[1e100, 1.0])
        check_problem(far, [0, 0], "mean", sample_weight=[1e-90, 1e-90])


@by_dtype
@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["labels", "probabilities", "smoothing"])
def test_a_loss_that_is_not_finite_and_whose_factor_is_small(backend, dtype, value, kind):
    """It is not hidden by a row whose factor is larger by more than all numbers differ."""
    x = np.array([[0.0, 1.0], [0.0, value], [2.0, 1.0]]).astype(dtype)
    y = np.array([0, 1, 1])
    expected = math.inf if value == -math.inf else math.nan
    target = np.eye(2)[y] if kind == "probabilities" else y
    smoothing = 0.25 if kind == "smoothing" else 0.0
    apart = [{"sample_weight": [1e300, 1e-300, 1.0]}, {"sample_weight": [1e-10, 5e-324, 1e308]}]
    if kind == "labels":
        apart += [{"weight": [1e300, 1e-300]}, {"weight": [1e300, 1.0], **apart[1]}]
    for options in apart:
        for reduction in ("sum", "mean"):
            given = {"reduction": reduction, "label_smoothing": smoothing, **options}
            loss, grad = pyce.cross_entropy_with_grad(x, target, **given)
            np.testing.assert_array_equal([loss, pyce.cross_entropy(x, target, **given)], expected)
            assert np.isfinite(grad[[0, 2]].astype(np.float64)).all() or reduction == "sum"


def check_linear(function, x, target, **options):
    """`function` of a layer whose weight is the identity is `cross_entropy`, also its gradient."""
    eye = np.eye(x.shape[1], dtype=x.dtype)
    loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
    info = np.finfo(x.dtype)
    tolerance = {"rtol": 8 * info.eps, "atol": info.smallest_normal}
    found, of_input, of_weight = function(x, eye, target, chunk_bytes=1, **options)
    np.testing.assert_allclose(found, loss, **tolerance)
    if not np.isfinite(grad).all():
        return  # infinity times the zeros of the weight
    np.testing.assert_allclose(of_input, grad, **tolerance)
    with np.errstate(over="ignore"):
        size = np.abs(grad.T) @ np.abs(x)
    fits = size <= info.max
    error = np.abs(of_weight.astype(np.float64) - grad.T.astype(np.float64) @ x)
    assert (error <= 20 * info.eps * size + info.smallest_normal)[fits].all()


def linear(x, head, target, **options):
    alone = pyce.linear_cross_entropy(x, head, target, **options)
    loss, grads = pyce.linear_cross_entropy_with_grad(x, head, target, **options)
    np.testing.assert_allclose(alone, loss, rtol=8 * np.finfo(x.dtype).eps)
    return loss, grads.input, grads.linear_weight


def linear_of_torch(x, head, target, **options):
    torch = pytest.importorskip("torch")
    import pyce.torch

    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, head)]
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss = pyce.torch.linear_cross_entropy(*leaves, torch.from_numpy(np.asarray(target)), **options)
    grads = torch.autograd.grad(loss.sum(), leaves)
    return loss.detach().numpy(), *(g.numpy() for g in grads)


@pytest.mark.parametrize("function", [linear, linear_of_torch])
@by_float
def test_linear_functions(backend, function, dtype):
    """Weights and normalizers of any size, in chunks of one row."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 3)).astype(dtype)
    y, t = rng.integers(0, 3, 4), rng.random((4, 3))
    for size in (12, 40, 120, 300):

        def factors(*shape, size=size):
            return 10.0 ** rng.uniform(-size, size, shape) * rng.choice([1, 1, -1], shape)

        for reduction in ("mean", "sum", "none"):
            for target in (y, t):
                s = factors(4)
                options = {"reduction": reduction, "sample_weight": s}
                if target is y:
                    options["weight"] = factors(3)
                if reduction == "mean":
                    options["normalizer"] = float(factors())
                check_linear(function, x, target, **options)
    for of_rows, of_classes in ((1e-50, 1.0), (1e-200, 1e-200), (1e200, 1e200), (1.5e308, 1.0)):
        weight, s = np.full(3, of_classes), of_rows * np.array([1.0, 0.5, 1.0, 0.25])
        check_linear(function, x, y, weight=weight, sample_weight=s)
        check_linear(function, x, t, sample_weight=s)
    for size in (1e-42, 1e-90, 1e60, 1e150):
        weight = size * np.array([1.0, 2.0, 3.0])
        s = 1 / size * np.array([1.0, 0.5, -1.0, 0.25])
        check_linear(function, x, y, weight=weight, sample_weight=s, reduction="none")
        for target, options in ((t, {}), (y, {"label_smoothing": 0.25})):
            check_linear(function, x, target, weight=weight, normalizer=size / 4, **options)
        options = {"weight": weight, "sample_weight": 1 / weight[[0, 1, 2, 0]]}
        check_linear(function, x, y, lse_square_scale=0.5, **options)
    s = np.array([math.inf, 0.0, 1.0, 1.0])
    for reduction in ("sum", "none"):
        check_linear(function, x, y, sample_weight=s, reduction=reduction)
