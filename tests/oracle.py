"""Reference results, by code that shares nothing with the backends.

Two oracles, checked against each other in `test_oracle.py`:

- `textbook`: the formulas as books print them, in mpmath with so many digits that no cancellation
  matters. For a handful of rows.
- `reference`, of `pyce._check.oracle`: the same in double-double arithmetic, for any number of
  classes.

`ulp_error` measures a result against either.
"""

from __future__ import annotations

import mpmath
import numpy as np

from pyce._check.oracle import (
    DD,
    as_dd,
    bernoulli,
    log,
    reference,
    smallest_normal,
    softmax_rows,
    ulp,
    ulp_error,
)

__all__ = [
    "DD",
    "DIGITS",
    "as_dd",
    "bernoulli",
    "digits_for",
    "log",
    "reference",
    "smallest_normal",
    "softmax_rows",
    "split",
    "textbook",
    "ulp",
    "ulp_error",
]

DIGITS = 700  # exp(-1400) next to 1 leaves more than 60 digits


def digits_for(x):
    """Digits of which sixty remain when the smallest probability of a row is subtracted from 1."""
    finite = x[np.isfinite(x)].astype(np.float64)
    with np.errstate(over="ignore"):
        lost = np.ptp(finite) / np.log(10) + 1 if finite.size else 0.0
    return int(min(DIGITS, 60 + lost))


def textbook(x, t, w=None, eps=0.0, digits=DIGITS):
    """Loss, lse, gradient and softmax of one row of floats, each an mpf or a list of them."""
    with mpmath.workdps(digits):
        x = [mpmath.mpf(float(v)) for v in x]
        t = [mpmath.mpf(float(v)) for v in t]
        w = [mpmath.mpf(1)] * len(x) if w is None else [mpmath.mpf(float(v)) for v in w]
        eps = mpmath.mpf(float(eps))
        t = [(1 - eps) * v + eps / len(x) for v in t]
        total = mpmath.fsum(mpmath.exp(v) for v in x)
        p = [mpmath.exp(v) / total for v in x]
        b = [u * v for u, v in zip(w, t, strict=True)]
        loss = -mpmath.fsum(u * mpmath.log(v) for u, v in zip(b, p, strict=True) if u)
        coefficients = mpmath.fsum(b)
        grad = [v * coefficients - u for u, v in zip(b, p, strict=True)]
        return loss, mpmath.log(total), grad, p


def split(value):
    """mpf numbers as DD."""
    with mpmath.workdps(DIGITS):
        values = value if isinstance(value, list) else [value]
        hi = [float(v) for v in values]
        lo = [float(v - h) for v, h in zip(values, hi, strict=True)]
    result = DD(hi, lo)
    return result if isinstance(value, list) else result[0]
