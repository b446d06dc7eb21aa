"""What pyce promises, and whether it holds here: the comparisons behind `python -m pyce check`.

Each function adds to `Findings` what it saw of the backends it is given. The exact results are
those of `exact.py`, which shares no code with the backends; docs/semantics.md has the promises.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

import pyce
from pyce._bench import exact, measure, real
from pyce._bench.candidates import Candidate
from pyce._bench.exact import DD, LN2, Array, ulp_error
from pyce._bench.regimes import Case

# The largest error allowed, in units in the last place. A gradient is measured by itself, or by the
# larger of its two terms where these can cancel: for probabilities and under smoothing.
LIMITS = {
    "cross-entropy": {"loss": 2.0, "gradient": 4.0, "softmax": 4.0, "log_softmax": 4.0},
    "binary cross-entropy": {"loss": 4.0, "gradient": 6.0},
}
# What else is promised, in the words that the command prints.
ISAS = "the same bytes on every instruction set"
THREADS = "the same bytes with any number of threads"
PLACE = "the same bytes for a row alone and wherever the class axis is"
MACHINES = "the same bytes as on other machines"
HALF = "half types: the float32 result rounded once"
LABELS = "a bad label raises IndexError, and no output is touched"
SPECIAL = "special values: NaN, infinities, one class, no row that counts"

HALVES = ("float16", "bfloat16")

# SHA-256 of `known_results` for each dtype: the same on every machine. A change that is meant to
# change bytes writes them anew, as tests/golden.json; the check shows those that it got.
KNOWN = {
    "float16": "26f473b7ad3c94cdc92d8fcd7b06e323a7f66954edce8f3a8f926ac14fdf4d5e",
    "bfloat16": "cf5f60385ffd13d165ea7c4bfa2b0daf5917c725368e4643666df36b453a83d7",
    "float32": "f598317b2b78f3477ba64b13c16c548416df2520052a2a3c289604ec6a4643dd",
    "float64": "53e7e2dfe8053ad9df8ab2ecf43c8a27bb5b1ed0c45f91829c7673a01958c41e",
}

# Upper ends of a histogram's bins. The nearest number to the truth is within ½.
EDGES = (0.5, 1, 2, 4, 10, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, np.inf)
# What an infinite error is written as: JSON has no infinity.
INFINITE = 1e300


@dataclass(frozen=True)
class Runner:
    """A backend; `isa` is the instruction set that C is held to, else None."""

    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend

    @contextmanager
    def selected(self, threads: int | None = None) -> Iterator[None]:
        threads = threads or pyce.get_num_threads()
        with Candidate(
            str(self), "backend", measure.operation, threads, self.backend, self.isa
        ).selected():
            yield


@dataclass
class Failure:
    """A promise that is broken."""

    check: str  # "accuracy", "bytes", …
    backend: str  # with its instruction set
    dtype: str
    case: str
    what: str
    got: str
    expected: str
    error: float | None = None  # in ULP, where that is what is wrong
    limit: float | None = None

    def __str__(self) -> str:
        text = f"{self.backend}, {self.dtype}, {self.case}: {self.what}"
        if self.error is not None:
            size = "infinitely wrong" if self.error >= INFINITE else f"{self.error:.4g} ULP off"
            text += f" {size}, at most {self.limit:g} promised"
        return f"{text}: got {self.got}, expected {self.expected}"


@dataclass
class Findings:
    """What was seen so far.

    numbers   how many results were compared
    peaks     {(dtype, row of the table, candidate, kind): largest error}
    spread    the same keys, kinds loss and gradient: every error, until `statistics` takes them
    held      {a check in words: how often it held and how often it did not}
    """

    failures: list[Failure] = field(default_factory=list)
    numbers: int = 0
    peaks: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    spread: dict[tuple[str, str, str, str], list[Array]] = field(default_factory=dict)
    held: dict[str, list[int]] = field(default_factory=dict)

    def compare(self, check: str, failure: Failure | None, numbers: int = 0) -> None:
        """Count one comparison of the check, and what it found broken."""
        self.held.setdefault(check, [0, 0])[failure is not None] += 1
        self.numbers += numbers
        if failure:
            self.failures.append(failure)

    def same(
        self, check: str, runner: Runner, dtype: str, case: str, mine: str, other: str
    ) -> None:
        """Count one comparison of bytes by their SHA-256."""
        failure = None
        if mine != other:
            got, expected = (f"SHA-256 {name}" for name in (mine, other))
            failure = Failure("bytes", str(runner), dtype, case, f"not {check}", got, expected)
        self.compare(check, failure)

    @contextmanager
    def guarded(self, check: str, runner: Runner, dtype: str, case: str) -> Iterator[None]:
        """An exception where none is due is a failure, and not the end of the checks."""
        try:
            yield
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            self.compare(check, Failure(check, str(runner), dtype, case, "raised", got, "a result"))

    def take_statistics(self, dtype: str, row: str) -> dict[str, dict[str, Any]]:
        """{candidate: {kind: how its errors are spread}}, which are then forgotten."""
        found: dict[str, dict[str, Any]] = {}
        for key in [key for key in self.spread if key[:2] == (dtype, row)]:
            errors = np.concatenate(self.spread.pop(key))
            found.setdefault(key[2], {})[key[3]] = statistics(errors)
        return found


def statistics(errors: Array) -> dict[str, Any]:
    """How errors are spread; none at all where the truth is below the normal numbers."""
    counts = np.bincount(np.searchsorted(EDGES, errors), minlength=len(EDGES))
    errors = np.minimum(errors, INFINITE)
    some = errors.size > 0
    return {
        "numbers": errors.size,
        "right": float((errors <= 0.5).mean()) if some else None,
        "median": float(np.median(errors)) if some else None,
        "99.9%": float(np.quantile(errors, 0.999, method="higher")) if some else None,
        "max": float(errors.max()) if some else None,
        "histogram": counts.tolist(),
    }


# ---------------------------------------------------------------------------------------------
# Accuracy


@dataclass
class Work:
    """Logits, a target and options whose exact results are compared with.

    row      of the table that it belongs to
    options  of `cross_entropy`; what is not given is its default, but for reduction "none"
    """

    row: str
    case: str
    logits: Array
    target: Array
    options: dict[str, Any] = field(default_factory=dict)
    matrix: bool = False  # whether softmax and its logarithm are compared, too
    limits: ClassVar[dict[str, float]] = LIMITS["cross-entropy"]

    def __post_init__(self) -> None:
        self.options = {"reduction": "none", **self.options}

    @property
    def dtype(self) -> str:
        return self.logits.dtype.name

    def exact(self) -> dict[str, tuple[DD, Array | None]]:
        """{kind: (the exact result, the size of its terms if the error is measured by that)}."""
        right = exact.reference(self.logits, self.target, **self.options)
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
        """(kind, which call, result) of the selected backend."""
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
    """Of `binary_cross_entropy`; `options` holds weights."""

    limits = LIMITS["binary cross-entropy"]

    def __post_init__(self) -> None: ...

    def exact(self) -> dict[str, tuple[DD, Array | None]]:
        right = exact.bernoulli(self.logits, self.target, **self.options)
        return {"loss": (right.loss, None), "gradient": (right.grad, right.terms)}

    def answers(self) -> list[tuple[str, str, Array]]:
        loss, grad = pyce.binary_cross_entropy_with_grad(
            self.logits, self.target, reduction="none", **self.options
        )
        return [("loss", "loss", loss), ("gradient", "gradient", grad)]


def of_case(row: str, case: Case, dtype: str, matrix: bool = False) -> Work:
    logits, target, options = case.make(dtype)
    return Work(row, str(case), logits, target, options, matrix)


def accuracy(
    findings: Findings,
    work: Work,
    runners: Iterable[Runner],
    peers: Mapping[str, Callable[[Work], list[tuple[str, str, Array]]]] | None = None,
) -> None:
    """Compare every runner with the exact results; peers are compared, but not judged."""
    right = work.exact()
    judged: dict[str, str] = {}  # of each backend, the bytes that were judged first
    for runner in runners:
        with findings.guarded("accuracy", runner, work.dtype, work.case), runner.selected():
            answers = work.answers()
            mine = digest(array for _, _, array in answers)
            if runner.isa and runner.backend in judged:
                findings.same(ISAS, runner, work.dtype, work.case, mine, judged[runner.backend])
                if mine == judged[runner.backend]:
                    continue
            judged.setdefault(runner.backend, mine)
            for kind, what, got in answers:
                _judge(findings, work, runner, kind, what, got, right[kind])
    for name, answer in (peers or {}).items():
        for kind, _, got in answer(work):
            error, normal = errors(kind, got, *right[kind], work.limits[kind])
            _record(findings, work, name, kind, error[normal])


def errors(
    kind: str, got: Any, right: DD, terms: Array | None, limit: float
) -> tuple[Array, Array]:
    """The error of each number in ULP, and where the truth is a normal number.

    Below the normal numbers a loss is judged by their spacing. Anything else must lie between 0 and
    the smallest normal number there, on the right side of 0; infinitely wrong where it does not.
    """
    got = np.asarray(got)
    with np.errstate(all="ignore"):
        return _errors(kind, got, right, terms, limit)


def _errors(
    kind: str, got: Array, right: DD, terms: Array | None, limit: float
) -> tuple[Array, Array]:
    error = ulp_error(got, right, terms)
    size = np.abs(right.hi) if terms is None else np.maximum(np.abs(right.hi), terms)
    tiny = exact.smallest_normal(got.dtype)
    normal = ~(size < tiny)  # NaN and infinities too
    if kind == "loss":
        return error, normal
    wide = got.astype(np.float64)
    low = np.abs(wide) <= (tiny if terms is None else limit * tiny)
    if terms is None:
        low &= np.sign(wide) * np.sign(right.hi) >= 0.0
        low &= (right.hi != 0.0) | (np.abs(wide) <= exact.smallest_subnormal(got.dtype))
    error = np.where(normal, error, np.where(low, 0.0, np.inf))
    if kind == "log_softmax":
        error = np.where(wide > 0.0, np.inf, error)
    return error, normal


def _judge(
    findings: Findings,
    work: Work,
    runner: Runner,
    kind: str,
    what: str,
    got: Any,
    right: tuple[DD, Array | None],
) -> None:
    limit = work.limits[kind]
    error, normal = errors(kind, got, *right, limit)
    worst = min(float(error.max(initial=0.0)), INFINITE)
    _record(findings, work, runner.backend, kind, error[normal])
    key = (work.dtype, work.row, runner.backend, kind)
    failure = None
    if worst > limit:
        findings.peaks[key] = max(findings.peaks.get(key, 0.0), worst)
        at = np.unravel_index(np.argmax(error), error.shape)
        failure = Failure(
            "accuracy",
            str(runner),
            work.dtype,
            work.case,
            what + (f" at {tuple(map(int, at))}" if at else ""),
            repr(float(np.asarray(got)[at])),
            repr(float(right[0].hi[at])),
            worst,
            limit,
        )
    findings.compare("accuracy", failure, error.size)


def _record(findings: Findings, work: Work, candidate: str, kind: str, error: Array) -> None:
    key = (work.dtype, work.row, candidate, kind)
    if kind in ("loss", "gradient"):
        findings.spread.setdefault(key, []).append(np.ravel(error))
    if error.size:
        findings.peaks[key] = max(findings.peaks.get(key, 0.0), float(error.max()))


# ---------------------------------------------------------------------------------------------
# What is compared with exact results: rows of the table

# Every vector width, unroll and block border, from both sides.
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
    "shared": "shared among threads, and not",
}


def regime(name: str, shapes: Iterable[tuple[int, int]], dtype: str) -> Iterator[Work]:
    """A regime of `regimes.REGIMES` in these shapes, or of `real.DATA` as it is."""
    if name in real.DATA:
        logits, labels = real.DATA[name]()
        case = f"{name}-{logits.shape[0]}x{logits.shape[1]}"
        yield Work(name, case, logits.astype(dtype), labels, matrix=True)
        return
    for rows, classes in shapes:
        yield of_case(name, Case(name, classes, rows), dtype, matrix=True)


def other(row: str, dtype: str) -> Iterator[Work]:
    """A row of `ROWS` but "shared"."""
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
                x, y, options = Case(name, 100, 90, options=frozenset({"weight"})).make(dtype)
                work = Work(row, f"{name}-90x100, {kind}", x, y, {**options, "reduction": kind})
                yield work
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
    """With what options a kind of target is tried."""
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


def shared(findings: Findings, dtype: str, runners: Iterable[Runner]) -> None:
    """Work large enough for every backend to share: some of its rows against exact results, with
    one thread and with all.
    """
    rows, classes = 4300, 1000  # more than 2²² elements, where Numba begins to share
    x, y, _ = Case("spread25", classes, rows).make(dtype)
    some = np.arange(0, rows, 215)
    work = Work("shared", f"spread25-{rows}x{classes}", x[some], y[some])
    right = work.exact()
    every = pyce.get_num_threads()
    for runner in runners:
        seen = ""
        for threads in sorted({1, every}):
            case = f"{work.case}, {threads} thread" + "s" * (threads > 1)
            with findings.guarded("accuracy", runner, dtype, case), runner.selected(threads):
                parts = Work("shared", case, x, y).answers()
                named = Work("shared", case, x[some], y[some])
                for kind, what, got in parts:
                    _judge(findings, named, runner, kind, what, got[some], right[kind])
                mine = digest(array for _, _, array in parts)
                if runner.backend == "c" and seen:
                    findings.same(THREADS, runner, dtype, case, mine, seen)
                seen = mine


# ---------------------------------------------------------------------------------------------
# Bytes, of the C backend

# Both sides of the borders between kernels; few rows, since all results are compared.
BATCHES = ((37, 1), (37, 3), (37, 10), (37, 33), (37, 100), (19, 513), (9, 1030), (5, 2049))
# Large enough to be shared among threads; one row is cut along its classes.
LARGE = ((20_000, 10), (2500, 100), (61, 5000), (3, 70_001))


def batch(rows: int, classes: int, dtype: Any) -> tuple[Array, Array]:
    """Logits and labels that are the same on every machine: NumPy froze these random numbers."""
    random = np.random.RandomState([rows, classes])
    x = (random.random_sample((rows, classes)) * 50 - 25).astype(dtype)
    y = (random.random_sample(rows) * classes).astype(np.int64)
    y[::5] = np.argmax(x[::5].astype(np.float64), axis=1)
    y[3::11] = -100
    if classes > 2:
        x[2::7, 0] = -np.inf
    return x, y


def results(x: Array, y: Array, axis: int = -1) -> Iterator[Any]:
    """What kernels compute, hard and soft, weighted and plain, with the class axis last."""
    classes = x.shape[axis]
    random = np.random.RandomState(classes)
    w = 0.5 + random.random_sample(classes)
    s = 0.5 + random.random_sample(y.shape)
    t = random.random_sample((*y.shape, classes)).astype(np.float32)
    t = np.ascontiguousarray(np.moveaxis(t, -1, axis))
    weighted = {"weight": w, "sample_weight": s, "label_smoothing": 0.1}
    for target, given in ((y, {}), (y, weighted), (t, {"weight": w})):
        for reduction in ("none", "mean"):
            options: dict[str, Any] = {"axis": axis, "reduction": reduction, **given}
            yield pyce.cross_entropy(x, target, **options)
            loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
            factor = s if reduction == "none" else 1.5
            back = pyce.cross_entropy_backward(factor, x, target, lse, **options)
            yield from (loss, np.moveaxis(grad, axis, -1), lse, np.moveaxis(back, axis, -1))
    yield np.moveaxis(pyce.softmax(x, axis), axis, -1)
    yield np.moveaxis(pyce.log_softmax(x, axis), axis, -1)
    yield pyce.logsumexp(x, axis)


def digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of all bytes of all results, as of a little-endian machine."""
    hashed = hashlib.sha256()
    for array in arrays:
        found = np.ascontiguousarray(array)
        if sys.byteorder == "big":
            found = found.byteswap()
        hashed.update(found.tobytes())
    return hashed.hexdigest()


