"""A language model of characters: an LSTM on Python's own help topics, with Flax and Optax.

    python examples/char_lm.py [--steps 2000] [--seed 0] [--temperature 0.6] [--bf16]

Truncated back-propagation: the text is cut into streams, each step goes on where the last one
stopped, and the state goes along without its gradient. Reports bits per byte of text it has not
seen, beside n-gram models, and writes a sample.
"""

import argparse
import collections
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

STREAMS, LENGTH = 32, 64
TEXT = "\n".join(topics[name] for name in sorted(topics)).encode()
TRAINING, HELD_OUT = TEXT[: len(TEXT) * 9 // 10], TEXT[len(TEXT) * 9 // 10 :]


class Model(nnx.Module):
    def __init__(self, hidden, dtype, rngs):
        cell = jaxrnn.stack(
            jaxrnn.embedding(256, 64),
            jaxrnn.dropout(0.1),
            jaxrnn.lstm(hidden),
            jaxrnn.dropout(0.3),
            jaxrnn.project(256),
        )
        self.rnn = jaxrnn.nnx.RNN(cell, None, dtype=dtype, rngs=rngs)

    def bits(self, state, tokens):
        """tokens [B, T + 1] -> (mean bits per byte of the last T, state)."""
        state, logits = self.rnn(tokens[:, :-1], state=state, return_state=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return loss.mean() / math.log(2), state


@nnx.jit
def train(model, optimizer, state, tokens):
    run = nnx.value_and_grad(lambda model: model.bits(state, tokens), has_aux=True)
    (bits, state), gradient = run(model)
    optimizer.update(model, gradient)
    return bits, state


def ngrams(order):
    """Bits per byte of models of 1, 2, ... ``order`` bytes, interpolated (Witten & Bell 1991)."""
    shares, bits = np.full(len(HELD_OUT), 1 / 256), []
    for n in range(order):
        grams = collections.Counter(TRAINING[i : i + n + 1] for i in range(len(TRAINING) - n))
        before = collections.Counter(TRAINING[i : i + n] for i in range(len(TRAINING) - n))
        kinds = collections.Counter(gram[:-1] for gram in grams)
        for i in range(n, len(HELD_OUT)):
            gram, seen = HELD_OUT[i - n : i + 1], HELD_OUT[i - n : i]
            if whole := before[seen] + kinds[seen]:
                shares[i] = (grams[gram] + kinds[seen] * shares[i]) / whole
        bits.append(-np.log2(shares[1:]).mean())
    return bits


def sample(model, prompt, length, temperature, key):
    """The prompt, and what follows it byte by byte."""
    cell, params = model.rnn.cell_and_params()
    tokens = jnp.array(list(prompt.encode()))
    choose = jaxrnn.sample(temperature)
    made = jaxrnn.generate(cell, params, tokens, length, choose, key=key)
    return bytes([*tokens.tolist(), *made.xs.tolist()]).decode(errors="replace")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in dict(steps=2000, hidden=256, seed=0, temperature=0.6).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--bf16", action="store_true", help="parameters and inputs in bfloat16")
    given = parser.parse_args(argv)
    model = Model(given.hidden, jnp.bfloat16 if given.bf16 else None, nnx.Rngs(given.seed))
    adam = optax.adam(optax.cosine_decay_schedule(4e-3, given.steps))
    rule = optax.chain(optax.clip_by_global_norm(1.0), adam)
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    tokens = lambda text: jnp.array(np.frombuffer(text, np.uint8), jnp.int32)
    streams = tokens(TRAINING)[: len(TRAINING) // STREAMS * STREAMS].reshape(STREAMS, -1)
    with Progress() as progress:
        task = progress.add_task("training", total=given.steps)
        for i in range(given.steps):
            first = i % ((streams.shape[1] - 1) // LENGTH) * LENGTH
            if not first:
                state = model.rnn.initial_state((STREAMS,))
            bits, state = train(model, optimizer, state, streams[:, first : first + LENGTH + 1])
            progress.update(task, advance=1, description=f"{float(bits):.2f} bits per byte")
    model.eval()
    bits = float(nnx.jit(Model.bits)(model, None, tokens(HELD_OUT)[None])[0])
    others = ngrams(6)  # the best of which is chosen by the very text they are tried on
    print(
        f"held out, bits per byte: {bits:.3f}; n-grams {min(others):.3f}, 3-grams {others[2]:.3f}"
    )
    print(sample(model, "The following ", 300, given.temperature, jax.random.key(given.seed)))
    return bits, min(others)


if __name__ == "__main__":
    main()
