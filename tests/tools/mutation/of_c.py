"""Mutants of C: other operators, numbers and vector operations, negated conditions, and statements
left out.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from mutant import Mutant, source

TOKEN = re.compile(
    r"""(?P<skip>/\*.*?\*/|//[^\n]*|\\\n|\s+)
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>0x[0-9a-fA-F.]+(?:p[+-]?\d+)?[fuUlL]*|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?[fuUlL]*)
      | (?P<word>\w+)
      | (?P<sign>->|\+\+|--|<<=|>>=|<<|>>|[<>=!+\-*/%&|^]=|&&|\|\||\#\#|.)""",
    re.DOTALL | re.VERBOSE,
)
SWAPS = {
    "<": ("<=",), "<=": ("<",), ">": (">=",), ">=": (">",), "==": ("!=",), "!=": ("==",),
    "+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("/",), "<<": (">>",), ">>": ("<<",),
    "&": ("|",), "|": ("&",), "&&": ("||",), "||": ("&&",),
    "+=": ("-=", "="), "-=": ("+=",), "*=": ("/=", "="), "/=": ("*=",), "|=": ("&=", "="),
}  # fmt: skip
OPERATIONS = {
    "add": "sub", "sub": "add", "mul": "add", "div": "mul", "fma": "fnma", "fnma": "fma",
    "keep": "drop", "drop": "keep", "nlt": "eq", "eq": "nlt",
    "widen_lo": "widen_hi", "widen_hi": "widen_lo",
}  # fmt: skip
# Calls that one of their arguments replaces: no maximum, no mask.
ARGUMENTS = {"max": (0, 1), "keep": (1,), "drop": (1,), "select": (1, 2)}
DECLARES = {
    *("const", "static", "INLINE", "typedef", "enum", "struct", "extern", "ALIGNED", "FILE"),
    *("void", "int", "float", "double", "char", "size_t", "unsigned", "uint64_t", "uint32_t"),
    *("int64_t", "int32_t", "uint16_t", "element", "real", "vreal", "vmask"),
    *("vf", "vd", "vfm", "vdm"),
}
STAYS = {
    "return",
    "break",
    "continue",
    "if",
    "else",
    "for",
    "while",
    "switch",
    "case",
    "default",
    "do",
    "_Static_assert",
}


@dataclass
class Token:
    kind: str
    text: str
    start: int
    end: int


def tokens_of(text: str) -> list[Token]:
    """The tokens that may be changed: none of comments, of directives the bodies of macros only."""
    for directive in re.finditer(r"^[ \t]*#[^\n]*(?:(?<=\\)\n[^\n]*)*", text, re.MULTILINE):
        head = re.match(r"\s*#\s*define\s+\w+(?:\([^)]*\))?", directive[0])
        size = head.end() if head else len(directive[0])
        begin = directive.start()
        blank = re.sub(r"[^\n]", " ", text[begin : begin + size])
        text = text[:begin] + blank + text[begin + size :]
        if head:  # a macro's body ends where it ends
            end = directive.end()
            text = text[:end] + "\n" + text[end + 1 :]
    found = []
    for match in TOKEN.finditer(text):
        if match.lastgroup != "skip":
            found.append(Token(match.lastgroup or "", match[0], match.start(), match.end()))
    return found


