"""Cases whose results must not change by a byte: `golden.json` has the SHA-256 of each result.

The inputs come from `RandomState.random_sample`, whose stream NumPy has frozen, and from arithmetic
that IEEE 754 defines, so that they are the same everywhere. Each batch has rows of every kind.

    python tests/golden.py --write          rewrites golden.json; for intended changes of bytes only
    python tests/golden.py --record FILE    writes the same calls of the C interface to a file for
                                            tests/c/replay.c (“-”: the standard output); --shorter
                                            leaves out long rows
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

import pyce
from pyce import _backends
from pyce._dtypes import compute_dtype

TABLE = Path(__file__).with_name("golden.json")
DTYPES = {str(np.dtype(d)): np.dtype(d) for d in ("f2", ml_dtypes.bfloat16, "f4", "f8")}
# Rows in a batch of few and of many classes: more than a tile, and one of every kind.
ROWS, FEW_ROWS = 53, 23

# Both sides of every limit of a kernel, a vector or a block.
CLASSES = (
    *(1, 2, 3, 4, 5, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64, 65, 80, 100, 127, 128, 129),
    *(255, 257, 511, 512, 513, 1000, 1025, 2047, 2048, 2049, 4095, 4097, 6200),
)
IN_THE_MIDDLE = (1, 2, 3, 10, 16, 21, 64, 65, 300, 2100)


def _uniform(random, shape, low, high):
    return low + (high - low) * random.random_sample(shape)


def _ahead(margin):
    def make(random, classes, y, largest):
        x = _uniform(random, classes, -4, 4)
        x[y] = x.max() + margin
        return x

    return make


def _around(centre, radius):
    return lambda random, classes, y, largest: _uniform(
        random, classes, centre - radius, centre + radius
    )


def _masked(value):
    """Some classes, never the label, have `value`, or the smallest finite number if it is None."""

    def make(random, classes, y, largest):
        x = _uniform(random, classes, -6, 6)
        mask = random.random_sample(classes) < 0.4
        mask[y] = False
        x[mask] = -largest if value is None else value
        return x

    return make


def _one(value, own):
    """A single value is special: that of the label, or that of a random class."""

    def make(random, classes, y, largest):
        x = _uniform(random, classes, -6, 6)
        x[y if own else int(classes * random.random_sample())] = value
        return x

    return make


# (random numbers, classes, label, largest finite number) -> logits of a row in float64
ROW_KINDS = {
    "plain": _around(0, 6),
    "small": _around(0, 2**-12),
    "spread": _around(0, 25),
    "far": _around(-60, 80),
    "confident10": _ahead(10),
    "confident17": _ahead(17),
    "confident60": _ahead(60),
    "confident100": _ahead(100),
    "wrong60": _ahead(-60),
    "offset256": _around(256, 5),
    "offset1e4": _around(1e4, 20),
    "offset-1e8": _around(-1e8, 80),
    "offset1e30": _around(1e30, 1e23),
    "masked-1e9": _masked(-1e9),
    "masked-min": _masked(None),
    "masked-inf": _masked(-np.inf),
    "constant": lambda random, classes, y, largest: np.full(classes, 0.3),
    "-inf at the label": _one(-np.inf, True),
    "nan": _one(np.nan, False),
    "+inf": _one(np.inf, False),
    "only -inf": lambda random, classes, y, largest: np.full(classes, -np.inf),
}


@dataclass(frozen=True)
class Case:
    """The shape (outer, classes, inner) and dtype of logits; the class axis is the middle one."""

    dtype: str
    outer: int
    classes: int
    inner: int = 1

    def __str__(self) -> str:
        return f"{self.dtype}-{self.outer}x{self.classes}x{self.inner}"

    def inputs(self):
        """Logits (outer, classes, inner), labels, class and sample weights, probabilities."""
        random = np.random.RandomState(zlib.crc32(f"{self.outer} {self.classes}".encode()))
        dtype = DTYPES[self.dtype]
        largest = float(ml_dtypes.finfo(dtype).max)
        rows, classes = self.outer * self.inner, self.classes
        y = (random.random_sample(rows) * classes).astype(np.int64)
        kinds = list(ROW_KINDS.values())
        x = np.stack([kinds[i % len(kinds)](random, classes, y[i], largest) for i in range(rows)])
        y[5::13] = -100
        w = _uniform(random, classes, 0.25, 2)
        s = _uniform(random, rows, 0.25, 2)
        t = _uniform(random, (rows, classes), 0, 1) ** 2
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        positions = (self.outer, self.inner)
        return (
            np.ascontiguousarray(x.reshape(*positions, classes).swapaxes(1, 2)),
            y.reshape(positions),
            w,
            s.reshape(positions),
            np.ascontiguousarray(t.astype(np.float32).reshape(*positions, classes).swapaxes(1, 2)),
        )


CASES = tuple(
    Case(dtype, outer, classes, inner)
    for dtype in DTYPES
    for outer, classes, inner in (
        *((ROWS if c < 300 else FEW_ROWS, c, 1) for c in CLASSES),
        *((2, c, 19) for c in IN_THE_MIDDLE),
        (4100, 3, 1),  # several tiles, whose losses are summed in a tree
        (1, 20_000, 1),  # a row that threads share
        (1, 20_000, 3),  # as many classes, but not contiguous
    )
)

# Where a call takes long, `--shorter` leaves out these lengths: a shorter row ends in the same way,
# within a vector or a block. Half types have the kernels of float32 but for loads and stores.
LEFT_OUT = {1000, 2047, 4095, 6200}
MOST_OF_HALF_TYPES = 2049


def _is_short(case):
    if case.classes == 20_000:  # the only row that threads share
        return case.inner == 1
    most = MOST_OF_HALF_TYPES if DTYPES[case.dtype].itemsize == 2 else 4097
    return case.classes <= most and case.classes not in LEFT_OUT


SHORTER = tuple(case for case in CASES if _is_short(case))

# The questions about each case: (target, options).
QUESTIONS = {
    "labels": ("y", {}),
    "smoothing": ("y", {"label_smoothing": 0.1}),
    "everything": ("y", {"weight": "w", "sample_weight": "s", "label_smoothing": 0.1}),
    "probabilities": ("t", {"sample_weight": "s"}),
    "weighted probabilities": ("t", {"weight": "w"}),
    "z-loss": ("y", {"weight": "w", "lse_square_scale": 0.01}),
    "z-loss of probabilities": ("t", {"sample_weight": "s", "lse_square_scale": 0.01}),
}
# Those about some cases only: one for each kernel and dtype.
FEW_QUESTIONS = {"probabilities alone": ("t", {})}
FEW_SHAPES = {(ROWS, c, 1) for c in (3, 10, 17, 100)}
FEW_SHAPES |= {(FEW_ROWS, 513, 1), (FEW_ROWS, 2049, 1), (2, 21, 19)}
FEW = [case for case in CASES if (case.outer, case.classes, case.inner) in FEW_SHAPES]


def _asked(question, y, w, s, t):
    """The target and the options of a question."""
    given = {"y": y, "w": w, "s": s, "t": t}
    target, options = {**QUESTIONS, **FEW_QUESTIONS}[question]
    return given[target], {k: given.get(v, v) for k, v in options.items()}


def of_rows(x, y, w, s, t, question, out=None):
    """The results of single rows, batch first: losses, lse, the fused and the separate gradient.

    `out` returns an array for a gradient, for tests of where it is written.
    """
    target, options = _asked(question, y, w, s, t)
    options.update(axis=1, reduction="none")
    loss, lse = pyce.cross_entropy(x, target, return_lse=True, **options)
    to = out and out()
    fused = pyce.cross_entropy_with_grad(x, target, out=to, return_lse=True, **options)
    to = out and out()
    return [loss, lse, *fused, pyce.cross_entropy_backward(s, x, target, lse, out=to, **options)]


def of_softmax(x, out=None):
    """The results of single rows for the functions without a target."""
    softmax = pyce.softmax(x, axis=1, out=out and out())
    return [softmax, pyce.log_softmax(x, axis=1, out=out and out()), pyce.logsumexp(x, axis=1)]


def selective(x, y):
    """Log-probabilities, the entropy, softmax and log-softmax of rows, with some temperatures."""
    rows = np.moveaxis(x, 1, -1)
    count, classes = y.size, x.shape[1]
    index = np.maximum(y.reshape(-1, 1), 0)
    index = np.concatenate([index, (index + 1) % classes], axis=1)
    loss = compute_dtype(rows.dtype.name)
    for temperature in (0.7, 1.0, 1e-3):
        results = [np.empty((count, 2), loss), np.empty(count, loss)]
        results += [np.empty((count, classes)) for _ in range(2)]
        _backends.current().selective(rows, temperature, index, *results)
        yield from results


def reduced(x, y, w, s, t):
    """Means and sums over the rows, and gradients; rows without a finite loss are set to 0."""
    for question, (_, given) in QUESTIONS.items():
        if "lse_square_scale" in given:
            continue  # the reduction is the same
        target, options = _asked(question, y, w, s, t)
        losses = pyce.cross_entropy(x, target, axis=1, reduction="none", **options)
        calm = np.where(np.isfinite(losses)[:, None], x, np.asarray(0, x.dtype))
        for reduction in ("mean", "sum"):
            options.update(axis=1, reduction=reduction)
            yield pyce.cross_entropy(calm, target, **options)
            yield from pyce.cross_entropy_with_grad(calm, target, **options)


def bernoulli(case):
    """The Bernoulli losses, gradients and means of the same logits, float32 or float64."""
    x, _, _, _, t = case.inputs()
    x, t = x.reshape(-1), t.reshape(-1).astype(x.dtype)
    weight = t * 2 + np.asarray(0.5, x.dtype)
    for options in ({}, {"weight": weight, "pos_weight": weight[::-1].copy()}):
        yield from pyce.binary_cross_entropy_with_grad(x, t, reduction="none", **options)
        calm = np.where(np.isfinite(x), x, np.asarray(0, x.dtype))
        yield pyce.binary_cross_entropy(calm, t, **options)


def digest(values):
    """SHA-256 of the bytes, dtypes and shapes of the results; every NaN counts as the same one."""
    hashed = hashlib.sha256()
    for value in values:
        value = np.asarray(value)
        value = np.where(np.isnan(value), np.asarray(np.nan, value.dtype), value)
        hashed.update(f"{value.dtype}{value.shape}".encode())
        hashed.update(np.ascontiguousarray(value).tobytes())
    return hashed.hexdigest()


def digests(case):
    """{question: SHA-256} of every result of a case."""
    inputs = case.inputs()
    found = {}
    for question in QUESTIONS:
        found[question] = digest(of_rows(*inputs, question))
    found["reduced"] = digest(reduced(*inputs))
    found["softmax"] = digest(of_softmax(inputs[0]))
    if case.dtype in ("float32", "float64"):
        found["bernoulli"] = digest(bernoulli(case))
    if case in FEW:
        for question in FEW_QUESTIONS:
            found[question] = digest(of_rows(*inputs, question))
        found["selective"] = digest(selective(*inputs[:2]))
    return found


def read():
    """The contents of golden.json: {case: {question: SHA-256}}."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true", help="rewrite golden.json")
    group.add_argument("--record", metavar="FILE", help="write the calls of the C interface")
    parser.add_argument("--shorter", action="store_true", help="record no long rows")
    asked = parser.parse_args()
    pyce.set_backend("c")
    if asked.write:
        table = {str(case): digests(case) for case in CASES}
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return
    import recording

    table = read()
    with (
        open(sys.stdout.fileno() if asked.record == "-" else asked.record, "wb") as file,
        recording.to(file),
    ):
        for case in SHORTER if asked.shorter else CASES:
            if digests(case) != table[str(case)]:  # a recording has the results of the table
                sys.exit(f"the results of {case} differ from {TABLE.name}")


if __name__ == "__main__":
    main()
