"""Classifies text: where a line of Python breaks off, is it in code, a string or a comment?

    python examples/text_classification.py [--steps 800] [--seeds 0 1 2] [--out text.png]

The lines are of Python's own library, and its tokenizer is the teacher. Held out are whole files,
and of these the lines that no other has. Order counts: a quote opens a string or closes it. The
baseline, logistic regression on counts of characters and of pairs of them, does not see it.
"""

import argparse
import tokenize
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.progress import track
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import jaxrnn
import jaxrnn.nnx

KINDS, LONGEST, BATCH, HIDDEN = ("code", "string", "comment"), 79, 64, 64
FILES = sorted(Path(tokenize.__file__).parent.glob("*.py"))


def lines_of(files):
    """{line: the kind of each character}, without f-strings and strings of many lines."""
    found = {}
    for path in files:
        lines = path.read_text("utf-8").split("\n")
        kinds = [np.zeros(len(line), int) for line in lines]
        for token in tokenize.generate_tokens(map("{}\n".format, lines).__next__):
            name, (row, first), (last, end) = tokenize.tok_name[token.type], token.start, token.end
            if row != last or "FSTRING" in name or token.string.lstrip("rR")[:2] in ("f'", 'f"'):
                kinds[row - 1 : last] = [np.zeros(0, int)] * (last - row + 1)
            elif name in ("STRING", "COMMENT"):
                kinds[row - 1][first:end] = KINDS.index(name.lower())
        found |= {s: k for s, k in zip(lines, kinds) if s.strip() and 0 < k.size <= LONGEST}
    return found


def broken(lines, rng):
    """Lines broken off at random, and the kinds of their last characters: as many of each."""
    texts = [[] for _ in KINDS]
    for line, kinds in lines.items():
        for kind in set(kinds):
            texts[kind].append(line[: rng.choice(np.flatnonzero(kinds == kind)) + 1])
    fewest = min(map(len, texts))
    texts = np.concatenate([rng.permutation(some)[:fewest] for some in texts])
    return texts, np.repeat(np.arange(len(KINDS)), fewest)


def numbers(texts):
    """Characters as numbers [B, T], and lengths [B]."""
    rows = [list(text.ljust(LONGEST).encode("ascii", "replace")) for text in texts]
    return np.array(rows), np.array([len(text) for text in texts])


class Classifier(nnx.Module):
    def __init__(self, rngs):
        cell = jaxrnn.stack(jaxrnn.dropout(0.1), jaxrnn.lstm(HIDDEN))
        self.embedding = nnx.Embed(128, 16, rngs=rngs)
        self.rnn = jaxrnn.nnx.RNN(cell, 16, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, len(KINDS), rngs=rngs)

    def __call__(self, tokens, lengths):
        """Logits [B, KINDS], of the state after the last character: padding holds it."""
        state, _ = self.rnn(self.embedding(tokens), seq_lengths=lengths, return_state=True)
        return self.output(state[1][0])  # of the LSTM's (h, c)


@nnx.jit
def train(model, optimizer, tokens, lengths, kinds):
    error = optax.softmax_cross_entropy_with_integer_labels
    gradient = nnx.grad(lambda model: error(model(tokens, lengths), kinds).mean())(model)
    optimizer.update(model, gradient)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="text.png")
    options = parser.parse_args(argv)

    rng, seen, new = np.random.default_rng(0), lines_of(FILES[::4]), lines_of(FILES[1::8])
    new = {line: kinds for line, kinds in new.items() if line not in seen}
    (texts, kinds), (new_texts, new_kinds) = broken(seen, rng), broken(new, rng)
    pairs = CountVectorizer(analyzer="char", ngram_range=(1, 2), lowercase=False)
    baseline = make_pipeline(pairs, LogisticRegression(max_iter=2000)).fit(texts, kinds)
    baseline, scores, (tokens, lengths) = baseline.score(new_texts, new_kinds), [], numbers(texts)
    for seed in options.seeds:
        model, rng = Classifier(nnx.Rngs(seed)), np.random.default_rng(seed)
        rule = optax.adam(optax.cosine_decay_schedule(5e-3, options.steps))
        rule = optax.chain(optax.clip_by_global_norm(1.0), rule)
        optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
        for _ in track(range(options.steps), f"seed {seed}"):
            rows = rng.integers(0, len(texts), BATCH)
            train(model, optimizer, tokens[rows], lengths[rows], kinds[rows])
        model.eval()
        scores.append(np.mean(model(*numbers(new_texts)).argmax(-1) == new_kinds))
        print(f"seed {seed}: {scores[-1]:.2%} right, {baseline:.2%} by logistic regression")
    figure, ax = plt.subplots(figsize=(9, 4), layout="tight")
    lines = [line for line in new if len(set(new[line])) == len(KINDS)][:14]
    places = [(row, column) for row, line in enumerate(lines) for column in range(len(line))]
    read = model(*numbers([lines[row][: column + 1] for row, column in places])).argmax(-1)
    for (row, at), kind in zip(places, read):
        ax.text(at, -row, lines[row][at], color=f"C{kind}", family="monospace", fontsize=9)
    ax.set(xlim=(0, LONGEST), ylim=(-14, 1), title="code blue, strings orange, comments green")
    ax.axis("off"), figure.savefig(options.out, dpi=120), plt.close()
    return scores, baseline


if __name__ == "__main__":
    main()
