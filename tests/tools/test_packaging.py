"""Packages, pinned versions and the workflows of CI agree with the tree."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from itertools import product
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from setuptools import Extension
from setuptools.errors import CompileError

ROOT = Path(__file__).parents[2]
if not (ROOT / "setup.py").exists():
    pytest.skip("these are about the tree, not an installed package", allow_module_level=True)

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
PATHS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in PATHS}
JOBS = {
    f"{file}: {name}": job for file, flow in WORKFLOWS.items() for name, job in flow["jobs"].items()
}
job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


# ---------------------------------------------------------------------------------------------
# Packages


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder with the output of setuptools: lib/ has the files of the wheel, SOURCES.txt lists
    those of the sdist.
    """
    place = tmp_path_factory.mktemp("packed")
    setup = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(place)]
    command = [*setup, "build_py", "--build-lib", str(place / "lib")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return place


def files(folder):
    """The names of all files in a folder, except for generated ones."""
    made = re.compile(r"__pycache__|\.(so|pyc|o)$|/_pyce\.c$")
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder.parent).as_posix() for p in paths if not made.search(p.as_posix())}


def test_the_wheel_has_every_file_of_the_package_and_no_other(packed):
    assert files(packed / "lib" / "pyce") == files(ROOT / "pyce")
    assert [p.name for p in (packed / "lib").iterdir()] == ["pyce"]


def test_the_sdist_has_what_building_needs(packed):
    listed = set((packed / "pyce_kernels.egg-info" / "SOURCES.txt").read_text().splitlines())
    assert files(ROOT / "csrc") | files(ROOT / "pyce") <= listed
    docs = {n for n in files(ROOT / "docs") if "/." not in n and not n.endswith(".toml")}
    assert files(ROOT / "examples") | docs <= listed
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= listed
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = set(re.findall(r"\]\(([\w./-]+)", readme))
    pages |= set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {page for page in pages if "://" not in page} <= listed


def test_windows_compiles_with_clang(monkeypatch, tmp_path):
    """Setuptools' class for Microsoft's compiler gets clang-cl, and options that it understands."""

    class Compiler:
        compiler_type = "msvc"
        initialized = False

        def initialize(self):
            self.initialized, self.cc = True, "cl.exe"
            self.compile_options = ["/nologo", "/O2", "/W3", "/GL", "/DNDEBUG", "/MD"]

    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    use_clang = runpy.run_path(str(ROOT / "setup.py"))["use_clang"]
    clang = tmp_path / "clang-cl"
    clang.write_text("")
    clang.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    compiler = Compiler()
    extension = Extension(
        "a", [], extra_compile_args=["-O2", "-std=gnu11"], extra_link_args=["-pthread"]
    )
    use_clang(compiler, extension)
    assert compiler.initialized
    assert compiler.cc == str(clang)
    assert compiler.compile_options == ["/nologo", "/O2", "/W3", "/DNDEBUG", "/MD"]
    assert extension.extra_compile_args == ["/clang:-O2", "/clang:-std=gnu11"]
    assert extension.extra_link_args == []
    clang.unlink()
    with pytest.raises(CompileError, match="clang-cl is needed"):
        use_clang(Compiler(), extension)


