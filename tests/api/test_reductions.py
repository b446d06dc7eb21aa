"""Reductions, class and sample weights, label smoothing and the normalizer."""

import enum
import math

import numpy as np
import pytest
from every import every
from samples import BFLOAT16, by_classes, by_float, every_way, log_probs, near, sample

import pyce


class Reduction(str, enum.Enum):
    """An enumeration of strings, whose members str() does not turn into their values."""

    AVERAGE = "mean"
    SUM = "sum"
    NOTHING = "none"


@every("member", list(Reduction))
def test_members_of_an_enumeration_of_strings(backend, member):
    x, y = sample()
    w = sample(rows=9)[0]
    log_p, answers = log_probs(x), (x > 0).astype(float)
    lse = pyce.logsumexp(x)
    ones = np.ones(len(x)) if member.value == "none" else 1.0
    for call in (
        lambda reduction: pyce.cross_entropy(x, y, reduction=reduction),
        lambda reduction: pyce.cross_entropy_with_grad(x, y, reduction=reduction)[1],
        lambda reduction: pyce.cross_entropy_backward(ones, x, y, lse, reduction=reduction),
        lambda reduction: pyce.nll_loss(log_p, y, reduction=reduction),
        lambda reduction: pyce.log_loss(np.exp(log_p), y, reduction=reduction),
        lambda reduction: pyce.binary_cross_entropy(x, answers, reduction=reduction),
        lambda reduction: pyce.linear_cross_entropy(x, w, y, reduction=reduction),
    ):
        np.testing.assert_array_equal(call(member), call(member.value))


@by_float
@every("smoothing", [0.0, 0.1])
@every("axis", [0, 1])
def test_labels_at_the_edges_of_blocks(backend, dtype, smoothing, axis):
    """Rows of three blocks of 2048 classes, of which the last one is short."""
    y = np.array([0, 1, 2047, 2048, 2049, 4095, 4096, 4098])
    x = sample(4099, len(y))[0].astype(dtype)
    if smoothing:
        x[np.arange(len(y)), y] = 9  # makes the gradient at the label unlike the others
    t = np.full(x.shape, smoothing / 4099)
    t[np.arange(len(y)), y] += 1 - smoothing
    logits = x if axis == 1 else np.ascontiguousarray(x.T)
    loss, *grads = every_way(logits, y, axis=axis, label_smoothing=smoothing, reduction="sum")
    log_p = log_probs(x.astype(np.float64))
    near(loss, -(t * log_p).sum(), dtype)
    for grad in grads:
        near(grad if axis == 1 else grad.T, np.exp(log_p) - t, dtype)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0**-300])
def test_the_denominator_is_summed_with_what_rounding_loses(backend, scale, soft):
    """The largest weights cancel, so that errors of adding the others to them would show."""
    rows = 50_000
    s = np.full(rows, 1 + 2.0**-15)
    s[:19_001] = 0
    s[1:5] = s[8:40:8] = 0.25  # 2 in all, which is lost if each is added to the largest
    s[0], s[-1] = 2.0**52, -(2.0**52)
    x = np.zeros((rows, 2), np.float32)
    target = np.full((rows, 2), [1, 0], np.float32) if soft else np.zeros(rows, int)
    denominator = 2 + (rows - 19_002) * (1 + 2.0**-15)
    for options in (
        {"sample_weight": s * scale},
        {"sample_weight": s * scale / 2, "weight": [2.0, 2.0]},
    ):
        _, grad = pyce.cross_entropy_with_grad(x, target, **options)
        size = 2 if soft and "weight" in options else 1  # class weights are not in the mean
        np.testing.assert_allclose(
            grad[20_000].astype(float) * denominator / (1 + 2.0**-15),
            [-size * 0.5, size * 0.5],
            rtol=1e-6,
        )


