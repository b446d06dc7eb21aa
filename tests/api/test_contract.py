"""The semantics, point by point: what each argument means and what each call gives back."""

import math

import ml_dtypes
import numpy as np
import oracle
import pytest

import pyce

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
# Few, some and many classes take different kernels.
by_classes = pytest.mark.parametrize("classes", [2, 3, 10, 40, 100, 700])


def log_probs(x):
    """log softmax of benign float64 rows, from the textbook."""
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sample(classes=5, rows=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


def near(actual, expected, dtype=np.float64, size=0.1):
    """Equal but for rounding, where `size` is that of the terms whose difference it is."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=20 * eps, atol=20 * eps * size
    )


def every_way(x, target, **kwargs):
    """The gradient fused and from the saved lse, after checking that all losses agree."""
    loss = pyce.cross_entropy(x, target, **kwargs)
    fused, grad = pyce.cross_entropy_with_grad(x, target, **kwargs)
    np.testing.assert_array_equal(fused, loss)
    _, lse = pyce.cross_entropy(x, target, return_lse=True, **kwargs)
    ones = np.ones(lse.shape) if kwargs.get("reduction") == "none" else 1.0
    back = pyce.cross_entropy_backward(ones, x, target, lse, **kwargs)
    return loss, grad, back


# ---------------------------------------------------------------------------------------------
# Reductions and weights


@by_float
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_at_the_edges_of_blocks(backend, dtype, smoothing, axis):
    """Rows of three of the blocks of 2048 classes that C cuts them into, the last of them short."""
    y = np.array([0, 1, 2047, 2048, 2049, 4095, 4096, 4098])
    x = sample(4099, len(y))[0].astype(dtype)
    if smoothing:
        x[np.arange(len(y)), y] = 9  # so that the label's gradient is of its own kind
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
    """Weights of which the largest cancel: whatever is lost beside them would be missing."""
    rows = 50_000
    s = np.full(rows, 1 + 2.0**-15)
    s[:19_001] = 0
    s[1:5] = s[8:40:8] = 0.25  # two, of which nothing is left when each is added to the largest
    s[0], s[-1] = 2.0**52, -(2.0**52)
    x = np.zeros((rows, 2), np.float32)
    target = np.full((rows, 2), [1, 0], np.float32) if soft else np.zeros(rows, int)
    denominator = 2 + (rows - 19_002) * (1 + 2.0**-15)
    for options in (
        {"sample_weight": s * scale},
        {"sample_weight": s * scale / 2, "weight": [2.0, 2.0]},
    ):
        _, grad = pyce.cross_entropy_with_grad(x, target, **options)
        share = 2 if soft and "weight" in options else 1  # class weights are not in the mean
        np.testing.assert_allclose(
            grad[20_000].astype(float) * denominator / (1 + 2.0**-15),
            [-share * 0.5, share * 0.5],
            rtol=1e-6,
        )


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
@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0])
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
    """Zero and negative weights are nobody's business here."""
    x, y = sample()
    x = x.astype(dtype)
    w = np.array([0.0, -1.0, 2.0, 0.5, 0.0])
    rows = -log_probs(x.astype(np.float64))[np.arange(7), y]
    near(pyce.cross_entropy(x, y, weight=w, reduction="none"), rows * w[y], dtype)
    s = np.array([1.0, 0, -1, 2, 0, 0, 3])
    near(pyce.cross_entropy(x, y, sample_weight=s, reduction="none"), rows * s, dtype)
    # Their sum may be 0, and divides as any other.
    assert np.isnan(pyce.cross_entropy(x, y, weight=np.zeros(5)))
    # Nor are probabilities looked at.
    t = np.random.default_rng(5).normal(size=x.shape)
    expected = -(t * log_probs(x.astype(np.float64))).sum(1)
    near(pyce.cross_entropy(x, t, reduction="none"), expected, dtype, 10.0)


@by_float
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64, list], ids=lambda k: k.__name__)
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -2.0])
@by_float
def test_a_normalizer_is_used_as_given(backend, dtype, value):
    """NaN too is a number that was given."""
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
    """Two halves with the whole batch's normalizer are the whole batch."""
    x, y = sample(rows=8)
    y[2] = -100
    whole, grad = pyce.cross_entropy_with_grad(x, y)
    parts = [
        pyce.cross_entropy_with_grad(x[part], y[part], normalizer=7)
        for part in (slice(0, 4), slice(4, 8))
    ]
    near(sum(float(loss) for loss, _ in parts), whole)
    near(np.concatenate([g for _, g in parts]), grad)


