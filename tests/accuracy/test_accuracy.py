"""Accuracy in units in the last place: every backend, every regime, forward, fused and backward."""

import cases
import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss, round_once, same_bits
from conftest import BACKENDS, C_BACKENDS
from every import every

import pyce

HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(params=[b for b in BACKENDS if b not in C_BACKENDS[1:]], ids=str)
def compute(request):
    """A function that makes a call on a backend and returns its result. On C, every instruction set
    makes the call and must give the same bytes, so that the error of one is that of all.
    """
    backends = C_BACKENDS if request.param in C_BACKENDS else [request.param]

    def call(function, *args, **kwargs):
        results = []
        for backend in backends:
            with backend.selected():
                results.append(function(*args, **kwargs))
        for backend, result in zip(backends, results, strict=True):
            assert in_bytes(result) == in_bytes(results[0]), backend
        return results[0]

    return call


def in_bytes(result):
    """The bytes of a result or several; every NaN counts as the same one."""
    parts = map(np.asarray, result if isinstance(result, tuple) else (result,))
    return [np.where(np.isnan(p), np.asarray(np.nan, p.dtype), p).tobytes() for p in parts]


def terms_of(target, kwargs, exact):
    """The terms that the error of a gradient is relative to. None, that is the gradient itself, for
    one-hot targets; else p·Σt and t, whose difference may cancel.
    """
    spread = "label_smoothing" in kwargs or not is_one_hot(target)
    return exact.terms if spread else None


def is_one_hot(target):
    return target.dtype.kind in "iu" or bool(np.isin(target, (0.0, 1.0)).all())


@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("case", cases.CASES)
def test_loss_and_gradient(compute, case, dtype):
    x, target, kwargs = case.make(dtype)
    exact = cases.reference(case, dtype)
    terms = terms_of(target, kwargs, exact)

    forward, lse = compute(
        pyce.cross_entropy, x, target, reduction="none", return_lse=True, **kwargs
    )
    check_loss(forward, exact.loss)

    fused, grad = compute(pyce.cross_entropy_with_grad, x, target, reduction="none", **kwargs)
    check_loss(fused, exact.loss)
    check_array(grad, exact.grad, terms)

    ones = np.ones(len(x))
    again = compute(pyce.cross_entropy_backward, ones, x, target, lse, reduction="none", **kwargs)
    check_array(again, exact.grad, terms)


# Distances from the largest logit at which a probability is near the smallest normal number.
FAR = {np.float32: (80.0, 87.0), np.float64: (694.0, 700.0, 708.0)}


@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("classes", [100, 2049, 4100])
@every("axis", [0, 1])
def test_the_only_likely_class_of_a_block_is_far_below_the_maximum(compute, axis, classes, dtype):
    """Its probability is a normal number, and so are the loss and the gradients."""
    far = np.array(FAR[np.dtype(dtype).type])
    x = np.full((len(far), classes), -4000.0, dtype)
    x[:, 3], x[:, -1] = 0, -far
    y = np.full(len(far), 3)
    logits = np.ascontiguousarray(x if axis else x.T)

    p = np.array([mpmath.exp(-mpmath.mpf(d)) for d in far])
    bound = 4 * np.finfo(dtype).eps

    def check(values, exact):
        errors = [abs(mpmath.mpf(float(v)) / e - 1) for v, e in zip(values, exact, strict=True)]
        assert max(errors) <= bound, values

    losses, lse = compute(
        pyce.cross_entropy, logits, y, axis=axis, reduction="none", return_lse=True
    )
    check(losses, p)
    probabilities = compute(pyce.softmax, logits, axis=axis)
    check(probabilities[:, -1] if axis else probabilities[-1], p)
    # Factors with which the gradient is a normal number, although the product with 2^-60 is not.
    for factor in (1.0, 2.0**-18, 2.0**120) if len(far) > 2 else (1.0, 2.0**120):
        grad = compute(
            pyce.cross_entropy_backward, factor, logits, y, lse, axis=axis, reduction="sum"
        )
        grad = grad if axis else grad.T
        near = p * factor > float(np.finfo(dtype).tiny)
        assert near.any()
        check(grad[near, 3], -(p * factor)[near])
        check(grad[near, -1], (p * factor)[near])


