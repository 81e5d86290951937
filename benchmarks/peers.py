"""One LSTM or GRU layer in jaxrnn and in other libraries, in turn, in one run.

A ratio is a peer's time over jaxrnn's, round by round: above 1, jaxrnn is the faster one. A run
that stopped goes on where it was; after one that is whole, all is timed again.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax

from benchmarks.shared import ceiling, display, held, machine, memory, record, timing
from benchmarks.shared.contenders import (
    CELLS,
    CONTENDERS,
    DIRECTIONS,
    MATMULS,
    OURS,
    TITLES,
    USUAL,
)
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES, Shape
from benchmarks.shared.words import against, best, quotient

PACKAGES = (*machine.PACKAGES, "keras", "equinox", "torch")
# What is said in words: ours against the fastest of each group, shape by shape.
GROUPS = {
    "the best of all": ("linen", "nnx", "keras", "equinox", "scan", "torch"),
    "the faster of linen and nnx": ("linen", "nnx"),
    "the faster of keras and equinox": ("keras", "equinox"),
    "torch": ("torch",),
}
# How often a row's weights and inputs are put into memory anew: where they happen to lie moves the
# time of one and the same program.
PLACES = 4
LARGE = 8192  # numbers in a state, from which on a layer's rate is compared with a large product's
NOTES = ceiling.NOTES | {
    "product_rate": "the ceiling's of XLA",
    "samples": "seconds of the second of two calls in a row; sample i of all contenders is from"
    f" round i; weights and inputs are put into memory anew {PLACES} times",
    "ratio": "the contender's time over jaxrnn's, round by round: [median, lower quartile, upper]",
    "compile_seconds": "tracing and compiling, apart from every sample",
    "memory_bytes": memory.NOTE,
    "missing": "why a contender did not run",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Times an LSTM and a GRU layer against the same in other libraries.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    peers = [name for name in CONTENDERS if name != OURS]
    for option, known, usual in (
        ("shapes", SHAPES, SHAPES),
        ("cells", CELLS, USUAL),
        ("directions", DIRECTIONS, DIRECTIONS),
        ("peers", peers, peers),
    ):
        several(parser, option, known, usual)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float64"], default="float32")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help=f"to time each row, about; {3 * PLACES} rounds at least",
    )
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    with jax.enable_x64(chosen.dtype == "float64"):
        return run(chosen)


def run(chosen):
    console = display.console()
    about = machine.describe(PACKAGES)
    path = chosen.out / f"{_name(chosen, about['platform'])}.json"
    begun = record.begun("peers", about, NOTES, chosen)
    interrupted = False

    def save():
        record.save(
            path, begun | {"interrupted": interrupted, "words": sentences(rows), "rows": rows}
        )

    console.print(f"[bold]One layer, {chosen.dtype}[/]\n{machine.line(about)}\n")
    cases = [
        (direction, cell, shape)
        for direction in chosen.directions
        for cell in chosen.cells
        for shape in chosen.shapes
    ]
    rows = _stopped(path, begun, len(cases))
    try:
        with display.progress(console, len(cases) - len(rows)) as step:
            for direction, cell, shape in cases[len(rows) :]:
                with step(f"{direction:<14} {cell:<5} {shape:<11}") as done:
                    row = measure(chosen, direction, cell, SHAPES[shape])
                    done(f"best peer / jaxrnn {best(row):.2f}" if best(row) else "no peer ran")
                rows.append(row)
                save()
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured is kept")
    save()
    for direction in dict.fromkeys(row["direction"] for row in rows):
        some = [r for r in rows if r["direction"] == direction]
        for one in (table(some, direction), costs(some, direction)):
            console.print(one)
            console.print()
    console.print(f"written: {path}\n")
    for sentence in sentences(rows):
        console.print(sentence)
    return 130 if interrupted else 0


def _stopped(path, begun, count):
    """The rows of a run that stopped before it had ``count``, or [].

    It had the same options, on the same machine, with the same versions.
    """
    content = record.load(path)
    alike = content.get("options") == begun["options"]
    if not alike or not machine.same(content["machine"], begun["machine"]):
        return []
    return content["rows"] if len(content["rows"]) < count else []


def _name(chosen, platform):
    """Of the results: cells that few libraries have, and one instruction set, have their own."""
    cells = ["loops"] if set(chosen.cells) - set(USUAL) else []
    return "-".join(["peers", *cells, platform, *held.names()])


def measure(chosen, direction, cell, shape):
    """One row: all contenders on one layer."""
    place, compile_seconds, memory_bytes, missing = {}, {}, {}, {}
    for name in (OURS, *chosen.peers):
        try:
            place[name], compile_seconds[name], memory_bytes[name] = CONTENDERS[name](
                cell, shape, direction, chosen.dtype
            )
        except ImportError as error:
            missing[name] = str(error)
    samples = {name: [] for name in place}
    most = ceiling.Ceiling(chosen.dtype, chosen.peers)
    for _ in range(PLACES):
        most.sample()
        calls = {name: put() for name, put in place.items()}
        taken = timing.interleaved(calls, seconds=chosen.seconds / PLACES)
        for name, seconds in taken.items():
            samples[name] += seconds
    return {
        "direction": direction,
        "cell": cell,
        "shape": shape._asdict(),
        "ceiling": most.found(),
        "product_rate": most.found()["xla"],
        "samples": samples,
        "compile_seconds": compile_seconds,
        "memory_bytes": memory_bytes,
        "missing": missing,
        "seconds": {name: timing.summary(s).median for name, s in samples.items()},
        "ratio": {n: list(timing.ratio(samples[n], samples[OURS])) for n in samples if n != OURS},
        "load": machine.load(),
    }


def operations(row):
    """Of a layer's products."""
    shape = Shape(**row["shape"])
    of_input, recurrent = MATMULS[row["cell"]]
    forward = 2 * shape.T * shape.B * shape.H * (of_input * shape.I + recurrent * shape.H)
    return forward if row["direction"] == "forward" else 3 * forward


