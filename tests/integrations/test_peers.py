"""Other libraries: where they agree with pyce, and where docs/semantics.md says that they differ.

Each library is skipped where it is not installed; `make test-peers` installs them all, pinned.
The file is long because docs/semantics.md names its tests, a line each, and each compares one case
with every library that has it.
"""

import warnings

import numpy as np
import pytest
from conftest import one_isa
from every import every
from peer_losses import (
    INF,
    NAN,
    ONNX,
    PEERS,
    SOFT,
    alike,
    bernoulli,
    every_onnx,
    every_peer,
    every_soft_peer,
    f32,
    load_keras,
    load_optax,
    load_sklearn,
    load_tensorflow,
    load_torch,
    onnx_loss,
    optax_rows,
    ours,
    sklearn_rows,
    tensorflow_rows,
    torch_rows,
)

import pyce

# ---------------------------------------------------------------------------------------------
# PyTorch, whose semantics pyce has


@one_isa
@every("reduction", ["mean", "sum", "none"])
@every("smoothing", [0.0, 0.1, 1.0])
@every("weighted", [False, True])
@every("kind", ["labels", "ignored", "all ignored", "probabilities"])
@every("shape", [(6, 5), (3, 4, 7), (2, 30, 3, 4)])
def test_cross_entropy_is_that_of_torch(backend, shape, kind, weighted, smoothing, reduction):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * 3
    classes = shape[1]
    positions = (shape[0], *shape[2:])
    target = rng.integers(0, classes, positions)
    if kind == "ignored":
        target[rng.random(positions) < 0.4] = -100
        target.flat[0] = 1
    elif kind == "all ignored":
        target[...] = -100
    elif kind == "probabilities":
        target = rng.random(shape)
    weight = rng.uniform(0.1, 2, classes) if weighted else None
    torch = load_torch()
    theirs, their_grad = torch_rows(
        x,
        target,
        weight=None if weight is None else torch.tensor(weight),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    loss, grad = pyce.cross_entropy_with_grad(
        x, target, axis=1, weight=weight, label_smoothing=smoothing, reduction=reduction
    )
    np.testing.assert_allclose(loss, theirs, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grad, their_grad, rtol=1e-11, atol=1e-13)


@one_isa
@every("reduction", ["mean", "sum", "none"])
@every("pos_weight", [None, (3,), (4, 3)])
@every("weight", [None, (3,), (4, 1), (4, 3)])
def test_bernoulli_is_that_of_torch(backend, weight, pos_weight, reduction):
    torch = load_torch()
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 3)) * 5, rng.random((4, 3))
    w = None if weight is None else rng.uniform(0.1, 2, weight)
    pw = None if pos_weight is None else rng.uniform(0.1, 2, pos_weight)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        theirs_x,
        torch.tensor(t),
        weight=None if w is None else torch.tensor(w),
        pos_weight=None if pw is None else torch.tensor(pw),
        reduction=reduction,
    )
    theirs.sum().backward()
    options = {"weight": w, "pos_weight": pw, "reduction": reduction}
    loss, grad = pyce.binary_cross_entropy_with_grad(x, t, **options)
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(pyce.binary_cross_entropy(x, t, **options), loss, rtol=0)
    np.testing.assert_allclose(grad, theirs_x.grad.numpy(), rtol=1e-11, atol=1e-15)


@one_isa
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll_loss_is_that_of_torch(backend, reduction):
    torch = load_torch()
    rng = np.random.default_rng(0)
    log_p = rng.normal(size=(6, 5))
    y = np.array([0, 1, 2, -100, 4, 0])
    w = rng.uniform(0.1, 2, 5)
    nll = torch.nn.functional.nll_loss
    theirs = nll(torch.tensor(log_p), torch.tensor(y), weight=torch.tensor(w), reduction=reduction)
    got = pyce.nll_loss(log_p, y, weight=w, reduction=reduction)
    np.testing.assert_allclose(got, theirs.numpy(), rtol=1e-13)
    # PyTorch's function takes no probabilities.
    with pytest.raises(RuntimeError):
        nll(torch.tensor(log_p), torch.ones(6, 5))


# ---------------------------------------------------------------------------------------------
# Rows without options


