"""Compare every backend with exact results: the first command to run on a new platform.

The C backend is checked on each instruction set that this machine supports. Inputs are real and
adversarial; errors are in units in the last place (ULP). Exit status: 0 if every promise holds,
1 if one is broken, 2 if they cannot be checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pyce
from pyce import _cli, _machine
from pyce._backends import check_name
from pyce._check import accuracy, promises, real_data, regimes, same_bytes, special_cases
from pyce._check.accuracy import Work
from pyce._check.findings import EDGES, Findings, error_text
from pyce._cli import Unusable
from pyce._selection import Selection, selections

FLOATS = ("float32", "float64")
DTYPES = (*promises.HALF_TYPES, *FLOATS)
SHAPES = ((1000, 10), (100, 129), (20, 1000), (2, 5000))
FULL_SHAPES = ((3000, 10), (500, 65), (100, 1000), (3, 32000), (1, 262144))
TITLES = {**regimes.TITLES, **real_data.TITLES, **accuracy.ROWS}
TORCH = "PyTorch"
# At most so many failures are printed; the JSON has all.
MOST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--full", action="store_true", help="more shapes, up to 262,144 classes, and every regime")
    add("-b", "--backend", type=_cli.names, help="only these backends, for example c,numpy")
    add("--dtype", type=_cli.listed(DTYPES), help="only these: " + ",".join(DTYPES))
    add(
        "--regime",
        type=_cli.listed(tuple(regimes.TITLES) + tuple(real_data.TITLES)),
        help="only these kinds of logits, for example random,wrong60",
    )
    add("--peers", action="store_true", help="also show the errors of PyTorch, if it is installed")
    add("-o", "--output", type=Path, help="write the results to this file, as JSON")
    add("--json", action="store_true", help="print the results as JSON and nothing else")


def main(options: argparse.Namespace) -> int:
    left_out: dict[str, str] = {}
    if options.output:
        _cli.writable(options.output)
    with _cli.reporting_without_c():
        chosen = _selections(options.backend, left_out)
        machine = _machine.fingerprint()
    if pyce.get_num_threads() == 1:
        left_out["threads"] = "this process may use only one"
    dtypes = _dtypes(options.dtype, left_out)
    findings = Findings()
    tables: dict[str, Any] = {"results": {}, "targets": {}}
    steps = list(_steps(options, dtypes, chosen, findings, tables, left_out))
    try:
        for number, (what, step) in enumerate(steps):
            _progress(f"[{number + 1}/{len(steps)}] {what}")
            step()
    finally:
        _progress("")
    content = {
        "command": "check",
        "verdict": "wrong" if findings.failures else "right",
        "failures": [{**vars(failure), "text": str(failure)} for failure in findings.failures],
        "numbers": findings.numbers,
        "machine": machine,
        "versions": machine["versions"],
        "backends": [str(selection) for selection in chosen],
        "left_out": left_out,
        "limits": promises.LIMITS,
        "shapes": FULL_SHAPES if options.full else SHAPES,
        "edges": [edge for edge in EDGES if np.isfinite(edge)],
        "titles": TITLES,
        "checks": {name: held for name, (held, _) in findings.held.items()},
        **tables,
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    if options.output:
        _cli.write(options.output, text + "\n")
    try:
        if options.json:
            print(text)
        else:
            _show(findings, dtypes, chosen, tables, left_out)
        sys.stdout.flush()
    except BrokenPipeError:
        _cli.silence()  # the exit status is that of the check all the same
    return _cli.FAILED if findings.failures else _cli.FINE


def _selections(asked: list[str] | None, left_out: dict[str, str]) -> list[Selection]:
    """The backends asked for, or all that work; C once for each instruction set, widest first."""
    info = _cli.info()
    working = []
    for name in asked or info["backends"]:
        try:
            with pyce.use_backend(check_name(name)):
                working.append(name)
        except ValueError as error:
            if asked:
                raise Unusable(str(error)) from None
            left_out[name] = info["backends"][name] or str(error)
    return selections(working)


def _dtypes(asked: list[str] | None, left_out: dict[str, str]) -> list[str]:
    if "bfloat16" in (asked or ()):
        _cli.require("check --dtype bfloat16", "ml_dtypes")
    if importlib.util.find_spec("ml_dtypes") is None:
        left_out["bfloat16"] = "ml_dtypes is not installed"
        return [name for name in asked or DTYPES if name != "bfloat16"]
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy by name

    return list(asked or DTYPES)


def _regimes(options: argparse.Namespace, left_out: dict[str, str]) -> list[str]:
    every = regimes.TITLES if options.full else regimes.PROMISED
    chosen = options.regime or [*real_data.DATA, *every]
    if importlib.util.find_spec("sklearn") is None:
        if options.regime and "digits" in options.regime:
            _cli.require("check --regime digits", "sklearn")
        left_out["digits"] = "scikit-learn is not installed"
        chosen = [name for name in chosen if name != "digits"]
    return chosen


def _steps(
    options: argparse.Namespace,
    dtypes: list[str],
    chosen: list[Selection],
    findings: Findings,
    tables: dict[str, Any],
    left_out: dict[str, str],
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The steps of the check in order: a description, and a function that carries the step out."""
    peers = {}
    if options.peers:
        if importlib.util.find_spec("torch") is None:
            left_out[TORCH] = "torch is not installed"
        else:
            peers[TORCH] = _torch
    shapes = FULL_SHAPES if options.full else SHAPES
    names = _regimes(options, left_out)
    compiled = [selection for selection in chosen if selection.name != "numpy"]

    def row(dtype: str, name: str, table: str, works: Callable[[], Iterator[Work]]) -> None:
        for work in works():
            accuracy.compare(findings, work, chosen, peers if table == "results" else {})
        tables[table].setdefault(dtype, {})[name] = findings.take_statistics(dtype, name)

    def shared(dtype: str) -> None:
        accuracy.shared(findings, dtype, compiled)
        tables["targets"][dtype]["shared"] = findings.take_statistics(dtype, "shared")

    floats = [dtype for dtype in dtypes if dtype in FLOATS]
    for dtype in floats:
        for name in names:
            works = partial(accuracy.regime, name, shapes, dtype)
            yield f"{dtype}, {TITLES[name]}", partial(row, dtype, name, "results", works)
        for name in accuracy.ROWS:
            if name != "shared":
                works = partial(accuracy.other, name, dtype)
                yield f"{dtype}, {TITLES[name]}", partial(row, dtype, name, "targets", works)
        # One dtype is enough: how work is shared does not depend on it, and Numba would compile
        # again for each.
        if (dtype == floats[0] or options.full) and compiled:
            yield f"{dtype}, {TITLES['shared']}", partial(shared, dtype)
    of_c = [selection for selection in chosen if selection.isa]
    for dtype in dtypes:
        if of_c:
            yield f"{dtype}, bytes", partial(same_bytes.same_bytes, findings, dtype, of_c)
        for check, about in (
            (special_cases.half_types, "rounded once"),
            (special_cases.bad_labels, "labels out of range"),
            (special_cases.special_values, "special values"),
        ):
            if check is not special_cases.half_types or dtype in promises.HALF_TYPES:
                for selection in chosen:
                    yield (
                        f"{dtype}, {about}, {selection}",
                        partial(check, findings, dtype, selection),
                    )


