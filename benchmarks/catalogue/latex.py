"""Equations as docstrings have them, in LaTeX.

There, a space multiplies matrices, ``*`` elements, ``'`` transposes, and two spaces stand between
equations. After a capital letter, ``*`` is a convolution. Words that name nothing are text.
"""

import re

_NUMBER, _NAME = r"\d+(?:\.\d+)?(?:e-?\d+)?", r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*~?"
_TOKEN = re.compile(rf'"[^"]*"|{_NUMBER}|{_NAME}|\S')


def _written(form, names):
    return {name: form.format(name.replace("_", r"\_")) for name in names.split()}


_TEXT = r"\text{{{}}}"
_SYMBOLS = {
    **_written("\\{}", "alpha beta gamma epsilon zeta eta theta lambda nu xi phi pi rho"),
    **_written(
        _TEXT,
        "bc bias decay depth dilation kernel log_step mean mix rb sc scale sr step sw threshold"
        " variance",
    ),
    "dt": r"\Delta t",
    "eps": r"\epsilon",
}
_FUNCTIONS = {
    **_written("\\{}", "exp log max sqrt sum tanh"),
    **_written(_TEXT, "gated_delta_memory mlstm_memory rg_lru rms_norm"),
    **_written(
        r"\operatorname{{{}}}",
        "LN Re activation attention conv1d diag elu gelu logsigmoid mamba norm relu rotated silu"
        " softmax softplus ssd unit",
    ),
    "sigmoid": r"\sigma",
}


def block(lines):
    """The lines of a docstring as one block: an equation a row, aligned at its ``=``."""
    rows = []
    for part in (part for line in lines for part in line.split("  ")):
        if "=" in part:
            rows.append(equation(part).replace("=", "&=", 1))
        else:
            rows[-1] += rf" \qquad {equation(part)}"
    return "\n".join((r"\begin{split}", " \\\\\n".join(rows), r"\end{split}"))


def equation(line):
    """One equation, or what is said of it."""
    pieces, closers = [], []  # (kind, LaTeX, after a space?); of the brackets that are open
    for token in _TOKEN.finditer(line):
        last, before, _ = pieces[-1] if pieces else ("", "", False)
        kind, text = _piece(token[0], before, closers)
        spaced = line[: token.start()].endswith(" ")
        if kind == "opened" and last == "word" and not spaced:
            raise ValueError(f"{before}: want a function that {__name__} knows, in {line!r}")
        pieces.append((kind, text, spaced))
    return _joined(pieces)


def _piece(token, before, closers):
    if token in "([{":
        grouped = token == "{" or before in (r"\sqrt", "^")
        closers.append("}" if grouped else {"(": ")", "[": "]"}[token])
        return "opened", "{" if grouped else token
    if token in ")]}" or (token == "|" and token in closers):
        return "closed", closers.pop().replace("|", r" \rvert")
    if token == "|":
        closers.append(token)
        return "opened", r"\lvert "
    if token == "'":
        return "closed", r"^\top"
    if token == "*":
        return "sign", r"\ast" if before[:1].isupper() else r"\odot"
    if token[0].isdigit():
        return "operand", re.sub(r"^1e(.*)", r"10^{\1}", token)
    if token[0].isalpha() or token[0] == '"':
        return _name(token) or ("word", token)
    return "sign", token


def _name(token):
    """What a name is and how it is written; None of a word."""
    for kind, known in (("operand", _SYMBOLS), ("function", _FUNCTIONS)):
        if token in known:
            return kind, known[token]
    if token.endswith("~"):
        return "operand", rf"\tilde{{{token[:-1]}}}"
    base, _, below = token.partition("_")
    if below and (found := _name(base)):
        kind, text = found
        return kind, text + (f"_{below}" if len(below) == 1 else rf"_{{\mathrm{{{below}}}}}")
    return ("operand", token) if len(token) == 1 else None


def _joined(pieces):
    """Words one after the other are one text; operands side by side are set apart."""
    parts = []
    for kind, text, spaced in pieces:
        if parts and parts[-1][0] == "word" and (kind == "word" or text in (",", ":")):
            kind, words, first = parts.pop()
            parts.append((kind, f"{words}{' ' * spaced}{text}", first))
        else:
            parts.append((kind, text, spaced))
    joined, last = "", ""
    for kind, text, spaced in parts:
        if kind == "word":
            joined += _TEXT.format(f" {text} ".replace("_", r"\_"))
        elif last in ("operand", "closed") and kind in ("operand", "opened", "function"):
            joined += rf" \, {text}" if spaced else text
        else:
            joined += f" {text}" if spaced else text
        last = kind
    return joined
