"""`pyce.info()` and the command `python -m pyce`, which prints it."""

import json
import os
import re
import shutil
from pathlib import Path

import pyce

ROOT = str(Path(pyce.__file__).parents[1])


def test_info(backend):
    report = pyce.info()
    assert set(report) == {
        "version",
        "backend",
        "reason",
        "backends",
        "isas",
        "isa",
        "threads",
        "compiler",
    }
    assert report["version"] == pyce.__version__
    assert report["backend"] == backend.name
    assert report["reason"] == "use_backend selects it"
    assert sorted(report["backends"]) == ["c", "numba", "numpy"]
    assert [n for n, reason in report["backends"].items() if reason is None] == pyce.backends()
    assert report["threads"] == pyce.get_num_threads()
    if "c" in pyce.backends():
        assert report["isa"] in report["isas"]
        assert report["isas"][-1] == "scalar"
        assert report["compiler"]
    if backend.isa:
        assert report["isa"] == backend.isa
    json.dumps(report)


def test_command(backend, run_python):
    text = run_python("-m", "pyce", **backend.environment).stdout
    assert text.startswith(f"pyce {pyce.__version__}\n")
    for name in ("c", "numba", "numpy"):
        assert f"backend {name}" in text
    lines = [line.split() for line in text.splitlines() if "in use" in line]
    assert [line[1] for line in lines] == [backend.name]
    assert f"in use: PYCE_BACKEND={backend.name} selects it" in text
    if backend.isa:
        assert f"instructions   {backend.isa}" in text
    assert ("WITHOUT its C kernels" in text) == ("c" not in pyce.backends())


def test_command_tells_why_a_backend_is_used(c_backend, run_python):
    text = run_python("-m", "pyce", PYCE_ISA=c_backend.isa).stdout
    assert re.search(rf"backend c +in use: PYCE_ISA={c_backend.isa} names an instruction set", text)
    text = run_python("-m", "pyce", NUMBA_DISABLE_JIT="1", PYCE_BACKEND="numpy").stdout
    assert re.search(r"backend numba +not available: (numba is not|NUMBA_DISABLE_JIT)", text)


def test_command_says_once_that_c_is_missing(run_python):
    """In the report, without the warning that a first call gives."""
    hide = "import sys; sys.modules['pyce._pyce'] = None\nfrom pyce.__main__ import main\n"
    for options in ([], ["--json"]):
        done = run_python("-c", f"{hide}sys.exit(main({options}))")
        assert done.stderr == ""
        assert done.stdout.count("WITHOUT its C kernels") == (not options)


def test_command_as_json(run_python):
    report = json.loads(run_python("-m", "pyce", "--json").stdout)
    assert report["backend"] == pyce.backends()[0]
    assert report["version"] == pyce.__version__


def test_command_tells_what_is_wrong(run_python):
    done = run_python("-m", "pyce", check=False, PYCE_BACKEND="cuda")
    assert done.returncode == 2
    assert "cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_tells_of_a_distribution_in_the_same_folder(run_python, tmp_path):
    """The distribution pyce, or this project under its earlier name."""
    assert "pip uninstall both" not in run_python("-m", "pyce", PYTHONPATH=ROOT).stdout
    info = tmp_path / "pyce-2.0.0.dist-info"
    info.mkdir()
    text = "Metadata-Version: 2.1\nName: pyce\nVersion: 2.0.0\n"
    (info / "METADATA").write_text(text, encoding="utf-8")
    path = os.pathsep.join([ROOT, str(tmp_path)])
    assert "pip uninstall both" in run_python("-m", "pyce", PYTHONPATH=path).stdout


def test_command_tells_of_a_distribution_that_replaced_this_one(run_python, tmp_path):
    """The other has an `__init__.py` as well, and was installed later."""
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "numba", "torch")
    shutil.copytree(Path(pyce.__file__).parent, tmp_path / "pyce", ignore=ignore)
    (tmp_path / "pyce" / "__init__.py").write_text("", encoding="utf-8")
    program = (
        "import runpy, sys; sys.path.insert(0, {!r}); runpy.run_module('pyce', run_name='__main__')"
    )
    done = run_python("-c", program.format(str(tmp_path)), check=False)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and "pip uninstall pyce pyce-kernels" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_are_opened_with_an_encoding(run_python):
    """Python warns of others, and some projects turn that warning into an error."""
    options = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")
    run_python(*options, "-c", "import pyce; pyce.info()")
    run_python(*options, "-m", "pyce")
    run_python(*options, "-c", "from pyce import _machine; _machine.fingerprint()")
