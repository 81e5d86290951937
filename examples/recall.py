"""Remembering what matters: selective copying, or induction heads.

    python examples/recall.py --task induction [--cells gru min_gru lru] [--seed 0]
    python examples/recall.py --task copying [--length 256]

copying: a few symbols, at random places in noise, are to be said in their order at the end
(Gu & Dao 2023, arXiv:2312.00752). induction: a mark stands once; when it comes again at the end,
the symbol that followed it is to be said (Olsson et al. 2022, arXiv:2209.11895). Both need a
memory that chooses by content. Prints and draws how many symbols are right.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from rich.progress import Progress

import jaxrnn

SYMBOLS, COPIED, BATCH, CHUNK = 16, 8, 64, 25
NOISE = MARK = SYMBOLS


def copying(key, length):
    """Tokens [T, B], and what is to be said at the last COPIED of them, [COPIED, B]."""
    symbols, places = jax.random.split(key)
    symbols = jax.random.randint(symbols, (COPIED, BATCH), 0, SYMBOLS)
    order = jax.random.uniform(places, (length - COPIED, BATCH)).argsort(0)
    at = jnp.sort(order[:COPIED], 0)
    tokens = jnp.full((length, BATCH), NOISE).at[at, jnp.arange(BATCH)].set(symbols)
    return tokens.at[-COPIED:].set(NOISE + 1), symbols


def induction(key, length):
    """Tokens [T, B], and what is to be said at the last of them, [1, B]."""
    symbols, places = jax.random.split(key)
    tokens = jax.random.randint(symbols, (length, BATCH), 0, SYMBOLS)
    at, rows = jax.random.randint(places, (BATCH,), 0, length - 2), jnp.arange(BATCH)
    return tokens.at[at, rows].set(MARK).at[-1].set(MARK), tokens[at + 1, rows][None]


TASKS = {"copying": copying, "induction": induction}


def network(name, width, layers):
    """Blocks of a short convolution, the cell and a small network, each added to its input."""
    cell = getattr(jaxrnn, name)(width)
    mix = jaxrnn.residual(jaxrnn.stack(jaxrnn.layer_norm(), jaxrnn.conv1d(width, kernel=4), cell))
    wide = jaxrnn.project(2 * width, activation="gelu")
    think = jaxrnn.residual(jaxrnn.stack(jaxrnn.layer_norm(), wide, jaxrnn.project(width)))
    first, last = jaxrnn.project(width), jaxrnn.project(SYMBOLS)
    return jaxrnn.stack(first, *[mix, think] * layers, jaxrnn.layer_norm(), last)


def train(model, given, progress):
    """How many symbols were right, after every CHUNK steps."""
    steps, warm = given.steps, given.steps // 10 + 1
    schedule = optax.warmup_cosine_decay_schedule(0.0, given.rate, warm, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    key = jax.random.key(given.seed)
    params = model.init(jax.random.fold_in(key, 0), SYMBOLS + 2)

    def loss(params, key):
        tokens, wanted = TASKS[given.task](key, given.length)
        xs = jax.nn.one_hot(tokens, SYMBOLS + 2)
        logits = jaxrnn.unroll(model, params, xs)[1][-len(wanted) :]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        return errors.mean(), (logits.argmax(-1) == wanted).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def some(params, state, key):
        def one(carry, key):
            params, state = carry
            gradient = jax.grad(loss, has_aux=True)(params, key)[0]
            updates, state = rule.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(one, (params, state), jax.random.split(key, CHUNK))
        return params, state, loss(params, jax.random.fold_in(key, CHUNK))[1]

    state, shares = rule.init(params), []
    for i in range(-(-steps // CHUNK)):
        params, state, right = some(params, state, jax.random.fold_in(key, i + 1))
        shares.append(float(right))
        progress(CHUNK, shares[-1])
    return shares


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="induction")
    parser.add_argument("--cells", nargs="+", default=["gru", "min_gru", "lru"])
    for name, value in dict(length=256, width=64, layers=2, steps=2000, rate=3e-3, seed=0).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--out", default="recall.png")
    given = parser.parse_args(argv)

    found = {}
    for name in given.cells:
        model = network(name, given.width, given.layers)
        with Progress() as bar:
            task = bar.add_task(name, total=given.steps)
            show = lambda n, s: bar.update(task, advance=n, description=f"{name} {s:.1%}")  # noqa
            shares = train(model, given, show)
        found[name] = sum(shares[-4:]) / len(shares[-4:])
        print(f"{name}: {found[name]:.1%} right at the end, by chance {1 / SYMBOLS:.1%}")
        plt.plot([CHUNK * (i + 1) for i in range(len(shares))], shares, label=name)
    plt.axhline(1 / SYMBOLS, color="0.6", linestyle=":", label="by chance")
    plt.xlabel("training steps"), plt.ylabel("symbols right"), plt.legend(frameon=False)
    plt.title(f"{given.task}, T = {given.length}, {given.layers} layers of {given.width}")
    plt.ylim(0, 1.03), plt.savefig(given.out, dpi=120), plt.close()
    return found


if __name__ == "__main__":
    main()
