"""Which tests judge the mutants of each source file, the most specific first.

Every file of pyce/ and csrc/ has a rule here or a reason why no test could notice its mutants;
tests/tools/test_mutation.py checks that.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mutant import ROOT

import pyce

# The widest instruction set stands for C.
IN_PROCESS = " and ".join(
    ["not fork", "not numba", *(f"not c-{isa}" for isa in pyce.info()["isas"][1:])]
)
COMPUTE = tuple(
    f"tests/api/test_{name}.py"
    for name in (
        *("reductions", "ignored_rows", "nonfinite", "shapes", "backward", "outputs"),
        *("binary", "probabilities"),
    )
)
API = (
    *("tests/api/test_errors.py", "tests/api/test_layouts.py", *COMPUTE),
    *("tests/api/test_metrics.py", "tests/api/test_backends.py", "tests/api/test_grid.py"),
)
SHARDS = "tests/api/test_shards.py"
COMMANDS = ("tests/tools/test_cli.py", "tests/process/test_command.py")


def _folder(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{folder}/test_{name}.py" for name in names)


class Rule(NamedTuple):
    """How the modules that match are judged: by which tests, and which cases of these (-k).

    Where Numba compiles, at most `cases` of each test function judge what survived one of them.
    """

    modules: str
    tests: tuple[str, ...]
    which: str = IN_PROCESS
    compiled: bool = False
    cases: int = 5


_TORCH = _folder("integrations", "torch", "torch_autograd", "torch_operators", "torch_selective")
_LINEAR = _folder("integrations", "torch_linear")
_VOCAB = _folder("integrations", "torch_vocab_parallel")
_VOCAB_LINEAR = _folder("integrations", "torch_vocab_parallel_linear")
_SLOW = " and not ".join(
    (
        *("test_memory", "compiled", "opcheck", "two_to_the", "test_pytorchs"),
        *("gradgradcheck", "transforms"),
    )
)
_SOLVERS = _folder("integrations", "sklearn_solvers", "sklearn")
_REPORT = _folder("tools", "report", "goals", "readme_tables")

RULES = (
    Rule(r"_backends/numba/_shards", (SHARDS,), "numba", compiled=True),
    Rule(r"_backends/numba/_bernoulli", _folder("api", "binary"), "numba", compiled=True),
    Rule(r"_backends/numba/_launch",
         (*_folder("accuracy", "numba_paths"), *_folder("api", "binary"),
          *_folder("process", "threads", "numba_cache", "signals", "forks")),
         "numba", compiled=True),
    Rule(r"_backends/numba/_(jit|math)",
         (*_folder("accuracy", "numba_math", "numba_constants", "numba_paths"), *COMPUTE),
         "numba", compiled=True),
    Rule(r"_backends/numba/_half_types", _folder("accuracy", "accuracy"), "numba and half",
         compiled=True),
    Rule(r"_backends/numba/_(rows|sums)",
         (*COMPUTE, *_folder("accuracy", "numba_paths")), "numba", compiled=True),
    Rule(r"_backends/numba/_(index_tiles|lanes|tiles|vectors)",
         (*_folder("accuracy", "numba_paths"), *COMPUTE), "numba", compiled=True),
    Rule(r"_backends/numba/\w+",
         (*COMPUTE, SHARDS, *_folder("accuracy", "numba_paths"), *_folder("api", "layouts")),
         "numba", compiled=True),
    Rule(
        r"_backends/numpy",
        (*COMPUTE, SHARDS, *_folder("api", "layouts"), *_folder("accuracy", "accuracy")),
        "numpy and not fork",
    ),
    Rule(r"_backends/c", (*API, SHARDS)),
    Rule(
        r"_(backends/__init__|selection|settings)",
        _folder("api", "backends", "errors") + _folder("process", "environment", "command"),
    ),
    Rule(r"_shards", (*_folder("api", "shards_linear"), SHARDS)),
    Rule(r"mpi", _folder("integrations", "mpi")),
    Rule(
        r"(dask|jax|sklearn|torch|training)/__init__",
        (*_folder("documentation", "documentation"), *_folder("process", "frozen")),
        "every_function_of or missing_library",
    ),
    Rule(r"dask/\w+", _folder("integrations", "dask", "dask_cluster"),
         f"{IN_PROCESS} and not larger_than_the_memory"),
    Rule(r"torch/_vocab_parallel", _VOCAB),
    Rule(r"torch/_vocab_parallel_linear", _VOCAB_LINEAR),
    Rule(r"torch/_linear_layer", _LINEAR, f"{IN_PROCESS} and not {_SLOW}"),
    Rule(r"torch/_linear\w*", _LINEAR),
    Rule(r"torch/_selective", _folder("integrations", "torch_selective", "torch_operators")),
    Rule(r"torch/_operators", _folder("integrations", "torch_operators")),
    Rule(r"torch/_patched", _folder("integrations", "torch_patched")),
    Rule(r"torch/\w+", _TORCH + _folder("integrations", "torch_patched")),
    Rule(r"jax/\w+", _folder("integrations", "jax")),
    Rule(r"sklearn/_(cv)", _folder("integrations", "sklearn_cv")),
    Rule(r"sklearn/_team", _folder("integrations", "sklearn_threads", "sklearn_solvers"),
         "not numba"),
    Rule(r"sklearn/_(objective|classifier|estimator)",
         _folder("integrations", "sklearn", "sklearn_solvers", "sklearn_threads")),
    Rule(r"sklearn/\w+", _SOLVERS),
    *(
        Rule(rf"training/_{name}", _folder("integrations", f"training_{name}"))
        for name in ("loop", "lr_find", "models", "presize", "sgd")
    ),
    Rule(r"training/\w+", _folder("integrations", "training", "training_loop", "training_lr_find")),
    Rule(r"numba/\w+",
         (*_folder("process", "frozen"), *_folder("integrations", "numba_compiled")),
         "not fork and (missing_library or numba_compiled)", compiled=True, cases=100),
    Rule(r"_linear_selective|_selective", _folder("api", "selective", "linear")),
    Rule(r"_linear\w*", _folder("api", "linear", "selective")),
    Rule(
        r"_factors",
        _folder("api", "extreme_factors", "nonfinite", "zero_coefficients", "grid", "shards"),
    ),
    Rule(r"_binary", _folder("api", "binary", "errors", "layouts", "grid")),
    Rule(r"_compensated", _folder("accuracy", "compensated") + COMPUTE),
    Rule(
        r"_(arguments|problem|dtypes|loss|softmax|probabilities|metrics)",
        (*API, *_folder("accuracy", "softmax"), *_folder("api", "masked_arrays", "selective",
         "linear", "shards_linear"), SHARDS),
    ),
    Rule(
        r"__init__",
        (*_folder("tools", "layers"), *_folder("process", "threadpoolctl", "command"),
         *_folder("api", "backends")),
    ),
    Rule(r"_threads", _folder("process", "thread_count", "environment", "threads")),
    Rule(r"_threadpoolctl", _folder("process", "threadpoolctl")),
    Rule(r"_fpenv", _folder("process", "fpenv")),
    Rule(
        r"_(machine|caches|info)",
        _folder("tools", "fingerprint") + _folder("process", "machine", "thread_count", "command"),
    ),
    Rule(r"_extras", _folder("process", "frozen")),
    Rule(r"__main__", COMMANDS),
    Rule(r"_cli", (*COMMANDS, *_folder("tools", "compare", "check"))),
    Rule(r"_check/oracle", _folder("accuracy", "oracle") + _folder("tools", "check")),
    Rule(r"_check/\w+", _folder("tools", "check")),
    Rule(r"_bench/report/style", _folder("tools", "formats", "report")),
    Rule(r"_bench/report/plots/\w+", _folder("tools", "pictures", "report")),
    Rule(
        r"_bench/report/picture",
        _REPORT + _folder("tools", "ranks") + _folder("documentation", "filter_picture"),
    ),
    Rule(r"_bench/report/\w+", _REPORT),
    Rule(r"_bench/(compare|significance)", _folder("tools", "compare")),
    Rule(r"_bench/demo", _folder("tools", "demo")),
    Rule(r"_bench/(head|memory)", _folder("tools", "head")),
    Rule(r"_bench/(calls|candidates|floors|suite/(bench_loss|bench_digits|plan))",
         _folder("tools", "measure")),
    Rule(r"_bench/workloads", _folder("tools", "workloads", "measure", "goals")),
    Rule(r"_bench/measure", _folder("tools", "measure", "head")),
    Rule(r"_bench/progress", _folder("tools", "progress")),
    Rule(r"_bench/peers", _folder("tools", "head")),
    Rule(r"_bench/disturbance", _folder("tools", "disturbance")),
    Rule(r"_bench/results", _folder("tools", "compare", "pictures", "report", "disturbance")),
    Rule(r"_bench/formats", _folder("tools", "formats")),
    Rule(r"_bench/(suite/\w+|\w+)", _folder("tools", "bench", "disturbance")),  # minutes
)  # fmt: skip
# Files whose mutants no test could notice, or that have none.
NOT_JUDGED = {
    r"pyce/_(types|version)\.py": "types for the checker, and the version",
    r"csrc/(pyce\w*|internal|kernels/targets)\.h": "declarations, which the compiler checks",
    r"csrc/floor\.c": "what benchmarks compare with, which reads and writes memory",
    r"csrc/kernels/instances/\w+\.c": "includes",
    r"csrc/kernels/isa_\w+\.c": "includes",
    r"csrc/platform_windows\.h": "compiled on Windows alone",
    r"csrc/(build_ffi|kernels/coefficients)\.py": "run when pyce is built, or by hand",
}
# Tests of sources in C that the recorded calls do not judge, or not alone; and whether they do.
RULES_OF_C = (
    (r"csrc/kernels/partial\.inc\.h", (SHARDS, "tests/c/test_abi.py"), False),
    (r"csrc/xla_ffi\.[ch]", _folder("integrations", "jax") + _folder("c", "no_memory"), False),
    (r"csrc/factors\.[ch]", _folder(
        "api", "extreme_factors", "zero_coefficients", "nonfinite"), True),
    (r"csrc/cache\.c", ("tests/c/test_abi.py",), True),
    (r"csrc/(selective\.c|kernels/selective\.inc\.h)",
     (*_folder("api", "selective"), "tests/c/test_abi.py"), True),
    (r"csrc/(pool|platform_posix|platform|reduce)\.[ch]", _folder("c", "no_memory") + _folder(
        "process", "threads", "thread_count", "forks", "signals"), True),
    (r"csrc/dispatch\.[ch]", _folder("api", "backends") + _folder("process", "environment"), False),
    (r"csrc/fpenv\.h", _folder("process", "fpenv"), False),
    (r"csrc/kernels/cpu_x86\.h", _folder("c", "cpu"), False),
    (r"csrc/kernels/scale\.inc\.h", ("tests/c/test_abi.py",), False),
    (r"csrc/kernels/(vmath|exp_\w+|real_\w+)\.\S+",
     ("tests/c/test_vmath.py", "tests/c/test_abi.py", SHARDS), True),
    (r"csrc/kernels/.*", ("tests/c/test_abi.py", SHARDS), True),
    (r"csrc/.*", ("tests/c/test_abi.py", SHARDS, *_folder("c", "no_memory"),
                  *_folder("api", "errors"), *_folder("process", "threads")), True),
)  # fmt: skip


def rule_of(file: str) -> Rule | None:
    """The rule of a module, whose file is named from the root of the project."""
    name = file.removeprefix("pyce/").removesuffix(".py")
    return next((rule for rule in RULES if re.fullmatch(rule.modules, name)), None)


def rule_of_c(file: str) -> tuple[tuple[str, ...], bool]:
    """The tests in Python that judge a file in C, and whether recorded calls do so first."""
    return next((tests, calls) for rule, tests, calls in RULES_OF_C if re.fullmatch(rule, file))


def is_judged(file: str) -> bool:
    return not any(re.fullmatch(pattern, file) for pattern in NOT_JUDGED)


@cache
def modules() -> tuple[str, ...]:
    """The modules that are mutated."""
    paths = sorted((ROOT / "pyce").rglob("*.py"))
    names = (path.relative_to(ROOT).as_posix() for path in paths)
    return tuple(name for name in names if is_judged(name))


def unjudged(files: list[str]) -> list[str]:
    """What is wrong: files without a rule, and tests that do not exist."""
    wrong = [
        f"no rule judges {file}" for file in files if file.endswith(".py") and not rule_of(file)
    ]
    tests = {test for rule in RULES for test in rule.tests}
    tests |= {test for _, some, _ in RULES_OF_C for test in some}
    return wrong + [
        f"there is no {test}" for test in sorted(tests) if not Path(ROOT, test).exists()
    ]
