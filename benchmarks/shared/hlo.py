"""The text of a program that XLA has compiled, in HLO: its computations and their instructions."""

import re

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = .*?\s([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.-]+)")
BODY = re.compile(r"body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def trips(line):
    """How many times the body of a ``while`` runs.

    Raises:
      ValueError: the data say.
    """
    known = _TRIPS.search(line)
    if known is None:
        raise ValueError(f"a loop without a known number of iterations: {line.strip()}")
    return int(known[1])


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
