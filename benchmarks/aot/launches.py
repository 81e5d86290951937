"""How many kernels a compiled GPU program launches, counted in its optimised HLO.

An instruction of the entry computation, or of a loop's body, is one launch: a fusion, however much
is fused in it, a library's product, a copy, the addition that counts the iterations. None is one
that only names or regroups what is there already. An asynchronous instruction counts where it
starts. A loop launches its body's kernels once an iteration.
"""

from typing import NamedTuple

from benchmarks.shared import hlo

FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "tuple",
}


class Launches(NamedTuple):
    """The launches of a program.

    Attributes:
      outside: of all loops.
      loops: ``(iterations, launches in each)`` of every loop, in the order they run.
    """

    outside: int
    loops: list[tuple[int, int]]

    def a_step(self, steps):
        """The launches inside of loops for each of ``steps`` time steps."""
        return sum(iterations * launches for iterations, launches in self.loops) / steps


def count(text):
    """The ``Launches`` of a program, from the text of its optimised HLO.

    Raises:
      ValueError: what it launches depends on the data.
    """
    found, entry = hlo.computations(text)
    loops = []
    return Launches(_count(entry, found, loops, 1), loops)


def _count(name, computations, loops, times):
    """The launches of a computation that runs ``times`` times; its loops go to ``loops``."""
    launches = 0
    for opcode, line in computations[name]:
        kind = opcode.removesuffix("-start")
        if kind == "while":
            iterations, place = times * hlo.trips(line), len(loops)
            inside = _count(hlo.BODY.search(line)[1], computations, loops, iterations)
            loops.insert(place, (iterations, inside))
        elif kind == "conditional":
            raise ValueError(f"only one of its branches runs: {line.strip()}")
        elif kind == "call":
            launches += _count(hlo.CALLED.search(line)[1], computations, loops, times)
        elif kind not in FREE and not kind.endswith("-done"):
            launches += 1
    return launches
