"""How many kernels an LSTM and a GRU layer launch on an H200, found on any machine.

Nothing runs: XLA compiles for the GPU described in ``h200.txtpb``, and the launches of what it
made are counted (``benchmarks.launches``). Where a step is small, launches are what its time goes
into. On a GPU XLA would time its libraries and tilings against each other and choose; here it
chooses by its model of the GPU, which can make a difference of a kernel a step.
"""

import argparse
import datetime
import functools
import shutil
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import display, launches, machine, record
from benchmarks.contenders import CELLS, DIRECTIONS, linen, ours, timed
from benchmarks.shapes import SHAPES

TARGET = Path(__file__).with_name("h200.txtpb")
PACKAGES = (*machine.PACKAGES, "jax-cuda13-plugin", "nvidia-cuda-nvcc")
DTYPES = ("float32", "bfloat16")
NOTES = {
    "a_step": "launches inside of loops, for each time step; value_and_grad: of inputs and"
    " weights, both loops together",
    "outside": "launches before, between and after the loops",
    "loops": "[iterations, launches in each] of every loop",
}


# ``jax.lax.scan`` of jaxrnn's step, with JAX's own derivative.
scan = functools.partial(ours, implementation="reference")
CONTENDERS = {"jaxrnn": ours, "scan": scan, "linen": linen}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels",
        description="Counts the kernels an LSTM and a GRU layer launch on an H200, without one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known, default in (
        ("cells", CELLS, CELLS),
        ("dtypes", DTYPES, DTYPES),
        ("shapes", SHAPES, ("small", "large")),
    ):
        parser.add_argument(
            f"--{option}", nargs="+", choices=list(known), default=list(default), metavar="NAME",
            help=f"of {', '.join(known)}",
        )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIRECTORY", type=Path, default=record.RESULTS, help="of the results"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    console = display.console()
    needed = missing()
    if needed:
        command = f"pip install {' '.join(needed)}"
        text = (
            f"XLA's compiler for NVIDIA GPUs is not installed; jaxrnn[aot] has it, or\n  {command}"
        )
        console.print(text, markup=False)
        return 1
    jax.config.update("jax_platforms", "cpu")  # a GPU there may be is left alone
    sharding = target()
    device = next(iter(sharding.device_set))
    about = machine.describe(PACKAGES, device)
    path = chosen.out / "kernels-h200.json"
    begin = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    cases = [
        (cell, dtype, SHAPES[shape], direction, name)
        for cell in chosen.cells
        for dtype in chosen.dtypes
        for shape in chosen.shapes
        for direction in DIRECTIONS
        for name in CONTENDERS
    ]
    console.print(f"[bold]Kernels[/]\n{machine.line(about)}\n")
    with display.progress(console, len(cases)) as step:
        for cell, dtype, shape, direction, name in cases:
            label = f"{cell:<5} {dtype:<9} {shape.name:<6} {direction:<14} {name:<7}"
            with step(label) as done:
                text = compiled(CONTENDERS[name], cell, shape, direction, dtype, sharding)
                found = launches.count(text)
                done(f"{found.a_step(shape.T):5.2f} a step, {found.outside} outside")
            rows.append({
                "cell": cell, "dtype": dtype, "shape": str(shape), "direction": direction,
                "contender": name, "a_step": found.a_step(shape.T), "outside": found.outside,
                "loops": found.loops,
            })  # fmt: skip
            given = {k: v for k, v in vars(chosen).items() if k != "out"}
            record.save(path, {
                "benchmark": "kernels", "date": begin, "machine": about, "options": given,
                "notes": NOTES, "rows": rows,
            })  # fmt: skip
    console.print(table(rows))
    console.print(f"\nwritten: {path}")
    return 0


def missing():
    """The requirements of compiling for an NVIDIA GPU that are not met."""
    version = machine.version("jaxlib")  # the plugin has to be of the same one
    needed = []
    if machine.version("jax-cuda13-plugin") != version:
        needed.append(f"jax-cuda13-plugin=={version}")
    if machine.version("nvidia-cuda-nvcc") is None and shutil.which("ptxas") is None:
        needed.append("nvidia-cuda-nvcc")
    return needed


def target():
    """A sharding on one H200 that need not be there; what is lowered for it is compiled for it."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
    )
    return NamedSharding(topologies.make_mesh(topology, (1,), ("device",)), PartitionSpec())


def compiled(build, cell, shape, direction, dtype, sharding):
    """The optimised HLO of a contender: ys, or the gradients of all parameters and of xs."""
    apply, params = build(cell, shape, dtype)

    def array(*sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    params = jax.tree.map(lambda p: array(*p.shape), params)
    data = [array(shape.T, shape.B, n) for n in (shape.I, shape.H)]
    return jax.jit(timed(apply, direction)).lower(params, *data).compile().as_text()


def table(rows):
    """The rows as a table, a column for each contender."""
    shown = display.table("kernels a step inside of the loops + kernels outside")
    for name in ("cell", "type", "shape", "direction"):
        shown.add_column(name)
    for name in CONTENDERS:
        shown.add_column(name, justify="right", no_wrap=True)
    cases = {}
    for row in rows:
        case = row["cell"], row["dtype"], row["shape"], row["direction"]
        cases.setdefault(case, []).append(f"{row['a_step']:.2f} + {row['outside']:>2}")
    for (*case, direction), counts in cases.items():
        shown.add_row(*case, direction.replace("_", " "), *counts)
    return shown
