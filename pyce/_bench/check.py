"""Compare every backend with exact results: what to run on a new platform.

The C backend is held to each instruction set that this machine runs. Inputs are real and
adversarial; errors are in units in the last place (ULP). Exit status: 0 where every promise holds,
1 where one is broken, 2 where it can't be checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pyce
from pyce._backends import check_name
from pyce._bench import machine, promises, real, regimes, terminal
from pyce._bench.promises import Findings, Runner, Work
from pyce._bench.terminal import Unusable

FLOATS = ("float32", "float64")
DTYPES = (*promises.HALVES, *FLOATS)
SHAPES = ((1000, 10), (100, 129), (20, 1000), (2, 5000))
FULL_SHAPES = ((3000, 10), (500, 65), (100, 1000), (3, 32000), (1, 262144))
TITLES = {**regimes.TITLES, **real.TITLES, **promises.ROWS}
TORCH = "PyTorch"
# Failures that are printed; JSON has them all.
MOST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--full", action="store_true", help="more shapes, up to 262,144 classes, and every regime")
    add("-b", "--backend", type=terminal.names, help="only these backends, for example c,numpy")
    add("--dtype", type=terminal.listed(DTYPES), help="only these: " + ",".join(DTYPES))
    add(
        "--regime",
        type=terminal.listed(tuple(regimes.TITLES) + tuple(real.TITLES)),
        help="only these kinds of logits, for example random,wrong60",
    )
    add("--peers", action="store_true", help="show PyTorch beside, if it is installed")
    add("-o", "--output", type=Path, help="write the results to this file, as JSON")
    add("--json", action="store_true", help="print the results as JSON and nothing else")


def main(options: argparse.Namespace) -> int:
    left_out: dict[str, str] = {}
    if options.output:
        terminal.writable(options.output)
    with warnings.catch_warnings():
        # That the C kernels are missing is said below.
        warnings.filterwarnings("ignore", "pyce runs on", RuntimeWarning)
        runners = _runners(options.backend, left_out)
        about = machine.fingerprint(bandwidth=False)
    if pyce.get_num_threads() == 1:
        left_out["threads"] = "this process may use one"
    dtypes = _dtypes(options.dtype, left_out)
    findings = Findings()
    tables: dict[str, Any] = {"results": {}, "targets": {}}
    steps = list(_steps(options, dtypes, runners, findings, tables, left_out))
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
        "machine": about,
        "versions": about["versions"],
        "backends": [str(runner) for runner in runners],
        "left_out": left_out,
        "limits": promises.LIMITS,
        "shapes": FULL_SHAPES if options.full else SHAPES,
        "edges": [edge for edge in promises.EDGES if np.isfinite(edge)],
        "titles": TITLES,
        "checks": {name: held for name, (held, _) in findings.held.items()},
        **tables,
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    if options.output:
        terminal.write(options.output, text + "\n")
    try:
        if options.json:
            print(text)
        else:
            _show(findings, dtypes, runners, tables, left_out)
        sys.stdout.flush()
    except BrokenPipeError:
        terminal.silence()  # the exit status counts all the same
    return terminal.FAILED if findings.failures else terminal.FINE


def _runners(asked: list[str] | None, left_out: dict[str, str]) -> list[Runner]:
    """The backends asked for, or all that work; C once for each instruction set, widest first."""
    info = terminal.info()
    found = []
    for name in asked or info["backends"]:
        try:
            with pyce.use_backend(check_name(name)):
                pass
        except ValueError as error:
            if asked:
                raise Unusable(str(error)) from None
            left_out[name] = info["backends"][name] or str(error)
            continue
        isas = info["isas"] if name == "c" else [None]
        found += [Runner(name, isa) for isa in isas]
    return found


def _dtypes(asked: list[str] | None, left_out: dict[str, str]) -> list[str]:
    if "bfloat16" in (asked or ()):
        terminal.require("check --dtype bfloat16", "ml_dtypes")
    if importlib.util.find_spec("ml_dtypes") is None:
        left_out["bfloat16"] = "ml_dtypes is not installed"
        return [name for name in asked or DTYPES if name != "bfloat16"]
    import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 by name

    return list(asked or DTYPES)


def _regimes(options: argparse.Namespace, left_out: dict[str, str]) -> list[str]:
    chosen = options.regime or [*real.DATA, *(regimes.TITLES if options.full else regimes.PROMISED)]
    if importlib.util.find_spec("sklearn") is None:
        if options.regime and "digits" in options.regime:
            terminal.require("check --regime digits", "sklearn")
        left_out["digits"] = "scikit-learn is not installed"
        chosen = [name for name in chosen if name != "digits"]
    return chosen


def _steps(
    options: argparse.Namespace,
    dtypes: list[str],
    runners: list[Runner],
    findings: Findings,
    tables: dict[str, Any],
    left_out: dict[str, str],
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is done, and how, in order."""
    peers = {}
    if options.peers:
        if importlib.util.find_spec("torch") is None:
            left_out[TORCH] = "torch is not installed"
        else:
            peers[TORCH] = _torch
    shapes = FULL_SHAPES if options.full else SHAPES
    chosen = _regimes(options, left_out)

    def row(dtype: str, name: str, table: str, works: Callable[[], Iterator[Work]]) -> None:
        beside = peers if table == "results" else {}
        for work in works():
            promises.accuracy(findings, work, runners, beside)
        tables[table].setdefault(dtype, {})[name] = findings.take_statistics(dtype, name)

    def shared(dtype: str) -> None:
        promises.shared(findings, dtype, [r for r in runners if r.backend != "numpy"])
        tables["targets"][dtype]["shared"] = findings.take_statistics(dtype, "shared")

    floats = [dtype for dtype in dtypes if dtype in FLOATS]
    for dtype in floats:
        for name in chosen:
            works = partial(promises.regime, name, shapes, dtype)
            yield f"{dtype}, {TITLES[name]}", partial(row, dtype, name, "results", works)
        for name in promises.ROWS:
            if name != "shared":
                works = partial(promises.other, name, dtype)
                yield f"{dtype}, {TITLES[name]}", partial(row, dtype, name, "targets", works)
        # One dtype will do: what is shared how does not depend on it, and Numba compiles it anew.
        if (dtype == floats[0] or options.full) and any(r.backend != "numpy" for r in runners):
            yield f"{dtype}, {TITLES['shared']}", partial(shared, dtype)
    of_c = [runner for runner in runners if runner.isa]
    for dtype in dtypes:
        if of_c:
            yield f"{dtype}, bytes", partial(promises.same_bytes, findings, dtype, of_c)
        for check, about in (
            (promises.half_types, "rounded once"),
            (promises.bad_labels, "bad labels"),
            (promises.special_values, "special values"),
        ):
            if check is not promises.half_types or dtype in promises.HALVES:
                for runner in runners:
                    yield f"{dtype}, {about}, {runner}", partial(check, findings, dtype, runner)


