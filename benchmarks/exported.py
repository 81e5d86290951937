"""What does an exported program cost that runs without jaxrnn? A layer of one cell on a CPU.

``jax.export.export`` leaves the C++ kernel out, and XLA's loop runs. ``export_with_kernels`` keeps
it. Both are timed in turn with ``unroll`` itself: above 1, the exported program is slower.
"""

import argparse

import jax
from jax import export

import jaxrnn
from benchmarks.shared import display, machine, record, timing
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES
from benchmarks.shared.words import quotient, spread

CELLS = ("lstm", "gru")
UNROLL, PLAIN, KEPT = "unroll", "export", "export_with_kernels"
EXPORTS = {PLAIN: export.export, KEPT: jaxrnn.export_with_kernels}
NOTES = {
    "samples": "seconds of the second of two calls in a row; sample i of all is from round i",
    "ratio": "the exported program's time over unroll's, round by round: [median, lower quartile,"
    " upper]",
}


def programs(cell, shape):
    """Calls of the layer: as it is, and read back from what each way of exporting wrote."""
    params = cell.init(jax.random.key(0), shape.I)
    xs = jax.random.normal(jax.random.key(1), (shape.T, shape.B, shape.I))
    run = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs))
    functions = {UNROLL: run}
    for name, exported in EXPORTS.items():
        file = exported(run, platforms=["cpu"])(params, xs).serialize()
        functions[name] = export.deserialize(file).call
    compiled = {name: timing.compiled(call, params, xs)[0] for name, call in functions.items()}
    return {name: lambda call=call: call(params, xs) for name, call in compiled.items()}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks exported",
        description="Times exported programs against unroll, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "cells", CELLS)
    several(parser, "shapes", SHAPES)
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console, about = parse(argv), display.console(), machine.describe()
    path = chosen.out / f"exported-{about['platform']}.json"
    begun = record.begun("exported", about, NOTES, chosen)
    console.print(f"[bold]Exported programs[/]\n{machine.line(about)}\n")
    cases, rows = [(cell, shape) for cell in chosen.cells for shape in chosen.shapes], []
    with display.progress(console, len(cases)) as step:
        for cell, name in cases:
            with step(f"{cell:<5} {name:<11}") as done:
                rows.append(measure(cell, SHAPES[name], chosen.seconds))
                done(", ".join(f"{n} {quotient(r)}" for n, r in rows[-1]["ratio"].items()))
            record.save(path, begun | {"words": sentences(rows), "rows": rows})
    console.print("", *sentences(rows), f"written: {path}", sep="\n")
    return 0


def measure(cell, shape, seconds):
    """One row: the three programs of a layer, in turn."""
    samples = timing.interleaved(programs(getattr(jaxrnn, cell)(shape.H), shape), seconds=seconds)
    return {
        "cell": cell,
        "shape": shape._asdict(),
        "samples": samples,
        "ratio": {name: list(timing.ratio(samples[name], samples[UNROLL])) for name in EXPORTS},
        "load": machine.load(),
    }


def sentences(rows):
    """Of each cell, how many times as long an exported program takes."""
    said = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        plain, kept = ({row["shape"]["name"]: row["ratio"][n][0] for row in own} for n in EXPORTS)
        mean, least, most = spread(plain.values())
        where = SHAPES[max(plain, key=plain.get)]
        said.append(
            f"{cell}: `export` takes {mean:.2f} times as long as `unroll` (geometric mean;"
            f" {least:.2f} to {most:.2f}, the most at B={where.B} T={where.T:,} I={where.I}"
            f" H={where.H}), `export_with_kernels` {spread(kept.values())[0]:.2f} times."
        )
    return said
