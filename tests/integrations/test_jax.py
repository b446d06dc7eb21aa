"""pyce.jax: Optax's functions under JAX's transformations; the handler with forged frames."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
cffi = pytest.importorskip("cffi")
pytest.importorskip("pyce._pyce")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402
from xla_calls import BACKWARD, BOTH, DECLARATIONS, FORWARD, S32, SAVED, SAVING, Call  # noqa: E402

import pyce  # noqa: E402
import pyce.jax as pj  # noqa: E402
from pyce.jax._ffi import check_version  # noqa: E402

INTEGER, SOFT = pj.softmax_cross_entropy_with_integer_labels, pj.softmax_cross_entropy
# The examples and test values of Optax's documentation.
LOGITS = np.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]], np.float32)
YS = np.array([[10.0, 1.0, -2.0], [1.0, 4.0, 0.2]], np.float32)


def x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def batch(shape, axis, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    labels = rng.integers(0, shape[axis], tuple(np.delete(shape, axis)))
    return x, labels.astype(np.int32)


def test_values_of_optax():
    np.testing.assert_allclose(INTEGER(LOGITS, np.array([0, 1])), [0.2761, 2.9518], atol=5e-5)
    np.testing.assert_allclose(SOFT(LOGITS, np.eye(3)[:2]), [0.2761, 2.9518], atol=5e-5)
    np.testing.assert_allclose(SOFT(YS, np.eye(3)[[1, 0]]), [9.00013, 3.0696733], rtol=1e-6)
    x = jnp.arange(24, dtype=jnp.float32).reshape(1, 2, 3, 4)
    np.testing.assert_allclose(
        INTEGER(x, jnp.array([[5, 11]]), axis=(2, 3)), [[6.4587, 0.4587]], 1e-4
    )


@pytest.mark.parametrize(
    "shape, axis", [((6, 5), -1), ((4, 5, 6), 0), ((4, 5, 6), 1), ((2, 3000), 1)]
)
@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_same_as_numpy(shape, axis, transformed):
    x, y = batch(shape, axis)
    with pyce.use_backend("c"):
        expected, grad = pyce.cross_entropy_with_grad(x, y, axis=axis, reduction="none")
    f = transformed(lambda x: INTEGER(x, y, axis=axis))
    np.testing.assert_array_equal(f(x), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(x), grad)


@pytest.mark.parametrize("axis", [1, (3, 1), (3, 2), (-2, -1), (-4, -3, -1)], ids=str)
def test_same_as_optax(axis):
    optax = pytest.importorskip("optax")
    shape = (2, 3, 4, 5)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    t = rng.random(shape, dtype=np.float32)
    axes = tuple(a % 4 for a in (axis if isinstance(axis, tuple) else (axis,)))
    classes = np.prod([shape[a] for a in axes])
    y = rng.integers(-classes - 1, classes + 1, tuple(np.delete(shape, axes)))
    y.flat[:3] = 0, -1, classes  # the last one is out of range
    factors = rng.standard_normal(y.shape, dtype=np.float32)
    for name, target in ((INTEGER.__name__, y), (SOFT.__name__, t)):
        values, gradients = [], []
        for library in (pj, optax.losses):
            f = getattr(library, name)
            value, pullback = jax.vjp(jax.jit(lambda x, f=f, y=target: f(x, y, axis=axis)), x)
            values.append(value)
            gradients.append(pullback(factors)[0])
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    x, y = batch((7, 30), 1)
    half = jnp.asarray(x).astype(dtype)
    value, grad = jax.value_and_grad(lambda x: INTEGER(x, y).sum(dtype=jnp.float32))(half)
    assert INTEGER(half, y).dtype == grad.dtype == half.dtype
    exact = np.asarray(half, np.float64)
    expected, exact_grad = pyce.cross_entropy_with_grad(exact, y, reduction="sum")
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(value, expected, rtol=eps)
    np.testing.assert_allclose(np.asarray(grad, np.float64), exact_grad, rtol=2 * eps, atol=1e-7)


def test_float64_and_int64():
    with x64():
        x, y = batch((7, 30), 1)
        wide = x.astype(np.float64)
        expected, grad = pyce.cross_entropy_with_grad(wide, y, reduction="sum")
        f = jax.value_and_grad(lambda x: INTEGER(x, y.astype(np.int64)).sum())
        value, actual = f(jnp.asarray(wide))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-15)
        np.testing.assert_array_equal(actual, grad)


def test_the_smallest_label_of_64_bits():
    """It is out of range as any other, whatever the labels of the other rows are."""
    x, _ = batch((3, 4), 1)
    least = np.iinfo(np.int64).min
    with x64():
        for labels in (np.array([1, least, 2]), np.array([99, least, 2])):
            value, pullback = jax.vjp(lambda x, labels=labels: INTEGER(x, labels), x)
            assert np.isnan(value).tolist() == [labels[0] == 99, True, False]
            grad = pullback(jnp.ones(3, jnp.float32))[0]
            np.testing.assert_allclose(grad[1], jax.nn.softmax(x[1]), rtol=1e-6)


def test_gradients_of_first_and_second_order():
    x, y = batch((3, 4), 1)
    tolerance = {"atol": 2e-2, "rtol": 2e-2}
    check_grads(lambda x: INTEGER(x, y), (x,), order=2, **tolerance)
    check_grads(SOFT, (x, np.abs(x)), order=2, **tolerance)
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    check_grads(lambda x, t: SOFT(x, t, where=mask), (x, np.abs(x)), order=2, **tolerance)


@pytest.mark.parametrize("target", ["labels", "probabilities"])
def test_higher_derivatives_of_loops(target):
    """A backward pass of `lax.scan` computes before the loop what is the same in each iteration."""
    x, y = batch((4, 3, 5), 2)
    t = jax.nn.one_hot(y, 5) if target == "labels" else np.abs(x)
    loss, labels = (INTEGER, y) if target == "labels" else (SOFT, t)

    def expected(w):
        return -(t * jax.nn.log_softmax(w * x)).sum(-1).mean(1).sum()

    def scanned(w):
        def add(total, xt):
            return total + loss(w * xt[0], xt[1]).mean(), None

        return jax.lax.scan(add, 0.0, (x, labels))[0]

    def mapped(w):
        return jax.lax.map(lambda xt: loss(w * xt[0], xt[1]).mean(), (x, labels)).sum()

    second = jax.grad(jax.grad(expected))
    for function in (scanned, mapped):
        for derivative in (jax.grad, jax.jacfwd):
            found = derivative(jax.grad(function))(0.7)
            np.testing.assert_allclose(found, second(0.7), rtol=1e-5)
    third = jax.grad(jax.grad(jax.grad(scanned)))(0.7)
    np.testing.assert_allclose(third, jax.grad(second)(0.7), rtol=1e-4)


def test_rows_without_logits_have_finite_derivatives():
    x, y = batch((3, 4), 1)
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    t = np.abs(x)
    x[1, 2] = np.nan
    for loss in (lambda x: INTEGER(x, y, where=mask), lambda x: SOFT(x, t, where=mask)):
        gradient = jax.grad(lambda x, f=loss: f(x).sum())
        for result in jax.jvp(gradient, (x,), (np.ones_like(x),)):
            assert np.isfinite(result).all() and not result[1].any()


@pytest.mark.parametrize("classes", [10, 300, 3000])
def test_a_row_has_the_same_gradient_whatever_the_cotangents_of_others(classes):
    x, y = batch((40, classes), 1)
    _, pullback = jax.vjp(lambda x: INTEGER(x, y), x)
    third = np.float32(1 / 3)
    same = pullback(np.full(40, third))[0]
    other = pullback(np.where(np.arange(40) == 7, np.float32(0.1), third))[0]
    np.testing.assert_array_equal(np.delete(same, 7, 0), np.delete(other, 7, 0))
    np.testing.assert_allclose(other[7] / 0.1, same[7] * 3, rtol=1e-6)


def test_rows_whose_losses_are_not_used_have_no_gradient():
    x, y = batch((3, 5), 1)
    x[1] = np.nan
    used = np.array([True, False, True])
    for where in (used, ~used & used):
        grad = jax.grad(lambda x, w=where: jnp.where(w, INTEGER(x, y), 0).sum())(x)
        assert np.isfinite(grad).all() and grad.any(axis=1).tolist() == where.tolist()


@pytest.mark.parametrize("shape", [(40, 10), (30, 3000)])
@pytest.mark.parametrize("target", ["labels", "probabilities"])
def test_a_right_guess_of_the_cotangent_changes_no_byte(shape, target):
    """That of a mean is guessed in the forward pass; the backward pass computes the others."""
    x, y = batch(shape, 1)
    f = lambda x: INTEGER(x, y)  # noqa: E731
    if target == "probabilities":
        t = np.abs(batch(shape, 1, seed=1)[0])
        f = lambda x: SOFT(x, t)  # noqa: E731
    mean = jax.jit(jax.grad(lambda x: f(x).mean()))(x)
    _, pullback = jax.vjp(f, x)
    factors = np.full(shape[0], np.float32(1) / shape[0])
    np.testing.assert_array_equal(pullback(factors)[0], mean)
    np.testing.assert_array_equal(pullback(factors)[0], mean)  # once more, from the same memory
    factors[3] *= 2
    np.testing.assert_array_equal(np.delete(pullback(factors)[0], 3, 0), np.delete(mean, 3, 0))


def test_vmap_scan_checkpoint_and_donation():
    x, y = batch((4, 3, 5), 2)
    expected = INTEGER(x, y)
    loss = lambda x, y: INTEGER(x, y).sum()  # noqa: E731
    grad = jax.grad(loss)(x, y)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(1, 1)))
    values, grads = mapped(np.moveaxis(x, 0, 1), y.T)
    np.testing.assert_array_equal(grads, grad)
    np.testing.assert_allclose(values, expected.sum(1), rtol=1e-6)
    shared = jax.vmap(INTEGER, in_axes=(0, None))(x, y[0])
    np.testing.assert_array_equal(shared[2], INTEGER(x[2], y[0]))
    _, scanned = jax.lax.scan(lambda c, xy: (c, INTEGER(*xy)), 0, (x, y))
    np.testing.assert_array_equal(scanned, expected)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(x, y), grad)
    step = jax.jit(lambda x: x - jax.grad(loss)(x, y), donate_argnums=0)
    np.testing.assert_allclose(step(jnp.array(x)), x - grad, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape, axis", [((8, 9, 100), -1), ((4, 5, 6, 7), 1)])
def test_a_compiled_program_copies_no_logits(dtype, shape, axis):
    x, y = batch(shape, axis)
    step = jax.jit(jax.value_and_grad(lambda x: INTEGER(x, y, axis=axis).mean()))
    program = step.lower(jnp.asarray(x).astype(dtype)).compile().as_text()
    assert "pyce_cross_entropy" in program and " copy(" not in program


def test_export_with_a_symbolic_number_of_rows():
    export = pytest.importorskip("jax.export")
    x, y = batch((6, 4), 1)
    rows, *_ = export.symbolic_shape("rows")
    names = ("pyce_cross_entropy", "pyce_cross_entropy_saving")
    step = jax.jit(jax.value_and_grad(lambda x, y: INTEGER(x, y).mean()))
    exported = export.export(
        step, disabled_checks=[export.DisabledSafetyCheck.custom_call(name) for name in names]
    )(jax.ShapeDtypeStruct((rows, 4), x.dtype), jax.ShapeDtypeStruct((rows,), y.dtype))
    jax.tree.map(np.testing.assert_array_equal, exported.call(x, y), step(x, y))


FOUR_DEVICES = """
import jax, numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
import pyce.jax as pj
shard_map = getattr(jax, "shard_map", None)
if shard_map is None:
    from jax.experimental.shard_map import shard_map
