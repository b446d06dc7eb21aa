"""The documentation's code blocks run, its commands and options exist, and its links resolve.

The `python` and `pycon` blocks of a file run in order and in one namespace; doctest compares the
output of `pycon` blocks. For each library that blocks of a file import, one test runs these blocks
together with those that import none, and is skipped if the library is not installed (`make
test-peers` installs all of them). A page whose first block imports a library is run with it only.
Commands in `sh` blocks and in the text are looked up in the Makefile, the argument parsers and
`pyproject.toml`; `python -m pyce` without arguments is run. `text` blocks contain no code. Every
block must have one of these languages.
"""

import ast
import doctest
import importlib.util
import inspect
import itertools
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pyce
from pyce import __main__ as command_line
from pyce import _backends

ROOT = Path(__file__).resolve().parents[2]
FILES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"]
FILES += ["csrc/kernels/README.md"]
FILES += sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
# Modules of pyce, and the libraries that they require.
WITH_LIBRARY = {name: name for name in ("dask", "jax", "numba", "sklearn", "torch")}
WITH_LIBRARY["mpi"] = "mpi4py"
LANGUAGES = {"python", "pycon", "sh", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the number of its first line of code, counted from 1."""

    language: str
    line: int
    text: str


def text_of(file):
    return (ROOT / file).read_text(encoding="utf-8")


def blocks(text):
    """The fenced blocks, and indented blocks, whose language is empty."""
    lines = enumerate(text.splitlines(keepends=True), 1)
    in_list = False
    for number, line in lines:
        fence = re.match(r" *(`{3,}|~{3,}) *(.*)", line)
        if fence:
            inside = ""
            for _, line in lines:
                if line.strip() == fence[1]:
                    break
                inside += line
            yield Block(fence[2].strip(), number + 1, inside)
        elif re.match(r" *([-*+]|\d+\.) ", line):
            in_list = True
        elif line.strip() and not line.startswith(" "):
            in_list = False
        elif line.startswith("    ") and line.strip() and not in_list:
            yield Block("", number, line)


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("```python\n1\n```\n", ["python"]),
        ("````python\n```\n````\n\n```sh\n```\n", ["python", "sh"]),
        ("```\n1\n```\n", [""]),
        ("~~~ pycon\n1\n~~~", ["pycon"]),
        ("1. one\n\n    ```c\n    1\n    ```\n", ["c"]),
        ("words\n\n    1\n", [""]),
        ("- words\n\n    more words\n", []),
        ("- words\n\nwords\n\n    1\n", [""]),
    ],
)
def test_blocks_are_found(text, languages):
    assert [block.language for block in blocks(text)] == languages


@pytest.mark.parametrize("file", FILES)
def test_every_block_has_a_known_language(file):
    unknown = [(b.line, b.language) for b in blocks(text_of(file)) if b.language not in LANGUAGES]
    assert unknown == []


# ---------------------------------------------------------------------------------------------
# Python


def examples(block):
    return doctest.DocTestParser().get_examples(block.text)


def libraries(block):
    """The modules that a block imports, without the standard library, NumPy and pyce."""
    code = block.text
    if block.language == "pycon":
        code = "".join(example.source for example in examples(block))
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {needs(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(needs(node.module))
    return names - set(sys.stdlib_module_names) - {"numpy", "pyce"}


def needs(module):
    """The library that a module belongs to or, for a module of pyce, requires."""
    library = module.removeprefix("pyce.").partition(".")[0]
    return WITH_LIBRARY.get(library, module.partition(".")[0])


def python_blocks(file):
    return [b for b in blocks(text_of(file)) if b.language in ("python", "pycon")]


def needed(file):
    return sorted(set().union(*map(libraries, python_blocks(file))))


def run_session(test):
    failures = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    names = test.globs
    runner.run(test, out=failures.append, clear_globs=False)
    if failures:
        pytest.fail("".join(failures), pytrace=False)
    return names


def run_blocks(file, namespace, library=None):
    for block in python_blocks(file):
        if libraries(block) - {library}:
            continue
        if block.language == "pycon":
            test = doctest.DocTest(
                examples(block), namespace, file, file, block.line - 1, block.text
            )
            namespace.update(run_session(test))
        else:
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, str(ROOT / file), "exec"), namespace)
    return namespace


def sessions(file):
    """The library, or None, of each run of a file."""
    found = python_blocks(file)
    requires_one = bool(found) and bool(libraries(found[0]))
    return needed(file) if requires_one else [None, *needed(file)]


RUNS = [(file, library) for file in FILES for library in sessions(file)]
# What torchrun sets, for one process.
ONE_PROCESS = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # any free one
}


@pytest.mark.parametrize(("file", "library"), [run for run in RUNS if python_blocks(run[0])])
def test_python_blocks_run(file, library, tmp_path, monkeypatch):
    if library and not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    if library == "threadpoolctl" and "c" not in pyce.backends():
        pytest.skip("threadpoolctl finds pyce through the C extension")
    monkeypatch.chdir(tmp_path)
    for name, value in ONE_PROCESS.items():
        monkeypatch.setenv(name, value)
    run_blocks(file, {"__name__": "documentation"}, library)


def test_pages_with_code_are_collected():
    assert {"README.md", "docs/index.md", "docs/recipes.md"} <= {
        f for f in FILES if python_blocks(f)
    }
    assert {"torch", "sklearn", "ml_dtypes"} <= {library for _, library in RUNS}


@pytest.mark.parametrize(
    "text",
    [
        "```python\nassert False\n```",
        "```python\nx = 1\n```\n\n```pycon\n>>> x\n2\n```",
        "```pycon\n>>> import numpy as np\n```\n\n```python\nassert np is None\n```",
    ],
)
def test_failing_code_is_reported(text, tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_blocks("page.md", {})


# Modules with public functions, and the page that documents them.
NAMES = ("dask", "jax", "mpi", "sklearn", "torch", "training")
MODULES = {f"pyce.{name}": f"docs/{name}.md" for name in NAMES}


# Libraries that an example requires in addition to those of its module.
NEEDS = {"pyce.training.presize": "PIL", "pyce.training.LRCurve.plot": "matplotlib"}


def public(module):
    """The full names of a module's functions and classes."""
    return [f"{module.__name__}.{name}" for name in module.__all__ if name != "__version__"]


def methods(name):
    """The full names of the public methods that a class or a base of it in pyce defines."""
    thing = resolve(name)
    bases = inspect.getmro(thing) if inspect.isclass(thing) else ()
    own = {
        n: f for base in bases if base.__module__.startswith("pyce.") for n, f in vars(base).items()
    }
    return [f"{name}.{n}" for n, f in own.items() if inspect.isfunction(f) and n[0] != "_"]


def resolve(name):
    """The object with a full name."""
    found = pyce
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


FUNCTIONS = public(pyce)
HERE = [m for m in MODULES if needs(m) == "pyce" or importlib.util.find_spec(needs(m))]
THINGS = [*FUNCTIONS, *(name for module in HERE for name in public(resolve(module)))]
THINGS += [method for name in THINGS for method in methods(name)]


@pytest.mark.parametrize("name", ["pyce", "pyce.training", *THINGS])
def test_docstring_examples(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    namespace = {"pyce": pyce, "np": np}
    if name.startswith("pyce.torch."):
        namespace["torch"] = importlib.import_module("torch")
    text = inspect.getdoc(resolve(name))
    test = doctest.DocTestParser().get_doctest(text, namespace, name, None, None)
    assert test.examples, "no example"
    run_session(test)


@pytest.mark.parametrize("name", THINGS)
def test_docstrings_describe_parameters_and_results(name):
    """Every docstring stands alone: it refers to no other function for its parameters."""
    thing = resolve(name)
    text = inspect.getdoc(thing)
    signature = inspect.signature(thing)
    named = [parameter for parameter in signature.parameters if parameter != "self"]
    fields = getattr(thing, "__dataclass_fields__", None)
    if fields:
        named = [*fields, *(n for n, v in vars(thing).items() if isinstance(v, property))]
    described = [n for n in named if re.search(rf"(?m)^(?:\w+, )*{n}(?:, \w+)* : ", text)]
    assert described == named
    returns = "None" not in str(signature.return_annotation).replace("Iterator[None]", "None")
    if not inspect.isclass(thing) and returns:
        assert "\nReturns\n-------\n" in text


def test_every_function_is_on_a_page():
    pages = "".join(text_of(file) for file in FILES if file.startswith("docs/api/"))
    assert sorted(re.findall(r"(?m)^::: (\S+)$", pages)) == sorted(FUNCTIONS)
    assert "`pyce.__version__`" in pages


@pytest.mark.parametrize("module", HERE)
def test_every_function_of_a_module_is_on_its_page(module):
    shown = re.findall(r"(?m)^::: (\S+)$", text_of(MODULES[module]))
    assert sorted(shown) == sorted(public(resolve(module)))


# ---------------------------------------------------------------------------------------------
# Commands


def commands(text):
    """(line, words) of each command in `sh` blocks and in the text."""
    for block in blocks(text):
        if block.language == "sh":
            for i, line in enumerate(block.text.replace("\\\n", "  ").splitlines()):
                words = shlex.split(line, comments=True)
                if words:
                    yield block.line + i, words
    prose = re.sub(r"(?ms)^ *(```+).*?^ *\1 *$", lambda m: "\n" * m[0].count("\n"), text)
    for found in re.finditer(
        r"(?<!`)`((?:[A-Z_]+=\S+\s)*(?:make|python -m pyce|python examples)\b[^`]*)`", prose
    ):
        yield prose.count("\n", 0, found.start()) + 1, shlex.split(found[1])


def sources():
    paths = [*(ROOT / "pyce").rglob("*.py"), ROOT / "setup.py", ROOT / "Makefile"]
    return "".join(path.read_text(encoding="utf-8") for path in paths)


def help_of(*words):
    """The output of `python -m pyce WORDS --help`."""
    with pytest.MonkeyPatch.context() as patch:
        output = []
        patch.setattr(sys, "stdout", types.SimpleNamespace(write=output.append, flush=lambda: None))
        patch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as end:
            command_line.main([*words, "--help"])
    assert not end.value.code
    return "".join(output)


def has_command(name):
    return name in command_line.COMMANDS


def fault(words):
    """The first fault of a command, or None."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        name, words = words[0].partition("=")[0], words[1:]
        if name not in sources():
            return f"no source reads the variable {name}"
    if words[0] == "make":
        targets = re.findall(r"(?m)^([a-z0-9-]+):.*?##", text_of("Makefile"))
        for word in words[1:]:
            if word not in targets and not re.match(r"[A-Z_]+=", word):
                return f"no target {word}"
        return None
    if words[0] in ("torchrun", "mpiexec"):
        while words[1:2] and words[1].startswith("-"):  # options, each with a value
            words = [words[0], *words[3:]]
        words = words[1:] if words[1:2] == ["python"] else ["python", *words[1:]]
        if words[1:3] == ["-m", "mpi4py"]:
            words = ["python", *words[3:]]
        if words in (["python", "train.py"], ["python", "head.py"]):  # programs of the reader
            return None
    if words[:3] == ["python", "-m", "pyce"]:
        arguments = words[3:]
        name = arguments[:1] if arguments and not arguments[0].startswith("-") else []
        if name and not has_command(name[0]):
            return f"no command {name[0]}"
        known = help_of(*name)
        for word in arguments:
            option = word.partition("=")[0]
            if option.startswith("-") and not re.search(rf"(?<![\w-]){option}(?![\w-])", known):
                return f"no option {option}"
        return None
    if words[0] == "python" and words[1:2] and words[1].startswith("examples/"):
        if not (ROOT / words[1]).is_file():
            return f"no example {words[1]}"
        for word in words[2:]:  # not from its --help, which requires its imports
            if word.startswith("-") and f'add("{word.partition("=")[0]}"' not in text_of(words[1]):
                return f"no option {word.partition('=')[0]}"
        return None
    if words[:2] == ["pip", "install"]:
        for word in words[2:]:
            found = re.fullmatch(r"(?:\.|pyce-kernels)(?:\[([\w,]+)\])?", word)
            if not found:
                return f"{word} is not pyce-kernels"
            for extra in (found[1] or "all").split(","):
                section = text_of("pyproject.toml").partition("[project.optional-dependencies]")[2]
                if not re.search(rf"(?m)^{extra} = \[", section.partition("\n[")[0]):
                    return f"no extra {extra}"
        return None
    if words == ["cd", ".."]:
        return None
    return f"unknown command {words[0]}"


@pytest.mark.parametrize("file", FILES)
def test_commands_exist(file):
    found = [(line, fault(words)) for line, words in commands(text_of(file))]
    assert [f"{file}:{line}: {what}" for line, what in found if what] == []


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("make test bench", None),
        ("make FUZZ_SECONDS=3600 fuzz", None),
        ("FUZZ_SECONDS=3600 make fuzz", None),
        ("make nothing", "no target nothing"),
        ("python -m pyce", None),
        ("python -m pyce --json", None),
        ("python -m pyce --jso", "no option --jso"),
        ("python -m pyce nothing", "no command nothing"),
        ("PYCE_ISA=scalar python -m pyce", None),
        ("PYCE_CHIP=scalar python -m pyce", "no source reads the variable PYCE_CHIP"),
        ("python examples/language_model.py --steps 10", None),
        ("python examples/language_model.py --step 10", "no option --step"),
        ("python examples/nothing.py", "no example examples/nothing.py"),
        ("torchrun --nproc-per-node 2 examples/ddp.py --epochs 3", None),
        ("torchrun --nproc-per-node 2 examples/ddp.py --epoch 3", "no option --epoch"),
        ("mpiexec -n 2 python -m pyce", None),
        ("mpiexec -n 2 python -m pyce nothing", "no command nothing"),
        ("mpiexec -n 2 python -m mpi4py head.py", None),
        ("mpiexec -n 2 python -m mpi4py nothing.py", "unknown command python"),
        ("cd ..", None),
        ("pip install . # words", None),
        ("pip install '.[numba,bench]'", None),
        ("pip install '.[nothing]'", "no extra nothing"),
        ("pip install 'pyce-kernels[torch]'", None),
        ("pip install pyce", "pyce is not pyce-kernels"),
        ("pip install torch", "torch is not pyce-kernels"),
        ("rm -rf /", "unknown command rm"),
    ],
)
def test_faulty_commands_are_reported(command, what):
    assert [fault(words) for _, words in commands(f"```sh\n{command}\n```")] == [what]


def test_commands_in_the_text_are_found():
    assert list(commands("Run\n`make it`, or `python -m pyce it`.")) == [
        (2, ["make", "it"]),
        (2, ["python", "-m", "pyce", "it"]),
    ]


SHOWN = sorted({tuple(words) for file in FILES for _, words in commands(text_of(file))})


@pytest.mark.parametrize("words", [w for w in SHOWN if w[-3:] == ("python", "-m", "pyce")])
def test_commands_run(words, run_python):
    variables = dict(word.split("=") for word in words[:-3])
    if variables.get("PYCE_BACKEND") in {"c", "numba"} - set(pyce.backends()):
        pytest.skip(f"{words[0]} is not available")
    output = run_python("-m", "pyce", **variables).stdout
    for value in variables.values():
        assert re.search(rf"(?m)\b{value}\b.* in use$|{value}\b", output)


# ---------------------------------------------------------------------------------------------
# Links


def anchors(file):
    """The anchors of a file: its headings and the functions that it documents."""
    prose = re.sub(r"(?ms)^(```+).*?^\1$", "", text_of(file))
    for heading in re.findall(r"(?m)^#+ (.*)$", prose):
        yield re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
    yield from (f"pyce.{name}" for name in re.findall(r"(?m)^::: pyce\.(\w+)$", prose))


@pytest.mark.parametrize("file", FILES)
def test_links_resolve(file):
    """Links in the repository; `make docs` checks those of the site."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(file)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / file).parent / path).resolve() if path else ROOT / file
        known = target.is_file() and ROOT in target.parents
        if not known or (anchor and anchor not in anchors(target.relative_to(ROOT))):
            wrong.append(link)
    assert wrong == []


# ---------------------------------------------------------------------------------------------
# The backend in docs/extending.md


@pytest.fixture
def plain(monkeypatch):
    name = "pyce._backends.plain"
    module = types.ModuleType(name)
    run_blocks("docs/extending.md", module.__dict__)
    assert '`("plain", _import_plain, None)`' in text_of("docs/extending.md")
    line = ("plain", lambda: module, None)
    monkeypatch.setattr(_backends, "_REGISTRY", (*_backends._REGISTRY, line))
    monkeypatch.setattr(_backends, "NAMES", (*_backends.NAMES, "plain"))
    monkeypatch.setattr(_backends, "_loaded", dict(_backends._loaded))
    assert pyce.backends()[-1] == "plain"
    return module


def test_example_backend_is_complete(plain):
    names = {n for n in vars(_backends.Backend) if not n.startswith("_")}
    names |= set(_backends.Backend.__annotations__)
    assert names <= set(vars(plain))
    rng = np.random.default_rng(0)
    x, soft = rng.normal(size=(3, 4, 5)), rng.uniform(size=(3, 4, 5))
    w, targets = rng.uniform(0.5, 2, (4, 3, 5)), rng.uniform(size=(3, 4, 5))

    def everything(axis, kind, **options):
        rows = np.delete(x.shape, axis)
        target = np.arange(np.prod(rows)).reshape(rows) % x.shape[axis]
        if kind == "ignored":
            target[1] = -100
        options = dict(options, axis=axis)
        options["weight"] = w[0, 0, : x.shape[axis]]
        options["sample_weight"] = np.resize(w, rows)
        target = soft if kind == "probabilities" else target
        loss, grad, lse = pyce.cross_entropy_with_grad(x, target, return_lse=True, **options)
        grad_loss = np.resize(w, rows) if options["reduction"] == "none" else 2.0
        back = pyce.cross_entropy_backward(grad_loss, x, target, lse, **options)
        yield from (loss, grad, lse, back, pyce.cross_entropy(x, target, **options))
        yield from (pyce.softmax(x, axis), pyce.log_softmax(x, axis), pyce.logsumexp(x, axis))
        yield from pyce.binary_cross_entropy_with_grad(
            x, targets, weight=2.0, pos_weight=x**2, reduction=options["reduction"]
        )

    kinds = ("labels", "ignored", "probabilities")
    for axis, kind, reduction, smoothing in itertools.product(
        range(3), kinds, ("mean", "sum", "none"), (0.0, 0.2)
    ):
        results = {}
        for name in ("plain", "numpy"):
            with pyce.use_backend(name):
                options = {"reduction": reduction, "label_smoothing": smoothing}
                results[name] = list(everything(axis, kind, **options))
        for ours, theirs in zip(results["plain"], results["numpy"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
