"""Breaks every line of docs/semantics.md once, in a copy of the sources, and runs its named tests.

    PYTHONPATH=. python tests/tools/broken_promises                 every break
    PYTHONPATH=. python tests/tools/broken_promises --only LINES    of lines that begin so, or files
    PYTHONPATH=. python tests/tools/broken_promises --every         and which tests never failed

A break is an edit of one source file that makes a line untrue; the tables are in of_inputs.py and
the other modules called of_*. It is noticed if one of the tests that the line names fails, and if
that test passes without the edit. A line without a break has a reason in the tables. The promises
of docs/promises.md are lines of docs/semantics.md; of_promises.py says which.

An edit of C is compiled for one instruction set only, by functions of ../mutation/judge_c.py. The
exit status is 1 if a break is not noticed or not valid C or Python, or if the tables do not fit the
pages or the sources.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from breaks import ROOT, Break
from judge_c import BUILD, ISAS, build, compile_unit, isa_of, link, run, units
from mutant import source
from of_classifiers import CLASSIFIERS
from of_errors import ERRORS
from of_inputs import INPUTS
from of_jax import JAX
from of_promises import OF_PROMISES_PAGE, PROMISES
from of_semantics import SEMANTICS
from of_tests import OF_OTHERS, TESTS
from pages import Line, only, promises, semantics

TABLE = (*INPUTS, *SEMANTICS, *ERRORS, *CLASSIFIERS, *JAX, *PROMISES, *TESTS)
BREAKS = [entry for entry in TABLE if isinstance(entry, Break)]
_DTYPES = ("f32", "f64", "f16", "bf16")
LIMIT = 300  # seconds for the tests of a break


def faults(page: list[Line]) -> list[str]:
    """What of the tables does not fit the pages or the sources."""
    behaviours = [line.behaviour for line in page]
    found, covered = [], set()
    for entry in TABLE:
        index = only(entry.line, behaviours)
        if index is None:
            found.append(f"not the beginning of one line: {entry.line}")
            continue
        covered.add(index)
        if isinstance(entry, Break):
            if source(entry.file).count(entry.old) != 1:
                found.append(f"not once in {entry.file}: {entry.old}")
            named = {test.partition("::")[2] for test in page[index].tests}
            found += [f"not named by “{entry.line}”: {t}" for t in entry.tests if t not in named]
    for index in sorted(set(range(len(page))) - covered):
        found.append(f"line {page[index].number} has neither break nor reason: {behaviours[index]}")
    texts = promises()
    for beginning, line in OF_PROMISES_PAGE.items():
        if only(beginning, texts) is None:
            found.append(f"not the beginning of one promise of promises.md: {beginning}")
        if not any(entry.line == line for entry in BREAKS):
            found.append(f"no break has the line {line}")
    for text in texts:
        if not any(text.startswith(beginning) for beginning in OF_PROMISES_PAGE):
            found.append(f"no line of semantics.md for: {text}")
    return found


class How(NamedTuple):
    """How tests run: the first three arguments of named.py, and pytest's -k."""

    backend: str
    isas: str
    cases: str
    which: str


def units_of(given: Break) -> tuple[list[str], str]:
    """The C files to compile for a break in C, and the instruction set that shows it.

    The other dtypes' kernels stay as they are, to save time. The instruction set is the widest of
    this machine that the file is compiled for, which is the one that a call uses: so tests show it,
    too, that select none.
    """
    having = [unit for unit, files in units().items() if given.file in files]
    isas = {isa_of(unit) for unit in having}
    isa = next((isa for isa in ISAS if isa in isas), ISAS[0])
    if given.backend:
        isa = given.backend.partition("-")[2]
    of_isa = [unit for unit in having if isa_of(unit) in (None, isa)]
    others = tuple(f"_{dtype}.c" for dtype in _DTYPES if dtype != given.dtype)
    return [unit for unit in of_isa if not unit.endswith(others)], isa


def how_of(given: Break) -> How:
    if given.file.startswith("csrc/"):
        isa = units_of(given)[1]
        isas = "one" if isa == ISAS[0] or given.backend else "all"
        return How(f"c-{isa}", isas, given.cases, given.which)
    of_backend = re.match(r"pyce/_backends/(numba|numpy)\b", given.file)
    name = given.backend or (of_backend[1] if of_backend else "c")
    name = f"c-{ISAS[0]}" if name == "c" else name
    return How(name, "all", given.cases, given.which)


class Copy:
    """A copy of the tree in which one break is made at a time."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="broken"))
        ignore = shutil.ignore_patterns("__pycache__", "*.o", "*.so")
        for folder in ("csrc", "pyce", "tests", "docs", "bench", "examples"):
            shutil.copytree(ROOT / folder, self.home / folder, ignore=ignore)
        for file in ("pyproject.toml", "setup.py", "Makefile", *ROOT.glob("*.md")):
            shutil.copy(ROOT / file, self.home)
        self.module = self.home / "pyce" / "_pyce.abi3.so"
        build()
        link({}, self.module, [])

    def make(self, given: Break) -> None:
        (self.home / given.file).write_text(broken(given), encoding="utf-8")
        if given.file.startswith("csrc/"):
            made = {}
            for unit in units_of(given)[0]:
                made[unit] = self.home / "objects" / f"{unit}.o"
                done = compile_unit(self.home, unit, made[unit], ["-O1"])
                if done.returncode:
                    sys.exit(done.stdout)
            link(made, self.module, [])

    def restore(self, given: Break) -> None:
        (self.home / given.file).write_text(source(given.file), encoding="utf-8")
        if given.file.startswith("csrc/"):
            link({}, self.module, [])

    def run(self, tests: list[str], how: How, *options: str):
        """pytest on some tests."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYCE_")},
            **{"PYTHONPATH": str(self.home), "CI": "", "OPENBLAS_NUM_THREADS": "1"},
            "NUMBA_CACHE_DIR": str(self.home / "compiled"),
        }
        program = self.home / "tests/tools/broken_promises/named.py"
        command = [sys.executable, "-B", str(program), how.backend, how.isas, how.cases,
                   *(["-k", how.which] if how.which else []), *options,
                   "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", *tests]  # fmt: skip
        return run(command, cwd=self.home, env=environment, timeout=LIMIT)