def known_results(dtype: Any) -> str:
    """The digest that `KNOWN` holds, on the selected instruction set."""
    return digest(a for shape in BATCHES for a in results(*batch(*shape, dtype)))


def same_bytes(findings: Findings, dtype: Any, runners: list[Runner]) -> None:
    """On every instruction set of the C backend, with every number of threads, in every place."""
    name = np.dtype(dtype).name
    digests: dict[str, str] = {}
    for runner in runners:
        with findings.guarded("bytes", runner, name, "batches"), runner.selected():
            mine = known_results(dtype)
            if digests:
                findings.same(ISAS, runner, name, "batches", mine, digests["known"])
            digests.setdefault("known", mine)
            findings.same(MACHINES, runner, name, "batches", mine, KNOWN[name])
            _same_in_place(findings, dtype, runner)
        every = pyce.get_num_threads()
        for shape in LARGE if every > 1 else ():
            case = "x".join(map(str, shape))
            x, y = batch(*shape, dtype)
            seen = ""
            for threads in (1, every):
                with findings.guarded("bytes", runner, name, case), runner.selected(threads):
                    loss, grad, lse = pyce.cross_entropy_with_grad(x, y, return_lse=True)
                    back = pyce.cross_entropy_backward(1.0, x, y, lse)
                    mine = digest((loss, grad, lse, back, pyce.softmax(x)))
                    told = f"{case}, {threads} threads"
                    if seen:
                        findings.same(THREADS, runner, name, told, mine, seen)
                    seen = mine


