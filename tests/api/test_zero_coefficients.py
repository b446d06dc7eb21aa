"""0 · inf = 0 · NaN = 0: a factor that is exactly 0 makes its term 0, on every backend.

The coefficient of a class is b = s·w·((1 − ε)·t + ε/C), with the sample weight s, the class weight
w and the target's probability t. The expected values here are computed from the definition.
"""

import math

import numpy as np
import pytest
from every import every
from samples import by_dtype, by_float, every_way, near, sample

import pyce

INF, NAN = math.inf, math.nan
# Few, some and many classes use different kernels.
by_classes = every("classes", [3, 100, 2500])


def times(a, b):
    """a·b, 0 if one of them is 0."""
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) | (b == 0), 0.0, np.multiply(a, b))


def expected_rows(x, target, weight, s, smoothing):
    """Losses and gradients of float64 rows (N, C) from their definition."""
    rows, classes = x.shape
    labels = np.ndim(target) == 1
    t = np.eye(classes)[target] if labels else target
    b = times(s[:, np.newaxis], times(weight, times(1.0 - smoothing, t) + smoothing / classes))
    with np.errstate(all="ignore"):
        m = x.max(1, keepdims=True)
        lse = m + np.log(np.exp(x - m).sum(1, keepdims=True))
        p = np.exp(x - lse)
        losses = np.where(b == 0, 0.0, b * (lse - x)).sum(1)
        if labels and not smoothing:
            gradients = b[np.arange(rows), target, np.newaxis] * (p - t)
        else:
            gradients = b.sum(1, keepdims=True) * p - b
    bad = np.isnan(lse[:, 0]) | np.isinf(lse[:, 0])
    losses[bad] = gradients[bad] = NAN
    nothing = (b == 0).all(1)
    losses[nothing] = gradients[nothing] = 0.0
    return losses, gradients


def check(x, target, *, weight=None, sample_weight=None, smoothing=0.0, axis=-1):
    """Compare losses and gradients, fused and from the saved lse, with `expected_rows`."""
    rows, classes = x.shape
    w = np.ones(classes) if weight is None else weight
    s = np.ones(rows) if sample_weight is None else sample_weight
    wide = x.astype(np.float64)
    losses, gradients = expected_rows(wide, target, w, s, smoothing)
    options = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": smoothing,
        "axis": axis,
    }
    layout = (lambda a: np.ascontiguousarray(a.T)) if axis == 0 else (lambda a: a)
    target = layout(target) if np.ndim(target) == 2 else target
    loss, grad, back = every_way(layout(x), target, reduction="none", **options)
    size = 1.0 + np.abs(gradients[np.isfinite(gradients)]).max(initial=0.0)
    near(loss, losses, x.dtype, size)
    near(layout(grad), gradients, x.dtype, size)
    near(layout(back), gradients, x.dtype, size)
    near(pyce.cross_entropy(layout(x), target, reduction="sum", **options), losses.sum(), x.dtype)
    if np.isfinite(wide).all():
        p = wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True))
        p -= wide.max(1, keepdims=True)
        for values, function in ((p, pyce.nll_loss), (np.exp(p), pyce.log_loss)):
            got = function(layout(values), target, reduction="none", **options)
            near(got, losses, np.float32, size)


@by_classes
@by_float
@every("value", [INF, -INF, NAN])
@every("axis", [0, 1])
def test_weights_of_classes_without_a_target(backend, dtype, classes, value, axis):
    """Counts of absent classes, 1/0: index labels and probabilities that are 0 there."""
    x, y = sample(classes, rows=9)
    x = x.astype(dtype)
    y %= classes - 1
    weight = np.linspace(0.5, 2.0, classes)
    weight[-1] = value
    check(x, y, weight=weight, axis=axis)
    t = np.random.default_rng(1).random(x.shape)
    t[:, -1] = 0.0
    check(x, t, weight=weight, axis=axis)
    # Smoothing gives the class a part of every target.
    loss = pyce.cross_entropy(x, y, weight=weight, label_smoothing=0.1, reduction="none")
    np.testing.assert_array_equal(loss, np.full(9, value))


