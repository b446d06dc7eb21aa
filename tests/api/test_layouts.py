"""Logits of any layout give the results of a contiguous copy, and are not changed."""

import math

import ml_dtypes
import numpy as np
import pytest
from every import every
from hypothesis import example, given
from hypothesis import strategies as st

import pyce
from pyce._arguments import floating, output
from pyce._problem import row_blocks

DTYPES = [np.dtype(d) for d in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def as_plain(x):
    """A contiguous, aligned, native copy of `x`."""
    return np.array(x, dtype=x.dtype.newbyteorder("="), order="C", copy=True)


# Each makes an array equal to its argument in another layout.


def stepped(x, rng):
    big = np.full(tuple(2 * n + 1 for n in x.shape), np.nan, x.dtype)
    view = big[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = x
    return view


def stepped_classes_only(x, rng):
    big = np.full((*x.shape[:-1], 3 * x.shape[-1]), np.nan, x.dtype)
    big[..., ::3] = x
    return big[..., ::3]


def padded_rows(x, rng):
    big = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, x.dtype)
    big[..., : x.shape[-1]] = x
    return big[..., : x.shape[-1]]


def reversed_all(x, rng):
    flip = tuple(slice(None, None, -1) for _ in x.shape)
    return x[flip].copy()[flip]


def reversed_some(x, rng):
    flip = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in x.shape)
    return x[flip].copy()[flip]


def fortran(x, rng):
    return np.asfortranarray(x)


def permuted(x, rng):
    order = rng.permutation(x.ndim)
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def read_only(x, rng):
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(x, rng):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    assert x.size == 0 or not raw.flags.aligned
    return raw


def byte_swapped(x, rng):
    if x.dtype.kind != "f":  # bfloat16 has one byte order
        return x.copy()
    return x.astype(x.dtype.newbyteorder())


def odd_address(x, rng):
    """Aligned to the element but to nothing larger."""
    raw = np.zeros(x.size + 3, x.dtype)[3:].reshape(x.shape)
    raw[...] = x
    return raw


LAYOUTS = [
    stepped,
    stepped_classes_only,
    padded_rows,
    reversed_all,
    reversed_some,
    fortran,
    permuted,
    read_only,
    unaligned,
    byte_swapped,
    odd_address,
]


@st.composite
def problems(draw):
    ndim = draw(st.integers(1, 4))
    largest = {1: 300, 2: 40, 3: 12, 4: 6}[ndim]
    shape = [draw(st.integers(1, largest)) for _ in range(ndim)]
    axis = draw(st.integers(-ndim, ndim - 1))
    if draw(st.booleans()):
        shape[axis] = draw(st.sampled_from([1, 2, 3, 10, 16, 17, 33, 64, 65, 130, 257]))
    return (
        tuple(shape),
        axis,
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 2**16)),
    )


def assert_alike(backend, got, expected, computed, terms=0.0):
    """Check that C gives the same bytes, and others the same within 4 ULP of the compute dtype, as
    they may add up in another order. For soft targets, 4 ULP of the larger of p·Σt and t.
    """
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if backend.bitwise:
        np.testing.assert_array_equal(bits(got), bits(expected))
    else:
        wide = np.float64 if computed == np.float64 else np.float32
        eps = max(float(ml_dtypes.finfo(kind).eps) for kind in (got.dtype, wide))
        tiny = float(ml_dtypes.finfo(got.dtype).tiny)
        np.testing.assert_allclose(
            got.astype(np.float64),
            expected.astype(np.float64),
            rtol=4 * eps,
            atol=max(tiny, 4 * eps * terms),
        )


