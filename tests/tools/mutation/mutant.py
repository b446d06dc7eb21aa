"""A mutant, which is one change of one source file, and the texts of the sources."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# Names that say what a line does. All others are only names: see `Mutant.key`.
CONTROL = {"break", "case", "continue", "do", "else", "for", "goto", "if", "return", "switch"}
CONTROL |= {"while", "sizeof", *keyword.kwlist}
OPERATIONS = {"add", "sub", "mul", "div", "fma", "fnma", "keep", "drop", "select", "max", "min"}
OPERATIONS |= {"eq", "nlt", "load", "store", "set1", "widen_lo", "widen_hi"}
TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_]\w*|[\d.][\w.]*|\S')
COMMENT_OF_C = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


@cache
def source(file: str) -> str:
    """The text of a file, whose name is relative to the root of the project."""
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def _code(file: str) -> str:
    """The text with spaces in place of comments."""
    text = source(file)
    if not file.endswith(".py"):
        return COMMENT_OF_C.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:  # a # in a string is none
            (row, begin), (_, end) = token.start, token.end
            line = lines[row - 1]
            lines[row - 1] = line[:begin] + " " * (end - begin) + line[end:]
    return "".join(lines)


def squeezed(text: str) -> str:
    """Some lines as one."""
    return " ".join(text.replace("\\\n", " ").split()).removesuffix("\\").strip()


def normalised(*lines: str) -> tuple[str, ...]:
    """The lines with every name replaced by its number, in order of first appearance."""
    numbers: dict[str, int] = {}

    def word(match: re.Match[str]) -> str:
        text = match[0]
        if not (text[0].isalpha() or text[0] == "_") or text in CONTROL:
            return text
        operation = re.sub(r"^v[fd]?_", "", text)
        if operation in OPERATIONS:
            return operation
        return f"${numbers.setdefault(text, len(numbers))}"

    return tuple(" ".join(word(match) for match in TOKEN.finditer(line)) for line in lines)


@dataclass(frozen=True)
class Mutant:
    """`new` in place of the text from `start` to `end`; `name` is the kind of change."""

    file: str
    start: int
    end: int
    new: str
    name: str

    @property
    def id(self) -> str:
        """The same when lines are added elsewhere."""
        return " | ".join((self.file, *self.hunk()))

    @property
    def line(self) -> int:
        return source(self.file).count("\n", 0, self.start) + 1

    def apply(self) -> str:
        text = source(self.file)
        return text[: self.start] + self.new + text[self.end :]

    def _span(self) -> tuple[int, int]:
        text = source(self.file)
        last = text.find("\n", self.end)
        return text.rfind("\n", 0, self.start) + 1, last if last >= 0 else len(text)

    def hunk(self) -> tuple[str, str, str, str]:
        """The line of code before, the lines that it changes, these changed, the line after."""
        code, (first, last) = _code(self.file), self._span()
        before = [line for line in code[:first].splitlines() if line.strip(" \\")]
        after = next((line for line in code[last:].splitlines() if line.strip(" \\")), "")
        new = code[first : self.start] + self.new + code[self.end : last]
        lines = (before[-1] if before else "", code[first:last], new, after)
        return tuple(squeezed(line) for line in lines)  # type: ignore[return-value]

    def key(self) -> tuple[str, ...]:
        """The same when files, functions or variables get other names."""
        return normalised(*self.hunk())

    def function(self) -> str:
        """The name of the function that it is in; in C, empty outside of functions."""
        if self.file.endswith(".py"):
            text = source(self.file)[: self.start]
            found = re.findall(r"^(?:    )?def (\w+)", text, re.MULTILINE)
            return found[-1] if found else ""
        text = _code(self.file)[: self.start]
        heads = list(re.finditer(r"^\w[^\n;=]*?\b(\w+)\([^;]*?\{", text, re.MULTILINE))
        depth = 0
        for brace in re.findall(r"[{}]", text[heads[-1].start() :]) if heads else "":
            depth += 1 if brace == "{" else -1
            if depth == 0:  # the function has ended
                return ""
        return heads[-1][1] if heads else ""
