"""`linear_cross_entropy` against products in float64 and the loss of `cross_entropy`.

PYCE_TEST_EXHAUSTIVE=1 (`make test-exhaustive`) also computes more than 2^31 logits.
"""

import os
import tracemalloc

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
from every import every

import pyce
from pyce import _linear_chunks

CLASSES, FEATURES = 60, 12
OPTIONS = {
    "plain": {},
    "bias": {"linear_bias": True},
    "weights": {"weight": True, "sample_weight": True, "linear_bias": True},
    "smoothing": {"label_smoothing": 0.1},
    "softcap": {"softcap": 3.0, "linear_bias": True},
    "scale": {"logit_scale": 0.4, "softcap": 5.0, "linear_bias": True},
    "z-loss": {"lse_square_scale": 0.1},
    "normalizer": {"normalizer": 11.0},
}


def make(dtype, name="plain", soft=False, positions=(3, 7)):
    """Input, weight, target and options."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = rng.normal(size=(*positions, FEATURES)).astype(dtype)
    w = rng.normal(size=(CLASSES, FEATURES)).astype(dtype)
    options = dict(OPTIONS[name])
    if "linear_bias" in options:
        options["linear_bias"] = rng.normal(size=CLASSES).astype(dtype)
    if "weight" in options:
        options["weight"] = rng.uniform(0.2, 2, CLASSES)
        options["sample_weight"] = rng.uniform(0.2, 2, positions)
    if soft:
        return x, w, rng.dirichlet(np.ones(CLASSES), positions), options
    y = rng.integers(0, CLASSES, positions)
    y.reshape(-1)[::4] = -100
    return x, w, y, options


def expected(x, w, target, options, reduction="mean"):
    """Loss, gradients and lse by float64 products."""
    options = dict(options)
    bias = options.pop("linear_bias", None)
    cap, scale = options.pop("softcap", None), options.pop("logit_scale", 1.0)
    x, w = x.astype(np.float64), w.astype(np.float64)
    z = scale * (x @ w.T + (0.0 if bias is None else bias.astype(np.float64)))
    t = np.tanh(z / cap) if cap else np.zeros_like(z)
    loss, g, lse = pyce.cross_entropy_with_grad(
        cap * t if cap else z, target, reduction=reduction, return_lse=True, **options
    )
    g = (g * (1.0 - t * t) * scale).reshape(-1, CLASSES)
    grads = (g @ w).reshape(x.shape), g.T @ x.reshape(-1, FEATURES), g.sum(axis=0)
    return loss, grads, lse, g


def close(got, right, dtype, factor=1):
    """Within the rounding of products: some units of the largest element."""
    unit = {"float64": 2.0**-50, "float32": 2.0**-21, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    largest = np.abs(right).max()
    np.testing.assert_allclose(
        np.asarray(got, np.float64), right, rtol=0, atol=factor * unit[dtype] * largest
    )


@every("soft", [False, True])
@every("name", OPTIONS)
@every("dtype", ["float32", "float64"])
def test_loss_and_gradients(backend, dtype, name, soft):
    x, w, target, options = make(dtype, name, soft)
    for reduction in ("mean", "none"):
        loss, grads, lse, _ = expected(x, w, target, options, reduction)
        for rows in (1, 5, 1000):
            chunk = rows * CLASSES * x.itemsize
            every = {**options, "reduction": reduction, "chunk_bytes": chunk, "return_lse": True}
            got, found, got_lse = pyce.linear_cross_entropy_with_grad(x, w, target, **every)
            assert got.dtype == found.input.dtype == found.linear_weight.dtype == x.dtype
            close(got, loss, dtype)
            close(got_lse, lse, dtype)
            for part, right in zip(found[:2], grads, strict=False):
                close(part, right, dtype, 4)
            if "linear_bias" in options:
                close(found.linear_bias, grads[2], dtype, 4)
            else:
                assert found.linear_bias is None
            got, got_lse = pyce.linear_cross_entropy(x, w, target, **every)
            close(got, loss, dtype)
            close(got_lse, lse, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_computed_in_float32(backend, dtype, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "_BLOCK_BYTES", 20 * FEATURES * 4)
    for name in ("plain", "bias", "softcap"):
        x, w, target, options = make(dtype, name)
        loss, grads, _, _ = expected(x, w, target, options)
        for tolerance in (None, 2.0**-20):
            got, found = pyce.linear_cross_entropy_with_grad(
                x, w, target, chunk_bytes=1000, filter_tolerance=tolerance, **options
            )
            assert got.dtype == np.float32
            close(got, loss, "float32")
            for part, right in zip(found, grads, strict=False):
                if part is not None:
                    assert part.dtype == x.dtype
                    close(part, right, dtype)


def test_conversions_of_half_types():
    """The same bits as those of NumPy and ml_dtypes."""
    bits = np.arange(2**16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(all="ignore"):
            every = bits.view(dtype)
            for part in (every[np.isfinite(every.astype(np.float32))], every):
                got = _linear_chunks.widened(part, np.empty(part.shape, np.float32))
                np.testing.assert_array_equal(got, part.astype(np.float32))
    wide = np.arange(0, 2**32, 40_009, dtype=np.uint64).astype(np.uint32)
    wide = np.concatenate([wide, (bits.astype(np.uint32) << 16) + 0x1000]).view(np.float32)
    halves = bits.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        ties = (halves + np.nextafter(bits.view(np.float16), np.float16(np.inf))) / np.float32(2)
        for part in (wide, ties, np.nextafter(ties, np.float32(0)), wide[np.abs(wide) < 6e4]):
            got = _linear_chunks.narrowed(part, np.empty(part.shape, np.float16))
            np.testing.assert_array_equal(got, part.astype(np.float16))
            assert (np.signbit(got) == np.signbit(part))[~np.isnan(part)].all()


def chunk_bound(x, w, options, losses, lse):
    """The most by which two float64 values of `losses` differ, by the docstring; Σ_c |b_c| is 1."""
    unit = 2.0**-53 if x.dtype == np.float64 else 2.0**-24
    gamma = (FEATURES + 3) * unit / (1 - (FEATURES + 3) * unit)
    sizes = (np.abs(x) @ np.abs(w).T).astype(np.float64)
    sizes = sizes + np.abs(options.get("linear_bias", np.zeros(CLASSES)))
    delta = 2 * gamma * options.get("logit_scale", 1.0) * sizes.max(axis=-1)
    delta += 16 * unit * options.get("softcap", 0.0)
    scale = options.get("lse_square_scale", 0.0)
    largest = np.maximum(losses - scale * lse**2, scale * lse**2)
    ulp = np.spacing(largest.astype(x.dtype)).astype(np.float64)
    return 2 * delta + scale * (2 * np.abs(lse) + delta) * delta + 4 * ulp


@pytest.mark.parametrize("name", ["plain", "bias", "smoothing", "softcap", "scale", "z-loss"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_depends_on_the_chunk_within_the_bound(backend, dtype, name, monkeypatch):
    """With products of any size, and with their terms in another order."""
    monkeypatch.setattr(_linear_chunks, "_FORWARD_CLASSES", 7)
    x, w, target, options = make(dtype, name)
    different = False
    for order in (slice(None), slice(None, None, -1)):
        h, v = np.ascontiguousarray(x[..., order]), np.ascontiguousarray(w[:, order])
        for rows in (1, 2, 3, 7, 16, 100):
            chunk = rows * CLASSES * x.itemsize
            got, lse = pyce.linear_cross_entropy(
                h, v, target, reduction="none", chunk_bytes=chunk, return_lse=True, **options
            )
            got = got.astype(np.float64)
            if order == slice(None) and rows == 1:
                first, bound = got, chunk_bound(x, w, options, got, lse)
            assert (np.abs(got - first) <= bound).all()
            different |= (got != first).any()
    assert different


@pytest.mark.parametrize(("regime", "classes"), [("random", 100), ("confident30", 300),
                                                 ("spread25", 2100), ("offset-1e4", 100),
                                                 ("offset-1e30", 100)])  # fmt: skip
def test_the_loss_of_blocks_of_classes_is_that_of_whole_rows(regime, classes, backend, monkeypatch):
    """In units in the last place, with the logits as products of a row and the unit matrix."""
    monkeypatch.setattr(_linear_chunks, "_FORWARD_CLASSES", 16)
    logits, target, _ = cases.Case(regime, classes, 5).make("float32")
    exact = oracle.softmax_rows(logits).minus_log_p[np.arange(5), target]
    eye = np.eye(classes, dtype=np.float32)
    got, lse = pyce.linear_cross_entropy(
        logits, eye, target, reduction="none", chunk_bytes=400, return_lse=True
    )
    assert oracle.ulp_error(got, exact).max() <= 2
    np.testing.assert_allclose(lse, pyce.logsumexp(logits.astype(np.float64)), atol=2.0**-22)


def test_rows_without_a_finite_loss_in_blocks_of_classes(backend, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "_FORWARD_CLASSES", 5)
    w = np.zeros((20, 3), np.float32)
    w[2, 0], w[13, 1], w[7, 2] = np.inf, np.nan, -np.inf
    b = np.zeros(20, np.float32)
    b[17] = -np.inf
    x = np.zeros((1, 3), np.float32)
    for bias, target in ((b, 17), (b, 3), (np.where(b == 0, -np.inf, b), 3)):
        for weight in (w, np.zeros_like(w)):
            options = {"linear_bias": bias.astype(np.float32), "reduction": "none"}
            whole = pyce.linear_cross_entropy(x, weight, [target], **options)
            got = pyce.linear_cross_entropy(x, weight, [target], chunk_bytes=20, **options)
            np.testing.assert_array_equal(got, whole)
            with np.errstate(invalid="ignore"):
                logits = x @ weight.T + options["linear_bias"]
            expected = pyce.cross_entropy(logits, [target], reduction="none")
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_features(backend, dtype):
    x, w = np.zeros((3, 0), dtype), np.zeros((CLASSES, 0), dtype)
    loss, grads = pyce.linear_cross_entropy_with_grad(x, w, [0, 1, 2])
    np.testing.assert_allclose(loss, np.log(CLASSES), rtol=1e-6)
    assert [g.shape for g in grads[:2]] == [x.shape, w.shape]


@pytest.mark.parametrize("positions", [(), (0,), (4,), (2, 3, 2)])
def test_shapes(backend, positions):
    x, w, target, _ = make("float64", positions=positions)
    probs = np.random.default_rng(1).random((*positions, 2 * CLASSES))[..., ::2]
    got = pyce.linear_cross_entropy(x, w, probs, reduction="none")
    np.testing.assert_allclose(got, expected(x, w, probs, {}, "none")[0], rtol=1e-12)
    target = np.where(target < 0, 3, target)
    loss, grads, lse = pyce.linear_cross_entropy_with_grad(
        x, w, target, reduction="none", return_lse=True
    )
    assert loss.shape == lse.shape == positions
    assert grads.input.shape == x.shape
    assert grads.linear_weight.shape == w.shape
    np.testing.assert_allclose(loss, expected(x, w, target, {}, "none")[0], rtol=1e-12)
    mean = pyce.linear_cross_entropy(x, w, target)
    assert np.isnan(mean) if 0 in positions else mean > 0


def test_any_layout_and_where_results_go(backend):
    x, w, target, _ = make("float64", positions=(5, 4))
    probs = np.random.default_rng(1).dirichlet(np.ones(CLASSES), (4, 5)).swapaxes(0, 1)
    for i, weight in (
        (x[::-1], w[::-1]), (np.asfortranarray(x), np.asfortranarray(w)), (x, w[:, ::-1]),
    ):  # fmt: skip
        out = (np.empty(x.shape), np.full(w.shape, np.nan), None)
        _, grads = pyce.linear_cross_entropy_with_grad(i, weight, target, chunk_bytes=999, out=out)
        assert grads.input is out[0]
        assert grads.linear_weight is out[1]
        _, exact, _, _ = expected(i, weight, target, {})
        close(grads.input, exact[0], "float64", 4)
        close(grads.linear_weight, exact[1], "float64", 4)
        _, grads = pyce.linear_cross_entropy_with_grad(i, weight, probs, chunk_bytes=999)
        _, exact, _, _ = expected(i, weight, probs, {})
        close(grads.linear_weight, exact[1], "float64", 4)


def test_ignored_and_bad_rows(backend):
    """An ignored row is not read; a row of NaN has the loss NaN, and no other has."""
    x, w, target, _ = make("float32")
    ignored = target == -100
    poisoned = np.where(ignored[..., None], np.float32(np.nan), x)
    for one, other in zip(
        pyce.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=999)[1][:2],
        pyce.linear_cross_entropy_with_grad(poisoned, w, target, chunk_bytes=999)[1][:2],
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert (pyce.linear_cross_entropy_with_grad(x, w, target)[1].input[ignored] == 0).all()
    bad = x.copy()
    bad[1, 2] = np.nan
    target[1, 2] = 0
    for tolerance in (None, 0.01):
        loss, grads = pyce.linear_cross_entropy_with_grad(
            bad, w, target, reduction="none", filter_tolerance=tolerance
        )
        assert np.argwhere(np.isnan(loss)).tolist() == [[1, 2]]
        assert np.isnan(grads.input[1, 2]).all()
        assert np.isnan(grads.input).sum() == FEATURES
    loss, grads = pyce.linear_cross_entropy_with_grad(x, w, np.full_like(target, -100))
    assert np.isnan(loss)
    assert not grads.input.any()
    assert not grads.linear_weight.any()


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"filter_tolerance": 0.1}], ids=str)
@pytest.mark.parametrize("kind", ["sample weight", "class weight", "probabilities"])
def test_a_row_without_coefficients_adds_nothing(backend, kind, options, monkeypatch):
    """Whatever its hidden state is: 0 · NaN = 0 in the products, too."""
    monkeypatch.setattr(_linear_chunks, "_WORTH_PACKING", 1.0)
    x, w, target, _ = make("float32", soft=kind == "probabilities")
    options = {**options, "reduction": "sum", "chunk_bytes": 2000, "return_lse": True}
    row = 1, 3
    if kind == "sample weight":
        options["sample_weight"] = np.ones(target.shape)
        options["sample_weight"][row] = 0
    elif kind == "class weight":
        target = target % (CLASSES - 1)
        target[row] = CLASSES - 1
        options["weight"] = np.arange(CLASSES)[::-1] / 8
    else:
        target[row] = 0
    x[row] = 0
    loss, grads, lse = pyce.linear_cross_entropy_with_grad(x, w, target, **options)
    assert not grads.input[row].any()
    for value in (np.nan, np.inf, -np.inf):
        x[row] = value
        got, found, of_x = pyce.linear_cross_entropy_with_grad(x, w, target, **options)
        assert got == loss
        np.testing.assert_array_equal(found.input, grads.input)
        np.testing.assert_array_equal(found.linear_weight, grads.linear_weight)
        of_x[row] = lse[row]
        np.testing.assert_array_equal(of_x, lse)


# Rows whose smallest elements are all alike, fall by powers, lie at two sizes, or are one alone.
ADVERSARIAL = {
    "equal": lambda c: np.zeros(c),
    "powers": lambda c: -0.5 * np.arange(c),
    "two sizes": lambda c: np.where(np.arange(c) < 3, 0.0, -np.log(1e4)),
    "at the limit": lambda c: np.where(np.arange(c) < 3, 0.0, np.log(2.0**-10 / c)),
    "confident": lambda c: np.where(np.arange(c) == 0, 40.0, -0.1 * np.arange(c)),
    "wrong": lambda c: np.where(np.arange(c) == 1, 40.0, -0.1 * np.arange(c)),
    "spread": lambda c: np.random.default_rng(0).normal(size=c) * 8,
}


@pytest.mark.parametrize("tolerance", [1.0, 2.0**-4, 2.0**-10, 2.0**-20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_bound_of_the_filter(kind, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "_WORTH_PACKING", 1.0)
    classes = 300
    x = np.stack([ADVERSARIAL[kind](classes)] * 2).astype(dtype)
    for options in ({}, {"label_smoothing": 0.1}, {"lse_square_scale": 0.01}):
        _, g = pyce.cross_entropy_with_grad(x, [0, 0], **options)
        g[1] *= 1e-30  # the bound is that of each row, whatever its size
        norms = np.abs(g.astype(np.float64)).sum(axis=1)
        for gradient, labels in ((g, None), (g, [0, 0]), (-g, [0, 0])):
            if labels and options:
                continue
            kept = _linear_chunks.kept_columns(gradient, tolerance, labels)
            assert kept is not None
            dropped = np.delete(gradient.astype(np.float64), kept, axis=1)
            assert (np.abs(dropped).sum(axis=1) <= 0.5 * tolerance * norms).all()
            if kind == "powers" and not options:
                assert len(kept) < classes


def test_filtered_gradients_are_within_the_bound(backend, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "_WORTH_PACKING", 1.0)
    x, w, target, options = make("float64", "bias")
    x *= 4
    loss, grads, _, g = expected(x, w, target, options)
    for tolerance in (2.0**-4, 2.0**-10):
        got, found = pyce.linear_cross_entropy_with_grad(
            x, w, target, filter_tolerance=tolerance, chunk_bytes=2000, **options
        )
        assert got == pyce.linear_cross_entropy(x, w, target, chunk_bytes=2000, **options)
        close(got, loss, "float64")
        close(found.linear_bias, grads[2], "float64", 4)
        size = np.abs(g).sum(axis=1)
        error = np.abs(found.input - grads[0]).reshape(-1, FEATURES)
        assert (error <= tolerance / 2 * size[:, None] * np.abs(w).max(axis=0) + 1e-15).all()
        flat = x.reshape(-1, FEATURES)
        error = np.abs(found.linear_weight - grads[1]).sum(axis=0)
        assert (error <= tolerance / 2 * (size[:, None] * np.abs(flat)).sum(axis=0) + 1e-15).all()
        assert error.max() > 0


def test_bad_arguments_leave_outputs(backend):
    x, w, target, _ = make("float32")
    out = tuple(np.full(a.shape, 7, np.float32) for a in (x, w))
    bias = np.zeros(CLASSES, np.float32)

    def refused(error, match, *arguments, **options):
        for call in (pyce.linear_cross_entropy, pyce.linear_cross_entropy_with_grad):
            more = {"out": (*out, None)} if call is pyce.linear_cross_entropy_with_grad else {}
            with pytest.raises(error, match=match):
                call(*arguments, **options, **more)
        assert all((a == 7).all() for a in out)

    refused(ValueError, r"input of shape \(3, 7, 11\) .* linear_weight of shape \(60, 12\)",
            x[..., 1:], w, target)  # fmt: skip
    refused(ValueError, r"linear_weight must have the shape \(C, D\)", x, w[0], target)
    refused(ValueError, r"linear_weight must have the shape \(C, D\)", x, w[:0], target)
    refused(ValueError, r"linear_bias of shape \(59,\) .* linear_weight of shape \(60, 12\)",
            x, w, target, linear_bias=bias[1:])  # fmt: skip
    refused(ValueError, r"target of shape \(3,\) does not fit input of shape \(3, 7, 12\)",
            x, w, target[:, 0])  # fmt: skip
    refused(TypeError, "target is float64 but shaped like class indices", x, w, target + 0.5)
    refused(TypeError, "target must be class indices of an integer dtype", x, w, None)
    refused(TypeError, "target has masked elements", x, w, np.ma.masked_equal(target, -100))
    refused(TypeError, "input is float32, but linear_weight is float64", x, w.astype("d"), target)
    refused(TypeError, "input is float32, but linear_bias is float64", x, w, target,
            linear_bias=bias.astype("d"))  # fmt: skip
    bad = target.copy()
    bad[2, 6] = 60
    refused(IndexError, r"target of row 20 is 60, outside the valid range 0\.\.59", x, w, bad)
    for name, value in (
        ("softcap", 0.0), ("softcap", -1.0), ("softcap", 1e39), ("softcap", 1e-40),
        ("chunk_bytes", 0), ("label_smoothing", 1.5), ("logit_scale", np.inf),
        ("lse_square_scale", np.nan), ("reduction", "average"),
    ):  # fmt: skip
        refused(ValueError, name, x, w, target, **{name: value})
    refused(ValueError, "truth value", x, w, target, return_lse=np.ones(2))
    with pytest.raises(ValueError, match="filter_tolerance must lie in"):
        pyce.linear_cross_entropy_with_grad(x, w, target, filter_tolerance=2, out=(*out, None))
    assert all((a == 7).all() for a in out)


def test_memory(backend):
    """Beyond inputs and results: `chunk_bytes`, a block of classes and 1 MiB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 8)).astype(np.float32)
    w = rng.normal(size=(4000, 8)).astype(np.float32)
    target = rng.integers(0, 4000, 1000)
    whole = len(x) * len(w) * 4
    chunk = whole // 64
    for options in ({}, {"softcap": 3.0}, {"linear_bias": w[:, 0].copy(), "filter_tolerance": 0.5}):
        pyce.linear_cross_entropy_with_grad(x[:9], w, target[:9], **options)  # compiles
        tracemalloc.start()
        try:
            pyce.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=chunk, **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= x.nbytes + 2 * w.nbytes + chunk + 2**20 < whole // 4


