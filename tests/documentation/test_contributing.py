"""The files that the documentation names exist, and the lists of CONTRIBUTING.md are complete.

A list says which files change when, for example, an instruction set is added. It is compared with
the files that mention one that exists already.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")
PAGES += ("docs/derivation.md", "docs/extending.md", "docs/glossary.md", "docs/inside.md")
SUFFIXES = "c|h|py|md|json|toml|txt|yml|so"
# What a page's example or a command makes.
MADE = {"pyce/_backends/plain.py", "bench/results/report", "build/site"}


def text_of(file):
    return (ROOT / file).read_text(encoding="utf-8")


def paths(text):
    """The paths within backticks: `a/b`, `a/`, `b.py`, with `*` or `<name>` for any name."""
    prose = re.sub(r"(?ms)^ *(```+).*?^ *\1 *$", "", text)
    for name in re.findall(r"(?<!`)`(\.?[\w*<>][\w.*/<>-]*)`", prose):
        folder, _, file = name.rpartition("/")
        if re.search(rf"\.(?:{SUFFIXES})$", file) or (folder and re.fullmatch(r"[\w.*]*", file)):
            yield name


def matches(path, **names):
    """The files (or the folder) of a path; `names` replace the `<…>`, by default with any name."""
    for placeholder, name in names.items():
        path = path.replace(f"<{placeholder}>", name)
    pattern = re.sub(r"<\w+>", "*", path).rstrip("/")
    return {found.relative_to(ROOT).as_posix() for found in ROOT.glob(pattern)}


def listed(section, **names):
    """The files that the table of a section of CONTRIBUTING.md names."""
    text = text_of("CONTRIBUTING.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("| "))
    return set().union(*(matches(path, **names) for path in paths(cells)))


def code_of(path):
    """The text of a C or Python file without comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"(?s)/\*.*?\*/", "", text)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ...
    return ast.unparse(tree)


def files_with(pattern, *globs):
    """The files whose code contains a regular expression."""
    found = {path for pattern_of_files in globs for path in ROOT.glob(pattern_of_files)}
    return {
        path.relative_to(ROOT).as_posix() for path in found if re.search(pattern, code_of(path))
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`pyce/_loss.py` and `setup.py`", ["pyce/_loss.py", "setup.py"]),
        ("`csrc/kernels/simd_<isa>.h`, `docs/`", ["csrc/kernels/simd_<isa>.h", "docs/"]),
        ("`make test`, `F.cross_entropy(x, y)`, `p.grad`, `1/C`, `pyce.torch`", ["1/C"]),
        ("```\n`setup.py`\n```", []),
    ],
)
def test_paths_are_found(text, found):
    assert list(paths(text)) == found


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page):
    missing = [p for p in paths(text_of(page)) if p not in MADE and not matches(p)]
    assert missing == []


def test_every_source_file_has_its_place():
    """Files of the two folders, and folders in them."""
    found = {p.relative_to(ROOT).as_posix() for f in ("pyce", "csrc") for p in (ROOT / f).glob("*")}
    made = r"__pycache__|__init__\.py|/_pyce\.|py\.typed|csrc/kernels$"
    assert {p for p in found if not re.search(made, p)} - listed("Where things are") == set()


def test_list_for_an_instruction_set_is_complete():
    """Every C file, and every file of the build, that names AVX-512's kernels."""
    named = files_with(r"avx512", "csrc/**/*.[ch]", "csrc/*.py", "setup.py", "tests/c/**/*.[ch]")
    assert named - listed("Adding an instruction set", isa="avx512") == set()


def test_list_for_a_dtype_is_complete():
    """Every source file that names float16."""
    named = files_with(r"PYCE_FLOAT16|(?<!b)f16", "csrc/**/*.[ch]")
    named |= files_with(r"float16", "pyce/_*.py", "pyce/_backends/**/*.py", "pyce/torch/*.py")
    named |= files_with(r"(?<![b\w])float16", "pyce/_check/*.py", "pyce/_bench/*.py", "tests/*.py")
    named |= files_with(r"\bFLOAT16", "tests/c/*.py")
    assert named - listed("Adding a dtype", isa="*", dtype="f16") == set()


def test_list_for_an_operation_is_complete():
    """Every source file that names log-softmax."""
    operation = r"(?i)log_softmax|PYCE_(?:SOFTMAX|LOGSUMEXP)"
    named = files_with(operation, "csrc/**/*.[ch]", "tests/c/**/*.c", "tests/c/test_abi.py")
    named |= files_with(
        r"\blog_softmax\b", "pyce/_*.py", "pyce/_backends/**/*.py", "pyce/_check/*.py"
    )
    # Results with a temperature are no operation of the kernels.
    named -= {"csrc/api.c", "csrc/selective.c", "pyce/_selective.py", "tests/c/replay.c"}
    assert named - listed("Adding an operation") == set()


def test_lists_name_no_other_instruction_set_or_dtype():
    """A placeholder stands for the name, so that the list holds for the next one as well."""
    text = text_of("CONTRIBUTING.md").partition("\n## Adding a backend\n")[2]
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    assert not [cell for cell in cells if re.search(r"avx|_f(?:16|32|64)|bf16", cell)]


def test_readme_begins_with_the_two_commands():
    beginning = text_of("README.md").splitlines()[:30]
    commands = [line.split("#")[0].strip() for line in beginning if line.startswith("make ")]
    assert commands == ["make bench", "make test"]
