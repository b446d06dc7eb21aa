"""The C backend gives the same bytes with any threads, instruction set, batch and layout.

The shapes are on both sides of every bound between kernels.
"""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from conftest import widest_isa
from every import every

import pyce

CLASSES = [1, 2, 3, 4, 10, 15, 16, 17, 32, 33, 64, 65, 100, 511, 512, 513, 1000, 2049, 5000]
DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
THREADS = (1, 2, 3, 7)

by_dtype = every("dtype", DTYPES)
by_classes = every("classes", CLASSES)


def make(classes, rows, dtype, seed=0):
    rng = np.random.default_rng([seed, classes])
    x = (rng.normal(size=(rows, classes)) * 6).astype(dtype)
    y = rng.integers(0, classes, rows)
    y[::5] = np.argmax(x[::5].astype(np.float64), axis=1)
    y[3::11] = -100
    if classes > 2:
        x[2::7, 0] = -np.inf
        x[4::9] += np.asarray(300, dtype)
    return x, y


def digest(values):
    """SHA-256 of all bytes of all results."""
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(np.ascontiguousarray(value).tobytes())
    return hashed.hexdigest()


def results(x, y, axis=-1):
    """All results: labels and soft targets, with and without weights, forward and backward."""
    axis %= x.ndim
    classes = x.shape[axis]
    rng = np.random.default_rng(classes)
    w = rng.uniform(0.5, 2, classes)
    positions = tuple(np.delete(x.shape, axis))
    s = rng.uniform(0.5, 2, positions)
    # A row has the same probabilities wherever the class axis is.
    t = np.moveaxis(rng.random((*positions, classes)), -1, axis).astype(np.float32)
    t = np.ascontiguousarray(t)
    for target, kwargs in (
        (y, {}),
        (y, {"weight": w, "sample_weight": s, "label_smoothing": 0.1}),
        (t, {"weight": w}),
    ):
        for reduction in ("none", "mean"):
            options = {"axis": axis, "reduction": reduction, **kwargs}
            g = s if reduction == "none" else 1.5
            yield pyce.cross_entropy(x, target, **options)
            loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            back = pyce.cross_entropy_backward(g, x, target, lse, **options)
            yield from (loss, np.moveaxis(grad, axis, -1), lse, np.moveaxis(back, axis, -1))
    yield np.moveaxis(pyce.softmax(x, axis=axis), axis, -1)
    yield np.moveaxis(pyce.log_softmax(x, axis=axis), axis, -1)
    yield pyce.logsumexp(x, axis=axis)


LAYOUTS = {  # (38, C) logits and 38 labels -> logits, labels, class axis
    "last": lambda x, y: (x, y, -1),
    "first": lambda x, y: (np.ascontiguousarray(x.T), y, 0),
    "middle": lambda x, y: (
        np.ascontiguousarray(x.reshape(2, 19, -1).swapaxes(1, 2)),
        y.reshape(2, 19),
        1,
    ),
    "transposed": lambda x, y: (x.reshape(2, 19, -1).swapaxes(1, 2), y.reshape(2, 19), 1),
}


@by_dtype
@by_classes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set_gives_the_same_bytes(c_backends, dtype, classes, layout):
    x, y, axis = LAYOUTS[layout](*make(classes, 38, dtype))
    seen = {}
    for backend in c_backends:
        with backend.selected():
            seen[str(backend)] = digest(results(x, y, axis))
    assert len(seen) == len(c_backends) >= 1
    assert len(set(seen.values())) == 1, seen


# Large enough to be shared between threads; one row is cut along its classes.
SHARED = [(3, 60_000), (10, 20_000), (17, 9000), (65, 3001), (100, 2500), (1000, 301), (5000, 61)]
SHARED += [(70_001, 3), (400_000, 1)]


@every("dtype", DTYPES[1:])
@every(("classes", "rows"), SHARED)
def test_any_number_of_threads(c_backend, many_processors, classes, rows, dtype):
    x, y = make(classes, rows, dtype)
    y[0] = 0
    seen = {}
    for threads in THREADS:
        pyce.set_num_threads(threads)
        assert pyce.get_num_threads() == threads
        loss, grad, lse = pyce.cross_entropy_with_grad(x, y, return_lse=True)
        parts = [loss, grad, lse, pyce.cross_entropy(x, y)]
        parts.append(pyce.cross_entropy_backward(1.0, x, y, lse))
        parts.append(pyce.softmax(x))
        parts.append(pyce.logsumexp(x))
        seen[threads] = digest(parts)
    assert len(set(seen.values())) == 1, seen