def _torch(work: Work) -> list[tuple[str, str, Any]]:
    """Loss of each row, and gradient of their sum."""
    import torch

    leaf = torch.from_numpy(work.logits).requires_grad_()
    labels = torch.from_numpy(work.target)
    losses = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    losses.sum().backward()
    assert leaf.grad is not None
    found = [("loss", "loss", losses.detach()), ("gradient", "gradient", leaf.grad)]
    return [(kind, what, result.numpy()) for kind, what, result in found]


def _progress(text: str) -> None:
    """What is being done, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:79]:79}\r{text[:79]}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# For people


def figure_of(value: float | None) -> str:
    """Two decimals, or a power of ten for what is far out; a dash for nothing."""
    if value is None:
        return "–"
    if value >= promises.INFINITE:
        return "∞"
    return f"{value:.2f}" if value < 1000 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _show(
    findings: Findings,
    dtypes: list[str],
    runners: list[Runner],
    tables: dict[str, Any],
    left_out: dict[str, str],
) -> None:
    backends = list(dict.fromkeys(runner.backend for runner in runners))
    for dtype in dtypes:
        if dtype in FLOATS:
            _table(findings, dtype, backends, tables)
    isas = [runner.isa for runner in runners if runner.isa]
    every = pyce.get_num_threads()
    details = {
        promises.ISAS: ", ".join(map(str, isas)),
        promises.THREADS: f"1 and {every}",
        promises.HALF: ", ".join(dtype for dtype in dtypes if dtype in promises.HALVES),
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
        who = dict.fromkeys(failure.backend for failure in findings.failures)
        print(f"\nverdict: WRONG: {_count(len(findings.failures), 'failure')} of {', '.join(who)}")
    else:
        print(
            f"\nverdict: right: {_count(len(backends), 'backend')} ({'; '.join(names)}), "
            + f"{_count(seen, 'regime')}, " * (seen > 0)
            + _count(findings.numbers, "number")
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _table(findings: Findings, dtype: str, backends: list[str], tables: dict[str, Any]) -> None:
    """The largest errors: loss / gradient."""
    limits = promises.LIMITS["cross-entropy"]
    found = {name: about for table in tables.values() for name, about in table[dtype].items()}
    beside = [c for about in found.values() for c in about if c not in backends]
    columns = [*backends, *dict.fromkeys(beside)]

    def cell(row: str, candidate: str, kinds: tuple[str, str]) -> str:
        bounds = promises.LIMITS["binary cross-entropy"] if row == "binary" else limits
        parts = []
        for kind in kinds:
            at = [k for k in findings.peaks if k[0] == dtype and k[2:] == (candidate, kind)]
            peaks = [findings.peaks[k] for k in at if row in ("", k[1])]
            peak = max(peaks) if peaks else None
            beyond = candidate in backends and peak is not None and peak > bounds[kind]
            parts.append(figure_of(peak) + "!" * beyond)
        return " / ".join(parts)

    rows = [
        [TITLES[name], *(cell(name, column, ("loss", "gradient")) for column in columns)]
        for name in found
    ]
    matrix = ("softmax", "log_softmax")
    rows.append([" / ".join(matrix), *(cell("", column, matrix) for column in columns)])
    terminal.table(
        f"{dtype}: largest errors in ULP, loss / gradient; ! is beyond {limits['loss']:g} / "
        f"{limits['gradient']:g}",
        ("", *columns),
        rows,
    )
