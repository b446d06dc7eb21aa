"""Worked examples with known results, and gradients compared with central differences."""

import numpy as np
import pytest
from every import every

import pyce


def test_softmax_of_a_textbook_row(backend):
    """Scores 1, 2, 0.5: probabilities 0.23, 0.63, 0.14."""
    x = np.array([1.0, 2.0, 0.5])
    np.testing.assert_allclose(pyce.softmax(x), [0.2312, 0.6285, 0.1402], atol=5e-5)
    assert round(float(pyce.cross_entropy(x, 1)), 3) == 0.464
    loss, grad = pyce.cross_entropy_with_grad(x, 1)
    assert round(float(loss), 3) == 0.464
    np.testing.assert_allclose(grad, [0.23, -0.37, 0.14], atol=5e-3)


@pytest.mark.parametrize(("label", "loss"), [(0, 2.303), (1, 0.693), (2, 2.303), (4, 1.609)])
def test_loss_is_minus_log_probability(backend, label, loss):
    probs = np.array([0.1, 0.5, 0.1, 0.1, 0.2])
    assert round(float(pyce.log_loss(probs, label)), 3) == loss
    assert round(float(pyce.nll_loss(np.log(probs), label)), 3) == loss
    assert round(float(pyce.cross_entropy(np.log(probs), label)), 3) == loss


@pytest.mark.parametrize(("classes", "loss"), [(2, 0.693), (4, 1.386), (10, 2.303), (1000, 6.908)])
@pytest.mark.parametrize("level", [0.0, 0.3, -500.0])
def test_equal_logits(backend, classes, loss, level):
    """The loss of equal logits is the logarithm of the number of classes."""
    x = np.full((3, classes), level)
    assert round(float(pyce.cross_entropy(x, [0, 1, classes - 1])), 3) == loss


@pytest.mark.parametrize(
    ("probability", "loss"), [(0.5, 0.693), (0.25, 1.386), (1.0, 0.0), (0.0, np.inf)]
)
def test_log_loss_of_two_classes(backend, probability, loss):
    probs = np.array([[1 - probability, probability]])
    got = float(pyce.log_loss(probs, [1]))
    assert got == loss or round(got, 3) == loss


def test_probability_zero_at_the_target_has_infinite_loss(backend):
    assert pyce.cross_entropy(np.array([[0.0, -np.inf]]), [1]) == np.inf
    assert pyce.log_loss(np.array([[1.0, 0.0]]), [1]) == np.inf
    assert pyce.cross_entropy(np.array([[0.0, -np.inf]]), [0]) == 0
    assert pyce.log_loss(np.array([[1.0, 0.0]]), [0]) == 0


def test_gradient_is_softmax_minus_one_hot(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 6)), rng.integers(0, 6, 9)
    q = pyce.softmax(x)
    _, grad = pyce.cross_entropy_with_grad(x, y, reduction="sum")
    np.testing.assert_allclose(grad, q - (np.arange(6) == y[:, None]), rtol=1e-13)


def test_entropy_and_divergence(backend):
    """The cross-entropy of a distribution with itself is its entropy, here 1.75 bits."""
    t = np.array([0.5, 0.25, 0.125, 0.125])
    bits = pyce.cross_entropy(np.log(t), t) / np.log(2)
    np.testing.assert_allclose(bits, 1.75, rtol=1e-15)
    np.testing.assert_allclose(pyce.log_loss(t, t) / np.log(2), 1.75, rtol=1e-15)
    # With the uniform distribution it is 2 bits, so the divergence is 0.25 bits.
    np.testing.assert_allclose(pyce.cross_entropy(np.zeros(4), t) / np.log(2), 2, rtol=1e-15)


def test_two_classes_equal_the_bernoulli_loss(backend):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=20) * 3, rng.integers(0, 2, 20)
    pair = np.stack([np.zeros(20), x], axis=1)
    loss, grad = pyce.cross_entropy_with_grad(pair, y)
    other, other_grad = pyce.binary_cross_entropy_with_grad(x, y)
    np.testing.assert_allclose(loss, other, rtol=1e-14)
    np.testing.assert_allclose(grad[:, 1], other_grad, rtol=1e-13)


# ---------------------------------------------------------------------------------------------
# Gradients against central differences

OPTIONS = {
    "plain": {},
    "weight": {"weight": "w"},
    "sample_weight": {"sample_weight": "s"},
    "smoothing": {"label_smoothing": 0.2},
    "normalizer": {"normalizer": 11.0},
    "everything": {"weight": "w", "sample_weight": "s", "label_smoothing": 0.3},
}


@every("reduction", ["mean", "sum", "none"])
@every("options", OPTIONS)
@every("kind", ["labels", "ignored", "probabilities"])
@every(("classes", "axis"), [(3, 0), (11, 1)])
def test_gradient_is_the_derivative(backend, classes, axis, kind, options, reduction):
    rng = np.random.default_rng(classes)
    rows = 5
    x = rng.normal(size=(rows, classes))
    values = {"w": rng.uniform(0.5, 2, classes), "s": rng.uniform(0.5, 2, rows)}
    kwargs = {k: values[v] if isinstance(v, str) else v for k, v in OPTIONS[options].items()}
    y = rng.integers(0, classes, rows)
    if kind == "ignored":
        y[1] = -100
    target = rng.uniform(0, 1, x.shape) if kind == "probabilities" else y
    if axis == 0:
        x = np.ascontiguousarray(x.T)
        target = np.ascontiguousarray(target.T)
    kwargs.update(axis=axis, reduction=reduction)
    g = rng.normal(size=rows) if reduction == "none" else 1.7

    def objective(logits):
        return float(np.sum(g * pyce.cross_entropy(logits, target, **kwargs)))

    step = 1e-5
    expected = np.empty_like(x)
    for position in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[position] += step
        low[position] -= step
        expected[position] = (objective(high) - objective(low)) / (2 * step)
    _, lse = pyce.cross_entropy(x, target, return_lse=True, **kwargs)
    grad = pyce.cross_entropy_backward(g, x, target, lse, **kwargs)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)
    _, fused = pyce.cross_entropy_with_grad(x, target, **kwargs)
    factor = np.expand_dims(g, axis) if reduction == "none" else g
    np.testing.assert_allclose(fused * factor, expected, rtol=1e-6, atol=1e-8)


def test_derivative_of_the_bernoulli_loss(backend):
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(4, 3)) * 2, rng.uniform(0, 1, (4, 3))
    for reduction in ("mean", "sum"):
        kwargs = {
            "weight": rng.uniform(0.5, 2, (4, 1)),
            "pos_weight": rng.uniform(0.5, 2, 3),
            "reduction": reduction,
        }
        _, grad = pyce.binary_cross_entropy_with_grad(x, t, **kwargs)
        for position in np.ndindex(*x.shape):
            high, low = x.copy(), x.copy()
            high[position] += 1e-5
            low[position] -= 1e-5
            slope = pyce.binary_cross_entropy(high, t, **kwargs)
            slope -= pyce.binary_cross_entropy(low, t, **kwargs)
            np.testing.assert_allclose(grad[position], slope / 2e-5, rtol=1e-6, atol=1e-8)
