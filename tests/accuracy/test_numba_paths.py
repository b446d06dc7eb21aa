"""The Numba backend's special paths: few classes with index targets, and gradients that are written
past the caches."""

import cases
import numpy as np
import oracle
import pytest
from bounds import check_array, check_loss

import pyce

pytest.importorskip("numba")

REGIMES = (
    "random",
    "spread25",
    "confident30",
    "confident100",
    "wrong60",
    "offset-1e4",
    "offset1e8",
)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 12, 13, 16, 63])
def test_tiles_of_rows_of_every_kind(classes):
    """Neighbouring rows of different regimes, some ignored and holding NaN, in whole tiles."""
    rows = 80
    x, y = np.empty((rows, classes), np.float32), np.empty(rows, np.int64)
    for k, regime in enumerate(REGIMES):
        x[k :: len(REGIMES)], y[k :: len(REGIMES)], _ = cases.Case(
            regime, classes, len(range(k, rows, len(REGIMES)))
        ).make(np.float32)
    y[5::11] = -100
    exact = oracle.reference(x, y, reduction="none")
    x[5] = np.nan
    x[20, 0] = np.inf
    with pyce.use_backend("numba"):
        clean = x.copy()
        clean[20, 0] = 0.0
        alike = pyce.cross_entropy_with_grad(clean, y, reduction="none")
        for labels in (y, y.astype(np.int32)):
            for order in (x, np.ascontiguousarray(x.T)):
                axis = -1 if order is x else 0
                loss, grad, lse = pyce.cross_entropy_with_grad(
                    order, labels, axis=axis, reduction="none", return_lse=True
                )
                grad = grad if order is x else grad.T
                alone = pyce.cross_entropy(order, labels, axis=axis, reduction="none")
                assert alone.tobytes() == loss.tobytes()
                again = pyce.cross_entropy_backward(
                    1.0, order, labels, lse, axis=axis, reduction="sum"
                )
                again = again if order is x else again.T
                # The row with the infinite logit is computed by other formulas; its neighbours are
                # not.
                assert np.isnan(loss[20])
                assert np.isnan(grad[20]).any()
                others = np.arange(rows) != 20
                assert loss[others].tobytes() == alike[0][others].tobytes()
                assert grad[others].tobytes() == alike[1][others].tobytes()
                for part in (slice(0, 20), slice(21, None)):
                    check_loss(loss[part], exact.loss[part])
                    check_array(grad[part], exact.grad[part])
                    check_array(again[part], exact.grad[part])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((100, 2), 1), ((131, 10), 1), ((77, 100), 1), ((5, 4999), 1), ((3, 7, 80), 1), ((9, 50), 0)],
    ids=str,
)
def test_gradients_past_the_caches_have_the_same_bytes(monkeypatch, shape, axis, dtype):
    """At every distance from a cache line, and in place."""
    from pyce._backends.numba import _layout

    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    x = rng.normal(size=shape).astype(dtype)
    y = rng.integers(0, shape[axis], [n for k, n in enumerate(shape) if k != axis])
    y.flat[::7] = -100
    memory = np.full(size + 64, 7.0, dtype)
    with pyce.use_backend("numba"):
        expected = pyce.cross_entropy_with_grad(x, y, axis=axis)[1].tobytes()
        smoothed = pyce.cross_entropy_with_grad(x, y, axis=axis, label_smoothing=0.1)[1].tobytes()
        probabilities = pyce.softmax(x, axis=axis).tobytes()
        monkeypatch.setattr(_layout, "last_cache", lambda: 0)
        for begin in (16, 17, 24, 31):
            memory[:] = 7.0
            out = memory[begin : begin + size].reshape(shape)
            pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)
            assert out.tobytes() == expected
            pyce.cross_entropy_with_grad(x, y, axis=axis, label_smoothing=0.1, out=out)
            assert out.tobytes() == smoothed
            pyce.softmax(x, axis=axis, out=out)
            assert out.tobytes() == probabilities
            out[...] = x
            pyce.cross_entropy_with_grad(out, y, axis=axis, out=out)
            assert out.tobytes() == expected
            assert (memory[:begin] == 7.0).all()
            assert (memory[begin + size :] == 7.0).all()


def test_helpers_are_kept_off_the_processor_of_their_caller(monkeypatch):
    """Those that sleep or were last seen there; each may use what its caller may besides."""
    from pyce._backends.numba import _launch

    placed = []
    monkeypatch.setattr(_launch, "_processor", lambda: 2)
    monkeypatch.setattr(_launch.os, "sched_getaffinity", lambda thread: {1, 2, 3}, raising=False)
    monkeypatch.setattr(
        _launch.os, "sched_setaffinity", lambda *given: placed.append(given), raising=False
    )
    helpers = _launch._Helpers()
    for thread, asleep, processor in ((0, True, -1), (11, True, 1), (12, False, 2), (13, False, 3)):
        helper = _launch._Helper()
        helper.thread, helper.asleep, helper.processor = thread, asleep, processor
        helpers.all.append(helper)
    helpers._place()
    assert placed == [(11, {1, 3}), (12, {1, 3}), (13, {1, 2, 3})]
    helpers._place()
    assert len(placed) == 3
    monkeypatch.setattr(_launch.os, "sched_getaffinity", lambda thread: {2})
    helpers._place()
    assert placed[3:] == [(11, {2}), (12, {2}), (13, {2})]
    # On a system without these functions, nothing happens.
    monkeypatch.setattr(_launch, "_processor", lambda: -1)
    monkeypatch.setattr(_launch.os, "sched_getaffinity", None)
    helpers._place()
    assert len(placed) == 6


def test_an_error_of_the_compiler_is_raised_by_the_call():
    from pyce._backends.numba import _launch

    def fails():
        raise MemoryError("while compiling")

    with pytest.raises(MemoryError, match="while compiling"):
        _launch._uninterrupted(fails)
    assert _launch._uninterrupted(lambda: 3) == 3
