"""Chunk by chunk: within a chunk as attention with decay, between chunks by the memory.

Linear attention in chunks is Hua et al. 2022's (arXiv:2202.10447), with decays Yang et al. 2023's
(arXiv:2312.06635). What each step of a chunk reads at b, as if nothing had been written at a, is
one product; what it reads in fact is the solution of a triangular system (Yang et al. 2024,
arXiv:2406.06484), whose inverse is made from those of its halves.

What reads, q and b, is one factor of a product, and what is written, k and a, the other: a chunk
is small for a matrix unit, and two of its products apart take as long as one of twice the size.

Each decay between two steps is the exponential of a sum of logarithms, at most 0. It is summed
directly: the difference of two sums would have the rounding errors of the larger.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LEAST = -1e3  # of a decay's logarithm, whose exponential is 0 in any type; -inf times 0 is NaN


def chunk(before, target, memory, taken, starts):
    """A chunk of L steps, none of them padding, from the memory [B, N, D, E] before it.

    Args:
      before: each step reads the memory that it finds.
      target: what it is compiled for.
      taken: ``(q, k, v, log_w, a, b)`` as the operation has them, [L, B, N, ...].
      starts: bool [L, B] or None.

    Returns:
      ``(memory, ys)``: ys [L, B, N, E].
    """
    starts = jnp.zeros(taken[0].shape[:-2], bool) if starts is None else starts
    # Six products of bfloat16 make an exact one on a TPU. Three make it to 16 bits, which is
    # enough beside its other products, of 8 bits. On a GPU, this precision is TF32's, 10 bits.
    precision = lax.Precision.HIGH if target.platform == "tpu" else lax.Precision.HIGHEST
    one = functools.partial(_chunk, before, functools.partial(jnp.matmul, precision=precision))
    one = jax.vmap(one, (0, 1, None), (0, 1))
    for _ in starts.shape[1:]:
        one = jax.vmap(one, (0, 1, 1), (0, 1))
    return one(memory, taken, starts[..., None])


def pulled(before, target, memory, taken, starts, d_memory, d_ys):
    """The gradients of ``chunk``'s memory and taken, with the cotangents of its results."""
    again = lambda memory, taken: chunk(before, target, memory, taken, starts)
    return jax.vjp(again, memory, taken)[1]((d_memory, d_ys))


def _chunk(before, exact, memory, taken, starts):
    """The same for one row and head: without the axes B and N, and starts [L, 1].

    ``exact`` is the matmul for what the others would round too much.
    """
    q, k, v, log_w, a, b = taken
    log_w = None if log_w is None else jnp.maximum(log_w, _LEAST)
    broken, (k, v, log_w, a, b) = _without_broken((k, v, log_w, a, b))
    unread, q = _without_broken(q)
    lost = ~(jnp.abs(lax.stop_gradient(memory)).max() < jnp.inf)
    memory = jnp.where(lost, 0, memory)
    size = len(q)
    episode = lax.cumsum(starts.astype(jnp.int32))
    first = episode == 0  # the episode that the memory is of
    last = episode == episode[-1:]
    same = episode == episode.T
    earlier = same & np.tri(size, k=-1, dtype=bool)
    seen = earlier if before else same & np.tri(size, dtype=bool)

    readers, writers, found, values = [q], [k], [before], v
    if b is not None:
        readers, writers, found = [q, b], [k, -k if a is None else a], [before, True]
    scores, left, end, whole = _decayed(exact, log_w, readers, writers, found)
    of_memory = jnp.where(_rows([first] * len(readers)), (_rows(readers) * left) @ memory, 0)
    kept = _rows([seen, earlier][: len(readers)])
    scores = jnp.where(jnp.concatenate([kept] * len(writers), 1), scores, 0)
    if len(readers) == 2:
        there = scores[size:, :size] @ v + of_memory[size:]
        written = inverse(exact, scores[size:, size:]) @ there
        values = _rows([v, written])
    ys = scores[:size] @ values + of_memory[:size]
    new = _rows([jnp.where(last, x * end, 0) for x in writers]).T @ values
    new += jnp.where(first[-1:], whole * memory, 0)
    # An episode is NaN from a broken step on, and so is one whose memory is lost.
    spoiled = jnp.where(seen & broken.T, 1.0, 0.0).max(1, keepdims=True) > 0
    ys = jnp.where(spoiled | (first & lost) | unread, jnp.nan, ys)
    return jnp.where((last & broken).any() | (first[-1] & lost), jnp.nan, new), ys


def _without_broken(written):
    """Which steps have what is not finite, bool [L, 1], and the same with zeros for theirs.

    In a product over steps, and in its derivative, 0 times NaN would reach steps before them, and
    other episodes. So would what is not finite in the memory.
    """
    # A TPU finds the largest of numbers in a tenth of the time that `all` of booleans takes.
    sizes = map(jnp.abs, jax.tree.leaves(lax.stop_gradient(written)))
    most = [x.max(1, keepdims=True) for x in sizes]
    broken = ~(functools.reduce(jnp.maximum, most) < jnp.inf)
    return broken, jax.tree.map(lambda x: jnp.where(broken, 0, x), written)


