"""The double-double oracle against the textbook in mpmath, and `ulp_error` against known errors."""

import cases
import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest

RNG = np.random.default_rng(7)
ROWS = {
    "random": RNG.normal(size=6),
    "spread": RNG.uniform(-25, 25, 7),
    "confident": np.array([0.3, 100.0, -0.2, 1.5]),
    "very confident": np.array([700.0, 0.1, 0.2, -0.7]),
    "offset": 1e8 + RNG.normal(size=4),
    "wrong": np.array([60.25, 0.1, -3.0]),
    "constant": np.full(5, 0.3),
    "one": np.array([3.25]),
    "far": np.array([0.0, -690.3, -1e9, 0.25]),
}


def close(dd, exact, relative=1e-27):
    """Whether a DD scalar is an mpf but for `relative` and for underflow of the pair's low half."""
    with mpmath.workdps(oracle.DIGITS):
        got = mpmath.mpf(float(dd.hi)) + mpmath.mpf(float(dd.lo))
        return abs(got - exact) <= relative * abs(exact) + mpmath.mpf("1e-321")


@pytest.mark.parametrize("name", ROWS)
def test_reference_is_the_textbook_for_class_indices(name):
    x = ROWS[name]
    for y in range(len(x)):
        got = oracle.reference(x[None], np.array([y]), reduction="sum")
        loss, lse, grad, p = oracle.textbook(x, np.arange(len(x)) == y)
        assert close(got.loss, loss)
        assert close(got.lse[0], lse)
        soft = oracle.softmax_rows(x[None])
        for c in range(len(x)):
            assert close(soft.p[0, c], p[c])
            with mpmath.workdps(oracle.DIGITS):
                assert close(soft.minus_log_p[0, c], -mpmath.log(p[c]))
            assert close(got.grad[0, c], grad[c])


@pytest.mark.parametrize("name", ROWS)
def test_reference_is_the_textbook_for_probabilities(name):
    x = ROWS[name]
    t = np.random.default_rng(3).uniform(0, 1, len(x))
    w = np.random.default_rng(4).uniform(0.5, 2, len(x))
    got = oracle.reference(x[None], t[None], weight=w, label_smoothing=0.1, reduction="sum")
    loss, _, grad, _ = oracle.textbook(x, t, w, 0.1)
    assert close(got.loss, loss)
    for c in range(len(x)):
        with mpmath.workdps(oracle.DIGITS):
            allowed = 1e-27 * float(got.terms[0, c] / abs(grad[c])) if grad[c] else 0.0
        assert close(got.grad[0, c], grad[c], allowed)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("regime", cases.REGIMES)
def test_reference_is_the_textbook_in_every_regime(regime, dtype):
    """On rows of the table that backends are tested with."""
    for classes, rows in ((3, 3), (9, 2)):
        x, y, loss, grad = cases.sixty_digits(regime, classes, rows, dtype)
        got = oracle.reference(x, y, reduction="none")
        for right, answer in ((loss, got.loss), (grad, got.grad)):
            assert ((answer.hi == right.hi) | ~(np.abs(right.hi) < 1e-290)).all()
            error = np.abs((answer.hi - right.hi) + (answer.lo - right.lo))
            assert (error <= 1e-26 * np.abs(right.hi) + 1e-316).all()


def test_gradients_below_the_normal_numbers_are_rounded_once():
    """As if factors multiplied exact probabilities, and not subnormal numbers."""
    factor = 2.75e-9
    for x in (np.append(0.0, -np.linspace(680, 750, 101)), np.array([0.0, -720.3])):
        w = np.random.default_rng(8).uniform(2, 3, len(x))
        options = {"weight": w, "sample_weight": [factor], "reduction": "none"}
        got = list(oracle.reference(x[None], np.array([0]), **options).grad.hi[0])
        got += list(oracle.bernoulli(x, 0.0, factor).grad.hi)
        exact = oracle.textbook(x, np.arange(len(x)) == 0, w)[2]
        exact += [oracle.textbook([0.0, v], [1, 0])[3][1] for v in x]
        with mpmath.workdps(oracle.DIGITS):
            for one, right in zip(got, [v * mpmath.mpf(factor) for v in exact], strict=True):
                error = abs(mpmath.mpf(float(one)) - right)
                assert error <= max(2.0**-53 * abs(right), mpmath.mpf(2) ** -1075)


@pytest.mark.parametrize("value", [1e-300, 1e-38, 0.3, 1 - 2.0**-24, 1.0, 7.5])
def test_logarithm(value):
    with mpmath.workdps(60):
        exact = mpmath.log(mpmath.mpf(value))
        got = oracle.log(oracle.DD(value))
        error = mpmath.mpf(float(got.hi)) + mpmath.mpf(float(got.lo)) - exact
        assert abs(error) <= 1e-27 * max(1, abs(exact))


def test_reference_of_a_huge_loss():
    """Where splitting the factors of a product would overflow."""
    x = np.array([[0.0, -1.5e308]])
    for weight in (0.5, 1.0):
        got = oracle.reference(x, np.array([1]), sample_weight=[weight], reduction="none")
        assert got.loss.hi[0] == 1.5e308 * weight
    got = oracle.reference(x, np.array([1]), sample_weight=[2.0], reduction="none")
    assert got.loss.hi[0] == np.inf


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("value", [1.0, 1.5, -0.3, 1e-3, 0.0])
def test_one_step_is_one_ulp(dtype, value):
    start = np.array([value], dtype)
    bits = start.view(f"u{start.itemsize}")
    step = (bits + 1).view(dtype)
    assert oracle.ulp_error(step, start.astype(np.float64)) == 1.0
    assert oracle.ulp_error(start, start.astype(np.float64)) == 0.0


def test_ulp_error_sees_the_low_half():
    assert oracle.ulp_error(np.float64(1.0), oracle.DD(1.0, 2.0**-54)) == 0.25


@pytest.mark.parametrize(
    ("actual", "exact", "right"),
    [
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
        (-np.inf, -np.inf, True),
        (np.inf, -np.inf, False),
        (np.nan, np.inf, False),
        (np.inf, np.nan, False),
        (1.0, np.nan, False),
        (1.0, np.inf, False),
        (np.inf, 1.0, False),
        (np.nan, 1.0, False),
    ],
)
def test_nan_and_infinity_are_strict(actual, exact, right):
    assert oracle.ulp_error(np.float32(actual), exact) == (0.0 if right else np.inf)
