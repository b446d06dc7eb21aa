"""The layers: which module may import which, and what the C sources must not contain."""

import ast
import re
import sys
from pathlib import Path

import pytest
from every import every

import pyce

PACKAGE = Path(pyce.__file__).parent
ROOT = PACKAGE.parent
CSRC = ROOT / "csrc"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Files and packages, of which a new one is found here by itself.
BACKENDS = {f"_backends.{p.stem}" for p in (PACKAGE / "_backends").glob("[a-z]*")}

# A module imports from lower layers only. So backends import neither each other nor the registry
# (`_backends` itself), the argument checks or the public functions, and `_threads` imports no
# checks. What is not listed is above `pyce` itself: modules for other libraries and the commands.
LAYERS = (
    {"_types", "_version", "_fpenv", "_pyce", "_caches", "_extras"},
    {"_compensated", "_dtypes", "_threads"},
    {"_problem", "_threadpoolctl"},
    {"_factors"},
    {"_arguments", *BACKENDS},
    {"_backends"},
    {
        "_binary",
        "_info",
        "_linear_chunks",
        "_loss",
        "_metrics",
        "_probabilities",
        "_settings",
        "_shards",
    },
    {"_linear", "_selective", "_softmax"},
    {"_linear_selective"},
    {""},
)
LISTED = set().union(*LAYERS)
# The commands, which the rest of the package does not import.
TOOLS = ("_bench", "_check", "__main__.py")