# `setup.py bdist_wheel` in a Python with or without a GIL. Instead of compiling for a minute, it
# copies a file to the place of the extension.
BUILD_WHEEL = """
import runpy, shutil, sys, sysconfig
from pathlib import Path
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = {free_threaded}
if not {cffi}:
    sys.modules["cffi"] = None
from setuptools.command import build_ext

def build(self, extension):
    if not {compiles}:
        raise OSError("no compiler")
    path = Path(self.get_ext_fullpath(extension.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("README.md", path)

build_ext.build_ext.build_extension = build
sys.argv = ["setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what building needs."""
    place = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "_pyce.c")
    for folder in ("csrc", "pyce"):
        shutil.copytree(ROOT / folder, place / folder, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


def build_wheel(copy, *, free_threaded=0, compiles=True, cffi=True, require="0"):
    shutil.rmtree(copy / "dist", ignore_errors=True)
    program = BUILD_WHEEL.format(free_threaded=free_threaded, compiles=compiles, cffi=cffi)
    command = [sys.executable, "-W", "ignore", "-c", program]
    variables = {**os.environ, "PYCE_REQUIRE_C": require}
    return subprocess.run(
        command, cwd=copy, capture_output=True, text=True, timeout=600, env=variables
    )


def wheel(copy, **options):
    """Of a wheel that is built there: tag, names of the extensions, metadata and messages."""
    done = build_wheel(copy, **options)
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").iterdir()
    with zipfile.ZipFile(path) as file:
        names = [n for n in file.namelist() if n.endswith((".so", ".pyd"))]
        (info,) = (n.removesuffix("/WHEEL") for n in file.namelist() if n.endswith("/WHEEL"))
        about = file.read(f"{info}/WHEEL").decode()
    name, _, tag = path.stem.split("-", 2)
    assert name == "pyce_kernels" and f"Tag: {tag}\n" in about
    return tag, [n.removeprefix("pyce/_pyce") for n in names], about, done.stderr


@pytest.mark.parametrize("free_threaded", [0, 1])
def test_the_tag_of_a_wheel_with_the_extension(copy, free_threaded):
    """The stable ABI where there is one: free-threaded Python has none before 3.15."""
    tag, names, about, _ = wheel(copy, free_threaded=free_threaded)
    cpython, stable = sys.implementation.name == "cpython", sys.version_info >= (3, 15)
    assert "Root-Is-Purelib: false" in about
    if not cpython or (free_threaded and not stable):
        version = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        assert not cpython or tag.startswith(f"{version}-{version}")
        assert names == [sysconfig.get_config_var("EXT_SUFFIX")]
    else:
        python = "cp315" if stable else "cp310"
        assert tag.startswith(f"{python}-abi3.abi3t-" if free_threaded else f"{python}-abi3-")
        assert len(names) == 1 and "abi3" in names[0]


@pytest.mark.parametrize(
    "options",
    [{"compiles": False}, {"compiles": False, "free_threaded": 1}, {"cffi": False}],
    ids=str,
)
def test_the_tag_of_a_wheel_without_the_extension(copy, options):
    """Nothing of an earlier build is left in it, and the message names what to install."""
    wheel(copy, free_threaded=options.get("free_threaded", 0))
    tag, names, about, said = wheel(copy, **options)
    assert ("pip install cffi" in said) == ("cffi" in options)
    assert (tag, names) == ("py3-none-any", [])
    assert "Root-Is-Purelib: true" in about
    assert "WITHOUT its C kernels" in said and "--no-cache-dir pyce-kernels\n" in said


@pytest.mark.parametrize("options", [{"compiles": False}, {"cffi": False}], ids=str)
def test_an_extension_that_is_required(copy, options):
    done = build_wheel(copy, **options, require="1")
    assert done.returncode != 0
    assert ("no compiler" if "compiles" in options else "pip install cffi") in done.stderr
    assert not list((copy / "dist").glob("*.whl"))


def test_the_changelog_begins_with_the_version():
    """Its first heading with a number is that of the version in the one file that has it."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = runpy.run_path(str(ROOT / "pyce" / "_version.py"))["__version__"]
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    released = [h for h in headings if h != "Unreleased"]
    assert headings[-len(released) :] == released
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", released[0])
    assert 'version = { attr = "pyce._version.__version__" }' in PROJECT


@pytest.mark.skipif(os.name == "nt", reason="is a script of bash")
@pytest.mark.parametrize("wrong", ["wheel", "sdist"])
def test_packages_of_another_version_than_the_tag_are_refused(tmp_path, wrong):
    versions = {"wheel": "0.1.0", "sdist": "0.1.0"}
    variables = {**os.environ, "GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v0.1.0"}

    def said():
        folder = tmp_path / versions[wrong]
        folder.mkdir()
        (folder / f"pyce_kernels-{versions['wheel']}-cp310-abi3-linux_x86_64.whl").touch()
        (folder / f"pyce_kernels-{versions['sdist']}.tar.gz").touch()
        command = [str(ROOT / ".ci" / "check-packages"), str(folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=variables, check=False
        )
        assert done.returncode != 0  # the files are empty
        return done.stderr

    message = "does not have the version of the tag v0.1.0"
    assert message not in said()
    versions[wrong] = "0.1.01"
    assert message in said()


# ---------------------------------------------------------------------------------------------
# The name of the distribution, which is not that of the import


def tree():
    """The text files of the project, without what is built and measured."""
    made = re.compile(
        r"(?:^|/)(?:\.(?!ci/|github/)|build/|dist/|__pycache__|bench/(?:results|baselines)/)"
    )
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in {".so", ".png", ".pyc", ".o"} or made.search(name) or path.is_dir():
            continue
        if not name.endswith(("test_packaging.py", "test_documentation.py")):
            yield name, path.read_text(encoding="utf-8", errors="replace")


def wrong_advice(text):
    """Every command or requirement in a text that names the distribution `pyce`."""
    command = r"\b(?:pip|pip3|pipx|uv|uv pip|uv tool) (?:install|add|download|run)\b[^\n#]*"
    for found in re.finditer(command, text):
        if re.search(r"(?<![\w./-])pyce(?![\w-]|\.\w|/)", found[0]):
            yield found[0]
    yield from re.findall(r"(?<![\w.])pyce\[(?!\{)[a-z]+[^\]]*\]", text)


def test_no_advice_installs_another_project():
    assert {name: found for name, text in tree() if (found := list(wrong_advice(text)))} == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install pyce", True),
        ("pip install --upgrade 'pyce[numba]'", True),
        ("python -m pip install numpy pyce  # both", True),
        ("uv add pyce", True),
        ("needs 'pyce[torch]'", True),
        ('all = ["pyce[numba,torch]"]', True),
        ("pip install pyce-kernels", False),
        ("pip install 'pyce-kernels[numba]'", False),
        ("pip install '.[bench]'", False),
        ('machine["pyce"][0]', False),
    ],
)
def test_wrong_advice_is_found(text, wrong):
    assert bool(list(wrong_advice(text))) == wrong


def test_the_readme_says_that_the_names_differ():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'name = "pyce-kernels"' in PROJECT
    assert len(re.findall(r"unrelated project", text)) == 1


# ---------------------------------------------------------------------------------------------
# Pins


def test_make_installs_what_is_pinned():
    """Every package has exactly one version on every Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    named = re.findall(r"^\w+_NEEDS := ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    named += re.findall(r"\$\(PIP\) (.*)", MAKEFILE)
    text = re.sub(r"\$\(\w+\)|[\\\n]", " ", " ".join(named))
    needs = set(re.sub(r'"([\w-]+)[^"]*"', r"\1", text).split())
    assert {"numpy", "torch", "tensorflow-cpu", "ruff", "cibuildwheel"} <= needs
    for name, version in product(sorted(needs), PYTHONS):
        there = {"python_version": version}
        found = [p for p in pins if p.name == name and (not p.marker or p.marker.evaluate(there))]
        assert len(found) == 1, (name, version)


# ---------------------------------------------------------------------------------------------
# CI


def combinations(job):
    """The combinations of the matrix of a job, each as a dictionary."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    included = matrix.pop("include", [])
    made = [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]
    return [m for m in made if m] + included or [{}]


def commands(job):
    """All commands of a job, for every combination of its matrix."""
    for values in combinations(job):
        for step in job["steps"]:
            name = re.compile(r"\$\{\{ matrix\.(\w+) \}\}")
            yield name.sub(lambda m, v=values: str(v.get(m[1], "")), step.get("run", ""))


def test_every_supported_python_is_tested():
    lowest = int(re.search(r'requires-python = ">=3\.(\d+)"', PROJECT)[1])
    newest = int(PYTHONS[-1].split(".")[1])
    assert [f"3.{minor}" for minor in range(lowest, newest + 1)] == PYTHONS
    tested = combinations(WORKFLOWS["ci.yml"]["jobs"]["test"])
    assert [c["python"] for c in tested if c["os"] == tested[0]["os"]] == PYTHONS
    assert {c["python"] for c in tested} == set(PYTHONS)
    wheels = re.search(r"^build = (\[.*\])", PROJECT, re.MULTILINE)[1]
    assert re.findall(r'"cp3(\d+)-\*"', wheels) == [p.split(".")[1] for p in PYTHONS]


@job
def test_ci_runs_what_make_has(job):
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    called = {name for run in commands(job) for name in re.findall(r"\bmake\s+(\S*)", run)}
    assert called <= targets
    assert called or any("-m pyce" in run for run in commands(job))


# What a person calls; times, and tables and pictures of the tree; and what takes many hours.
NOT_IN_CI = """
help build format clean
bench bench-full bench-peers bench-head bench-one-thread bench-compare bench-baseline bench-scaling
bench-fit bench-dask bench-compiled bench-ranks
accuracy-peers report example-docs frozen-features filter-picture
mutation-all
"""


def test_every_target_that_checks_something_runs_in_ci():
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    runs = " ".join(run for one in JOBS.values() for run in commands(one))
    assert targets - set(re.findall(r"\bmake\s+(\S*)", runs)) == set(NOT_IN_CI.split())


@pytest.mark.parametrize("variable", ["PYCE_TEST_EXHAUSTIVE", "PYCE_TEST_STRESS"])
def test_the_target_of_a_variable_runs_each_test_that_reads_it(variable):
    [command] = re.findall(rf"^\t{variable}=1 .* -m pytest (.*)", MAKEFILE, re.MULTILINE)
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    reading = {path for path in paths if f'"{variable}"' in path.read_text(encoding="utf-8")}
    assert reading == {ROOT / word for word in command.split() if word.startswith("tests/")}


def test_ci_calls_commands_that_there_are():
    command = [sys.executable, "-m", "pyce", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600).stdout
    runs = [PROJECT, *(run for job in JOBS.values() for run in commands(job))]
    called = {name for run in runs for name in re.findall(r"-m pyce ([a-z]+)", run)}
    assert called == {"bench", "check", "compare", "report"}
    for name in called:
        assert re.search(rf"\b{name}\b", shown), name


def test_every_check_of_the_container_runs_in_ci():
    """.ci/run runs the targets of CI in one container, with the same variables and time limits."""
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    runs = " ".join(run for job in JOBS.values() for run in commands(job))
    steps = [step for job in JOBS.values() for step in job["steps"]]
    told = {name: value for step in steps for name, value in step.get("env", {}).items()}
    alone = re.findall(r"^ *(?:run|check) \d+ ([\w-]+)(.*)", text, re.MULTILINE)
    assert {"lint", "docs", "test", "sanitize"} < {target for target, _ in alone}
    assert all(
        line.startswith("timeout ") for line in re.findall(r"^.*\bmake \S*venv.*", text, re.M)
    )
    for target, options in alone:
        assert re.search(rf"make {target}\b", runs), target
        for name, value in re.findall(r'([A-Z_]+)="([^"]*)"', options):
            # In CI, a job of its own replays the calls and runs the tests on every instruction set.
            assert name in ("REPLAYED", "EXCEPT") or told[name] == value


@job
def test_jobs_end_and_may_do_little(job):
    assert 0 < job["timeout-minutes"] <= 90
    assert "permissions" not in job
    for step in job["steps"]:
        used = step.get("uses")
        assert used is None or re.fullmatch(r"actions/[\w-]+@v\d+", used), used
        if used and used.startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("flow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_workflows_may_only_read(flow):
    assert flow["permissions"] == {"contents": "read"}
    assert flow["concurrency"]["cancel-in-progress"] is True
    assert "secrets" not in str(flow)
