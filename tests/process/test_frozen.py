"""Programs that contain pyce in another form than an installed package.

Tools that freeze a program, such as PyInstaller, include the modules that import statements name.
`modulefinder` of the standard library finds them in the same way. `make test-clients` freezes a
program with PyInstaller.
"""

import json
import shutil
import zipfile
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

import pyce
from pyce import _backends

ROOT = Path(pyce.__file__).resolve().parents[1]
PROGRAM = """
import json
import pyce
loss, grad = pyce.cross_entropy_with_grad([[1.0, 2.0, 0.5]], [1])
print(json.dumps([pyce.info(), float(loss), pyce.__file__]))
"""
# Only what was found of pyce can be imported, and Numba cannot.
ALONE = """
import sys
for name in ("numba", *{hidden}):
    sys.modules[name] = None
sys.path.insert(0, {place!r})
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The names of the modules that an import scanner finds, and a folder with those of pyce."""
    folder = tmp_path_factory.mktemp("frozen")
    script = folder / "program.py"
    script.write_text("import pyce\n", encoding="utf-8")
    others = [
        "numpy",
        "numba",
        "torch",
        "dask",
        "distributed",
        "pandas",
        "psutil",
        "jax",
        "sklearn",
        "mpi4py",
        "scipy",
        "matplotlib",
        "PIL",
        "ml_dtypes",
    ]
    finder = ModuleFinder(excludes=[*others, "threadpoolctl"])
    finder.run_script(str(script))
    for name, module in finder.modules.items():
        if name.split(".")[0] == "pyce":
            target = folder / Path(module.__file__).relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module.__file__, target)
    return set(finder.modules), folder


def run(run_python, place, *hidden, check=True):
    """What the program prints, with pyce from `place` and without the modules in `hidden`."""
    code = ALONE.format(place=str(place), hidden=hidden) + PROGRAM
    done = run_python("-W", "ignore", "-c", code, check=check, PYCE_BACKEND="", PYCE_ISA="")
    report, loss, file = json.loads(done.stdout)
    assert file.startswith(str(place))
    assert loss == pytest.approx(0.46436878)
    return report


def test_a_scanner_finds_every_backend(found):
    names, _ = found
    assert {f"pyce._backends.{name}" for name in _backends.NAMES} <= names
    if "c" in pyce.backends():
        assert {"pyce._pyce", "_cffi_backend"} <= names
    assert "pyce._bench" not in names and "pyce._check" not in names


def test_what_a_scanner_finds_runs(found, run_python):
    report = run(run_python, found[1])
    c = "c" in pyce.backends()
    assert report["backend"] == ("c" if c else "numpy")
    assert "not installed" in report["backends"]["numba"]


def test_without_cffi(found, run_python):
    """The message says what is missing, not that the extension was not built."""
    report = run(run_python, found[1], "_cffi_backend")
    assert report["backend"] == "numpy"
    reason = report["backends"]["c"]
    assert "needs cffi: pip install cffi" in reason and "not built" not in reason


def test_without_the_extension(found, run_python, tmp_path):
    shutil.copytree(found[1] / "pyce", tmp_path / "pyce", ignore=shutil.ignore_patterns("*.so"))
    report = run(run_python, tmp_path)
    assert report["backend"] == "numpy"
    assert "install a C compiler, then reinstall pyce-kernels" in report["backends"]["c"]
    # Among its sources, where `pip install .` puts no extension.
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "build_ffi.py").touch()
    reason = run(run_python, tmp_path)["backends"]["c"]
    assert f"not built in the sources in {tmp_path}: build it with `make build`" in reason


def test_the_advice_for_an_extra(found, run_python, tmp_path):
    """It is a command that pip can carry out: only an installed distribution is known by name."""

    def advice():
        code = f"import sys; sys.path[:2] = [{str(tmp_path)!r}]; import pyce._extras as extras\n"
        return run_python("-c", code + "print(extras.advice('numba'))").stdout.strip()

    shutil.copytree(found[1] / "pyce", tmp_path / "pyce")
    assert advice() == "pip install 'pyce-kernels[numba]'"
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "build_ffi.py").touch()
    assert advice() == f"pip install '{tmp_path}[numba]'"
    (tmp_path / "pyce_kernels.egg-info").mkdir()  # what a build leaves there
    (tmp_path / "pyce_kernels.egg-info" / "PKG-INFO").write_text("Name: pyce-kernels\n")
    assert advice() == f"pip install '{tmp_path}[numba]'"
    (tmp_path / "pyce_kernels-0.dist-info").mkdir()  # an editable installation
    (tmp_path / "pyce_kernels-0.dist-info" / "METADATA").write_text("Name: pyce-kernels\n")
    assert advice() == "pip install 'pyce-kernels[numba]'"


def test_an_extension_that_cannot_be_loaded(found, run_python, tmp_path):
    ignore = shutil.ignore_patterns("*.so", "*.pyd")
    shutil.copytree(found[1] / "pyce", tmp_path / "pyce", ignore=ignore)
    (tmp_path / "pyce" / "_pyce.py").write_text("raise ImportError('no libc')\n", encoding="utf-8")
    report = run(run_python, tmp_path)
    assert report["backends"]["c"] == "the C extension cannot be loaded (no libc)"


def test_in_an_archive(found, run_python, tmp_path):
    """Python cannot import extensions from an archive, so that NumPy computes."""
    archive = tmp_path / "program.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (found[1] / "pyce").rglob("*.py"):
            file.write(path, path.relative_to(found[1]))
    report = run(run_python, archive)
    assert report["backend"] == "numpy"
    assert "was not included in this program" in report["backends"]["c"]


MISSING = """
import importlib, sys
sys.modules.update(dict.fromkeys(("dask", "jax", "mpi4py", "numba", "sklearn", "torch")))
from pyce._extras import advice
for name in ("dask", "jax", "mpi", "numba", "sklearn", "torch"):
    try:
        importlib.import_module(f"pyce.{name}")
    except ImportError as error:
        assert str(error).startswith(f"pyce.{name} needs "), error
        assert advice(name) in str(error), error
    else:
        raise AssertionError(name)
"""


def test_a_missing_library_is_asked_for_by_the_name_of_its_extra(run_python):
    run_python("-c", MISSING)
