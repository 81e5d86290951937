"""One language model with six memories: LSTM, sLSTM, mLSTM, gated delta rule, Mamba-2, attention.

    python examples/memories.py [--steps 600] [--memories lstm attention] [--out memories.png]

The same blocks around each memory, of widths that give all models about as many parameters. Each
reads as many bytes of Python's own library, in windows that begin without a memory; whole files
are held out. Started again with as many steps, it goes on with the next memory.
"""

import argparse
import functools
import json
import lzma
import timeit
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.progress import track

import jaxrnn

WIDTH, LAYERS, BATCH, LENGTH = 64, 2, 4, 512
SIZES = dict(lstm=44, slstm=56, mlstm=64, gated_delta_net=76, mamba2=84, attention=64)
STREAMS, PLACES = (512, 2048, 8192), 2 ** np.arange(9)  # room of attention; where bits are split
FILES = sorted(Path(tokenize.__file__).parent.glob("*.py"))


def model(name, context=LENGTH):
    """Blocks of a memory behind a short convolution, with a norm and a gate, and of an MLP."""
    room = dict(context=context) if name == "attention" else {}
    size, memory = SIZES[name], getattr(jaxrnn, name)(SIZES[name], **room)
    short = jaxrnn.conv1d(WIDTH, kernel=4, depthwise=True, activation="silu")
    read = jaxrnn.stack(short, memory, jaxrnn.rms_norm(groups=4))
    gated = jaxrnn.parallel(read, jaxrnn.project(size, activation="silu"), merge="product")
    parts = gated, jaxrnn.project(2 * WIDTH, activation="gelu")
    block = [jaxrnn.stack(jaxrnn.rms_norm(), part, jaxrnn.project(WIDTH)) for part in parts]
    first, last = jaxrnn.embedding(256, WIDTH), jaxrnn.project(256)
    return jaxrnn.stack(first, *map(jaxrnn.residual, block * LAYERS), jaxrnn.rms_norm(), last)


def bits(cell, params, windows):
    """Bits of each byte but the first of windows [B, T + 1]: [T, B]."""
    tokens = windows.T.astype(jnp.int32)
    logits = jaxrnn.unroll(cell, params, tokens[:-1])[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]) / jnp.log(2)


def decode(cell, params):
    """The state's bytes, and microseconds a token, by ``step``."""
    state, tokens = cell.initial_state(params, ()), jnp.arange(64)
    scan = jax.jit(lambda p, s, xs: jax.lax.scan(functools.partial(cell.step, p), s, xs))
    run = lambda: jax.block_until_ready(scan(params, state, tokens))
    _, *seconds = timeit.repeat(run, number=1, repeat=8)  # the first compiles
    return sum(a.nbytes for a in jax.tree.leaves(state)), np.median(seconds) / len(tokens) * 1e6


def measure(name, steps, windows, apart):
    """Trains a model; what is found of it."""
    cell, rng, seconds = model(name), np.random.default_rng(0), []
    rate = optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10 + 1, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, some):
        gradient = jax.grad(lambda params: bits(cell, params, some).mean())(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = cell.init(jax.random.key(0), None)
    state, count = rule.init(params), sum(a.size for a in jax.tree.leaves(params))
    for _ in track(range(steps), name):
        some, begin = windows[rng.integers(len(windows), size=BATCH)], timeit.default_timer()
        params, state = jax.block_until_ready(step(params, state, some))
        seconds.append(timeit.default_timer() - begin)
    found = jax.jit(functools.partial(bits, cell))(params, apart).mean(1)
    places = [float(part.mean()) for part in jnp.split(found, PLACES[1:])]
    row = dict(parameters=count, bits=float(found.mean()), places=places)
    row["speed"] = BATCH * LENGTH / np.median(seconds)
    streams = STREAMS if name == "attention" else STREAMS[:1]
    return row | {"decoding": [decode(model(name, length), params) for length in streams]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memories", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default="memories.png")
    given = parser.parse_args(argv)
    parts = [p for i, p in enumerate(FILES) if i % 20], FILES[::20]
    texts = [np.frombuffer(b"".join(map(Path.read_bytes, p)), np.uint8) for p in parts]
    windows, apart = (np.lib.stride_tricks.sliding_window_view(t, LENGTH + 1) for t in texts)
    kept = given.out.with_suffix(f".{given.steps}.json")
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in given.memories:
        if name not in rows:
            rows[name] = measure(name, given.steps, windows, apart[:: len(apart) // 128])
        kept.write_text(json.dumps(rows, indent=1))
        row, label = rows[name], f"{name}, {rows[name]['bits']:.3f} bits per byte"
        print(f"{label}: {row['parameters']:,} parameters, {row['speed']:,.0f} tokens a second")
        for steps, (size, took) in zip(STREAMS, row["decoding"]):
            print(f"    at {steps} steps: {took:,.0f} µs a token, state of {size:,} bytes")
        left.plot(PLACES, row["places"], label=label)
        right.plot(STREAMS, np.broadcast_to([took for _, took in row["decoding"]], len(STREAMS)))
    packed = 8 * len(lzma.compress(texts[1])) / len(texts[1])
    print(f"{given.steps * BATCH * LENGTH:,} tokens each; xz: {packed:.3f} bits per byte")
    left.set(xscale="log", xlabel="bytes read before", ylabel="bits per byte"), left.legend()
    right.set(yscale="log", xlabel="length of stream", ylabel="decoding, µs a token")
    figure.savefig(given.out, dpi=120), plt.close(figure)
    return rows, packed


if __name__ == "__main__":
    main()
