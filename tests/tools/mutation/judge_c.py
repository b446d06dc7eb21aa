"""Builds mutants of the C sources, and judges them by recorded calls and by the tests in Python.

Which units a file is compiled into, and for which instruction set, is found by the compiler (-MM).
A file of several instruction sets is judged by the widest one for which the mutant changes the
object code, as that one runs fastest. First, its units are compiled without optimisation, which
takes less than half the time, and judged by some recordings: those for float32 logits, if these
notice nothing those for float64, and then the others. The same object code in every instruction
set, of one dtype in the narrower ones, makes a mutant equivalent. A mutant is killed by the
recorded calls of golden.py and of other tests (tests/c/replay.c), without and with
AddressSanitizer, or by tests in Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import cache
from pathlib import Path

from mutant import ROOT, Mutant, source
from rules import is_judged, rule_of_c

import pyce

BUILD = ROOT / "build" / "mutants"
BASE = BUILD / "base"
CSRC = ROOT / "csrc"
ISAS = pyce.info()["isas"]
PORTABLE = ISAS[-1]

# What a mutant is that the compiler makes the same machine code of.
SAME = "the same object code"

CC = shlex.split(os.environ.get("CC", "cc"))
FLAGS = ["-g0", "-fPIC", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-w", "-pthread"]
QUICK, OPTIMISED = ["-O0"], ["-O1"]
# Inlined as for speed, the kernels would take minutes to compile.
CALLS = "-DINLINE=static __attribute__((noinline,unused))"
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# glibc returns no memory to the system between calls, which would take a quarter of the time.
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}

# (recording, size that the last cache is taken to have; 0: its own), the quickest first.
RECORDINGS = (
    *(("layouts", 0), ("layouts", 1), ("errors", 0), ("few", 0), ("few", 1), ("few", 300_000)),
    *(("semantics", 0), ("golden", 0), ("golden", 300_000)),
)
QUICKEST = ("layouts", 0), ("layouts", 1), ("few", 0), ("errors", 0)
# Runs the recorder inside pytest: the calls of C that tests make in this process.
OF_TESTS = """
import sys; sys.modules['numba'] = None
import pytest, recording
class Plugin:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self):
        with open({to!r}, 'wb') as file, recording.to(file):
            return (yield)
files = ['tests/api/test_%s.py' % name for name in {names}]
sys.exit(pytest.main(['-q', '-k', {which!r}, *files], [Plugin()]))
"""
# Golden cases: one of each kernel, or all others.
OF_GOLDEN = """
import golden, recording, pyce
pyce.set_backend('c')
shapes = [(53, c, 1) for c in (1, 3, 10, 17, 64, 65, 100)]
shapes += [(23, c, 1) for c in (513, 2049, 4097)]
shapes += [(2, c, 19) for c in (3, 21, 65, 2100)]
halves = [(53, 3, 1), (53, 17, 1), (53, 100, 1), (23, 2049, 1), (2, 21, 19)]
of = {{'float32': shapes, 'float64': shapes}}
cases = [c for c in golden.CASES
         if ((c.outer, c.classes, c.inner) in of.get(c.dtype, halves)) == {few}]
with open({to!r}, 'wb') as file, recording.to(file):
    for case in sorted(cases, key=lambda c: c.outer * c.classes * c.inner):
        golden.digests(case)
"""


def _of_tests(name: str, files: tuple[str, ...]) -> str:
    which = f"{PORTABLE} and not fork"
    return OF_TESTS.format(to=str(BUILD / name), names=files, which=which)


RECORDERS = {
    "few": OF_GOLDEN.format(to=str(BUILD / "few"), few=True),
    "layouts": _of_tests("layouts", ("layouts",)),
    "errors": _of_tests("errors", ("errors", "probabilities", "binary", "metrics", "backends")),
    "semantics": _of_tests(
        "semantics",
        (
            *("reductions", "ignored_rows", "nonfinite", "zero_coefficients"),
            *("shapes", "backward", "outputs"),
        ),
    ),
    "golden": OF_GOLDEN.format(to=str(BUILD / "golden"), few=False),
}


def run(command, *, timeout: float = 1800, **options) -> subprocess.CompletedProcess[str]:
    """A command in a process group of its own, which a timeout ends as a whole: status −1."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return subprocess.CompletedProcess(command, -1, f"longer than {timeout:.0f} s", "")
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def must(command, **options) -> str:
    done = run(command, **options)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}")
    return done.stdout


