"""Mutation testing: one change at a time to a copy of the sources, and whether tests see it.

    python tests/tools/mutate.py --sample 300 --seed 1    about that many mutants
    python tests/tools/mutate.py --all                    every one: hours

The mutants written by hand, in tests/tools/mutants.py, are always among them. A mutant of C is
killed by the recorded calls of golden.py and of other tests (tests/c/replay.c), without and with
AddressSanitizer, one of pyce.c or of Python by the tests in Python. A mutant that hangs
or crashes is killed; one that does not compile is none. The exit status is 1 where fewer than 95 %
are killed of those that equivalent_mutants.txt does not explain.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from mutants import EQUIVALENT_WITHIN, NAMED

ROOT = Path(__file__).resolve().parents[2]


def test_file(name: str) -> str:
    """Where the tests of that name are, from the root of the project."""
    (found,) = ROOT.glob(f"tests/*/test_{name}.py")
    return str(found.relative_to(ROOT))


BUILD = ROOT / "build" / "mutants"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
LEAST = 0.95

KERNELS = "csrc/kernels/"
BODIES = ("elementwise", "lanes", "rows", "short", "stamp", "vmath", "wide")
# File -> (objects that it is compiled into, the instruction set that shows it).
C_FILES = {
    **{f"{KERNELS}{body}.inc.h": (("kernels/isa_scalar",), "scalar") for body in BODIES},
    **{
        f"{KERNELS}simd_{isa}.h": ((f"kernels/isa_{isa}",), isa)
        for isa in ("scalar", "avx2", "avx512")
    },
    f"{KERNELS}kernels.h": (("pyce", "kernels/isa_scalar"), "scalar"),
    "csrc/pyce.c": (("pyce",), "scalar"),
}
# The tests that are asked of what recorded calls do not kill: of kernels, of pyce.c.
C_TESTS = (("abi",), ("abi", "errors", "other", "threads"))
OBJECTS = ("pyce", "dispatch", "pool", *(f"kernels/isa_{i}" for i in ("avx512", "avx2", "scalar")))
# File -> the tests that are asked, in order.
PYTHON_FILES = {
    "pyce/_arguments.py": ("errors", "layouts", "contract", "other", "layers"),
    "pyce/_problem.py": ("errors", "layouts", "contract", "other", "layers"),
    "pyce/_loss.py": ("errors", "contract", "layouts", "other"),
    "pyce/_softmax.py": ("errors", "contract", "layouts", "other"),
    "pyce/_probabilities.py": ("errors", "other", "contract"),
    "pyce/_binary.py": ("errors", "other", "contract"),
    "pyce/_metrics.py": ("errors", "other", "contract"),
    "pyce/_backends/c.py": ("contract", "errors", "layouts", "other"),
    "pyce/torch.py": ("torch",),
    "pyce/sklearn.py": ("sklearn",),
    **{
        f"pyce/training/_{name}.py": ("training",)
        for name in ("loop", "lr_find", "models", "presize", "sgd", "state")
    },
}

FLAGS = ["-g0", "-fPIC", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-w"]
# Inlined as for speed, the kernels would take minutes to compile.
CALLS = "-DINLINE=static __attribute__((noinline,unused))"
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@dataclass(frozen=True)
class Mutant:
    file: str
    start: int
    end: int
    new: str
    name: str

    @property
    def id(self) -> str:
        """What stays when lines are added elsewhere."""
        return " | ".join((self.file, *self.lines()))

    def apply(self) -> str:
        text = source(self.file)
        return text[: self.start] + self.new + text[self.end :]

    @property
    def line(self) -> int:
        return source(self.file).count("\n", 0, self.start) + 1

    def lines(self) -> tuple[str, str]:
        """The lines that it changes, before and after, as one line each."""
        text = source(self.file)
        first = text.rfind("\n", 0, self.start) + 1
        last = text.find("\n", self.end)
        old = text[first:last]
        new = text[first : self.start] + self.new + text[self.end : last]
        return squeezed(old), squeezed(new)

    def within(self) -> str:
        """The function that it is in."""
        text = source(self.file)[: self.start]
        if self.file.endswith(".py"):
            found = re.findall(r"^(?:    )?def (\w+)", text, re.MULTILINE)
        else:
            found = re.findall(
                r"^(?:\w[^\n;=]*?)\b(?:NAME\((\w+)\)|(\w+))\([^;]*?\{", text, re.MULTILINE
            )
            found = [a or b for a, b in found]
        return found[-1] if found else ""


def squeezed(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").split()).removesuffix("\\").strip()


_sources: dict[str, str] = {}


def source(file: str) -> str:
    if file not in _sources:
        _sources[file] = (ROOT / file).read_text(encoding="utf-8")
    return _sources[file]


# ---------------------------------------------------------------------------------------------
# Mutants of C

TOKEN = re.compile(
    r"""(?P<skip>/\*.*?\*/|//[^\n]*|\\\n|\s+)
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>0x[0-9a-fA-F.]+(?:p[+-]?\d+)?[fuUlL]*|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?[fuUlL]*)
      | (?P<word>\w+)
      | (?P<sign>->|\+\+|--|<<=|>>=|<<|>>|[<>=!+\-*/%&|^]=|&&|\|\||\#\#|.)""",
    re.DOTALL | re.VERBOSE,
)
SWAPS = {
    "<": ("<=",), "<=": ("<",), ">": (">=",), ">=": (">",), "==": ("!=",), "!=": ("==",),
    "+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("/",), "<<": (">>",), ">>": ("<<",),
    "&": ("|",), "|": ("&",), "&&": ("||",), "||": ("&&",),
    "+=": ("-=", "="), "-=": ("+=",), "*=": ("/=", "="), "/=": ("*=",), "|=": ("&=", "="),
}  # fmt: skip
OPERATIONS = {
    "add": "sub", "sub": "add", "mul": "add", "div": "mul", "fma": "fnma", "fnma": "fma",
    "keep": "drop", "drop": "keep", "nlt": "eq", "eq": "nlt",
    "widen_lo": "widen_hi", "widen_hi": "widen_lo",
}  # fmt: skip
# Calls of which one argument alone is left: no maximum, no mask.
ARGUMENTS = {"max": (0, 1), "keep": (1,), "drop": (1,), "select": (1, 2)}
DECLARES = {
    *("const", "static", "INLINE", "typedef", "enum", "struct", "extern", "ALIGNED", "FILE"),
    *("void", "int", "float", "double", "char", "size_t", "unsigned", "uint64_t", "uint32_t"),
    *("int64_t", "int32_t", "uint16_t", "T", "REAL", "V", "VM", "I", "M", "F"),
    *("vf", "vd", "vfm", "vdm"),
}
STAYS = {
    "return",
    "break",
    "continue",
    "if",
    "else",
    "for",
    "while",
    "switch",
    "case",
    "default",
    "do",
    "_Static_assert",
}