# ---------------------------------------------------------------------------------------------
# Ignored rows


@by_classes
@by_dtype
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_ignored_rows_are_inert(backend, dtype, classes, poison):
    x, y = sample(classes, rows=40)
    x = x.astype(dtype)
    ignored = np.zeros(40, bool)
    ignored[[0, 3, 17, 18, 39]] = True
    y[ignored] = -100
    x[ignored] = poison
    for extra in (
        {},
        {"label_smoothing": 0.1},
        {"weight": np.linspace(0.5, 2, classes)},
        {"sample_weight": np.linspace(0.5, 2, 40)},
    ):
        kept = dict(extra)
        if "sample_weight" in kept:
            kept["sample_weight"] = kept["sample_weight"][~ignored]
        for reduction in ("mean", "sum", "none"):
            loss, grad, back = every_way(x, y, reduction=reduction, **extra)
            only, only_grad, only_back = every_way(
                x[~ignored], y[~ignored], reduction=reduction, **kept
            )
            if reduction == "none":
                assert (loss[ignored] == 0).all()
                np.testing.assert_array_equal(loss[~ignored], only)
            else:
                near(loss, float(only), np.float32 if dtype.itemsize < 8 else dtype)
            for whole, part in ((grad, only_grad), (back, only_back)):
                assert (whole[ignored] == 0).all()
                near(whole[~ignored], part.astype(np.float64), dtype)


