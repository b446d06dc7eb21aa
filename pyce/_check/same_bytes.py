"""The results of the C backend are the same bytes on every instruction set and machine, with every
number of threads, and for every position of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import pyce
from pyce._check.findings import Findings, digest
from pyce._check.oracle import Array
from pyce._check.promises import ISAS, KNOWN, MACHINES, PLACE, THREADS
from pyce._selection import Selection

# Class counts on both sides of every change of kernel; few rows, since all results are compared.
BATCHES = ((37, 1), (37, 3), (37, 10), (37, 33), (37, 100), (19, 513), (9, 1030), (5, 2049))
# Large enough to be shared among threads; the last is cut along its classes.
LARGE = ((20_000, 10), (2500, 100), (61, 5000), (3, 70_001))


def batch(rows: int, classes: int, dtype: Any) -> tuple[Array, Array]:
    """Logits and labels, the same on every machine: NumPy never changes `RandomState`'s numbers."""
    random = np.random.RandomState([rows, classes])
    x = (random.random_sample((rows, classes)) * 50 - 25).astype(dtype)
    y = (random.random_sample(rows) * classes).astype(np.int64)
    y[::5] = np.argmax(x[::5].astype(np.float64), axis=1)
    y[3::11] = -100
    if classes > 2:
        x[2::7, 0] = -np.inf
    return x, y


def results(x: Array, y: Array, axis: int = -1) -> Iterator[Array]:
    """Results of all operations, options and kinds of targets, moved to the class axis last."""
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


def known_results(dtype: Any) -> str:
    """The digest to compare with `promises.KNOWN`, computed on the selected instruction set."""
    return digest(a for shape in BATCHES for a in results(*batch(*shape, dtype)))


def same_bytes(findings: Findings, dtype: Any, selections: list[Selection]) -> None:
    """Compare instruction sets, numbers of threads and places of a row, and all with `KNOWN`."""
    name = np.dtype(dtype).name
    digests: dict[str, str] = {}
    for selection in selections:
        with findings.guarded("bytes", selection, name, "batches"), selection.selected():
            mine = known_results(dtype)
            if digests:
                findings.same(ISAS, selection, name, "batches", mine, digests["known"])
            digests.setdefault("known", mine)
            findings.same(MACHINES, selection, name, "batches", mine, KNOWN[name])
            _same_in_place(findings, dtype, selection)
        every = pyce.get_num_threads()
        for shape in LARGE if every > 1 else ():
            case = "x".join(map(str, shape))
            x, y = batch(*shape, dtype)
            seen = ""
            for threads in (1, every):
                with findings.guarded("bytes", selection, name, case), selection.selected(threads):
                    loss, grad, lse = pyce.cross_entropy_with_grad(x, y, return_lse=True)
                    back = pyce.cross_entropy_backward(1.0, x, y, lse)
                    mine = digest((loss, grad, lse, back, pyce.softmax(x)))
                    told = f"{case}, {threads} threads"
                    if seen:
                        findings.same(THREADS, selection, name, told, mine, seen)
                    seen = mine


def _same_in_place(findings: Findings, dtype: Any, selection: Selection) -> None:
    """Compare with the class axis first, and a row of the batch with the same row alone."""
    name = np.dtype(dtype).name
    for shape in BATCHES:
        case = "x".join(map(str, shape))
        x, y = batch(*shape, dtype)
        last = digest(results(x, y))
        first = digest(results(np.ascontiguousarray(x.T), y, axis=0))
        findings.same(PLACE, selection, name, f"{case}, class axis first", first, last)
        options: dict[str, Any] = {"reduction": "none", "return_lse": True}
        whole = pyce.cross_entropy_with_grad(x, y, **options)
        row = slice(1, 2)
        alone = pyce.cross_entropy_with_grad(x[row], y[row], **options)
        within = digest(array[row] for array in whole)
        findings.same(PLACE, selection, name, f"{case}, row 1 alone", digest(alone), within)