def test_bad_outputs():
    x, w, target, _ = make("float32")
    good = np.full(x.shape, 7, np.float32), np.full(w.shape, 7, np.float32)
    read_only = good[1].copy()
    read_only.flags.writeable = False
    for out, error, match in (
        ((good[0],), ValueError, "out must have three elements, got 1"),
        ((good[0], [1.0], None), TypeError, r"out.linear_weight must be a numpy.ndarray, got list"),
        (
            (good[0], good[1][1:], None),
            ValueError,
            r"must have the shape \(60, 12\) of linear_weight",
        ),
        (
            (good[0], good[1].astype("d"), None),
            TypeError,
            "must have the dtype float32 of linear_weight",
        ),
        (
            (good[0], np.ma.array(good[1], mask=True), None),
            TypeError,
            "weight has masked elements",
        ),
        (good[0], TypeError, "out must be a tuple of three arrays, got ndarray"),
        (1, TypeError, "out must be a tuple of three arrays, got int"),
        ((good[0], np.asfortranarray(good[1]), None), ValueError, "must be C-contiguous"),
        ((good[0], read_only, None), ValueError, "out.linear_weight must be writable"),
        ((good[0], w, None), ValueError, "out.linear_weight shares memory"),
        ((good[0], good[1], good[1][0]), ValueError, "there is no linear_bias"),
    ):
        with pytest.raises(error, match=match):
            pyce.linear_cross_entropy_with_grad(x, w, target, out=out)
        assert (good[0] == 7).all()
        assert (good[1] == 7).all()