def _same_in_place(findings: Findings, dtype: Any, runner: Runner) -> None:
    """The class axis first; a row alone."""
    name = np.dtype(dtype).name
    for shape in BATCHES:
        case = "x".join(map(str, shape))
        x, y = batch(*shape, dtype)
        last = digest(results(x, y))
        first = digest(results(np.ascontiguousarray(x.T), y, axis=0))
        findings.same(PLACE, runner, name, f"{case}, class axis first", first, last)
        options: dict[str, Any] = {"reduction": "none", "return_lse": True}
        whole = pyce.cross_entropy_with_grad(x, y, **options)
        row = slice(1, 2)
        alone = pyce.cross_entropy_with_grad(x[row], y[row], **options)
        within = digest(array[row] for array in whole)
        findings.same(PLACE, runner, name, f"{case}, row 1 alone", digest(alone), within)


# ---------------------------------------------------------------------------------------------
# Half types


def half_types(findings: Findings, dtype: Any, runner: Runner) -> None:
    """Loss and lse of the float32 computation, and its gradient rounded once."""
    dtype = np.dtype(dtype)
    for name in ("random", "spread25", "confident10", "runner-up", "offset100", "masked-inf"):
        for classes, rows in ((3, 300), (10, 300), (100, 90), (1030, 9), (5000, 2)):
            for options in ((), ("weight", "smoothing")):
                case = Case(name, classes, rows, "labels", frozenset(options))
                guard = findings.guarded("half types", runner, dtype.name, str(case))
                with guard, runner.selected():
                    _half(findings, dtype, runner, case)


