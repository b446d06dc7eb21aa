"""Half types, labels out of range, and special values."""

from __future__ import annotations

from typing import Any

import numpy as np

import pyce
from pyce._check import oracle
from pyce._check.accuracy import Work
from pyce._check.findings import Failure, Findings
from pyce._check.oracle import DD, LN2, Array, ulp_error
from pyce._check.promises import HALF, LABELS, SPECIAL
from pyce._check.regimes import Case
from pyce._check.same_bytes import batch
from pyce._selection import Selection

# ---------------------------------------------------------------------------------------------
# Half types


def half_types(findings: Findings, dtype: Any, selection: Selection) -> None:
    """Compare half types with float32: the same loss and lse, the other results rounded once."""
    dtype = np.dtype(dtype)
    for name in ("random", "spread25", "confident10", "runner-up", "offset100", "masked-inf"):
        for classes, rows in ((3, 300), (10, 300), (100, 90), (1030, 9), (5000, 2)):
            for options in ((), ("weight", "smoothing")):
                case = Case(name, classes, rows, "labels", frozenset(options))
                guard = findings.guarded("half types", selection, dtype.name, str(case))
                with guard, selection.selected():
                    _half(findings, dtype, selection, case)


def _half(findings: Findings, dtype: np.dtype[Any], selection: Selection, case: Case) -> None:
    x, y, options = case.make(dtype)
    options["reduction"] = "none"
    pairs = []
    for one in (x, x.astype(np.float32)):
        loss, grad, lse = pyce.cross_entropy_with_grad(one, y, return_lse=True, **options)
        back = pyce.cross_entropy_backward(np.ones(len(x)), one, y, lse, **options)
        pairs.append((loss, lse, grad, back, pyce.softmax(one), pyce.log_softmax(one)))
    what = ("loss", "lse", "gradient", "gradient from a saved lse", "softmax", "log_softmax")
    for name, half, wide in zip(what, *pairs, strict=True):
        with np.errstate(all="ignore"):
            rounded = wide.astype(half.dtype)
        a, b = half.astype(np.float64), rounded.astype(np.float64)
        same = (a == b) & (np.signbit(a) == np.signbit(b)) | np.isnan(a) & np.isnan(b)
        failure = None
        if not same.all():
            at = np.unravel_index(np.argmin(same), same.shape)
            failure = Failure(
                check="half types",
                backend=str(selection),
                dtype=dtype.name,
                case=str(case),
                what=f"{name} at {tuple(map(int, at))} is not the float32 result rounded once",
                got=repr(float(a[at])),
                expected=repr(float(b[at])),
            )
        findings.compare(HALF, failure, same.size)


# ---------------------------------------------------------------------------------------------
# Labels out of range


def bad_labels(findings: Findings, dtype: Any, selection: Selection) -> None:
    """Expect an IndexError that names row, value and range, and outputs that are not written."""
    dtype = np.dtype(dtype)
    for rows, classes in ((9, 10), (20_000, 10), (7, 5000)):
        x, y = batch(rows, classes, dtype)
        lse = np.zeros(rows)
        for value in (classes, -1, -101, 2**31 - 1):
            for kind in (np.int32, np.int64):
                labels = y.astype(kind)
                labels[rows - 2] = value
                label = f"{np.dtype(kind).name} label {value} in row {rows - 2} of {rows}x{classes}"
                for call in ("fused", "fused, in place", "backward"):
                    out = x.copy() if "place" in call else np.full_like(x, 7)
                    before = out.tobytes()
                    with selection.selected():
                        raised = _raised(call, out if "place" in call else x, labels, lse, out)
                    named = (f"row {rows - 2} ", f" {value},", f"0..{classes - 1} ")
                    about = {
                        "check": "errors",
                        "backend": str(selection),
                        "dtype": dtype.name,
                        "case": label,
                        "what": call,
                    }
                    failure = None
                    if not (
                        isinstance(raised, IndexError) and all(n in str(raised) for n in named)
                    ):
                        got = f"{type(raised).__name__}: {raised}" if raised else "no error"
                        expected = f"IndexError with row {rows - 2}, {value} and 0..{classes - 1}"
                        failure = Failure(**about, got=got, expected=expected)
                    findings.compare(LABELS, failure)
                    failure = None
                    if out.tobytes() != before:
                        failure = Failure(**about, got="out was written", expected="out as it was")
                    findings.compare(LABELS, failure)


