"""Two pictures of what goes on inside: an LSTM's gates while it reads, and vanishing gradients.

    python examples/look_inside.py [--steps 1000] [--hidden 64] [--out-dir .]

Trains a small model of the next character on Python's own help topics, then draws

    gates.png      the gates and the states of the LSTM over a sentence
    gradients.png  how much the state at each step matters to the last prediction, before any
                   training: RNN, GRU and LSTM as PyTorch begins them, all of which forget, and an
                   LSTM whose gates begin open for as long as the text is
"""

import argparse
import functools
import pathlib
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import jaxrnn
import jaxrnn.plot

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
SYMBOLS, BATCH, LENGTH = 128, 32, 96
TEXT = "\n".join(topics[name] for name in sorted(topics))
CODES = np.frombuffer(TEXT.encode("ascii", "replace"), np.uint8)
CUT = len(CODES) * 9 // 10
TRAINING, HELD_OUT = CODES[:CUT], CODES[CUT:]
SENTENCE = "If the statement is in a function, the name is local to it."


def cells(hidden):
    begun = {"RNN": jaxrnn.elman, "GRU": jaxrnn.gru, "LSTM": jaxrnn.lstm}
    cells = {name: jaxrnn.initialized(make(hidden), "torch") for name, make in begun.items()}
    chrono = jaxrnn.initialized(jaxrnn.lstm(hidden), b=jaxrnn.chrono(LENGTH))
    return cells | {"LSTM, chrono biases": chrono}


def inputs(codes):
    return jax.nn.one_hot(codes, SYMBOLS)


def windows(text, rng):
    """Random stretches of the text: [LENGTH + 1, BATCH]."""
    first = rng.integers(0, len(text) - LENGTH - 1, BATCH)
    return jnp.asarray(text[first + np.arange(LENGTH + 1)[:, None]].astype(np.int32))


@functools.partial(jax.jit, static_argnums=0)
def loss_of(model, params, codes):
    """Of the next character, mean, in bits."""
    _, logits = jaxrnn.unroll(model, params, inputs(codes[:-1]))
    return cross_entropy(logits, codes[1:]).mean() / jnp.log(2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(model, rule, params, memory, codes):
    bits, gradient = jax.value_and_grad(functools.partial(loss_of, model))(params, codes)
    changes, memory = rule.update(gradient, memory)
    return optax.apply_updates(params, changes), memory, bits


def trained(model, steps):
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3))
    params, rng = model.init(jax.random.key(0), SYMBOLS), np.random.default_rng(0)
    memory = rule.init(params)
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        for _ in range(steps):
            params, memory, bits = train(model, rule, params, memory, windows(TRAINING, rng))
            progress.update(task, advance=1, description=f"{float(bits):.2f} bits a character")
    return params


@functools.partial(jax.jit, static_argnums=0)
def gradient_norms(model, params, codes):
    """Of the loss of the last prediction alone, for each step and row."""
    last = lambda logits: cross_entropy(logits[-1], codes[-1]).sum()
    return jaxrnn.inside.gradient_norms(model, params, inputs(codes[:-1]), loss=last)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--out-dir", type=pathlib.Path, default=pathlib.Path())
    options = parser.parse_args(argv)

    deep = lambda cell: jaxrnn.stack(cell, jaxrnn.project(SYMBOLS))
    norms, unseen = {}, windows(HELD_OUT, np.random.default_rng(1))
    for name, cell in cells(options.hidden).items():
        model = deep(cell)
        norms[name] = gradient_norms(model, model.init(jax.random.key(0), SYMBOLS), unseen)
        faded = float(np.median(norms[name][-33] / norms[name][-1]))
        print(f"{name}: 32 steps back, {faded:.1e} of the gradient is left")
    axes = jaxrnn.plot.gradient_flow(norms)
    axes.set_title("How much the state matters to the last prediction, before training")
    axes.figure.savefig(options.out_dir / "gradients.png", dpi=120)

    model = deep(jaxrnn.lstm(options.hidden))
    params = trained(model, options.steps)
    bits = float(loss_of(model, params, unseen))
    print(f"held out: {bits:.2f} bits a character")
    codes = jnp.asarray(np.frombuffer(SENTENCE.encode(), np.uint8).astype(np.int32))
    inside = jaxrnn.trace(model, params, inputs(codes))["0"]
    low, high = jaxrnn.inside.saturation(inside["f"])
    print(f"forget gates below 0.1: {low.mean():.0%} of the time, above 0.9: {high.mean():.0%}")
    picture = jaxrnn.plot.gates(inside, SENTENCE, names=("i", "f", "o", "c", "h"), units=32)
    picture.savefig(options.out_dir / "gates.png", dpi=120)
    return bits, norms


if __name__ == "__main__":
    main()
