"""Transliterates katakana: an encoder, and a decoder that attends to what it has read.

    python examples/transliteration.py [--steps 1500] [--seed 0] [--out transliteration.png]

Learns from words made up of syllables as Unicode names letters, and is tried on real ones that
Unicode spells: U+331A is SQUARE KYURII, and holds KI, SMALL YU, RI and the mark of a long vowel.
"""

import argparse
from unicodedata import name, normalize

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.progress import track

import jaxrnn

NAMES = {a: name(a)[16:] for a in map(chr, range(0x30A1, 0x30F5))}  # less "KATAKANA LETTER "
REAL = [(normalize("NFKC", a), name(a)[7:]) for a in map(chr, range(0x3300, 0x3358))]
I_ROW, DOUBLED, LONG, WIDE, TALL, WORDS = "キシチニヒミリギジ", "ッ", "ー", 20, 26, 20_000
SYLLABLES = [(a, latin) for a, latin in NAMES.items() if "SMALL" not in latin]
SYLLABLES += [(a + b, NAMES[a][0] + "Y" + NAMES[b][-1]) for a in I_ROW for b in "ャュョェ"]
SYLLABLES += [("フ" + b, "HU" + NAMES[b][-1]) for b in "ァィェォ"]
KANA, LATIN = ["", *NAMES, LONG], "\n_ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # \n ends a word, _ begins it


def made_up(rng):
    """A word of two to five syllables, and how it is spelled."""
    word = spelling = ""
    for i in rng.integers(len(SYLLABLES), size=rng.integers(2, 6)):
        (kana, latin), (double, long) = SYLLABLES[i], rng.random(2) < 0.2
        if double and word and latin[0] in "KGSZTDHBP":
            kana, latin = DOUBLED + kana, latin[0] + latin
        if long and latin != "N":
            kana, latin = kana + LONG, latin + latin[-1]
        word, spelling = word + kana, spelling + latin
    return word, spelling


def arrays(pairs):
    """Words [WIDE, N], their lengths [N] and spellings [TALL, N], as numbers."""
    words = [[KANA.index(a) for a in w] + [0] * (WIDE - len(w)) for w, _ in pairs]
    latin = [[LATIN.index(a) for a in s.ljust(TALL, "\n")] for _, s in pairs]
    return jnp.array(words).T, jnp.array([len(w) for w, _ in pairs]), jnp.array(latin).T


encoder = jaxrnn.bidirectional(jaxrnn.gru(64))
decoder = jaxrnn.stack(jaxrnn.attentive(jaxrnn.gru(64), 2 * 64), jaxrnn.project(len(LATIN)))


def remembering(params, words, lengths):
    """The decoder's parameters, and what the encoder made of the words."""
    words, (encoded, decoded) = jax.nn.one_hot(words, len(KANA)), params
    _, memory = jaxrnn.unroll(encoder, encoded, words, lengths=lengths)
    return decoded | {"0": jaxrnn.remember(decoded["0"], memory, lengths=lengths)}


def loss(params, words, lengths, latin):
    """Teacher forcing: the decoder is fed with the right letters."""
    fed = jnp.concatenate([jnp.ones_like(latin[:1]), latin[:-1]])  # "_" begins
    xs = jax.nn.one_hot(fed, len(LATIN))
    _, logits = jaxrnn.unroll(decoder, remembering(params, words, lengths), xs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, latin).mean(where=fed != 0)


@jax.jit
def spell(params, words, lengths):
    """The likeliest letters, one after the other, and where the decoder looked [TALL, N, WIDE]."""
    params = remembering(params, words, lengths)
    own, memory = params["0"], params["0"]["memory"]
    likeliest = lambda key, logits: jax.nn.one_hot(logits.argmax(-1), len(LATIN))
    begin = jax.nn.one_hot(jnp.ones_like(lengths), len(LATIN))[None]
    made = jaxrnn.generate(decoder, params, begin, TALL, likeliest)
    fed = jnp.concatenate([begin, made.xs[:-1]])
    _, (_, states) = jaxrnn.unroll(decoder, params, fed, return_states=True)
    before = jnp.pad(states[0][0][:-1], ((1, 0), (0, 0), (0, 0)))
    scores = jnp.tanh((before @ own["query"])[:, :, None] + memory["keys"]) @ own["v"]
    return made.xs.argmax(-1), jax.nn.softmax(scores, where=memory["real"])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, value in dict(steps=1500, seed=0, out="transliteration.png").items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    given = parser.parse_args(argv)
    rng, keys = np.random.default_rng(given.seed), jax.random.split(jax.random.key(given.seed))
    words = arrays([pair for _ in range(WORDS) if (pair := made_up(rng)) not in REAL])
    params = encoder.init(keys[0], len(KANA)), decoder.init(keys[1], len(LATIN))
    rule = optax.adam(optax.cosine_decay_schedule(3e-3, given.steps))

    @jax.jit
    def train(params, moments, rows):
        gradient = jax.grad(loss)(params, *(a[..., rows] for a in words))
        updates, moments = rule.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    moments = rule.init(params)
    for _ in track(range(given.steps), "training"):
        params, moments = train(params, moments, rng.integers(words[1].size, size=128))
    letters, looked = spell(params, *arrays(REAL)[:2])
    texts = ["".join(LATIN[a] for a in row).split("\n")[0] for row in letters.T]
    alone = ["".join(NAMES.get(a, "")[-2:].strip() for a in word) for word, _ in REAL]
    right, by_letter = (np.mean([a == b for a, (_, b) in zip(t, REAL)]) for t in (texts, alone))
    print(f"of {len(REAL)} real words {right:.1%} are right; letter by letter {by_letter:.1%}")
    (word, _), text = REAL[52], texts[52]  # BUSSYERU
    plt.imshow(looked[: len(text), 52, : len(word)], "Blues", vmin=0, vmax=1, aspect="auto")
    plt.xticks(range(len(word)), [NAMES.get(a, "LONG") for a in word]), plt.xlabel("looked at")
    plt.yticks(range(len(text)), text), plt.ylabel("spelled"), plt.colorbar(label="weight")
    plt.savefig(given.out, dpi=120), plt.close()
    return right, by_letter


if __name__ == "__main__":
    main()
