"""The text of a kernel: constants, an update as straight code, and ``kernel.cu``."""

import functools
import pathlib
import re

import numpy as np

from jaxrnn._src.ops.recurrence.program import Program

# What a program is made of, as expressions; truth values are 1 and 0.
_OF_THE_MATH_LIBRARY = (
    "exp tanh log log1p expm1 exp2 sqrt cbrt sin cos tan asin acos atan sinh cosh asinh acosh"
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
    "logistic": "__fdividef(1.0f, 1.0f + expf(-a))",
    "pow": "powf(a, b)",
    "atan2": "atan2f(a, b)",
} | {name: f"{name}f(a)" for name in _OF_THE_MATH_LIBRARY.split()}
OPERATIONS = tuple(_EXPRESSIONS)
TYPES = {"float32": "Float32", "bfloat16": "Bfloat16", "float16": "Float16"}


def text(*, name: str, program: Program, constants: dict, defined: tuple) -> str:
    """A kernel's source.

    Args:
      name: of the function the program is, "update" or "derivative".
      program: that function.
      constants: by name: numbers, flags, lists of numbers, or a type's name.
      defined: words that the preprocessor is to know.
    """
    lines = []
    for key, value in constants.items():
        if isinstance(value, str):
            lines.append(f"#define {key} {value}")
        elif isinstance(value, (tuple, list)):
            numbers = ", ".join(map(str, value))
            lines.append(f"static __device__ constexpr int {key}[] = {{{numbers}}};")
        else:
            lines.append(f"static constexpr int {key} = {int(value)};")
    head, body = _kernel().split("// (the constants)\n")
    words = [f"#define {word}" for word in defined]
    return "\n".join([*words, head, *lines, _function(name, program), body])


def _function(name, program):
    lines = [
        f"static __device__ __forceinline__ void {name}(const float* in, float* out) {{",
        f"  float {', '.join(f'r{i}' for i in range(program.registers))};",
        *(f"  r{i} = in[{i}];" for i in range(program.inputs)),
    ]
    for i, value in enumerate(program.constants):
        bits = int(np.float32(value).view(np.uint32))
        lines.append(f"  r{program.inputs + i} = __uint_as_float({bits}u);  // {value:g}")
    for number, result, *args in program.instructions:
        expression = _EXPRESSIONS[OPERATIONS[number]]
        named = {letter: f"r{register}" for letter, register in zip("abc", args, strict=True)}
        expression = re.sub(r"\b[abc]\b", lambda letter: named[letter[0]], expression)  # noqa: B023
        lines.append(f"  r{result} = {expression};")
    lines += [f"  out[{i}] = r{register};" for i, register in enumerate(program.outputs)]
    return "\n".join([*lines, "}"])


@functools.cache
def _kernel():
    return (pathlib.Path(__file__).parent / "kernel.cu").read_text()