@every_peer
def test_labels_are_understood_alike(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 1, 2, 3, 4, 0])
    alike(PEERS[name](x, y), ours(x, y))


@every_soft_peer
def test_probabilities_are_understood_alike(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    t = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    alike(PEERS[name](x, t), ours(x, t))


@every_soft_peer
def test_probabilities_that_do_not_add_up(name):
    """TensorFlow's gradient assumes Σt = 1."""
    x, t = f32([1, 2, 3]), f32([1, 1, 1])
    loss, grad = PEERS[name](x, t)
    alike((loss,), ours(x, t)[:1])
    expected = ours(x, t)[1] if name != "tensorflow" else pyce.softmax(x) - t
    alike((grad,), (expected,))


@every_onnx
def test_onnx_weights_and_ignored_rows(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 1, -7, 3, 4, 0])
    x[2] = NAN
    w = rng.uniform(0.1, 2, 5).astype(np.float32)
    for reduction in ("mean", "sum", "none"):
        got = onnx_loss(name, x, y, w, ignore_index=-7, reduction=reduction)
        expected = pyce.cross_entropy(x, y, weight=w, ignore_index=-7, reduction=reduction)
        alike((got,), (expected,))
    # By default it averages and ignores no row: −100 is an index out of range.
    alike((onnx_loss(name, x[:2], y[:2]),), (pyce.cross_entropy(x[:2], y[:2]),))
    with pytest.raises(Exception, match=r"(?i)out of (bounds|range)"):
        onnx_loss(name, x[:2], np.array([0, -100]))


def test_class_axis_by_default():
    """It is 1 in PyTorch and ONNX, and the last in Optax, TensorFlow and pyce."""
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32), np.ones((2, 4), int)
    last = np.ones((2, 3), int)
    seen = 0
    for name, rows in PEERS.items():
        if name == "sklearn":
            continue  # takes two dimensions only
        try:
            at_1 = name in ("torch", *ONNX)
            target, axis = (y, 1) if at_1 else (last, -1)
            alike(rows(x, target), ours(x, target, axis=axis))
            with pytest.raises(Exception, match=r"(?i)size|shape|incompatible|mismatch|dimension"):
                rows(x, last if at_1 else y)
            seen += 1
        except pytest.skip.Exception:
            continue
    if not seen:
        pytest.skip("no library to look at")


# ---------------------------------------------------------------------------------------------
# Infinities and NaN


@every_peer
def test_minus_infinity_off_the_label(name):
    x, y = f32([1, -INF, 3]), np.array([0])
    alike(PEERS[name](x, y), ours(x, y))


@every_soft_peer
def test_minus_infinity_off_a_soft_target(name):
    """The loss is NaN in all of them, from 0·∞; the gradient is correct."""
    x, t = f32([1, -INF, 3]), f32([1, 0, 0])
    loss, grad = PEERS[name](x, t)
    assert np.isnan(loss).all()
    assert np.isfinite(ours(x, t)[0]).all()
    alike((grad,), ours(x, t)[1:])


def test_torch_smooths_to_infinity_as_well():
    """Smoothing gives every class probability, masked classes included."""
    x, y = f32([1, -INF, 3]), np.array([0])
    got = torch_rows(x, y, label_smoothing=0.1)
    assert (got[0] == INF).all()
    alike(got, ours(x, y, label_smoothing=0.1))
    # A class weight of 0 does not change that in PyTorch.
    w = f32(1, 0, 1)
    loss, _ = torch_rows(x, y, weight=load_torch().tensor(w), label_smoothing=0.1)
    assert np.isnan(loss).all()
    assert np.isfinite(ours(x, y, weight=w, label_smoothing=0.1)[0]).all()


@every_peer
def test_minus_infinity_at_the_label(name):
    x, y = f32([1, -INF, 3]), np.array([1])
    loss, grad = PEERS[name](x, y)
    assert (loss == INF).all()
    alike((loss, grad), ours(x, y))


@pytest.mark.parametrize("name", ["torch", *ONNX])
def test_weight_of_zero_at_minus_infinity(name):
    """The loss is NaN in other libraries, from 0·∞, and 0 in pyce."""
    x, y, w = f32([1, -INF, 3]), np.array([1]), f32(1, 0, 1)
    if name == "torch":
        loss = torch_rows(x, y, weight=load_torch().tensor(w))[0]
    else:
        loss = onnx_loss(name, x, y, w, reduction="none")
    assert np.isnan(loss).all()
    assert (ours(x, y, weight=w)[0] == 0).all()