def _decayed(exact, log_w, readers, writers, found):
    """What each reader of a chunk sees of each writer and of the memory, after the decays between.

    Args:
      exact: as ``_chunk`` has it.
      log_w: [L, D] or [L, 1], or None.
      readers: of each, x [L, D], where row t is read at step t.
      writers: of each, y [L, D], where row s is written at step s.
      found: of each reader, whether it reads before the decay of its step.

    Returns:
      ``(scores, left, end, whole)``: ``sum_d x[t, d] w[t, s, d] y[s, d]`` with what the decays
      between s and t leave, w, [readers L, writers L], of no meaning where s is not seen at t;
      what is left of the memory where it is read, [readers L, D or 1]; what is left at the end of
      each step, [L, D or 1], and of the memory, [D or 1, 1].
    """
    if log_w is None:
        one = jnp.ones_like(readers[0][:1, :1])
        return _rows(readers) @ _rows(writers).T, one, one, one
    if log_w.shape[1] == readers[0].shape[1] > 1:
        return _by_halves(log_w, readers, writers, found)
    size = len(log_w)
    t, r = np.ogrid[:size, :size]
    # The last column is of the memory, of which all decays are later.
    later = np.concatenate([t > r, np.ones((size, 1), bool)], 1).astype(log_w.dtype)
    after = jnp.exp(exact(jnp.where(r <= t, log_w.T, 0), later))
    left = _left(after, found)
    end, whole = after[-1:, :size].T, after[-1:, size:]
    between = jnp.concatenate([left[:, :size]] * len(writers), 1)
    return (_rows(readers) @ _rows(writers).T) * between, left[:, size:], end, whole


def _by_halves(log_w, readers, writers, found):
    """``_decayed`` with a decay for each key.

    In a block of steps, what the second half sees of the first is one product: each writer decays
    to the middle, and each reader from there on. Sums over a block are those over its halves.

    What reads before the decay of its step reads after that of the step before. So all readers
    share their decays: such a reader is moved up by a step first, and what it sees, back again.
    """
    size = len(log_w)
    x = _rows([_moved(x, -1) if before else x for x, before in zip(readers, found)])
    y = _rows(writers)
    scores = x @ y.T  # of which the diagonal stays
    upto, later = log_w, jnp.zeros_like(log_w)  # from a block's start through t; from s to its end
    half = 1
    while half < size:
        second = np.arange(size)[:, None] // half % 2 == 1
        decay = jnp.exp(jnp.where(second, upto, later))
        across = np.tile(_across(size, half), (len(readers), len(writers)))
        scores = jnp.where(across, _scaled(x, decay) @ _scaled(y, decay).T, scores)
        whole = upto + later
        other = jnp.where(second, jnp.roll(whole, half, 0), jnp.roll(whole, -half, 0))
        upto = jnp.where(second, upto + other, upto)
        later = jnp.where(second, later, later + other)
        half *= 2
    seen = zip(jnp.split(scores, len(readers)), found)
    scores = _rows([_moved(s, 1) if before else s for s, before in seen])
    after = jnp.exp(upto)
    return scores, _left(after, found), jnp.exp(later), after[-1:].T


def _left(after, found):
    """What is left of the memory for each reader, of what is left after each step."""
    earlier = jnp.concatenate([jnp.ones_like(after[:1]), after[:-1]])
    return _rows([earlier if before else after for before in found])


def _moved(a, steps):
    """Rows moved by one step, down or up (-1), with a row of zeros in the place that is left."""
    none = jnp.zeros_like(a[:1])
    return _rows([none, a[:-1]] if steps > 0 else [a[1:], none])


def _scaled(x, decay):
    """Several arrays [L, D], one below the other, each times ``decay`` [L, D]."""
    return x * jnp.tile(decay, (len(x) // len(decay), 1))


def _across(size, half):
    """Of [t, s], whether they are in two halves of one block."""
    t, s = (n // half for n in np.ogrid[:size, :size])
    return (t != s) & (t // 2 == s // 2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def inverse(exact, a):
    """``(I - a)^-1`` of a strictly lower triangular a [L, L], by the matmul ``exact``.

    That of a block is made from those of its two halves, of all blocks at once.
    """
    size, half = len(a), 2
    found = np.eye(size, dtype=a.dtype) + jnp.where(_across(size, 1), a, 0)
    while half < size:
        found += exact(exact(found, jnp.where(_across(size, half), a, 0)), found)
        half *= 2
    return found


@inverse.defjvp
def _inverse_jvp(exact, primals, tangents):
    (a,), (d,) = primals, tangents
    found = inverse(exact, a)
    return found, exact(exact(found, d), found)


_rows = jnp.concatenate  # of several arrays, one below the other
