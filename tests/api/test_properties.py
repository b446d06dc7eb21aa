"""Laws that hold for any logits, on every backend, over random shapes, dtypes and regimes.

Two results are "within the bound" if they differ by no more than the promised errors of both: 2
units in the last place for a loss, 4 for a gradient. PYCE_FUZZ_EXAMPLES=n tries n times as many
examples, and others each time; `make fuzz-python` sets it. The file is long because all laws draw
their problems from the strategies at its top.
"""

import os

import cases
import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest
from bounds import check_array, round_once, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import pyce

MORE = int(os.environ.get("PYCE_FUZZ_EXAMPLES") or 1)
LOSS, GRAD = 2, 4
DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
FLOATS = DTYPES[2:]
CLASSES = [1, 2, 3, 4, 8, 9, 10, 16, 17, 33, 63, 64, 65, 100, 129, 511, 513, 1025, 2047, 2049, 4097]


def law(examples=10, **strategies):
    """A test over so many examples; `backend` stays the same for all of them."""
    chosen = settings(max_examples=examples * MORE)
    if MORE > 1:
        chosen = settings(chosen, derandomize=False)

    def decorate(test):
        return chosen(given(**strategies)(test))

    return decorate


class Batch:
    """Logits x (rows, classes) and labels y."""

    def __init__(self, x, y, regime, seed):
        self.x, self.y, self.regime, self.seed = x, y, regime, seed

    def __repr__(self):
        """How to make the batch again."""
        return f"Batch({self.regime}, {self.x.shape}, {self.x.dtype}, seed={self.seed})"

    @property
    def rng(self):
        return np.random.default_rng(self.seed + 1)

    @property
    def wide(self):
        return np.float64 if self.x.dtype == np.float64 else np.float32