@every_peer
@pytest.mark.parametrize("row", [[NAN, 1, 2], [-INF, -INF, -INF], [INF, 1, 2]], ids=str)
def test_rows_without_an_answer(name, row):
    """NaN, except in Optax for +inf off the target: loss +inf, and NaN at the +inf only."""
    x, y = f32(row, [1, 2, 3]), np.array([1, 1])
    loss, grad = PEERS[name](x, y)
    expected, expected_grad = ours(x, y)
    assert np.isnan(expected[0]) and np.isnan(expected_grad[0]).all()
    if name == "optax" and row[0] == INF:
        assert loss[0] == INF
        np.testing.assert_array_equal(grad[0], [NAN, -1, 0])
    else:
        assert np.isnan(loss[0])
        assert grad is None or np.isnan(grad[0]).all()
    alike((loss[1:], None if grad is None else grad[1:]), (expected[1:], expected_grad[1:]))


@pytest.mark.parametrize("name", SOFT)
def test_logsumexp_of_infinities(name):
    """All libraries agree."""
    for row in ([INF, 1], [-INF, -INF], [NAN, 1]):
        row = np.array(row, np.float32)
        if name == "torch":
            torch = load_torch()
            tensor = torch.tensor(row)
            lse = torch.logsumexp(tensor, 0)
        elif name == "optax":
            lse = load_optax()[0].nn.logsumexp(row)
        else:
            lse = load_tensorflow().reduce_logsumexp(row)
        np.testing.assert_array_equal(lse, pyce.logsumexp(row))


def test_torch_leaks_nan_from_ignored_rows():
    """The NaN reaches the gradient but not the loss; ignored finite rows have gradient 0."""
    x, y = f32([1, 2, 3], [NAN, NAN, NAN], [3, 2, 1]), np.array([0, -100, -100])
    loss, grad = torch_rows(x, y, reduction="mean")
    assert loss == pytest.approx(pyce.cross_entropy(x, y), rel=1e-6)
    assert np.isnan(grad[1]).all()
    assert (grad[2] == 0).all()
    assert (ours(x, y)[1][1:] == 0).all()


def test_keras_ignores_rows_on_request():
    """As in pyce, except that the mean of no rows is 0."""
    keras = load_keras()
    tf = load_tensorflow()
    x, y = f32([1, 2, 3], [NAN, NAN, NAN]), np.array([0, -100])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = loss(tf.constant(y), variable)
    expected, grad = pyce.cross_entropy_with_grad(x, y)
    alike((value.numpy(), tape.gradient(value, variable).numpy()), (expected, grad))
    assert float(loss(tf.constant([-100, -100]), tf.constant(x))) == 0.0
    assert np.isnan(pyce.cross_entropy(x, [-100, -100]))


@every_onnx
def test_onnx_mean_of_no_rows(name):
    x = f32([1, 2, 3])
    assert np.isnan(onnx_loss(name, x, np.array([-100]), ignore_index=-100))


def test_torch_without_rows():
    """The mean is NaN, as in pyce."""
    torch = load_torch()
    call = torch.nn.functional.cross_entropy
    assert torch.isnan(call(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))
    assert torch.isnan(call(torch.zeros(0, 3), torch.zeros(0, 3)))
    assert np.isnan(pyce.cross_entropy(np.zeros((0, 3)), []))


def test_keras_without_rows():
    tf = load_tensorflow()
    loss = load_keras().losses.SparseCategoricalCrossentropy(from_logits=True)
    assert loss(tf.zeros(0, tf.int32), tf.zeros((0, 3))).shape == (0,)


