"""Learning from a stream that never ends: a gradient at every step, and nothing kept of the past.

    python examples/stream.py [--steps 20000] [--seed 0]

A marked number has to be said some steps later, when it is asked for, among others that are not
marked. What is asked for was written long before, so a gradient has to know the past:
``jaxrnn.online`` carries it along. Beside it the same cell whose gradient sees its own step alone,
and a guess. Weights change at every step, and the memory is that of one step.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax

import jaxrnn

STREAMS, HIDDEN, MOST = 32, 32, 10  # a question comes 3 to so many steps after the number


def listen(key, asked_in):
    """The next step of a stream: ``(x, asked, steps until a question)``.

    x [3]: a number, -1 or 1; whether it is marked; whether the marked one is asked for.
    """
    draw, wait = jax.random.split(key)
    number = jnp.where(jax.random.bernoulli(draw), 1.0, -1.0)
    marked, asked = asked_in < 0, asked_in == 0
    after = jnp.where(marked, jax.random.randint(wait, (), 3, MOST + 1), asked_in - 1)
    x = jnp.stack([jnp.where(asked, 0, number), marked.astype(float), asked.astype(float)])
    return x, asked, after


def begin(cell, rule, key):
    params = {"cell": cell.init(key, 3), "out": jnp.zeros(HIDDEN)}
    state = cell.initial_state(params["cell"], (STREAMS,))
    return params, rule.init(params), state, jnp.full(STREAMS, -1), jnp.zeros(STREAMS)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def learn(cell, rule, carry, key, steps):
    """So many steps of all streams, weights changed at each; and the share of right answers."""

    def loss(params, state, x, asked, number):
        state, y = cell.step(params["cell"], state, x)
        answer = y @ params["out"]
        # Nothing is lost where nothing is asked.
        lost = jnp.where(asked, optax.sigmoid_binary_cross_entropy(answer, number > 0), 0)
        return lost.mean(), (state, jnp.sign(answer) == number)

    def step(i, carry):
        (params, moments, state, asked_in, number), answers = carry
        keys = jax.random.split(jax.random.fold_in(key, i), STREAMS)
        x, asked, after = jax.vmap(listen)(keys, asked_in)
        number = jnp.where(asked_in < 0, x[:, 0], number)
        gradient, (state, right) = jax.grad(loss, has_aux=True)(params, state, x, asked, number)
        updates, moments = rule.update(gradient, moments)
        params = optax.apply_updates(params, updates)
        answers = answers + jnp.array([(asked & right).sum(), asked.sum()])
        return (params, moments, state, after, number), answers

    carry, (right, asked) = jax.lax.fori_loop(0, steps, step, (carry, jnp.zeros(2, int)))
    return carry, right / asked


def forgetful(cell):
    """The same cell, whose gradient does not go back: back-propagation cut after each step."""

    def step(params, state, x):
        return cell.step(params, jax.lax.stop_gradient(state), x)

    return jaxrnn.cell(cell.init, cell.initial_state, step)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    key = jax.random.key(options.seed)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    cell = jaxrnn.min_gru(HIDDEN, positive=False)
    found = {}
    for name, one in {"online": jaxrnn.online(cell), "its step alone": forgetful(cell)}.items():
        carry = begin(one, rule, key)
        plans = [learn.lower(one, rule, carry, key, n).compile() for n in (10, options.steps)]
        least, most = (plan.memory_analysis().temp_size_in_bytes for plan in plans)
        carry, _ = learn(one, rule, carry, key, options.steps)
        _, found[name] = learn(one, rule, carry, jax.random.fold_in(key, 1), 1000)
        print(f"{name}: {found[name]:.1%} right", end="; ")
        print(f"memory {least / 1024:.0f} KiB for 10 steps, {most / 1024:.0f} for {options.steps}")
        assert most < 1.1 * least
    print("a guess: 50.0% right")
    return {name: float(share) for name, share in found.items()}


if __name__ == "__main__":
    main()
