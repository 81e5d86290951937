"""What a TPU will do, read from what its compiler wrote: cycles and bytes of a step.

A TPU runs bundles of instructions, one a cycle, in the order that the compiler gave them. So the
bundles of a loop's body are the least cycles of an iteration: what it waits for memory, or for a
result, comes on top.
"""

import math
import re
from typing import NamedTuple

from benchmarks.shared import hlo

# To be in the environment, as LIBTPU_INIT_ARGS, before libtpu is loaded: the last of its many
# listings alone, which is the program's.
DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"
    " --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
)

_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+([A-Z, ]*):\s*(>*)\s*\{(\})?")
_FILE = re.compile(r"\d+-(.+?)(?:\.refs_\d+_)*-\d+-final_bundles\.txt")
_SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "c64": 8,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")
_KERNEL = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) [a-z][a-z0-9-]*\((.*?)\)(?:, |$)")
_NAME = re.compile(r"%[\w.-]+")
_BOUNDS = re.compile(r'"iteration_bounds":\[([^\]]*)\]')
_RUN = {"fusion", "copy", "convolution", "dot", "dynamic-update-slice", "dynamic-slice"}


class Loop(NamedTuple):
    """Bundles of a loop's body, without those of the loops inside, and these loops in order."""

    bundles: int
    inner: list["Loop"]

    def cycles(self, *trips):
        """Of one iteration, where the inner loops run ``trips`` times."""
        return self.bundles + sum(n * loop.cycles() for n, loop in zip(trips, self.inner))


class Step(NamedTuple):
    """What a step takes at least: cycles, and bytes that come from HBM or go there."""

    cycles: float
    bytes: float


def programs(folder):
    """The kernels in a folder of listings: ``Loop`` by name, its body the whole kernel."""
    found = {}
    for file in sorted(folder.iterdir()):
        name = _FILE.fullmatch(file.name)
        if name:
            with file.open() as lines:
                found[name[1]] = program(lines)
    return found


def program(lines):
    """The ``Loop`` of the lines of one listing.

    LB is where a loop begins. A bundle has as many ``>`` as loops it stands in, and an empty one
    none; of what the scheduler moved, some stand among those of an inner loop.
    """
    root = [0, []]
    stack, last = [root], 0
    for line in lines:
        bundle = _BUNDLE.match(line)
        if not bundle:
            continue
        labels, marks, empty = bundle.groups()
        depth = last if empty else len(marks)
        if "LB" in labels:
            del stack[depth:]
        while len(stack) <= depth:
            stack[-1][1].append([0, []])
            stack.append(stack[-1][1][-1])
        stack[depth][0] += 1
        last = depth
    return _loop(root)


def kernel(text, kernels, name, steps, cycles):
    """The ``Step`` of a Pallas kernel.

    Args:
      text: the program's optimised HLO.
      kernels: from ``programs``.
      name: the kernel's.
      steps: T.
      cycles: ``Loop -> cycles`` of one step.
    """
    call = re.search(rf"^\s+%({name}[\w.-]*) = (.*?) custom-call\((.*?)\)", text, re.M)
    shapes = _shapes(text)
    arrays = call[2] + " ".join(shapes.get(a, "") for a in re.findall(r"%([\w.-]+)", call[3]))
    return Step(cycles(kernels[call[1]]), sum(b for b, _ in _hbm(arrays)) / steps)


def loops(text, kernels, steps):
    """The ``Step`` of each of XLA's loops over ``steps``, in the order they run."""
    (found, entry), shapes = hlo.computations(text), _shapes(text)
    bodies = [hlo.BODY.search(line)[1] for opcode, line in found[entry] if opcode == "while"]
    return [_xla_step(found[body], kernels, shapes, steps) for body in bodies]


def whole(text, kernels):
    """The least cycles of a program of XLA's, whose loops run as often as they say.

    Of instructions that are written alike, its compiler lists one.
    """
    found, entry = hlo.computations(text)

    def runs(name):
        for opcode, line in found[name]:
            if opcode == "while":
                condition = found.get(hlo.CONDITION.search(line)[1], ())
                trips = hlo.trips(line, [each for _, each in condition])
                body = runs(hlo.BODY.search(line)[1])
                yield from ((trips * times, each) for times, each in body)
            elif opcode == "call":
                yield from runs(hlo.CALLED.search(line)[1])
            else:
                yield 1, line

    lines = [(times, _KERNEL.match(line)[1], line) for times, line in runs(entry)]
    alike = {_written(line, found): kernels[name] for _, name, line in lines if name in kernels}
    listings = (kernels.get(name) or alike.get(_written(line, found)) for _, name, line in lines)
    both = zip(lines, listings)
    return sum(times * _bundles(line, listing) for (times, _, line), listing in both if listing)


def _written(line, found):
    """An instruction and what it calls, without their names."""
    names = {}
    return _NAME.sub(lambda name: names.setdefault(name[0], f"%{len(names)}"), _text(line, found))


def _text(line, found):
    called = hlo.CALLED.search(line)
    inside = [_text(each, found) for _, each in found.get(called[1], ())] if called else []
    return "\n".join([re.split(", (?:metadata|backend_config)=", line)[0], *inside])


def _bundles(line, listing):
    """Those of an instruction, whose listing has a loop for each of its tiles."""
    bounds = _BOUNDS.search(line)
    trips = math.prod(int(n) for n in re.findall(r"\d+", bounds[1])) if bounds else 1
    return listing.cycles(*[trips] * len(listing.inner))


def _xla_step(body, kernels, shapes, steps):
    cycles = moved = 0
    for opcode, line in body:
        if opcode not in _RUN:
            continue
        _, result, operands = _KERNEL.match(line).groups()
        name = _KERNEL.match(line)[1]
        cycles += _bundles(line, kernels[name]) if name in kernels else 0
        names = re.findall(r"%([\w.-]+)", operands)
        arrays = " ".join([result, *(shapes.get(n, "") for n in names)])
        # Of an array over time a step takes its own part.
        moved += sum(b / steps if first == steps else b for b, first in _hbm(arrays))
    return Step(cycles, moved)


def arrays(text):
    """Bytes, first size and memory, which is "" for HBM, of each array in types as written."""
    for dtype, sizes, space in _ARRAY.findall(text):
        if dtype in _SIZES and sizes:
            sizes = [int(n) for n in sizes.split(",")]
            yield _SIZES[dtype] * math.prod(sizes), sizes[0], space


def _hbm(text):
    """Bytes and first size of each array that is in HBM."""
    return ((size, first) for size, first, space in arrays(text) if not space)


def _shapes(text):
    """The type of each instruction's result, as it is written."""
    return dict(re.findall(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) [a-z][a-z0-9-]*\(", text, re.M))


def _loop(node):
    return Loop(node[0], [_loop(inner) for inner in node[1]])