f, soft = pj.softmax_cross_entropy_with_integer_labels, pj.softmax_cross_entropy
auto = {"axis_types": (jax.sharding.AxisType.Auto,)} if hasattr(jax, "shard_map") else {}
mesh = jax.make_mesh((4,), ("d",), **auto)
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((8, 5), (5, 5)))
y, t = rng.integers(0, 5, 8, dtype=np.int32), rng.random((8, 5), dtype=np.float32)
near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

def plain(w, x, y, t):  # w does not vary over the devices
    return f(x @ w, y).mean() + f(w[:2], y).mean()

def loss(w, x, y, t):
    return plain(w, x, y, t) + f(x @ w, y, where=t > 0.2).mean() + soft(x @ w, t).mean()

def sharded(loss):
    inner = lambda *a: jax.lax.pmean(loss(*a), "d")
    return shard_map(inner, mesh=mesh, in_specs=(P(), P("d"), P("d"), P("d")), out_specs=P())

def whole(loss):
    def mean(w, *others):
        return sum(loss(w, *(a[i : i + 2] for a in others)) for i in range(0, 8, 2)) / 4
    return mean

def second(f):
    return lambda w, *a: jax.jvp(jax.grad(lambda w: f(w, *a)), (w,), (w,))[1]

for g, of in ((jax.value_and_grad, loss), (second, plain)):
    jax.tree.map(near, *(jax.jit(g(kind(of)))(w, x, y, t) for kind in (sharded, whole)))
