"""What devices exchange, and what memory each takes, where time is divided over them.

Every cell that ``unroll(time_axis=)`` can run, forward and with its gradient, compiled for eight
devices of this machine's CPU. Exchanges, bytes and memory are the compiler's. What runs is a short
sequence in float64, whose results are compared with those of one device.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from benchmarks.shared import collectives, display, machine, memory, record, zoo
from benchmarks.shared.options import several

SIZES = {"T": 4104, "B": 2, "H": 16}  # a state of 512 numbers would look like time
SMALL = {"T": 32, "B": 3, "H": 8}  # of what runs
COUNTS = (2, 8)  # devices
NOTES = {
    "exchanges": "collective operations of a program for eight devices",
    "bytes": "of the arrays that a device has after them",
    "sums": "of these bytes, those of sums over devices: final states and gradients of weights",
    "long": "gathers and sums of an array that is as long as the sequence or a stretch",
    "looped": "exchanges in the body of a loop",
    "memory": "bytes a device, of arguments, results and temporary arrays, by number of devices",
    "error": "of outputs, final states and gradients in float64, with padding, lengths and resets:"
    " the largest difference from one device, by the largest number of an array",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks devices",
        description="Counts what eight devices exchange that time is divided over. Nothing is"
        " timed: what the file says of cells that are not named stays.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "cells", zoo.names())
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    path = chosen.out / "devices-cpu.json"
    if len(jax.devices("cpu")) < max(COUNTS):
        raise SystemExit("set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    begun = record.begun("devices", machine.describe(), NOTES, chosen)
    begun |= {"sizes": SIZES, "small": SMALL}
    rows, refused = others(path, chosen.cells)
    with display.progress(console, len(chosen.cells)) as step:
        for name in chosen.cells:
            with step(name) as done:
                row = measure(name, **SIZES)
                if row is None:
                    refused = sorted([*refused, name])
                    done("refuses")
                else:
                    new = row | {"error": error(name, **SMALL)}
                    rows = sorted([*rows, new], key=lambda row: row["cell"])
                    done(f"{row['gradient']['exchanges']} exchanges")
            record.save(path, begun | {"refused": refused, "rows": rows})
    console.print(f"written: {path}")
    return 0


def others(path, names):
    """The rows and the names of cells that refuse which a file has already, but of these names.

    Raises:
      SystemExit: the file is of other sizes.
    """
    content = record.load(path)
    if not content:
        return [], []
    if (content["sizes"], content["small"]) != (SIZES, SMALL):
        raise SystemExit(f"{path} is of other sizes: take another --out")
    rows = [row for row in content["rows"] if row["cell"] not in names]
    return rows, [name for name in content["refused"] if name not in names]


def measure(name, T, B, H):
    """A row of the table; None of a cell that refuses."""
    programs = {}
    for count in COUNTS:
        found = compiled(name, count, T, B, H)
        if found is None:
            return None
        programs[count] = found
    forward, gradient = programs[max(COUNTS)]
    lengths = {T, T // max(COUNTS)}
    return {
        "cell": name,
        "forward": counted(forward.as_text(), lengths),
        "gradient": counted(gradient.as_text(), lengths),
        "memory": {str(count): memory.planned(both[1]) for count, both in programs.items()},
    }


def compiled(name, count, T, B, H):
    """The programs of a cell over so many devices, forward and gradient; None if it refuses."""
    cell, mesh = zoo.cell(name, H), _mesh(count)
    place = lambda spec: (
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
    )
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), zoo.in_size(name, H)))
    params = jax.tree.map(place(PartitionSpec()), params)
    xs = jax.tree.map(place(PartitionSpec("time")), zoo.inputs(name, (T, B, H)))

    def run(params, xs):
        return jaxrnn.unroll(cell, params, xs, time_axis="time")

    def loss(params, xs):
        state, ys = run(params, xs)
        return (ys**2).sum() + _squares(state)

    with jax.set_mesh(mesh):
        try:
            jax.eval_shape(run, params, xs)
        except ValueError as error:
            if str(error).startswith("time_axis"):
                return None
            raise
        functions = run, jax.grad(loss, (0, 1))
        return [jax.jit(function).lower(params, xs).compile() for function in functions]


def error(name, T, B, H):
    """The largest error over eight devices, in float64, of a forward pass and its gradient."""
    draw, count = np.random.default_rng(0), max(COUNTS)
    mask, starts = draw.random((2, T, B)) < [[[0.8]], [[0.2]]]
    mask[:, 0], starts[:, 0] = True, np.arange(T) % (T // count) == 0  # at all seams
    flags = {"mask": mask, "starts": starts, "lengths": np.array([T, T // 2 + 1] + [T] * (B - 2))}
    cell, mesh = zoo.cell(name, H), _mesh(count)

    def loss(params, xs, flags, weights, **options):
        state, ys = jaxrnn.unroll(cell, params, xs, **flags, **options)
        return (ys * weights).sum() + _squares(state), (state, ys)

    def run(*given, **options):
        function = jax.value_and_grad(functools.partial(loss, **options), (0, 1), has_aux=True)
        return jax.tree.leaves(jax.jit(function)(*given))

    with jax.enable_x64(True):
        params = cell.init(jax.random.key(0), zoo.in_size(name, H))
        inputs = zoo.inputs(name, (T, B, H))
        xs = jax.tree.map(lambda a: draw.normal(size=a.shape), inputs)
        given = params, xs, flags, draw.normal(size=(T, B, H))
        wanted = run(*given)
        with jax.set_mesh(mesh):
            found = run(*given, time_axis="time")
        pairs = zip(*(map(np.asarray, arrays) for arrays in (found, wanted)), strict=True)
        return float(max(np.abs(a - b).max() / (np.abs(b).max() or 1.0) for a, b in pairs))


def _mesh(count):
    return jax.make_mesh((count,), ("time",), axis_types=(AxisType.Auto,))


def _squares(state):
    """Of all that has a gradient."""
    floats = (s for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.inexact))
    return sum((jnp.abs(s) ** 2).sum() for s in floats)


def counted(text, lengths):
    """Of a program's text: how many exchanges, of how many bytes, and which should not be."""
    exchanges = collectives.found(text)
    others = [e for e in exchanges if e.kind != "collective-permute"]  # attention's ring
    long = [e for e in others if any(lengths & set(shape) for shape in e.shapes)]
    return {
        "exchanges": len(exchanges),
        "bytes": sum(e.bytes for e in exchanges),
        "sums": sum(e.bytes for e in exchanges if e.kind == "all-reduce"),
        "long": len(long),
        "looped": sum(e.looped for e in exchanges),
    }
