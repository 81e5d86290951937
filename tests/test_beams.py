"""Beam search: against all sequences there are, and against its definition in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

V = 4
CELL = jaxrnn.stack(jaxrnn.embedding(V, 3), jaxrnn.lstm(4), jaxrnn.project(V))


@functools.cache
def model():
    params = CELL.init(jax.random.key(0), None)
    return jax.tree.map(lambda a: 3 * a, params)  # far from uniform


@jax.jit
def _unrolled(params, tokens):
    return jax.nn.log_softmax(jaxrnn.unroll(CELL, params, tokens)[1])


def logs(prompt, tokens):
    """Log-probabilities of each continuation in ``tokens`` [steps, N], token by token."""
    before = np.broadcast_to(np.array(prompt)[:, None], (len(prompt), tokens.shape[1]))
    whole = np.concatenate([before, tokens]).astype(np.int32)
    found = np.array(_unrolled(model(), whole[:-1]))[len(prompt) - 1 :]
    return np.take_along_axis(found, tokens[..., None].astype(int), -1)[..., 0]


@pytest.mark.parametrize("penalty", [0.0, 0.8])
def test_with_beams_enough_it_is_the_best_of_all(penalty):
    """Every sequence of up to three tokens, ended by a stop or not."""
    prompt, stop, steps = [1, 3], 2, 3
    every = np.array(list(itertools.product(range(V), repeat=steps))).T
    ends = np.where((every == stop).any(0), (every == stop).argmax(0) + 1, steps)
    log = np.where(np.arange(steps)[:, None] < ends, logs(prompt, every), 0).sum(0)
    rank = log / ((5 + ends) / 6) ** penalty
    cut = [tuple(np.where(np.arange(steps) < n, s, 0)) for s, n in zip(every.T, ends)]
    best = sorted({(round(float(r), 4), s) for r, s in zip(rank, cut)}, reverse=True)
    found = jaxrnn.beam_search(
        CELL, model(), jnp.array(prompt), steps, V**steps, stop=stop, length_penalty=penalty
    )
    came = list(zip(np.array(found.scores), map(tuple, np.array(found.tokens).T)))[: len(best)]
    assert [s for _, s in came] == [s for _, s in best]
    np.testing.assert_allclose([r for r, _ in came], [r for r, _ in best], atol=1e-3)
    assert not np.isfinite(found.scores[len(best) :]).any()
    wanted = dict(zip(cut, ends))
    assert [int(n) for n in found.lengths[: len(best)]] == [wanted[s] for _, s in best]


def by_definition(prompt, steps, beams, stop):
    """Lists of tokens and their scores, kept step by step."""
    kept = [((), 0.0)]
    for _ in range(steps):
        more = []
        for tokens, score in kept:
            if stop in tokens:
                more.append((tokens, score))
                continue
            every = np.array([(*tokens, k) for k in range(V)]).T
            last = logs(prompt, every)[-1]
            more += [((*tokens, k), score + float(last[k])) for k in range(V)]
        kept = sorted(more, key=lambda one: -one[1])[:beams]
    return kept


def test_rows_by_themselves_and_in_a_batch():
    """Prompts of different lengths; the second of two rows is what it is alone."""
    prompt, lengths = np.array([[1, 3], [2, 0], [3, 0]], np.int32), np.array([3, 1], np.int32)
    found = jaxrnn.beam_search(CELL, model(), prompt, 6, 3, lengths=lengths, stop=0)
    for row, n in enumerate(lengths):
        want = by_definition(prompt[:n, row], 6, 3, 0)
        for k, (tokens, score) in enumerate(want):
            assert int(found.lengths[row, k]) == len(tokens)
            assert tuple(np.array(found.tokens[: len(tokens), row, k])) == tokens
            assert not found.tokens[len(tokens) :, row, k].any()
            assert abs(float(found.scores[row, k]) - score) < 1e-4


def test_one_beam_is_greedy():
    prompt = jnp.array([[1, 3], [2, 0]])
    want = jaxrnn.generate(CELL, model(), prompt, 6, jaxrnn.sample(temperature=0), stop=0)
    found = jaxrnn.beam_search(CELL, model(), prompt, 6, 1, stop=0)
    assert (found.tokens[..., 0] == want.xs).all() and (
        found.lengths[..., 0] == want.lengths
    ).all()


def test_errors():
    run = functools.partial(jaxrnn.beam_search, CELL, model())
    with pytest.raises(ValueError, match=r"prompt: got float32\[3\], want ints"):
        run(jnp.ones(3), 2, 2)
    with pytest.raises(ValueError, match=r"beams: got 0, want"):
        run(jnp.array([1]), 2, 0)
    with pytest.raises(TypeError, match="stop: got 2.5, want an int"):
        run(jnp.array([1]), 2, 2, stop=2.5)
    with pytest.raises(ValueError, match="lengths: got 0, want 1 or more"):
        run(jnp.array([[1]]), 2, 2, lengths=np.array([0]))
