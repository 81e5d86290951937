"""Reads lines of handwritten digits without being told where a digit is, by CTC.

    python examples/ctc_labelling.py [--steps 2000] [--seed 0] [--out ctc_labelling.png]

Columns of pixels are the steps of a bidirectional GRU, which learns from lines and what they say
alone (Graves et al. 2006) and reads digits that it has not seen, by other writers. Beside it a
classifier of pieces of one width, told how many there are in a line.
"""

import argparse

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import jaxrnn

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES, CUT = IMAGES.reshape(-1, 8, 8) / 16, len(IMAGES) * 2 // 3
MOST, WIDE, PIECE = 6, 60, 6


def line(rng, first, last):
    """Two to MOST digits side by side: columns [T, 8], and the digits."""
    chosen, columns = rng.integers(first, last, rng.integers(2, MOST + 1)), []
    for i in chosen:
        ink = IMAGES[i].T[IMAGES[i].max(0) > 0.2]  # the columns that are written on
        columns += [ink, np.zeros((rng.integers(3), 8))]
    return np.concatenate(columns), DIGITS[chosen]


def batch(lines):
    """Columns [WIDE, B, 8], which of them are real [WIDE, B], and digits + 1 [B, MOST] or 0."""
    xs, mask = np.zeros((WIDE, len(lines), 8), np.float32), np.zeros((WIDE, len(lines)), bool)
    labels = np.zeros((len(lines), MOST), int)
    for i, (columns, digits) in enumerate(lines):
        xs[: len(columns), i], mask[: len(columns), i] = columns, True
        labels[i, : len(digits)] = digits + 1
    return xs, mask, labels


both = jaxrnn.bidirectional(jaxrnn.gru(64))
cell = jaxrnn.stack(both, jaxrnn.dropout(0.3), both, jaxrnn.dropout(0.3), jaxrnn.project(11))


def loss(params, key, xs, mask, labels):
    scores = jaxrnn.unroll(cell, params, xs, mask=mask, key=key)[1].swapaxes(0, 1)
    return optax.ctc_loss(scores, 1.0 - mask.T, labels, 1.0 * (labels == 0)).mean()


def read(best):
    """The likeliest label of each step, without repetitions and blanks: digits."""
    return [b - 1 for a, b in zip([0, *best], best) if b not in (a, 0)]


def edits(came, wanted):
    """How many digits to put in, take out or change."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(came):
        before, row = row, [i + 1]
        for j, b in enumerate(wanted):
            row.append(min(before[j] + (a != b), before[j + 1] + 1, row[j] + 1))
    return row[-1]


def pieces(columns, digits):
    """As many as there are digits, of one width, scaled to PIECE columns: [N, PIECE * 8]."""
    at = (np.arange(len(digits) * PIECE) + 0.5) * len(columns) / (len(digits) * PIECE)
    return columns[at.astype(int)].reshape(len(digits), -1)


def draw(columns, shares, path):
    _, axes = plt.subplots(2, 1, figsize=(9, 4), sharex=True, layout="constrained")
    axes[0].imshow(columns.T, "Greys", aspect="auto"), axes[0].set_yticks([])
    image = axes[1].imshow(shares.T, "Blues", vmin=0, vmax=1, aspect="auto")
    axes[1].set_yticks(range(11), ["blank", *range(10)]), axes[1].set_xlabel("column")
    axes[0].set_title(f"read: {' '.join(map(str, read(shares.argmax(-1))))}")
    plt.colorbar(image, ax=axes, label="probability"), plt.savefig(path, dpi=120), plt.close()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in dict(steps=2000, seed=0, out="ctc_labelling.png").items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args(argv)
    rng, key = np.random.default_rng(given.seed), jax.random.key(given.seed)
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, given.steps))
    rule, params = optax.chain(optax.clip_by_global_norm(1.0), adam), cell.init(key, 8)

    @jax.jit
    def train(params, moments, key, *lines):
        updates, moments = rule.update(jax.grad(loss)(params, key, *lines), moments)
        return optax.apply_updates(params, updates), moments

    moments = rule.init(params)
    for i in track(range(given.steps), "training"):
        lines = batch([line(rng, 0, CUT) for _ in range(32)])
        params, moments = train(params, moments, jax.random.fold_in(key, i), *lines)
    held_out = [line(rng, CUT, len(IMAGES)) for _ in range(500)]
    xs, mask, _ = batch(held_out)
    shares = np.array(jax.nn.softmax(jaxrnn.unroll(cell, params, xs, mask=mask)[1]))
    known = [line(rng, 0, CUT) for _ in range(500)]
    known = [(pieces(*a), a[1]) for a in known]
    classifier = LogisticRegression(max_iter=1000).fit(*map(np.concatenate, zip(*known)))
    wanted = [digits for _, digits in held_out]
    texts = map(read, shares.argmax(-1).T), [classifier.predict(pieces(*a)) for a in held_out]
    error, apart = (sum(map(edits, t, wanted)) / sum(map(len, wanted)) for t in texts)
    print(f"label error rate, held out: {error:.1%}; of pieces of one width {apart:.1%}")
    draw(held_out[0][0], shares[: len(held_out[0][0]), 0], given.out)
    return error, apart


if __name__ == "__main__":
    main()