def closing(tokens: list[Token], at: int) -> int:
    """The index of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += tokens[i].text in "([{"
        depth -= tokens[i].text in ")]}"
        if depth == 0:
            return i
    return len(tokens) - 1


def declared(tokens: list[Token]) -> set[int]:
    """Indices of tokens that belong to a declaration, but for its initialiser, or to a prefetch, on
    which no result depends.
    """
    inside: set[int] = set()
    for i, token in enumerate(tokens):
        if token.text == "__builtin_prefetch":
            inside.update(range(i, closing(tokens, i + 1) + 1))
    at, parens = 0, 0
    for i, token in enumerate(tokens):
        parens += (token.text in "([") - (token.text in ")]")
        if not (token.text in "{};" and (parens <= 0 or token.text != ";")):
            continue
        segment = tokens[at : i + 1]
        if segment and (segment[0].text in DECLARES or _names_a_type(segment)):
            equals = next((k for k, t in enumerate(segment) if t.text == "="), len(segment))
            inside.update(range(at, at + equals))
        at, parens = i + 1, 0
    return inside


def _names_a_type(segment: list[Token]) -> bool:
    """`type name…` or `type *name…`."""
    return (
        len(segment) > 2
        and segment[0].kind == "word"
        and segment[0].text not in STAYS
        and segment[1].kind == "word"
    )


def mutants_of_c(file: str) -> list[Mutant]:
    text = source(file)
    tokens = tokens_of(text)
    skip = declared(tokens)
    found = []

    def add(start, end, new, name):
        if text[start:end] != new:
            found.append(Mutant(file, start, end, new, name))

    heads: set[int] = set()  # of loops, which would never end
    for i, token in enumerate(tokens):
        if token.text == "for":
            heads.update(range(i, closing(tokens, i + 1)))
        if i in skip or (i in heads and token.text in ("+=", "-=", "*=", "/=")):
            continue
        spaced = text[token.start - 1] in " \n" and text[token.end : token.end + 1] in (" ", "\n")
        if token.kind == "sign" and token.text in SWAPS and spaced:
            for new in SWAPS[token.text]:
                add(token.start, token.end, new, "operator")
        elif token.kind == "number" and not _null(tokens, i):
            for new in _other_numbers(token.text):
                add(token.start, token.end, new, "constant")
        elif token.text in ("if", "while") and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            end = closing(tokens, i + 1)
            inner = text[tokens[i + 1].end : tokens[end].start]
            add(tokens[i + 1].end, tokens[end].start, f"!({inner})", "condition negated")
        elif token.kind == "word":
            for start, end, new, name in _other_calls(text, tokens, i):
                add(start, end, new, name)
    for start, end in _statements(tokens, skip):
        add(tokens[start].start, tokens[end].end, ";", "statement deleted")
    return found


def _null(tokens: list[Token], i: int) -> bool:
    """Whether a 0 initialises a pointer: `*name = 0`."""
    return tokens[i].text == "0" and tokens[i - 1].text == "=" and tokens[i - 3].text == "*"


def _other_numbers(text: str) -> list[str]:
    digits = re.fullmatch(r"(\d+)([uUlL]*)", text)
    if digits:
        value = int(digits[1])
        return [f"{value + 1}{digits[2]}"] + ([f"{value - 1}{digits[2]}"] if value else [])
    if re.fullmatch(r"0x[0-9a-f]+[uUlL]*", text):
        return [f"({text} + 1)"]
    hexadecimal = re.match(r"0x1\.([0-9a-f])", text)
    if hexadecimal:
        digit = f"{(int(hexadecimal[1], 16) + 1) % 16:x}"
        return [text[: hexadecimal.start(1)] + digit + text[hexadecimal.end(1) :]]
    if text.startswith("0x1p"):
        return [text.replace("0x1p", "0x1.8p")]
    return [str(int(text[0]) + 1) + text[1:]] if text[0].isdigit() and text[0] != "9" else []


def _other_calls(text: str, tokens: list[Token], i: int):
    """Other operations of the vocabulary in place of v_add(…), vf_add(…), vd_add(…)."""
    vector = re.fullmatch(r"(v[fd]?_)(\w+)", tokens[i].text)
    if not vector or i + 1 >= len(tokens) or tokens[i + 1].text != "(":
        return
    prefix, operation = vector.groups()
    name, at = tokens[i], i + 1
    if operation in OPERATIONS:
        yield name.start, name.end, prefix + OPERATIONS[operation], "operation"
    if operation in ARGUMENTS:
        end = closing(tokens, at)
        cuts, depth = [tokens[at].end], 0
        for k in range(at + 1, end):
            depth += (tokens[k].text in "([{") - (tokens[k].text in ")]}")
            if tokens[k].text == "," and depth == 0:
                cuts.append(tokens[k].end)
        cuts.append(tokens[end].end)
        parts = [text[a : b - 1].strip() for a, b in itertools.pairwise(cuts)]
        for k in ARGUMENTS[operation]:
            if k < len(parts):
                yield tokens[i].start, tokens[end].end, f"({parts[k]})", "argument alone"


def _statements(tokens: list[Token], skip: set[int]):
    """First and last token of each assignment, call, `continue`, `break` and bare `return`."""
    start, parens = 0, 0
    for i, token in enumerate(tokens):
        parens += (token.text in "([") - (token.text in ")]")
        if token.text in "{}" and parens <= 0:
            start = i + 1
            continue
        if token.text == ")" and parens == 0 and tokens[start].text in ("if", "for", "while"):
            start = i + 1
            continue
        if tokens[start].text in ("else", "UNROLL", "TOGETHER", "do"):
            start += 1
        if token.text != ";" or parens > 0:
            continue
        first = tokens[start]
        simple = first.text in ("continue", "break", "return") and start + 1 == i
        # The name at the end of a typedef, and (void)name.
        idle = start + 1 == i or (first.text == "(" and tokens[start + 1].text == "void")
        if start < i and start not in skip and (simple or (first.text not in STAYS and not idle)):
            yield start, i
        start = i + 1