def test_losses_are_summed_with_what_rounding_loses(backend):
    """The largest cancel, so that errors of adding the others to them would show."""
    x, y, s = np.zeros((2000, 2)), np.zeros(2000, int), np.ones(2000)
    s[0], s[256] = 2.0**60, -(2.0**60)
    (loss,) = pyce.cross_entropy(x[:1], y[:1], reduction="none")
    for rows in (512, 513, 2000):
        total = pyce.cross_entropy(x[:rows], y[:rows], sample_weight=s[:rows], reduction="sum")
        np.testing.assert_allclose(total, (rows - 2) * loss, rtol=1e-12)


@by_classes
@by_float
def test_reductions(backend, dtype, classes):
    x, y = sample(classes)
    x = x.astype(dtype)
    rows = -log_probs(x.astype(np.float64))[np.arange(7), y]
    near(pyce.cross_entropy(x, y, reduction="none"), rows, dtype)
    near(pyce.cross_entropy(x, y, reduction="sum"), rows.sum(), dtype)
    near(pyce.cross_entropy(x, y, reduction="mean"), rows.mean(), dtype)
    assert pyce.cross_entropy(x, y) == pyce.cross_entropy(x, y, reduction="mean")


@by_classes
@by_float
def test_class_and_sample_weights(backend, dtype, classes):
    x, y = sample(classes)
    x = x.astype(dtype)
    rng = np.random.default_rng(1)
    w, s = rng.uniform(0.1, 2, classes), rng.uniform(0.1, 2, 7)
    rows = -log_probs(x.astype(np.float64))[np.arange(7), y]
    near(pyce.cross_entropy(x, y, weight=w, reduction="none"), rows * w[y], dtype)
    near(pyce.cross_entropy(x, y, weight=w), (rows * w[y]).sum() / w[y].sum(), dtype)
    near(pyce.cross_entropy(x, y, sample_weight=s, reduction="none"), rows * s, dtype)
    near(pyce.cross_entropy(x, y, sample_weight=s), (rows * s).sum() / s.sum(), dtype)
    both = pyce.cross_entropy(x, y, weight=w, sample_weight=s)
    near(both, (rows * w[y] * s).sum() / (w[y] * s).sum(), dtype)
    near(
        pyce.cross_entropy(x, y, weight=w, sample_weight=s, reduction="sum"),
        (rows * w[y] * s).sum(),
        dtype,
    )


@by_classes
@by_float
def test_probability_targets(backend, dtype, classes):
    """The mean divides by the rows, or their sample weights, and never by class weights."""
    x, _ = sample(classes)
    x = x.astype(dtype)
    rng = np.random.default_rng(2)
    t = rng.uniform(0, 1, x.shape).astype(dtype)  # does not add up to 1
    w, s = rng.uniform(0.1, 2, classes), rng.uniform(0.1, 2, 7)
    log_p = log_probs(x.astype(np.float64))
    b = t.astype(np.float64) * w
    rows = -(b * log_p).sum(1)
    grad = np.exp(log_p) * b.sum(1, keepdims=True) - b
    size = b.sum(1).max()

    options = {"weight": w, "reduction": "none"}
    for result in every_way(x, t, **options)[1:]:
        near(result, grad, dtype, size)
    near(pyce.cross_entropy(x, t, **options), rows, dtype)
    near(pyce.cross_entropy(x, t, weight=w), rows.mean(), dtype)
    for result in every_way(x, t, weight=w)[1:]:
        near(result, grad / 7, dtype, size)
    near(
        pyce.cross_entropy(x, t, weight=w, sample_weight=s),
        (rows * s).sum() / s.sum(),
        dtype,
    )
    for result in every_way(x, t, weight=w, sample_weight=s)[1:]:
        near(result, grad * (s / s.sum())[:, None], dtype, size)