def _half(findings: Findings, dtype: np.dtype[Any], runner: Runner, case: Case) -> None:
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
                "half types",
                str(runner),
                dtype.name,
                str(case),
                f"{name} at {tuple(map(int, at))} is not float32's rounded once",
                repr(float(a[at])),
                repr(float(b[at])),
            )
        findings.compare(HALF, failure, same.size)


# ---------------------------------------------------------------------------------------------
# Errors


def bad_labels(findings: Findings, dtype: Any, runner: Runner) -> None:
    """IndexError that names row, value and range; every output as it was, in place too."""
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
                    with runner.selected():
                        raised = _raised(call, out if "place" in call else x, labels, lse, out)
                    named = (f"row {rows - 2} ", f" {value},", f"0..{classes - 1} ")
                    about = ("errors", str(runner), dtype.name, label, call)
                    failure = None
                    if not (
                        isinstance(raised, IndexError) and all(n in str(raised) for n in named)
                    ):
                        got = f"{type(raised).__name__}: {raised}" if raised else "no error"
                        expected = f"IndexError with row {rows - 2}, {value} and 0..{classes - 1}"
                        failure = Failure(*about, got, expected)
                    findings.compare(LABELS, failure)
                    failure = None
                    if out.tobytes() != before:
                        failure = Failure(*about, "out was written", "out as it was")
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
_FINE = ([0.0, 0.0, -_INF], 1, LN2, [0.5, -0.5, 0.0])
# Rows by name: logits, label, loss, gradient. Each stands beside a row that is fine.
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


