"""What a recurrence can keep track of: parity of bits, or a place on a ring.

    python examples/state_tracking.py --task parity [--cells lstm elman lru min_gru] [--seed 0]
    python examples/state_tracking.py --task parity --cells delta_net delta_net_negative
    python examples/state_tracking.py --task cycle [--cells lstm]

parity: how many ones so far, odd or even. cycle: steps of -1, 0 and 1 on a ring of five places
(Delétang et al. 2023, arXiv:2207.02098). A network answers at every step, is trained on short
sequences and asked on long ones. Diagonal linear recurrences are known not to find parity (Merrill
et al. 2024, arXiv:2404.08819; Grazzi et al. 2025, arXiv:2411.12537); nor is DeltaNet, unless its
steps may reflect (delta_net_negative). Prints and draws how often
the last answer is right, by length.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from rich.progress import Progress

import jaxrnn

BATCH, CHUNK, HELD_OUT = 128, 25, 512
REFLECTING = {"delta_net_negative": functools.partial(jaxrnn.delta_net, negative=True)}
# For each task: how many symbols, what each adds, how many places, lengths to train and to ask.
TASKS = {
    "parity": ((0, 1), 2, 40, (10, 20, 40, 60, 80, 100)),
    "cycle": ((-1, 0, 1), 5, 40, (20, 40, 80, 160, 320, 500)),
}


def sequences(key, task, length, rows):
    """xs [T, B, symbols], one-hot; where one is after each step, int [T, B]."""
    moves, places, *_ = TASKS[task]
    symbols = jax.random.randint(key, (length, rows), 0, len(moves))
    where = jnp.cumsum(jnp.array(moves)[symbols], 0) % places
    return jax.nn.one_hot(symbols, len(moves)), where


def train(model, task, steps, rate, seed, progress):
    moves, _, longest, _ = TASKS[task]
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20 + 1, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, 0), len(moves))

    def loss(params, key):
        rows, lengths = jax.random.split(key)
        xs, where = sequences(rows, task, longest, BATCH)
        lengths = jax.random.randint(lengths, (BATCH,), 1, longest + 1)
        logits = jaxrnn.unroll(model, params, xs, lengths=lengths)[1]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, where)
        real = jnp.arange(longest)[:, None] < lengths
        return (errors * real).sum() / real.sum()

    @jax.jit
    def some(params, state, key):
        def one(carry, key):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, key)
            updates, state = rule.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(one, (params, state), jax.random.split(key, CHUNK))

    state = rule.init(params)
    for i in range(-(-steps // CHUNK)):
        (params, state), values = some(params, state, jax.random.fold_in(key, i + 1))
        progress(CHUNK, float(values[-1]))
    return params


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def right(model, params, task, length):
    """How often the last answer is right."""
    xs, where = sequences(jax.random.key(length), task, length, HELD_OUT)
    answers = jaxrnn.unroll(model, params, xs)[1][-1].argmax(-1)
    return (answers == where[-1]).mean()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), default="parity")
    parser.add_argument("--cells", nargs="+", default=["lstm", "elman", "lru", "min_gru"])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("state_tracking.png"))
    options = parser.parse_args(argv)

    _, places, longest, lengths = TASKS[options.task]
    found = {}
    for name in options.cells:
        cell = (REFLECTING.get(name) or getattr(jaxrnn, name))(options.hidden)
        model = jaxrnn.stack(jaxrnn.project(options.hidden), cell, jaxrnn.project(places))
        with Progress() as bar:
            task = bar.add_task(name, total=options.steps)
            show = lambda n, e: bar.update(task, advance=n, description=f"{name} {e:.4f}")  # noqa
            params = train(model, options.task, options.steps, options.rate, options.seed, show)
        found[name] = {t: float(right(model, params, options.task, t)) for t in lengths}
        each = ", ".join(f"{share:.1%} at T={t}" for t, share in found[name].items())
        print(f"{name}: right {each}; by chance {1 / places:.0%}")
        plt.plot(lengths, list(found[name].values()), "o-", label=name)
    plt.axvline(longest, color="0.6", linestyle="--", label="trained up to here")
    plt.axhline(1 / places, color="0.6", linestyle=":", label="by chance")
    plt.xlabel("length T"), plt.ylabel("last answer right"), plt.legend(frameon=False)
    plt.title(f"{options.task}, H = {options.hidden}"), plt.ylim(0, 1.03)
    plt.savefig(options.out, dpi=120), plt.close()
    return found


if __name__ == "__main__":
    main()