@dataclass
class Token:
    kind: str
    text: str
    start: int
    end: int


def tokens_of(text: str) -> list[Token]:
    """What may be mutated: no comments, no directives but the bodies of macros."""
    for directive in re.finditer(r"^[ \t]*#[^\n]*(?:(?<=\\)\n[^\n]*)*", text, re.MULTILINE):
        head = re.match(r"\s*#\s*define\s+\w+(?:\([^)]*\))?", directive[0])
        size = head.end() if head else len(directive[0])
        begin = directive.start()
        blank = re.sub(r"[^\n]", " ", text[begin : begin + size])
        text = text[:begin] + blank + text[begin + size :]
        if head:  # a macro's body ends where it ends
            end = directive.end()
            text = text[:end] + "\n" + text[end + 1 :]
    found = []
    for match in TOKEN.finditer(text):
        if match.lastgroup != "skip":
            found.append(Token(match.lastgroup or "", match[0], match.start(), match.end()))
    return found


def closing(tokens: list[Token], at: int) -> int:
    """The index of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += tokens[i].text in "([{"
        depth -= tokens[i].text in ")]}"
        if depth == 0:
            return i
    return len(tokens) - 1


def declared(tokens: list[Token]) -> set[int]:
    """Indices of tokens that belong to a declaration, but for its initialiser; or to a prefetch, on
    which no result depends."""
    inside: set[int] = set()
    for i, token in enumerate(tokens):
        if token.text == "__builtin_prefetch":
            inside.update(range(i, closing(tokens, i + 1) + 1))
    at, parens = 0, 0
    for i, token in enumerate(tokens):
        parens += (token.text in "([") - (token.text in ")]")
        if not (token.text in "{};" and (parens <= 0 or token.text != ";")):
            continue
        segment = tokens[at : i + 1]
        if segment and (segment[0].text in DECLARES or _names_a_type(segment)):
            equals = next((k for k, t in enumerate(segment) if t.text == "="), len(segment))
            inside.update(range(at, at + equals))
        at, parens = i + 1, 0
    return inside


def _names_a_type(segment: list[Token]) -> bool:
    """`type name…`, `type *name…` or `NAME(type) name…`."""
    if segment[0].text == "NAME" and segment[1].text == "(":
        after = segment[closing(segment, 1) + 1 :][:1]
        return bool(after) and (after[0].kind == "word" or after[0].text == "*")
    return (
        len(segment) > 2
        and segment[0].kind == "word"
        and segment[0].text not in STAYS
        and segment[1].kind == "word"
    )


def mutants_of_c(file: str) -> list[Mutant]:
    text = source(file)
    tokens = tokens_of(text)
    skip = declared(tokens)
    found = []

    def add(start, end, new, name):
        if text[start:end] != new:
            found.append(Mutant(file, start, end, new, name))

    heads: set[int] = set()  # of loops, that would never end
    for i, token in enumerate(tokens):
        if token.text == "for":
            heads.update(range(i, closing(tokens, i + 1)))
        if i in skip or (i in heads and token.text in ("+=", "-=", "*=", "/=")):
            continue
        spaced = text[token.start - 1] in " \n" and text[token.end : token.end + 1] in (" ", "\n")
        if token.kind == "sign" and token.text in SWAPS and spaced:
            for new in SWAPS[token.text]:
                add(token.start, token.end, new, "operator")
        elif token.kind == "number" and not _null(tokens, i):
            for new in _other_numbers(token.text):
                add(token.start, token.end, new, "constant")
        elif token.text in ("if", "while") and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            end = closing(tokens, i + 1)
            inner = text[tokens[i + 1].end : tokens[end].start]
            add(tokens[i + 1].end, tokens[end].start, f"!({inner})", "condition negated")
        elif token.kind == "word":
            for start, end, new, name in _other_calls(text, tokens, i):
                add(start, end, new, name)
    for start, end in _statements(tokens, skip):
        add(tokens[start].start, tokens[end].end, ";", "statement deleted")
    return found


def _null(tokens: list[Token], i: int) -> bool:
    """Whether a 0 is what a pointer begins with: `*name = 0`."""
    return tokens[i].text == "0" and tokens[i - 1].text == "=" and tokens[i - 3].text == "*"


def _other_numbers(text: str) -> list[str]:
    digits = re.fullmatch(r"(\d+)([uUlL]*)", text)
    if digits:
        value = int(digits[1])
        return [f"{value + 1}{digits[2]}"] + ([f"{value - 1}{digits[2]}"] if value else [])
    if re.fullmatch(r"0x[0-9a-f]+[uUlL]*", text):
        return [f"({text} + 1)"]
    hexadecimal = re.match(r"0x1\.([0-9a-f])", text)
    if hexadecimal:
        digit = f"{(int(hexadecimal[1], 16) + 1) % 16:x}"
        return [text[: hexadecimal.start(1)] + digit + text[hexadecimal.end(1) :]]
    if text.startswith("0x1p"):
        return [text.replace("0x1p", "0x1.8p")]
    return [str(int(text[0]) + 1) + text[1:]] if text[0].isdigit() and text[0] != "9" else []


def _other_calls(text: str, tokens: list[Token], i: int):
    """Other operations of the vocabulary: F(add)(…), vf_add(…), vd_add(…)."""
    word = tokens[i].text
    if word == "F" and i + 4 < len(tokens) and tokens[i + 1].text == "(":
        operation, name, at = tokens[i + 2].text, tokens[i + 2], i + 4
        prefix = ""
    elif re.match(r"v[fd]_\w", word):
        operation, name, at, prefix = word[3:], tokens[i], i + 1, word[:3]
    else:
        return
    if at >= len(tokens) or tokens[at].text != "(":
        return
    if operation in OPERATIONS:
        yield name.start, name.end, prefix + OPERATIONS[operation], "operation"
    if operation in ARGUMENTS:
        end = closing(tokens, at)
        cuts, depth = [tokens[at].end], 0
        for k in range(at + 1, end):
            depth += (tokens[k].text in "([{") - (tokens[k].text in ")]}")
            if tokens[k].text == "," and depth == 0:
                cuts.append(tokens[k].end)
        cuts.append(tokens[end].end)
        parts = [text[a : b - 1].strip() for a, b in itertools.pairwise(cuts)]
        for k in ARGUMENTS[operation]:
            if k < len(parts):
                yield tokens[i].start, tokens[end].end, f"({parts[k]})", "argument alone"


def _statements(tokens: list[Token], skip: set[int]):
    """First and last token of each assignment, call, `continue`, `break` and bare `return`."""
    start, parens = 0, 0
    for i, token in enumerate(tokens):
        parens += (token.text in "([") - (token.text in ")]")
        if token.text in "{}" and parens <= 0:
            start = i + 1
            continue
        if token.text == ")" and parens == 0 and tokens[start].text in ("if", "for", "while"):
            start = i + 1
            continue
        if tokens[start].text in ("else", "UNROLL", "TOGETHER", "do"):
            start += 1
        if token.text != ";" or parens > 0:
            continue
        first = tokens[start]
        simple = first.text in ("continue", "break", "return") and start + 1 == i
        if start < i and start not in skip and (simple or first.text not in STAYS):
            yield start, i
        start = i + 1


# ---------------------------------------------------------------------------------------------
# Mutants of Python

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def mutants_of_python(file: str) -> list[Mutant]:
    text = source(file)
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def at(line, column):
        return len(data[: starts[line - 1] + column].decode())

    def replace(node, new, name):
        begin, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        if text[begin:end] != new:
            found.append(Mutant(file, begin, end, new, name))

    def changed(node, **values):
        copy = type(node)(**{**{f: getattr(node, f) for f in node._fields}, **values})
        return f"({ast.unparse(ast.fix_missing_locations(copy))})"

    hidden: set[ast.AST] = set()  # docstrings and annotations
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            hidden.update(ast.walk(node.annotation))
        elif isinstance(node, ast.FunctionDef):
            for part in (*ast.walk(node.args), *([node.returns] if node.returns else [])):
                if isinstance(part, ast.arg) and part.annotation:
                    hidden.update(ast.walk(part.annotation))
                elif part is node.returns:
                    hidden.update(ast.walk(part))
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Compare):
            for i, operator in enumerate(node.ops):
                if type(operator) in COMPARISONS:
                    ops = [*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]]
                    replace(node, changed(node, ops=ops), "comparison")
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            replace(node, changed(node, op=ARITHMETIC[type(node.op)]()), "operator")
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            replace(node, changed(node, op=other), "and, or")
            for i in range(len(node.values)):
                left = [v for k, v in enumerate(node.values) if k != i]
                new = left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
                replace(node, f"({ast.unparse(new)})", "operand dropped")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            if not isinstance(node.operand, ast.Constant) or isinstance(node.op, ast.Not):
                replace(node, f"({ast.unparse(node.operand)})", "negation dropped")
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            replace(node.test, f"(not ({ast.unparse(node.test)}))", "condition negated")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            other = not node.value if type(node.value) is bool else node.value + 1
            replace(node, repr(other), "constant")
            if type(node.value) is int and node.value:
                replace(node, repr(node.value - 1), "constant")
        elif isinstance(node, ast.Return) and node.value is not None:
            replace(node, "return None", "return None")
        elif isinstance(node, (ast.Raise, ast.Assign, ast.AugAssign, ast.Continue, ast.Break)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            replace(node, "pass", "statement deleted")
    return found


# ---------------------------------------------------------------------------------------------
# Mutants by hand


def named_mutants() -> list[Mutant]:
    found = []
    for file, old, new, name in NAMED:
        text = source(file)
        if text.count(old) != 1:
            sys.exit(f"tests/tools/mutants.py, {name!r}: {file} has {text.count(old)} times\n{old}")
        begin = text.index(old)
        found.append(Mutant(file, begin, begin + len(old), new, name))
    return found


def every_mutant(files: list[str]) -> list[Mutant]:
    found = []
    for file in files:
        made = mutants_of_python(file) if file.endswith(".py") else mutants_of_c(file)
        found += {mutant.id: mutant for mutant in made}.values()
    return found


def sampled(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """About `size` of them, each file's share by the number of its mutants."""
    by_file = defaultdict(list)
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    chosen = []
    for file, some in by_file.items():
        share = max(1, round(size * len(some) / len(mutants)))
        chosen += random.Random(f"{seed} {file}").sample(some, min(share, len(some)))
    return chosen


