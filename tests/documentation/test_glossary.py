"""The words that the glossary avoids do not occur.

Many of them are common English ("own", "low", "share"), so each pattern matches only identifiers or
phrases in which the word has the sense for which the glossary gives another word.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from every import every

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = "docs/glossary.md"

# The files and folders that are searched; folders that tools make in them have a name with a dot.
SEARCHED = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml", "Makefile", "setup.py"),
    *("bench", "csrc", "docs", "examples", "pyce", "tests"),
)
# Files that quote the words.
QUOTING = {GLOSSARY, "tests/documentation/test_glossary.py"}
SUFFIXES = {".c", ".h", ".md", ".py", ".svg", ".toml", ".yml", ".yaml", ""}
MADE = {"__pycache__", "results", "baselines"}


@dataclass(frozen=True)
class Avoided:
    """A word of the last column, the word to use, and a pattern that matches that sense only."""

    word: str
    use: str
    pattern: str


AVOIDED = [
    Avoided("share", "sample_weight", r"[.>]share\b|\bvd share\b|\bshare(?:_of_row|s) ="),
    Avoided("live", "valid", r"\b(?:is|all)_live\b|\blives\(|\blive rows?\b"),
    Avoided("kept", "valid", r"\bkept rows?\b|\bkept_rows\b"),
    Avoided("kept", "saved", r"\bkept for the backward\b"),
    Avoided("certain", "on_value", r"[._>]certain\b|\bcertain_lo\w*"),
    Avoided("even", "off_value", r"[._>]even\b|\beven_lo\w*"),
    Avoided("own", "pivot", r"\bOWN_\w+|\b\w*own_(?:x|b|e|or_max|grad|term|low)\b|\bwithout_own\b"),
    Avoided(
        "dense",
        "soft-target",
        r"\bDENSE_(?!output)\w+|\b\w*dense_(?!output)\w+|\bthe dense (?:part|terms?)\b",
    ),
    Avoided("settle", "finalize", r"settle_|_settle\b|SETTLED|\bsettled? (?:rows?|sums)\b"),
    Avoided(
        "measure", "block statistics", r"\b(?:work|share|wide|short)_measure|\bmeasure_block\b"
    ),
    Avoided(
        "lost",
        "error",
        r"\blost_in_sum\b|\bwhat (?:was|is) lost\b"
        r"|\bwhat (?:a )?rounding (?:\w+ ){0,6}los(?:t|es)\b",
    ),
    Avoided("low", "error", r"\b(?:rest|sum|log|factor|scale|label|loss|inverse|quotient)_low\b"),
    Avoided("halves", "split", r"\b_halves\b|\bDekker's halves\b"),
    Avoided("brain", "bfloat16", r"\bbrain"),
    Avoided("stamp", "instance", r"\bunstamp|\bstamped\b|\bstamp\.inc"),
    Avoided("dialect", "instance", r"\bdialects?\b|dialect_"),
    Avoided("scalar", "plain C", r"\bsimd_scalar\b|\bscalar kernels?\b"),
    Avoided("mended", "fixed", r"\bmend(?:ed|s|ing)?\b"),
    Avoided("whoever", "user", r"\bwhoever\b"),
    Avoided("stranger", "user", r"\bstrangers?\b"),
]
# Phrases that the glossary's section on English rejects.
REJECTED = [r"(?<![a-z])beside(?![a-z])", r"(?<![a-z])wants(?![a-z])", r"\blooks? out for\b"]


def paths():
    """The text files to search, relative to the root."""
    for place in SEARCHED:
        path = ROOT / place
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in found:
            name = file.relative_to(ROOT).as_posix()
            made = any(part.startswith(".") or part in MADE for part in name.split("/"))
            if file.is_file() and file.suffix in SUFFIXES and name not in QUOTING and not made:
                yield name


def occurrences(pattern, text):
    """(line number, match) of each occurrence in `text`."""
    for found in re.finditer(pattern, text, re.IGNORECASE):
        yield text.count("\n", 0, found.start()) + 1, found[0]


def table():
    """The cells of each row of the glossary's table."""
    text = (ROOT / GLOSSARY).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@every("file", list(paths()))
def test_no_avoided_word(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    found = [
        f"{file}:{line}: {match!r}: use {avoided.use!r}"
        for avoided in AVOIDED
        for line, match in occurrences(avoided.pattern, text)
    ]
    assert found == []


@every("file", list(paths()))
def test_no_rejected_english(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    found = [
        f"{file}:{line}: {match!r}"
        for pattern in REJECTED
        for line, match in occurrences(pattern, text)
    ]
    assert found == []


@pytest.mark.parametrize("avoided", AVOIDED, ids=lambda avoided: f"{avoided.word}-{avoided.use}")
def test_avoided_words_are_in_the_glossary(avoided):
    rows = [(use, words.split(", ")) for _, use, words in table()]
    assert any(avoided.word in words and avoided.use in use for use, words in rows)


@pytest.mark.parametrize(
    "text",
    [
        *("s->share = 1;", "double rest_low;", "settle_rows", "it was mended"),
        *("what rounding the sum lost", "what rounding loses"),
    ],
)
def test_avoided_words_are_found(text):
    assert any(list(occurrences(avoided.pattern, text)) for avoided in AVOIDED)


@pytest.mark.parametrize(
    "text", ["rows share memory", "its own thread", "lower", "is lost", "a scalar"]
)
def test_other_senses_are_not_found(text):
    assert not any(list(occurrences(avoided.pattern, text)) for avoided in AVOIDED)
