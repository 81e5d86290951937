"""The text of the kernel: constants, and the file in CUDA C++."""

import functools
import pathlib

import numpy as np

from jaxrnn._src.ops.gpu.source import device

ARRAYS = (
    *("A", "CONSTANT", "B", "H0", "MASK", "STARTS", "FINAL", "HS", "BEFORE"),
    *("D_FINAL", "D_HS", "D_H0", "D_B", "D_A"),
)
TYPES = {
    "float64": "Float64",
    "float32": "Float32",
    "bfloat16": "Bfloat16",
    "float16": "Float16",
    "complex128": "Float64",
    "complex64": "Float32",
}


def text(kinds: tuple, arrays: tuple[str, ...], tile, width: int, reverse: bool) -> str:
    """A kernel's source.

    Args:
      kinds: the types of the arithmetic, of the factors, and of what is added.
      arrays: of ``ARRAYS``, those that a call has, in its order.
      tile: how a block divides its work.
      width: channels of a row.
      reverse: whether the forward kernel runs from the last step to the first.
    """
    numbers = {
        "PARTS": 2 if np.dtype(kinds[0]).kind == "c" else 1,
        "WIDTH": width,
        "REVERSE": int(reverse),
        "COLUMNS": tile.columns,
        "STEPS": tile.steps,
        "THREADS": tile.threads,
        "SHARED": tile.shared,
    }
    numbers |= {name: arrays.index(name) if name in arrays else -1 for name in ARRAYS}
    lines = [f"static constexpr int {name} = {number};" for name, number in numbers.items()]
    names = ("Total", "Factor", "Added")
    stored = [f"typedef {TYPES[np.dtype(k).name]} {n};" for k, n in zip(kinds, names, strict=True)]
    kernel = _file().replace("// (the types)", "\n".join(stored))
    return "\n".join([device(), *lines, kernel])


@functools.cache
def _file():
    return (pathlib.Path(__file__).parent / "kernel.cu").read_text()
