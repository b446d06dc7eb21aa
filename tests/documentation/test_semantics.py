"""Every line of docs/semantics.md names existing tests, and every public name is mentioned."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import pyce

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "semantics.md"
SECTIONS = ("Inputs", "Semantics", "Errors", "Promises")
NAME = re.compile(r"`([^`\s]*::[^`\s]*)`")


@cache
def functions_of(file):
    """The test functions that a file defines."""
    path = TESTS / file
    if path.parent.parent != TESTS or not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(names):
    """The names `file::test` that do not name an existing test."""
    for name in names:
        file, _, function = name.partition("::")
        is_test = function.startswith("test_") and "/test_" in file
        if not (is_test and function in functions_of(file)):
            yield name


def lines(text):
    """(section, line number, cells) of each table row, without the headers."""
    section, head = None, True
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            section = line[3:]
        if not line.startswith("|"):
            head = True
        elif head:
            head = False
        elif not re.fullmatch(r"[|\s:-]+", line):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            yield section, number, [cell.strip() for cell in cells]


def faults(text):
    """The faults of the tables, as text."""
    found = list(lines(text))
    for section in SECTIONS:
        if not any(name == section for name, _, _ in found):
            yield f"no table in the section {section}"
    for _, number, cells in found:
        if len(cells) != 3:
            yield f"line {number} has {len(cells)} cells"
            continue
        behaviour, tests, elsewhere = cells
        if not behaviour:
            yield f"line {number} states nothing"
        if not NAME.search(tests):
            yield f"line {number} names no test"
        if not re.fullmatch(r"(`[^`]+`)(, `[^`]+`)*", tests):
            yield f"line {number} has something other than tests in its second cell"
        seen = [n for n in NAME.findall(elsewhere) if n.startswith("integrations/test_peers.py::")]
        if elsewhere != "–" and not seen and "from documentation" not in elsewhere:
            yield f"line {number} states a difference that no test shows"
    # A test or file name alone is incomplete.
    named = NAME.findall(text) + re.findall(r"`(test_\w+(?:\.py)?)`", text)
    for name in missing(n for n in named if n not in ("file::test", "integrations/test_peers.py")):
        yield f"{name} does not exist"


def text_of_the_table():
    return TABLE.read_text(encoding="utf-8")


def test_every_line_names_existing_tests():
    assert list(faults(text_of_the_table())) == []


def test_every_peer_test_is_named():
    """Every test of another library is named in a line."""
    named = set(NAME.findall(text_of_the_table()))
    tests = {
        f"integrations/test_peers.py::{n}"
        for n in functions_of("integrations/test_peers.py")
        if n.startswith("test_")
    }
    assert tests - named == set()


def test_every_public_name_is_mentioned():
    text = text_of_the_table()
    for name in pyce.__all__:
        assert name == "__version__" or f"`{name}`" in text, name


def test_the_readme_links_to_the_table():
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    assert "(docs/semantics.md)" in readme


HEAD = "## {0}\n\n| behaviour | tests | other libraries |\n| --- | --- | --- |\n"
GOOD = "| Logits. | `documentation/test_semantics.py::test_faults_are_reported` | – |\n"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (GOOD, None),
        (
            "| Logits. | `documentation/test_semantics.py::test_of_nothing` | – |\n",
            "does not exist",
        ),
        ("| Logits. | `api/test_nowhere.py::test_faults_are_reported` | – |\n", "does not exist"),
        ("| Logits. | `documentation/test_semantics.py::missing` | – |\n", "does not exist"),
        (
            "| Logits. | documentation/test_semantics.py::test_faults_are_reported | – |\n",
            "names no test",
        ),
        ("| Logits. | | – |\n", "names no test"),
        ("| Logits. | `test_faults_are_reported` | – |\n", "names no test"),
        (GOOD.replace("::", "::`, `"), "does not exist"),
        (GOOD.replace("` |", "` and more |"), "other than tests"),
        (GOOD.replace(" | – |", " |"), "has 2 cells"),
        (GOOD.replace("–", "PyTorch raises."), "no test shows"),
        (
            GOOD.replace(
                "–", "PyTorch raises: `documentation/test_semantics.py::test_faults_are_reported`"
            ),
            "no test",
        ),
        (GOOD.replace("–", "PyTorch raises (from documentation)."), None),
        (GOOD.replace("–", "`integrations/test_peers.py::test_of_nothing`"), "does not exist"),
        ("", "no table in the section Errors"),
    ],
)
def test_faults_are_reported(line, fault):
    text = "".join(HEAD.format(s) + (line if s == "Errors" else GOOD) + "\n" for s in SECTIONS)
    found = list(faults(text))
    assert any(fault in message for message in found) if fault else not found