@by_float
def test_another_ignore_index(backend, dtype):
    """Also a valid class, which is then never a target; -100 is then out of range."""
    x, y = sample(rows=20)
    x = x.astype(dtype)
    y[:4] = 2
    kept = y != 2
    loss, grad, _ = every_way(x, y, ignore_index=2)
    near(loss, float(pyce.cross_entropy(x[kept], y[kept])), dtype)
    assert (grad[~kept] == 0).all()
    assert (grad[kept] != 0).all()
    high = np.where(kept, y, 1000)
    np.testing.assert_array_equal(pyce.cross_entropy(x, high, ignore_index=1000), loss)
    for edge in (np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        target = np.where(kept, y, edge)
        np.testing.assert_array_equal(pyce.cross_entropy(x, target, ignore_index=edge), loss)
    with pytest.raises(IndexError):
        pyce.cross_entropy(x, np.where(kept, y, -100), ignore_index=2)


def test_ignore_index_and_sample_weight_of_nan(backend):
    """What an ignored row carries beside its logits counts for nothing either."""
    x, y = sample()
    y[3] = -100
    s = np.ones(7)
    expected = pyce.cross_entropy_with_grad(x, y, sample_weight=s)
    s[3] = np.nan
    got = pyce.cross_entropy_with_grad(x, y, sample_weight=s)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ignore_index_is_for_labels(backend):
    """Probabilities have no rows to ignore, whatever they hold."""
    x, _ = sample()
    t = np.full(x.shape, -100.0)
    expected = pyce.cross_entropy(x, t, ignore_index=7, reduction="none")
    got = pyce.cross_entropy(x, t, reduction="none")
    np.testing.assert_array_equal(got, expected)
    assert (got != 0).all()


@by_float
def test_backward_reads_nothing_of_an_ignored_row(backend, dtype):
    """Neither its lse nor its factor."""
    x, y = sample()
    x = x.astype(dtype)
    y[3] = -100
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    g = np.linspace(1, 2, 7)
    expected = pyce.cross_entropy_backward(g, x, y, lse, reduction="none")
    lse[3] = g[3] = np.nan
    got = pyce.cross_entropy_backward(g, x, y, lse, reduction="none")
    np.testing.assert_array_equal(got, expected)
    assert (got[3] == 0).all()


@by_dtype
@pytest.mark.parametrize("rows", [0, 1, 5, 40])
@pytest.mark.parametrize("classes", [1, 3, 10, 100, 700])
def test_no_row_counts(backend, dtype, rows, classes):
    x = np.full((rows, classes), np.nan, dtype)
    y = np.full(rows, -100)
    for options, expected in (
        ({"reduction": "mean"}, math.nan),
        ({"reduction": "sum"}, 0.0),
        ({"reduction": "mean", "normalizer": 5.0}, 0.0),
        ({"reduction": "mean", "normalizer": 0.0}, 0.0),
    ):
        loss, grad, back = every_way(x, y, **options)
        np.testing.assert_array_equal(loss, expected)
        assert np.ndim(loss) == 0
        for g in (grad, back):
            assert g.shape == x.shape
            assert g.dtype == dtype
            assert (g == 0).all()
    loss, grad, back = every_way(x, y, reduction="none")
    assert loss.shape == (rows,)
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert (back == 0).all()


@pytest.mark.parametrize("ignored", [-101, -99, -1, 0, 1, 2**31, 2**63 - 1, -(2**63)])
def test_any_ignore_index(backend, ignored):
    """It stands for no class, and −100 for nothing else."""
    x = sample(3, 4)[0]
    kinds = [np.int64, *([np.uint64] if ignored >= 0 else [])]
    for kind in kinds:
        y = np.array([2, ignored, 2, ignored]).astype(kind)
        losses = pyce.cross_entropy(x, y, ignore_index=ignored, reduction="none")
        assert (losses[1::2] == 0).all()
        assert (losses[::2] > 0).all()
    with pytest.raises(IndexError, match="row 0 is -100"):
        pyce.cross_entropy(x, np.full(4, -100), ignore_index=ignored)


@pytest.mark.parametrize("kind", [np.float16, BFLOAT16, np.float32, np.int8, np.uint64])
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
    """What helps to add them up exactly must not overflow where the sum does not."""
    options = {"sample_weight": [6e307, 6e307]}
    for target in ([0, 0], np.tile([1.0, 0.0], (2, 1))):
        _, grad = pyce.cross_entropy_with_grad(np.zeros((2, 2)), target, **options)
        np.testing.assert_allclose(grad, [[-0.25, 0.25]] * 2)


@pytest.mark.parametrize("classes", [3, 100, 300, 2100])
def test_whichever_row_is_ignored(backend, classes):
    """Rows side by side keep nothing of those that stood in their places before."""
    rows = 36
    x, y = sample(classes, rows)
    x = x.astype(np.float32)
    options = {"reduction": "none", "label_smoothing": 0.1}
    losses, grads = pyce.cross_entropy_with_grad(x, y, **options)
    for row in range(rows):
        others = np.delete(np.arange(rows), row)
        target = y.copy()
        target[row] = -100
        loss, grad = pyce.cross_entropy_with_grad(x, target, **options)
        assert loss[row] == 0
        assert (grad[row] == 0).all()
        near(loss[others], losses[others], np.float32)
        near(grad[others], grads[others], np.float32)


def test_one_weighted_class_with_ignored_rows(backend):
    y = np.array([0, -100, 0])
    for reduction in ("mean", "sum"):
        options = {"weight": [2.0], "reduction": reduction}
        loss, grad = pyce.cross_entropy_with_grad(np.zeros((3, 1)), y, **options)
        assert loss == 0
        assert (grad == 0).all()


def test_lists_are_float64_whatever_is_in_them(backend):
    x = np.array([[0.1, 2, 3], [3, 2, 1]], np.float32)
    out = np.empty((2, 3))
    loss, grad = pyce.cross_entropy_with_grad([list(row) for row in x], [0, 1], out=out)
    assert grad is out
    assert loss.dtype == np.float64
    assert loss == pyce.cross_entropy(x.astype(np.float64), [0, 1])


def test_no_rows_as_lists(backend):
    """An empty list has no dtype of its own: it serves as labels."""
    loss, grad = pyce.cross_entropy_with_grad(np.zeros((0, 3)), [], reduction="none")
    assert loss.shape == (0,)
    assert grad.shape == (0, 3)
    with pytest.raises(TypeError, match="class indices"):
        pyce.cross_entropy(np.zeros((0, 3)), np.zeros(0))
    with pytest.raises(TypeError, match="class indices"):
        pyce.cross_entropy(np.zeros((0, 3)), np.zeros(0).view(np.recarray))


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 0, 4)])
def test_no_rows_with_probabilities(backend, shape):
    x = np.zeros(shape)
    loss, grad = pyce.cross_entropy_with_grad(x, x)
    assert np.isnan(loss)
    assert grad.shape == shape
    assert pyce.cross_entropy(x, x, reduction="sum") == 0
    assert pyce.cross_entropy(x, x, reduction="none").shape == shape[:-1]
    assert pyce.softmax(x).shape == shape
    assert pyce.logsumexp(x).shape == shape[:-1]


