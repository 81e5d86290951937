"""The text of a kernel: constants, and the files in CUDA C++."""

import functools
import pathlib

from jaxrnn._src.ops.gpu.source import TYPES, device

ARRAYS = {  # of a call that has none of a name, its place is -1
    "products": (
        *("QUERY", "LEFT", "RIGHT", "LOG_F", "LOG_I", "MASK", "STARTS", "STATE", "M", "SAVED"),
        *("SAVED_M", "OUT", "MS", "END", "END_M", "ANCHORS"),
    ),
    "gates": (
        *("LOG_F", "LOG_I", "READ", "WROTE", "MASK", "STARTS", "SAVED_M", "ANCHORS"),
        *("D_FINAL_M", "D_MS", "D_LOG_F", "D_LOG_I", "D_M"),
    ),
}


def text(
    kernel: str,
    arrays: tuple[str, ...],
    constants: dict[str, int],
    defined: tuple[str, ...] = (),
    types: tuple = (),
) -> str:
    """A kernel's source.

    Args:
      kernel: "products" or "gates".
      arrays: of ``ARRAYS``, those that a call has, in its order.
      constants: by name.
      defined: words that the preprocessor is to know.
      types: of query, left and right.
    """
    places = {name: arrays.index(name) if name in arrays else -1 for name in ARRAYS[kernel]}
    lines = [
        f"static constexpr int {name} = {int(value)};"
        for name, value in (constants | places).items()
    ]
    names = ("Query", "Left", "Right")[: len(types)]
    stored = [f"typedef {TYPES[t.name]} {n};" for t, n in zip(types, names, strict=True)]
    body = _file(kernel).replace("// (the types)", "\n".join(stored))
    words = [f"#define {word}" for word in defined]
    return "\n".join([*words, device(), *lines, _file("common"), body])


@functools.cache
def _file(name):
    return (pathlib.Path(__file__).parent / f"{name}.cu").read_text()