def test_no_classes():
    """PyTorch, JAX and TensorFlow return an empty softmax, and a log-sum-exp of −inf."""
    seen = 0
    for load in (load_torch, load_optax, load_tensorflow):
        try:
            library = load()
        except pytest.skip.Exception:
            continue
        seen += 1
        if load is load_torch:
            empty = library.zeros(2, 0)
            results = library.softmax(empty, 1), library.logsumexp(empty, 1)
        elif load is load_optax:
            nn, empty = library[0].nn, library[0].numpy.zeros((2, 0))
            results = nn.softmax(empty), nn.logsumexp(empty, axis=-1)
        else:
            empty = library.zeros((2, 0))
            results = library.nn.softmax(empty), library.reduce_logsumexp(empty, -1)
        assert np.asarray(results[0]).shape == (2, 0)
        assert (np.asarray(results[1]) == -INF).all()
    if not seen:
        pytest.skip("no library to look at")


# ---------------------------------------------------------------------------------------------
# Labels out of range


def test_torch_label_out_of_range():
    for value in (3, -1):
        with pytest.raises(IndexError, match=f"{value} is out of bounds"):
            torch_rows(f32([1, 2, 3], [1, 2, 3]), np.array([0, value]))


def test_optax_label_out_of_range():
    """The loss is NaN and the gradient the softmax; −1 is the last class."""
    x = f32([1, 2, 3])
    for value in (3, -100):
        loss, grad = optax_rows(x, np.array([value]))
        assert np.isnan(loss).all()
        alike((grad,), (pyce.softmax(x),))
    alike(optax_rows(x, np.array([-1])), ours(x, [2]))


def test_tensorflow_label_out_of_range():
    """It is an error in eager mode on the CPU, and NaN when compiled."""
    tf = load_tensorflow()
    x = f32([1, 2, 3])
    for value in (3, -1, -100):
        with pytest.raises(tf.errors.InvalidArgumentError, match="outside the valid range"):
            tensorflow_rows(x, np.array([value]))

        @tf.function(jit_compile=True)
        def compiled(y):
            call = tf.nn.sparse_softmax_cross_entropy_with_logits
            return call(labels=y, logits=tf.constant(x))

        assert np.isnan(compiled(tf.constant([value]))).all()


def test_sklearn_label_out_of_range():
    """Its loss functions treat the row as without a label; log_loss with labels= raises."""
    x = f32([1, 2, 3])
    for value in (3, -1):
        loss, grad = sklearn_rows(x, np.array([value]))
        alike((loss, grad), (pyce.logsumexp(x), pyce.softmax(x)))
    metrics = pytest.importorskip("sklearn.metrics")
    p = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    with pytest.raises(ValueError, match="not belonging to the passed labels"):
        metrics.log_loss([0, 1, 3], p, labels=[0, 1, 2])
    # Without labels=, the classes are the sorted labels of the data.
    assert metrics.log_loss([0, 1, 3], p) == metrics.log_loss([0, 1, 2], p)


@every_onnx
def test_onnx_label_out_of_range(name):
    """It is an error, except that −1 is the last class."""
    x = f32([1, 2, 3])
    with pytest.raises(Exception, match=r"(?i)out of (bounds|range)"):
        onnx_loss(name, x, np.array([3]))
    alike((onnx_loss(name, x, np.array([-1])),), (ours(x, [2])[0][0],))


# ---------------------------------------------------------------------------------------------
# Types and shapes


def test_kinds_of_integer_labels():
    """PyTorch takes int64 and uint8 only, TensorFlow int32 and int64, scikit-learn floats."""
    x = f32([1, 2, 3])
    expected = ours(x, [1])
    accepted = {
        "torch": ({np.int64, np.uint8}, RuntimeError),
        "tensorflow": ({np.int32, np.int64}, Exception),
        "optax": ({np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64}, TypeError),
    }
    seen = 0
    for name, (kinds, error) in accepted.items():
        try:
            PEERS[name](x, np.array([1]))
        except pytest.skip.Exception:
            continue
        seen += 1
        for kind in (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64):
            if kind in kinds:
                alike(PEERS[name](x, np.array([1], kind)), expected)
            else:
                with pytest.raises(error):
                    PEERS[name](x, np.array([1], kind))
    if not seen:
        pytest.skip("no library to look at")


def test_sklearn_takes_labels_in_the_logits_dtype():
    loss = load_sklearn().HalfMultinomialLoss(n_classes=3)
    with pytest.raises(TypeError):
        loss.loss_gradient(np.array([0]), np.zeros((1, 3)))
    with pytest.raises(TypeError):
        loss.loss_gradient(np.zeros(1, np.float16), np.zeros((1, 3), np.float16))