@by_classes
@by_float
@every("eps", [1e-3, 0.1, 1.0])
def test_label_smoothing(backend, dtype, classes, eps):
    x, y = sample(classes)
    x = x.astype(dtype)
    w = np.random.default_rng(3).uniform(0.1, 2, classes)
    log_p = log_probs(x.astype(np.float64))
    nll = -log_p[np.arange(7), y]
    rows = (1 - eps) * w[y] * nll + eps / classes * (w * -log_p).sum(1)
    b = w * ((1 - eps) * np.eye(classes)[y] + eps / classes)
    grad = np.exp(log_p) * b.sum(1, keepdims=True) - b
    options = {"weight": w, "label_smoothing": eps}
    near(pyce.cross_entropy(x, y, reduction="none", **options), rows, dtype)
    # The denominator is that of the labels.
    near(pyce.cross_entropy(x, y, **options), rows.sum() / w[y].sum(), dtype)
    for result in every_way(x, y, **options)[1:]:
        near(result, grad / w[y].sum(), dtype)
    # Smoothing a one-hot target is the same but for the mean.
    hot = np.eye(classes, dtype=dtype)[y]
    near(pyce.cross_entropy(x, hot, reduction="none", **options), rows, dtype)
    near(pyce.cross_entropy(x, hot, **options), rows.mean(), dtype)


@by_float
def test_smoothing_of_probability_targets(backend, dtype):
    x, _ = sample()
    t = np.random.default_rng(4).uniform(0, 1, x.shape).astype(dtype)
    x = x.astype(dtype)
    smooth = 0.8 * t.astype(np.float64) + 0.2 / 5
    got = pyce.cross_entropy(x, t, label_smoothing=0.2, reduction="none")
    near(got, -(smooth * log_probs(x.astype(np.float64))).sum(1), dtype)


@by_float
def test_weights_are_used_as_given(backend, dtype):
    """Zero and negative weights are valid."""
    x, y = sample()
    x = x.astype(dtype)
    w = np.array([0.0, -1.0, 2.0, 0.5, 0.0])
    rows = -log_probs(x.astype(np.float64))[np.arange(7), y]
    near(pyce.cross_entropy(x, y, weight=w, reduction="none"), rows * w[y], dtype)
    s = np.array([1.0, 0, -1, 2, 0, 0, 3])
    near(pyce.cross_entropy(x, y, sample_weight=s, reduction="none"), rows * s, dtype)
    # Their sum may be 0, and divides as any other.
    assert np.isnan(pyce.cross_entropy(x, y, weight=np.zeros(5)))
    # Neither are probabilities checked.
    t = np.random.default_rng(5).normal(size=x.shape)
    expected = -(t * log_probs(x.astype(np.float64))).sum(1)
    near(pyce.cross_entropy(x, t, reduction="none"), expected, dtype, 10.0)


@by_float
@every("kind", [np.float16, np.float32, np.int64, list])
def test_weights_of_other_dtypes(backend, dtype, kind):
    x, y = sample()
    x = x.astype(dtype)
    values = [1, 2, 3, 0, 2]
    weight = values if kind is list else np.array(values, kind)
    s = [1, 2, 1, 2, 1, 2, 1]
    plain = {"weight": np.array(values, float), "sample_weight": np.array(s, float)}
    got = pyce.cross_entropy_with_grad(x, y, weight=weight, sample_weight=s)
    expected = pyce.cross_entropy_with_grad(x, y, **plain)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@by_float
def test_normalizer_replaces_the_denominator(backend, dtype):
    x, y = sample()
    x = x.astype(dtype)
    w = np.random.default_rng(5).uniform(0.1, 2, 5)
    total = pyce.cross_entropy(x.astype(np.float64), y, weight=w, reduction="sum")
    near(pyce.cross_entropy(x, y, weight=w, normalizer=123.5), total / 123.5, dtype)
    _, of_sum = pyce.cross_entropy_with_grad(x, y, weight=w, reduction="sum")
    for grad in every_way(x, y, weight=w, normalizer=123.5)[1:]:
        near(grad, of_sum.astype(np.float64) / 123.5, dtype)
    t = np.full(x.shape, 0.2, dtype)
    rows = pyce.cross_entropy(x.astype(np.float64), t.astype(np.float64), reduction="sum")
    near(pyce.cross_entropy(x, t, normalizer=3), rows / 3, dtype)