def _torch(work: Work) -> list[tuple[str, str, Any]]:
    """PyTorch's loss of each row, and the gradient of their sum."""
    import torch

    leaf = torch.from_numpy(work.logits).requires_grad_()
    labels = torch.from_numpy(work.target)
    losses = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    losses.sum().backward()
    assert leaf.grad is not None
    found = [("loss", "loss", losses.detach()), ("gradient", "gradient", leaf.grad)]
    return [(kind, what, result.numpy()) for kind, what, result in found]


def _progress(text: str) -> None:
    """Show the current step, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:79]:79}\r{text[:79]}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# Output as text


def _show(
    findings: Findings,
    dtypes: list[str],
    chosen: list[Selection],
    tables: dict[str, Any],
    left_out: dict[str, str],
) -> None:
    backends = list(dict.fromkeys(selection.name for selection in chosen))
    for dtype in dtypes:
        if dtype in FLOATS:
            _table(findings, dtype, backends, tables)
    isas = [selection.isa for selection in chosen if selection.isa]
    every = pyce.get_num_threads()
    details = {
        promises.ISAS: ", ".join(map(str, isas)),
        promises.THREADS: f"1 and {every}",
        promises.HALF: ", ".join(dtype for dtype in dtypes if dtype in promises.HALF_TYPES),
    }
    for check, (held, broken) in findings.held.items():
        if check == "accuracy":
            continue
        detail = f" ({details[check]})" if check in details else ""
        print(f"{check}{detail}: " + (f"NO, {broken} of {held + broken}" if broken else "yes"))
    for name, reason in left_out.items():
        print(f"not checked: {name}: {reason}")
    if findings.failures:
        print()
        for failure in findings.failures[:MOST]:
            print(f"BROKEN {failure}")
        if len(findings.failures) > MOST:
            print(f"and {len(findings.failures) - MOST} more; --json has them all")
    names = [name if name != "c" else f"c on {', '.join(map(str, isas))}" for name in backends]
    seen = len({name for table in tables["results"].values() for name in table})
    if findings.failures:
        wrong = dict.fromkeys(failure.backend for failure in findings.failures)
        count = _count(len(findings.failures), "failure")
        print(f"\nverdict: WRONG: {count} of {', '.join(wrong)}")
    else:
        print(
            f"\nverdict: right: {_count(len(backends), 'backend')} ({'; '.join(names)}), "
            + f"{_count(seen, 'regime')}, " * (seen > 0)
            + _count(findings.numbers, "number")
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _table(findings: Findings, dtype: str, backends: list[str], tables: dict[str, Any]) -> None:
    """Print the largest errors of loss and gradient: a line for each regime and kind of target."""
    limits = promises.LIMITS["cross-entropy"]
    found = {name: about for table in tables.values() for name, about in table[dtype].items()}
    peers = [c for about in found.values() for c in about if c not in backends]
    columns = [*backends, *dict.fromkeys(peers)]

    def cell(row: str, candidate: str, kinds: tuple[str, str]) -> str:
        bounds = promises.LIMITS["binary cross-entropy"] if row == "binary" else limits
        parts = []
        for kind in kinds:
            at = [k for k in findings.peaks if k[0] == dtype and k[2:] == (candidate, kind)]
            peaks = [findings.peaks[k] for k in at if row in ("", k[1])]
            peak = max(peaks) if peaks else None
            beyond = candidate in backends and peak is not None and peak > bounds[kind]
            parts.append(error_text(peak) + "!" * beyond)
        return " / ".join(parts)

    rows = [
        [TITLES[name], *(cell(name, column, ("loss", "gradient")) for column in columns)]
        for name in found
    ]
    matrix = ("softmax", "log_softmax")
    rows.append([" / ".join(matrix), *(cell("", column, matrix) for column in columns)])
    _cli.table(
        f"{dtype}: largest errors in ULP, loss / gradient; ! marks errors beyond "
        f"{limits['loss']:g} / {limits['gradient']:g}",
        ("", *columns),
        rows,
    )
