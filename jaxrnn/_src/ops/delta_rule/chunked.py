"""Chunk by chunk: within a chunk as attention with decay, between chunks by the memory.

Linear attention in chunks is Hua et al. 2022's (arXiv:2202.10447), with decays Yang et al. 2023's
(arXiv:2312.06635). What each step of a chunk reads at b, as if nothing had been written at a, is
one product; what it reads in fact is the solution of a triangular system (Yang et al. 2024,
arXiv:2406.06484), whose inverse is made from those of its halves.

Each decay between two steps is the exponential of a sum of logarithms, at most 0. It is summed
directly: the difference of two sums would have the rounding errors of the larger.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_BLOCK = 4  # steps of a chunk whose decays are taken pair by pair
_LEAST = -1e3  # of a decay's logarithm, whose exponential is 0 in any type; -inf times 0 is NaN


def chunk(before, memory, taken, starts):
    """A chunk of L steps, none of them padding, from the memory [B, N, D, E] before it.

    Args:
      before: each step reads the memory that it finds.
      taken: ``(q, k, v, log_w, a, b)`` as the operation has them, [L, B, N, ...].
      starts: bool [L, B] or None.

    Returns:
      ``(memory, ys)``: ys [L, B, N, E].
    """
    starts = jnp.zeros(taken[0].shape[:-2], bool) if starts is None else starts
    one = jax.vmap(functools.partial(_chunk, before), (0, 1, None), (0, 1))
    for _ in starts.shape[1:]:
        one = jax.vmap(one, (0, 1, 1), (0, 1))
    return one(memory, taken, starts[..., None])


def pulled(before, memory, taken, starts, d_memory, d_ys):
    """The gradients of ``chunk``'s memory and taken, with the cotangents of its results."""
    _, pull = jax.vjp(lambda memory, taken: chunk(before, memory, taken, starts), memory, taken)
    return pull((d_memory, d_ys))


def _chunk(before, memory, taken, starts):
    """The same for one row and head: without the axes B and N, and starts [L, 1]."""
    q, k, v, log_w, a, b = taken
    log_w = jnp.zeros_like(q[:, :1]) if log_w is None else jnp.maximum(log_w, _LEAST)
    broken, (k, v, log_w, a, b) = _without_broken((k, v, log_w, a, b))
    unread, q = _without_broken(q)
    lost = ~jnp.isfinite(memory).all()
    memory = jnp.where(lost, 0, memory)
    size = len(log_w)
    episode = lax.cumsum(starts.astype(jnp.int32))
    first = episode == 0  # the episode that the memory is of
    last = episode == episode[-1:]
    same = episode == episode.T
    earlier = same & np.tri(size, k=-1, dtype=bool)
    seen = earlier if before else same & np.tri(size, dtype=bool)
    left = decays(log_w)
    found = left.found()
    read, end = found if before else left, jnp.exp(_later(log_w))

    ys = jnp.where(seen, read.products(q, k), 0) @ v
    ys += jnp.where(first, (q * read.of_memory) @ memory, 0)
    new = jnp.where(last, k * end, 0).T @ v
    new += jnp.where(first[-1:], left.of_memory[-1:].T * memory, 0)
    if a is not None and b is not None:
        of_a, of_k = (jnp.where(earlier, found.products(b, x), 0) for x in (a, k))
        there = of_k @ v + jnp.where(first, (b * found.of_memory) @ memory, 0)
        written = inverse(of_a) @ there
        ys += jnp.where(seen, read.products(q, a), 0) @ written
        new += jnp.where(last, a * end, 0).T @ written
    # An episode is NaN from a broken step on, and so is one whose memory is lost.
    spoiled = (seen & broken.T).any(-1, keepdims=True) | (first & lost)
    ys = jnp.where(spoiled | unread, jnp.nan, ys)
    return jnp.where((last & broken).any() | (first[-1] & lost), jnp.nan, new), ys


