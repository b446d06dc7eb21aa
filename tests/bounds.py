"""Checks of results against the oracle: the promised errors in units in the last place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle

LOSS_ULP = 2
GRAD_ULP = 4


def check_loss(actual, exact, bound=LOSS_ULP):
    error = oracle.ulp_error(actual, exact)
    highest = float(error.max(initial=0.0))
    assert highest <= bound, worst(error, actual, exact)


def check_array(actual, exact, terms=None):
    """Check that normal numbers are within 4 ULP, and smaller ones between zero and the smallest
    normal number. With `terms`, the error is relative to these, wherever they are normal numbers.
    """
    tiny = oracle.smallest_normal(actual.dtype)
    size = np.abs(exact.hi) if terms is None else np.maximum(np.abs(exact.hi), terms)
    normal = ~(size < tiny)  # NaN and infinities too
    error = np.where(normal, oracle.ulp_error(actual, exact, terms), 0.0)
    highest = float(error.max(initial=0.0))
    assert highest <= GRAD_ULP, worst(error, actual, exact)
    got = actual.astype(np.float64)
    low = ~normal
    assert (np.abs(got[low]) <= GRAD_ULP * tiny).all()
    if terms is None:
        assert (np.abs(got[low]) <= tiny).all()
        assert (got[low] * exact.hi[low] >= 0.0).all()
        # The oracle has 0 for what is not more than half of the smallest number.
        smallest = float(ml_dtypes.finfo(actual.dtype).smallest_subnormal)
        assert (np.abs(got[exact.hi == 0.0]) <= smallest).all()


def worst(error, actual, exact):
    where = np.unravel_index(np.argmax(error), error.shape)
    return (
        f"{error[where]:.4g} ULP at {where}: got {np.asarray(actual)[where]!r}, "
        f"exact {exact.hi[where]!r}"
    )


def round_once(values, dtype):
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(dtype)


def same_bits(actual, expected):
    """Check that the bytes are the same; any NaN matches any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = np.isnan(expected.astype(np.float32))
    differ = (actual.view(np.uint16) != expected.view(np.uint16)) & ~nan
    differ |= nan & ~np.isnan(actual.astype(np.float32))
    assert not differ.any(), f"{differ.sum()} differ, first at {np.argwhere(differ)[0]}"