@st.composite
def batches(draw, dtypes=DTYPES, regimes=tuple(cases.REGIMES), classes=CLASSES, rows=70):
    c = draw(st.sampled_from(classes))
    n = draw(st.integers(1, max(1, min(rows, 5000 // c))))
    dtype = draw(st.sampled_from(dtypes))
    regime = draw(st.sampled_from(regimes))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    x = cases.REGIMES[regime](rng, y, n, c, dtype)
    if dtype == np.float16:
        x = np.where(np.isfinite(x), np.clip(x, -65504, 65504), x)
    return Batch(x.astype(dtype), y, regime, seed)


# Without -inf and what comes near it, where a law is about all classes' log-probabilities.
MODERATE = tuple(r for r in cases.REGIMES if not r.startswith(("masked", "alone")))


def near(actual, expected, bound, terms=None):
    """Within `bound` units in the last place of the actual's dtype; subnormals count as 0."""
    expected = oracle.as_dd(expected if isinstance(expected, oracle.DD) else as_float64(expected))
    error = oracle.ulp_error(actual, expected, terms)
    tiny = oracle.smallest_normal(np.asarray(actual).dtype)
    expected = expected.hi
    size = np.abs(expected) if terms is None else np.maximum(np.abs(expected), terms)
    low = (size < tiny) & (np.abs(np.asarray(actual).astype(np.float64)) <= 2 * tiny)
    error = np.where(low, 0.0, error)
    assert error.max(initial=0.0) <= bound, (error.max(), np.argwhere(error > bound)[:3])


def as_float64(values):
    return np.asarray(values).astype(np.float64)


def near_grad(actual, expected, bound=2 * GRAD, terms=None):
    """Two gradients; of half types, roundings of float32 numbers within the bound."""
    near(actual, expected, bound if actual.dtype.itemsize > 2 else 1, terms)


def identical(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


def alike(backend, one, other, bound):
    """Check that C gives the same bytes, and others the same within the bound."""
    if backend.bitwise:
        identical(one, other)
    near_grad(np.asarray(one), other, bound)


def none(x, target, **kwargs):
    """Losses of rows, gradient and lse."""
    return pyce.cross_entropy_with_grad(x, target, reduction="none", return_lse=True, **kwargs)


def soft_terms(x, t):
    """The terms that the error of a gradient from probabilities is relative to."""
    t = t.astype(np.float64)
    p = oracle.softmax_rows(x.astype(np.float64)).p.hi
    return np.maximum(p * t.sum(1, keepdims=True), t)


# ---------------------------------------------------------------------------------------------
# The logits


@law(
    shape=st.tuples(st.integers(1, 40), st.sampled_from(CLASSES[:17])),
    dtype=st.sampled_from(FLOATS),
    signs=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_shift_far_from_zero_changes_no_bit(backend, shape, dtype, signs, seed):
    """C subtracts the maximum itself where it is large, and that is exact."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-4000, 1, shape) / 64).astype(dtype)
    x[:, 0] = 0
    far = 1024 if dtype == np.float32 else 8192
    y = rng.integers(0, shape[1], shape[0])
    one, other = x + dtype.type(signs[0] * far), x + dtype.type(signs[1] * far * 2)
    assert (one - dtype.type(signs[0] * far) == x).all()
    bound = (2 * LOSS, 2 * GRAD)
    for a, b, k in zip(none(one, y)[:2], none(other, y)[:2], bound, strict=True):
        alike(backend, a, b, k)
    alike(backend, pyce.softmax(one), pyce.softmax(other), 2 * GRAD)
    alike(backend, pyce.log_softmax(one), pyce.log_softmax(other), 2 * GRAD)


@law(
    shape=st.tuples(st.integers(1, 30), st.sampled_from(CLASSES[:17])),
    dtype=st.sampled_from(FLOATS),
    power=st.integers(-20, 100),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_exact_shift(backend, shape, dtype, power, sign, seed):
    """Up to 1e30, where a unit of the logits is 1e24: every number is a small multiple of that."""
    rng = np.random.default_rng(seed)
    unit = dtype.type(2.0) ** dtype.type(power - 20)
    x = rng.integers(-500, 500, shape).astype(dtype) * unit
    shift = dtype.type(sign) * dtype.type(2.0) ** dtype.type(power)
    moved = x + shift
    assert (moved - shift == x).all()
    y = rng.integers(0, shape[1], shape[0])
    loss, grad, lse = none(x, y)
    moved_loss, moved_grad, moved_lse = none(moved, y)
    near(moved_loss, loss, 2 * LOSS)
    near(moved_grad, grad, 2 * GRAD)
    eps = float(np.finfo(dtype).eps)
    size = np.maximum(np.abs(lse), abs(float(shift))) * np.finfo(float).eps + eps * 10
    assert (np.abs(moved_lse - lse - float(shift)) <= 8 * size).all()


@law(batch=batches())
def test_the_order_of_classes(backend, batch):
    x, y = batch.x, batch.y
    order = batch.rng.permutation(x.shape[1])
    moved = np.argsort(order)[y]
    loss, grad, lse = none(x, y)
    got = none(x[:, order], moved)
    near(got[0], loss, 2 * LOSS)
    near_grad(got[1], grad[:, order])
    np.testing.assert_allclose(got[2], lse, rtol=1e-5)
    near_grad(pyce.softmax(x[:, order]), pyce.softmax(x)[:, order])


@law(batch=batches())
def test_the_order_of_rows(backend, batch):
    x, y = batch.x, batch.y
    order = batch.rng.permutation(len(x))
    for one, other, bound in zip(
        none(x[order], y[order]), none(x, y), (2 * LOSS, 2 * GRAD, 1e10), strict=True
    ):
        alike(backend, one, other[order], bound)


@law(batch=batches(), cut=st.integers(0, 70))
def test_a_batch_in_two_pieces(backend, batch, cut):
    x, y = batch.x, batch.y
    cut = min(cut, len(x))
    whole = none(x, y)
    parts = zip(none(x[:cut], y[:cut]), none(x[cut:], y[cut:]), strict=True)
    for one, two, bound in zip(whole, parts, (2 * LOSS, 2 * GRAD, 1e10), strict=True):
        alike(backend, one, np.concatenate(two), bound)


@law(batch=batches(regimes=MODERATE))
def test_a_batch_in_two_pieces_with_one_normalizer(backend, batch):
    """Gradient accumulation."""
    x, y = batch.x, batch.y
    cut, n = len(x) // 2, float(len(x))
    loss, grad = pyce.cross_entropy_with_grad(x, y)
    parts = [
        pyce.cross_entropy_with_grad(x[i:j], y[i:j], normalizer=n)
        for i, j in ((0, cut), (cut, len(x)))
    ]
    near(loss, sum(np.float64(part[0]) for part in parts), 2 * LOSS)
    alike(backend, grad, np.concatenate([part[1] for part in parts]), 2 * GRAD)


@law(batch=batches())
def test_a_class_of_probability_zero(backend, batch):
    """Appended, it changes nothing, and its gradient is 0."""
    x, y = batch.x, batch.y
    longer = np.concatenate([x, np.full((len(x), 3), -np.inf, x.dtype)], axis=1)
    loss, grad, _ = none(x, y)
    got = none(longer, y)
    near(got[0], loss, 2 * LOSS)
    near_grad(got[1][:, :-3], grad)
    assert (got[1][:, -3:] == 0).all()


@law(batch=batches(), lead=st.integers(1, 3))
def test_where_the_class_axis_stands(backend, batch, lead):
    x, y = batch.x, batch.y
    lead = min(lead, len(x))
    n = len(x) // lead * lead
    shape = (lead, n // lead)
    moved = np.ascontiguousarray(np.moveaxis(x[:n].reshape(*shape, -1), -1, 1))
    loss, grad, lse = none(moved, y[:n].reshape(shape), axis=1)
    plain = none(x[:n], y[:n])
    rows = (loss.reshape(-1), np.moveaxis(grad, 1, -1).reshape(n, -1), lse.reshape(-1))
    for one, other, bound in zip(rows, plain, (2 * LOSS, 2 * GRAD, 1e10), strict=True):
        alike(backend, one, other, bound)


# ---------------------------------------------------------------------------------------------
# What results are like


@law(batch=batches())
def test_a_gradient_sums_to_zero(backend, batch):
    _, grad, _ = none(batch.x, batch.y)
    g = grad.astype(np.float64)
    eps, tiny = (float(getattr(ml_dtypes.finfo(grad.dtype), k)) for k in ("eps", "tiny"))
    assert (np.abs(g.sum(1)) <= GRAD * (eps * np.abs(g).sum(1) + tiny * g.shape[1])).all()


@law(batch=batches())
def test_signs(backend, batch):
    """A loss is not negative; the gradient pulls the target up and pushes the others down."""
    loss, grad, _ = none(batch.x, batch.y)
    assert (loss >= 0).all()
    at = np.arange(len(batch.x)), batch.y
    assert (grad[at] <= 0).all()
    assert (grad[at] >= -1).all()
    others = grad.copy()
    others[at] = 0
    assert (others >= 0).all()


@law(batch=batches())
def test_probabilities(backend, batch):
    """They sum to 1, their logarithms are not positive, and either is the other's function."""
    x = batch.x
    p, logs = pyce.softmax(x).astype(np.float64), pyce.log_softmax(x).astype(np.float64)
    eps, tiny = (float(getattr(ml_dtypes.finfo(x.dtype), k)) for k in ("eps", "tiny"))
    assert (p >= 0).all() and (p <= 1 + GRAD * eps).all()
    assert (np.abs(p.sum(1) - 1) <= GRAD * (eps + tiny * x.shape[1])).all()
    assert (logs <= 0).all()
    assert (logs.max(1) >= -np.log(x.shape[1]) * (1 + GRAD * eps) - tiny).all()
    q = np.exp(logs)
    allowed = GRAD * eps * (1 + np.abs(np.where(q > 0, logs, 0)))
    seen = p >= 2 * tiny
    assert (np.abs(p - q)[seen] <= (allowed * p)[seen]).all()
    assert (q[~seen] <= 4 * tiny).all()


@law(batch=batches())
def test_forward_fused_and_backward_agree(backend, batch):
    x, y = batch.x, batch.y
    loss, grad, lse = none(x, y)
    forward = pyce.cross_entropy(x, y, reduction="none", return_lse=True)
    identical(forward[0], loss)
    identical(forward[1], lse)
    back = pyce.cross_entropy_backward(np.ones(len(x)), x, y, lse, reduction="none")
    near_grad(back, grad)
    eps = float(ml_dtypes.finfo(batch.wide).eps)
    near_lse = 8 * eps * max(1.0, np.log(x.shape[1])) + 4 * np.finfo(float).eps * np.abs(lse)
    assert (np.abs(pyce.logsumexp(x) - lse) <= near_lse).all()
    mean, of_mean = pyce.cross_entropy_with_grad(x, y)
    identical(pyce.cross_entropy(x, y), mean)
    near_grad(pyce.cross_entropy_backward(1.0, x, y, lse), of_mean)


@law(batch=batches())
def test_in_place(backend, batch):
    x, y = batch.x, batch.y
    target = (y, batch.rng.random(x.shape).astype(batch.wide))[batch.seed % 2]
    loss, grad, _ = none(x, target)
    copy = x.copy()
    identical(none(copy, target, out=copy)[0], loss)
    identical(copy, grad)
    for call in (pyce.softmax, pyce.log_softmax):
        copy = x.copy()
        call(copy, out=copy)
        identical(copy, call(x))


@law(batch=batches(DTYPES[:2]))
def test_half_types_are_float32_rounded_once(backend, batch):
    x, y = batch.x, batch.y
    loss, grad, lse = none(x, y)
    wide = none(x.astype(np.float32), y)
    identical(loss, wide[0])
    identical(lse, wide[2])
    same_bits(grad, round_once(wide[1], x.dtype))
    same_bits(pyce.softmax(x), round_once(pyce.softmax(x.astype(np.float32)), x.dtype))


@law(
    n=st.integers(1, 9),
    value=st.floats(-(2.0**100), 2.0**100, width=32),
    classes=st.sampled_from(CLASSES),
)
def test_equal_logits(backend, n, value, classes):
    """log C, and the same probability for every class."""
    for dtype in FLOATS:
        x = np.full((n, classes), value, dtype)
        loss, grad, _ = none(x, np.zeros(n, int))
        near(loss, np.full(n, np.log(classes)), LOSS + 1)
        near(grad[:, 1:], np.full((n, classes - 1), 1 / classes), GRAD + 1)
        near(pyce.softmax(x), np.full(x.shape, 1 / classes), GRAD + 1)


@law(batch=batches(), by=st.floats(0.01, 50))
def test_a_better_target_costs_less(backend, batch, by):
    x, y = batch.x, batch.y
    at = np.arange(len(x)), y
    better = x.copy()
    with np.errstate(over="ignore"):
        better[at] = (x[at].astype(np.float64) + by).astype(x.dtype)
    if not np.isfinite(better[at].astype(np.float64)).all():
        return
    loss, grad, _ = none(x, y)
    less, flatter, _ = none(better, y)
    ulp = oracle.ulp(loss.astype(np.float64), loss.dtype)
    assert (less <= loss + 2 * LOSS * ulp).all()
    # The losses differ by no more than the logits do.
    moved = better[at].astype(np.float64) - x[at].astype(np.float64)
    assert (loss - less <= moved + 2 * LOSS * ulp).all()
    ulp = oracle.ulp(grad[at].astype(np.float64), grad.dtype)
    assert (flatter[at] >= grad[at] - 2 * GRAD * ulp).all()


@law(batch=batches(regimes=("random", "spread25", "climbing", "small", "constant0.3")))
def test_temperature(backend, batch):
    """Half the temperature makes the likeliest class likelier and changes no ranking."""
    x = batch.x
    cold, warm = pyce.softmax(x + x).astype(float), pyce.softmax(x).astype(float)
    eps = float(ml_dtypes.finfo(x.dtype).eps)
    assert (cold.max(1) >= warm.max(1) * (1 - 2 * GRAD * eps)).all()
    for k in (1, 3):
        assert pyce.accuracy(x + x, batch.y, top_k=k) == pyce.accuracy(x, batch.y, top_k=k)


@law(batch=batches(), k=st.integers(1, 5))
def test_accuracy_is_about_order_alone(backend, batch, k):
    """Any increasing function of the logits leaves it; so does the order of rows."""
    x, y = batch.x, batch.y
    expected = pyce.accuracy(x, y, top_k=k)
    ranks = np.unique(x.astype(np.float64), return_inverse=True)[1].reshape(x.shape)
    assert pyce.accuracy(ranks.astype(np.float32), y, top_k=k) == expected
    assert pyce.accuracy(x[::-1], y[::-1], top_k=k) == expected
    order = np.argsort(-ranks, axis=1, kind="stable")[:, :k]
    assert expected == np.mean((order == y[:, None]).any(1))


# ---------------------------------------------------------------------------------------------
# Targets


@law(batch=batches())
def test_one_hot_probabilities_are_labels(backend, batch):
    x, y = batch.x, batch.y
    hot = (np.arange(x.shape[1]) == y[:, None]).astype(batch.wide)
    loss, grad, _ = none(x, y)
    soft_loss, soft_grad, _ = none(x, hot)
    near(soft_loss, loss, 2 * LOSS)
    near_grad(soft_grad, grad, terms=soft_terms(x, hot))
    assert pyce.accuracy(x, hot) == pyce.accuracy(x, y)


@law(batch=batches(FLOATS, MODERATE), smoothing=st.floats(1e-3, 1))
def test_smoothing_is_a_mixture(backend, batch, smoothing):
    """Of the loss of the labels and that of uniform probabilities, for labels and one-hot rows."""
    x, y = batch.x, batch.y
    classes = x.shape[1]
    hard = np.float64(pyce.cross_entropy(x, y, reduction="none"))
    uniform = np.float64(none(x, np.full(x.shape, 1.0))[0]) / classes
    expected = (1 - smoothing) * hard + smoothing * uniform
    near(none(x, y, label_smoothing=smoothing)[0], expected, 2 * LOSS + 1)
    hot = (np.arange(classes) == y[:, None]).astype(batch.wide)
    near(none(x, hot, label_smoothing=smoothing)[0], expected, 2 * LOSS + 1)


@law(batch=batches(), poison=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.0]))
def test_ignored_rows_are_inert(backend, batch, poison):
    """Whatever they hold; all their own results are 0."""
    x, y = batch.x, batch.y.copy()
    ignored = batch.rng.random(len(x)) < 0.4
    y[ignored] = -100
    spoilt = x.copy()
    spoilt[ignored] = poison
    for kwargs in ({}, {"label_smoothing": 0.25}):
        expected, got = none(x, y, **kwargs), none(spoilt, y, **kwargs)
        for one, other in zip(got, expected, strict=True):
            identical(one, other)
            assert (one[ignored] == 0).all()
        back = [
            pyce.cross_entropy_backward(1.0, a, y, got[2], reduction="sum", **kwargs)
            for a in (spoilt, x)
        ]
        identical(*back)
        assert (back[0][ignored] == 0).all()
        identical(pyce.cross_entropy(spoilt, y, **kwargs), pyce.cross_entropy(x, y, **kwargs))


@law(x=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_two_classes_are_a_yes_or_no(backend, x):
    for dtype in FLOATS:
        yes = np.array(x, dtype)
        y = np.arange(len(yes)) % 2
        two = np.stack([np.zeros_like(yes), yes], axis=1)
        loss, grad, _ = none(two, y)
        answer = y.astype(dtype)
        other, slope = pyce.binary_cross_entropy_with_grad(yes, answer, reduction="none")
        near(other, loss, 2 * LOSS)
        near(slope, grad[:, 1], 2 * GRAD)
        near(-slope, grad[:, 0], 2 * GRAD)


@law(batch=batches(FLOATS, MODERATE))
def test_no_for_yes(backend, batch):
    """The negated logit with the opposite target has the same loss."""
    x = batch.x
    t = (batch.rng.integers(0, 9, x.shape) / 8).astype(x.dtype)
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, reduction="none")
    other, slope = pyce.binary_cross_entropy_with_grad(-x, 1 - t, reduction="none")
    near(other, loss, 2 * LOSS)
    # The two terms of the gradient cancel.
    near(-slope, grad, 2 * GRAD, terms=np.maximum(t, 1 - t).astype(float))


@law(batch=batches(FLOATS))
def test_from_log_probabilities(backend, batch):
    x, y = batch.x, batch.y
    loss = pyce.cross_entropy(x, y, reduction="none")
    near(pyce.nll_loss(pyce.log_softmax(x), y, reduction="none"), loss, LOSS + GRAD)


@law(batch=batches(FLOATS))
def test_from_probabilities(backend, batch):
    """The relative error of a probability is an absolute error of its logarithm."""
    x, y = batch.x, batch.y
    p = pyce.softmax(x)
    loss = np.float64(pyce.cross_entropy(x, y, reduction="none"))
    got = np.float64(pyce.log_loss(p, y, reduction="none"))
    seen = p[np.arange(len(x)), y] >= np.finfo(x.dtype).tiny
    eps = np.finfo(x.dtype).eps
    assert (np.abs(got - loss)[seen] <= ((GRAD + LOSS) * eps * (1 + loss))[seen]).all()


# ---------------------------------------------------------------------------------------------
# Weights, factors, reductions


@law(batch=batches(), power=st.integers(-8, 8))
def test_powers_of_two_go_through(backend, batch, power):
    """Factors that are powers of two scale results exactly where nothing underflows."""
    x, y = batch.x, batch.y
    factor = 2.0**power
    loss, grad, lse = none(x, y)
    limits = ml_dtypes.finfo(grad.dtype)
    g = grad.astype(np.float64)
    safe = np.abs(g) > 2.0**10 * float(limits.tiny)
    scaled = (g * factor).astype(grad.dtype)
    w, s = np.full(x.shape[1], factor), np.full(len(x), factor)
    for kwargs in ({"weight": w}, {"sample_weight": s}):
        got = none(x, y, **kwargs)
        kept = loss > 2.0**10 * np.finfo(loss.dtype).tiny
        identical(got[0][kept], (loss * loss.dtype.type(factor))[kept])
        identical(got[1][safe], scaled[safe])
        # The mean does not see a factor of all weights.
        alike(backend, pyce.cross_entropy(x, y, **kwargs), pyce.cross_entropy(x, y), 0)
    plain = pyce.cross_entropy_backward(np.ones(len(x)), x, y, lse, reduction="none")
    back = pyce.cross_entropy_backward(s, x, y, lse, reduction="none")
    scaled = (plain.astype(np.float64) * factor).astype(grad.dtype)
    identical(back[safe], scaled[safe])
    got = pyce.cross_entropy_backward(factor, x, y, lse, reduction="sum")
    identical(got[safe], scaled[safe])


@law(batch=batches(FLOATS), factor=st.floats(1e-3, 1e3))
def test_other_factors_go_through(backend, batch, factor):
    x, y = batch.x, batch.y
    loss, grad, lse = none(x, y)
    s = np.full(len(x), factor)
    got = none(x, y, sample_weight=s)
    lower = float(np.finfo(x.dtype).tiny) * 1e4
    seen = loss > lower
    near(got[0][seen], np.float64(loss[seen]) * factor, 2 * LOSS + 1)
    expected = np.float64(grad) * factor
    for g in (
        got[1],
        pyce.cross_entropy_backward(factor, x, y, lse, reduction="sum"),
        pyce.cross_entropy_backward(s, x, y, lse, reduction="none"),
    ):
        seen = np.abs(np.float64(grad)) > lower
        near(g[seen], expected[seen], 2 * GRAD + 1)


@law(
    batch=batches(),
    size=st.sampled_from([0, 30, 300, 450]),
    shift=st.integers(-500, 500),
    bad=st.sampled_from([None, None, np.nan, np.inf]),
)
def test_factors_of_any_size(backend, batch, size, shift, bad):
    """The sum and the mean are those of the rows, each times its factors, whatever their powers of
    two, of which the mean does not see one of all rows. A row that is not finite is seen, however
    small its factors are.
    """
    x, y, rng = batch.x.copy(), batch.y, batch.rng
    if bad is not None:
        x[rng.integers(len(x)), 0] = bad
    rows, _, _ = none(x, y)
    s = rng.uniform(0.5, 1, len(x)) * 2.0 ** rng.integers(-size, size + 1, len(x))
    w = rng.uniform(0.5, 1, x.shape[1]) * 2.0 ** rng.integers(-size, size + 1, x.shape[1])
    factors = [mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(s, w[y], strict=True)]
    total = mpmath.fsum(f * mpmath.mpf(float(v)) for f, v in zip(factors, rows, strict=True))
    options = {"sample_weight": s * 2.0**shift, "weight": w}
    power = mpmath.mpf(2) ** shift
    for reduction, expected in (("sum", total * power), ("mean", total / mpmath.fsum(factors))):
        got = pyce.cross_entropy(x, y, reduction=reduction, **options)
        limits = np.finfo(got.dtype)
        if not mpmath.isfinite(expected):
            np.testing.assert_equal(float(got), float(expected))
        elif abs(expected) > float(limits.max):
            assert np.isinf(got)
        elif abs(expected) > float(limits.tiny) and rows.min() > 2.0**10 * limits.tiny:
            assert abs(mpmath.mpf(float(got)) / expected - 1) <= 2 * LOSS * float(limits.eps)


@law(batch=batches())
def test_weights_of_one(backend, batch):
    x, y = batch.x, batch.y
    expected = none(x, y)
    ones = {"weight": np.ones(x.shape[1]), "sample_weight": np.ones(len(x))}
    for kwargs in ({"weight": ones["weight"]}, {"sample_weight": ones["sample_weight"]}, ones):
        for one, other, bound in zip(
            none(x, y, **kwargs), expected, (2 * LOSS, 2 * GRAD, 1e10), strict=True
        ):
            alike(backend, one, other, bound)


@law(batch=batches(regimes=MODERATE))
def test_a_weight_of_zero_is_no_row(backend, batch):
    x, y = batch.x, batch.y
    dropped = batch.rng.random(len(x)) < 0.4
    kwargs = {"reduction": "sum", "sample_weight": np.where(dropped, 0.0, 1.0)}
    loss, grad = pyce.cross_entropy_with_grad(x, y, **kwargs)
    ignored = np.where(dropped, -100, y)
    expected = pyce.cross_entropy_with_grad(x, ignored, reduction="sum")
    alike(backend, loss, expected[0], 2 * LOSS)
    near_grad(grad, expected[1])
    assert (grad[dropped] == 0).all()


@law(batch=batches(regimes=MODERATE))
def test_a_batch_twice(backend, batch):
    """Has the same mean, and each row half its gradient."""
    x, y = np.concatenate([batch.x] * 2), np.concatenate([batch.y] * 2)
    loss, grad = pyce.cross_entropy_with_grad(batch.x, batch.y)
    twice, halves = pyce.cross_entropy_with_grad(x, y)
    near(twice, loss, 2 * LOSS)
    identical(halves[: len(x) // 2], halves[len(x) // 2 :]) if backend.bitwise else None
    near_grad(halves[: len(x) // 2], grad.astype(np.float64) / 2)
    total = pyce.cross_entropy(x, y, reduction="sum")
    near(total, 2 * np.float64(pyce.cross_entropy(batch.x, batch.y, reduction="sum")), 2 * LOSS)


@law(batch=batches())
def test_the_denominator_by_hand(backend, batch):
    """The mean is the sum over what it divides by, given as normalizer or not."""
    x, y = batch.x, batch.y.copy()
    y[batch.rng.random(len(x)) < 0.3] = -100
    count = np.count_nonzero(y != -100)
    if not count:
        return
    loss, grad = pyce.cross_entropy_with_grad(x, y)
    got = pyce.cross_entropy_with_grad(x, y, normalizer=count)
    identical(got[0], loss)
    identical(got[1], grad)
    if np.isfinite(loss):
        total = np.float64(pyce.cross_entropy(x, y, reduction="sum"))
        near(loss, total / count, 2 * LOSS + 1)
    rows = np.float64(pyce.cross_entropy(x, y, reduction="none"))
    if np.isfinite(rows).all() and rows.sum() < np.finfo(loss.dtype).max:
        near(loss, rows.sum() / count, 2 * LOSS + 1)


# ---------------------------------------------------------------------------------------------
# An lse that is not theirs


@law(
    batch=batches(),
    wrong=st.lists(st.floats(width=64), min_size=1, max_size=8),
    share=st.floats(0, 1),
)
def test_a_wrong_lse(backend, batch, wrong, share):
    """Its row's gradient is unspecified, NaN if it is not finite. Other rows are not affected."""
    x, y = batch.x, batch.y
    _, _, lse = none(x, y)
    right = batch.rng.random(len(x)) >= share
    spoilt = np.where(right, lse, np.resize(wrong, len(x)))
    ones = np.ones(len(x))
    grad = pyce.cross_entropy_backward(ones, x, y, lse, reduction="none")
    got = pyce.cross_entropy_backward(ones, x, y, spoilt, reduction="none")
    identical(got[right], grad[right])
    assert np.isnan(got[~np.isfinite(spoilt)].astype(np.float64)).all()


# ---------------------------------------------------------------------------------------------
# Everything at once against the oracle


class Problem:
    """A batch with a target of some kind, options, and the class axis first or last."""

    def __init__(self, batch, kind, chosen, smoothing, axis):
        self.batch = batch
        self.about = (kind, sorted(chosen), smoothing, axis)
        rng = batch.rng
        x, kwargs = batch.x, {"axis": axis}
        target = cases.TARGETS[kind](rng, batch.y, x, batch.wide)
        if "weight" in chosen:
            kwargs["weight"] = rng.uniform(0.1, 3, x.shape[1])
        if "sample_weight" in chosen:
            kwargs["sample_weight"] = rng.uniform(0.1, 3, len(x))
        # A cost of finfo.min for every class is beyond all bounds.
        if smoothing and batch.regime in MODERATE:
            kwargs["label_smoothing"] = smoothing
        if "ignore" in chosen and target.ndim == 1:
            target = np.where(rng.random(len(x)) < 0.3, -100, target)
        if axis == 0:
            x, target = np.ascontiguousarray(x.T), np.ascontiguousarray(target.T)
        self.x, self.target, self.kwargs = x, target, kwargs
        self.hard = target.ndim == 1 and "label_smoothing" not in kwargs

    def __repr__(self):
        return f"Problem({self.batch}, {self.about})"


problems = st.builds(
    Problem,
    batches(FLOATS),
    st.sampled_from([*cases.TARGETS]),
    st.sets(st.sampled_from(["weight", "sample_weight", "ignore"])),
    st.sampled_from([0.0, 0.0, 1e-3, 0.1, 0.5, 1.0]),
    st.sampled_from([0, 1]),
)


@law(examples=25, problem=problems)
def test_against_the_oracle(backend, problem):
    x, target, kwargs = problem.x, problem.target, problem.kwargs
    exact = oracle.reference(x, target, reduction="none", **kwargs)
    # At the edge of what the dtype holds, the largest number and inf are neighbours.
    largest = np.finfo(x.dtype).max
    edge = np.abs(exact.loss.hi / float(largest) - 1) < 8 * np.finfo(x.dtype).eps
    exact.loss = exact.loss.where((exact.loss.hi <= largest) | edge, np.inf)
    terms = None if problem.hard else exact.terms
    loss, grad, lse = none(x, target, **kwargs)
    near(np.where(edge & np.isinf(loss), largest, loss), exact.loss, LOSS)
    check_array(grad, exact.grad, terms)
    ones = np.ones(lse.shape)
    back = pyce.cross_entropy_backward(ones, x, target, lse, reduction="none", **kwargs)
    check_array(back, exact.grad, terms)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@law(problem=problems)
def test_reductions_against_the_oracle(backend, reduction, problem):
    x, target, kwargs = problem.x, problem.target, problem.kwargs
    if problem.batch.regime not in MODERATE:
        return
    exact = oracle.reference(x, target, reduction=reduction, **kwargs)
    loss, grad = pyce.cross_entropy_with_grad(x, target, reduction=reduction, **kwargs)
    near(loss, exact.loss, LOSS)
    check_array(grad, exact.grad, None if problem.hard else exact.terms)
