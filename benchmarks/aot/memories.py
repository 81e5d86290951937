"""Matrix memories compiled for TPUs: least cycles and bytes of a step, by the memory's rule.

The programs are XLA's, forward and backward each one of its own. As for XLA's loops over a cell's
steps, the bundles of every instruction are counted as often as it runs.
"""

import functools
import shutil
from typing import NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from benchmarks.aot import schedule, traffic
from benchmarks.aot import tpu as aot_tpu
from benchmarks.shared import display, memory_rules
from benchmarks.shared.timing import compiled

# XLA would keep shorter arrays in VMEM; of longer ones a scan's gradient fits no HBM.
SIZE = memory_rules.Size(T=2048, B=8, N=8, D=128)
CHIPS = ("v5e", "v6e")
WAYS = ("forward", "backward")
CONTENDERS = {"jaxrnn": memory_rules.ours, "scan": memory_rules.scan}


class Case(NamedTuple):
    """A rule on a chip."""

    chip: str
    rule: str

    def __str__(self):
        return f"{self.chip:<5} {self.rule:<16} {SIZE}"


def cases(chips):
    """``(case, contenders)``: every rule, and on a v6e also the scan of its step.

    The scan of a rule that writes twice is that of twice the steps.
    """
    for chip in chips:
        for name, rule in memory_rules.RULES.items() if chip in CHIPS else ():
            both = chip == "v6e" and rule.writes == 1
            yield Case(chip, name), tuple(CONTENDERS) if both else ("jaxrnn",)


def measure(case, contender, folder):
    """A row: what a step takes, in a program for each way."""
    found = {way: _way(case, contender, way, folder) for way in WAYS}
    programs, seconds = zip(*found.values())
    return {
        "operation": "matrix_memory",
        **case._asdict(),
        **SIZE._asdict(),
        "contender": contender,
        **dict(zip(WAYS, programs)),
        "compile_seconds": sum(seconds),
    }


def _way(case, contender, way, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    topology, bandwidth, clock = aot_tpu.CHIPS[case.chip]
    place = SingleDeviceSharding(aot_tpu.topology(topology).devices[0])
    program, seconds = compiled(*_function(CONTENDERS[contender], case.rule, way, place))
    text = program.as_text()
    moved = traffic.count(text)
    row = {
        "cycles": schedule.whole(text, schedule.programs(folder)) / SIZE.T,
        "bytes": moved / SIZE.T,
        "times_least": moved / least(case.rule, way),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }
    row["cycles_of_bytes"] = row["bytes"] / bandwidth * clock
    row["microseconds"] = max(row["cycles"], row["cycles_of_bytes"]) / clock * 1e6
    return row, seconds


def _function(contender, rule, way, place):
    """What is compiled, and what its arguments look like."""

    def on_device(tree):
        array = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)  # noqa: E731
        return jax.tree.map(array, tree)

    function = functools.partial(contender, rule)
    taken = jax.eval_shape(lambda: memory_rules.arrays(rule, SIZE))
    if way == "forward":
        return function, on_device(taken)
    ys, pull = jax.eval_shape(lambda taken: jax.vjp(function, taken), taken)
    return (lambda pull, d_ys: pull(d_ys)), *on_device((pull, ys))


def least(rule, way):
    """The bytes of every input and result once: of the backward also ys and the gradients."""
    taken = jax.eval_shape(lambda: memory_rules.arrays(rule, SIZE))
    given = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(taken))
    read = 4 * SIZE.T * SIZE.B * SIZE.N * SIZE.D
    return given + read if way == "forward" else 2 * given + read


def brief(row):
    """A row in a few words."""
    cycles, moved = (_both(row, name, ",.0f") for name in ("cycles", "bytes"))
    return f"{cycles} cycles, {moved} bytes a step, {row['compile_seconds']:.1f} s to compile"


def table(rows):
    """The rows as a table."""
    shown = display.table(
        "matrix memories: least cycles a step, microseconds with what comes from HBM, and bytes as"
        " a multiple of the least: forward / backward; cycles over linear attention's a step, for"
        " each write"
    )
    for name in ("chip", "rule", "contender"):
        shown.add_column(name)
    for name in ("cycles", "over", "µs", "bytes", "s to compile"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = (
            _both(row, "cycles", ",.0f"),
            " / ".join(f"{ratio:.1f}" for ratio in memory_rules.over_base(row, rows)),
            _both(row, "microseconds", ".2f"),
            _both(row, "times_least", ".1f"),
        )
        seconds = f"{row['compile_seconds']:.1f}"
        shown.add_row(row["chip"], row["rule"], row["contender"], *figures, seconds)
    return shown


def _both(row, name, format):
    return " / ".join(f"{row[way][name]:{format}}" for way in WAYS)