@pytest.mark.parametrize("name", ["torch", "optax", "tensorflow", *ONNX])
def test_loss_of_half_types_is_half(name):
    x = np.array([[1, 2, 3]], np.float16)
    assert PEERS[name](x, np.array([0]))[0].dtype == np.float16
    assert ours(x, [0])[0].dtype == np.float32


def test_logsumexp_of_half_types_is_half():
    torch = load_torch()
    assert torch.logsumexp(torch.zeros(2, dtype=torch.float16), 0).dtype == torch.float16
    assert pyce.logsumexp(np.zeros(2, np.float16)).dtype == np.float64


def test_jax_computes_float64_in_float32():
    """By default: jax_enable_x64 changes it."""
    jax, _ = load_optax()
    if jax.config.jax_enable_x64:
        pytest.skip("jax_enable_x64 is set")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert optax_rows(np.zeros((1, 3)), np.array([0]))[0].dtype == np.float32


@pytest.mark.parametrize(("name", "kinds"), [("optax", "ys"), ("tensorflow", "s")])
def test_optax_and_tensorflow_broadcast_targets(name, kinds):
    """One target is used for all rows (in TensorFlow, if probabilities); a ValueError in pyce."""
    x = f32([1, 2, 3], [3, 2, 1])
    for kind, target in (("y", np.array([0])), ("s", f32([1, 0, 0]))):
        with pytest.raises(ValueError, match="does not fit"):
            pyce.cross_entropy(x, target)
        if kind in kinds:
            assert PEERS[name](x, target)[0].shape == (2,)
        else:
            with pytest.raises(ValueError):
                PEERS[name](x, target)


def test_torch_and_unusual_arrays():
    """No other byte order, negative strides or lists, and only weights of the logits' dtype."""
    torch = load_torch()
    x = np.zeros((2, 3))
    for unusual in (x.astype(x.dtype.newbyteorder()), x[::-1]):
        with pytest.raises(ValueError):
            torch.from_numpy(unusual)
    call = torch.nn.functional.cross_entropy
    with pytest.raises(TypeError):
        call(x.tolist(), [0, 1])
    with pytest.raises(RuntimeError):
        torch_rows(x, np.array([0, 1]), weight=torch.ones(3))
    # With a float64 target, the loss of float32 logits is float64.
    mixed = call(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.float64))
    assert mixed.dtype == torch.float64


def test_optax_takes_no_lists():
    load_optax()
    import optax

    with pytest.raises(TypeError):
        optax.softmax_cross_entropy_with_integer_labels([[1.0, 2.0]], [0])


# ---------------------------------------------------------------------------------------------
# Reductions and smoothing


@pytest.mark.parametrize("name", ["optax", "tensorflow"])
def test_optax_and_tensorflow_do_not_reduce(name):
    assert PEERS[name](f32([1, 2, 3], [3, 2, 1]), np.array([0, 1]))[0].shape == (2,)


def test_keras_mean_divides_by_the_rows():
    """The weights do not matter; "mean_with_sample_weight" is the mean of pyce."""
    keras, tf = load_keras(), load_tensorflow()
    x, y, s = f32([1, 2, 3], [3, 2, 1]), [0, 1], [1.0, 4.0]
    rows = ours(x, y)[0]

    def loss(**options):
        call = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)
        return float(call(tf.constant(y), tf.constant(x), sample_weight=tf.constant(s)))

    assert loss() == pytest.approx((rows * s).sum() / 2, rel=1e-6)
    same = loss(reduction="mean_with_sample_weight")
    assert same == pytest.approx(pyce.cross_entropy(x, y, sample_weight=s), rel=1e-6)


def test_sklearn_averages_by_sample_weights():
    metrics = pytest.importorskip("sklearn.metrics")
    p, y, s = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]), [0, 1, 2], [1, 2, 3]
    expected = pyce.log_loss(p, y, sample_weight=s)
    np.testing.assert_allclose(metrics.log_loss(y, p, sample_weight=s), expected, rtol=1e-15)
    total = pyce.log_loss(p, y, reduction="sum")
    np.testing.assert_allclose(metrics.log_loss(y, p, normalize=False), total, rtol=1e-15)