def _raised(call: str, x: Array, labels: Array, lse: Array, out: Array) -> Exception | None:
    try:
        if call == "backward":
            pyce.cross_entropy_backward(1.0, x, labels, lse, out=out)
        else:
            pyce.cross_entropy_with_grad(x, labels, out=out)
    except Exception as error:
        return error
    return None


# ---------------------------------------------------------------------------------------------
# Special values

_NAN, _INF = float("nan"), float("inf")
_REGULAR = ([0.0, 0.0, -_INF], 1, LN2, [0.5, -0.5, 0.0])
# {name: (logits, label, loss, gradient) of a row}; each is put between regular rows.
SPECIALS: dict[str, tuple[list[float], int, Any, list[float]]] = {
    "NaN": ([0.0, _NAN, 1.0], 0, _NAN, [_NAN] * 3),
    "NaN at the target": ([_NAN, 0.0, 1.0], 0, _NAN, [_NAN] * 3),
    "+inf": ([0.0, _INF, 1.0], 0, _NAN, [_NAN] * 3),
    "+inf at the target": ([_INF, 0.0, 1.0], 0, _NAN, [_NAN] * 3),
    "only −inf": ([-_INF] * 3, 2, _NAN, [_NAN] * 3),
    "−inf off the target": ([2.0, -_INF, 2.0], 0, LN2, [-0.5, 0.0, 0.5]),
    "−inf at the target": ([-_INF, 1.0, 1.0], 0, _INF, [-1.0, 0.5, 0.5]),
    "NaN in an ignored row": ([_NAN] * 3, -100, 0.0, [0.0] * 3),
    "+inf in an ignored row": ([_INF] * 3, -100, 0.0, [0.0] * 3),
}


def special_values(findings: Findings, dtype: Any, selection: Selection) -> None:
    """Rows of special values between regular rows; a single class; batches without valid rows."""
    dtype = np.dtype(dtype)
    for name, special in SPECIALS.items():
        for rows in ([_REGULAR, special, _REGULAR], [special, _REGULAR] * 40):
            x, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
            losses = [oracle.as_dd(row[2]) for row in rows]
            loss = DD([one.hi for one in losses], [one.lo for one in losses])
            grad = np.array([row[3] for row in rows])
            _special(findings, dtype, selection, name, (x, y, loss, grad), "none")
    one = np.array([[3.0], [-7.0], [0.0]]), np.zeros(3, int), DD(np.zeros(3)), np.zeros((3, 1))
    _special(findings, dtype, selection, "one class", one, "none")
    for count, name in ((4, "every row ignored"), (0, "no rows")):
        none = np.full((count, 3), _NAN), np.full(count, -100)
        for reduction, value in (("mean", _NAN), ("sum", 0.0)):
            given = (*none, DD(value), np.zeros((count, 3)))
            _special(findings, dtype, selection, name, given, reduction)


def _special(
    findings: Findings,
    dtype: np.dtype[Any],
    selection: Selection,
    name: str,
    given: tuple[Array, Array, DD, Array],
    reduction: str,
) -> None:
    x, y, loss, grad = given
    case = f"{name}, {reduction}"
    with findings.guarded("special values", selection, dtype.name, case), selection.selected():
        work = Work("", case, x.astype(dtype), y, {"reduction": reduction})
        for kind, what, got in work.answers():
            right = loss if kind == "loss" else oracle.as_dd(grad)
            good = ulp_error(got, right) <= work.limits[kind]
            good &= (right.hi != 0.0) | (got == 0.0)
            failure = None
            if not good.all():
                failure = Failure(
                    check="special values",
                    backend=str(selection),
                    dtype=dtype.name,
                    case=case,
                    what=what,
                    got=str(np.asarray(got).tolist()),
                    expected=str(right.hi.tolist()),
                )
            findings.compare(SPECIAL, failure, np.size(got))