# ---------------------------------------------------------------------------------------------
# Rows that are not finite


@pytest.mark.parametrize("classes", [3, 10, 100, 700])
@by_dtype
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("poison", ["nan", "inf", "all -inf", "nan at target", "nan last"])
def test_a_bad_row_stays_alone(backend, dtype, classes, soft, axis, poison):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    clean = x.copy()
    bad = np.zeros(35, bool)
    bad[[0, 16, 33]] = True
    off = (y + 1) % classes
    if poison == "nan":
        x[bad, off[bad]] = np.nan
    elif poison == "inf":
        x[bad, off[bad]] = np.inf
    elif poison == "all -inf":
        x[bad] = -np.inf
    elif poison == "nan at target":
        x[bad, y[bad]] = np.nan
    else:
        x[bad, -1] = np.nan
    target = np.eye(classes, dtype=np.float32)[y] if soft else y
    if axis == 0:
        x, clean = np.ascontiguousarray(x.T), np.ascontiguousarray(clean.T)
        target = np.ascontiguousarray(target.T) if soft else target
    options = {"axis": axis, "reduction": "none"}
    loss, grad, back = every_way(x, target, **options)
    right, right_grad, right_back = every_way(clean, target, **options)
    assert np.isnan(loss[bad]).all()
    np.testing.assert_array_equal(loss[~bad], right[~bad])
    pairs = [(grad, right_grad), (back, right_back)]
    pairs.append((pyce.softmax(x, axis=axis), pyce.softmax(clean, axis=axis)))
    pairs.append((pyce.log_softmax(x, axis=axis), pyce.log_softmax(clean, axis=axis)))
    for got, expected in pairs:
        got, expected = np.moveaxis(got, axis, -1), np.moveaxis(expected, axis, -1)
        assert np.isnan(got[bad].astype(np.float64)).all()
        np.testing.assert_array_equal(got[~bad], expected[~bad])
    assert np.isnan(pyce.cross_entropy(x, target, axis=axis))
    # logsumexp itself has an answer to infinities.
    expected = {"inf": np.inf, "all -inf": -np.inf}.get(poison, np.nan)
    got = pyce.logsumexp(x, axis=axis)
    np.testing.assert_array_equal(got[bad], expected)
    assert np.isfinite(got[~bad]).all()


