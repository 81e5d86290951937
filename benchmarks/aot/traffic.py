"""How many bytes a compiled program moves, to and from the memory of its device.

Counted in its optimised HLO: an instruction of the entry computation, or of a loop's body, reads
its operands and writes its result, each once. But of what is only sliced, in it or in what it
fuses, it reads the slices; and where a slice is put in place into an array, it writes the slice.
What is in VMEM does not count.
"""

import math
import re
from typing import NamedTuple

from benchmarks.aot import launches, schedule
from benchmarks.shared import hlo

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?)\s[a-z][a-z0-9-]*\((.*?)\)(?:, |$)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SLICES = {"slice", "dynamic-slice", "X64SplitLow", "X64SplitHigh"}  # half of complex numbers
_IN_PLACE = "dynamic-update-slice"
_NOTHING = launches.FREE | {"AllocateBuffer", "ConcatBitcast"}


class _Instruction(NamedTuple):
    opcode: str  # of what is called by name, that name
    type: str  # of its result, as it is written
    operands: list[str]
    line: str


def count(text):
    """The bytes, from the text of a program's optimised HLO.

    Raises:
      ValueError: what it moves depends on the data.
    """
    found, entry = hlo.computations(text)
    computations = {}
    for name, lines in found.items():
        body = computations[name] = {}
        for opcode, line in lines:
            root, key, kind, operands = _INSTRUCTION.match(line).groups()
            target = _TARGET.search(line) if opcode == "custom-call" else None
            names = [operands] if opcode == "parameter" else re.findall(r"%([\w.-]+)", operands)
            body[key] = _Instruction(target[1] if target else opcode, kind, names, line)
            if root:
                body["ROOT"] = body[key]
    return _moved(computations, computations[entry])


def _moved(computations, body):
    total = 0
    for key, it in body.items():
        if key == "ROOT" or it.opcode in _NOTHING or it.opcode.endswith("-start"):
            continue
        if it.opcode == "conditional":
            raise ValueError(f"only one of its branches runs: {it.line.strip()}")
        if it.opcode in ("while", "call"):
            times = _trips(computations, it) if it.opcode == "while" else 1
            total += times * _moved(computations, computations[_called(it)])
            continue
        if it.opcode.endswith("-done"):
            start = body[it.operands[0]]
            it = start._replace(opcode=start.opcode.removesuffix("-start"), type=it.type)
        for place, operand in enumerate(it.operands):
            if operand not in it.operands[:place]:  # else it is there already
                whole = _size(body[operand].type)
                total += min(whole, _read(computations, body, it, place)) if whole else 0
        total += _written(computations, body, it)
    return total


def _read(computations, body, it, place):
    """What an instruction reads of the operand in a place; infinite for all of it."""
    if it.opcode in _SLICES and place == 0:
        return _size(it.type, anywhere=True)
    if it.opcode == _IN_PLACE and place == 0:
        return 0
    if it.opcode == "fusion":
        body = computations[_called(it)]
        it = next(
            p for p in body.values() if (p.opcode, p.operands) == ("parameter", [str(place)])
        )
    elif it.opcode != "bitcast":
        return math.inf
    name = next(key for key, value in body.items() if value is it)
    users = [user for key, user in body.items() if name in user.operands and key != "ROOT"]
    return sum(_read(computations, body, user, user.operands.index(name)) for user in users)


def _written(computations, body, it):
    """What an instruction writes; in a fusion, that of its roots."""
    if it.opcode == "fusion":
        body = computations[_called(it)]
        return _written(computations, body, body["ROOT"])
    if it.opcode == "tuple":
        return sum(_written(computations, body, body[name]) for name in it.operands)
    if not _size(it.type):
        return 0
    if it.opcode == _IN_PLACE:
        return _size(body[it.operands[1]].type, anywhere=True)
    if it.opcode == "bitcast":
        return _written(computations, body, body[it.operands[0]])
    return _size(it.type)


def _trips(computations, it):
    condition = computations.get(hlo.CONDITION.search(it.line)[1], {})
    return hlo.trips(it.line, [each.line for each in condition.values()])


def _called(it):
    return (hlo.BODY if it.opcode == "while" else hlo.CALLED).search(it.line)[1]


def _size(type_, anywhere=False):
    return sum(size for size, _, space in schedule.arrays(type_) if anywhere or not space)