@by_classes
@by_float
@every("soft", [False, True])
def test_an_infinite_weight_at_the_target(backend, dtype, classes, soft):
    """An infinite loss in these rows, also where the target is the maximum; none in the others."""
    x, y = sample(classes, rows=9)
    x = x.astype(dtype)
    x[1, y[1]] = 30.0
    weight = np.ones(classes)
    weight[y[:2]] = INF
    check(x, np.eye(classes)[y] if soft else y, weight=weight)
    mean, grad = pyce.cross_entropy_with_grad(x, y, weight=weight)
    assert np.isnan(mean)
    assert (grad[~np.isin(y, y[:2])] == 0).all()


@by_float
@every("classes", [2, 100, 2500])
@every("smoothing", [0.0, 0.25, 1.0])
@every("soft", [False, True])
def test_an_infinite_weight_where_log_p_is_rounded_to_0(backend, dtype, classes, smoothing, soft):
    """lse − x_y is positive, however small: times an infinite weight it is infinite."""
    x = np.full((3, classes), -800.0, dtype)
    x[:, 0] = 0.0
    y = np.array([0, 0, 1])
    target = np.eye(classes)[y] if soft else y
    options = {"label_smoothing": smoothing, "reduction": "none"}
    for heavy in (0, 1):
        weight = np.ones(classes)
        weight[heavy] = INF
        loss, grad, back = every_way(x, target, weight=weight, **options)
        # Without smoothing, only the rows of this class have the weight.
        infinite = (y == heavy) if smoothing == 0.0 else np.full(3, True)
        np.testing.assert_array_equal(loss == INF, infinite)
        assert not np.isnan(loss).any()
        np.testing.assert_array_equal(grad, back)
    # With one class, p is exactly 1, and 0 · inf = 0.
    loss, grad, back = every_way(x[:, :1], np.zeros(3, int), weight=[INF], **options)
    for found in (loss, grad, back):
        assert (found == 0.0).all()


@by_classes
@by_dtype
@pytest.mark.parametrize("kind", ["labels", "smoothing", "probabilities", "one-hot"])
@every("axis", [0, 1])
def test_infinite_sample_weights(backend, dtype, classes, kind, axis):
    """Loss and gradient of the row times infinity, where 0 · inf = 0; other rows are as before."""
    rows = 20
    x, y = sample(classes, rows)
    x[3, :2] = -INF, 9.0
    y[3] = 1
    x = x.astype(dtype)
    t = np.random.default_rng(1).random(x.shape)
    t[:, 0] = t[5] = 0.0
    target = {"probabilities": t, "one-hot": np.eye(classes)[y]}.get(kind, y)
    layout = (lambda a: np.ascontiguousarray(a.T)) if axis == 0 else (lambda a: a)
    given = layout(target) if target.ndim == 2 else target
    options = {"label_smoothing": 0.25 if kind == "smoothing" else 0.0, "axis": axis}
    s = np.linspace(0.5, 2.0, rows)
    s[9] = -1.0
    plain, *gradients = every_way(layout(x), given, sample_weight=s, reduction="none", **options)
    infinite = np.isin(np.arange(rows), [3, 5, 9, 17])
    weight = np.where(infinite, np.copysign(INF, s), s)
    loss, *found = every_way(layout(x), given, sample_weight=weight, reduction="none", **options)
    np.testing.assert_array_equal(loss, np.where(infinite, times(plain, INF), plain))
    wide = x.astype(np.float64)
    _, exact = expected_rows(wide, target, np.ones(classes), s, options["label_smoothing"])
    for gradient, before in zip(map(layout, found), map(layout, gradients), strict=True):
        np.testing.assert_array_equal(gradient[~infinite], before[~infinite])
        np.testing.assert_array_equal(
            gradient[infinite].astype(np.float64), times(np.sign(exact[infinite]), INF)
        )
    in_place = layout(x).copy()
    pyce.cross_entropy_with_grad(
        in_place, given, sample_weight=weight, reduction="none", out=in_place, **options
    )
    np.testing.assert_array_equal(in_place, found[0])
    total = pyce.cross_entropy(
        layout(x), given, sample_weight=abs(weight), reduction="sum", **options
    )
    assert total == INF
    # The denominator is infinite, too: 0 for the other rows, NaN where it is inf/inf.
    mean, gradient, _ = every_way(layout(x), given, sample_weight=abs(weight), **options)
    assert np.isnan(mean)
    assert (layout(gradient)[~infinite] == 0.0).all()
    assert np.isnan(layout(gradient)[17].astype(np.float64)).all()