def results(x, target, **kwargs):
    positions = np.delete(x.shape, kwargs["axis"])
    loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **kwargs)
    forward = pyce.cross_entropy(x, target, **kwargs)
    ones = np.ones(positions)
    back = pyce.cross_entropy_backward(ones, x, target, lse, **kwargs)
    axis = kwargs["axis"]
    yield from (np.asarray(loss), np.asarray(forward), grad, np.asarray(lse), back)
    yield from (pyce.softmax(x, axis=axis), pyce.log_softmax(x, axis=axis))
    yield np.asarray(pyce.logsumexp(x, axis=axis))


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@given(problem=problems())
@example(problem=((65, 3), 1, DTYPES[2], 0))
@example(problem=((3, 65), 0, DTYPES[2], 0))
@example(problem=((2, 17, 33), 1, DTYPES[3], 0))
@example(problem=((2, 2, 1030), 2, DTYPES[1], 0))
def test_layout_does_not_matter(backend, layout, soft, problem):
    shape, axis, dtype, seed = problem
    rng = np.random.default_rng(seed)
    plain = (rng.normal(size=shape) * 4).astype(dtype)
    x = layout(plain, rng)
    before = as_plain(x)
    np.testing.assert_array_equal(bits(before), bits(plain))
    if soft:
        plain_target = rng.random(shape).astype(dtype)
        target = layout(plain_target, rng)
    else:
        positions = tuple(np.delete(shape, axis))
        target = plain_target = rng.integers(0, shape[axis], positions)
    kwargs = {"axis": axis, "reduction": "none"}
    terms = float(plain_target.astype(np.float64).sum(axis).max()) if soft and x.size else 0.0
    pairs = zip(results(x, target, **kwargs), results(plain, plain_target, **kwargs), strict=True)
    for got, expected in pairs:
        assert_alike(backend, got, expected, x.dtype, terms)
    np.testing.assert_array_equal(bits(as_plain(x)), bits(before))


@given(problem=problems())
def test_in_place_is_out_of_place(backend, problem):
    shape, axis, dtype, seed = problem
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 4).astype(dtype)
    y = rng.integers(0, shape[axis], tuple(np.delete(shape, axis)))
    for target in (y, rng.random(shape).astype(np.float32)):
        loss, grad = pyce.cross_entropy_with_grad(x, target, axis=axis)
        copy = x.copy()
        loss2, grad2 = pyce.cross_entropy_with_grad(copy, target, axis=axis, out=copy)
        assert grad2 is copy
        assert loss == loss2
        np.testing.assert_array_equal(bits(grad), bits(copy))
        _, lse = pyce.cross_entropy(x, target, axis=axis, return_lse=True)
        grad = pyce.cross_entropy_backward(0.5, x, target, lse, axis=axis)
        copy = x.copy()
        pyce.cross_entropy_backward(0.5, copy, target, lse, axis=axis, out=copy)
        np.testing.assert_array_equal(bits(grad), bits(copy))
    for call in (pyce.softmax, pyce.log_softmax):
        expected = call(x, axis=axis)
        copy = x.copy()
        call(copy, axis=axis, out=copy)
        np.testing.assert_array_equal(bits(expected), bits(copy))


