"""The layers of `pyce/_check` and `pyce/_bench`: a module imports only what is listed before it."""

import ast
from pathlib import Path

import pytest

import pyce

PACKAGE = Path(pyce.__file__).parent
LAYERS = {
    "_check": (
        *("oracle", "regimes", "real_data", "promises", "findings"),
        *("accuracy", "same_bytes", "special_cases", "check"),
    ),
    "_bench": (
        *(
            "formats",
            "memory",
            "workloads",
            "calls",
            "floors",
            "disturbance",
            "peers",
            "head",
            "candidates",
            "measure",
            "suite",
        ),
        *("results", "significance", "report", "progress", "compare", "demo", "bench"),
    ),
}


def imported(path, package):
    """The modules or packages directly in pyce/PACKAGE that a file imports."""
    prefix = f"pyce.{package}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith(prefix + "."):
                yield name.removeprefix(prefix + ".").split(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_a_layer(package):
    there = {path.stem for path in (PACKAGE / package).iterdir() if not path.stem.startswith("__")}
    assert there == set(LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_imports_a_higher_layer(package):
    order = LAYERS[package]
    for number, layer in enumerate(order):
        place = PACKAGE / package / layer
        for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
            assert set(imported(path, package)) <= set(order[: number + 1]), path


def test_the_check_knows_nothing_of_the_benchmarks():
    for path in (PACKAGE / "_check").glob("*.py"):
        assert not list(imported(path, "_bench")), path
        assert "perf_counter" not in path.read_text(encoding="utf-8"), path
