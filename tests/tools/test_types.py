"""What a type checker knows of pyce: complete signatures, and the types that calls return."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pyce
from pyce import _arguments, _backends, _types

PACKAGE = Path(pyce.__file__).parent
ROOT = Path(__file__).resolve().parents[2]

# Lines that end in `# error: CODE` must be refused with that code, and no others.
PROGRAM = """
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import pyce

Array32 = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

x = np.zeros((2, 3), np.float32)
y = np.array([0, 2])
Loss = np.float32 | np.float64

# A scalar for "mean" and "sum", an array for "none", and the lse on request.
assert_type(pyce.cross_entropy(x, y), Loss)
assert_type(pyce.cross_entropy(x, y, reduction="sum"), Loss)
assert_type(pyce.cross_entropy(x, y, reduction="none"), Array32 | Array64)
assert_type(pyce.cross_entropy(x, y, return_lse=True), tuple[Loss, Array64])
losses, lse = pyce.cross_entropy(x, y, reduction="none", return_lse=True)
assert_type(losses, Array32 | Array64)
assert_type(lse, Array64)
loss, grad = pyce.cross_entropy_with_grad(x, y, out=x)
assert_type(loss, Loss)
loss, grad, lse = pyce.cross_entropy_with_grad(x, y, return_lse=True)
losses, grad, lse = pyce.cross_entropy_with_grad(x, y, reduction="none", return_lse=True)
grad.sum()
pyce.cross_entropy_backward(1.0, x, y, lse)[0]
pyce.cross_entropy_backward(losses, x, y, lse, reduction="none")[0]
assert_type(pyce.nll_loss(x, y), Loss)
assert_type(pyce.log_loss(x, y, reduction="none", eps=1e-7), Array32 | Array64)
assert_type(pyce.binary_cross_entropy(x, x), Loss)
assert_type(pyce.binary_cross_entropy(x, x, reduction="none"), Array32 | Array64)
assert_type(pyce.binary_cross_entropy_with_grad(x, x)[0], Loss)
assert_type(pyce.logsumexp(x, keepdims=True), Array64)
assert_type(pyce.accuracy(x, y), float)
pyce.softmax(x).mean()


def of_any_reduction(reduction: Literal["mean", "sum", "none"]) -> float:
    result = pyce.cross_entropy(x, y, reduction=reduction)
    return result.mean() if isinstance(result, np.ndarray) else float(result)


def with_or_without(lse: bool) -> object:
    return pyce.cross_entropy(x, y, return_lse=lse)


# Anything that NumPy makes an array of, and NumPy's integers for integers.
pyce.cross_entropy([[1.0, 2.0]], [1], axis=np.int64(1), weight=(1, 2), sample_weight=[0.5])
pyce.set_num_threads(np.int32(1))

pyce.set_backend("numpy")
with pyce.use_backend("auto"):
    assert_type(pyce.get_backend(), Literal["c", "numba", "numpy"])
assert_type(pyce.info()["threads"], int)
assert_type(pyce.info()["isas"], list[str])

