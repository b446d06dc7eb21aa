"""Losses of other libraries with one signature: losses of rows, and the gradient of their sum.

The gradient is None where a library has none. A library that is not installed skips the test.
"""

import logging
import os
import warnings
from unittest import mock

import numpy as np
import pytest

import pyce

INF, NAN = np.inf, np.nan


def load_torch():
    return pytest.importorskip("torch")


@mock.patch.dict(os.environ)
def load_optax():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return pytest.importorskip("jax"), pytest.importorskip("optax")


@mock.patch.dict(os.environ)
def load_tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    tensorflow = pytest.importorskip("tensorflow")
    tensorflow.get_logger().setLevel(logging.ERROR)
    return tensorflow


def load_keras():
    return load_tensorflow().keras


def load_sklearn():
    """The losses of scikit-learn's linear models and of its boosting."""
    return pytest.importorskip("sklearn._loss")


def torch_rows(x, target, **options):
    torch = load_torch()
    x = torch.tensor(x, requires_grad=True)
    options.setdefault("reduction", "none")
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(target), **options)
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.numpy()


def optax_rows(x, target):
    jax, optax = load_optax()
    soft = np.asarray(target).dtype.kind == "f"
    loss = optax.softmax_cross_entropy if soft else optax.softmax_cross_entropy_with_integer_labels

    def total(values):
        rows = loss(values, jax.numpy.asarray(target))
        return rows.sum(), rows

    grad, rows = jax.grad(total, has_aux=True)(jax.numpy.asarray(x))
    return np.asarray(rows), np.asarray(grad)


def tensorflow_rows(x, target):
    tf = load_tensorflow()
    soft = np.asarray(target).dtype.kind == "f"
    nn = tf.nn
    call = (
        nn.softmax_cross_entropy_with_logits
        if soft
        else nn.sparse_softmax_cross_entropy_with_logits
    )
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = call(labels=tf.constant(target), logits=x)
    return loss.numpy(), tape.gradient(loss, x).numpy()


def sklearn_rows(x, target):
    loss = load_sklearn().HalfMultinomialLoss(n_classes=x.shape[1])
    return loss.loss_gradient(np.asarray(target).astype(x.dtype), np.ascontiguousarray(x))


def onnx_model(operator, inputs, **attributes):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def info(name, array):
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )

    kind = helper.np_dtype_to_tensor_dtype(inputs["x"].dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["loss"], **attributes)],
        "loss",
        [info(name, array) for name, array in inputs.items()],
        [helper.make_tensor_value_info("loss", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model


def onnx_loss(evaluator, x, target, weight=None, **attributes):
    inputs = {"x": x, "target": np.asarray(target)}
    if weight is not None:
        inputs["weight"] = weight
    model = onnx_model("SoftmaxCrossEntropyLoss", inputs, **attributes)
    if evaluator == "onnx":
        reference = pytest.importorskip("onnx.reference")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(reference.ReferenceEvaluator(model).run(None, inputs)[0])
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_default_logger_severity(4)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def onnx_rows(x, target):
    return onnx_loss("onnx", x, target, reduction="none"), None


def onnxruntime_rows(x, target):
    return onnx_loss("onnxruntime", x, target, reduction="none"), None


PEERS = {
    "torch": torch_rows,
    "optax": optax_rows,
    "tensorflow": tensorflow_rows,
    "sklearn": sklearn_rows,
    "onnx": onnx_rows,
    "onnxruntime": onnxruntime_rows,
}
SOFT = ("torch", "optax", "tensorflow")  # those that take probabilities
ONNX = ("onnx", "onnxruntime")
every_peer = pytest.mark.parametrize("name", PEERS)
every_soft_peer = pytest.mark.parametrize("name", SOFT)
every_onnx = pytest.mark.parametrize("name", ONNX)


def f32(*rows):
    return np.array(rows, np.float32)


def ours(x, target, **options):
    return pyce.cross_entropy_with_grad(x, target, reduction="none", **options)


def alike(got, expected):
    """Compare losses and gradients to about five digits; None is not compared."""
    for one, other in zip(got, expected, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def bernoulli(name, x, t):
    if name == "torch":
        torch = load_torch()
        call = torch.nn.functional.binary_cross_entropy_with_logits
        return call(torch.tensor(x), torch.tensor(t), reduction="none").numpy()
    if name == "optax":
        jax, optax = load_optax()
        return np.asarray(optax.sigmoid_binary_cross_entropy(jax.numpy.asarray(x), t))
    tf = load_tensorflow()
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=t, logits=x).numpy()
