"""A program as CUDA C++: one function, or two of which the first needs no cotangent."""

import re

import numpy as np

from jaxrnn._src.ops.recurrence.program import Program

# What a program is made of, as expressions; truth values are 1 and 0.
_OF_THE_MATH_LIBRARY = (
    "exp log log1p expm1 exp2 sqrt cbrt sin cos tan asin acos atan sinh cosh asinh acosh"
    " atanh erf erfc floor ceil"
)
_EXPRESSIONS = {
    "copy": "a",
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "div": "a / b",
    "neg": "-a",
    "fma": "fmaf(a, b, c)",
    "fms": "fmaf(a, b, -c)",
    "fnma": "fmaf(-a, b, c)",
    "abs": "fabsf(a)",
    "sign": "a > 0 ? 1.0f : a < 0 ? -1.0f : a",
    "max": "a != a ? a : a < b ? b : b != b ? b : a",
    "min": "a != a ? a : b < a ? b : b != b ? b : a",
    "lt": "a < b ? 1.0f : 0.0f",
    "le": "a <= b ? 1.0f : 0.0f",
    "gt": "a > b ? 1.0f : 0.0f",
    "ge": "a >= b ? 1.0f : 0.0f",
    "eq": "a == b ? 1.0f : 0.0f",
    "ne": "a != b ? 1.0f : 0.0f",
    "select": "a != 0 ? b : c",
    "tanh": "TANH(a)",
    "logistic": "LOGISTIC(a)",
    "pow": "powf(a, b)",
    "atan2": "atan2f(a, b)",
} | {name: f"{name}f(a)" for name in _OF_THE_MATH_LIBRARY.split()}
OPERATIONS = tuple(_EXPRESSIONS)
# Done again rather than kept in a register.
_CHEAP = ("copy", "add", "sub", "mul", "neg", "fma", "fms", "fnma", "abs")


class _Line:
    """A value: an input, a constant, or what an operation makes of others."""

    def __init__(self, operation: str, arguments: tuple["_Line", ...] = (), number: float = 0):
        self.operation, self.arguments, self.number = operation, arguments, number


def function(name: str, program: Program) -> str:
    """``name(in, out)``: the whole program."""
    inputs, outputs = _lines(program)
    known = {line: f"in[{i}]" for i, line in enumerate(inputs)}
    return _text(f"{name}(const float* in, float* out)", outputs, known)


def functions(program: Program, early: int) -> tuple[str, int]:
    """``prepare(in, kept)`` and ``derivative(kept, given, out)``, and how many are kept.

    Args:
      program: the whole function.
      early: of its inputs, how many are known before the others.
    """
    inputs, outputs = _lines(program)
    late = set(inputs[early:])
    order = _ordered(outputs)
    for line in order:
        if not late.isdisjoint(line.arguments):
            late.add(line)
    kept = {a for line in order if line in late for a in line.arguments if a not in late}
    kept |= {line for line in outputs if line not in late}
    kept = [line for line in inputs[:early] + order if line in kept and not _is_constant(line)]
    for line in list(kept):
        # What cheap operations make of others that are kept takes no register of its own.
        others = [other for other in kept if other is not line]
        if line.operation in _CHEAP and all(_is_made_of(others, a) for a in line.arguments):
            kept = others
    before = {line: f"in[{i}]" for i, line in enumerate(inputs)}
    after = {line: f"kept[{i}]" for i, line in enumerate(kept)}
    after |= {line: f"given[{i}]" for i, line in enumerate(inputs[early:])}
    text = _text("prepare(const float* in, float* kept)", kept, before, "kept")
    heading = "derivative(const float* kept, const float* given, float* out)"
    return f"{text}\n{_text(heading, outputs, after)}", len(kept)


def _is_made_of(kept, line):
    """Whether cheap operations make it of what is kept."""
    if line in kept or _is_constant(line):
        return True
    return line.operation in _CHEAP and all(_is_made_of(kept, a) for a in line.arguments)


def _is_constant(line):
    return line.operation == "constant"


def _lines(program):
    """The program's inputs and outputs; each register is used again, each value once."""
    inputs = [_Line("input") for _ in range(program.inputs)]
    registers = inputs + [_Line("constant", number=value) for value in program.constants]
    registers += [None] * (program.registers - len(registers))
    for number, result, *args in program.instructions:
        registers[result] = _Line(OPERATIONS[number], tuple(registers[a] for a in args))
    return inputs, [registers[i] for i in program.outputs]


def _ordered(outputs, known=()):
    """What outputs are made of, each line after its arguments; nothing of what is known."""
    order, stack = {}, list(reversed(outputs))
    while stack:
        line = stack[-1]
        left = [a for a in line.arguments if a not in order and a not in known]
        if line in order or line in known or not left:
            stack.pop()
            if line not in known:
                order[line] = None
        else:
            stack += reversed(left)
    return [line for line in order if line.operation != "input"]


def _text(heading, outputs, known, to="out"):
    lines, named = [], dict(known)
    for line in _ordered(outputs, known):
        if _is_constant(line):
            bits = int(np.float32(line.number).view(np.uint32))
            expression = f"__uint_as_float({bits}u);  // {line.number:g}"
        else:
            given = dict(zip("abc", (named[a] for a in line.arguments)))
            expression = _EXPRESSIONS[line.operation]
            expression = re.sub(r"\b[abc]\b", lambda found: given[found[0]], expression)  # noqa: B023
            expression += ";"
        named[line] = f"r{len(lines)}"
        lines.append(f"  const float {named[line]} = {expression}")
    lines += [f"  {to}[{i}] = {named[line]};" for i, line in enumerate(outputs)]
    heading = f"static __device__ __forceinline__ void {heading} {{"
    return "\n".join([heading, *lines, "}"])
