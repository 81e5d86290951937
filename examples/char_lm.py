"""A language model of characters: an LSTM on Python's own help topics, with Flax and Optax.

    python examples/char_lm.py [--steps 600] [--hidden 192]

Reports the loss on text it has not seen, in bits per byte, then writes a sample.
"""

import argparse
import math
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import Progress

import jaxrnn
import jaxrnn.nnx

BYTES, BATCH, LENGTH = 256, 32, 128
TEXT = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
CUT = len(TEXT) * 9 // 10
TRAINING, HELD_OUT = TEXT[:CUT], TEXT[CUT:]


class Model(nnx.Module):
    def __init__(self, hidden, rngs):
        cell = jaxrnn.stack(jaxrnn.lstm(hidden), jaxrnn.dropout(0.1))
        self.embedding = nnx.Embed(BYTES, 64, rngs=rngs)
        self.rnn = jaxrnn.nnx.RNN(cell, 64, rngs=rngs)
        self.output = nnx.Linear(hidden, BYTES, rngs=rngs)

    def __call__(self, tokens):
        """tokens [B, T] -> logits of the next ones [B, T, 256]."""
        return self.output(self.rnn(self.embedding(tokens)))

    def step(self, state, token):
        """One token of a stream, [B] -> (state, logits [B, 256])."""
        state, y = self.rnn.step(state, self.embedding(token))
        return state, self.output(y)


def windows(text, rng):
    """Random stretches of the text: [BATCH, LENGTH + 1]."""
    first = rng.integers(0, len(text) - LENGTH - 1, BATCH)
    return jnp.array(text[first[:, None] + np.arange(LENGTH + 1)], jnp.int32)


def loss_of(model, tokens):
    """Mean bits per byte."""
    logits = model(tokens[:, :-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return nats.mean() / math.log(2)


@nnx.jit
def train(model, optimizer, tokens):
    loss, gradient = nnx.value_and_grad(loss_of)(model, tokens)
    optimizer.update(model, gradient)
    return loss


@nnx.jit
def evaluate(model, tokens):
    return loss_of(model, tokens)


def held_out(model):
    """Bits per byte on the text not trained on; dropout off."""
    model.eval()
    rng = np.random.default_rng(0)
    bits = [float(evaluate(model, windows(HELD_OUT, rng))) for _ in range(8)]
    model.train()
    return sum(bits) / len(bits)


def sample(model, prompt, length, temperature, key):
    """Goes on from the prompt, byte by byte, with ``step``."""
    model.eval()
    graph, weights = nnx.split(model)

    @jax.jit
    def step(state, token, key):
        state, logits = nnx.merge(graph, weights).step(state, token)
        return state, jax.random.categorical(key, logits / temperature)

    state, text = model.rnn.initial_state((1,)), list(prompt.encode())
    for i in range(len(text) + length - 1):
        state, token = step(state, jnp.array([text[i]]), jax.random.fold_in(key, i))
        if i == len(text) - 1:
            text.append(int(token[0]))
    return bytes(text).decode(errors="replace")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=192)
    options = parser.parse_args(argv)

    model = Model(options.hidden, nnx.Rngs(0))
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3))
    optimizer, rng = nnx.Optimizer(model, rule, wrt=nnx.Param), np.random.default_rng(1)
    before = held_out(model)
    with Progress() as progress:
        task = progress.add_task("training", total=options.steps)
        for _ in range(options.steps):
            bits = train(model, optimizer, windows(TRAINING, rng))
            progress.update(task, advance=1, description=f"{float(bits):.2f} bits per byte")
    after = held_out(model)
    print(f"held out: {before:.2f} bits per byte before training, {after:.2f} after")
    print(sample(model, "The following ", 300, 0.7, jax.random.key(0)))
    return before, after


if __name__ == "__main__":
    main()