@by_classes
@by_dtype
def test_an_lse_that_is_not_finite(backend, dtype, classes):
    """Its row's gradient is NaN, even for finite logits; no other row's."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    for target in (y, np.eye(classes, dtype=np.float32)[y]):
        _, lse = pyce.cross_entropy(x, target, return_lse=True)
        expected = pyce.cross_entropy_backward(1.0, x, target, lse)
        bad = np.isin(np.arange(20), [0, 7, 18])
        lse[bad] = np.nan, np.inf, -np.inf
        got = pyce.cross_entropy_backward(1.0, x, target, lse)
        assert np.isnan(got[bad].astype(np.float64)).all()
        np.testing.assert_array_equal(got[~bad], expected[~bad])


@by_float
def test_a_sample_weight_of_zero_ignores_nothing(backend, dtype):
    """It multiplies the loss as it is: NaN and infinity become NaN."""
    x, y = sample(rows=4)
    x = x.astype(dtype)
    x[0, 0] = np.nan
    x[1, y[1]] = -np.inf
    s = np.array([0.0, 0.0, 0.0, 1.0])
    loss, grad, back = every_way(x, y, sample_weight=s, reduction="none")
    assert np.isnan(loss[:2]).all()
    assert loss[2] == 0 and loss[3] > 0
    for g in (grad, back):
        assert np.isnan(g[0]).all()
        assert (g[1:3] == 0).all()
    assert np.isnan(pyce.cross_entropy(x, y, sample_weight=s))


@by_classes
@by_dtype
def test_minus_infinity_off_the_target(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    mask = np.random.default_rng(6).random(x.shape) < 0.5
    mask[np.arange(35), y] = False
    x[mask] = -np.inf
    loss, grad, back = every_way(x, y, reduction="none")
    assert np.isfinite(loss).all()
    exact = oracle.reference(x, y, reduction="none")
    near(loss, exact.loss.hi, np.float32 if dtype.itemsize < 8 else dtype)
    for g in (grad, back):
        assert (g[mask] == 0).all()
        assert np.isfinite(g.astype(np.float64)).all()
        near(g, exact.grad.hi, dtype)
    assert (pyce.softmax(x)[mask] == 0).all()
    assert (pyce.log_softmax(x)[mask] == -np.inf).all()


@by_classes
@by_dtype
def test_minus_infinity_at_the_target(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    hit = np.zeros(35, bool)
    hit[[1, 15, 16, 34]] = True
    x[hit, y[hit]] = -np.inf
    loss, grad, back = every_way(x, y, reduction="none")
    assert (loss[hit] == np.inf).all()
    assert np.isfinite(loss[~hit]).all()
    p = np.exp(x.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = p - np.eye(classes)[y]
    for g in (grad, back):
        near(g, expected, dtype)
        assert (g[hit, y[hit]] == -1).all()
    assert pyce.cross_entropy(x, y) == np.inf
    assert pyce.cross_entropy(x, y, reduction="sum") == np.inf


@by_classes
@by_float
def test_probability_zero_meets_minus_infinity(backend, dtype, classes):
    """0 * inf counts as 0; a probability above 0 there costs infinity."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    off = (y + 1) % classes
    x[np.arange(20), off] = -np.inf
    t = np.eye(classes)[y]
    hard = pyce.cross_entropy(x, y, reduction="none").astype(np.float64)
    near(pyce.cross_entropy(x, t, reduction="none"), hard, dtype)
    t[5, off[5]] = 0.25
    loss, grad, back = every_way(x, t, reduction="none")
    assert loss[5] == np.inf
    assert np.isfinite(np.delete(loss, 5)).all()
    for g in (grad, back):
        assert np.isfinite(g).all()
        assert g[5, off[5]] == -0.25
    # Smoothing spreads probability over the masked class too.
    assert (pyce.cross_entropy(x, y, label_smoothing=0.1, reduction="none") == np.inf).all()


@by_classes
@by_float
def test_class_weight_zero_meets_minus_infinity(backend, dtype, classes):
    """The coefficient is 0 by the weight: at the label, in probabilities and under smoothing."""
    x, y = sample(classes, rows=20)
    x = x.astype(dtype)
    y[:] = 0
    x[:, 0] = -np.inf
    w = np.ones(classes)
    w[0] = 0.0
    for result in every_way(x, y, weight=w, reduction="none"):
        assert (result == 0).all()
    t = np.full(x.shape, 1 / classes, dtype)
    log_p = log_probs(x[:, 1:].astype(np.float64))
    spread = -log_p.sum(1) / classes
    for target, options, expected in (
        (t, {}, spread),
        (y + 1, {"label_smoothing": 0.1}, 0.1 * spread - 0.9 * log_p[:, 0]),
    ):
        loss, grad, back = every_way(x, target, weight=w, reduction="none", **options)
        near(loss, expected, dtype, 1.0)
        for g in (grad, back):
            assert np.isfinite(g).all()
            assert (g[:, 0] == 0).all()


# ---------------------------------------------------------------------------------------------
# Shapes and dtypes