def _without_broken(written):
    """Which steps have what is not finite, bool [L, 1], and the same with zeros for theirs.

    In a product over steps, and in its derivative, 0 times NaN would reach steps before them, and
    other episodes. So would what is not finite in the memory.
    """
    each = [~jnp.isfinite(x).all(-1, keepdims=True) for x in jax.tree.leaves(written)]
    broken = functools.reduce(jnp.logical_or, each)
    return broken, jax.tree.map(lambda x: jnp.where(broken, 0, x), written)


class Decays(NamedTuple):
    """What is left, when step t reads, of what step s wrote, or was there before the chunk.

    A chunk has n blocks of c steps. The decays between two steps of one block are all there;
    those between two blocks are products of three.
    """

    of_memory: jax.Array  # [L, D], from the start of the chunk
    pairs: jax.Array  # [n, c, c, D], from s to t in one block
    since: jax.Array  # [n, c, D], from the start of t's block
    rest: jax.Array  # [n, c, D], to the end of s's block
    between: jax.Array  # [n, n, D], through the blocks between t's and s's

    def found(self):
        """What t finds before its own decay: what is left one step earlier."""

        def found(of_first, left, axis):
            kept = [slice(None)] * axis + [slice(-1)]
            return jnp.concatenate([of_first, left[tuple(kept)]], axis)

        return self._replace(
            of_memory=found(jnp.ones_like(self.of_memory[:1]), self.of_memory, 0),
            pairs=found(jnp.zeros_like(self.pairs[:, :1]), self.pairs, 1),
            since=found(jnp.ones_like(self.since[:, :1]), self.since, 1),
        )

    def products(self, x, y):
        """``sum_d x[t, d] left[t, s, d] y[s, d]`` for s up to t, [L, L]."""
        if self.since.shape[-1] < x.shape[-1]:  # one decay for all keys
            one = jnp.ones_like(x[:, :1])
            return (x @ y.T) * self.products(one, one)
        x, y = (z.reshape(self.since.shape) for z in (x, y))
        own = (x[:, :, None] * self.pairs * y[:, None]).sum(-1)
        across = self.between[:, :, None] * (y * self.rest)[None]
        others = jnp.einsum("itd,ijsd->itjs", x * self.since, across)
        same = np.eye(len(own), dtype=bool)[:, None, :, None]
        return jnp.where(same, own[:, :, None], others).reshape([own.shape[0] * own.shape[1]] * 2)


def decays(log_w):
    """The ``Decays`` of a chunk, when each step reads after its own decay."""
    steps, width = log_w.shape
    size = min(_BLOCK, steps)
    block = log_w.reshape(-1, size, width)
    total = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    within = _after(size, 1).astype(log_w.dtype)
    between = _after(len(block), 0).astype(log_w.dtype)
    sums = (
        lax.cumsum(log_w),
        total("tsr,nrd->ntsd", within, block),
        lax.cumsum(block, axis=1),
        jax.vmap(_later)(block),
        total("ijm,md->ijd", between, block.sum(1)),
    )
    return Decays(*map(jnp.exp, sums))


def _after(size, also):
    """Of [t, s, r], whether r lies after s and before t, or at t with ``also`` = 1."""
    t, s, r = np.ogrid[:size, :size, :size]
    return (s < r) & (r < t + also)


def _later(log_w):
    """The sum over all later steps."""
    later = jnp.concatenate([log_w[1:], jnp.zeros_like(log_w[:1])])
    return lax.cumsum(later, reverse=True)


@jax.custom_jvp
def inverse(a):
    """``(I - a)^-1`` of a strictly lower triangular a, from the inverses of its two halves."""
    half = a.shape[-1] // 2
    if not half:
        return 1 + a  # which is 0
    first, last = inverse(jnp.stack([a[..., :half, :half], a[..., half:, half:]]))
    across = _exact(_exact(last, a[..., half:, :half]), first)
    upper = jnp.concatenate([first, jnp.zeros_like(across)], -1)
    return jnp.concatenate([upper, jnp.concatenate([across, last], -1)], -2)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    (a,), (d,) = primals, tangents
    found = inverse(a)
    return found, _exact(_exact(found, d), found)


_exact = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