def special_values(findings: Findings, dtype: Any, runner: Runner) -> None:
    """Rows of special values beside rows that are fine; one class; no row that counts."""
    dtype = np.dtype(dtype)
    for name, special in SPECIALS.items():
        for rows in ([_FINE, special, _FINE], [special, _FINE] * 40):
            x, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
            losses = [exact.as_dd(row[2]) for row in rows]
            loss = DD([one.hi for one in losses], [one.lo for one in losses])
            grad = np.array([row[3] for row in rows])
            _special(findings, dtype, runner, name, (x, y, loss, grad), "none")
    one = np.array([[3.0], [-7.0], [0.0]]), np.zeros(3, int), DD(np.zeros(3)), np.zeros((3, 1))
    _special(findings, dtype, runner, "one class", one, "none")
    for count, name in ((4, "every row ignored"), (0, "no rows")):
        none = np.full((count, 3), _NAN), np.full(count, -100)
        for reduction, value in (("mean", _NAN), ("sum", 0.0)):
            given = (*none, DD(value), np.zeros((count, 3)))
            _special(findings, dtype, runner, name, given, reduction)


def _special(
    findings: Findings,
    dtype: np.dtype[Any],
    runner: Runner,
    name: str,
    given: tuple[Array, Array, DD, Array],
    reduction: str,
) -> None:
    x, y, loss, grad = given
    case = f"{name}, {reduction}"
    with findings.guarded("special values", runner, dtype.name, case), runner.selected():
        work = Work("", case, x.astype(dtype), y, {"reduction": reduction})
        for kind, what, got in work.answers():
            right = loss if kind == "loss" else exact.as_dd(grad)
            good = ulp_error(got, right) <= work.limits[kind]
            good &= (right.hi != 0.0) | (got == 0.0)
            failure = None
            if not good.all():
                about = ("special values", str(runner), dtype.name, case, what)
                failure = Failure(*about, str(np.asarray(got).tolist()), str(right.hi.tolist()))
            findings.compare(SPECIAL, failure, np.size(got))