@pytest.mark.parametrize("other", [">f4", ">f8", "unaligned"])
def test_outputs_of_any_byte_order_and_alignment(backend, other):
    """As `out` of `cross_entropy_with_grad`: the dtype of the argument with its byte order."""
    x, w, target, _ = make("float32")
    bias = w[:, 0].copy()
    if other != "unaligned":
        x, w, bias = (a.astype(other) for a in (x, w, bias))
    expected = pyce.linear_cross_entropy_with_grad(x, w, target, linear_bias=bias)[1]
    for dtype in {x.dtype, x.dtype.newbyteorder("=")}:
        out = tuple(
            np.zeros(a.nbytes + 1, np.uint8)[other == "unaligned" :][: a.nbytes]
            .view(dtype)
            .reshape(a.shape)
            for a in (x, w, bias)
        )
        _, grads = pyce.linear_cross_entropy_with_grad(x, w, target, linear_bias=bias, out=out)
        for grad, place, right in zip(grads, out, expected, strict=True):
            assert grad is place
            np.testing.assert_array_equal(grad, right)


def test_an_interrupt_between_chunks(backend, monkeypatch):
    """The process is usable afterwards."""
    x, w, target, _ = make("float32")
    before = pyce.linear_cross_entropy(x, w, target)
    original, calls = _linear_chunks._multiply, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(_linear_chunks, "_multiply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pyce.linear_cross_entropy(x, w, target, chunk_bytes=1)
    monkeypatch.undo()
    assert pyce.linear_cross_entropy(x, w, target) == before


def test_rows_of_a_chunk_at_any_size():
    """Without overflow, evenly shared, and at least one."""
    head = _linear_chunks.Head
    for rows, classes, chunk in ((2**33, 2**18, 2**26), (5, 2**40, 1), (1000, 10, 2**62)):
        one = head.__new__(head)
        one.weight = np.broadcast_to(np.float32(0), (classes, 1))
        one.losses = np.empty(0, np.float32)
        one.chunk_bytes, one.filter_tolerance = chunk, 0.0
        one.grad_weight = one.softcap = None
        size = _linear_chunks.rows_of_chunk(one, rows)
        assert size == 1 or size * classes * 4 <= chunk
        assert -(-rows // size) <= max(1, -(-rows // max(1, chunk // (classes * 4)))) + 1


@pytest.mark.skipif(
    os.environ.get("PYCE_TEST_EXHAUSTIVE") != "1",
    reason="PYCE_TEST_EXHAUSTIVE=1 has it run; see make test-exhaustive",
)
def test_more_than_two_to_the_31_logits():
    rows, classes = 70_000, 32_000
    assert rows * classes > 2**31
    w = np.linspace(-1, 1, classes, dtype=np.float32)[:, None]
    x = np.zeros((rows, 1), np.float32)
    x[-1] = 2.0
    target = np.full(rows, classes - 1)
    lse = pyce.linear_cross_entropy(x, w, target, reduction="none", return_lse=True)[1]
    np.testing.assert_allclose(lse[:-1], np.log(classes), rtol=1e-6)
    np.testing.assert_allclose(lse[-1], pyce.logsumexp(2.0 * w[:, 0]), rtol=1e-6)