# ---------------------------------------------------------------------------------------------
# Units: the C files that are compiled


@cache
def units() -> dict[str, frozenset[str]]:
    """{C file: the files of csrc that it consists of}."""
    found = {}
    for path in sorted(CSRC.rglob("*.c")):
        text = must([*CC, *FLAGS, "-MM", str(path)]).replace("\\\n", " ")
        names = (Path(name).resolve() for name in text.partition(":")[2].split())
        inside = (str(p.relative_to(ROOT)) for p in names if p.is_relative_to(CSRC))
        found[str(path.relative_to(ROOT))] = frozenset(inside)
    return found


def isa_of(unit: str) -> str | None:
    """The instruction set of a unit; None of one that is compiled for every processor."""
    if not unit.startswith("csrc/kernels/"):
        return None
    stem = Path(unit).stem
    return next((isa for isa in ISAS if re.search(rf"(^|_){isa}(_|$)", stem)), PORTABLE)


def judged_in(file: str) -> list[tuple[str, list[str]]]:
    """Which instruction sets show a mutant of the file, widest first; the units to compile."""
    having = [unit for unit, files in units().items() if file in files]
    isas = {isa_of(unit) for unit in having} - {None}
    shown = [isa for isa in ISAS if isa in isas] or [ISAS[0]]
    return [(isa, [unit for unit in having if isa_of(unit) in (None, isa)]) for isa in shown]


def files() -> list[str]:
    """The files that are mutated: those of which something is compiled on this machine."""
    parts = set().union(*units().values())
    found = sorted(name for name in parts if is_judged(name))
    known = {f"simd_{isa}.h" for isa in ISAS} | {"simd_plain.h"}
    return [f for f in found if not Path(f).name.startswith("simd_") or Path(f).name in known]


@cache
def base_object(unit: str, flags: str) -> bytes:
    """The object code of a unit as it is."""
    made = BASE / (f"{unit}.o" if flags == OPTIMISED[0] else f"{unit}{flags}.o")
    if not made.exists():
        must_compile(unit, made, [flags])
    return made.read_bytes()


def must_compile(unit: str, made: Path, flags: list[str]) -> None:
    """It takes its name when it is complete."""
    to = BASE / "unfinished.o"
    done = compile_unit(ROOT, unit, to, flags)
    if done.returncode:
        sys.exit(done.stdout)
    made.parent.mkdir(parents=True, exist_ok=True)
    to.rename(made)


def compile_unit(root: Path, unit: str, to: Path, flags: list[str]):
    inline = [] if isa_of(unit) in (None, PORTABLE) else [CALLS]
    to.parent.mkdir(parents=True, exist_ok=True)
    command = [*CC, *FLAGS, *flags, *inline, "-c", str(root / unit), "-o", str(to)]
    return run(command, timeout=900)


def link(objects: dict[str, Path], to: Path, flags: list[str]) -> None:
    """A program, or the extension module, of the sources as they are but for `objects`."""
    shared = to.suffix == ".so"
    paths = [objects.get(unit, BASE / f"{unit}.o") for unit in units()]
    paths.append(BASE / ("module.o" if shared else "replay.o"))
    must([*CC, *flags, *(["-shared"] if shared else []), *map(str, paths), "-lm", "-pthread",
          "-o", str(to)])  # fmt: skip


def _sources() -> list[Path]:
    return [*sorted(CSRC.rglob("*.[ch]")), ROOT / "tests" / "c" / "replay.c"]


