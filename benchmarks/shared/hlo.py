"""The text of a program that XLA has compiled, in HLO: its computations and their instructions."""

import re

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = .*?\s([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.-]+)")
BODY = re.compile(r"body=%?([\w.-]+)")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


def trips(line, condition=()):
    """How many times the body of a ``while`` runs.

    XLA says so; for TPUs it does not. There ``condition``, the lines of that computation, compares
    a counter with a constant, and JAX's loops count from 0.

    Raises:
      ValueError: the data say.
    """
    if known := _TRIPS.search(line):
        return int(known[1])
    ends = {int(end[1]) for each in condition if (end := _CONSTANT.search(each))}
    tests = {each.strip() for each in condition if " compare(" in each}
    if len(ends) != 1 or len(tests) != 1 or "direction=LT" not in tests.pop():
        raise ValueError(f"a loop without a known number of iterations: {line.strip()}")
    return ends.pop()


def computations(text):
    """``{name: [(opcode, line)]}`` of all computations, and the name of the entry."""
    found, entry, instructions = {}, None, []
    for line in text.splitlines():
        if header := _COMPUTATION.fullmatch(line):
            instructions = found[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            instructions.append((instruction[1], line))
    return found, entry