rows = f(x, y)
step = jax.value_and_grad(lambda x, y: f(x, y).mean())
near(jax.pmap(f)(x.reshape(4, 2, 5), y.reshape(4, 2)).ravel(), rows, rtol=0, atol=0)
for spec in (P("d"), P(None, None)):
    xs, ys = (jax.device_put(a, NamedSharding(mesh, P(*spec[: a.ndim]))) for a in (x, y))
    jax.tree.map(near, jax.jit(step)(xs, ys), step(x, y))
if hasattr(jax, "set_mesh"):
    explicit = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    four, rows = x[:, :4], np.asarray(f(x[:, :4], y % 4))
    with jax.set_mesh(explicit):
        for spec in (P("d"), P(None, "d")):  # the rows divided, and the classes
            near(jax.jit(f)(jax.device_put(four, spec), y % 4), rows, rtol=0, atol=0)

    # Derivatives, also with a mask of which the program does not say where it is.
    def mean(x, t):
        parts = f(x, y % 4), f(x, y % 4, where=np.arange(8)[:, None] > 1), soft(x, t, where=x > -1)
        return sum(part.mean() for part in parts)

    t4 = t[:, :4]
    gradients = jax.grad(mean, (0, 1))
    plain = gradients(four, t4), second(mean)(four, t4)
    with jax.set_mesh(explicit):
        for spec in (P("d"), P(None, "d")):
            xs, ts = jax.device_put(four, spec), jax.device_put(t4, spec)
            found = gradients(xs, ts), second(mean)(xs, ts)
            jax.tree.map(near, found, plain)
            assert jax.typeof(found[0][0]) == jax.typeof(xs)
