"""Errors in units in the last place (ULP), against the exact results of `oracle`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

import pyce
from pyce._check import oracle, real_data
from pyce._check.findings import INFINITE, Failure, Findings, digest
from pyce._check.oracle import DD, Array, ulp_error
from pyce._check.promises import ISAS, LIMITS, THREADS
from pyce._check.regimes import Case
from pyce._selection import Selection


@dataclass
class Work:
    """Logits, a target and options, for which results are compared with the exact ones.

    row      the row of the table that the errors belong to
    options  keyword arguments of `cross_entropy`; the reduction is "none" unless it is given
    """

    row: str
    case: str
    logits: Array
    target: Array
    options: dict[str, Any] = field(default_factory=dict)
    matrix: bool = False  # whether softmax and log_softmax are compared as well
    limits: ClassVar[dict[str, float]] = LIMITS["cross-entropy"]

    def __post_init__(self) -> None:
        self.options = {"reduction": "none", **self.options}

    @property
    def dtype(self) -> str:
        return self.logits.dtype.name

    def exact(self) -> dict[str, tuple[DD, Array | None]]:
        """{kind: (exact result, size of its terms)}; None if the unit is that of the result."""
        right = oracle.reference(self.logits, self.target, **self.options)
        hard = self.target.dtype.kind in "iu" or bool(np.isin(self.target, (0.0, 1.0)).all())
        spread = "label_smoothing" in self.options or not hard
        found: dict[str, tuple[DD, Array | None]] = {
            "loss": (right.loss, None),
            "gradient": (right.grad, right.terms if spread else None),
        }
        if self.matrix:
            found["softmax"] = (right.soft.p, None)
            found["log_softmax"] = (-right.soft.minus_log_p, None)
        return found

    def answers(self) -> list[tuple[str, str, Array]]:
        """(kind, name of the call, result) for each result of the selected backend."""
        x, target, options = self.logits, self.target, self.options
        loss, lse = pyce.cross_entropy(x, target, return_lse=True, **options)
        fused, grad = pyce.cross_entropy_with_grad(x, target, **options)
        ones = np.ones(lse.shape) if options["reduction"] == "none" else 1.0
        again = pyce.cross_entropy_backward(ones, x, target, lse, **options)
        found = [
            ("loss", "loss", loss),
            ("loss", "loss of the fused call", fused),
            ("gradient", "gradient", grad),
            ("gradient", "gradient from a saved lse", again),
        ]
        if self.matrix:
            found.append(("softmax", "softmax", pyce.softmax(x)))
            found.append(("log_softmax", "log_softmax", pyce.log_softmax(x)))
        return found


@dataclass
class BinaryWork(Work):
    """`Work` for `binary_cross_entropy`; `options` are its weights."""

    limits = LIMITS["binary cross-entropy"]

    def __post_init__(self) -> None: ...

    def exact(self) -> dict[str, tuple[DD, Array | None]]:
        right = oracle.bernoulli(self.logits, self.target, **self.options)
        return {"loss": (right.loss, None), "gradient": (right.grad, right.terms)}

    def answers(self) -> list[tuple[str, str, Array]]:
        loss, grad = pyce.binary_cross_entropy_with_grad(
            self.logits, self.target, reduction="none", **self.options
        )
        return [("loss", "loss", loss), ("gradient", "gradient", grad)]


def of_case(row: str, case: Case, dtype: str, matrix: bool = False) -> Work:
    logits, target, options = case.make(dtype)
    return Work(row, str(case), logits, target, options, matrix)


def compare(
    findings: Findings,
    work: Work,
    selections: Iterable[Selection],
    peers: Mapping[str, Callable[[Work], list[tuple[str, str, Array]]]] | None = None,
) -> None:
    """Compare every selection with the exact results; the errors of peers are only recorded."""
    right = work.exact()
    judged: dict[str, str] = {}  # {backend: digest of its first results}
    for selection in selections:
        with findings.guarded("accuracy", selection, work.dtype, work.case), selection.selected():
            answers = work.answers()
            mine = digest(array for _, _, array in answers)
            if selection.isa and selection.name in judged:
                findings.same(ISAS, selection, work.dtype, work.case, mine, judged[selection.name])
                if mine == judged[selection.name]:
                    continue
            judged.setdefault(selection.name, mine)
            for kind, what, got in answers:
                judge(findings, work, selection, kind, what, got, right[kind])
    for name, answer in (peers or {}).items():
        for kind, _, got in answer(work):
            error, normal = errors(kind, got, *right[kind], work.limits[kind])
            _record(findings, work, name, kind, error[normal])


def errors(
    kind: str, got: Any, right: DD, terms: Array | None, limit: float
) -> tuple[Array, Array]:
    """The error of each number in ULP, and a mask of those whose exact value is a normal number.

    Where the exact value is subnormal, the error of a loss is in units of their spacing; any other
    result has the error 0 if it has the right sign and is at most the smallest normal number, and
    is infinitely wrong otherwise.
    """
    got = np.asarray(got)
    with np.errstate(all="ignore"):
        return _errors(kind, got, right, terms, limit)


def _errors(
    kind: str, got: Array, right: DD, terms: Array | None, limit: float
) -> tuple[Array, Array]:
    error = ulp_error(got, right, terms)
    size = np.abs(right.hi) if terms is None else np.maximum(np.abs(right.hi), terms)
    tiny = oracle.smallest_normal(got.dtype)
    normal = ~(size < tiny)  # NaN and infinities too
    if kind == "loss":
        return error, normal
    wide = got.astype(np.float64)
    low = np.abs(wide) <= (tiny if terms is None else limit * tiny)
    if terms is None:
        low &= np.sign(wide) * np.sign(right.hi) >= 0.0
        low &= (right.hi != 0.0) | (np.abs(wide) <= oracle.smallest_subnormal(got.dtype))
    error = np.where(normal, error, np.where(low, 0.0, np.inf))
    if kind in ("softmax", "log_softmax"):
        error = np.where(wide > (1.0 if kind == "softmax" else 0.0), np.inf, error)
    return error, normal


def judge(
    findings: Findings,
    work: Work,
    selection: Selection,
    kind: str,
    what: str,
    got: Any,
    right: tuple[DD, Array | None],
) -> None:
    limit = work.limits[kind]
    error, normal = errors(kind, got, *right, limit)
    worst = min(float(error.max(initial=0.0)), INFINITE)
    _record(findings, work, selection.name, kind, error[normal])
    key = (work.dtype, work.row, selection.name, kind)
    failure = None
    if worst > limit:
        findings.peaks[key] = max(findings.peaks.get(key, 0.0), worst)
        at = np.unravel_index(np.argmax(error), error.shape)
        failure = Failure(
            check="accuracy",
            backend=str(selection),
            dtype=work.dtype,
            case=work.case,
            what=what + (f" at {tuple(map(int, at))}" if at else ""),
            got=repr(float(np.asarray(got)[at])),
            expected=repr(float(right[0].hi[at])),
            error=worst,
            limit=limit,
        )
    findings.compare("accuracy", failure, error.size)


def _record(findings: Findings, work: Work, candidate: str, kind: str, error: Array) -> None:
    key = (work.dtype, work.row, candidate, kind)
    if kind in ("loss", "gradient"):
        findings.spread.setdefault(key, []).append(np.ravel(error))
    if error.size:
        findings.peaks[key] = max(findings.peaks.get(key, 0.0), float(error.max()))


# ---------------------------------------------------------------------------------------------
# The rows of the table

# Class counts on both sides of every vector width, unrolling and block size.
CLASSES = (
    *(*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513),
    *(1023, 1024, 1025, 2047, 2048, 2049, 4097),
)
ROWS = {
    "lengths": "1 to 4097 classes",
    "axis": "class axis first or in the middle",
    "probabilities": "probabilities",
    "one-hot": "one-hot probabilities",
    "smoothing": "label smoothing",
    "weights": "class and sample weights",
    "ignored": "ignored rows, int32 labels",
    "reductions": "mean and sum",
    "binary": "binary cross-entropy",
    "shared": "with one thread and with all",
}


def regime(name: str, shapes: Iterable[tuple[int, int]], dtype: str) -> Iterator[Work]:
    """A regime of `regimes.REGIMES` in these shapes, or a data set of `real_data.DATA`."""
    if name in real_data.DATA:
        logits, labels = real_data.DATA[name]()
        case = f"{name}-{logits.shape[0]}x{logits.shape[1]}"
        yield Work(name, case, logits.astype(dtype), labels, matrix=True)
        return
    for rows, classes in shapes:
        yield of_case(name, Case(name, classes, rows), dtype, matrix=True)


def other(row: str, dtype: str) -> Iterator[Work]:
    """The work of a row of `ROWS`, except for "shared"."""
    if row == "lengths":
        for classes in CLASSES:
            yield of_case(row, Case("spread25", classes, 5), dtype, matrix=True)
    elif row == "axis":
        for classes in (1, 3, 21, 64, 65, 513, 1030):
            x, y, _ = Case("spread25", classes, 34).make(dtype)
            first, middle = x.T.copy(), x.reshape(2, 17, classes).swapaxes(1, 2).copy()
            yield Work(row, f"axis 0 of {first.shape}", first, y, {"axis": 0})
            yield Work(row, f"axis 1 of {middle.shape}", middle, y.reshape(2, 17), {"axis": 1})
    elif row == "reductions":
        for name in ("random", "confident30", "wrong60", "masked-inf"):
            for kind in ("mean", "sum"):
                case = Case(name, 100, 90, options=frozenset({"weight"}))
                x, y, options = case.make(dtype)
                yield Work(row, f"{case}, {kind}", x, y, {**options, "reduction": kind})
    elif row == "binary":
        for weighted in (False, True):
            yield _binary(row, dtype, weighted)
    else:
        for name in ("random", "spread25", "confident30", "offset-1e4"):
            for classes in (3, 10, 129, 1030):
                for case in _cases(row, name, classes):
                    work = of_case(row, case, dtype)
                    if row == "ignored":
                        work.target = work.target.astype(np.int32)
                    yield work


def _cases(row: str, name: str, classes: int) -> Iterator[Case]:
    """The cases of a row, with each of its kinds of targets and options."""
    rows = max(3, 2000 // classes)
    targets = {"probabilities": ("probabilities", "unnormalised"), "one-hot": ("one-hot",)}
    options: dict[str, tuple[set[str], ...]] = {
        "probabilities": (set(), {"weight", "sample_weight"}, {"smoothing"}),
        "smoothing": ({"smoothing"}, {"all-smoothing", "weight"}),
        "weights": ({"weight"}, {"weight", "sample_weight"}),
        "ignored": ({"ignore"}, {"ignore", "weight", "sample_weight"}),
    }
    for target in targets.get(row, ("labels",)):
        for some in options.get(row, (set(),)):
            yield Case(name, classes, rows, target, frozenset(some))


def _binary(row: str, dtype: str, weighted: bool) -> BinaryWork:
    rng = np.random.default_rng(0)
    x, t = rng.uniform(-80, 80, 3001), rng.random(3001)
    x[::2] /= 40
    t[::3], t[1::3] = 1, 0
    options = {}
    if weighted:
        options = {k: rng.uniform(0.2, 2, 3001).astype(dtype) for k in ("weight", "pos_weight")}
    case = "3001, with weights" if weighted else "3001"
    return BinaryWork(row, case, x.astype(dtype), t.astype(dtype), options)


def shared(findings: Findings, dtype: str, selections: Iterable[Selection]) -> None:
    """Compare some rows of a large batch, which every backend shares among threads, with exact
    results: with one thread and with all.
    """
    rows, classes = 4300, 1000  # more than 2²² elements, from which Numba uses threads
    x, y, _ = Case("spread25", classes, rows).make(dtype)
    some = np.arange(0, rows, 215)
    work = Work("shared", f"spread25-{rows}x{classes}", x[some], y[some])
    right = work.exact()
    every = pyce.get_num_threads()
    for selection in selections:
        seen = ""
        for threads in sorted({1, every}):
            case = f"{work.case}, {threads} thread" + "s" * (threads > 1)
            with findings.guarded("accuracy", selection, dtype, case), selection.selected(threads):
                parts = Work("shared", case, x, y).answers()
                named = Work("shared", case, x[some], y[some])
                for kind, what, got in parts:
                    judge(findings, named, selection, kind, what, got[some], right[kind])
                mine = digest(array for _, _, array in parts)
                if selection.name == "c" and seen:
                    findings.same(THREADS, selection, dtype, case, mine, seen)
                seen = mine
