"""Every cell of the library, at two shapes: what a layer of it takes, and what runs it.

A ratio is a cell's time over the LSTM's of the same size, round by round: the two are timed in
turn. Parameters are as the cell makes them. A file's rows of other cells and shapes are kept.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from benchmarks.shared import display, machine, memory, record, timing, zoo
from benchmarks.shared.contenders import DIRECTIONS, timed
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES
from benchmarks.shared.words import listed

LIKE = "lstm"
NOTES = {
    "samples": "seconds of the second of two calls in a row; sample i of both is from round i",
    "ratio": f"the cell over {LIKE}, round by round: [median, lower quartile, upper]",
    "compile_seconds": "tracing and compiling, apart from every sample",
    "memory_bytes": memory.NOTE,
    "runs": "the implementations of the cell's operations; null where nothing was to be chosen",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cells",
        description="Times a layer of every cell.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "cells", zoo.of_one_array())
    several(parser, "shapes", SHAPES, ["stream", "small"])
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    about = machine.describe()
    path = chosen.out / f"cells-{about['platform']}.json"
    begun = record.begun("cells", about, NOTES, chosen)
    console.print(f"[bold]Every cell, float32[/]\n{machine.line(about)}\n")
    cases = [(s, d, c) for s in chosen.shapes for d in DIRECTIONS for c in chosen.cells]
    rows = others(path, about, chosen)
    with display.progress(console, len(cases)) as step:
        for shape, direction, cell in cases:
            with step(f"{shape:<8} {direction:<14} {cell:<20}") as done:
                row = measure(cell, SHAPES[shape], direction, chosen.seconds)
                rows = sorted([*rows, row], key=lambda row: row["cell"])
                done(f"{row['milliseconds']:8.2f} ms, {row['ratio'][0]:.2f} of {LIKE}'s time")
            record.save(path, begun | {"words": sentences(rows), "rows": rows})
    console.print(table(rows))
    console.print(costs(rows))
    draw(path.with_suffix(".png"), rows, machine.line(about))
    console.print(f"\nwritten: {path} and {path.with_suffix('.png').name}\n")
    for sentence in sentences(rows):
        console.print(sentence, markup=False)
    return 0


def others(path, about, chosen):
    """The rows that a file has but of those chosen, if it is of the same machine and versions."""
    content = record.load(path)
    if not content or not machine.same(content["machine"], about):
        return []
    again = set(itertools.product(chosen.cells, chosen.shapes))
    return [r for r in content["rows"] if (r["cell"], r["shape"]["name"]) not in again]


def measure(name, shape, direction, seconds):
    """A row: the cell beside the LSTM."""
    like, *_ = _compiled(LIKE, shape, direction)
    call, compile_seconds, memory_bytes, runs = _compiled(name, shape, direction)
    samples = timing.interleaved({LIKE: like, "cell": call}, seconds=seconds)
    return {
        "cell": name,
        "shape": shape._asdict(),
        "direction": direction,
        "runs": runs,
        "milliseconds": 1e3 * timing.summary(samples["cell"]).median,
        "ratio": list(timing.ratio(samples["cell"], samples[LIKE])),
        "compile_seconds": compile_seconds,
        "memory_bytes": memory_bytes,
        "samples": samples,
        "load": machine.load(),
    }


@functools.lru_cache(2)  # the LSTM's stays, since every row asks for it
def _compiled(name, shape, direction):
    """What to time, the seconds that compiling took, the bytes it takes, and what runs."""
    cell = zoo.cell(name, shape.H)
    params = cell.init(jax.random.key(0), shape.I)
    rng = np.random.default_rng(0)
    xs, weights = (
        jnp.asarray(rng.standard_normal((shape.T, shape.B, n), np.float32))
        for n in (shape.I, shape.H)
    )

    def apply(params, xs):
        return jaxrnn.unroll(cell, params, xs)[1]

    program, seconds = timing.compiled(timed(apply, direction), params, xs, weights)
    chosen = jaxrnn.explain(cell, params, xs).choices
    runs = ", ".join(dict.fromkeys(choice.runs for choice in chosen)) or None
    call = functools.partial(program, params, xs, weights)
    return call, seconds, memory.planned(program), runs


def _times(rows):
    """``{cell: {(shape, direction): row}}``."""
    found = {}
    for row in rows:
        found.setdefault(row["cell"], {})[row["shape"]["name"], row["direction"]] = row
    return found


def table(rows):
    found = _times(rows)
    columns = list(dict.fromkeys(key for by_case in found.values() for key in by_case))
    shown = display.table(f"milliseconds, and times {LIKE}'s")
    shown.add_column("cell")
    shown.add_column("runs")
    for shape, direction in columns:
        shown.add_column(f"{shape} {direction.replace('_', ' ')}", justify="right", no_wrap=True)
    for cell, by_case in found.items():
        runs = next(iter(by_case.values()))["runs"]
        cells = [f"{r['milliseconds']:.2f}  {r['ratio'][0]:5.2f}" for r in by_case.values()]
        shown.add_row(cell, runs or "", *cells)
    return shown


def costs(rows):
    """What a layer takes beside its time: to compile it, and of memory."""
    shown = display.table("compiling, and memory as XLA plans it")
    shown.add_column("cell")
    found = _times(rows)
    for shape, direction in dict.fromkeys(key for by_case in found.values() for key in by_case):
        shown.add_column(f"{shape} {direction.replace('_', ' ')}", justify="right", no_wrap=True)
    for cell, by_case in found.items():
        of_each = [display.cost(r["compile_seconds"], r["memory_bytes"]) for r in by_case.values()]
        shown.add_row(cell, *of_each)
    return shown


def sentences(rows):
    """Which are fastest and which slowest."""
    out = []
    for shape, direction in dict.fromkeys((r["shape"]["name"], r["direction"]) for r in rows):
        ratios = {
            r["cell"]: r["ratio"][0]
            for r in rows
            if (r["shape"]["name"], r["direction"]) == (shape, direction)
        }
        order = sorted(ratios, key=ratios.get)
        ends = order if len(order) < 6 else [*order[:3], *order[-3:]]
        each = listed([f"{name} {ratios[name]:.2f}" for name in ends])
        out.append(f"{shape}, {direction.replace('_', ' ')}, times {LIKE}'s: {each}.")
    return out


def draw(path, rows, subtitle):
    """Writes the chart: a line for each cell, a panel for each shape."""
    found = _times(rows)
    shapes = list(dict.fromkeys(row["shape"]["name"] for row in rows))
    cells = sorted(found, key=lambda cell: -found[cell][shapes[0], DIRECTIONS[-1]]["milliseconds"])
    size = (1 + 4.2 * len(shapes), 1.6 + 0.22 * len(cells))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(f"A layer of each cell, float32\n{subtitle}", fontsize=9)
    panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, shapes, strict=True):
        for direction, colour, marker in zip(DIRECTIONS, ("#0072b2", "#d55e00"), "os"):
            times = [found[cell][name, direction]["milliseconds"] for cell in cells]
            label = direction.replace("_", " ")
            panel.plot(times, cells, marker, color=colour, markersize=5, label=label)
        shape = next(r["shape"] for r in rows if r["shape"]["name"] == name)
        sizes = " ".join(f"{letter}={shape[letter]}" for letter in "BTIH")
        panel.set(xscale="log", xlabel="milliseconds", title=f"{name}: {sizes}")
        panel.title.set_fontsize(9)
        panel.grid(color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    record.replace(path, lambda temporary: figure.savefig(temporary, format="png"))
