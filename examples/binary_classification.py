"""Tells drawing a gun from pointing a finger by the path of a hand: GunPoint, of the UCR archive.

    python examples/binary_classification.py [--steps 800] [--seeds 0 1 2]

Ratanamahatana & Keogh 2005 filmed two actors; a sequence is where the right hand is, 150 frames
long. 50 are for training and 150 held out, as in the archive (Dau et al. 2019, arXiv:1810.07758).
The baseline is the archive's: the class of the nearest sequence. A step of the optimiser is made
of gradients from several small batches. The picture shows which frames speak for a gun.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.progress import Progress
from sklearn.neighbors import KNeighborsClassifier
from sktime.datasets import load_gunpoint

import jaxrnn
import jaxrnn.nnx

HIDDEN, ROWS, BATCHES, NOISE = 32, 50, 2, 0.05  # BATCHES of ROWS // BATCHES make one step


class Detector(nnx.Module):
    def __init__(self, rngs):
        self.rnn = jaxrnn.nnx.Bidirectional(jaxrnn.gru(HIDDEN), 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.output = nnx.Linear(2 * HIDDEN, 1, rngs=rngs)

    def evidence(self, xs):
        """What each frame says for a gun, [B, T], of xs [B, T, 1]."""
        return self.output(self.dropout(self.rnn(xs)))[..., 0]

    def __call__(self, xs):
        """The logit of a gun, [B]: the mean of what the frames say."""
        return self.evidence(xs).mean(-1)


def hands(split):
    """Sequences [B, T, 1]; whether there is a gun, [B]."""
    xs, classes = load_gunpoint(split=split, return_type="numpy3d")
    return xs.transpose(0, 2, 1).astype(np.float32), (classes == "1").astype(np.float32)


@nnx.jit
def train(model, optimizer, xs, guns, key):
    """One small batch: every BATCHES times, the optimiser moves the weights."""
    xs = xs + NOISE * jax.random.normal(key, xs.shape)

    def loss(model):
        return optax.sigmoid_binary_cross_entropy(model(xs), guns).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def fit(xs, guns, steps, seed):
    """A trained model."""
    model, rng = Detector(nnx.Rngs(seed)), np.random.default_rng(seed)
    rule = optax.adamw(optax.cosine_decay_schedule(1e-2, steps))
    rule = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), rule), BATCHES)
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    keys = jax.random.split(jax.random.key(seed), (steps, BATCHES))
    with Progress() as progress:
        task = progress.add_task(f"seed {seed}", total=steps)
        for i in range(steps):
            for rows, key in zip(rng.permutation(ROWS).reshape(BATCHES, -1), keys[i]):
                value = train(model, optimizer, xs[rows], guns[rows], key)
            progress.update(task, advance=1, description=f"seed {seed}: {float(value):.4f}")
    model.eval()
    return model


def draw(model, xs, guns, path):
    evidence = np.asarray(model.evidence(xs))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for ax, gun, title in zip(axes, (1, 0), ("a gun is drawn", "a finger points")):
        for row in np.flatnonzero(guns == gun)[:12]:
            color = {"c": evidence[row], "cmap": "coolwarm", "vmin": -20, "vmax": 20}
            dots = ax.scatter(np.arange(xs.shape[1]), xs[row, :, 0], s=4, **color)
        ax.set(title=title, xlabel="frame")
    axes[0].set_ylabel("place of the hand")
    figure.colorbar(dots, label="logit of a gun, by frame")
    figure.savefig(path, dpi=120), plt.close()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="binary_classification.png")
    options = parser.parse_args(argv)

    (xs, guns), (new_xs, new_guns) = hands("train"), hands("test")
    nearest = KNeighborsClassifier(1).fit(xs[..., 0], guns)
    baseline, scores = nearest.score(new_xs[..., 0], new_guns), []
    for seed in options.seeds:
        model = fit(xs, guns, options.steps, seed)
        scores.append(float(((model(jnp.asarray(new_xs)) > 0) == new_guns).mean()))
        print(
            f"seed {seed}: {scores[-1]:.1%} of {len(new_xs)} held-out sequences are right, ",
            end="",
        )
        print(f"{baseline:.1%} by the nearest neighbour")
    draw(model, new_xs, new_guns, options.out)
    return scores, baseline


if __name__ == "__main__":
    main()
