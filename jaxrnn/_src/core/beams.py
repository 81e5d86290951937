"""The likeliest sequences of a language model, found by keeping the best few at every step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, check_cell, unroll
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.generation import last_step
from jaxrnn._src.core.params_tree import dicts
from jaxrnn._src.core.typing import Array, InputArray, Params, State


class Beams(NamedTuple):
    """What ``beam_search`` gives, the best first; a sequence that has stopped goes on with zeros.

    Attributes:
      tokens: int [steps, ...batch, K].
      scores: the log-probability of each, divided by its length penalty, [...batch, K]; minus
        infinity where there are fewer sequences than K.
      lengths: how many tokens each has, the one that stopped it included, int32 [...batch, K].
    """

    tokens: Array
    scores: Array
    lengths: Array


class _Beam(NamedTuple):
    """What is known of the K sequences so far: [...batch, K] each, and the cell's state."""

    state: State
    token: Array
    score: Array  # the sum of log-probabilities
    length: Array
    active: Array


def beam_search(
    cell: Cell,
    params: Params,
    prompt: InputArray,
    steps: int,
    beams: int,
    *,
    state: State | None = None,
    lengths: InputArray | Sequence[int] | None = None,
    stop: int | None = None,
    length_penalty: float = 0.0,
) -> Beams:
    """Likely continuations of a prompt, by beam search.

    Of all continuations of the K sequences by one token, the K with the highest score go on; one
    that has stopped stays as it is. The score is that of Wu et al. 2016 (arXiv:1609.08144):

        log p / ((5 + length) / 6) ** length_penalty

    Args:
      cell, params: of a cell that reads tokens and gives logits [..., V].
      prompt: tokens [S, ...batch], one at least.
      steps: how many tokens are added, an int.
      beams: K. With 1 it is greedy, as ``generate`` with ``sample(temperature=0)``.
      state: the state before the prompt; None for the initial state.
      lengths: int [...batch], 1 to S: the steps of the prompt that are real in each row.
      stop: the token that ends a sequence.
      length_penalty: 0 for the sum of log-probabilities; more for longer sequences.

    Returns:
      ``Beams``: ``(tokens, scores, lengths)``.

    Raises:
      ValueError, TypeError: at trace time, naming the argument, what came and what is wanted.

    >>> cell = jaxrnn.stack(jaxrnn.embedding(256, 8), jaxrnn.lstm(16), jaxrnn.project(256))
    >>> params = cell.init(jax.random.key(0), None)
    >>> prompt = jnp.array(list(b"Once"))
    >>> found = jaxrnn.beam_search(cell, params, prompt, 20, beams=4, stop=10)
    >>> found.tokens.shape, bool((found.scores[:-1] >= found.scores[1:]).all())
    ((20, 4), True)
    """
    check_cell("cell", cell)
    checks.check_array("prompt", prompt, "an int array [S, ...batch]")
    prompt, params = jnp.asarray(prompt), dicts(params)
    if not jnp.issubdtype(prompt.dtype, jnp.integer) or not prompt.ndim or not len(prompt):
        raise ValueError(f"prompt: got {checks.described(prompt)}, want ints [S, ...batch], S > 0")
    steps, beams = checks.size("steps", steps), checks.size("beams", beams)
    penalty = checks.number("length_penalty", length_penalty)
    if stop is not None:
        stop = checks.integer("stop", stop)
    before, lengths, token = last_step(prompt, lengths)
    state, _ = unroll(cell, params, before, state, lengths=lengths)
    run = kept_by(cell, _search, "steps", "beams", "stop", "penalty")
    return run(params, state, token, steps=steps, beams=beams, stop=stop, penalty=penalty)


def _search(cell, params, state, token, steps, beams, stop, penalty):
    batch = token.shape
    every = lambda a: jnp.broadcast_to(
        jnp.expand_dims(a, len(batch)), (*batch, beams, *a.shape[len(batch) :])
    )
    state, token = jax.tree.map(every, (state, token))
    _, logits = jax.eval_shape(cell.step, params, state, token)
    checks.check_floating("cell: its output", logits)
    dtype = promoted(logits.dtype, jnp.dtype("float32"))
    first = jnp.arange(beams) == 0  # all begin alike, so that only one of them may go on
    score = jnp.broadcast_to(jnp.where(first, 0.0, -jnp.inf).astype(dtype), token.shape)
    zero = jnp.zeros(token.shape, jnp.int32)
    beam = _Beam(state, token, score, zero, jnp.ones(token.shape, bool))

    def ranked(score, length):
        return score / ((5 + length.astype(dtype)) / 6) ** penalty

    def body(beam, _):
        state, logits = cell.step(params, beam.state, beam.token)
        one = jax.nn.log_softmax(logits.astype(dtype))
        count = one.shape[-1]
        held = jnp.where(jnp.arange(count) == 0, jnp.zeros((), dtype), -jnp.inf)
        held = jnp.broadcast_to(held, one.shape)
        score = beam.score[..., None] + jnp.where(beam.active[..., None], one, held)
        length = beam.length + beam.active.astype(jnp.int32)
        rank = ranked(score, jnp.broadcast_to(length[..., None], score.shape))
        flat = (*batch, beams * count)
        _, place = lax.top_k(rank.reshape(flat), beams)
        parent, chosen = place // count, (place % count).astype(beam.token.dtype)
        of = lambda a: _picked(a, parent, len(batch))
        score = jnp.take_along_axis(score.reshape(flat), place, -1)
        active = of(beam.active)
        after = active if stop is None else active & (chosen != stop)
        beam = _Beam(jax.tree.map(of, state), chosen, score, of(length), after)
        return beam, (chosen, parent)

    beam, (tokens, parents) = lax.scan(body, beam, length=steps)

    def back(at, now):
        tokens, parents = (jnp.take_along_axis(a, at, -1) for a in now)
        return parents, tokens

    own = jnp.broadcast_to(jnp.arange(beams, dtype=parents.dtype), token.shape)
    _, tokens = lax.scan(back, own, (tokens, parents), reverse=True)
    return Beams(tokens, ranked(beam.score, beam.length), beam.length)


def _picked(a, parent, axis):
    """Of [...batch, K, ...], the K that ``parent`` [...batch, K] says."""
    parent = parent.reshape(*parent.shape, *[1] * (a.ndim - parent.ndim))
    return jnp.take_along_axis(a, parent, axis)
