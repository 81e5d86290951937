"""Tells nine speakers of Japanese by how they say two vowels: sequences of unequal length.

    python examples/speaker_recognition.py [--steps 400] [--seeds 0 1 2] [--dtype bfloat16]

Kudo et al. 1999 recorded 640 utterances of 7 to 29 frames of 12 cepstrum coefficients, of which
they hold out 370. The baseline is logistic regression on each utterance's mean. The picture
shows how much of an utterance has to be heard. In bfloat16 are the network's inputs, outputs and
products; its states, the weights that are trained and the loss stay in float32.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sktime.datasets import load_japanese_vowels

import jaxrnn

LONGEST, SPEAKERS, BATCH, HIDDEN = 29, 9, 64, 64
network = jaxrnn.stack(
    jaxrnn.dropout(0.2), jaxrnn.bidirectional(jaxrnn.gru(HIDDEN)), jaxrnn.dropout(0.5)
)


def utterances(split):
    """Frames [T, B, 12], zero at padding; lengths [B]; speakers [B]."""
    series, speakers = load_japanese_vowels(split=split, return_type="df-list")
    frames = np.zeros((LONGEST, len(series), 12), np.float32)
    for i, one in enumerate(series):
        frames[: len(one), i] = one
    return frames, np.array([len(one) for one in series]), speakers.astype(int) - 1


def mean(xs, lengths):
    """The mean of the real steps: outputs at padding are zero."""
    return xs.astype(jnp.float32).sum(0) / lengths[:, None]


def logits(params, xs, lengths, key=None):
    """[B, SPEAKERS], of xs [T, B, 12] in the type that the network is to work in."""
    weights = jax.tree.map(lambda p: p.astype(xs.dtype), params["network"])
    _, ys = jaxrnn.unroll(network, weights, xs, lengths=lengths, key=key)
    return mean(ys, lengths) @ params["w"] + params["b"]


@jax.jit
def right(params, xs, lengths, speakers):
    """The share of utterances whose speaker is found."""
    return (logits(params, xs, lengths).argmax(-1) == speakers).mean()


def fit(xs, lengths, speakers, steps, seed):
    """Trained parameters."""
    schedule = optax.cosine_decay_schedule(5e-3, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    params = {
        "network": network.init(key, xs.shape[-1]),
        "w": jnp.zeros((2 * HIDDEN, SPEAKERS)),
        "b": jnp.zeros(SPEAKERS),
    }

    @jax.jit
    def train(params, moments, rows, key):
        def loss(params):
            found = logits(params, xs[:, rows], lengths[rows], key)
            return optax.softmax_cross_entropy_with_integer_labels(found, speakers[rows]).mean()

        updates, moments = rule.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    moments = rule.init(params)
    for i in track(range(steps), f"seed {seed}"):
        rows = rng.permutation(len(speakers))[:BATCH]
        params, moments = train(params, moments, rows, jax.random.fold_in(key, i))
    return params


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", default="speaker_recognition.png")
    options = parser.parse_args(argv)

    (frames, *known), (new_frames, lengths, speakers) = utterances("train"), utterances("test")
    real = frames[np.arange(LONGEST)[:, None] < known[0]]
    scaled = lambda xs: jnp.asarray((xs - real.mean(0)) / real.std(0), options.dtype)
    simple = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    simple.fit(mean(frames, known[0]), known[1])
    baseline, scores = simple.score(mean(new_frames, lengths), speakers), []
    known, xs = (scaled(frames), *map(jnp.asarray, known)), scaled(new_frames)
    for seed in options.seeds:
        params = fit(*known, options.steps, seed)
        scores.append(float(right(params, xs, lengths, speakers)))
        print(f"seed {seed}: {scores[-1]:.1%} of {len(speakers)} held-out utterances are right,")
        print(f"    {baseline:.1%} by logistic regression on the mean of each")

    heard = range(1, LONGEST + 1)
    shares = [right(params, xs, np.minimum(lengths, n), speakers) for n in heard]
    plt.plot(heard, shares, label=f"bidirectional GRU, {options.dtype}")
    cut = lambda n: mean(new_frames[:n], np.minimum(lengths, n))
    plt.plot(heard, [simple.score(cut(n), speakers) for n in heard], label="mean of the frames")
    plt.xlabel("frames heard, at most"), plt.ylabel("speakers found"), plt.legend(frameon=False)
    plt.title("Whose vowels are they?"), plt.ylim(0, 1.03)
    plt.savefig(options.out, dpi=120), plt.close()
    return scores, baseline


if __name__ == "__main__":
    main()
