"""The house rules: who imports whom, what the sources must not hold, what a call may allocate."""

import ast
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_proc

import pyce

PACKAGE = Path(pyce.__file__).parent
ROOT = PACKAGE.parent
CSRC = ROOT / "csrc"
MODULES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = [p for p in MODULES if p.parent.name == "_backends" and p.stem != "__init__"]


def imports(path):
    """The dotted names of all modules that a file imports, anywhere in it, and what from them."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            if base != "pyce":  # `from pyce import _threads` is about that module alone
                yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name, module):
    return name == module or name.startswith(module + ".")


def test_there_is_something_to_look_at():
    assert {p.stem for p in BACKENDS} >= {"numba", "numpy"}
    assert len(MODULES) > 5


@pytest.mark.parametrize("path", BACKENDS, ids=lambda p: p.stem)
def test_backends_know_neither_each_other_nor_the_door(path):
    forbidden = {f"pyce._backends.{p.stem}" for p in BACKENDS if p != path}
    forbidden |= {"pyce._loss", "pyce._info"}
    for name in imports(path):
        assert not any(within(name, module) for module in forbidden), name
        assert not within(name, "pyce._backends"), name
        assert not re.fullmatch(r"pyce(\.[a-z]\w*)?", name), f"{name} is the door"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_imports_neither_tests_nor_benchmarks(path):
    for name in imports(path):
        for module in ("tests", "bench", "hypothesis", "conftest"):
            assert not within(name, module), name
        if not path.is_relative_to(PACKAGE / "_bench"):
            assert not within(name, "pytest"), name


def test_the_check_does_not_import_the_benchmarks():
    for path in (PACKAGE / "_check").glob("*.py"):
        for name in imports(path):
            assert not within(name, "pyce._bench"), (path.name, name)
            assert not within(name, "time"), (path.name, name)


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in MODULES
        if not p.is_relative_to(PACKAGE / "_bench")
        and not p.is_relative_to(PACKAGE / "_check")
        and p.stem != "__main__"
    ],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_only_the_command_knows_the_benchmarks(path):
    for name in imports(path):
        assert not within(name, "pyce._bench"), name
        assert not within(name, "pyce._check"), name


def test_the_exact_results_share_nothing_with_the_kernels():
    for name in imports(PACKAGE / "_check" / "oracle.py"):
        assert name.split(".")[0] in {"numpy", *sys.stdlib_module_names}, name


def test_import_is_light(run_python):
    code = (
        "import sys, pyce\n"
        "heavy = {'numba', 'torch', 'jax', 'sklearn', 'scipy', 'ml_dtypes', 'tensorflow',"
        " 'cffi', 'llvmlite', 'pyce._bench', 'pyce._check'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


def test_public_names():
    assert sorted(pyce.__all__) == sorted(
        [
            "__version__",
            "accuracy",
            "backends",
            "binary_cross_entropy",
            "binary_cross_entropy_with_grad",
            "cross_entropy",
            "cross_entropy_backward",
            "cross_entropy_with_grad",
            "get_backend",
            "get_num_threads",
            "info",
            "log_loss",
            "log_softmax",
            "logsumexp",
            "nll_loss",
            "set_backend",
            "set_num_threads",
            "softmax",
            "use_backend",
        ]
    )
    for name in pyce.__all__:
        assert getattr(pyce, name).__doc__


# ---------------------------------------------------------------------------------------------
# C sources


def c_sources():
    if not CSRC.is_dir():
        return []  # tests of an installed package
    return sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])


def code_of(path):
    """The text without comments and strings."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


# A pause and the control register are no arithmetic.
INTRINSIC = re.compile(
    r"\b_mm(?!_(?:pause|getcsr|setcsr)\b)\w*|\b__m(?:128|256|512)\w*|\bv\w+q_[fsu]\d+\b"
    r"|\b__builtin_ia32_(?!(?:pause|stmxcsr|ldmxcsr)\b)\w*"
)
CPU_HEADER = re.compile(r"#\s*include\s*<(?:\w*mmintrin|arm_neon|arm_sve)\.h>")


def test_c_knows_nothing_of_python():
    for path in c_sources():
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"#\s*include\s*[<\"](Python\.h|numpy/[^>\"]*)[>\"]", text)
        assert not found, (path.name, found)


def test_intrinsics_stay_in_their_dialects():
    for path in c_sources():
        dialect = path.parent.name == "kernels" and re.fullmatch(r"simd_\w+\.h", path.name)
        if not dialect:
            found = INTRINSIC.findall(code_of(path)) + CPU_HEADER.findall(path.read_text())
            assert not found, (path.name, found[:5])


def test_no_unsafe_flags():
    looked_at = [p for p in (ROOT / "setup.py", ROOT / "Makefile") if p.exists()]
    looked_at += [p for p in CSRC.rglob("*") if p.is_file() and p.suffix in (".c", ".h", ".py")]
    unsafe = re.compile(
        r"-ffast-math|-Ofast|-march=native|-mcpu=native|-funsafe-math|optimize.*fast-math"
    )
    for path in looked_at:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if not line.lstrip().startswith(("#", "//", "*", "/*")):
                assert not unsafe.search(line), (path.name, line)


