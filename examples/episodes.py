"""Reinforcement learning with a memory: a T-maze, many at once, by advantage actor-critic.

    python examples/episodes.py [--steps 600] [--seed 0] [--out episodes.png]

A sign says which way to turn at the end of a corridor of 5 to 10 steps (Bakker 2001). Training
sees 16 steps at a time, the state goes along, and episodes end and begin anywhere in them. Beside
the GRU the same agent without a memory, and one that acts at random.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from rich.progress import track

import jaxrnn

MAZES, STEPS, PATIENCE, DISCOUNT, EVERY = 128, 16, 40, 0.97, 20
RECURRENT = jaxrnn.stack(jaxrnn.gru(32), jaxrnn.project(4))  # three actions' scores, and a value
WITHOUT = jaxrnn.stack(jaxrnn.project(32, activation="tanh"), jaxrnn.project(4))


def enter(key):
    """A maze: the corridor's length, the way to turn (1, 2), where one stands and for how long."""
    return *jax.random.randint(key, (2,), jnp.array([5, 1]), jnp.array([11, 3])), 0, 0


def see(maze):
    """Of the sign, one way or the other, and of the end: [3]."""
    length, way, place, _ = maze
    sign = (place == 0) & (way == jnp.array([1, 2]))
    return jnp.append(sign, place == length).astype(jnp.float32)


def act(maze, action, key):
    """``(maze, reward, done)``: the right way is worth 1, the wrong one -1, and walls hurt."""
    length, way, place, time = maze
    end, ahead = place == length, action == 0
    turned = jnp.where(action == way, 1.0, -1.0)
    reward = jnp.where(end == ahead, -0.1, turned * end)
    done = (end & ~ahead) | (time == PATIENCE)
    on = length, way, place + (~end & ahead), time + 1
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), enter(key), on), reward, done


def begin(cell, params, key):
    mazes = jax.vmap(enter)(jax.random.split(key, MAZES))
    return mazes, cell.initial_state(params, (MAZES,)), jnp.ones(MAZES, bool)


@functools.partial(jax.jit, static_argnums=(0, 4))
def play(cell, params, carry, key, steps):
    """Mazes, states and whether each was done, after so many steps; and what happened [T, B]."""

    def step(carry, keys):
        mazes, state, done = carry
        xs = jax.vmap(see)(mazes)
        state, ys = jaxrnn.unroll(cell, params, xs[None], state, starts=done[None])
        action = jax.random.categorical(keys[0], ys[0, :, :3])
        mazes, reward, done = jax.vmap(act)(mazes, action, keys[1:])
        return (mazes, state, done), (xs, action, reward, done)

    return jax.lax.scan(step, carry, jax.random.split(key, (steps, MAZES + 1)))


def loss(params, cell, state, before, xs, actions, rewards, dones):
    """The last step's value stands for all that comes after it."""
    starts = jaxrnn.from_dones(dones, before)
    _, ys = jaxrnn.unroll(cell, params, xs, state, starts=starts)
    values, chances = ys[..., 3], jax.nn.log_softmax(ys[..., :3])
    _, returns = jaxrnn.linear_scan(DISCOUNT * ~dones[:-1], rewards[:-1], values[-1], reverse=True)
    gain = jax.lax.stop_gradient(returns) - values[:-1]
    chosen = jnp.take_along_axis(chances, actions[..., None], -1)[:-1, :, 0]
    entropy = -(jnp.exp(chances) * chances).sum(-1).mean()
    return (0.5 * gain**2 - chosen * jax.lax.stop_gradient(gain)).mean() - 0.01 * entropy


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(cell, rule, params, moments, carry, key):
    after, happened = play(cell, params, carry, key, STEPS)
    gradient = jax.grad(loss)(params, cell, *carry[1:], *happened)
    updates, moments = rule.update(gradient, moments)
    return optax.apply_updates(params, updates), moments, after


def right(cell, params, key):
    """The share of episodes that end with the right turn, in mazes not trained on."""
    _, (_, _, rewards, dones) = play(cell, params, begin(cell, params, key), key, 400)
    return float((rewards == 1).sum() / dones.sum())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in dict(steps=600, seed=0, out="episodes.png").items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given, found = parser.parse_args(argv), {}
    key, first, other = jax.random.split(jax.random.key(given.seed), 3)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    for name, cell in {"GRU": RECURRENT, "no memory": WITHOUT}.items():
        params = cell.init(key, 3)
        moments, carry, shares = rule.init(params), begin(cell, params, first), []
        for i in track(range(given.steps), name):
            shares += [right(cell, params, other)] if i % EVERY == 0 else []
            one = params, moments, carry, jax.random.fold_in(key, i)
            params, moments, carry = train(cell, rule, *one)
        found[name] = right(cell, params, jax.random.fold_in(other, 1))
        plt.plot(range(0, given.steps, EVERY), shares, label=name)
    found["at random"] = right(WITHOUT, jax.tree.map(jnp.zeros_like, params), other)
    print("right turns:", ", ".join(f"{name} {share:.1%}" for name, share in found.items()))
    plt.xlabel("updates"), plt.ylabel("right turns"), plt.ylim(0, 1.03), plt.legend(frameon=False)
    plt.savefig(given.out, dpi=120), plt.close()
    return found


if __name__ == "__main__":
    main()
