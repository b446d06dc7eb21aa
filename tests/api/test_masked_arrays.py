"""Masked arrays of numpy: an error if an element is masked, and nothing is written; else arrays."""

import numpy as np
import pytest
from every import every

import pyce

X = np.array([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]])
Y = np.array([1, 2])
ONES, ROWS = np.ones(3), np.ones(2)
LSE = pyce.logsumexp(X)
T = np.full(X.shape, 0.25)

# Name of the argument, a function of its value, and a value.
CALLS = [
    ("logits", lambda a: pyce.cross_entropy(a, Y), X),
    ("logits", lambda a: pyce.cross_entropy_with_grad(a, Y), X),
    ("logits", lambda a: pyce.cross_entropy_backward(1.0, a, Y, LSE), X),
    ("target", lambda a: pyce.cross_entropy(X, a), Y),
    ("target", lambda a: pyce.cross_entropy_with_grad(X, a), T),
    ("weight", lambda a: pyce.cross_entropy(X, Y, weight=a), ONES),
    ("sample_weight", lambda a: pyce.cross_entropy(X, Y, sample_weight=a), ROWS),
    ("lse", lambda a: pyce.cross_entropy_backward(1.0, X, Y, a), LSE),
    (
        "grad_loss",
        lambda a: pyce.cross_entropy_backward(a, X, Y, LSE, reduction="none"),
        ROWS,
    ),
    ("x", pyce.softmax, X),
    ("x", pyce.log_softmax, X),
    ("x", pyce.logsumexp, X),
    ("log_probs", lambda a: pyce.nll_loss(a, Y), X),
    ("target", lambda a: pyce.nll_loss(X, a), Y),
    ("probs", lambda a: pyce.log_loss(a, Y), T),
    ("sample_weight", lambda a: pyce.log_loss(T, Y, sample_weight=a), ROWS),
    ("logits", lambda a: pyce.accuracy(a, Y), X),
    ("target", lambda a: pyce.accuracy(X, a), Y),
    ("target", lambda a: pyce.accuracy(X, a), T),
    ("logits", lambda a: pyce.binary_cross_entropy(a, T), X),
    ("target", lambda a: pyce.binary_cross_entropy(X, a), T),
    ("weight", lambda a: pyce.binary_cross_entropy(X, T, weight=a), ONES),
    ("pos_weight", lambda a: pyce.binary_cross_entropy_with_grad(X, T, pos_weight=a), ONES),
    ("normalizer", lambda a: pyce.cross_entropy(X, Y, normalizer=a), np.array(2.0)),
    ("input", lambda a: pyce.linear_cross_entropy(a, X, [0, 1]), X),
    ("linear_weight", lambda a: pyce.linear_cross_entropy_with_grad(X, a, [0, 1])[0], X),
    ("linear_bias", lambda a: pyce.linear_cross_entropy(X, X, [0, 1], linear_bias=a), ROWS),
    ("logits", lambda a: pyce.selective_log_softmax(a, Y), X),
    ("index", lambda a: pyce.selective_log_softmax(X, a), Y),
    ("label_smoothing", lambda a: pyce.cross_entropy(X, Y, label_smoothing=a), np.array(0.5)),
]


@every(("name", "call", "value"), CALLS)
def test_masked_elements_are_refused(backend, name, call, value):
    value = np.array(value)
    mask = np.zeros(value.shape, bool)
    mask[(0,) * value.ndim] = True
    masked = np.ma.masked_array(value, mask)
    attempts = [masked, [masked]] if value.ndim == 1 else [masked]
    if value.ndim == 2:
        attempts.append(list(masked))
    for attempt in attempts:
        with pytest.raises(TypeError, match=f"^{name} has masked elements") as caught:
            call(attempt)
        assert "ignore_index" in str(caught.value) and "sample_weight" in str(caught.value)


@every(("name", "call", "value"), CALLS)
def test_without_masked_elements_they_are_arrays(backend, name, call, value):
    expected = call(value)
    for mask in (np.ma.nomask, np.zeros(np.shape(value), bool)):
        got = call(np.ma.masked_array(value, mask))
        for one, right in zip(
            got if isinstance(got, tuple) else (got,),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        ):
            np.testing.assert_array_equal(one, right)


def test_an_out_with_masked_elements(backend):
    out = np.ma.masked_array(np.full(X.shape, 7.0), X > 1)
    for call in (
        lambda: pyce.cross_entropy_with_grad(X, Y, out=out),
        lambda: pyce.cross_entropy_backward(1.0, X, Y, LSE, out=out),
        lambda: pyce.softmax(X, out=out),
        lambda: pyce.log_softmax(X, out=out),
    ):
        with pytest.raises(TypeError, match="out has masked elements"):
            call()
        assert (out.data == 7.0).all()


def test_an_error_leaves_the_outputs_as_they_were(backend):
    out = np.full(X.shape, 7.0)
    labels = np.ma.masked_array([1, 99], [False, True])  # out of range under the mask
    with pytest.raises(TypeError, match="ignore_index"):
        pyce.cross_entropy_with_grad(X, labels, out=out)
    assert (out == 7.0).all()
    filled = labels.filled(-100)
    assert pyce.cross_entropy(X, filled) == pyce.cross_entropy(X[:1], [1])


def test_training_and_estimators():
    """Samples, targets, gradients and states, which pyce only passes on."""
    sklearn = pytest.importorskip("pyce.sklearn")
    training = pyce.training
    x, y, rows = (np.ma.masked_array(a, a == a.flat[-1]) for a in (X, Y, np.array([1.0, 2.0])))
    linear = training.LinearClassifier(features=3, classes=3)
    before = linear.state_dict()
    fitted = sklearn.SoftmaxRegression().fit(X, Y)
    for call, name in (
        (lambda: training.minibatches(x, Y, 2), "x"),
        (lambda: training.minibatches(X, y, 2), "y"),
        (lambda: linear.logits(x), "x"),
        (lambda: linear.load_state_dict({**before, "bias": x[0] * 0 + x[1]}), "bias"),
        (lambda: training.SGD(linear.parameters, lr=1).step([None, x[1]]), "gradient 1"),
        (lambda: sklearn.SoftmaxRegression().fit(x, Y), "X"),
        (lambda: sklearn.SoftmaxRegression().fit(X, y), "y"),
        (lambda: sklearn.SoftmaxRegression().fit(X, Y, sample_weight=rows), "sample_weight"),
        (lambda: fitted.predict_proba(x), "X"),
    ):
        with pytest.raises(TypeError, match=f"^{name} has masked elements"):
            call()
    for name, value in linear.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_images():
    pytest.importorskip("PIL")
    image = np.ma.masked_array(np.ones((3, 4), np.uint8), np.eye(3, 4))
    for attempt in (image, image.astype(np.float64)):
        with pytest.raises(TypeError, match=r"^image 1 has masked elements"):
            pyce.training.presize([np.ones((2, 2), attempt.dtype), attempt], 2)
    assert pyce.training.presize([np.ma.masked_array(image.data)], 2).shape == (1, 2, 2)