@by_dtype
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("offset", [0.0, -3.5, 200.0, 6e4])
def test_one_class(backend, dtype, rows, offset):
    x = np.full((rows, 1), offset, dtype)
    y = np.zeros(rows, int)
    loss, grad, back = every_way(x, y, reduction="none")
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert (back == 0).all()
    near(pyce.softmax(x), 1.0, dtype)
    assert (pyce.log_softmax(x) == 0).all()
    assert (pyce.logsumexp(x) == x[:, 0].astype(np.float64)).all()
    assert pyce.cross_entropy(x, y) == 0
    # Whatever the target is, there is nothing to be learnt from one class.
    t = np.full((rows, 1), 0.7, np.float32)
    for target, options in ((t, {}), (t, {"label_smoothing": 0.1}), (y, {"label_smoothing": 0.1})):
        for result in every_way(x, target, reduction="none", **options):
            assert (result == 0).all()


SHAPES = [
    ((5,), 0),
    ((4, 5), -1),
    ((4, 5), 0),
    ((2, 5, 3), 1),
    ((2, 5, 3), -2),
    ((2, 3, 4, 5), 0),
    ((2, 3, 4, 5), 3),
    ((1, 1, 1), 1),
    ((70, 2), 0),
    ((3, 700, 2), 1),
]


