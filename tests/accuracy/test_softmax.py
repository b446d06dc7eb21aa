"""Softmax gives probabilities: none above 1, each row adding up to 1; and the lse's error."""

import math

import ml_dtypes
import numpy as np
import oracle
from every import every
from samples import BFLOAT16, by_dtype, by_float

import pyce

# Numbers of classes of every kernel, at and around their limits and the lengths of vectors.
CLASSES = [1, 2, 3, 10, 17, 64, 65, 100, 600, 2048, 2049, 4500]
by_classes = every("classes", CLASSES)


def rows_of(classes, dtype):
    """Random, confident, uniform and widely spread rows."""
    rng = np.random.default_rng(classes)
    n = max(3, min(200, 10_000 // classes))
    top = np.arange(classes) == rng.integers(0, classes, (n, 1))
    middle = rng.uniform(-50, 50, (n, 1))
    kinds = [
        3 * rng.normal(size=(n, classes)),
        middle - np.where(top, 0.0, rng.uniform(8, 40, (n, 1))),
        np.broadcast_to(middle, (n, classes)),
        rng.uniform(-90, 90, (n, classes)),
    ]
    return np.concatenate(kinds).astype(dtype)


def excess(p):
    """How far each row's exact sum is from 1, in units of half a row of roundings.

    That is C/2 units in the last place of the largest probability.
    """
    info = ml_dtypes.finfo(p.dtype)
    wide = p.astype(np.float64)
    largest = np.maximum(wide.max(1), float(info.smallest_normal))
    unit = np.exp2(np.floor(np.log2(largest)) - info.nmant)
    distance = np.array([abs(math.fsum([*row, -1.0])) for row in wide])
    return distance / (p.shape[1] / 2 * unit)


@by_classes
@by_dtype
@every("axis", [0, 1])
def test_no_probability_is_above_1_and_rows_add_up_to_1(backend, dtype, classes, axis):
    x = rows_of(classes, dtype)
    given = np.ascontiguousarray(x.T) if axis == 0 else x
    p, log_p = pyce.softmax(given, axis=axis), pyce.log_softmax(given, axis=axis)
    if axis == 0:
        p, log_p = p.T, log_p.T
    assert (p >= 0).all() and (p <= 1).all()
    assert (log_p <= 0).all()
    assert (excess(p) <= 1.0).all()
    in_place = given.copy()
    pyce.softmax(in_place, axis=axis, out=in_place)
    np.testing.assert_array_equal(in_place.T if axis == 0 else in_place, p)


@every("classes", [10, 100, 5000, 40_000])
@by_dtype
def test_results_past_the_caches_as_well(c_backend, past_the_cache, dtype, classes):
    """Rows that are stored past the caches, or whose exponentials are computed twice."""
    x = rows_of(classes, dtype)
    p = past_the_cache(lambda: pyce.softmax(x))
    assert (p <= 1).all()
    assert (excess(p) <= 1.0).all()


@by_classes
@by_float
def test_the_gradient_at_the_target_is_not_positive(backend, dtype, classes):
    """p − 1, for a label as for a one-hot row, whatever the rounding of p."""
    x = rows_of(classes, dtype)
    y = x.argmax(1)
    for target in (y, np.eye(classes, dtype=dtype)[y]):
        _, lse = pyce.cross_entropy(x, target, return_lse=True)
        for grad in (
            pyce.cross_entropy_with_grad(x, target, reduction="sum")[1],
            pyce.cross_entropy_backward(1.0, x, target, lse, reduction="sum"),
        ):
            assert (np.take_along_axis(grad, y[:, np.newaxis], 1) <= 0).all()


@by_dtype
def test_the_loss_of_probabilities_is_not_negative(backend, dtype):
    x = rows_of(3, dtype)
    p = pyce.softmax(x)
    assert (pyce.log_loss(p, x.argmax(1), reduction="none") >= 0).all()
    with np.errstate(divide="ignore"):
        assert not np.isnan(np.log1p(-p.astype(np.float64))).any()


@every("classes", [2, 10, 100, 5000])
@by_dtype
def test_the_error_of_logsumexp(backend, dtype, classes):
    """Of float64 logits 2 units of max(1, |result|), also where the result m + log S is near 0 and
    its terms are not; of others the exponentials are float32's.
    """
    x = rows_of(classes, dtype)[:: 1 if classes < 1000 else 4]
    if dtype not in (np.float16, BFLOAT16):
        # Normalised log-probabilities: the result is near 0.
        x = np.concatenate([x, pyce.log_softmax(x)])
    exact = oracle.softmax_rows(x.astype(np.float32) if dtype.itemsize == 2 else x).lse
    got = pyce.logsumexp(x)
    error = np.abs((got - exact.hi) - exact.lo)
    units = 2 * np.spacing(np.maximum(1.0, np.abs(exact.hi)))
    assert (error <= (units if dtype == np.float64 else 2.0**-23 + units)).all()