@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("classes", [3, 9, 33])
@every("spread", [0.0, 1e-4])
def test_coefficients_of_both_signs_at_classes_that_are_not_likely(compute, classes, spread, dtype):
    """A·(1 − p) and A − b are larger than both terms of the gradient, to which errors are relative.
    So it must not be computed from these two, as that of a likely class is.
    """
    rng = np.random.default_rng(classes)
    x = (spread * rng.standard_normal((400, classes))).astype(dtype)
    weight = rng.random(classes) * np.where(np.arange(classes) % 2, -1, 1)
    probs = rng.random((400, classes))
    exact = oracle.reference(x, probs, reduction="none", weight=weight)
    grad = compute(pyce.cross_entropy_with_grad, x, probs, reduction="none", weight=weight)[1]
    # The terms of A may cancel as well, so their sizes count. All p are nearly 1/C.
    sizes = np.abs(weight * probs).sum(axis=1, keepdims=True) / classes
    check_array(grad, exact.grad, np.maximum(exact.terms, sizes))


@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("regime", cases.REGIMES)
def test_against_mpmath_alone(compute, regime, dtype):
    """Sixty digits and the textbook formulas, without the double-double oracle."""
    sizes = [(3, 3), (9, 2)]
    if not regime.endswith("-min"):  # exp(-1e308) takes mpmath its time
        sizes.append((70, 1))
    if regime in ("random", "spread25", "confident100", "runner-up", "wrong60", "offset-1e4"):
        sizes.append((2100, 1))
    for classes, rows in sizes:
        x, y, loss, grad = cases.sixty_digits(regime, classes, rows, dtype)
        forward, lse = compute(pyce.cross_entropy, x, y, reduction="none", return_lse=True)
        check_loss(forward, loss)
        fused, got = compute(pyce.cross_entropy_with_grad, x, y, reduction="none")
        check_loss(fused, loss)
        check_array(got, grad)
        again = compute(pyce.cross_entropy_backward, np.ones(rows), x, y, lse, reduction="none")
        check_array(again, grad)


REDUCED = [
    cases.Case("random", 10, 300),
    cases.Case("spread25", 100, 200),
    cases.Case("confident17", 1000, 20),
    cases.Case("random", 3, 20_000),
    cases.Case("random", 65, 50, "labels", frozenset({"weight", "ignore", "sample_weight"})),
    cases.Case("random", 65, 50, "probabilities", frozenset({"weight", "sample_weight"})),
    cases.Case("random", 65, 50, "labels", frozenset({"smoothing"})),
    cases.Case("confident80", 10, 500),
    cases.Case("wrong60", 129, 100),
    cases.Case("offset-1e4", 33, 200),
    cases.Case("masked-1e9", 10, 200, "labels", frozenset({"weight"})),
    cases.Case("masked-inf", 2500, 5),
]


