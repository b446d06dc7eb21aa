"""Mutants of Python: other operators and numbers, negated conditions, and statements left out."""

from __future__ import annotations

import ast
import re

from mutant import Mutant, source

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
# Conditions of imports that only annotations need.
FOR_CHECKERS = r"^(TYPE_CHECKING|sys\.version_info >= .*)$"


def mutants_of_python(file: str) -> list[Mutant]:
    text = source(file)
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def at(line, column):
        return len(data[: starts[line - 1] + column].decode())

    def replace(node, new, name):
        begin, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        if text[begin:end] != new:
            found.append(Mutant(file, begin, end, new, name))

    def changed(node, **values):
        copy = type(node)(**{**{f: getattr(node, f) for f in node._fields}, **values})
        return f"({ast.unparse(ast.fix_missing_locations(copy))})"

    hidden: set[ast.AST] = set()  # annotations, and other code for type checkers
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            hidden.update(ast.walk(node.annotation))
        elif isinstance(node, ast.FunctionDef):
            for part in (*ast.walk(node.args), *([node.returns] if node.returns else [])):
                if isinstance(part, ast.arg) and part.annotation:
                    hidden.update(ast.walk(part.annotation))
                elif part is node.returns:
                    hidden.update(ast.walk(part))
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            hidden.add(node.value)  # of zip, which no call with sequences of other lengths reaches
        elif isinstance(node, ast.ClassDef):
            hidden.update(k.value for k in node.keywords if k.arg == "total")  # of a TypedDict
        elif isinstance(node, ast.If) and re.search(FOR_CHECKERS, ast.unparse(node.test)):
            hidden.update((node, *ast.walk(node.test)))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reshape":
            # Any negative number stands for the remaining size.
            signs = [a for a in node.args if isinstance(a, ast.UnaryOp)]
            hidden.update(part for sign in signs for part in ast.walk(sign))
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Compare):
            for i, operator in enumerate(node.ops):
                if type(operator) in COMPARISONS:
                    ops = [*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]]
                    replace(node, changed(node, ops=ops), "comparison")
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            replace(node, changed(node, op=ARITHMETIC[type(node.op)]()), "operator")
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            replace(node, changed(node, op=other), "and, or")
            for i in range(len(node.values)):
                left = [v for k, v in enumerate(node.values) if k != i]
                new = left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
                replace(node, f"({ast.unparse(new)})", "operand dropped")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            if not isinstance(node.operand, ast.Constant) or isinstance(node.op, ast.Not):
                replace(node, f"({ast.unparse(node.operand)})", "negation dropped")
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            replace(node.test, f"(not ({ast.unparse(node.test)}))", "condition negated")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            other = not node.value if type(node.value) is bool else node.value + 1
            replace(node, repr(other), "constant")
            if type(node.value) is int and node.value:
                replace(node, repr(node.value - 1), "constant")
        elif isinstance(node, ast.Return) and node.value is not None:
            replace(node, "return None", "return None")
        elif isinstance(node, (ast.Raise, ast.Assign, ast.AugAssign, ast.Continue, ast.Break)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            replace(node, "pass", "statement deleted")
    return found
