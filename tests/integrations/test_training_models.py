"""The classifiers of pyce.training."""

import numpy as np
import pytest
from conftest import one_isa
from training_cases import CLASSIFIERS, batch

import pyce
from pyce.training import HiddenLayerClassifier, LinearClassifier


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    return CLASSIFIERS[request.param]


@one_isa
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_the_derivatives(classifier, backend, smoothing, soft):
    model = classifier(dtype=np.float64)
    x, y = batch()
    if soft:
        y = np.random.default_rng(2).dirichlet(np.ones(4), 9)
    for p in model.parameters:
        p += 0.1 * np.random.default_rng(4).normal(size=p.shape)  # biases, too
    loss, gradients = model.loss_and_gradients(x, y, label_smoothing=smoothing)
    np.testing.assert_allclose(
        loss, pyce.cross_entropy(model.logits(x), y, label_smoothing=smoothing), rtol=1e-14
    )
    if not smoothing:
        assert model.loss_and_gradients(x, y)[0] == loss

    def slope(p, position):
        value, losses = p[position], []
        for moved in (value + 1e-6, value - 1e-6):
            p[position] = moved
            losses.append(model.loss_and_gradients(x, y, label_smoothing=smoothing)[0])
        p[position] = value
        return (losses[0] - losses[1]) / 2e-6

    for p, g in zip(model.parameters, gradients, strict=True):
        assert g.shape == p.shape and g.dtype == p.dtype
        expected = [slope(p, position) for position in np.ndindex(*p.shape)]
        np.testing.assert_allclose(g.ravel(), expected, rtol=1e-6, atol=1e-9)


def test_the_same_seed_gives_the_same_model(classifier):
    one, two = classifier(), classifier()
    np.testing.assert_equal(one.state_dict(), two.state_dict())
    assert all(p.dtype == np.float32 for p in one.parameters)
    different = [type(one)(*([5] * (2 + isinstance(one, HiddenLayerClassifier)))) for _ in "ab"]
    assert not np.array_equal(different[0].parameters[0], different[1].parameters[0])


def test_variances_of_the_initial_weights():
    hidden = HiddenLayerClassifier(400, 500, 100, seed=0)
    linear = LinearClassifier(400, 500, seed=0)
    for weights, variance in (
        (hidden.parameters[0], 2 / 400),
        (hidden.parameters[2], 1 / 500),
        (linear.parameters[0], 1 / 400),
    ):
        np.testing.assert_allclose(weights.var(), variance, rtol=0.05)
    assert not hidden.parameters[1].any() and not linear.parameters[1].any()


def test_images_are_taken_as_they_are(classifier):
    model = classifier()
    x, y = batch()
    images = x.reshape(9, 2, 3)
    np.testing.assert_array_equal(model.logits(images), model.logits(x))
    assert model.logits(images).shape == (9, 4)
    assert model.logits(np.uint8(images > 0)).dtype == np.float32
    assert model.loss_and_gradients(images, y)[0] == model.loss_and_gradients(x, y)[0]
    assert model.logits(np.zeros((0, 6))).shape == (0, 4)


def test_inputs_are_only_read(classifier):
    x, y = batch()
    x.flags.writeable = y.flags.writeable = False
    for dtype in (np.float32, np.float64):
        classifier(dtype=dtype).loss_and_gradients(x, y)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((9, 5)), ValueError, r"6 features for each sample, got \(9, 5\)"),
        (np.zeros(6), ValueError, r"must be \(N, …\)"),
        (np.zeros((9, 6), complex), TypeError, "complex128"),
        ([["a"] * 6] * 9, TypeError, "real numbers"),
    ],
)
def test_inputs_that_do_not_fit(classifier, x, error, words):
    model = classifier()
    with pytest.raises(error, match=words):
        model.logits(x)
    with pytest.raises(error, match=words):
        model.loss_and_gradients(x, np.zeros(9, int))


def test_labels_out_of_range(classifier):
    with pytest.raises(IndexError, match="target of row 1 is 4"):
        classifier().loss_and_gradients(np.zeros((2, 6)), [0, 4])


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0, 3), {}, ValueError),
        ((3, 0), {}, ValueError),
        ((3, -1), {}, ValueError),
        ((3.5, 2), {}, TypeError),
        ((3, 2), {"dtype": np.float16}, ValueError),
        ((3, 2), {"dtype": int}, ValueError),
        ((3, 2), {"seed": -1}, ValueError),
    ],
)
def test_classifiers_with_wrong_arguments(arguments, options, error):
    with pytest.raises(error):
        LinearClassifier(*arguments, **options)
    with pytest.raises(error):
        HiddenLayerClassifier(arguments[0], 4, arguments[1], **options)
    with pytest.raises(error):
        HiddenLayerClassifier(4, *arguments, **options)


def test_states_of_models(classifier):
    model, other = classifier(), classifier()
    for p in model.parameters:
        p += 1
    state = model.state_dict()
    for p in model.parameters:
        p += 1
    other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), state)
    assert all((p == q + 1).all() for p, q in zip(model.parameters, other.parameters, strict=True))
    for wrong in ({}, {**state, "more": 1}, {n: v[..., :1] for n, v in state.items()}):
        with pytest.raises(ValueError):
            other.load_state_dict(wrong)
    np.testing.assert_equal(other.state_dict(), state)
