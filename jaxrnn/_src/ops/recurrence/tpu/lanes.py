"""How hidden units lie in the lanes of a TPU's registers.

A register has 128 lanes, and a part of an array is free to take only from where a register begins.
So each head's units are followed by empty lanes up to the next multiple of 128. Heads of fewer
units than that share one: together they are a head whose recurrence is zero between them. A wide
head is worked on in blocks.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxrnn._src.ops.recurrence.tpu.tiles import up

LANES = 128  # of a register
# What a transposed product is taken over, at least: libtpu 0.0.50 fails on one of 128 for a v6e.
_LEAST = 256
# Of the gates of a block: a step that has more at once takes too long to compile.
MOST = 44 * LANES


class Lanes(NamedTuple):
    """Where the units are.

    Attributes:
      heads: blocks of the recurrence, after joining.
      units: in each.
      width: lanes of each: ``units``, and the empty ones.
      block: lanes that a step works on at a time: all, or a part of a wide head.
    """

    heads: int
    units: int
    width: int
    block: int

    @property
    def all(self):
        """Lanes of all units."""
        return self.heads * self.width

    @property
    def used(self):
        """Lanes of a head that a product is taken over: what is beyond fills up a block."""
        return up(self.units, LANES)

    @property
    def blocks(self):
        """How many blocks a step has."""
        return self.all // self.block

    @property
    def full(self):
        """No lane is empty."""
        return self.units == self.width

    def spread(self, a):
        """[..., K * H] -> [..., K * all], with zero in the empty lanes."""
        if self.full:
            return a
        parts = a.reshape(*a.shape[:-1], -1, self.units)
        parts = jnp.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, self.width - self.units)])
        return parts.reshape(*a.shape[:-1], -1)

    def gather(self, a):
        """The inverse of ``spread``."""
        if self.full:
            return a
        parts = a.reshape(*a.shape[:-1], -1, self.width)[..., : self.units]
        return parts.reshape(*a.shape[:-1], -1)

    def recurrent(self, r):
        """[H, G, H] or [N, D, G, D] -> [heads or blocks, used, G * width or block]."""
        r = r if r.ndim == 4 else r[None]
        count, size, gates, _ = r.shape
        joined = count // self.heads
        if joined > 1:
            r = r.reshape(self.heads, joined, size, gates, size)
            one = jnp.eye(joined, dtype=r.dtype)
            r = jnp.einsum("njdge,jk->njdgke", r, one)
            r = r.reshape(self.heads, self.units, gates, self.units)
        empty = [(0, lanes - self.units) for lanes in (self.used, self.width)]
        r = jnp.pad(r, [(0, 0), empty[0], (0, 0), empty[1]])
        if self.blocks > 1:
            r = r.reshape(*r.shape[:3], -1, self.block).transpose(0, 3, 1, 2, 4)
        return r.reshape(-1, self.used, gates * min(self.width, self.block))

    def transposed(self, r):
        """For the other way, with the last two axes exchanged and zeros up to ``_LEAST``."""
        r = self.recurrent(r).swapaxes(1, 2)
        return jnp.pad(r, [(0, 0), (0, max(_LEAST - r.shape[1], 0)), (0, 0)])


def lanes(hidden, gates, heads=1):
    """The ``Lanes`` of ``hidden`` units in ``heads`` heads, of a cell with ``gates``."""
    units = hidden // heads
    joined = max(
        n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * units <= LANES)
    )
    units, heads = units * joined, heads // joined
    width, most = up(units, LANES), max(MOST // gates // LANES, 1) * LANES
    if width <= most:
        return Lanes(heads, units, width, heads * width)
    # The largest of those with the fewest empty lanes.
    block = min(range(most, most // 2, -LANES), key=lambda block: up(width, block))
    return Lanes(heads, units, up(width, block), block)