@every("dtype", DTYPES)
def test_in_place_where_threads_share_a_row(dtype, backend, many_processors):
    """No thread reads logits that another one has replaced."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1, 140_000)) * 4).astype(dtype)
    y, probabilities = rng.integers(0, x.shape[1], 1), rng.random(x.shape).astype(dtype)

    def fused(target):
        return lambda x, out: pyce.cross_entropy_with_grad(x, target, out=out)[1]

    calls = (fused(y), fused(probabilities), lambda x, out: pyce.softmax(x, out=out))
    for call in (*calls, lambda x, out: pyce.log_softmax(x, out=out)):
        pyce.set_num_threads(1)
        expected = call(x, None)
        pyce.set_num_threads(2)
        copy = x.copy()
        assert call(copy, copy) is copy
        np.testing.assert_array_equal(copy, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_broadcast_arrays(backend, dtype, axis):
    """Zero strides, along the classes too."""
    rng = np.random.default_rng(0)
    for part in ((1, 5, 7), (4, 1, 7), (4, 5, 1), (1, 1, 1)):
        x = np.broadcast_to(rng.normal(size=part).astype(dtype), (4, 5, 7))
        t = np.broadcast_to(rng.random(part).astype(np.float32), (4, 5, 7))
        y = np.broadcast_to(np.int64(1), tuple(np.delete(x.shape, axis)))
        for target in (y, t):
            kwargs = {"axis": axis, "reduction": "none"}
            pairs = zip(
                results(x, target, **kwargs),
                results(as_plain(x), as_plain(target), **kwargs),
                strict=True,
            )
            terms = float(t.sum(axis).max()) if target is t else 0.0
            for got, expected in pairs:
                assert_alike(backend, got, expected, x.dtype, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100])
def test_strides_of_axes_of_one_element(backend, dtype, classes):
    """They lead nowhere, so that they may be any number."""
    row = np.random.default_rng(0).normal(size=(1, classes)).astype(dtype)
    kwargs = {"axis": 1, "reduction": "none"}
    for stride in (2**62, -(2**62), 2**63 - 1, 0):
        x = np.lib.stride_tricks.as_strided(row, row.shape, (stride, row.itemsize))
        pairs = zip(results(x, [0], **kwargs), results(row, [0], **kwargs), strict=True)
        for got, expected in pairs:
            np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.mark.parametrize("mode", ["r", "c"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_mapped_files(backend, tmp_path, mode, order):
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(50, 30)).astype(np.float32)
    path = tmp_path / "logits"
    disk = np.memmap(path, plain.dtype, "w+", shape=plain.shape, order=order)
    disk[...] = plain
    disk.flush()
    x = np.memmap(path, plain.dtype, mode, shape=plain.shape, order=order)
    y = rng.integers(0, 30, 50)
    content = path.read_bytes()
    kwargs = {"axis": 1, "reduction": "none"}
    for got, expected in zip(results(x, y, **kwargs), results(plain, y, **kwargs), strict=True):
        assert type(got) is np.ndarray
        assert_alike(backend, got, expected, x.dtype)
    assert path.read_bytes() == content


def test_subclasses_and_foreign_arrays(backend):
    """Everything that NumPy converts to an array."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(4, 3))
    expected = pyce.cross_entropy_with_grad(plain, [0, 1, 2, 0])

    class Foreign:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    for x in (np.asmatrix(plain), Foreign(plain), memoryview(plain), list(plain), tuple(plain)):
        loss, grad = pyce.cross_entropy_with_grad(x, (0, 1, 2, 0))
        assert loss == expected[0]
        assert type(grad) is np.ndarray
        np.testing.assert_array_equal(grad, expected[1])


def test_targets_of_any_layout(backend):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 5))
    y = rng.integers(0, 6, (4, 5))
    s = rng.random((4, 5))
    expected = pyce.cross_entropy_with_grad(x, y, axis=1, sample_weight=s)
    for layout in LAYOUTS:
        target = np.asfortranarray(y) if layout in (byte_swapped, stepped) else y
        weights = layout(s, rng)
        got = pyce.cross_entropy_with_grad(x, target, axis=1, sample_weight=weights)
        assert got[0] == expected[0]
        np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("to", [0, -1], ids=["first", "last"])
