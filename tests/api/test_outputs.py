"""Which memory a call writes: `out`, in place, and never an input."""

import ctypes
import mmap

import numpy as np
import pytest
from samples import by_classes, by_dtype, sample

import pyce


class Unhelpful(np.ndarray):
    """A subclass that replaces all of NumPy's functions."""

    def __array_function__(self, function, types, args, kwargs):
        raise AssertionError(function)

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError(args)


@by_dtype
@pytest.mark.parametrize("axis", [0, 1])
def test_an_out_of_a_subclass(backend, dtype, axis):
    """Its memory is written; NumPy's functions never see it."""
    x, y = sample(40, rows=35)
    x, y = (x.astype(dtype), y) if axis == 1 else (x.T.astype(dtype), y)
    _, lse = pyce.cross_entropy(x, y, axis=axis, return_lse=True)
    calls = {
        "fused": lambda out: pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)[1],
        "backward": lambda out: pyce.cross_entropy_backward(1.0, x, y, lse, axis=axis, out=out),
        "softmax": lambda out: pyce.softmax(x, axis=axis, out=out),
    }
    for name, call in calls.items():
        memory = np.full(x.shape, 7, dtype)
        out = memory.view(Unhelpful)
        assert call(out) is out, name
        np.testing.assert_array_equal(memory, call(None))
    shared = np.ascontiguousarray(x)
    with pytest.raises(ValueError, match="overlap"):
        pyce.softmax(shared[1:], axis=axis, out=shared[:-1].view(Unhelpful))
    with pytest.raises(ValueError, match="another argument"):
        weights = shared.reshape(-1)[:40].view(Unhelpful)
        pyce.cross_entropy_with_grad(
            np.array(shared, dtype), y, axis=axis, weight=weights, out=shared.view(Unhelpful)
        )


@by_classes
@by_dtype
def test_out_is_written_and_returned(backend, dtype, classes):
    x, y = sample(classes, rows=35)
    x = x.astype(dtype)
    before = x.copy()
    expected = pyce.cross_entropy_with_grad(x, y)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    calls = {
        "fused": lambda out: pyce.cross_entropy_with_grad(x, y, out=out)[1],
        "backward": lambda out: pyce.cross_entropy_backward(1.0, x, y, lse, out=out),
        "softmax": lambda out: pyce.softmax(x, out=out),
        "log_softmax": lambda out: pyce.log_softmax(x, out=out),
    }
    for name, call in calls.items():
        plain = call(None)
        out = np.full(x.shape, 7, dtype)
        assert call(out) is out, name
        np.testing.assert_array_equal(out, plain)
        np.testing.assert_array_equal(x, before)
        unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
        assert call(unaligned) is unaligned, name
        np.testing.assert_array_equal(unaligned, plain)
        # In place.
        assert call(x) is x, name
        np.testing.assert_array_equal(x, plain)
        x[...] = before
    np.testing.assert_array_equal(pyce.cross_entropy_with_grad(x, y)[1], expected[1])


def test_out_may_be_another_view_of_exactly_the_logits(backend):
    x, y = sample()
    _, plain = pyce.cross_entropy_with_grad(x, y)
    out = x[:]
    _, grad = pyce.cross_entropy_with_grad(x, y, out=out)
    assert grad is out
    np.testing.assert_array_equal(x, plain)


@by_dtype
def test_out_may_have_other_strides_along_axes_of_one_element(backend, dtype):
    """Such strides lead nowhere: it is the memory of the logits all the same."""
    memory = sample(40, rows=6)[0].astype(dtype)
    column = np.ascontiguousarray(memory[:, :1])
    for x, out, axis in (
        (memory[::2][:1], memory[:1], 1),
        (memory[:1], memory[::3][:1], 1),
        (memory[np.newaxis], memory.reshape(1, 6, 40), 2),
        (memory[:, np.newaxis][:, ::-1], memory.reshape(6, 1, 40), 2),
        (memory[0][:, np.newaxis], memory[0].reshape(40, 1), 0),
        (column[:, ::-1], column, 1),
        (column[:, ::-1], column, 0),
    ):
        assert x.strides != out.strides
        y = np.zeros(np.delete(x.shape, axis), int)
        lse = pyce.logsumexp(x, axis=axis)
        for call in (
            lambda x, out, y=y, axis=axis: pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)[
                1
            ],
            lambda x, out, y=y, axis=axis, lse=lse: pyce.cross_entropy_backward(
                2.0, x, y, lse, axis=axis, out=out
            ),
            lambda x, out, axis=axis: pyce.softmax(x, axis=axis, out=out),
            lambda x, out, axis=axis: pyce.log_softmax(x, axis=axis, out=out),
        ):
            before = memory.copy(), column.copy()
            expected = call(x.copy(), None)
            assert call(x, out) is out
            assert out.tobytes() == expected.tobytes()
            memory[...], column[...] = before


