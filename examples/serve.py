"""Serves what examples/export_model.py wrote, with JAX and NumPy alone: jaxrnn is not imported.

    python examples/serve.py served [--prompts "The following " "If a class "] [--bytes 60]

Reads all prompts at once, whatever their lengths, then goes on byte by byte, all rows together.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


def load(directory):
    """The two programs, and the weights that both take."""
    read = lambda name: export.deserialize(bytearray((directory / name).read_bytes()))
    unroll, step = jax.jit(read("unroll.bin").call), jax.jit(read("step.bin").call)
    return unroll, step, jax.device_put(dict(np.load(directory / "weights.npz")))


def rows(texts):
    """Texts as tokens [T, B], padded at the end, and their lengths [B]."""
    lengths = np.array([len(text) for text in texts], np.int32)
    padded = [text.ljust(lengths.max(), b"\0") for text in texts]
    return np.array([list(text) for text in padded], np.int32).T, lengths


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--prompts", nargs="+", default=["The following ", "If a class "])
    parser.add_argument("--bytes", type=int, default=60, help="to go on for")
    options = parser.parse_args(argv)
    unroll, step, weights = load(options.directory)

    texts = [prompt.encode() for prompt in options.prompts]
    tokens, lengths = rows(texts)
    state, logits = unroll(weights, tokens, lengths)
    logits = logits[lengths - 1, np.arange(len(texts))]  # of each row's last byte
    for _ in range(options.bytes):
        token = np.asarray(logits.argmax(-1), np.int32)
        texts = [text + bytes([t]) for text, t in zip(texts, token)]
        state, logits = step(weights, state, token)
    for text in texts:
        print(repr(text.decode(errors="replace")))

    tokens, lengths = rows(texts)  # the same at once
    again = unroll(weights, tokens, lengths)[1][lengths - 1, np.arange(len(texts))]
    difference = float(abs(logits - again).max() / abs(again).max())
    print(f"step by step and at once differ by {difference:.1e} of the largest logit")
    print(f"jaxrnn is {'' if 'jaxrnn' in sys.modules else 'not '}imported")
    return difference


if __name__ == "__main__":
    main()