@cache
def build() -> None:
    """Objects of the sources as they are. What an interrupted run has made is not made again."""
    _empty_unless_made_of(BASE, _sources())
    for unit in units():
        base_object(unit, OPTIMISED[0])
    if not (BASE / "replay").exists():
        flags = [*CC, *FLAGS, *OPTIMISED, f"-I{CSRC}"]
        must([*flags, "-c", str(ROOT / "tests/c/replay.c"), "-o", str(BASE / "replay.o")])
        emit = (
            "import sys; sys.path.insert(0, 'csrc'); from build_ffi import ffi; "
            f"ffi.emit_c_code({str(BASE / 'module.c')!r})"
        )
        must([sys.executable, "-c", emit], cwd=ROOT)
        include = sysconfig.get_paths()["include"]
        must([*flags, f"-I{include}", "-DPy_LIMITED_API=0x030a0000", "-c", str(BASE / "module.c"),
              "-o", str(BASE / "module.o")])  # fmt: skip
        link({}, BASE / "replay", OPTIMISED)


@cache
def prepare(files: frozenset[str]) -> None:
    """These objects, and the recordings, if mutants of one of the files need them."""
    build()
    if not any(rule_of_c(file)[1] for file in files):
        return
    tests = [*sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "tests/api").glob("*.py"))]
    _empty_unless_made_of(BUILD / "calls", [*_sources(), *tests])
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    for name, code in RECORDERS.items():
        if not (BUILD / "calls" / name).exists():
            must([sys.executable, "-c", code], cwd=ROOT, env=environment)
            (BUILD / name).rename(BUILD / "calls" / name)


def _empty_unless_made_of(folder: Path, paths: list[Path]) -> None:
    now = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    stamp = folder / "stamp"
    if not stamp.exists() or stamp.read_text() != now:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(now)


def replay(program: Path, recording: str, cache_size: int, isa: str, timeout: float):
    with open(BUILD / "calls" / recording, "rb") as file:
        command = [str(program), "-x", *(["-c", str(cache_size)] if cache_size else []), isa]
        return run(command, stdin=file, timeout=timeout, env={**os.environ, **KEEPS_MEMORY})


@cache
def time_limit(recording: str, isa: str) -> float:
    """Seconds: five times as long as without a mutant, which is measured once."""
    file = BUILD / "calls" / f"{recording} {isa}.json"
    if not file.exists():
        begin = time.monotonic()
        done = replay(BASE / "replay", recording, 0, isa, 900)
        if done.returncode:
            sys.exit(f"the recording {recording!r} fails without a mutant:\n{done.stdout}")
        file.write_text(json.dumps(time.monotonic() - begin))
    return 5 * json.loads(file.read_text()) + 5


# ---------------------------------------------------------------------------------------------