# ---------------------------------------------------------------------------------------------
# Judging


def run(command, *, timeout=None, **options) -> subprocess.CompletedProcess[str]:
    """A command in a process group of its own, which a timeout ends whole: status −1."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return subprocess.CompletedProcess(command, -1, "hangs", "")
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def must(command, **options) -> str:
    done = run(command, **options)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}")
    return done.stdout


CC = shlex.split(os.environ.get("CC", "cc"))
# (recording, what the last cache is taken to have; 0: what it has), the quickest first.
RECORDINGS = (
    *(("layouts", 0), ("layouts", 1), ("few", 1), ("few", 300_000)),
    *(("errors", 0), ("contract", 0), ("golden", 0), ("golden", 300_000)),
)
# Runs the recorder inside pytest: what tests that call C in this process ask of it.
OF_TESTS = """
import sys; sys.modules['numba'] = None
import pytest, recording
class Plugin:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self):
        with open({to!r}, 'wb') as file, recording.to(file):
            return (yield)
files = ['tests/api/test_%s.py' % name for name in {names}]
sys.exit(pytest.main(['-q', '-k', 'scalar and not fork', *files], [Plugin()]))
"""
# Golden cases: of each kernel, or all others.
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
RECORDERS = {
    "few": OF_GOLDEN.format(to=str(BUILD / "few"), few=True),
    "layouts": OF_TESTS.format(to=str(BUILD / "layouts"), names=("layouts",)),
    "errors": OF_TESTS.format(to=str(BUILD / "errors"), names=("errors", "other")),
    "contract": OF_TESTS.format(to=str(BUILD / "contract"), names=("contract",)),
    "golden": OF_GOLDEN.format(to=str(BUILD / "golden"), few=False),
}


def compile_object(csrc: Path, name: str, to: Path, flags: list[str]):
    inline = [] if name.endswith("scalar") else [CALLS]
    to.parent.mkdir(parents=True, exist_ok=True)
    return run(
        [*CC, *FLAGS, *flags, *inline, "-pthread", "-c", str(csrc / f"{name}.c"), "-o", str(to)],
        timeout=900,
    )


def prepare() -> None:
    """Objects of the sources as they are, and the recordings."""
    base = BUILD / "base"
    texts = [p.read_bytes() for p in sorted((ROOT / "csrc").rglob("*.[ch]"))]
    tests = [p for p in sorted((ROOT / "tests").glob("*.py")) if "muta" not in p.name]
    texts += [p.read_bytes() for p in (*tests, ROOT / "tests" / "c" / "replay.c")]
    stamp = BUILD / "stamp"
    now = hashlib.sha256(b"".join(texts)).hexdigest()
    if not stamp.exists() or stamp.read_text() != now:
        shutil.rmtree(base, ignore_errors=True)
        for name in OBJECTS:
            done = compile_object(ROOT / "csrc", name, base / f"{name}.o", ["-O1"])
            if done.returncode:
                sys.exit(done.stdout)
        must([*CC, *FLAGS, "-O1", f"-I{ROOT}/csrc", "-c", str(ROOT / "tests/c/replay.c"),
              "-o", str(base / "replay.o")])  # fmt: skip
        emit = (
            "import sys; sys.path.insert(0, 'csrc'); from build_ffi import ffi; "
            f"ffi.emit_c_code({str(base / 'module.c')!r})"
        )
        must([sys.executable, "-c", emit], cwd=ROOT)
        include = sysconfig.get_paths()["include"]
        must([*CC, *FLAGS, "-O1", f"-I{ROOT}/csrc", f"-I{include}", "-DPy_LIMITED_API=0x030a0000",
              "-c", str(base / "module.c"), "-o", str(base / "module.o")])  # fmt: skip
        link(base, {}, base / "replay", ["-O1"])
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        for code in RECORDERS.values():
            must([sys.executable, "-c", code], cwd=ROOT, env=environment)
        stamp.write_text(now)


def link(base: Path, objects: dict[str, Path], to: Path, flags: list[str]) -> None:
    shared = to.suffix == ".so"
    names = [*OBJECTS, "module" if shared else "replay"]
    files = [str(objects.get(name, base / f"{name}.o")) for name in names]
    must([*CC, *flags, *(["-shared"] if shared else []), *files, "-lm", "-pthread", "-o", str(to)])


def replay(program: Path, recording: str, cache: int, isa: str, timeout: float):
    with open(BUILD / recording, "rb") as file:
        command = [str(program), "-x", *(["-c", str(cache)] if cache else []), isa]
        return run(command, stdin=file, timeout=timeout)


class Bench:
    """A copy of the tree in which one mutant at a time stands."""

    def __init__(self, limits: dict[str, float]):
        self.home = Path(tempfile.mkdtemp(prefix="mutants"))
        self.limits = limits
        for folder in ("csrc", "pyce", "tests", "docs", "bench", "examples"):
            ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.o")
            shutil.copytree(ROOT / folder, self.home / folder, ignore=ignore)
        for file in ("pyproject.toml", "setup.py", "Makefile", *ROOT.glob("*.md")):
            shutil.copy(ROOT / file, self.home)
        link(BUILD / "base", {}, self.module, ["-O1"])

    @property
    def module(self) -> Path:
        return self.home / "pyce" / "_pyce.abi3.so"

    def judge(self, mutant: Mutant, thoroughly: bool) -> str:
        """How it was killed, “survived”, “does not compile”, or “to be seen” more thoroughly."""
        target = self.home / mutant.file
        target.write_text(mutant.apply(), encoding="utf-8")
        try:
            return self._c(mutant, thoroughly)
        finally:
            target.write_text(source(mutant.file), encoding="utf-8")

    def _compiled(self, mutant: Mutant, flags: list[str]) -> dict[str, Path] | None:
        made = {}
        for name in C_FILES[mutant.file][0]:
            made[name] = self.home / "objects" / f"{name}.o"
            if compile_object(self.home / "csrc", name, made[name], flags).returncode:
                return None
        return made

    def _c(self, mutant: Mutant, thoroughly: bool) -> str:
        isa = C_FILES[mutant.file][1]
        program = self.home / "replay"
        base = BUILD / "base"
        if not thoroughly:
            objects = self._compiled(mutant, ["-O0"])
            if objects is None:
                return "does not compile"
            link(base, objects, program, [])
            killed = replay(program, "few", 0, isa, self.limits["few"]).returncode
            return "killed by calls of few" if killed else "to be seen"
        objects = self._compiled(mutant, ["-O1"])
        link(base, objects or {}, program, [])
        for recording, cache in RECORDINGS:
            if replay(program, recording, cache, isa, self.limits[recording]).returncode:
                return f"killed by calls of {recording}"
        if isa == "scalar":
            sanitized = self._compiled(mutant, SANITIZED)
            link(base, sanitized or {}, program, SANITIZED)
            for recording in ("layouts", "few"):
                limit = 10 * self.limits[recording]
                if replay(program, recording, 0, isa, limit).returncode:
                    return "killed by the sanitizers"
        objects = self._compiled(mutant, ["-O1"])
        link(base, objects or {}, self.module, [])
        others = [i for i in ("scalar", "avx2", "avx512") if i != isa]
        try:
            return self._tests(
                C_TESTS[mutant.file == "csrc/pyce.c"], f"not {others[0]} and not {others[1]}"
            )
        finally:
            link(base, {}, self.module, [])

    def judge_python(self, file: str, mutants: list[Mutant], thoroughly: bool):
        """Yields what becomes of each; see mutate_forked.py. First in some cases of each test."""
        module = file.removesuffix(".py").replace("/", ".")
        given = self.home / "given.json"
        sources = [[module, source(file)], *([module, m.apply()] for m in mutants)]
        given.write_text(json.dumps(sources), encoding="utf-8")
        tests = [test_file(name) for name in PYTHON_FILES[file]]
        process = subprocess.Popen(
            [sys.executable, "-B", "tests/tools/mutate_forked.py", given,
             str(self.limits["contract"] * 9), str(10**9 if thoroughly else 12), *tests],
            cwd=self.home, env={**os.environ, "PYTHONPATH": str(self.home), "CI": ""}, text=True,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            unchanged = process.stdout.readline().strip()
            if unchanged != "survived":
                sys.exit(f"{tests} fail without a mutant: {unchanged}")
            for mutant, line in zip(mutants, process.stdout, strict=False):
                said = line.strip()
                if said == "survived":
                    said = self._import(mutant) if thoroughly else "to be seen"
                yield mutant, said if said in ("survived", "to be seen") else f"killed: {said}"
        finally:
            os.killpg(process.pid, 9)
            process.wait()

    def _import(self, mutant: Mutant) -> str:
        """What the children of one process do not do."""
        target = self.home / mutant.file
        target.write_text(mutant.apply(), encoding="utf-8")
        once = "import pyce; pyce.cross_entropy([[1.0, 2.0]], [0])"
        for name in ("numpy", "c"):
            environment = {"PYTHONPATH": str(self.home), "PYCE_BACKEND": name}
            done = run([sys.executable, "-B", "-c", once], env={**os.environ, **environment})
            if done.returncode:
                break
        target.write_text(source(mutant.file), encoding="utf-8")
        return "when it is imported" if done.returncode else "survived"

    def _tests(self, names: tuple[str, ...], which: str) -> str:
        """Without Numba, which would take seconds to be imported each time."""
        code = "import sys; sys.modules['numba'] = None; import pytest; sys.exit(pytest.main())"
        for name in names:
            done = run(
                [sys.executable, "-B", "-c", code, test_file(name), "-xq", "-p",
                 "no:cacheprovider", "-k", which],
                cwd=self.home, timeout=self.limits["contract"] * 20,
                env={**os.environ, "PYTHONPATH": str(self.home), "CI": ""},
            )  # fmt: skip
            if done.returncode not in (0, 5):
                return f"killed by {test_file(name)}"
        return "survived"


def time_limits() -> dict[str, float]:
    limits = {}
    for name in RECORDERS:
        begin = time.monotonic()
        done = replay(BUILD / "base" / "replay", name, 0, "scalar", 900)
        if done.returncode:
            sys.exit(f"the recording {name!r} fails without a mutant:\n{done.stdout}")
        limits[name] = 5 * (time.monotonic() - begin) + 5
    return limits


# ---------------------------------------------------------------------------------------------
# The command


def read_equivalent() -> dict[tuple[str, str, str], str]:
    """{(file, line before, line after): reason} of equivalent_mutants.txt."""
    found = {}
    why = file = old = ""
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines()[2:]:
        if line.startswith("= "):
            why = line[2:]
        elif line.startswith("- "):
            old = line[2:]
            if old not in squeezed(source(file)):
                sys.exit(f"{EQUIVALENT.name}: {file} no longer has\n{old}")
        elif line.startswith("+ "):
            found[file, old, line[2:]] = why
        elif line:
            file = line
    return found


def reason(mutant: Mutant, equivalent: dict[tuple[str, str, str], str]) -> str | None:
    """Why no test can see it."""
    why = equivalent.get((mutant.file, *mutant.lines()))
    if why:
        return why
    for file, function, why in EQUIVALENT_WITHIN:
        if (file, function) == (mutant.file, mutant.within()):
            return why
    return None


def report(mutants: list[Mutant], verdicts: dict[str, str], equivalent) -> bool:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for mutant in mutants:
        verdict = verdicts.get(mutant.id)
        if verdict == "does not compile":
            counts[mutant.file]["none"] += 1
            continue
        if verdict not in ("survived", "to be seen", None):
            kind = "killed"
        elif reason(mutant, equivalent):
            kind = "equivalent"
        else:
            kind = "survived"
            survivors.append(mutant)
        counts[mutant.file][kind] += 1
        counts["all"][kind] += 1
    counts["all"]["none"] = sum(c["none"] for f, c in counts.items() if f != "all")
    print("| file | mutants | killed | equivalent | survived | killed but for equivalent |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    share = 0.0
    for file, c in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        total = c["killed"] + c["survived"]
        share = c["killed"] / total if total else 1.0
        print(f"| {file} | {total + c['equivalent']} | {c['killed']} | {c['equivalent']} "
              f"| {c['survived']} | {share:.1%} |")  # fmt: skip
    print(f"\n{counts['all']['none']} more did not compile.")
    for mutant in survivors:
        old, new = mutant.lines()
        verdict = verdicts.get(mutant.id, "no time")
        print(f"\n{verdict}: {mutant.file}:{mutant.line} ({mutant.name})\n  - {old}\n  + {new}")
    return share >= LEAST


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--all", action="store_true", help="every mutant")
    group.add_argument("--sample", type=int, metavar="N", help="about so many mutants")
    group.add_argument("--judged", action="store_true", help="those of earlier runs; see --resume")
    group.add_argument("--list", action="store_true", help="say how many there are, and no more")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--only", default="", metavar="REGEX", help="of files that match")
    parser.add_argument("--jobs", default=1, type=int, choices=(1, 2))
    parser.add_argument("--minutes", type=float, help="begin no mutant after so long")
    parser.add_argument("--resume", action="store_true", help="what was killed before stays so")
    asked = parser.parse_args()

    files = [f for f in (*C_FILES, *PYTHON_FILES) if re.search(asked.only, f)]
    by_hand = [m for m in named_mutants() if m.file in files]
    drawn = every_mutant(files)
    if asked.list:
        for file, count in Counter(m.file for m in (*drawn, *by_hand)).items():
            print(f"{count:6d} {file}")
        return
    if asked.sample is not None:
        drawn = sampled(drawn, asked.sample, asked.seed)
    random.Random(asked.seed).shuffle(drawn)
    log = BUILD / "verdicts.jsonl"
    earlier: dict[str, str] = {}
    if log.exists() and (asked.resume or asked.judged):
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            earlier[entry["id"]] = entry["verdict"]
    if asked.judged:
        drawn = [m for m in drawn if m.id in earlier]
    mutants = list({m.id: m for m in (*drawn, *by_hand)}.values())
    mutants.sort(key=lambda m: m not in by_hand)
    equivalent = read_equivalent()
    BUILD.mkdir(parents=True, exist_ok=True)
    prepare()
    limits = time_limits()
    verdicts = {id: "to be seen" if v == "survived" else v for id, v in earlier.items()}
    benches = [Bench(limits) for _ in range(asked.jobs)]
    end = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")

    def note(mutant: Mutant, verdict: str, begin: float) -> None:
        verdicts[mutant.id] = verdict
        seconds = time.monotonic() - begin
        print(f"{seconds:5.1f} s {mutant.file}:{mutant.line} {mutant.name}: {verdict}", flush=True)
        entry = {"id": mutant.id, "verdict": verdict, **asdict(mutant)}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def judge(mutant: Mutant, thoroughly: bool) -> None:
        if time.monotonic() > end:
            return
        bench = benches.pop()
        begin = time.monotonic()
        try:
            note(mutant, bench.judge(mutant, thoroughly), begin)
        finally:
            benches.append(bench)

    def judge_python(file: str, mine: list[Mutant], thoroughly: bool) -> None:
        bench = benches.pop()
        begin = time.monotonic()
        try:
            for mutant, verdict in bench.judge_python(file, mine, thoroughly):
                note(mutant, verdict, begin)
                begin = time.monotonic()
                if begin > end:
                    return
        finally:
            benches.append(bench)

    try:
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as executor:
            for thoroughly in (False, True):
                before = "to be seen" if thoroughly else None
                left = [m for m in mutants if verdicts.get(m.id) == before]
                if thoroughly:
                    left = [m for m in left if not reason(m, equivalent)]
                waiting = []
                for file in PYTHON_FILES:
                    mine = [m for m in left if m.file == file]
                    if mine:
                        waiting.append(executor.submit(judge_python, file, mine, thoroughly))
                waiting += [
                    executor.submit(judge, m, thoroughly) for m in left if m.file in C_FILES
                ]
                for done in waiting:
                    done.result()
    finally:
        for bench in benches:
            shutil.rmtree(bench.home, ignore_errors=True)
    sys.exit(0 if report(mutants, verdicts, equivalent) else 1)


if __name__ == "__main__":
    main()
