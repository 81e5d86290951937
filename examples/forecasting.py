"""Forecasts Seattle's weather: four quantities, for each of the seven days to come.

    python examples/forecasting.py [--steps 300] [--seeds 0 1 2] [--out forecasting.png]

NOAA's days of 2012 to 2015; the last year is held out (settings were chosen on the year before).
Each of its days is an origin, and the forecast from there knows what was known by then. The
baseline is seasonal and naive: a day is as it was a year before. Errors: standard deviations.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.progress import track
from vega_datasets import data

import jaxrnn

NAMES = ["temp_max", "temp_min", "wind", "precipitation"]
AHEAD, WINDOW, WARM, BATCH, NOISE = 7, 60, 7, 32, 0.2
gru = jaxrnn.dense(jaxrnn.stack(jaxrnn.gru(16), jaxrnn.dropout(0.5)))  # and today as it is
network = jaxrnn.stack(jaxrnn.dropout(0.1), gru, jaxrnn.project(AHEAD * len(NAMES)))


def weather():
    """Dates [N], values [N, 4], and how many of them are known: those before 2015."""
    table = data.seattle_weather()
    values, dates = table[NAMES].to_numpy(np.float32, copy=True), table["date"].to_numpy()
    values[:, -1] = np.log1p(values[:, -1])  # most days have no rain, and some have much
    return dates, values, int((dates < np.datetime64("2015")).sum())


def seasons(dates, values, known):
    """The mean of the season [N, 4] by the known days, and the waves of a year it is made of."""
    angle = 2 * np.pi * (dates - dates[0]) / np.timedelta64(1, "D") / 365.25
    waves = [f(k * angle) for k in (1, 2) for f in (np.sin, np.cos)]
    waves = np.stack([np.ones(len(dates)), *waves], -1).astype(np.float32)
    return waves @ np.linalg.lstsq(waves[:known], values[:known], rcond=None)[0], waves[:, 1:3]


def forecast(params, xs, key=None):
    """The AHEAD days after each: [T, B, AHEAD, 4], of xs [T, B, 6]."""
    ys = jaxrnn.unroll(network, params, xs, key=key)[1]
    return ys.reshape(*ys.shape[:2], AHEAD, len(NAMES))


def fit(xs, after, steps, seed):
    """Trained parameters, from days xs [N, 6] and those after each of them [N, AHEAD, 4]."""
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    key, rng = jax.random.key(seed), np.random.default_rng(seed)

    @jax.jit
    def train(params, moments, days, key):
        noise, drop = jax.random.split(key)
        noisy = xs[days] + NOISE * jax.random.normal(noise, (*days.shape, xs.shape[-1]))
        loss = lambda p: jnp.abs(forecast(p, noisy, drop) - after[days])[WARM:].mean()
        updates, moments = rule.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    params = network.init(key, xs.shape[-1])
    moments = rule.init(params)
    for i in track(range(steps), f"seed {seed}"):
        days = rng.integers(0, len(xs) - WINDOW, BATCH) + np.arange(WINDOW)[:, None]
        params, moments = train(params, moments, days, jax.random.fold_in(key, i))
    return params


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="forecasting.png")
    options = parser.parse_args(argv)

    dates, values, known = weather()
    season, waves = seasons(dates, values, known)
    scale = values[:known].std(0)
    differences = (values - season) / scale  # what the network sees and forecasts
    xs = jnp.concatenate([differences, waves], -1)
    after = np.arange(len(dates) - AHEAD)[:, None] + np.arange(1, AHEAD + 1)
    wanted = jnp.asarray(differences[after[: known - AHEAD]])
    days = after[known - 1 :]  # of 2015, by the origin: [359, AHEAD]
    found = {
        "a year before": values[days - 365],
        "as today": np.broadcast_to(values[days[:, :1] - 1], (*days.shape, len(NAMES))),
        "the season's mean": season[days],
    }
    error = lambda found: np.abs((found - values[days]) / scale)
    baselines, scores = {name: error(f).mean() for name, f in found.items()}, []
    for seed in options.seeds:
        params = fit(xs[: known - AHEAD], wanted, options.steps, seed)
        ahead = np.asarray(forecast(params, xs[:, None])[known - 1 : -AHEAD, 0])
        found["GRU"] = ahead * scale + season[days]
        scores.append(error(found["GRU"]).mean())
        others = ", ".join(f"{name} {e:.3f}" for name, e in baselines.items())
        print(f"seed {seed}: mean error in 2015 {scores[-1]:.3f}; {others}")

    plt.rcParams["date.converter"] = "concise"
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 7), layout="constrained")
    shown = slice(120, 240)
    for of, style, label in ((values, "0.6", "truth"), (season, "C2:", "the season's mean")):
        top.plot(dates[days[shown, 0]], of[days[shown, 0], 0], style, label=label)
    for i in range(shown.start, shown.stop, AHEAD):
        label = None if i > shown.start else "GRU, from every seventh day"
        top.plot(dates[days[i]], found["GRU"][i, :, 0], "C3.-", label=label)
    top.set_ylabel("highest temperature, °C"), top.legend(frameon=False, ncols=3)
    for name, f in found.items():
        bottom.plot(range(1, AHEAD + 1), (error(f)[..., 0] * scale[0]).mean(0), "o-", label=name)
    bottom.set(xlabel="days ahead", ylabel="mean error of it in 2015, °C", ylim=(0, None))
    bottom.legend(frameon=False), figure.savefig(options.out, dpi=120), plt.close()
    return scores, baselines["a year before"]


if __name__ == "__main__":
    main()
