"""Judges mutants of the Python modules by the tests that rules.py names.

Most are first put into forked children of one process, which has collected the tests (forked.py),
and what survives is judged by all of these tests in a new process. Code that Numba compiles is
judged by a sample of tests in a process of its own, as nothing compiled before may be used there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from judge_c import Copy, run
from mutant import Mutant
from rules import Rule

FIRST_CASES = 4  # of each test function


def judge(copy: Copy, rule: Rule, mutants: list[Mutant], thoroughly: bool) -> Iterator:
    """Yields each mutant with the test that killed it, “survived”, or “to be seen” thoroughly."""
    if rule.compiled:
        found = _compiled(copy, rule, mutants, thoroughly)
    elif thoroughly:
        found = _in_new_processes(copy, rule, mutants)
    else:
        found = _forked(copy, rule, mutants)
    for mutant, said in found:
        if said == "survived" and not thoroughly:
            said = "to be seen"
        yield mutant, said if said in ("survived", "to be seen") else f"killed: {said}"


def _forked(copy: Copy, rule: Rule, mutants: list[Mutant]) -> Iterator:
    given = copy.home / "given.json"
    sources = [[mutant.file, mutant.apply()] for mutant in mutants]
    given.write_text(json.dumps(sources), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-B", "tests/tools/mutation/forked.py", given, str(FIRST_CASES),
         rule.which, *rule.tests],
        cwd=copy.home, env=copy.environment, text=True, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        unchanged = process.stdout.readline().strip()
        if unchanged != "survived":
            sys.exit(f"the tests of {rule.modules} fail without a mutant: {unchanged}")
        for mutant, line in zip(mutants, process.stdout, strict=False):
            if line.startswith("no verdict"):
                sys.exit(f"{mutant.file}:{mutant.line} {mutant.name}: {line}")
            yield mutant, line.strip()
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        for mutant in mutants:
            copy.restore(mutant)


def _in_new_processes(copy: Copy, rule: Rule, mutants: list[Mutant]) -> Iterator:
    code = "import sys; sys.modules['numba'] = None; import pytest; sys.exit(pytest.main())"
    command = [sys.executable, "-B", "-c", code, "-xq", "-p", "no:cacheprovider", "-k", rule.which,
               *rule.tests]  # fmt: skip
    for mutant in mutants:
        yield mutant, _with(copy, mutant, command)


def _compiled(copy: Copy, rule: Rule, mutants: list[Mutant], thoroughly: bool) -> Iterator:
    """One case of each test function, then some: compiling takes most of the time."""
    most = str(rule.cases) if thoroughly else "1"
    options = ["-xq", "-p", "no:cacheprovider"]
    command = [sys.executable, "-B", "tests/tools/mutation/sampled.py", most, *options, "-k",
               rule.which, *rule.tests]  # fmt: skip
    passing = set()  # without a mutant
    for mutant in mutants:
        said = _with(copy, mutant, command, compiles=True)
        if "::" in said and said not in passing:
            alone = [sys.executable, "-B", "-m", "pytest", *options, said]
            if _with(copy, None, alone, compiles=True) != "survived":
                sys.exit(f"a test of {rule.modules} fails without a mutant: {said}")
            passing.add(said)
        yield mutant, said


def _with(copy: Copy, mutant: Mutant | None, command: list[str], compiles: bool = False) -> str:
    """The test that fails with the mutant in the copy, or “survived”."""
    if mutant:
        copy.put(mutant)
    try:
        with tempfile.TemporaryDirectory(prefix="mutants") as cache:
            # Optimised less, to compile sooner; the same operations in the same order.
            variables = {"NUMBA_CACHE_DIR": cache, "NUMBA_OPT": "0"} if compiles else {}
            environment = {**copy.environment, **variables}
            done = run(command, cwd=copy.home, env=environment, timeout=1200)
    finally:
        if mutant:
            copy.restore(mutant)
    if done.returncode == 0:
        return "survived"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return failed[1] if failed else "ended with an error"