"""


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="JAX 0.6 refuses its types in shard_map")
def test_four_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_labels_out_of_range():
    x, _ = batch((5, 4), 1)
    y = np.array([0, -1, 4, -5, 3], np.int32)
    value, grad = INTEGER(x, y), jax.grad(lambda x: INTEGER(x, y).sum())(x)
    assert np.isnan(value).tolist() == [False, False, True, True, False]
    np.testing.assert_array_equal(value[1], INTEGER(x, np.full(5, 3))[1])
    np.testing.assert_allclose(grad[2:4], pyce.softmax(x[2:4]), rtol=1e-6)
    with_factors = jax.grad(lambda x: (INTEGER(x, y) * np.array([1, 2, 3, 0, 5.0])).sum())(x)
    np.testing.assert_allclose(with_factors[:3], np.array([[1], [2], [3]]) * grad[:3], rtol=1e-6)
    assert not with_factors[3].any()
    for dtype in (np.uint8, np.uint16, np.uint32):
        other = INTEGER(x, np.array([0, 1, 2, 3, 200]).astype(dtype))
        assert np.isnan(other).tolist() == [False] * 4 + [True]


def test_masks():
    x, y = batch((4, 5), 1)
    rows = np.array([True, False, True, False])
    np.testing.assert_array_equal(INTEGER(x, y, where=rows), np.where(rows, INTEGER(x, y), 0))
    assert not jax.grad(lambda x: INTEGER(x, y, where=rows).sum())(x)[1].any()
    for one in (True, False):
        np.testing.assert_array_equal(INTEGER(x, y, where=one), one * INTEGER(x, y))
    mask = np.ones((4, 5), bool)
    mask[:, 2] = False
    mask[3] = False
    lse = np.log(np.exp(x.astype(np.float64)).sum(1, where=mask, initial=1e-300))
    y = np.array([0, 2, 4, 1], np.int32)  # the second label is masked
    expected = np.where(mask.any(1), lse - x[np.arange(4), y], 0)
    np.testing.assert_allclose(INTEGER(x, y, where=mask), expected, rtol=1e-6)
    t = np.eye(5, dtype=np.float32)[y]
    soft = np.where(mask[np.arange(4), y], expected, 0)
    np.testing.assert_allclose(SOFT(x, t, where=mask), soft, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: SOFT(x, t, where=mask).sum())(x)).all()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x, y: INTEGER(x.astype(int), y), TypeError, "logits must be"),
        (lambda x, y: INTEGER(x, y.astype(float)), TypeError, "integer dtype"),
        (lambda x, y: INTEGER(x, x), TypeError, "softmax_cross_entropy takes"),
        (lambda x, y: SOFT(x, y), ValueError, "integer_labels takes class indices"),
        (lambda x, y: INTEGER(x, y[:1]), ValueError, "labels must have the shape"),
        (lambda x, y: INTEGER(x, np.eye(3, dtype=int)[:2]), ValueError, "takes one-hot rows"),
        (lambda x, y: INTEGER(x, y, axis=2), ValueError, "out of range"),
        (lambda x, y: INTEGER(x, y, axis=None), TypeError, "a tuple of integers, got None"),
        (lambda x, y: SOFT(x, x, axis=(1, -1)), ValueError, "twice"),
        (lambda x, y: INTEGER(x[:, :0], y), ValueError, "no classes"),
        (lambda x, y: INTEGER(x, y, where=x), TypeError, "boolean"),
        (lambda x, y: INTEGER(x, y, where=x[0] > 0), ValueError, r"\(2, 3\).*got \(3,\)"),
        (lambda x, y: SOFT(x, x, where=x[:, :2] > 0), ValueError, r"\(2, 3\).*got \(2, 2\)"),
        (lambda x, y: SOFT(x, x[:, :2]), ValueError, "broadcast"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(*batch((2, 3), 1))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad], ids=["jit", "grad"])
def test_traced_arrays_are_no_arguments_of_the_numpy_functions(transform):
    x, y = batch((2, 3), 1)
    with pytest.raises(TypeError, match=r"logits is traced by JAX .*: pyce\.jax has functions"):
        transform(lambda x: pyce.cross_entropy(x, np.asarray(y)))(x)


def test_an_unknown_major_version_is_refused_at_import():
    check_version("#define XLA_FFI_API_MAJOR 0\n")
    with pytest.raises(ImportError, match="version 1"):
        check_version("#define XLA_FFI_API_MAJOR 1\n")


def test_numbers_of_xla_are_those_of_its_header():
    own = Path(__file__).resolve().parents[2] / "csrc" / "xla_ffi.h"
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    if not (own.exists() and header.exists()):
        pytest.skip("one of the headers is not here")
    kinds = "Error_Code|ExecutionStage|ArgType|Extension"
    of_xla = re.findall(rf"XLA_FFI_(?:{kinds})_(\w+) = (\d+)", header.read_text(encoding="utf-8"))
    known = {name.upper(): number for name, number in of_xla}
    declared = dict(re.findall(r"XLA_([A-Z_]+) = (\d+)", own.read_text(encoding="utf-8")))
    shared = {name: known[name] for name in declared if name in known}
    codes = {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL"}
    assert shared.keys() == codes | {"EXECUTE", "BUFFER", "METADATA"}
    assert shared == {name: declared[name] for name in shared}


def test_without_the_extension():
    code = "import sys; sys.modules['pyce._pyce'] = None\nimport pyce.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: pyce.jax needs pyce's C extension" in done.stderr


def test_two_threads():
    x, y = batch((300, 1000), 1)
    f = [jax.jit(jax.value_and_grad(lambda x, k=k: INTEGER(k * x, y).sum())) for k in (1, 2)]
    expected = [jax.tree.map(np.asarray, g(x)) for g in f]
    wrong = []

    def work(i):
        for _ in range(20):
            value, grad = f[i](x)
            if value != expected[i][0] or not np.array_equal(grad, expected[i][1]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_import_pyce_does_not_import_jax():
    code = "import sys, pyce; assert 'jax' not in sys.modules; import pyce.jax"
    subprocess.run([sys.executable, "-c", code], check=True)


# XLA's codes of errors: unimplemented, internal; all others are invalid arguments.
CODES = {"version": 12, "unknown size": 12, "missing": 13}


def forged(change, kind=FORWARD, handler="cross_entropy"):
    """The code and message with which the handler refuses a changed call; its last result then."""
    call = Call(kind, handler)
    change(call.frame, call.parts)
    return call.run(), call.result()


def assert_refused(messages, words):
    (message,) = messages
    assert words in message
    assert message.startswith(f"{CODES.get(words, 3)} pyce: ")


def set_field(path, value):
    def change(frame, parts):
        *owners, last = path.split(".")
        owner = parts[owners[0]] if owners and owners[0] in parts else frame
        for name in owners[1 if owner is not frame else 0 :]:
            owner = getattr(owner, name)
        setattr(owner, last, cffi.FFI.NULL if value is None else value)

    return change


def set_dim(name, i, value):
    def change(_, parts):
        parts[name].dims[i] = value

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (set_field("api.version.major", 1), "version"),
        (set_field("api.version.minor", 0), "version"),
        (set_field("stage", 0), "another stage"),
        (set_field("stage", 2), "another stage"),
        (set_field("stage", 4), "another stage"),
        (set_field("struct_size", 16), "unknown size"),
        (set_field("arguments.struct_size", 8), "unknown size"),
        (set_field("arguments.struct_size", 48), "unknown size"),
        (set_field("arguments.size", 1), "number of arguments"),
        (set_field("logits.struct_size", 8), "is no buffer"),
        (set_field("logits.dtype", S32), "logits must be"),
        (set_field("labels.dtype", 2), "labels must be"),
        (set_field("losses.dtype", 12), "losses and factors must"),
        (set_field("logits.rank", 0), "class axis"),
        (set_field("labels.rank", 2), "shape of the labels"),
        (set_dim("labels", 0, 3), "shape of the labels"),
        (set_dim("losses", 0, 3), "losses and factors must"),
        (set_dim("logits", 1, 0), "at least one class"),
    ],
)
def test_the_handler_refuses_what_it_does_not_know(change, words):
    messages, losses = forged(change)
    assert_refused(messages, words)
    assert losses == [7.0, 7.0]


@pytest.mark.parametrize(
    "change, words",
    [
        (set_field("factors.dtype", 12), "losses and factors must"),
        (set_field("factors.data", None), "missing"),
        (set_field("gradient.data", None), "missing"),
        (set_field("used.data", None), "missing"),
        (set_dim("used", 0, 3), "losses and factors must"),
        (set_field("gradient.dtype", 12), "gradients must have"),
        (set_dim("saved", 1, 2), "gradients must have"),
        (set_field("arguments.size", 4), "number of arguments"),
    ],
)
def test_the_handler_refuses_a_backward_pass(change, words):
    messages, gradient = forged(change, BACKWARD)
    assert_refused(messages, words)
    assert gradient == [7.0] * 6


def test_the_handler_accepts_valid_frames():
    def nothing(frame, parts):
        pass

    def right_guess(frame, parts):
        parts["factors"].data = parts["used"].data

    messages, losses = forged(nothing)
    np.testing.assert_allclose(losses, [2.407606, 1.407606], rtol=1e-6)
    assert forged(set_field("api.version.minor", 1)) == ([], losses)  # the oldest version
    p = pyce.softmax(np.array([1.0, 2.0, 3.0]))
    expected = np.concatenate([p - [1, 0, 0], 2 * (p - [0, 1, 0])])
    for kind in (BACKWARD, BOTH):
        more, gradient = forged(nothing, kind)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
        messages += more
    more, gradient = forged(right_guess, BACKWARD)
    assert gradient == [5.0] * 6
    assert not messages + more


def test_a_forward_pass_leaves_out_its_gradient_after_wrong_guesses():
    """Whatever it leaves out, the backward pass computes."""
    own = cffi.FFI()
    saved = own.new("float[]", [7.0] * 6)

    def forward():
        def change(frame, parts):
            parts["gradient"].data = saved

        messages, used = forged(change, SAVED, SAVING)
        assert not messages
        return used

    def backward(factors, used):
        def change(frame, parts):
            parts["factors"].data, parts["used"].data = arrays

        arrays = [own.new("float[]", values) for values in (factors, used)]
        messages, gradient = forged(change, BACKWARD)
        assert not messages
        return gradient

    p = pyce.softmax(np.array([1.0, 2.0, 3.0]))
    expected = np.concatenate([p - [1, 0, 0], p - [0, 1, 0]])
    for _ in range(4):
        backward([1, 2], [1, 1])
    assert forward() == [-1, -1] and list(saved) == [7] * 6
    for factor in (-1, 1, 1, 1, 1):
        gradient = backward([factor] * 2, [-1, -1])
        np.testing.assert_allclose(gradient, factor * expected, rtol=1e-6)
    assert forward() == [1, 1]
    np.testing.assert_array_equal(list(saved), gradient)
    assert backward([1, 1], [1, 1]) == [5] * 6
    for factor, used in ((-1, [1, 1]), (1, [1, -1]), (1, [-1, 1])):
        gradient = backward([factor] * 2, used)
        np.testing.assert_allclose(gradient, factor * expected, rtol=1e-6)


def test_saved_gradients_of_vmap_are_taken_apart():
    """Also if the forward pass of the whole batch left its gradient out."""
    x, y = jnp.stack([batch((9, 70), 1, i)[0] for i in (0, 1)]), batch((9, 70), 1)[1]
    for _ in range(3):
        jax.vmap(jax.grad(lambda x: INTEGER(x, y).sum()))(x)
    _, back = jax.vmap(lambda x: jax.vjp(lambda x: INTEGER(x, y).mean(), x))(x)
    # Every row says that its gradient was left out: what is saved instead may happen to be right.
    (used,) = (v for v in jax.tree.leaves(back) if v.shape == (2, 9, 1) and v.dtype == x.dtype)
    np.testing.assert_array_equal(used, np.full((2, 9, 1), np.float32(-1 / 9)))
    for i in (0, 1):
        (gradient,) = jax.tree.map(lambda values, i=i: values[i], back)(jnp.float32(1))
        np.testing.assert_array_equal(gradient, jax.grad(lambda x: INTEGER(x, y).mean())(x[i]))


@pytest.mark.parametrize("extension, metadata, answered", [(32, 40, 1), (24, 40, 0), (32, 32, 0)])
def test_the_handler_tells_its_version(extension, metadata, answered):
    ffi = cffi.FFI()
    ffi.cdef(
        DECLARATIONS
        + """
    typedef struct { size_t struct_size; xla_version version; uint32_t traits; int64_t state; }
        xla_metadata;
    typedef struct { size_t struct_size; int type; void *next; xla_metadata *metadata; }
        xla_extension;"""
    )
    data = ffi.new("xla_metadata *", {"struct_size": metadata, "traits": 9})
    asked = ffi.new("xla_extension *", {"struct_size": extension, "type": 1, "metadata": data})

    def ask(frame, parts):
        frame.e = asked

    messages, losses = forged(ask)
    assert losses == [7.0, 7.0] and len(messages) == 1 - answered
    assert (data.version.minor, data.traits) == ((1, 0) if answered else (0, 9))


def test_labels_of_other_integers():
    """Unsigned labels do not become valid when they are converted, nor do narrow ones change."""
    x, y = batch((4, 300), 1)
    narrow = np.array([0, 1, 100, 127], np.int8)
    np.testing.assert_array_equal(INTEGER(x, narrow), INTEGER(x, narrow.astype(np.int32)))
    outside = INTEGER(x, np.full(4, 300, np.int32))
    np.testing.assert_array_equal(INTEGER(x, np.full(4, 2**32 - 1, np.uint32)), outside)
    with x64():
        for label in (2**32, 2**64 - 1):
            np.testing.assert_array_equal(INTEGER(x, np.full(4, label, np.uint64)), outside)
        np.testing.assert_array_equal(INTEGER(x, y.astype(np.uint64)), INTEGER(x, y))
