"""The adding problem: the sum of two marked numbers in a long sequence of them.

    python examples/adding_problem.py [--cells gru lstm elman] [--length 100] [--seed 0]

Hochreiter & Schmidhuber 1997 made it up to show what a network remembers. Two numbers of T, one in
each half, are marked; the answer is their sum. Always to say 1 has a mean squared error of 0.167.
Prints after how many steps each cell stays below 0.002, and draws its way there.
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

BATCH, CHUNK = 128, 25  # rows of a batch; steps trained in one call
SOLVED, BASELINE = 2e-3, 1 / 6


def batch(key, length):
    """xs [T, B, 2]: numbers from 0 to 1, and marks; and the sums [B]."""
    numbers, first, second = jax.random.split(key, 3)
    half = length // 2
    marked = [
        jax.random.randint(first, (BATCH,), 0, half),
        jax.random.randint(second, (BATCH,), half, length),
    ]
    marks = sum(jax.nn.one_hot(at, length, axis=0) for at in marked)
    numbers = jax.random.uniform(numbers, (length, BATCH))
    return jnp.stack([numbers, marks], -1), (numbers * marks).sum(0)


def squared_error(model, params, xs, sums):
    ys = jaxrnn.unroll(model, params, xs)[1]
    return jnp.mean((ys[-1, :, 0] - sums) ** 2)


def train(model, length, steps, rate, seed, progress):
    """The held-out errors after every CHUNK steps."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, 0), 2)
    loss = functools.partial(squared_error, model)

    @jax.jit
    def some(params, state, key):
        def one(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, *batch(key, length))
            updates, state = rule.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(one, (params, state), jax.random.split(key, CHUNK))
        held_out = [loss(params, *batch(jax.random.key(n), length)) for n in range(4)]
        return params, state, sum(held_out) / len(held_out)

    state, errors = rule.init(params), []
    for i in range(-(-steps // CHUNK)):
        params, state, error = some(params, state, jax.random.fold_in(key, i + 1))
        errors.append(float(error))
        progress(CHUNK, errors[-1])
    return errors


def solved(errors):
    """After how many steps the error stays below SOLVED; None if it does not."""
    above = [i for i, error in enumerate(errors) if error >= SOLVED]
    last = above[-1] if above else -1
    return None if last == len(errors) - 1 else CHUNK * (last + 2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", default=["gru", "lstm", "elman"])
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2250)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("adding_problem.png"))
    options = parser.parse_args(argv)

    found = {}
    for name in options.cells:
        model = jaxrnn.stack(getattr(jaxrnn, name)(options.hidden), jaxrnn.project(1))
        with Progress() as bar:
            task = bar.add_task(name, total=options.steps)
            show = lambda n, e: bar.update(task, advance=n, description=f"{name} {e:.4f}")  # noqa
            found[name] = train(
                model, options.length, options.steps, options.rate, options.seed, show
            )
        steps = solved(found[name])
        when = f"solved within {steps} steps" if steps else "not solved"
        print(f"{name}: {when}; error at the end {found[name][-1]:.5f}, baseline {BASELINE:.3f}")
    for name, errors in found.items():
        plt.semilogy([CHUNK * (i + 1) for i in range(len(errors))], errors, label=name)
    plt.axhline(BASELINE, color="0.6", linestyle=":", label="always to say 1")
    plt.axhline(SOLVED, color="0.6", linestyle="--", label="solved")
    plt.xlabel("training steps"), plt.ylabel("held-out squared error"), plt.legend(frameon=False)
    plt.title(f"Adding problem, T = {options.length}, H = {options.hidden}")
    plt.savefig(options.out, dpi=120), plt.close()
    return {name: (solved(errors), errors[-1]) for name, errors in found.items()}


if __name__ == "__main__":
    main()
