"""The linear recurrence, and a copy of as many bytes as it has to read and write.

Memory bounds the operation. So a copy, by all cores, into memory that is there already, is what it
is held against. A program's results are new memory at each call, so it is held against XLA's
program for ``-x`` too, which moves as many bytes.
"""

import argparse
import concurrent.futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared import display, machine, record, scans, timing
from benchmarks.shared.options import several
from benchmarks.shared.words import quotient

OURS, COPY, NEGATED = "jaxrnn", "copy", "negative"
DIRECTIONS = ("forward", "backward")
KINDS = ("float32", "constant", "complex64", "bfloat16")  # of a and b; constant: of float32
NOTES = {
    "samples": "seconds of the second of two calls in a row; sample i of all contenders is from"
    " round i; backward: the gradients of a and b alone, from the states",
    "bytes": "that have to be read and written; `copy` reads half of them and writes half, as does"
    " `negative`, XLA's program for -x",
    "ratio": "jaxrnn's time over the contender's, round by round: [median, lower quartile, upper]",
}


class Shape(NamedTuple):
    T: int
    B: int
    D: int

    def __str__(self):
        return f"T={self.T} B={self.B} D={self.D}"


LONGEST = 4096  # of bfloat16: XLA's scan copies all of its results at each step, in T^2 time
SHAPES = (Shape(1024, 1, 128), Shape(256, 32, 128), Shape(256, 16, 4096), Shape(65536, 1, 256))
CONTENDERS = {
    OURS: scans.ours,
    "xla": lambda a, b: scans.ours(a, b, implementation="xla"),
    **scans.PEERS,
}


def call(name, kind, shape, direction):
    """A contender's call, and how many bytes it has to move."""
    constant, dtype = kind == "constant", "float32" if kind == "constant" else kind
    a = _random((shape.D,) if constant else shape, dtype) / 2
    b, d_hs = (_random(shape, dtype, seed) for seed in (1, 2))
    sizes = {"forward": (a, b, b), "backward": (a, b, b, a, b)}[direction]
    if direction == "forward":
        program, _ = timing.compiled(CONTENDERS[name], a, b)
        return (lambda: program(a, b)), sum(x.nbytes for x in sizes)
    _, pull = jax.jit(lambda *moving: jax.vjp(CONTENDERS[name], *moving))(a, b)
    program, _ = timing.compiled(lambda pull, d_hs: pull(d_hs), pull, d_hs)
    return (lambda: program(pull, d_hs)), sum(x.nbytes for x in sizes)


def copy(size):
    """A call that reads half of ``size`` bytes, and writes half, by all cores."""
    cores = machine.cores()
    parts = [np.ones((2, max(1, size // 8 // cores)), np.float32) for _ in range(cores)]
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    return lambda: list(pool.map(lambda part: np.copyto(part[0], part[1]), parts))


def negative(size):
    """XLA's program for -x, which reads half of ``size`` bytes and writes half into new memory."""
    x = jnp.ones(max(1, size // 8), jnp.float32)
    program, _ = timing.compiled(jnp.negative, x)
    return lambda: program(x)


def _random(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, *shape), np.float32)
    return jnp.asarray(parts[0] + 1j * parts[1] if dtype == "complex64" else parts[0], dtype)


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks linear",
        description="Times jaxrnn.linear_scan against JAX's scans and copies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known in (("kinds", KINDS), ("directions", DIRECTIONS)):
        several(parser, option, known)
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    console, about = display.console(), machine.describe()
    path = chosen.out / f"linear-{about['platform']}.json"
    begun = record.begun("linear", about, NOTES, chosen)
    cases = [
        (direction, kind, shape)
        for direction in chosen.directions
        for kind in chosen.kinds
        for shape in SHAPES
        if kind != "bfloat16" or shape.T <= LONGEST
    ]
    rows = []
    console.print(f"[bold]The linear recurrence[/]\n{machine.line(about)}\n")
    with display.progress(console, len(cases)) as step:
        for direction, kind, shape in cases:
            with step(f"{direction:<8} {kind:<9} {shape}") as done:
                row = measure(chosen, direction, kind, shape)
                done(", ".join(f"jaxrnn / {n} {quotient(r)}" for n, r in row["ratio"].items()))
            rows.append(row)
            record.save(path, begun | {"rows": rows})
    console.print(f"written: {path}")
    return 0


def measure(chosen, direction, kind, shape):
    """One row: all contenders on the same arrays."""
    calls = {}
    for name in CONTENDERS:
        calls[name], size = call(name, kind, shape, direction)
    calls[COPY], calls[NEGATED] = copy(size), negative(size)
    samples = timing.interleaved(calls, seconds=chosen.seconds)
    return {
        "direction": direction,
        "kind": kind,
        "shape": shape._asdict(),
        "bytes": size,
        "samples": samples,
        "seconds": {name: timing.summary(s).median for name, s in samples.items()},
        "ratio": {n: list(timing.ratio(samples[OURS], samples[n])) for n in samples if n != OURS},
        "load": machine.load(),
    }
