"""Training that may be killed at any moment: a language model of characters, and Orbax.

    python examples/resume.py [--steps 600] [--directory resume] [--every 50]

Started again it goes on from its latest whole checkpoint, and ends with the same bits as a run
that was left alone. Text is read in stretches, and the LSTM's state goes on from one to the next
(truncated back-propagation). Reports the loss on text it has not seen, in bits per byte.
"""

import argparse
import functools
import hashlib
import math
import pathlib
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.progress import Progress

import jaxrnn

BYTES, BATCH, LENGTH = 256, 16, 32
TEXT = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
CUT = len(TEXT) * 9 // 10 // BATCH * BATCH
STREAMS = TEXT[:CUT].reshape(BATCH, -1).T  # [all steps, BATCH]
HELD_OUT = TEXT[CUT : len(TEXT) // BATCH * BATCH].reshape(BATCH, -1).T
RULE = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3))


class Training(NamedTuple):
    """All that the next step depends on, and so what a checkpoint holds."""

    params: Any
    optimizer: Any
    key: jax.Array
    place: int  # in the streams
    state: Any


def begin(cell):
    first, key = jax.random.split(jax.random.key(0))
    params = cell.init(first, BYTES)
    return Training(params, RULE.init(params), key, 0, cell.initial_state(params, (BATCH,)))


def bits_of(cell, params, state, tokens, key=None):
    """Bits per byte of tokens [T + 1, B], and the state after them."""
    xs = jax.nn.one_hot(tokens[:-1], BYTES)
    state, logits = jaxrnn.unroll(cell, params, xs, state, key=key)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return nats.mean() / math.log(2), state


@functools.partial(jax.jit, static_argnums=0)
def update(cell, params, optimizer, key, state, tokens):
    key, now = jax.random.split(key)
    loss = functools.partial(bits_of, cell, state=state, tokens=tokens, key=now)
    (bits, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    change, optimizer = RULE.update(gradient, optimizer, params)
    return bits, optax.apply_updates(params, change), optimizer, key, state


def step(cell, training):
    """The training after one more stretch of the text; each stream begins again at its end."""
    params, optimizer, key, place, state = training
    if place + LENGTH >= len(STREAMS):
        place, state = 0, cell.initial_state(params, (BATCH,))
    tokens = jnp.array(STREAMS[place : place + LENGTH + 1], jnp.int32)
    bits, params, optimizer, key, state = update(cell, params, optimizer, key, state, tokens)
    return bits, Training(params, optimizer, key, place + LENGTH, state)


def digest(training):
    """Of all its bits."""
    leaves = jax.tree.leaves(training._replace(key=jax.random.key_data(training.key)))
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in leaves)).hexdigest()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--directory", type=pathlib.Path, default="resume")
    parser.add_argument(
        "--every", type=int, default=50, help="steps from checkpoint to checkpoint"
    )
    options = parser.parse_args(argv)

    lstm = jaxrnn.lstm(options.hidden)
    cell = jaxrnn.stack(lstm, jaxrnn.dropout(0.1), jaxrnn.project(BYTES))
    training = begin(cell)
    kept = ocp.CheckpointManagerOptions(save_interval_steps=options.every, max_to_keep=2)
    with ocp.CheckpointManager(options.directory.absolute(), options=kept) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            training = checkpoints.restore(done, args=ocp.args.StandardRestore(training))
        with Progress() as progress:
            task = progress.add_task("training", total=options.steps, completed=done)
            for number in range(done + 1, options.steps + 1):
                bits, training = step(cell, training)
                # It is written while the next steps run, and gets its name when it is whole.
                checkpoints.save(number, args=ocp.args.StandardSave(training))
                progress.update(task, advance=1, description=f"{float(bits):.2f} bits per byte")
    after, _ = bits_of(cell, training.params, None, jnp.array(HELD_OUT, jnp.int32))
    share = np.bincount(STREAMS.ravel(), minlength=BYTES) + 1
    alone = -np.log2(share / share.sum())[HELD_OUT].mean()
    print(f"held out: {after:.2f} bits per byte; {alone:.2f} of each byte by its frequency")
    print(f"went on from step {done}; all bits of the training: {digest(training)}")
    return float(after), float(alone), digest(training)


if __name__ == "__main__":
    main()
