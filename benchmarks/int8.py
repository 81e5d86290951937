"""What int8 weights cost in accuracy: of fresh cells and of small trained models of text.

No time is taken: weights are made floats again before the loop, which is the same as before.
"""

import argparse
import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from benchmarks.shared import display, machine, record, text
from benchmarks.shared.model import OPTIMIZER, Model

CELLS = ("elman", "gru", "lstm")
SEEDS = range(3)
TESTS = 8  # batches of text that training did not see
NOTES = {
    "error": "the root mean square of what int8 weights change in the outputs, over that of the"
    " outputs: of all steps of random inputs to parameters as the cell makes them",
    "bits": "cross entropy of the next byte in the last tenth of the text, which training did not"
    " see, with float32 and with int8 weights",
    "bytes": "of the parameters of layer and output; the embedding, which stays float32, is apart",
    "samples": f"one for each seed, {list(SEEDS)}: of parameters and inputs, or of training",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks int8",
        description="Measures what int8 weights cost in accuracy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--hidden", type=int, default=128, help="H, and I")
    parser.add_argument("--length", type=int, default=256, help="T")
    parser.add_argument("--batch", type=int, default=16, help="B")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    about = machine.describe()
    path = chosen.out / f"int8-{about['platform']}.json"
    begun = record.begun("int8", about, NOTES, chosen)
    console.print(f"[bold]Weights as int8[/]\n{machine.line(about)}\n")
    rows = []
    with display.progress(console, len(CELLS)) as step:
        for name in CELLS:
            with step(f"{name:<6}") as done:
                rows.append(measure(name, chosen))
                done(f"outputs change by {statistics.mean(rows[-1]['samples']['error']):.2%}")
            record.save(path, begun | {"words": [sentence(row) for row in rows], "rows": rows})
    console.print(f"\nwritten: {path}\n")
    for row in rows:
        console.print(sentence(row))
    return 0


def measure(name, chosen):
    """A row: every seed's error of a fresh cell, and bits per byte of a trained model."""
    cell = getattr(jaxrnn, name)(chosen.hidden)
    errors = [fresh(cell, chosen, seed) for seed in SEEDS]
    wide, small, sizes = zip(*(trained(cell, chosen, seed) for seed in SEEDS))
    bits = {"float32": wide, "int8": small}
    return {"cell": name, "samples": {"error": errors, "bits": bits}, "bytes": sizes[0]}


def fresh(cell, chosen, seed):
    """The error of outputs at parameters as the cell makes them."""
    begin, inputs = jax.random.split(jax.random.key(seed))
    params = cell.init(begin, chosen.hidden)
    xs = jax.random.normal(inputs, (chosen.length, chosen.batch, chosen.hidden))
    run = jax.jit(lambda cell, params: jaxrnn.unroll(cell, params, xs)[1], static_argnums=0)
    ys = run(cell, params)
    change = run(*jaxrnn.quantize(cell, params)) - ys
    return float(jnp.linalg.norm(change) / jnp.linalg.norm(ys))


def trained(cell, chosen, seed):
    """Bits per byte held out, float32 and int8, and the bytes of both; ``seed`` draws the data."""
    model, rng = Model(cell, chosen.hidden, layers=1), np.random.default_rng(seed)
    english = text.english().astype(np.int32)
    training, held_out = np.split(english, [len(english) * 9 // 10])

    def windows(part):
        first = rng.integers(0, len(part) - chosen.length, chosen.batch)
        window = part[first + np.arange(chosen.length + 1)[:, None]]
        return window[:-1], window[1:]

    train = jax.jit(model.train, donate_argnums=(0, 1))
    params = model.init()
    moments = OPTIMIZER.init(params)
    for _ in range(chosen.steps):
        params, moments, _ = train(params, moments, *windows(training))

    small, rounded = jaxrnn.quantize(model.cell, params["cell"])
    tests, embedding = [windows(held_out) for _ in range(TESTS)], params["embedding"]
    bits = [
        statistics.mean(float(entropy(cell, own, embedding, *test)) for test in tests)
        for cell, own in ((model.cell, params["cell"]), (small, rounded))
    ]
    sizes = [sum(a.nbytes for a in jax.tree.leaves(own)) for own in (params["cell"], rounded)]
    return *bits, sizes


@functools.partial(jax.jit, static_argnums=0)
def entropy(cell, params, embedding, inputs, targets):
    """Bits per byte of what comes next, [T, B]."""
    logits = jaxrnn.unroll(cell, params, embedding[inputs])[1]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats.mean() / math.log(2)


def sentence(row):
    """What a row says."""
    error, bits = row["samples"]["error"], row["samples"]["bits"]
    lost = [small - wide for wide, small in zip(bits["float32"], bits["int8"])]
    wide, small = row["bytes"]
    return (
        f"{row['cell']}: fresh, outputs change by {statistics.mean(error):.2%}; trained,"
        f" {statistics.mean(bits['float32']):.3f} bits per byte become"
        f" {statistics.mean(bits['int8']):.3f} ({min(lost):+.4f} to {max(lost):+.4f} at"
        f" {len(lost)} seeds), {wide:,} bytes of weights {small:,}."
    )