def test_inputs_are_never_written(backend):
    x, y = sample(rows=35)
    rng = np.random.default_rng(0)
    t, w, s = rng.random(x.shape), rng.random(5), rng.random(35)
    _, lse = pyce.cross_entropy(x, y, return_lse=True)
    g = np.ones(35)
    inputs = [x, y, t, w, s, lse, g]
    copies = [a.copy() for a in inputs]
    for a in inputs:
        a.flags.writeable = False
    for target in (y, t):
        options = {"weight": w, "sample_weight": s, "label_smoothing": 0.1, "reduction": "none"}
        pyce.cross_entropy(x, target, **options)
        pyce.cross_entropy_with_grad(x, target, **options)
        pyce.cross_entropy_backward(g, x, target, lse, **options)
        pyce.nll_loss(x, target, **options)
        pyce.log_loss(t, target, **options)
    pyce.softmax(x), pyce.log_softmax(x), pyce.logsumexp(x), pyce.accuracy(x, y)
    pyce.binary_cross_entropy_with_grad(x, t, weight=w, pos_weight=w)
    for a, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(a, copy)


@pytest.mark.parametrize("in_place", [False, True])
def test_out_in_the_byte_order_of_the_logits(backend, in_place):
    x, y = sample(5)
    expected = pyce.cross_entropy_with_grad(x, y)[1], pyce.softmax(x)
    swapped = x.astype(x.dtype.newbyteorder())
    for right, call in zip(
        expected,
        (
            lambda x, out: pyce.cross_entropy_with_grad(x, y, out=out)[1],
            lambda x, out: pyce.softmax(x, out=out),
        ),
        strict=True,
    ):
        given = swapped.copy()
        out = given if in_place else np.empty_like(swapped)
        assert call(given, out) is out
        assert out.dtype == swapped.dtype
        np.testing.assert_array_equal(out, right)


@pytest.fixture
def before_an_inaccessible_page():
    """A function that makes an array whose last byte is the last one of a page, before a page that
    nobody may access.
    """
    mapped = []

    def make(values):
        values = np.ascontiguousarray(values)
        page = mmap.PAGESIZE
        used = (values.nbytes + page - 1) // page * page
        memory = mmap.mmap(-1, used + page)
        every = np.frombuffer(memory, np.uint8)
        status = ctypes.CDLL(None).mprotect(ctypes.c_void_p(every.ctypes.data + used), page, 0)
        assert status == 0
        mapped.append(memory)
        array = every[used - values.nbytes : used].view(values.dtype).reshape(values.shape)
        array[...] = values
        return array

    return make


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="pages are protected by mprotect")
@by_dtype
def test_nothing_past_the_end_of_an_array_is_accessed(backend, before_an_inaccessible_page, dtype):
    """Also not by a masked instruction, some of which fault on what their mask excludes."""
    for classes in (1, 2, 3, 4, 5, 7, 10, 17, 33, 65, 100, 2049):
        for rows in (1, 16, 35):
            x, y = sample(classes, rows=rows)
            x = x.astype(dtype)
            expected = pyce.cross_entropy_with_grad(x, y, reduction="none", return_lse=True)
            p = pyce.softmax(x)
            x, y, out = map(before_an_inaccessible_page, (x, y, np.zeros_like(x)))
            results = pyce.cross_entropy_with_grad(x, y, reduction="none", return_lse=True, out=out)
            for got, right in zip(results, expected, strict=True):
                np.testing.assert_array_equal(got, right)
            np.testing.assert_array_equal(pyce.softmax(x, out=out), p)
            # The class axis is not the last in memory.
            across = before_an_inaccessible_page(x.T)
            pyce.cross_entropy_with_grad(
                across, y, axis=0, reduction="none", out=out.reshape(x.T.shape)
            )
