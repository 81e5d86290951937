"""A model of bytes, trained and exported, to be served by a process that has no jaxrnn.

    python examples/export_model.py [--steps 1000] [--hidden 128] [--int8] [--out served]
    python examples/serve.py served

Writes unroll.bin and step.bin, programs for CPU, TPU and CUDA alike, of any number of rows and
steps, and weights.npz, which both take.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from rich.progress import track

import jaxrnn

BYTES, BATCH, LENGTH = 256, 32, 64


def train(cell, steps):
    """Parameters that know something of the bytes of Python's help topics."""
    text = np.frombuffer("\n".join(topics.values()).encode(), np.uint8)
    rng, optimizer = np.random.default_rng(0), optax.adam(4e-3)

    def loss(params, window):
        logits = jaxrnn.unroll(cell, params, jax.nn.one_hot(window[:-1], BYTES))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]).mean()

    @jax.jit
    def update(params, moments, window):
        updates, moments = optimizer.update(jax.grad(loss)(params, window), moments)
        return optax.apply_updates(params, updates), moments

    params = cell.init(jax.random.key(0), BYTES)
    moments = optimizer.init(params)
    for _ in track(range(steps), "training"):
        at = rng.integers(0, len(text) - LENGTH, BATCH) + np.arange(LENGTH + 1)[:, None]
        params, moments = update(params, moments, jnp.asarray(text[at], jnp.int32))
    return params


def write(cell, params, directory):
    """The three files. Weights are a flat dict of arrays, as a file of NumPy's holds them."""
    leaves, tree = jax.tree.flatten_with_path(params)
    weights = {jax.tree_util.keystr(k, simple=True, separator="."): w for k, w in leaves}
    names = list(weights)

    def unroll(weights, tokens, lengths):
        """tokens [T, B], lengths [B] -> (state, logits [T, B, 256])."""
        params = tree.unflatten(weights[name] for name in names)
        return jaxrnn.unroll(cell, params, jax.nn.one_hot(tokens, BYTES), lengths=lengths)

    def step(weights, state, tokens):
        """tokens [B] -> (state, logits [B, 256])."""
        params = tree.unflatten(weights[name] for name in names)
        return cell.step(params, state, jax.nn.one_hot(tokens, BYTES))

    steps, rows = export.symbolic_shape("T, B")
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    state = jax.eval_shape(lambda params: cell.initial_state(params, (rows,)), params)
    given = {unroll: (ints(steps, rows), ints(rows)), step: (state, ints(rows))}

    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "weights.npz", **weights)
    for function, shapes in given.items():
        exporter = export.export(jax.jit(function), platforms=("cpu", "tpu", "cuda"))
        program = exporter(weights, *shapes).serialize()
        (directory / f"{function.__name__}.bin").write_bytes(program)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--int8", action="store_true", help="weights as int8")
    parser.add_argument("--out", type=Path, default=Path("served"), help="directory of the files")
    options = parser.parse_args(argv)

    cell = jaxrnn.stack(jaxrnn.gru(options.hidden), jaxrnn.project(BYTES))
    params = train(cell, options.steps)
    if options.int8:
        cell, params = jaxrnn.quantize(cell, params)
    write(cell, params, options.out)
    for path in sorted(options.out.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