@by_classes
@by_dtype
@pytest.mark.parametrize("kind", ["labels", "smoothing", "probabilities"])
def test_infinite_factors_of_the_gradient(backend, dtype, classes, kind):
    """An infinite grad_loss, of all rows or of some, and a mean that divides by 0."""
    x, y = sample(classes, rows=9)
    x = x.astype(dtype)
    t = np.random.default_rng(1).random(x.shape)
    t[:, 0] = 0.0
    target = t if kind == "probabilities" else y
    smoothing = 0.25 if kind == "smoothing" else 0.0
    options = {"label_smoothing": smoothing}
    _, exact = expected_rows(x.astype(np.float64), target, np.ones(classes), np.ones(9), smoothing)
    _, lse = pyce.cross_entropy(x, target, return_lse=True)
    above = np.ones(9)
    above[[0, 4]] = INF, -INF
    given = pyce.cross_entropy_backward(above, x, target, lse, reduction="none", **options)
    plain = pyce.cross_entropy_backward(np.ones(9), x, target, lse, reduction="none", **options)
    infinite = np.isinf(above)
    np.testing.assert_array_equal(given[~infinite], plain[~infinite])
    expected = times(np.sign(exact), above[:, np.newaxis])
    np.testing.assert_array_equal(given[infinite].astype(np.float64), expected[infinite])
    for factor in (INF, -INF):
        found = pyce.cross_entropy_backward(factor, x, target, lse, reduction="sum", **options)
        np.testing.assert_array_equal(found.astype(np.float64), np.sign(exact) * factor)
    mean, found, back = every_way(x, target, normalizer=0.0, **options)
    assert mean == INF
    for gradient in (found, back):
        np.testing.assert_array_equal(gradient.astype(np.float64), np.sign(exact) * INF)


