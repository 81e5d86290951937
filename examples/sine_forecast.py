"""Forecasts a sine: a GRU learns the next value, then goes on alone from what it has seen.

python examples/sine_forecast.py [--steps 500] [--out sine_forecast.png]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

import jaxrnn

SEEN, AHEAD, PERIOD = 100, 100, 25.0


def waves(key, batch):
    """Sines of any phase and of some spread of periods: [SEEN + AHEAD, batch, 1]."""
    phase, stretch = jax.random.split(key)
    phase = jax.random.uniform(phase, (batch,), maxval=2 * jnp.pi)
    period = PERIOD * jax.random.uniform(stretch, (batch,), minval=0.8, maxval=1.25)
    time = jnp.arange(SEEN + AHEAD, dtype=jnp.float32)
    return jnp.sin(2 * jnp.pi * time[:, None] / period[None] + phase[None])[..., None]


cell = jaxrnn.stack(jaxrnn.gru(hidden=32), jaxrnn.project(1))


def optimizer(steps):
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def loss(params, xs, key):
    """Mean squared error of the next value, after a few steps to find the phase."""
    # Noise teaches it to come back to the wave: alone it sees its own mistakes, and would drift.
    noise = 0.2 * jax.random.normal(key, xs[:-1].shape)
    _, ys = jaxrnn.unroll(cell, params, xs[:-1] + noise)
    return ((ys - xs[1:]) ** 2)[10:].mean()


@functools.partial(jax.jit, static_argnums=0)
def train(rule, params, moments, key):
    wave, noise = jax.random.split(key)
    value, gradient = jax.value_and_grad(loss)(params, waves(wave, 64), noise)
    updates, moments = rule.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, value


@jax.jit
def forecast(params, seen):
    """AHEAD more values of seen [SEEN, B, 1], each made from the one before."""
    state, ys = jaxrnn.unroll(cell, params, seen)

    def step(carry, _):
        state, x = carry
        return cell.step(params, state, x), x

    return jax.lax.scan(step, (state, ys[-1]), None, AHEAD)[1]


def draw(truth, ahead, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True, sharey=True, layout="tight")
    for i, ax in enumerate(axes):
        ax.plot(truth[:, i, 0], color="0.6", linewidth=3, label="truth")
        ax.plot(range(SEEN, SEEN + AHEAD), ahead[:, i, 0], "C3--", label="forecast")
        ax.axvline(SEEN, color="0.3", linewidth=0.8)
        ax.set_ylabel("value")
    axes[0].legend(loc="upper left", ncols=2)
    axes[0].set_title("left of the line the GRU sees the truth, right of it only its own forecast")
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", default="sine_forecast.png")
    options = parser.parse_args(argv)

    params = cell.init(jax.random.key(0), 1)
    rule = optimizer(options.steps)
    moments = rule.init(params)
    for i in track(range(options.steps), "training"):
        params, moments, value = train(rule, params, moments, jax.random.key(i + 1))
    truth = waves(jax.random.key(10**6), 256)  # phases and periods not trained on
    ahead = forecast(params, truth[:SEEN])
    error = float(jnp.sqrt(((ahead - truth[SEEN:]) ** 2).mean()))
    last = float(jnp.sqrt(((truth[SEEN - 1] - truth[SEEN:]) ** 2).mean()))
    print(f"training loss {float(value):.2e}")
    print(f"root mean square error, {AHEAD} steps ahead: {error:.3f}")
    print(f"of repeating the last value: {last:.3f}")
    draw(truth, ahead, options.out)
    print(f"wrote {options.out}")
    return error, last


if __name__ == "__main__":
    main()
