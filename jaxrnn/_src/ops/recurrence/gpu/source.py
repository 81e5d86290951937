"""The text of a kernel: constants, an update as straight code, and the files in CUDA C++."""

import functools
import pathlib

from jaxrnn._src.ops.gpu.source import device
from jaxrnn._src.ops.recurrence.gpu import code
from jaxrnn._src.ops.recurrence.program import Program


def text(*, program: Program, constants: dict, defined: tuple, alone: bool) -> str:
    """A kernel's source.

    Args:
      program: the update, where "FORWARD" is defined; else the derivative, whose last inputs are
        the cotangents of the states.
      constants: by name: numbers, flags, lists of numbers, or a type's name.
      defined: words that the preprocessor is to know.
      alone: whether one block has all units of a head.
    """
    if "FORWARD" in defined:
        functions = code.function("update", program)
    else:
        functions, kept = code.functions(program, program.inputs - constants["STATES"])
        constants = constants | {"KEPT": kept}
    lines = []
    for key, value in constants.items():
        if isinstance(value, str):
            lines.append(f"#define {key} {value}")
        elif isinstance(value, (tuple, list)):
            numbers = ", ".join(map(str, value))
            lines.append(f"static __device__ constexpr int {key}[] = {{{numbers}}};")
        else:
            lines.append(f"static constexpr int {key} = {int(value)};")
    if alone:
        products = _file("alone")
    else:
        sums = _file("cluster" if constants["CLUSTER"] > 1 else "block")
        products = _file("exchange").replace("// (the sums)\n", sums)
    words = [f"#define {word}" for word in defined]
    kernel = _file("kernel").replace("// (the products)\n", products)
    return "\n".join([*words, device(), *lines, functions, kernel])


@functools.cache
def _file(name):
    return (pathlib.Path(__file__).parent / f"{name}.cu").read_text()