def test_smoothing_elsewhere():
    """Optax and Keras apply the same formula to the targets and do not check ε."""
    x, hot = f32([1, 2, 3]), f32([1, 0, 0])
    seen = 0
    for load in (load_optax, load_keras):
        try:
            library = load()
        except pytest.skip.Exception:
            continue
        seen += 1
        for eps in (0.1, 1.5):
            if load is load_optax:
                loss = optax_rows(x, np.asarray(library[1].smooth_labels(hot, eps)))[0]
            else:
                tf = load_tensorflow()
                loss = library.losses.categorical_crossentropy(
                    tf.constant(hot), tf.constant(x), from_logits=True, label_smoothing=eps
                ).numpy()
            smooth = ((1 - eps) * hot + eps / 3).astype(np.float32)
            alike((loss,), ours(x, smooth)[:1])
    if not seen:
        pytest.skip("no library to look at")


def test_torch_checks_smoothing():
    with pytest.raises(RuntimeError, match=r"between 0\.0 and 1\.0"):
        torch_rows(f32([1, 2, 3]), np.array([0]), label_smoothing=1.5)


# ---------------------------------------------------------------------------------------------
# Accuracy


@every_peer
@pytest.mark.parametrize("margin", [17, 30])
def test_confident_rows_lose_every_digit(name, margin):
    """A loss of 2·e^−margin is computed as 0, and the gradient as 0 or with an error of 40 %."""
    x, y = f32([margin, 0, 0]), np.array([0])
    exact = np.log1p(2 * np.exp(-float(margin)))
    loss, grad = PEERS[name](x, y)
    assert (loss == 0).all()
    assert grad is None or abs(grad[0, 0] + exact) > 0.4 * exact
    loss, grad = ours(x, y)
    np.testing.assert_allclose(loss, exact, rtol=3e-7)
    np.testing.assert_allclose(grad[0, 0], -exact, rtol=6e-7)


@every_peer
def test_offsets_cost_digits(name):
    """For logits far from 0, the error is hundreds of units in the last place or more."""
    x, y = f32([1e8 + 8, 1e8, 1e8]), np.array([0])
    exact = np.log1p(2 * np.exp(-8.0))
    loss, _ = PEERS[name](x, y)
    assert abs(loss[0] - exact) > 100 * np.spacing(np.float32(exact))
    np.testing.assert_allclose(ours(x, y)[0], exact, rtol=3e-7)


# ---------------------------------------------------------------------------------------------
# From probabilities


def test_sklearn_log_loss_clips():
    """It clips at the machine epsilon of the dtype, and warns of rows that do not add up to 1."""
    metrics = pytest.importorskip("sklearn.metrics")
    for dtype in (np.float32, np.float64):
        p = np.array([[1, 0], [1, 0]], dtype)
        got = metrics.log_loss([1, 0], p)
        np.testing.assert_allclose(got, -np.log(np.finfo(dtype).eps) / 2, rtol=1e-6)
    assert pyce.log_loss(p, [1, 0]) == INF
    p = [[0.2, 0.2], [0.1, 0.1]]
    with pytest.warns(UserWarning, match="do not sum to one"):
        got = metrics.log_loss([0, 1], p)
    np.testing.assert_allclose(got, pyce.log_loss(p, [0, 1]), rtol=1e-15)
    for p in ([[-0.1, 0.9], [0.5, 0.5]], [[0, 2.0], [0.5, 0.5]], [[NAN, 1], [0.5, 0.5]]):
        with pytest.raises(ValueError):
            metrics.log_loss([0, 1], p)