@by_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_shapes_and_dtypes_of_results(backend, dtype, shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    positions = tuple(np.delete(shape, axis))
    y = rng.integers(0, shape[axis], positions)
    t = rng.random(shape).astype(np.float32)
    result = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    for target in (y, t):
        for reduction in ("mean", "sum", "none"):
            options = {"axis": axis, "reduction": reduction}
            expected = positions if reduction == "none" else ()
            loss = pyce.cross_entropy(x, target, **options)
            both = pyce.cross_entropy(x, target, return_lse=True, **options)
            pair = pyce.cross_entropy_with_grad(x, target, **options)
            three = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            assert (len(both), len(pair), len(three)) == (2, 2, 3)
            for value in (loss, both[0], pair[0], three[0]):
                assert value.dtype == result
                assert value.shape == expected
                assert isinstance(value, np.ndarray if reduction == "none" else np.generic)
                np.testing.assert_array_equal(value, loss)
            for lse in (both[1], three[2]):
                assert lse.shape == positions
                assert lse.dtype == np.float64
                assert isinstance(lse, np.ndarray)
                np.testing.assert_array_equal(lse, both[1])
            ones = np.ones(positions) if reduction == "none" else 1.0
            back = pyce.cross_entropy_backward(ones, x, target, both[1], **options)
            for grad in (pair[1], three[1], back):
                assert type(grad) is np.ndarray
                assert grad.shape == shape
                assert grad.dtype == dtype
                assert grad.flags.c_contiguous
            np.testing.assert_array_equal(pair[1], three[1])
    for result in (pyce.softmax(x, axis=axis), pyce.log_softmax(x, axis=axis)):
        assert (result.shape, result.dtype) == (shape, dtype)
    lse = pyce.logsumexp(x, axis=axis)
    assert lse.dtype == np.float64
    assert lse.shape == positions
    kept = pyce.logsumexp(x, axis=axis, keepdims=True)
    assert kept.dtype == np.float64
    np.testing.assert_array_equal(kept, np.expand_dims(lse, axis))


@by_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_any_class_axis(backend, dtype, shape, axis):
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(dtype)
    y = rng.integers(0, shape[axis], tuple(np.delete(shape, axis)))
    exact = oracle.reference(x, y, axis=axis, reduction="none")
    loss, grad, back = every_way(x, y, axis=axis, reduction="none")
    near(loss, exact.loss.hi, np.float32 if dtype.itemsize < 8 else dtype)
    near(grad, exact.grad.hi, dtype)
    near(back, exact.grad.hi, dtype)


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("classes", [3, 100, 120])
def test_integer_targets_of_any_dtype(backend, kind, classes):
    x, y = sample(classes, rows=20)
    expected = pyce.cross_entropy_with_grad(x, y)
    forms = [y.astype(kind), y.astype(kind).astype(np.dtype(kind).newbyteorder())]
    strided = np.zeros(40, kind)
    strided[::2] = y
    forms.append(strided[::2])
    forms.append(y.astype(kind)[::-1].copy()[::-1])
    raw = np.zeros(20 * np.dtype(kind).itemsize + 1, np.uint8)[1:].view(kind)
    raw[:] = y
    forms.append(raw)
    if np.dtype(kind).kind == "i":
        forms.append(np.where(np.arange(20) == 3, -100, y).astype(kind))
        y = np.where(np.arange(20) == 3, -100, y)
    for target in forms[:-1]:
        got = pyce.cross_entropy_with_grad(x, target)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    got = pyce.cross_entropy_with_grad(x, forms[-1])
    for one, other in zip(got, pyce.cross_entropy_with_grad(x, y), strict=True):
        np.testing.assert_array_equal(one, other)


@by_float
@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_probability_targets_of_any_dtype(backend, dtype, kind):
    x, _ = sample(20)
    t = np.random.default_rng(2).random(x.shape).astype(kind)
    x = x.astype(dtype)
    exact = oracle.reference(x, t, reduction="none")
    loss, grad, back = every_way(x, t, reduction="none")
    near(loss, exact.loss.hi, dtype)
    near(grad, exact.grad.hi, dtype)
    near(back, exact.grad.hi, dtype)


def test_lists_are_float64(backend):
    loss, grad = pyce.cross_entropy_with_grad([[1, 2, 3], [0, 0, 0]], [2, 0])
    assert loss.dtype == grad.dtype == np.float64
    expected = (np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(3)) / 2
    near(loss, expected)
    near(pyce.cross_entropy([1.0, 2.0, 0.5], 1), -log_probs(np.array([1, 2, 0.5]))[1])
    near(pyce.cross_entropy([[1.0, 2.0]], [[0.25, 0.75]]), 0.25 + np.log1p(np.exp(-1)))
    assert pyce.softmax([1, 2]).dtype == np.float64
    assert pyce.cross_entropy(np.float32([1, 2]), 0).dtype == np.float32


# ---------------------------------------------------------------------------------------------
# The backward, and outputs


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
    near(np.delete(pyce.logsumexp(x), 3), np.delete(exact, 3), wide)


@by_classes
@by_dtype
def test_out_is_written_and_returned(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    before = x.copy()
    expected = pyce.cross_entropy_with_grad(x, y)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    calls = {
        "fused": lambda out: pyce.cross_entropy_with_grad(x, y, out=out)[1],
        "backward": lambda out: pyce.cross_entropy_backward(1.0, x, y, lse, out=out),
        "softmax": lambda out: pyce.softmax(x, out=out),
        "log_softmax": lambda out: pyce.log_softmax(x, out=out),
    }
    for name, call in calls.items():
        plain = call(None)
        out = np.full(x.shape, 7, dtype)
        assert call(out) is out, name
        np.testing.assert_array_equal(out, plain)
        np.testing.assert_array_equal(x, before)
        unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
        assert call(unaligned) is unaligned, name
        np.testing.assert_array_equal(unaligned, plain)
        # In place.
        assert call(x) is x, name
        np.testing.assert_array_equal(x, plain)
        x[...] = before
    np.testing.assert_array_equal(pyce.cross_entropy_with_grad(x, y)[1], expected[1])


def test_out_may_be_another_view_of_exactly_the_logits(backend):
    x, y = sample()
    _, plain = pyce.cross_entropy_with_grad(x, y)
    out = x[:]
    _, grad = pyce.cross_entropy_with_grad(x, y, out=out)
    assert grad is out
    np.testing.assert_array_equal(x, plain)


def test_inputs_are_never_written(backend):
    x, y = sample(rows=35)
    rng = np.random.default_rng(0)
    t, w, s = rng.random(x.shape), rng.random(5), rng.random(35)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    g = np.ones(35)
    inputs = [x, y, t, w, s, lse, g]
    copies = [a.copy() for a in inputs]
    for a in inputs:
        a.flags.writeable = False
    for target in (y, t):
        options = {"weight": w, "sample_weight": s, "label_smoothing": 0.1, "reduction": "none"}
        pyce.cross_entropy(x, target, **options)
        pyce.cross_entropy_with_grad(x, target, **options)
        pyce.cross_entropy_backward(g, x, target, lse, **options)
        pyce.nll_loss(x, target, **options)
        pyce.log_loss(t, target, **options)
    pyce.softmax(x), pyce.log_softmax(x), pyce.logsumexp(x), pyce.accuracy(x, y)
    pyce.binary_cross_entropy_with_grad(x, t, weight=w, pos_weight=w)
    for a, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