@every(("classes", "inner"), [(3, 40_000), (21, 9000), (200, 1500)])
def test_any_number_of_threads_with_the_class_axis_in_the_middle(
    c_backend, many_processors, classes, inner
):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, classes, inner)).astype(np.float32)
    y = rng.integers(0, classes, (2, inner))
    seen = set()
    for threads in THREADS:
        pyce.set_num_threads(threads)
        seen.add(digest(results(x, y, axis=1)))
    assert len(seen) == 1


@by_dtype
@by_classes
def test_a_row_alone_is_the_row_in_a_batch(c_backend, dtype, classes):
    rows = 37
    x, y = make(classes, rows, dtype)
    t = np.random.default_rng(1).random(x.shape).astype(np.float32)
    options = {"reduction": "none", "return_lse": True}
    for target in (y, t):
        whole = pyce.cross_entropy_with_grad(x, target, **options)
        whole += (
            pyce.cross_entropy_backward(np.ones(rows), x, target, whole[2], reduction="none"),
        )
        whole += (pyce.softmax(x), pyce.log_softmax(x), pyce.logsumexp(x))
        for part in (*(slice(i, i + 1) for i in range(0, rows, 5)), slice(0, 16), slice(7, 24)):
            got = pyce.cross_entropy_with_grad(x[part], target[part], **options)
            ones = np.ones(len(x[part]))
            got += (
                pyce.cross_entropy_backward(ones, x[part], target[part], got[2], reduction="none"),
            )
            got += (pyce.softmax(x[part]), pyce.log_softmax(x[part]), pyce.logsumexp(x[part]))
            assert digest(got) == digest(value[part] for value in whole), part


@by_dtype
@every("classes", [2, 3, 4, 5, 7, 10, 16, 17, 21, 64])
@every("ignored", [False, True])
def test_few_classes_with_index_targets(c_backend, dtype, classes, ignored):
    """Sixteen rows together are computed in one way, unless NaN or infinity is among them."""
    rows = 7 * 16 + 5
    x, y = make(classes, rows, dtype)
    y[y < 0] = 1
    unusual = [16, 37, 63, 70, 80, 101]
    x[16, y[16]] = x[37, (y[37] + 1) % classes] = np.nan
    x[63, y[63]] = x[70, (y[70] + 1) % classes] = np.inf
    x[80, y[80]] = -np.inf
    x[101] = -np.inf
    if ignored:
        unusual += [47, 88]
        y[[32, 47, 88, 111]] = -100
        x[88] = np.nan
    # Some gradients have factors below the normal numbers.
    for axis, data, scale in ((-1, x, 1.0), (0, np.ascontiguousarray(x.T), -1e-37)):
        loss, grad, lse = pyce.cross_entropy_with_grad(
            data, y, axis=axis, reduction="none", return_lse=True
        )
        back = pyce.cross_entropy_backward(scale, data, y, lse, axis=axis, reduction="sum")
        whole = (loss, np.moveaxis(grad, axis, -1), lse, np.moveaxis(back, axis, -1))
        forward = pyce.cross_entropy(data, y, axis=axis, reduction="none", return_lse=True)
        assert digest(forward) == digest((loss, lse))
        for row in (*range(0, 64, 5), *unusual):
            part = slice(row, row + 1)
            got = pyce.cross_entropy_with_grad(x[part], y[part], reduction="none", return_lse=True)
            back = pyce.cross_entropy_backward(scale, x[part], y[part], got[2], reduction="sum")
            assert digest((*got, back)) == digest(value[part] for value in whole), row