def test_keras_clips_and_rescales_probabilities():
    """It divides rows by their sums, then clips to [1e−7, 1 − 1e−7]."""
    keras, tf = load_keras(), load_tensorflow()
    call = keras.losses.categorical_crossentropy
    got = call(tf.constant([[0.0, 1]]), tf.constant([[1.0, 0]])).numpy()
    np.testing.assert_allclose(got, -np.log(1e-7), rtol=1e-6)
    assert call(tf.constant([[1.0, 0]]), tf.constant([[1.0, 0]])).numpy() > 0
    got = call(tf.constant([[1.0, 0]]), tf.constant([[0.2, 0.2]])).numpy()
    np.testing.assert_allclose(got, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(pyce.log_loss([[0.2, 0.2]], [0]), -np.log(0.2), rtol=1e-15)
    # By default it takes inputs as probabilities, not as logits.
    plain = keras.losses.SparseCategoricalCrossentropy()
    got = plain(tf.constant([0]), tf.constant([[0.5, 0.3, 0.2]]))
    np.testing.assert_allclose(got, np.log(2), rtol=1e-6)


def test_torch_caps_the_loss_of_a_probability_of_0():
    torch = load_torch()
    loss = torch.nn.functional.binary_cross_entropy(torch.zeros(1), torch.ones(1))
    assert loss == 100
    assert pyce.log_loss([[1.0, 0.0]], [1]) == INF


# ---------------------------------------------------------------------------------------------
# Bernoulli


@every_soft_peer
def test_bernoulli_at_infinity(name):
    """Infinite logits with the correct sign: the loss is NaN in all of them, and 0 in pyce."""
    t = f32(1, 0, 0, 1)
    far = f32(1e4, -1e4, 1e4, -1e4)
    np.testing.assert_array_equal(bernoulli(name, far, t), [0, 0, 1e4, 1e4])
    got = bernoulli(name, far * f32(INF), t)
    assert np.isnan(got[:2]).all()
    expected = pyce.binary_cross_entropy(far * f32(INF), t, reduction="none")
    np.testing.assert_array_equal(expected, [0, 0, INF, INF])


def test_tensorflow_weighs_the_positive_alike():
    tf = load_tensorflow()
    x, t = f32(0.3, -2), f32(0.25, 1)
    got = tf.nn.weighted_cross_entropy_with_logits(labels=t, logits=x, pos_weight=3.0)
    expected = pyce.binary_cross_entropy(x, t, pos_weight=3.0, reduction="none")
    alike((got.numpy(),), (expected,))


def test_torch_requires_floating_bernoulli_targets():
    torch = load_torch()
    with pytest.raises(RuntimeError):
        torch.nn.functional.binary_cross_entropy_with_logits(
            torch.zeros(3), torch.zeros(3, dtype=torch.int64)
        )
    assert pyce.binary_cross_entropy(np.zeros(3), [0, 1, 1]) > 0


# ---------------------------------------------------------------------------------------------
# Accuracy of predictions

TIED = [[5.0, 5.0, 5.0]] * 3


def test_sklearn_breaks_ties_for_the_last_class():
    metrics = pytest.importorskip("sklearn.metrics")
    for k in (1, 2):
        call = metrics.top_k_accuracy_score
        right = [call([y], TIED[:1], k=k, labels=[0, 1, 2]) for y in range(3)]
        assert right == [float(y >= 3 - k) for y in range(3)]
        assert [pyce.accuracy(TIED[:1], [y], top_k=k) for y in range(3)] == right[::-1]
    with pytest.raises(ValueError, match="NaN"):
        metrics.top_k_accuracy_score([0, 1, 2], [[NAN, 1, 0]] * 3)


def test_tensorflow_counts_all_that_are_tied():
    tf = load_tensorflow()
    assert tf.math.in_top_k([0, 1, 2], TIED, 1).numpy().all()
    assert pyce.accuracy(TIED, [0, 1, 2]) == pytest.approx(1 / 3)
    # The metric of the first place breaks ties as pyce does.
    metric = load_keras().metrics.sparse_categorical_accuracy
    assert metric(tf.constant([0, 1, 2]), tf.constant(TIED)).numpy().tolist() == [1, 0, 0]


def test_argmax_of_nan_elsewhere():
    """NaN is the largest value in PyTorch and JAX; in pyce it ranks above no value."""
    row = [1.0, NAN, 5.0]
    torch = load_torch()
    assert torch.argmax(torch.tensor(row)) == 1
    assert pyce.accuracy([row], [2]) == 1


def test_jax_ranks_ties_as_here_and_nan_first():
    jax, _ = load_optax()
    assert jax.lax.top_k(jax.numpy.array([5.0, 5, 5]), 2)[1].tolist() == [0, 1]
    assert jax.numpy.argmax(jax.numpy.array([1.0, NAN, 5.0])) == 1
