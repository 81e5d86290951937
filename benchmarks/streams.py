"""One step of a stream: ``cell.step`` under jit at B = 1, as serving runs it.

A step has to read its weights once, so a reading of as many bytes from the same level of the cache
is what it is held against. What any jitted call costs is measured with an empty one.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks.shared import display, machine, record, timing
from benchmarks.shared.options import several

OURS, EMPTY, READ = "jaxrnn", "empty", "read"
CELLS, LAYERS, SIZES = ("lstm", "gru"), (1, 3), (64, 128, 256, 512)
NOTES = {
    "samples": "seconds of one of many calls in a row; sample i of all contenders is from round i",
    "empty": "a jitted call of the same arguments and results that computes nothing",
    "read": "NumPy's maximum of as many numbers as the weights have, by one core",
    "step": "jaxrnn's time without an empty call's: [median, lower quartile, upper], in seconds",
    "reads": "that time over the reading's, round by round",
}


def calls(cell, layers, size, contenders):
    """A call of each contender for a stack of ``layers``, and the bytes of its weights."""
    stack = jaxrnn.stack(*[getattr(jaxrnn, cell)(size) for _ in range(layers)])
    params = stack.init(jax.random.key(0), size)
    state, x = stack.initial_state(params, (1,)), jnp.ones((1, size))
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    weights = np.concatenate([array.ravel() for array in arrays])
    made = {
        OURS: functools.partial(jax.jit(stack.step), params, state, x),
        EMPTY: functools.partial(jax.jit(lambda params, state, x: (state, x)), params, state, x),
        READ: weights.max,
    }
    made |= {name: make(cell, layers, size) for name, make in PEERS.items() if name in contenders}
    return made, weights.nbytes


def _linen(cell, layers, size):
    from flax import linen as nn

    kind = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[cell]
    cells = [kind(size) for _ in range(layers)]
    x, key = jnp.ones((1, size)), jax.random.key(0)
    states = [cell.initialize_carry(key, x.shape) for cell in cells]
    params = [cell.init(key, state, x) for cell, state in zip(cells, states, strict=True)]

    @jax.jit
    def step(params, states, x):
        after = []
        for cell, own, state in zip(cells, params, states, strict=True):
            state, x = cell.apply(own, state, x)
            after.append(state)
        return after, x

    return functools.partial(step, params, states, x)


def _torch(cell, layers, size):
    import torch

    torch.set_num_threads(1)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer, x = kind(size, size, layers).eval(), torch.ones(1, 1, size)
    zeros = torch.zeros(layers, 1, size)
    state = (zeros, zeros) if cell == "lstm" else zeros

    def step():
        with torch.inference_mode():
            return layer(x, state)

    return step


PEERS = {"linen": _linen, "torch": _torch}


def measure(chosen, cell, layers, size):
    """One row: all contenders, a thousandth of a second of calls at a time."""
    made, weights = calls(cell, layers, size, chosen.peers)
    for call in made.values():
        timing.once(call)  # which compiles it
    many = {name: timing.batched(call, 1e-3) for name, call in made.items()}
    samples = timing.interleaved({n: run for n, (run, _) in many.items()}, seconds=chosen.seconds)
    samples = {name: [s / many[name][1] for s in found] for name, found in samples.items()}
    own = [a - b for a, b in zip(samples[OURS], samples[EMPTY], strict=True)]
    return {
        "cell": cell,
        "layers": layers,
        "H": size,
        "bytes": weights,
        "samples": samples,
        "seconds": {name: timing.summary(found).median for name, found in samples.items()},
        "step": list(timing.summary(own)),
        "reads": list(timing.ratio(own, samples[READ])),
        "ratio": {n: list(timing.ratio(samples[n], samples[OURS])) for n in chosen.peers},
        "load": machine.load(),
    }


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks streams",
        description="Times one step of a stream against a reading of its weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "cells", CELLS)
    several(parser, "layers", LAYERS, kind=int)
    several(parser, "sizes", SIZES, kind=int)
    several(parser, "peers", PEERS)
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console, about = parse(argv), display.console(), machine.describe()
    path = chosen.out / f"streams-{about['platform']}.json"
    begun = record.begun("streams", about, NOTES, chosen)
    cases = [(c, n, h) for c in chosen.cells for n in chosen.layers for h in chosen.sizes]
    rows = []
    console.print(f"[bold]One step of a stream[/]\n{machine.line(about)}\n")
    with display.progress(console, len(cases)) as step:
        for cell, layers, size in cases:
            with step(f"{cell:<4} {layers} x {size}") as done:
                rows.append(measure(chosen, cell, layers, size))
                done(f"{1e6 * rows[-1]['step'][0]:.1f} µs, {rows[-1]['reads'][0]:.2f} readings")
            record.save(path, begun | {"rows": rows})
    console.print(f"written: {path}")
    return 0
