"""Judges mutants of the Python modules by tests.

Most are put into forked children of one process, which has collected the tests (forked.py). Code
that Numba compiles is judged by a sample of tests in a process of its own, as nothing compiled
before may be used there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from judge_c import Copy, run
from mutant import ROOT, Mutant, source

COMPUTE = tuple(
    f"tests/api/test_{name}.py"
    for name in (
        *("reductions", "ignored_rows", "nonfinite", "shapes", "backward", "outputs"),
        *("binary", "probabilities"),
    )
)
API = (
    "tests/api/test_errors.py",
    "tests/api/test_layouts.py",
    *COMPUTE,
    "tests/api/test_metrics.py",
    "tests/api/test_backends.py",
    "tests/tools/test_house.py",
)
IN_PROCESS = "not avx and not fork"


class Rule(NamedTuple):
    """How the modules that match are judged: by which tests, and which cases of these (-k)."""

    modules: str
    tests: tuple[str, ...] | str  # or those of tests/integrations that mention this module
    which: str
    compiled: bool = False


RULES = (
    Rule(r"pyce/_backends/numba(/\w+)?\.py", COMPUTE, "numba", compiled=True),
    Rule(
        r"pyce/_backends/numpy\.py",
        (*COMPUTE, "tests/api/test_layouts.py", "tests/accuracy/test_accuracy.py"),
        "numpy and not fork",
    ),
    Rule(r"pyce/_backends/c\.py", API, IN_PROCESS),
    Rule(r"pyce/torch(/\w+)?\.py", "pyce.torch", IN_PROCESS),
    Rule(r"pyce/dask(/\w+)?\.py", "pyce.dask", IN_PROCESS),
    Rule(r"pyce/sklearn(/\w+)?\.py", "pyce.sklearn", IN_PROCESS),
    Rule(
        r"pyce/training/_(loop|lr_find|models|presize|sgd|state)\.py", "pyce.training", IN_PROCESS
    ),
    Rule(
        r"pyce/_(arguments|problem|dtypes|compensated|loss|softmax|probabilities|binary|metrics"
        r"|measures)\.py",
        API,
        IN_PROCESS,
    ),
)


def rule_of(file: str) -> Rule | None:
    return next((rule for rule in RULES if re.fullmatch(rule.modules, file)), None)


def tests_of(rule: Rule) -> list[str]:
    if not isinstance(rule.tests, str):
        return list(rule.tests)
    paths = sorted((ROOT / "tests" / "integrations").glob("test_*.py"))
    name = re.compile(rf"\b{re.escape(rule.tests)}\b")
    found = [p for p in paths if name.search(p.read_text(encoding="utf-8"))]
    return [str(p.relative_to(ROOT)) for p in found]


def files() -> list[str]:
    """The modules that are mutated."""
    names = (str(path.relative_to(ROOT)) for path in sorted((ROOT / "pyce").rglob("*.py")))
    return [name for name in names if rule_of(name)]


def judge(copy: Copy, file: str, mutants: list[Mutant], thoroughly: bool) -> Iterator:
    """Yields each mutant with the test that killed it, “survived”, or “to be seen” thoroughly."""
    rule = rule_of(file)
    assert rule is not None
    found = _compiled if rule.compiled else _forked
    for mutant, said in found(copy, rule, file, mutants, thoroughly):
        if said == "survived" and not thoroughly:
            said = "to be seen"
        yield mutant, said if said in ("survived", "to be seen") else f"killed: {said}"


def _forked(copy: Copy, rule: Rule, file: str, mutants: list[Mutant], thoroughly: bool):
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    given = copy.home / "given.json"
    sources = [[module, source(file)], *([module, m.apply()] for m in mutants)]
    given.write_text(json.dumps(sources), encoding="utf-8")
    seconds, most = ("1200", "1000000") if thoroughly else (str(9 * copy.limits["semantics"]), "12")
    process = subprocess.Popen(
        [sys.executable, "-B", "tests/tools/mutation/forked.py", given, seconds, most, rule.which,
         *tests_of(rule)],
        cwd=copy.home, env=copy.environment, text=True, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        unchanged = process.stdout.readline().strip()
        if unchanged != "survived":
            sys.exit(f"the tests of {file} fail without a mutant: {unchanged}")
        for mutant, line in zip(mutants, process.stdout, strict=False):
            said = line.strip()
            if said == "survived" and thoroughly:
                said = _imported(copy, mutant)
            yield mutant, said
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _imported(copy: Copy, mutant: Mutant) -> str:
    """Import it in a new process: the children of forked.py do not."""
    once = "import pyce; pyce.cross_entropy([[1.0, 2.0]], [0])"
    copy.put(mutant)
    try:
        for name in ("numpy", "c"):
            environment = {**copy.environment, "PYCE_BACKEND": name}
            if run([sys.executable, "-B", "-c", once], env=environment, timeout=300).returncode:
                return "when it is imported"
    finally:
        copy.restore(mutant)
    return "survived"


def _compiled(copy: Copy, rule: Rule, file: str, mutants: list[Mutant], thoroughly: bool):
    """One case of each test function, then three: compiling takes most of the time."""
    most = "3" if thoroughly else "1"
    command = [sys.executable, "-B", "tests/tools/mutation/sampled.py", most, "-xq", "-p",
               "no:cacheprovider", "-k", rule.which, *tests_of(rule)]  # fmt: skip
    for mutant in mutants:
        with tempfile.TemporaryDirectory(prefix="mutants") as cache:
            # Optimised less, to compile sooner; the same operations in the same order.
            environment = {**copy.environment, "NUMBA_CACHE_DIR": cache, "NUMBA_OPT": "0"}
            copy.put(mutant)
            try:
                done = run(command, cwd=copy.home, env=environment, timeout=900)
            finally:
                copy.restore(mutant)
        if done.returncode == 0:
            yield mutant, "survived"
        else:
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
            yield mutant, failed[1] if failed else "ended with an error"