@by_dtype
@every("classes", [2, 3, 4, 5, 7, 10, 16, 17, 21, 64, 65, 100, 2049])
def test_probabilities_whose_terms_are_not_finite(c_backend, dtype, classes):
    """Sums of finite terms are computed in one way, for sixteen rows of few classes, and others in
    another way: with the same bytes, so that no row depends on those around it."""
    rng = np.random.default_rng(classes)
    rows = 6 * 16 + 5
    x = (rng.normal(size=(rows, classes)) * 6).astype(dtype)
    t = (rng.random(x.shape) * rng.choice([0, 1, -1, 1e4], (rows, 1))).astype(dtype)
    x[4, :2] = x[20, -2:] = x.max()  # several maxima
    unusual = [16, 37, 48, 63, 70, 87]
    x[16, -1] = np.nan
    x[37, 0] = x[48, 1] = -np.inf
    t[37, 0] = 0
    x[63, 0] = np.inf
    t[70, -1] = np.inf
    t[87, 0] = np.nan
    whole = [[], []]
    for axis in (-1, 0):
        logits, target = (np.ascontiguousarray(a.T) if axis == 0 else a for a in (x, t))
        loss, grad, lse = pyce.cross_entropy_with_grad(
            logits, target, axis=axis, reduction="none", return_lse=True
        )
        forward = pyce.cross_entropy(logits, target, axis=axis, reduction="none", return_lse=True)
        assert digest(forward) == digest((loss, lse))
        whole[axis] = loss, np.moveaxis(grad, axis, -1), lse
    assert digest(whole[0]) == digest(whole[1])
    for row in (*range(0, rows, 5), *unusual):
        part = slice(row, row + 1)
        got = pyce.cross_entropy_with_grad(x[part], t[part], reduction="none", return_lse=True)
        assert digest(got) == digest(value[part] for value in whole[0]), row
    # Factors below the normal numbers:
    options = {"reduction": "mean", "normalizer": 1e38}
    grad = pyce.cross_entropy_with_grad(x, t, **options)[1]
    for row in range(0, rows, 9):
        part = slice(row, row + 1)
        got = pyce.cross_entropy_with_grad(x[part], t[part], **options)[1]
        assert got.tobytes() == grad[part].tobytes(), row


@by_dtype
@by_classes
@widest_isa
def test_where_the_class_axis_stands_does_not_matter(c_backend, dtype, classes):
    """All instruction sets give the same bytes for each of these layouts; see above."""
    x, y = make(classes, 38, dtype)
    expected = digest(results(x, y))
    first, labels, axis = LAYOUTS["first"](x, y)
    assert digest(results(first, labels, axis)) == expected
    last = digest(results(x.reshape(2, 19, classes), y.reshape(2, 19)))
    for name in ("middle", "transposed"):
        logits, labels, axis = LAYOUTS[name](x, y)
        assert digest(results(logits, labels, axis)) == last


@by_dtype
@every("rows", [2, 5, 15, 16, 17, 40])
def test_long_rows_are_added_up_alike_wherever_the_class_axis_stands(c_backend, rows, dtype):
    """Threads get rows one by one or in tiles. Many sums, as an order of summation changes few."""
    for seed in range(20):
        x, y = make(2049, rows, dtype, seed)
        expected = pyce.cross_entropy(x, y)
        assert pyce.cross_entropy(np.ascontiguousarray(x.T), y, axis=0) == expected


@every("option", ["plain", "smoothing", "ignored"])
@by_dtype
@every(
    ("shape", "axis"),
    [
        ((70, 2), -1),
        ((300, 3), -1),
        ((300, 10), -1),
        ((131, 33), -1),
        ((50, 65), -1),
        ((77, 100), -1),
        ((20, 513), -1),
        ((9, 2047), -1),
        ((40, 4100), -1),
        ((2, 21, 8, 37), 1),
        ((2, 21, 64, 16), 1),
        ((1, 2100, 33), 1),
    ],
)
def test_storing_past_the_cache_changes_nothing(past_the_cache, shape, axis, dtype, option):
    """A gradient too large for the caches is stored another way, with the same bytes, at any
    alignment, and without writing beyond its ends.
    """
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    positions = list(shape)
    classes = positions.pop(axis)
    y = rng.integers(0, classes, positions)
    options = {"axis": axis, "label_smoothing": 0.1 if option == "smoothing" else 0.0}
    if option == "ignored":
        y.reshape(-1)[::3] = -100
    _, lse = pyce.cross_entropy(x, y, return_lse=True, **options)
    expected = pyce.cross_entropy_with_grad(x, y, **options)
    backward = pyce.cross_entropy_backward(1.0, x, y, lse, **options)
    softmax = pyce.softmax(x, axis)
    for start in (0, 1, 7, 16):
        memory = np.full(x.size + 64, 7, dtype)
        out = memory[start : start + x.size].reshape(shape)
        loss, _ = past_the_cache(pyce.cross_entropy_with_grad, x, y, out=out, **options)
        assert loss == expected[0]
        assert out.tobytes() == expected[1].tobytes()
        past_the_cache(pyce.cross_entropy_backward, 1.0, x, y, lse, out=out, **options)
        assert out.tobytes() == backward.tobytes()
        past_the_cache(pyce.softmax, x, axis, out=out)
        assert out.tobytes() == softmax.tobytes()
        assert (memory[:start] == 7).all() and (memory[start + x.size :] == 7).all()
    in_place = x.copy()
    past_the_cache(pyce.cross_entropy_with_grad, in_place, y, out=in_place, **options)
    assert in_place.tobytes() == expected[1].tobytes()