def test_c_neither_prints_nor_aborts():
    for path in c_sources():
        found = re.findall(r"\b(?:printf|fprintf|puts|abort|exit|assert)\s*\(", code_of(path))
        assert not found, (path.name, found)


def test_kernels_allocate_nothing():
    for path in c_sources():
        if path.parent.name == "kernels":
            found = re.findall(r"\b(?:malloc|calloc|realloc|free|alloca)\s*\(", code_of(path))
            assert not found, (path.name, found)


# ---------------------------------------------------------------------------------------------
# Memory

MEASURE = """
import sys, tracemalloc
import ml_dtypes, numpy as np, pyce

rows, classes, axis, kind, soft = {rows}, {classes}, {axis}, {kind!r}, {soft}
pyce.set_num_threads(2)

def status(field):
    for line in open('/proc/self/status'):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def problem(rows, classes):
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    shape = (rows, classes) if axis == 1 else (classes, rows)
    x = np.zeros(shape, dtype)
    x[...] = np.linspace(-3, 3, shape[1]).astype(dtype)
    out = np.ones_like(x)
    target = np.ones(shape, np.float32) if soft else np.zeros(rows, np.int64)
    return x, target, out

def calls(x, target, out):
    for options in ({{}}, {{'label_smoothing': 0.1}}):
        loss, grad, lse = pyce.cross_entropy_with_grad(
            x, target, axis=axis, out=out, return_lse=True, **options)
        pyce.cross_entropy(x, target, axis=axis, **options)
        pyce.cross_entropy_backward(1.0, x, target, lse, axis=axis, out=out, **options)
    pyce.softmax(x, axis=axis, out=out)
    pyce.log_softmax(x, axis=axis, out=out)
    pyce.logsumexp(x, axis=axis)

# Compiled, threads started, and as many arrays of a row's and a column's length as will be.
calls(*problem(40, classes))
calls(*problem(rows, 40))
big = problem(rows, classes)
big[2][...] = 0
tracemalloc.start()
with open('/proc/self/clear_refs', 'w') as f:
    f.write('5')  # the high-water mark starts anew
before = status('VmRSS')
calls(*big)
print(tracemalloc.get_traced_memory()[1])
print(status('VmHWM') - before)
"""

MIB = 2**20


@pytest.mark.parametrize(
    ("axis", "kind", "soft"),
    [
        (1, "float32", False),
        (1, "float32", True),
        (0, "float32", False),
        (0, "float32", True),
        (1, "bfloat16", False),
        (0, "bfloat16", False),
        (1, "float64", False),
    ],
)
@needs_proc
def test_memory_beside_inputs_and_outputs(backend, run_python, axis, kind, soft):
    """1 MiB, two rows per thread and 32 bytes per row; never anything of the logits' size."""
    if backend.isa and backend.isa != pyce.info()["isas"][0]:
        return  # all instruction sets share the entry points that could allocate
    rows, classes = 512, 8192
    code = MEASURE.format(rows=rows, classes=classes, axis=axis, kind=kind, soft=soft)
    done = run_python("-c", backend.share_small_work + code, **backend.environment)
    traced, resident = map(int, done.stdout.split())
    threads, outputs = 2, 3 * 8 * rows
    allowed = MIB + 2 * threads * classes * 8 + 32 * rows + outputs
    assert traced <= allowed
    # Pages, malloc's own arenas and tracing come on top.
    assert resident <= allowed + 2 * MIB


LAYOUTS = {
    "padded rows": lambda: (np.ones((500, 4500), np.float32)[:, :2000], 1),
    "stepped classes": lambda: (np.ones((500, 4000), np.float32)[:, ::2], 1),
    "reversed": lambda: (np.ones((500, 2000), np.float32)[::-1, ::-1], 1),
    "Fortran": lambda: (np.ones((2000, 500), np.float32).T, 1),
    "broadcast": lambda: (np.broadcast_to(np.float32(1), (500, 2000)), 1),
    "class axis first": lambda: (np.ones((2000, 500), np.float32), 0),
    "dimensions swapped": lambda: (np.ones((20, 50, 1000), np.float32).transpose(1, 2, 0), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_not_copied(backend, layout):
    """Whatever the strides: 4 MB of logits, not a third of that beside them."""
    x, axis = LAYOUTS[layout]()
    y = np.zeros(np.delete(x.shape, axis), int)
    out = np.empty(x.shape, x.dtype)
    pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)
    pyce.cross_entropy(x, y, axis=axis)  # both compiled
    tracemalloc.start()
    try:
        pyce.cross_entropy(x, y, axis=axis)
        pyce.cross_entropy_with_grad(x, y, axis=axis, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 3


def test_c_programs_are_compiled_as_the_extension_is():
    """But for how fast and how small it gets, which their callers choose."""
    if not CSRC.is_dir():
        return  # tests of an installed package
    flags = re.compile(r'"(-[fWs][^"]*)"').findall((CSRC / "build_ffi.py").read_text())
    wanted = set(flags) - {"-fvisibility=hidden", "-Werror"}
    text = (ROOT / "tests" / "c" / "Makefile").read_text()
    assert wanted == set(re.search(r"^FLAGS := (.*)$", text, re.MULTILINE)[1].split())
    assert "-ffp-contract=off" in wanted
