"""What a drawn fault may be: every small edit of a source, Python's by its syntax tree."""

import ast
import re
from typing import NamedTuple


class Edit(NamedTuple):
    """A part of a text, and what takes its place.

    Attributes:
      start, end: of the part.
      new: what takes its place.
      what: the kind of edit.
    """

    start: int
    end: int
    new: str
    what: str


def edits(path, text):
    """All edits of a file that can be drawn, in the order of its text."""
    found = _of_python(text) if path.endswith(".py") else _of_cpp(text)
    return sorted(dict.fromkeys(found))


# Python.

_OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
_COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}


def _of_python(text):
    """What is said to users, and types, are left alone: no number depends on them."""
    walk = _Walk(text)
    walk.visit(ast.parse(text))
    return walk.found


class _Walk(ast.NodeVisitor):
    def __init__(self, text):
        self.text, self.found = text, []
        lines = text.splitlines(keepends=True)
        self.lines = [line.encode() for line in lines]
        self.begins = [0]
        for line in lines:
            self.begins.append(self.begins[-1] + len(line))

    def place(self, line, column):
        """Of a line and a column in bytes, as the tree has them."""
        return self.begins[line - 1] + len(self.lines[line - 1][:column].decode())

    def span(self, node):
        start = self.place(node.lineno, node.col_offset)
        return start, self.place(node.end_lineno, node.end_col_offset)

    def part(self, node):
        return self.text[slice(*self.span(node))]

    def edit(self, start, end, new, what):
        self.found.append(Edit(start, end, new, what))

    def between(self, left, right, old, new, what):
        """Changes what stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.text.find(old, start, end)
        if at >= 0:
            self.edit(at, at + len(old), new, what)

    def ignored(self, node):
        del node

    visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = ignored

    def visit_keyword(self, node):
        if node.arg != "strict":  # of `zip`: a check
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        for part in (node.args, *node.body):  # not its decorators, nor what it returns
            self.visit(part)

    def visit_arg(self, node):
        del node  # its annotation

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_BinOp(self, node):
        sides = node.left, node.right
        if type(node.op) in _OPERATORS and not any(map(_is_no_number, sides)):
            self.between(*sides, *_OPERATORS[type(node.op)], "operator")
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if isinstance(node.op, (ast.Add, ast.Sub)):
            old, new = _OPERATORS[type(node.op)]
            self.between(node.target, node.value, f"{old}=", f"{new}=", "operator")
            self.between(node.target, node.value, f"{old}=", "=", "operator")
        self.generic_visit(node)

    def visit_Compare(self, node):
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, node.comparators):
            self.between(left, right, *_COMPARISONS[type(op)], "comparison")
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.between(left, right, old, new, "and, or")
        self.generic_visit(node)

    def negate(self, test):
        if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            self.edit(*self.span(test), f"not ({self.part(test)})", "not")

    def visit_If(self, node):
        if not isinstance(node.body[0], ast.Raise):  # what is refused has tests of its own
            self.negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self.negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for test in node.ifs:
            self.negate(test)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, (ast.Not, ast.USub)):
            what = "not" if isinstance(node.op, ast.Not) else "sign"
            self.edit(*self.span(node), self.part(node.operand), what)
        self.generic_visit(node)

    def visit_Call(self, node):
        if any(isinstance(a, ast.JoinedStr) for a in node.args):
            return  # an error is made
        for first, second in zip(node.args, node.args[1:]):
            if not any(map(_is_no_number, (first, second))):
                (start, middle), (other, end) = self.span(first), self.span(second)
                between = self.text[middle:other]
                swapped = self.part(second) + between + self.part(first)
                self.edit(start, end, swapped, "arguments swapped")
        given = [*node.args, *node.keywords]
        for before, keyword in zip(given, given[1:]):
            if isinstance(keyword, ast.keyword) and keyword.arg not in (None, "strict"):
                self.edit(self.span(before)[1], self.span(keyword)[1], "", "argument dropped")
        self.generic_visit(node)

    def visit_Subscript(self, node):
        self.visit(node.value)
        for part in ast.walk(node.slice):
            if _is_number(part):
                negative = self.text[self.span(part)[0] - 1] == "-"
                self.edit(*self.span(part), str(part.value + 1), "index")
                if negative and part.value > 1:
                    self.edit(*self.span(part), str(part.value - 1), "index")
        if not any(map(_is_number, ast.walk(node.slice))):
            self.visit(node.slice)

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.edit(*self.span(node), str(not node.value), "constant")
        elif _is_number(node):
            self.edit(*self.span(node), str(node.value + 1), "constant")
        elif isinstance(node.value, float):
            self.edit(*self.span(node), str(node.value * 2 or 1.0), "constant")


def _is_no_number(node):
    """Swapped, or in another operation, it would be an error of types: that tells little."""
    kinds = ast.JoinedStr, ast.Dict, ast.DictComp, ast.Tuple, ast.List, ast.Lambda, ast.Starred
    return isinstance(node, kinds) or isinstance(getattr(node, "value", None), str)


def _is_number(node):
    return isinstance(node, ast.Constant) and type(node.value) is int


# C++: by its tokens, which are set apart as clang-format does it.

_SWAPPED = {
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " += ": " = ",
}
_DECLARED = re.compile(r"^\s*[\w:<>*& ]+ \*?\w+(\[[^\]]+\])+;")  # an array
_LEFT_ALONE = re.compile(r"^\s*(template|typedef|using|static_assert|throw|require|return \{)\b")


def _of_cpp(text):
    plain = _without_comments(text)
    place = 0
    for line in plain.splitlines(keepends=True):
        if not (_DECLARED.match(line) or _LEFT_ALONE.match(line) or "require(" in line):
            yield from _of_line(line, place)
        place += len(line)


def _of_line(line, place):
    for old, new in _SWAPPED.items():
        what = "operator" if old.strip() in "+-*/%+=" else "comparison"
        what = "and, or" if old in (" && ", " || ") else what
        for found in re.finditer(re.escape(old), line):
            if old != " += " or not line.strip().startswith("for"):
                yield Edit(place + found.start(), place + found.end(), new, what)
    for found in re.finditer(r"(?<=[\w\]])\[(\w+)\]", line):
        yield Edit(place + found.start(1), place + found.end(1), f"{found[1]} + 1", "index")
    for found in re.finditer(r"(?<![\w.\[])(\d+)(?![\w.\]])", line):
        new = str(int(found[1]) + 1)
        yield Edit(place + found.start(), place + found.end(), new, "constant")
    for found in re.finditer(r"!(?=[\w(])", line):
        yield Edit(place + found.start(), place + found.end(), "", "not")


def _without_comments(text):
    """The text with blanks for comments, strings and what the preprocessor reads."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(\\.|[^\"\\\n])*\"", blank, text, flags=re.DOTALL)
    return re.sub(r"^[ \t]*#(\\\n|[^\n])*", blank, text, flags=re.MULTILINE)