def imports(path):
    """The dotted names of all modules that a file imports, anywhere in it, and what from them."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == PACKAGE / "__init__.py":  # which tells type checkers what is imported later
        tree.body = [node for node in tree.body if not for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            if base != "pyce":  # `from pyce import _threads` is about that module alone
                yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def within(name, module):
    return name == module or name.startswith(module + ".")


def unit(name):
    """The part of `LISTED` that a module of pyce belongs to; else its first name within pyce."""
    inside = name.removeprefix("pyce").removeprefix(".")
    listed = [u for u in LISTED if u and within(inside, u)]
    return max(listed, key=len) if listed else inside.partition(".")[0]


def unit_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return unit(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def layer(unit):
    return next((i for i, units in enumerate(LAYERS) if unit in units), len(LAYERS))


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def test_the_layers_name_what_there_is():
    assert {unit_of(path) for path in MODULES} | {"_pyce"} >= LISTED
    assert {"_backends.c", "_backends.numba", "_backends.numpy"} <= BACKENDS
    units = ("_types", "_backends.c", "_backends", "_loss", "_linear", "", "torch")
    assert [layer(unit) for unit in units] == [0, 4, 5, 6, 7, 9, 10]


@pytest.mark.parametrize(
    ("importing", "imported", "allowed"),
    [
        ("_backends.c", "pyce._problem.Problem", True),
        ("_backends.c", "pyce._pyce", True),
        ("_backends.numba", "pyce._backends.numba._math", True),
        ("_backends.numba", "pyce._backends.numpy", False),
        ("_backends.numpy", "pyce._backends", False),
        ("_backends.numpy", "pyce._backends.Backend", False),
        ("_backends.numpy", "pyce._arguments", False),
        ("_backends.numpy", "pyce._loss", False),
        ("_backends.numpy", "pyce", False),
        ("_threads", "pyce._arguments.positive_number", False),
        ("_loss", "pyce._softmax", False),
        ("_loss", "pyce._backends.current", True),
        ("", "pyce._bench", False),
        ("torch", "pyce", True),
        ("training", "pyce.torch", True),
        ("_loss", "numpy", True),
    ],
)
def test_arrows_that_are_allowed(importing, imported, allowed):
    assert may_import(importing, imported) == allowed


def may_import(importing, imported):
    if not within(imported, "pyce") or unit(imported) == importing:
        return True
    if layer(importing) == len(LAYERS):
        return True  # `test_only_the_command_knows_the_benchmarks` has the rest
    return layer(unit(imported)) < layer(importing)


@every("path", MODULES)
def test_modules_import_from_lower_layers(path):
    for name in imports(path):
        assert may_import(unit_of(path), name), name


@every("path", MODULES)
def test_the_package_imports_neither_tests_nor_benchmarks(path):
    for name in imports(path):
        for module in ("tests", "bench", "hypothesis", "conftest"):
            assert not within(name, module), name
        if not path.is_relative_to(PACKAGE / "_bench"):
            assert not within(name, "pytest"), name


@every(
    "path",
    [
        p
        for p in MODULES
        if p.relative_to(PACKAGE).parts[0] not in ("_bench", "_check", "__main__.py")
    ],
)
def test_only_the_command_knows_the_benchmarks(path):
    for name in imports(path):
        assert not within(name, "pyce._bench"), name
        assert not within(name, "pyce._check"), name


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or name == "pyce._pyce"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(text, own=""):
    """The private names of modules of pyce, other than the module `own`, that a text uses."""
    tree = ast.parse(text)
    modules = {}  # by the names that the text gives them
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "pyce"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if is_module(name):
                    modules[alias.asname or alias.name] = name
                elif is_private(alias.name) and node.module != own:
                    yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, own)
            if module != own and is_private(node.attr) and not is_module(f"{module}.{node.attr}"):
                yield f"{module}.{node.attr}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from pyce._threads import _quota_now", ["pyce._threads._quota_now"]),
        ("from pyce import _threads as t\nt._quota_now()", ["pyce._threads._quota_now"]),
        ("from pyce import _threads\n_threads.budget()", []),
        ("from pyce.torch import _compute", []),
        ("import numpy as np\nnp._core", []),
    ],
)
def test_private_names_are_found(text, found):
    assert list(private_names(text)) == found


@every("path", [*MODULES, *(ROOT / "bench").glob("*.py")])
def test_private_names_stay_in_their_modules(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert list(private_names(path.read_text(encoding="utf-8"), own)) == []


def test_the_exact_results_share_nothing_with_the_kernels():
    for name in imports(PACKAGE / "_check" / "oracle.py"):
        assert name.split(".")[0] in {"numpy", *sys.stdlib_module_names}, name


def test_import_is_light(run_python):
    code = (
        "import sys, pyce\n"
        "heavy = {'numba', 'torch', 'jax', 'sklearn', 'scipy', 'ml_dtypes', 'tensorflow',"
        " 'cffi', 'llvmlite', 'pathlib', 'pyce._bench', 'pyce._check', 'pyce._pyce',"
        " 'pyce.torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


def test_public_names():
    assert sorted(pyce.__all__) == sorted(
        [
            "LinearGradients",
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
            "linear_cross_entropy",
            "linear_cross_entropy_with_grad",
            "linear_selective_log_softmax",
            "log_loss",
            "log_softmax",
            "logsumexp",
            "nll_loss",
            "selective_log_softmax",
            "set_backend",
            "set_num_threads",
            "softmax",
            "use_backend",
        ]
    )
    for name in pyce.__all__:
        assert getattr(pyce, name).__doc__


def test_modules_are_imported_at_their_first_use(run_python):
    code = (
        "import sys, pyce\n"
        "assert pyce.training is sys.modules['pyce.training']\n"
        "try:\n"
        "    pyce.crossentropy\n"
        "except AttributeError as error:\n"
        "    print(error)"
    )
    expected = "module 'pyce' has no attribute 'crossentropy'"
    assert run_python("-c", code).stdout.strip() == expected


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


def test_intrinsics_stay_in_the_headers_of_vector_operations():
    for path in c_sources():
        if path.parent.name != "kernels" or not re.fullmatch(r"simd_\w+\.h", path.name):
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


def test_c_programs_are_compiled_as_the_extension_is():
    """But for how fast and how small it gets, which their callers choose."""
    if not CSRC.is_dir():
        return  # tests of an installed package
    flags = re.compile(r'"(-[fWs][^"]*)"').findall((CSRC / "build_ffi.py").read_text())
    wanted = set(flags) - {"-fvisibility=hidden", "-Werror"}
    text = (ROOT / "tests" / "c" / "Makefile").read_text()
    assert wanted == set(re.search(r"^FLAGS := (.*)$", text, re.MULTILINE)[1].split())
    assert "-ffp-contract=off" in wanted