def broken(given: Break) -> str:
    """The text of its file with the edit."""
    return source(given.file).replace(given.old, given.new)


def not_valid() -> list[str]:
    """What the compilers say about breaks that are not valid C or Python."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copytree(ROOT / "csrc", home / "csrc")
        for given in BREAKS:
            said = ""
            if given.file.startswith("csrc/"):
                (home / given.file).write_text(broken(given), encoding="utf-8")
                checks = [compile_unit(home, unit, home / "none", ["-fsyntax-only"])
                          for unit in units_of(given)[0]]  # fmt: skip
                said = "".join(done.stdout for done in checks if done.returncode)
                shutil.copy(ROOT / given.file, home / given.file)
            elif given.file.endswith(".py"):
                try:
                    compile(broken(given), given.file, "exec")
                except SyntaxError as error:
                    said = str(error)
            found += [f"not valid in {given.file}: {given.new}\n{said}"] if said else []
    return found


def line_of(given: Break, page: list[Line]) -> Line:
    return next(line for line in page if line.behaviour.startswith(given.line))


def tests_of(given: Break, page: list[Line], every: bool) -> list[str]:
    """With `every`, all that the line names."""
    tests = line_of(given, page).tests
    if given.tests and not every:
        tests = tuple(test for test in tests if test.partition("::")[2] in given.tests)
    return [f"tests/{test}" for test in tests]


def failed(output: str) -> list[str]:
    """The tests that failed, as pytest names them."""
    found = re.findall(r"^FAILED (tests/.*?)(?: - .*)?$", output, re.MULTILINE)
    return list(dict.fromkeys(found))


def judge(copy: Copy, given: Break, page: list[Line], every: bool) -> tuple[str, list[str]]:
    """ "noticed", "not noticed" or what is wrong, and the tests that failed."""
    tests = tests_of(given, page, every)
    try:
        copy.make(given)
        options = [] if every else ["-x"]
        done = copy.run(tests, how_of(given), *options)
    finally:
        copy.restore(given)
    names = failed(done.stdout)
    if done.returncode == 0:
        return "NOT NOTICED", []
    if done.returncode == 1 and names:
        return "noticed", names
    if done.returncode < 0:  # a crash, or longer than the limit
        return "noticed", tests
    return f"NO RESULT: pytest ended with {done.returncode}\n{done.stdout[-3000:]}", []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="check the tables, and end")
    parser.add_argument("--only", default="", metavar="REGEX", help="of these lines or files")
    parser.add_argument(
        "--every",
        action="store_true",
        help="run all tests of a line to their end, and list those that none of its breaks failed",
    )
    asked = parser.parse_args()
    page = semantics()
    wrong = faults(page)
    if asked.list:
        sections = [line.section for line in page]
        for section in dict.fromkeys(sections):
            lines = [line.behaviour for line in page if line.section == section]
            count = sum(any(b.startswith(entry.line) for b in lines) for entry in BREAKS)
            print(f"{count:4d} breaks of {len(lines):3d} lines: {section}")
        sys.exit("\n".join(wrong) or None)
    wrong = wrong or not_valid()
    if wrong:
        sys.exit("\n".join(wrong))
    chosen = [b for b in BREAKS if re.match(asked.only, b.line) or re.match(asked.only, b.file)]
    BUILD.mkdir(parents=True, exist_ok=True)
    copy = Copy()
    noticed: dict[How, set[str]] = defaultdict(set)
    never = {line_of(b, page): set(tests_of(b, page, True)) for b in chosen}
    try:
        for given in chosen:
            begin = time.monotonic()
            verdict, names = judge(copy, given, page, asked.every)
            functions = dict.fromkeys(name.partition("[")[0] for name in names)
            print(f"{time.monotonic() - begin:5.1f} s {verdict}: {given.line}", flush=True)
            print(f"        {given.file}: {' '.join(functions)}", flush=True)
            never[line_of(given, page)] -= set(functions)
            if verdict == "noticed":
                noticed[how_of(given)] |= set(names)
            else:
                wrong.append(f"{verdict}: {given.line} ({given.file})")
        for how, names in noticed.items():
            done = copy.run(sorted(names), how)
            if done.returncode:
                wrong.append(f"these fail without a break as well: {' '.join(failed(done.stdout))}")
    finally:
        shutil.rmtree(copy.home, ignore_errors=True)
    if asked.every:
        for line, tests in never.items():
            for test in sorted(tests - OF_OTHERS):
                print(f"never failed: {test} ({line.behaviour[:60]})")
    print(f"{len(chosen)} breaks of {len({b.line for b in chosen})} lines")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