pyce.cross_entropy(x, y, reduction="average")  # error: call-overload
pyce.cross_entropy(x, y, 1)  # error: call-overload
pyce.cross_entropy(x, y, axis="last")  # error: call-overload
pyce.cross_entropy_with_grad(x, y, out=[[0.0]])  # error: call-overload
pyce.cross_entropy_backward(1.0, x, y, lse, reduction="average")  # error: arg-type
pyce.softmax(x, out="x")  # error: arg-type
pyce.set_backend("fastest")  # error: arg-type
pyce.use_backend("fortran")  # error: arg-type
pyce.info()["cores"]  # error: typeddict-item
pyce.cross_entrpy(x, y)  # error: attr-defined
pyce.training.minibatches(x, y, size=1)
"""


@pytest.fixture(scope="module")
def mypy():
    """Runs mypy --strict over a program; returns its lines with errors as (line, code)."""
    pytest.importorskip("mypy")

    def run(path):
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "MYPYPATH": str(PACKAGE.parent), "NO_COLOR": "1"},
            timeout=600,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        found = re.findall(r"(?m)^.*?:(\d+): error: .*\[([a-z-]+)\]$", done.stdout)
        assert len(found) == done.stdout.count(" error: "), done.stdout
        return {(int(line), code) for line, code in found}, done.stdout

    return run


def test_what_a_users_program_is_told(mypy, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    wanted = {
        (number, line.rpartition("# error: ")[2])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# error: " in line
    }
    found, output = mypy(path)
    assert wanted
    assert found == wanted, output


def test_backends_fit_the_protocol(mypy, tmp_path):
    path = tmp_path / "backends.py"
    lines = ["from pyce._backends import Backend\n"]
    for name in _backends.NAMES:
        lines.append(f"import pyce._backends.{name} as {name}_\n{name}: Backend = {name}_\n")
    path.write_text("".join(lines), encoding="utf-8")
    found, output = mypy(path)
    assert not found, output


# ---------------------------------------------------------------------------------------------
# Signatures, as they are at run time

MODULES = ["pyce", "pyce.training"]
MODULES += [
    f"pyce.{name}"
    for name in ("dask", "jax", "mpi", "sklearn", "torch")
    if importlib.util.find_spec({"mpi": "mpi4py"}.get(name, name))
]
# Whose results and arguments have types of other libraries, which need not have any.
OF_LIBRARIES = {f"pyce.{name}" for name in ("dask", "jax", "mpi", "sklearn", "torch", "training")}


def functions(module):
    """(name, function) of a module's public functions and of its classes' public methods."""
    module = importlib.import_module(module)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and (
                    not method.startswith("_") or method in ("__init__", "__enter__", "__exit__")
                ):
                    yield f"{name}.{method}", function
        elif callable(thing):
            yield name, thing


FUNCTIONS = [(module, name, f) for module in MODULES for name, f in functions(module)]


def vague(hint):
    """Whether a type, or one of a union or tuple, is Any; the dtype of an array may be."""
    if hint is typing.Any or hint in (object, dict, list, tuple):
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list, dict):
        return any(vague(part) for part in typing.get_args(hint) if part is not ...)
    return False


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (typing.Any, True),
        (typing.Any | None, True),
        (tuple[np.float32, typing.Any], True),
        (list, True),
        (npt.NDArray[typing.Any], False),
        (npt.ArrayLike | None, False),
        (_types.Scalar | _types.Losses, False),
    ],
)
def test_vague_types_are_seen(hint, expected):
    assert vague(hint) == expected


def test_there_are_functions_to_look_at():
    names = {name for _, name, _ in FUNCTIONS}
    assert {n for n in pyce.__all__ if inspect.isfunction(getattr(pyce, n))} <= names


@pytest.mark.parametrize(
    ("module", "function"),
    [(module, f) for module, _, f in FUNCTIONS],
    ids=[f"{module}.{name}" for module, name, _ in FUNCTIONS],
)
def test_signatures_are_complete(module, function):
    of_overloads = getattr(typing, "get_overloads", lambda _: [])  # from Python 3.11
    function = inspect.unwrap(function)
    for variant in [function, *of_overloads(function)]:
        signature = inspect.signature(variant)
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        for part in parameters:
            assert part.annotation is not part.empty, part.name
        assert signature.return_annotation is not signature.empty
        if module not in OF_LIBRARIES:
            hints = typing.get_type_hints(variant)
            for name in [*(p.name for p in parameters), "return"]:
                assert not vague(hints[name]), f"{name}: {hints[name]}"


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").is_file()


def test_names_in_types_are_those_at_run_time():
    assert typing.get_args(_types.BackendName) == _backends.NAMES
    assert typing.get_args(_types.BackendChoice) == ("auto", *_backends.NAMES)
    assert typing.get_args(_types.Reduction) == _arguments.REDUCTIONS
    assert set(typing.get_args(_types.ToScalar)) == set(_arguments.REDUCTIONS) - {"none"}
