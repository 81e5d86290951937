"""What devices exchange, read from a program that XLA has compiled."""

import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+)(\d*)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_BODY = re.compile(r" while\(.*body=%?([\w.-]+)")


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
    bodies, where, exchanges = set(_BODY.findall(text)), None, []
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            where = begin[1]
        if call := _CALL.search(line):
            arrays = [(kind, bits, _sizes(dims)) for kind, bits, dims in _ARRAY.findall(call[1])]
            size = sum(_bytes(*array) for array in arrays)
            shapes = tuple(sizes for *_, sizes in arrays)
            exchanges.append(Exchange(call[2], shapes, size, where in bodies))
    return exchanges


def _sizes(dims):
    return tuple(int(n) for n in dims.split(",") if n)


def _bytes(kind, bits, sizes):
    count = 1
    for n in sizes:
        count *= n
    return count * (1 if kind == "pred" else int(bits) // 8)
