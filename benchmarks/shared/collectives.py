"""What devices exchange, read from a program that XLA has compiled."""

import math
import re
from typing import NamedTuple

from benchmarks.shared import hlo

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_ARRAY = re.compile(r"(pred|[a-z]+)(\d*)\w*\[([\d,]*)\]")


class Exchange(NamedTuple):
    """One exchange between all devices.

    Attributes:
      kind: one of ``KINDS``.
      shapes: of the arrays that a device has after it.
      bytes: of these.
      looped: it is in the body of a loop.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    looped: bool


def found(text):
    """The ``Exchange``s of a program, in its HLO; what a loop's body calls counts as outside."""
    computations, _ = hlo.computations(text)
    lines = [pair for body in computations.values() for pair in body]
    bodies = {hlo.BODY.search(line)[1] for opcode, line in lines if opcode == "while"}
    exchanges = []
    for name, body in computations.items():
        for opcode, line in body:
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                types = line.partition(" = ")[2].partition(f" {opcode}(")[0]
                arrays = [(k, bits, _sizes(dims)) for k, bits, dims in _ARRAY.findall(types)]
                shapes = tuple(sizes for *_, sizes in arrays)
                size = sum(_bytes(*array) for array in arrays)
                exchanges.append(Exchange(kind, shapes, size, name in bodies))
    return exchanges


def _sizes(dims):
    return tuple(int(n) for n in dims.split(",") if n)


def _bytes(kind, bits, sizes):
    return math.prod(sizes) * (1 if kind == "pred" else int(bits) // 8)