@every("value", [math.nan, math.inf, -2.0])
@by_float
def test_a_normalizer_is_used_as_given(backend, dtype, value):
    """NaN is used as given as well."""
    x, y = sample()
    x = x.astype(dtype)
    total, of_sum = pyce.cross_entropy_with_grad(x, y, reduction="sum")
    loss, grad, back = every_way(x, y, normalizer=value)
    near(loss, float(total) / value, dtype)
    for got in (grad, back):
        near(got, of_sum.astype(np.float64) / value, dtype)
    # Without a row that counts there is nothing to divide.
    loss, grad, back = every_way(x, np.full(7, -100), normalizer=value)
    assert loss == 0
    assert (grad == 0).all() and (back == 0).all()


def test_other_reductions_do_not_normalize(backend):
    x, y = sample()
    for reduction in ("sum", "none"):
        expected = every_way(x, y, reduction=reduction)
        for got, plain in zip(
            every_way(x, y, reduction=reduction, normalizer=3.0), expected, strict=True
        ):
            np.testing.assert_array_equal(got, plain)


def test_gradient_accumulation(backend):
    """Two halves with the normalizer of the whole batch add up to the whole batch."""
    x, y = sample(rows=8)
    y[2] = -100
    whole, grad = pyce.cross_entropy_with_grad(x, y)
    parts = [
        pyce.cross_entropy_with_grad(x[part], y[part], normalizer=7)
        for part in (slice(0, 4), slice(4, 8))
    ]
    near(sum(float(loss) for loss, _ in parts), whole)
    near(np.concatenate([g for _, g in parts]), grad)


@every("kind", [np.float16, BFLOAT16, np.float32, np.int8, np.uint64])
def test_weights_of_any_real_dtype(backend, kind):
    x, y = sample(3, 4)
    w, s = np.array([1, 2, 3]), np.array([4, 1, 2, 1])
    given = pyce.cross_entropy(x, y, weight=w.astype(kind), sample_weight=s.astype(kind))
    assert given == pyce.cross_entropy(x, y, weight=w, sample_weight=s)


def test_a_normalizer_of_one_row(backend):
    x, y = sample(3, 1)
    whole = pyce.cross_entropy(x, y, reduction="sum")
    assert pyce.cross_entropy(x, y, normalizer=2.0) == pytest.approx(whole / 2)


def test_weights_whose_sum_is_nearly_too_large(backend):
    """The compensated sum must not overflow where the sum does not."""
    options = {"sample_weight": [6e307, 6e307]}
    for target in ([0, 0], np.tile([1.0, 0.0], (2, 1))):
        _, grad = pyce.cross_entropy_with_grad(np.zeros((2, 2)), target, **options)
        np.testing.assert_allclose(grad, [[-0.25, 0.25]] * 2)


@every(("rows", "classes"), [(300_000, 2), (300, 2100)])
def test_the_mean_of_many_rows(backend, rows, classes):
    """More sums of rows and pieces of labels than the C backend has room for on the stack."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    y[::7] = -100
    w = rng.uniform(0.5, 2, classes)
    loss, grad = pyce.cross_entropy_with_grad(x, y, weight=w)
    e = np.exp(x)
    valid, sums = y >= 0, e.sum(1)
    factors = np.where(valid, w[y % classes], 0) / math.fsum(w[y[valid]])
    exact = math.fsum(factors * (np.log(sums) - x[np.arange(rows), y % classes]))
    np.testing.assert_allclose(loss, exact, rtol=1e-13)
    p = e / sums[:, None]
    p[valid, y[valid]] -= 1
    np.testing.assert_allclose(grad, p * factors[:, None], rtol=1e-9, atol=1e-19)
    y[[rows - 20, rows - 2]] = classes
    with pytest.raises(IndexError, match=str(rows - 20)):
        pyce.cross_entropy(x, y, weight=w)