@every("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("case", REDUCED)
def test_reductions(compute, case, dtype, reduction):
    x, target, kwargs = case.make(dtype)
    kwargs["reduction"] = reduction
    exact = oracle.reference(x, target, **kwargs)
    terms = terms_of(target, kwargs, exact)
    check_loss(compute(pyce.cross_entropy, x, target, **kwargs), exact.loss)
    loss, grad, lse = compute(pyce.cross_entropy_with_grad, x, target, return_lse=True, **kwargs)
    check_loss(loss, exact.loss)
    check_array(grad, exact.grad, terms)
    check_array(
        compute(pyce.cross_entropy_backward, 1.0, x, target, lse, **kwargs), exact.grad, terms
    )


@every("factor", [65536.0, 1e-3, -1.0])
@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("regime", ["spread140", "confident100", "wrong60"])
def test_scaled_losses(compute, regime, dtype, factor):
    """A loss that is scaled against underflow, as in mixed precision, has accurate gradients."""
    for classes in (3, 40, 100, 1000):
        x, y, _ = cases.Case(regime, classes, 9).make(dtype)
        exact = oracle.reference(x, y, reduction="sum", grad_loss=factor)
        _, lse = compute(pyce.cross_entropy, x, y, reduction="sum", return_lse=True)
        grad = compute(pyce.cross_entropy_backward, factor, x, y, lse, reduction="sum")
        check_array(grad, exact.grad)
        weights = np.full(9, factor)
        exact = oracle.reference(x, y, reduction="sum", sample_weight=weights)
        _, grad = compute(
            pyce.cross_entropy_with_grad, x, y, reduction="sum", sample_weight=weights
        )
        check_array(grad, exact.grad)


MATRICES = [case for case in cases.CASES if case.target == "labels" and not case.options]


@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("case", MATRICES)
def test_softmax_and_its_logarithm(compute, case, dtype):
    x, _, _ = case.make(dtype)
    exact = cases.reference(case, dtype).soft
    check_array(compute(pyce.softmax, x), exact.p)
    check_array(compute(pyce.log_softmax, x), -exact.minus_log_p)

    # The lse carries the rounding of the compute dtype's sum, and its own to float64.
    eps = np.finfo(dtype).eps
    allowed = 4 * eps * np.maximum(1.0, np.abs(np.log(case.classes)))
    lse = compute(pyce.logsumexp, x)
    assert lse.dtype == np.float64
    error = np.abs((lse - exact.lse.hi) - exact.lse.lo)
    assert (error <= allowed + 2 * np.finfo(np.float64).eps * np.abs(exact.lse.hi)).all()


@every("soft", [False, True])
@every("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_losses_from_probabilities_and_their_logarithms(compute, dtype, classes, soft):
    x, y, _ = cases.Case("spread25", classes, 20).make(dtype)
    p = oracle.softmax_rows(x).p.hi.astype(dtype)
    logs = np.log(p)
    rng = np.random.default_rng(classes)
    w, s = rng.uniform(0.2, 2, classes), rng.uniform(0.2, 2, 20)
    target = rng.random(x.shape).astype(dtype) if soft else y
    t = target if soft else np.arange(classes) == y[:, None]
    for call, given, cost in (
        (pyce.log_loss, p, -oracle.log(oracle.DD(p))),
        (pyce.nll_loss, logs, oracle.DD(-logs)),
    ):
        losses = (cost * oracle.DD(t)).sum()
        check_loss(compute(call, given, target, reduction="none"), losses)
        check_loss(compute(call, given, target, reduction="sum"), losses.sum())
        # Each of the weights is one more product that is rounded.
        losses = (cost * (oracle.DD(t) * w)).sum() * s
        kwargs = {"weight": w, "sample_weight": s}
        check_loss(compute(call, given, target, reduction="none", **kwargs), losses, 4)
        check_loss(compute(call, given, target, reduction="sum", **kwargs), losses.sum(), 4)


@every("axis", [0, 1])
@pytest.mark.parametrize("dtype", cases.FLOATS)
@every("classes", [1, 2, 3, 10, 17, 64, 65, 100, 513, 1000, 2049])
def test_class_axis_before_the_last(compute, classes, dtype, axis):
    """Vectors along the positions are as accurate, with rows of all regimes side by side."""
    parts = [cases.Case(name, classes, 2).make(dtype)[:2] for name in cases.REGIMES]
    x = np.concatenate([part[0] for part in parts])
    y = np.concatenate([part[1] for part in parts])
    exact = oracle.reference(x, y, reduction="none")
    if axis == 0:
        logits, labels = np.ascontiguousarray(x.T), y
    else:
        logits = np.ascontiguousarray(x.reshape(2, -1, classes).swapaxes(1, 2))
        labels = y.reshape(2, -1)
    options = {"axis": axis, "reduction": "none"}

    def rows(array):
        return np.moveaxis(array, axis, -1).reshape(x.shape)

    loss, lse = compute(pyce.cross_entropy, logits, labels, return_lse=True, **options)
    check_loss(loss.reshape(-1), exact.loss)
    loss, grad = compute(pyce.cross_entropy_with_grad, logits, labels, **options)
    check_loss(loss.reshape(-1), exact.loss)
    check_array(rows(grad), exact.grad)
    again = compute(
        pyce.cross_entropy_backward, np.ones(labels.shape), logits, labels, lse, **options
    )
    check_array(rows(again), exact.grad)
    soft = oracle.softmax_rows(x)
    check_array(rows(compute(pyce.softmax, logits, axis=axis)), soft.p)
    check_array(rows(compute(pyce.log_softmax, logits, axis=axis)), -soft.minus_log_p)


# ---------------------------------------------------------------------------------------------
# Half types: computed in float32, rounded once

HALF_CASES = [
    case
    for case in cases.CASES
    if case.classes <= 2049 and not (np.isinf(case.classes) or "spread800" in case.regime)
][::3] + [cases.Case("random", c, 3) for c in (1, 16, 64, 512, 1000, 5000)]


@pytest.mark.parametrize("dtype", HALF)
@every("case", HALF_CASES)
def test_half_types_are_float32_rounded_once(compute, case, dtype):
    half = np.dtype(HALF[dtype])
    x, target, kwargs = case.make(half)
    kwargs["reduction"] = "none"
    wide = x.astype(np.float32)
    loss, grad, lse = compute(pyce.cross_entropy_with_grad, x, target, return_lse=True, **kwargs)
    loss32, grad32, lse32 = compute(
        pyce.cross_entropy_with_grad, wide, target, return_lse=True, **kwargs
    )
    assert loss.dtype == np.float32
    np.testing.assert_array_equal(loss, loss32)
    np.testing.assert_array_equal(lse, lse32)
    same_bits(grad, round_once(grad32, half))

    forward = compute(pyce.cross_entropy, x, target, **kwargs)
    np.testing.assert_array_equal(forward, compute(pyce.cross_entropy, wide, target, **kwargs))
    ones = np.ones(len(x))
    back = compute(pyce.cross_entropy_backward, ones, x, target, lse, **kwargs)
    back32 = compute(pyce.cross_entropy_backward, ones, wide, target, lse, **kwargs)
    same_bits(back, round_once(back32, half))
    same_bits(compute(pyce.softmax, x), round_once(compute(pyce.softmax, wide), half))
    same_bits(compute(pyce.log_softmax, x), round_once(compute(pyce.log_softmax, wide), half))
    np.testing.assert_array_equal(compute(pyce.logsumexp, x), compute(pyce.logsumexp, wide))


@pytest.mark.parametrize("dtype", HALF)
@every("kind", ["labels", "probabilities"])
@every(("rows", "classes"), [(2, 20_000), (65, 1000), (2731, 12), (4097, 8)])
def test_a_block_of_half_types_that_has_one_row(compute, kind, rows, classes, dtype):
    """Numba converts blocks of rows, of which the last one has a single row here, with a factor of
    its own. One thread takes all blocks."""
    pyce.set_num_threads(1)
    half, rng = np.dtype(HALF[dtype]), np.random.default_rng(rows)
    x = rng.standard_normal((rows, classes), np.float32).astype(half)
    probs = rng.random((rows, classes), np.float32)
    target = probs if kind == "probabilities" else rng.integers(0, classes, rows)
    weights, factors = rng.random(rows) + 0.5, rng.random(rows) + 0.5

    def gradients(x):
        lse = compute(pyce.logsumexp, x)
        for options in ({}, {"sample_weight": weights}):
            back = (factors, x, target, lse)
            yield compute(pyce.cross_entropy_backward, *back, reduction="none", **options)
            options["reduction"] = "sum"
            yield compute(pyce.cross_entropy_with_grad, x, target, **options)[1]

    for found, wide in zip(gradients(x), gradients(x.astype(np.float32)), strict=True):
        same_bits(found, round_once(wide, half))


@pytest.mark.parametrize("dtype", HALF)
@every("classes", [3, 17, 100, 320, 1000, 1030])
def test_half_types_with_the_class_axis_first(compute, classes, dtype):
    """Also where the gradient consists of rounding errors, which depend on the order of sums."""
    half = np.dtype(HALF[dtype])
    for regime, smoothing in (("spread25", 0.0), ("random", 0.1), ("constant0", 1.0)):
        x, y, _ = cases.Case(regime, classes, 37).make(half)
        x = np.ascontiguousarray(x.T)
        options = {"axis": 0, "label_smoothing": smoothing, "reduction": "none"}
        loss, grad = compute(pyce.cross_entropy_with_grad, x, y, **options)
        loss32, grad32 = compute(pyce.cross_entropy_with_grad, x.astype(np.float32), y, **options)
        np.testing.assert_array_equal(loss, loss32)
        same_bits(grad, round_once(grad32, half))


@pytest.mark.parametrize("dtype", HALF)
def test_every_number_of_a_half_type(compute, dtype):
    """Logits are read exactly, and a gradient is rounded to the nearest number, ties to even."""
    half = np.dtype(HALF[dtype])
    numbers = np.arange(2**16, dtype=np.uint16).view(half)
    with np.errstate(all="ignore"):
        exact = numbers.astype(np.float64)
    options = {"reduction": "none", "return_lse": True}
    labels = np.zeros(len(numbers), np.int64)
    _, lse = compute(pyce.cross_entropy, numbers[:, None], labels, **options)
    np.testing.assert_array_equal(lse, exact)  # of one class

    # The sums of neighbours, halved, the last of them with infinity; and the floats around each.
    values = np.unique(exact[np.isfinite(exact) & (exact >= 0)])
    ends = np.append(values[1:], 2 * values[-1] - values[-2])
    ties = ((values + ends) / 2).astype(np.float32)
    w = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(np.inf))])
    x = np.tile(np.array([0, -200], half), (len(w), 1))  # the other class has the probability 0
    labels = np.ones(len(w), np.int64)
    _, grad = compute(pyce.cross_entropy_with_grad, x, labels, sample_weight=w, reduction="none")
    same_bits(grad, round_once(np.stack([w, -w], 1), half))