class Copy:
    """A copy of the tree that holds one mutant at a time."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mutants"))
        for folder in ("csrc", "pyce", "tests", "docs", "bench", "examples"):
            ignore = shutil.ignore_patterns("__pycache__", "*.o")
            shutil.copytree(ROOT / folder, self.home / folder, ignore=ignore)
        for file in ("pyproject.toml", "setup.py", "Makefile", *ROOT.glob("*.md")):
            shutil.copy(ROOT / file, self.home)

    @property
    def module(self) -> Path:
        return self.home / "pyce" / "_pyce.abi3.so"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.home), "CI": ""}

    def put(self, mutant: Mutant) -> None:
        (self.home / mutant.file).write_text(mutant.apply(), encoding="utf-8")

    def restore(self, mutant: Mutant) -> None:
        (self.home / mutant.file).write_text(source(mutant.file), encoding="utf-8")

    def judge(self, mutant: Mutant, thoroughly: bool) -> str:
        """How it was killed, “survived”, “does not compile”, or “to be seen” more thoroughly."""
        self.put(mutant)
        verdict = ""
        try:
            verdict = self._judge(mutant, thoroughly)
        finally:
            self.restore(mutant)
            if verdict != "to be seen":
                shutil.rmtree(self._objects(mutant), ignore_errors=True)
        return verdict

    def _objects(self, mutant: Mutant) -> Path:
        return self.home / "objects" / hashlib.sha256(mutant.id.encode()).hexdigest()

    def _compiled(
        self, mutant: Mutant, units: list[str], flags: list[str]
    ) -> dict[str, Path] | None:
        """Its objects. Those of a mutant to be seen are kept for when it is judged thoroughly."""
        made = {unit: self._objects(mutant) / f"{unit}{''.join(flags)}.o" for unit in units}
        for unit, to in made.items():
            if not to.exists() and compile_unit(self.home, unit, to, flags).returncode:
                return None
        return made

    def _killed(self, program: Path, recording: str, cache_size: int, isa: str, times=1) -> bool:
        limit = times * time_limit(recording, isa)
        return replay(program, recording, cache_size, isa, limit).returncode != 0

    def _judge(self, mutant: Mutant, thoroughly: bool) -> str:
        widest, *others = judged_in(mutant.file)
        verdict = self._judge_in(*widest, mutant, thoroughly)
        if verdict != SAME:
            return verdict
        for isa, units in others:
            one = [unit for unit in units if unit.endswith("_f32.c")] or units
            made = self._compiled(mutant, one[-1:], OPTIMISED)
            if made is None or self._changed(made, OPTIMISED):
                return self._judge_in(isa, units, mutant, thoroughly)
        return SAME

    @staticmethod
    def _changed(objects: dict[str, Path], flags: list[str]) -> bool:
        return any(o.read_bytes() != base_object(u, flags[0]) for u, o in objects.items())

    def _judge_quickly(self, isa: str, units: list[str], mutant: Mutant) -> str:
        # Plain C's operations as calls take 20 times as long: see csrc/kernels/README.md.
        flags = OPTIMISED if isa == PORTABLE else QUICK
        f64 = [unit for unit in units if unit.endswith("_f64.c")]
        halves = [unit for unit in units if unit.endswith("f16.c")]
        changed = False
        for some in ([unit for unit in units if unit not in (*f64, *halves)], f64, halves):
            objects = self._compiled(mutant, some, flags)
            if objects is None:
                return "does not compile"
            if self._changed(objects, flags):
                changed = True
                link(objects, self.home / "replay", [])
                for recording, cache_size in QUICKEST:
                    if self._killed(self.home / "replay", recording, cache_size, isa):
                        return f"killed by calls of {recording}"
        return "to be seen" if changed else SAME

    def _judge_in(self, isa: str, units: list[str], mutant: Mutant, thoroughly: bool) -> str:
        program = self.home / "replay"
        tests, by_calls = rule_of_c(mutant.file)
        if by_calls and not thoroughly:
            return self._judge_quickly(isa, units, mutant)
        objects = self._compiled(mutant, units, OPTIMISED)
        if objects is None:
            return "does not compile"
        if not self._changed(objects, OPTIMISED):
            return SAME
        if by_calls:
            link(objects, program, [])
            for recording, cache_size in RECORDINGS:
                if self._killed(program, recording, cache_size, isa):
                    return f"killed by calls of {recording}"
            if mutant.file.startswith("csrc/kernels/"):
                link(self._compiled(mutant, units, SANITIZED) or {}, program, SANITIZED)
                for recording in ("layouts", "few"):
                    if self._killed(program, recording, 0, isa, 10):
                        return "killed by the sanitizers"
        link(objects, self.module, [])
        of_kernels = mutant.file.startswith("csrc/kernels/")
        others = [f"not {other}" for other in ISAS if other != isa and of_kernels]
        try:
            return self._tests(tests, " and ".join(["not numba", *others]))
        finally:
            shutil.copy(ROOT / "pyce" / "_pyce.abi3.so", self.module)

    def _tests(self, paths: tuple[str, ...], which: str) -> str:
        """Without Numba, whose import takes seconds."""
        code = "import sys; sys.modules['numba'] = None; import pytest; sys.exit(pytest.main())"
        for path in paths:
            done = run(
                [sys.executable, "-B", "-c", code, path, "-xq", "-p", "no:cacheprovider",
                 *(["-k", which] if which else [])],
                cwd=self.home, timeout=1200, env=self.environment,
            )  # fmt: skip
            if done.returncode not in (0, 5):  # 5: none of its tests is of this instruction set
                return f"killed by {path}"
        return "survived"
