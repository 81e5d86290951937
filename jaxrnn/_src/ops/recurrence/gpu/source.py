"""The text of a kernel: constants, an update as straight code, and the files in CUDA C++."""

import functools
import pathlib

import jax
import numpy as np

from jaxrnn._src.ops.recurrence.gpu import code, launch
from jaxrnn._src.ops.recurrence.program import Program

TYPES = {"float32": "Float32", "bfloat16": "Bfloat16", "float16": "Float16"}
# What `jax.default_matmul_precision` is where XLA rounds the factors of a float32 product.
_ROUNDED = (
    None,
    "default",
    "fastest",
    "bfloat16",
    "tensorfloat32",
    "BF16_BF16_F32",
    "TF32_TF32_F32",
)


def factors(dtype: np.dtype) -> tuple[str, ...]:
    """What the preprocessor is to know of the factors of products, of a type in ``TYPES``."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    precise = dtype.name == "float32" and precision not in _ROUNDED
    return (f"PRODUCT_{dtype.name.upper()}", *["PRECISE"] * precise)


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


def device() -> str:
    """What every kernel for GPUs begins with, after words for the preprocessor."""
    return f"static constexpr int MOST_ARRAYS = {launch.MOST_ARRAYS};\n{_file('device')}"


@functools.cache
def _file(name):
    return (pathlib.Path(__file__).parent / f"{name}.cu").read_text()