@by_classes
@by_float
@every("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@every("axis", [0, 1])
def test_rows_without_coefficients(backend, dtype, classes, poison, soft, axis):
    """Whatever their logits are: by the sample weight, by the class weight, by the target."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    s, weight = np.linspace(0.5, 2.0, 20), np.linspace(0.5, 2.0, classes)
    bad = [0, 3, 17]
    x[bad, -1] = poison
    x[3] = poison
    s[bad] = 0.0
    target = np.random.default_rng(1).random(x.shape) if soft else y
    check(x, target, sample_weight=s, weight=weight, axis=axis)
    check(x, target, sample_weight=s, smoothing=0.25, axis=axis)
    y[bad] = 0
    weight[0] = 0.0
    target = np.eye(classes)[y] if soft else y
    s[bad] = INF, NAN, 1.0
    check(x, target, sample_weight=s, weight=weight, axis=axis)
    if soft:
        target[bad] = 0.0
        check(x, target, axis=axis)
        check(x, target, sample_weight=s, axis=axis)


@by_float
@every("value", [INF, NAN])
def test_denominators_skip_coefficients_of_zero(backend, dtype, value):
    """Σ w_y·s counts a product with a factor 0 as 0."""
    x, y = sample(rows=6)
    x = x.astype(dtype)
    y[:] = 1
    y[2] = 0
    s, weight = np.ones(6), np.ones(5)
    weight[0], s[2] = 0.0, value
    keep = np.arange(6) != 2
    mean, grad, back = every_way(x, y, sample_weight=s, weight=weight)
    expected, exact = pyce.cross_entropy_with_grad(x[keep], y[keep])
    near(mean, expected, dtype)
    for g in (grad, back):
        near(g[keep], exact, dtype)
        assert (g[2] == 0).all()


@by_classes
@by_float
@every("value", [INF, NAN])
def test_grad_loss_of_rows_without_coefficients(backend, dtype, classes, value):
    """A gradient from above that is not finite, at ignored rows and at those of weight 0."""
    x, y = sample(classes, rows=9)
    x = x.astype(dtype)
    y[:] = 1
    y[[0, 4]] = -100
    y[5] = 0
    weight, s = np.ones(classes), np.ones(9)
    weight[0] = s[7] = 0.0
    nothing = np.isin(np.arange(9), [0, 4, 5, 7])
    above = np.where(nothing, value, 2.0)
    _, lse = pyce.cross_entropy(x, y, reduction="none", return_lse=True)
    options = {"weight": weight, "sample_weight": s, "reduction": "none"}
    got = pyce.cross_entropy_backward(above, x, y, lse, **options)
    expected = pyce.cross_entropy_backward(np.full(9, 2.0), x, y, lse, **options)
    assert (got[nothing] == 0).all()
    np.testing.assert_array_equal(got, expected)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x))) if x == x else x


def expected_element(x, t, w, v):
    """Loss and gradient of binary cross-entropy from its definition."""
    yes, no = float(times(v, t)), 1.0 - t
    if w == 0.0 or (yes == 0.0 and no == 0.0):
        return 0.0, 0.0
    p = NAN if x != x else 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0
    q = NAN if x != x else 1.0 / (1.0 + math.exp(x)) if x < 700 else 0.0
    loss = float(times(yes, softplus(-x)) + times(no, softplus(x)))
    slope = float(times(no, p) - times(yes, q))
    return (w * loss, w * slope) if x == x else (NAN, NAN)


@by_float
def test_binary_cross_entropy(backend, dtype):
    """Every combination of extreme logits, targets, weights and positive weights."""
    grids = np.meshgrid(
        [0.0, -1.5, 2.0, 30.0, INF, -INF, NAN],
        [0.0, 1.0, 0.25],
        [1.0, 0.0, INF, NAN, 2.5],
        [1.0, 0.0, INF, NAN, 3.0],
    )
    x, t, w, v = (grid.ravel() for grid in grids)
    loss, grad = pyce.binary_cross_entropy_with_grad(
        x.astype(dtype), t, weight=w, pos_weight=v, reduction="none"
    )
    expected = [expected_element(*map(float, four)) for four in zip(x, t, w, v, strict=True)]
    near(loss, [one for one, _ in expected], dtype)
    near(grad, [one for _, one in expected], dtype)
    np.testing.assert_array_equal(
        pyce.binary_cross_entropy(x.astype(dtype), t, weight=w, pos_weight=v, reduction="none"),
        loss,
    )


@by_float
def test_weights_from_counts_of_absent_labels(backend, dtype):
    """pos_weight = negatives/positives of a label without positives."""
    t = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    x = np.array([[0.5, -1.0], [0.2, -2.0], [2.0, 0.1]]).astype(dtype)
    with np.errstate(divide="ignore"):
        pos_weight = (len(t) - t.sum(0)) / t.sum(0)
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, pos_weight=pos_weight, reduction="none")
    wide = x[:, 1].astype(np.float64)
    near(loss[:, 1], np.logaddexp(0.0, wide), dtype)
    near(grad[:, 1], 1.0 / (1.0 + np.exp(-wide)), dtype)


@by_classes
def test_rows_after_one_without_coefficients(backend, classes):
    """Its results are 0, not those of later rows of a batch that is larger than a kernel's tile."""
    rows = 200
    x, y = sample(classes, rows)
    x = x.astype(np.float32)
    t = np.eye(classes, dtype=np.float32)[y]
    s = np.ones(rows)
    s[::67] = 0.0
    x[::67] = NAN
    loss, grad, back = every_way(x, t, sample_weight=s, reduction="none")
    assert (loss == 0.0).tolist() == (s == 0.0).tolist()
    for found in (grad, back):
        assert (found == 0.0).all(axis=1).tolist() == (s == 0.0).tolist()


@pytest.mark.parametrize("ignored", [-100, 255])
def test_infinite_factors_of_rows_that_do_not_count(backend, ignored):
    """A row that is ignored or has no probabilities is 0, whatever multiplies it."""
    x = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]])
    infinite = np.array([INF, 1.0])
    labels, none = np.array([ignored, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for target, options in (
        (labels, {"sample_weight": infinite}),
        (labels, {"sample_weight": -infinite, "label_smoothing": 0.1}),
        (labels, {"weight": [INF, 1.0, INF]}),
        (none, {"sample_weight": infinite}),
    ):
        options = {**options, "reduction": "none"}
        if target is labels:
            options["ignore_index"] = ignored
        loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
        assert loss[0] == 0.0
        assert not grad[0].any()
        assert np.isfinite(loss).all()
        assert np.isfinite(grad).all()
        assert abs(loss[1]) > 3.0
