"""``jaxrnn.linear_scan`` compiled for TPUs and an H200: bytes, cycles and kernels.

Forward and backward are programs of their own. Memory is what bounds the recurrence, so bytes are
given as a multiple of the least: reading every input once, writing every result once.
"""

import functools
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from benchmarks.aot import gpu as aot_gpu
from benchmarks.aot import launches, schedule, traffic
from benchmarks.aot import tpu as aot_tpu
from benchmarks.shared import display, scans
from benchmarks.shared.timing import compiled

STEPS = 4096  # the arrays of a few hundred XLA would keep in a TPU's VMEM
WAYS = ("forward", "backward")
SIZES = (
    ("float32", 8, 1024),
    ("float32", 8, 1024, True),
    ("bfloat16", 16, 1024),
    ("complex64", 8, 512),
)
_VMEM = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1",.*?"size":"(\d+)"')


class Case(NamedTuple):
    """A recurrence, whose factors are those of each step and row, or ``constant``."""

    chip: str
    dtype: str
    B: int
    D: int
    constant: bool = False

    def __str__(self):
        constant = " constant" if self.constant else ""
        return f"{self.chip:<5} linear_scan {self.dtype} B={self.B} D={self.D}{constant}"


# "jaxrnn" is what a user gets.
CONTENDERS = {"jaxrnn": scans.ours, **scans.PEERS} | {
    name: functools.partial(scans.ours, implementation=name) for name in ("tpu", "xla")
}


def cases(chips):
    """``(case, contenders)``: all sizes on a v6e and an H200, the kernel at one on other TPUs."""
    names = {"v6e": ("tpu", "xla"), "h200": ("jaxrnn", *scans.PEERS)}
    for chip in chips:
        for size in SIZES if chip in names else SIZES[:1]:
            # On a TPU compiling it takes half a minute, and minutes for complex numbers.
            slow = ("associative",) if (chip, size) == ("v6e", SIZES[0]) else ()
            yield Case(chip, *size), (*names.get(chip, ("tpu",)), *slow)


def measure(case, contender, folder):
    """A row: what a step takes, in a program for each way."""
    found = {way: _way(case, contender, way, folder) for way in WAYS}
    programs, seconds = zip(*found.values())
    return {
        "operation": "linear_scan",
        **case._asdict(),
        "T": STEPS,
        "contender": contender,
        **dict(zip(WAYS, programs)),
        "compile_seconds": sum(seconds),
    }


def _way(case, contender, way, folder):
    if case.chip == "h200":
        place = NamedSharding(aot_gpu.devices(1), PartitionSpec())
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        chip = aot_tpu.topology(aot_tpu.CHIPS[case.chip].topology).devices[0]
        place = SingleDeviceSharding(chip)
    with aot_gpu.heard() as said:
        program, seconds = compiled(*_function(CONTENDERS[contender], case, way, place))
    text = program.as_text()
    moved, memory = traffic.count(text), program.memory_analysis()
    row = {
        "bytes": moved / STEPS,
        "times_least": moved / least(case, way),
        "temporary_bytes": memory.temp_size_in_bytes,
    }
    if case.chip == "h200":
        found = launches.count(text)
        row["kernels"] = found.outside + sum(times * inside for times, inside in found.loops)
        row |= aot_gpu.used(said)
    else:
        _, bandwidth, clock = aot_tpu.CHIPS[case.chip]
        if contender == "tpu":
            row |= kernel(text, schedule.programs(folder), way, case)
        waiting = row["bytes"] / bandwidth * clock if clock else None
        row["cycles_of_bytes"] = waiting
        row["microseconds"] = max(waiting, row.get("cycles", 0)) / clock * 1e6 if clock else None
    return row, seconds


def _function(function, case, way, place):
    """What is compiled, and what its arguments look like."""

    def on_device(tree):
        array = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)  # noqa: E731
        return jax.tree.map(array, tree)

    def array(*sizes):
        return jax.ShapeDtypeStruct(sizes, case.dtype, sharding=place)

    b = array(STEPS, case.B, case.D)
    arguments = (array(case.D) if case.constant else b), b
    if way == "forward":
        return function, *arguments
    hs, pull = jax.eval_shape(lambda *arguments: jax.vjp(function, *arguments), *arguments)
    return (lambda pull, d_hs: pull(d_hs)), *on_device((pull, hs))


def least(case, way):
    """The bytes of every input and result once: of the backward also hs and the gradients."""
    size = jnp.dtype(case.dtype).itemsize
    whole = STEPS * case.B * case.D * size
    a = case.D * size if case.constant else whole
    return a + 2 * whole if way == "forward" else 2 * a + 3 * whole


def kernel(text, kernels, way, case):
    """The least cycles of a step of our kernel, and the VMEM that it takes.

    Its name says the rows, lanes and steps of a tile, and how many steps are written out in the
    loop over them.

    Raises:
      ValueError: there are other loops, of which nothing is known.
    """
    name = rf"linear_{way}_(\d+)x(\d+)x(\d+)x(\d+)"
    call = re.search(rf"^\s+(?:ROOT )?%({name}[\w.-]*) = .*", text, re.M)
    rows, lanes, steps, group = map(int, call.groups()[1:])
    (grid,) = kernels[call[1]].inner
    one_by_one = bool(STEPS % steps)  # a loop that may be there, and runs for what a group leaves
    if len(grid.inner) > 1 + one_by_one or steps % group or STEPS % group:
        raise ValueError(f"{call[1]} has other loops than those over steps: {grid}")
    chunks, tiles = -(-STEPS // steps), -(-case.B // rows) * -(-case.D // lanes)
    cycles = grid.bundles * chunks / STEPS + grid.inner[0].cycles() / group
    return {"cycles": cycles * tiles, "vmem": int(_VMEM.search(call[0])[1])}


def brief(row):
    """A row in a few words."""
    said = [f"{both(row, 'times_least', '.2f')} times the least bytes"]
    for name in ("cycles", "kernels"):
        if name in row["forward"]:
            said.append(f"{both(row, name, ',.0f')} {name}")
    return ", ".join((*said, f"{row['compile_seconds']:.1f} s to compile"))


def table(rows):
    """The rows as a table."""
    shown = display.table(
        "linear_scan: bytes as a multiple of the least; of the kernel, least cycles a step and MiB"
        " of VMEM; of a GPU, kernels in all: forward / backward"
    )
    for name in ("chip", "type", "B", "D", "factors", "contender"):
        shown.add_column(name)
    for name in ("bytes", "cycles", "VMEM", "kernels", "s to compile"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        case = row["chip"], row["dtype"], str(row["B"]), str(row["D"]), factors(row)
        figures = (
            both(row, "times_least", ".2f"),
            both(row, "cycles", ",.0f"),
            both(row, "vmem", ".1f", 1 << 20),
            both(row, "kernels", ",.0f"),
        )
        shown.add_row(*case, row["contender"], *figures, f"{row['compile_seconds']:.1f}")
    return shown


def factors(row):
    return "constant" if row["constant"] else "each"


def both(row, name, format, unit=1):
    """A figure of both ways; nothing where there is none."""
    return " / ".join(f"{row[way][name] / unit:{format}}" for way in WAYS if name in row[way])