def rate(row):
    """What jaxrnn's products do a second, as a part of what one large product does."""
    return operations(row) / row["seconds"][OURS] / row["product_rate"]


def table(rows, direction):
    found = display.table(TITLES[direction])
    peers = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    for name in ("cell", "shape"):
        found.add_column(name)
    for name in ("B", "T", "I", "H", "jaxrnn", "of ceiling", *peers):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name, *sizes = row["shape"].values()
        seconds = f"{row['seconds'][OURS] * 1e3:.4g} ms"
        part = ceiling.part(row, operations(row), OURS)
        ratios = [quotient(row["ratio"][p]) if p in row["ratio"] else "-" for p in peers]
        found.add_row(row["cell"], name, *map(str, sizes), seconds, part, *ratios)
    return found


def costs(rows, direction):
    """What a layer takes beside its time: to compile it, and of memory."""
    found = display.table(f"{direction.replace('_', ' ')}: compiling, and memory as XLA plans it")
    names = list(dict.fromkeys(name for row in rows for name in row["compile_seconds"]))
    for name in ("cell", "shape"):
        found.add_column(name)
    for name in names:
        found.add_column("jaxrnn" if name == OURS else name, justify="right", no_wrap=True)
    for row in rows:
        of_each = [
            display.cost(row["compile_seconds"].get(name), row["memory_bytes"].get(name))
            for name in names
        ]
        found.add_row(row["cell"], row["shape"]["name"], *of_each)
    return found


def sentences(rows):
    """What the table says, in words."""
    out = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        for cell in dict.fromkeys(row["cell"] for row in rows):
            for group, peers in GROUPS.items():
                ratios = {
                    row["shape"]["name"]: best(row, peers)
                    for row in rows
                    if (row["direction"], row["cell"]) == (direction, cell) and best(row, peers)
                }
                if ratios:
                    out.append(f"{cell} {direction.replace('_', ' ')}: {against(group, ratios)}")
            rates = [
                f"{rate(row):.2f} at {row['shape']['name']}"
                for row in rows
                if (row["direction"], row["cell"]) == (direction, cell)
                and row["shape"]["H"] * row["shape"]["B"] >= LARGE
            ]
            if rates:
                out.append(
                    f"{cell} {direction.replace('_', ' ')}: {', '.join(rates)} of the rate of one"
                    f" product of {ceiling.PRODUCT} x {ceiling.PRODUCT} matrices."
                )
    return out