def test_the_class_axis_may_be_elsewhere_in_memory(backend, to, soft):
    """The gradient has the memory layout of the logits, and `out` its own."""
    rng = np.random.default_rng(0)
    moved = np.ascontiguousarray(np.moveaxis(rng.normal(size=(2, 7, 4, 5)), 1, to))
    x = np.moveaxis(moved, to, 1)
    y = rng.integers(0, 7, (2, 4, 5))
    t = np.moveaxis(rng.random(moved.shape), to, 1)
    target = t if soft else y
    whole = np.ascontiguousarray(x)
    before = whole.copy()
    loss, grad, lse = pyce.cross_entropy_with_grad(x, target, axis=1, return_lse=True)
    assert grad.strides == x.strides
    out = np.empty_like(whole)
    got = pyce.cross_entropy_with_grad(x, target, axis=1, out=out)
    assert got[0] == loss
    assert got[1] is out
    back = pyce.cross_entropy_backward(1.0, x, target, lse, axis=1)
    assert back.strides == x.strides
    back_out = pyce.cross_entropy_backward(1.0, x, target, lse, axis=1, out=np.empty_like(whole))
    expected = pyce.cross_entropy_with_grad(whole, np.ascontiguousarray(target), axis=1)
    for got in (grad, out, back, back_out):
        assert_alike(backend, got, expected[1], x.dtype, 1.0)
    for got in (loss, pyce.cross_entropy(x, target, axis=1)):
        assert_alike(backend, np.asarray(got), np.asarray(expected[0]), x.dtype)
    np.testing.assert_array_equal(x, before)


def test_an_invalid_label_leaves_out_of_another_layout_as_it_was(backend):
    x = np.ones((2, 4, 5, 3)).transpose(0, 3, 1, 2)
    y = np.zeros((2, 4, 5), np.int64)
    y[1, 0, 1] = 3
    out = np.full(x.shape, 7.0)
    with pytest.raises(IndexError, match=f"target of row {y[0].size + 1}"):
        pyce.cross_entropy_with_grad(x, y, axis=1, out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("limit", [1, 7, 60, 1000, 10**6])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (4, 5, 7), (4, 3, 5, 7), (0, 7), (3, 1, 7)])
def test_rows_are_cut_into_blocks_in_order(shape, limit):
    """Each row once and in C order; no block beyond the limit, but for one row; few blocks."""
    x = np.arange(math.prod(shape)).reshape(shape)
    for axis in np.flatnonzero(shape):
        moved = np.moveaxis(x, axis, -1)
        rows = moved.reshape(-1, shape[axis])
        blocks = list(row_blocks(shape, axis, limit))
        ends = [0]
        for index, start, stop in blocks:
            assert start == ends[-1]
            assert (moved[index].reshape(-1, shape[axis]) == rows[start:stop]).all()
            assert 0 < (stop - start) * shape[axis] <= max(limit, shape[axis])
            ends.append(stop)
        assert ends[-1] == len(rows)
        if limit >= x.size:
            assert len(blocks) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_get_aligned_arrays(dtype):
    memory = np.zeros(1 + 6 * dtype.itemsize, np.uint8)
    unaligned = memory[1:].view(dtype).reshape(2, 3)
    assert floating(unaligned, "logits")[0].flags.aligned
    assert output(unaligned, np.zeros((2, 3), dtype), None, ()).flags.aligned
    out = np.zeros((2, 3), dtype)
    assert output(out, np.zeros((2, 3), dtype), None, ()) is out


@pytest.mark.parametrize("classes", [5, 100, 2100, 4200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_whose_classes_and_neighbours_lie_apart(c_backend, dtype, classes):
    """Elements with strides along both axes give the bytes of a contiguous copy."""
    rng = np.random.default_rng(classes)
    apart = rng.normal(size=(2, classes, 6)).astype(dtype)[:, :, ::2]
    whole = as_plain(apart)
    y = rng.integers(0, classes, (2, 3))
    y[1, 1] = -100
    t = rng.random((2, classes, 3)).astype(np.float32)
    found = []
    for x in (apart, whole):
        results = [pyce.softmax(x, axis=1), pyce.log_softmax(x, axis=1)]
        for target, options in ((y, {}), (y, {"label_smoothing": 0.1}), (t, {})):
            options = {"axis": 1, "reduction": "none", **options}
            loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            back = pyce.cross_entropy_backward(np.ones((2, 3)), x, target, lse, **options)
            results += [loss, grad, lse, back]
        found.append(results)
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()
