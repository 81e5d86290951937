"""How hidden units lie in the lanes of a TPU's registers.

A register has 128 lanes, and a part of an array is free to take only from where a register begins.
So each head's units are followed by empty lanes up to the next multiple of 128. Heads of fewer
units than that share one: together they are a head whose recurrence is zero between them.
"""

from typing import NamedTuple

import jax.numpy as jnp

LANES = 128  # of a register
# What a transposed product is taken over, at least: libtpu 0.0.50 fails on one of 128 for a v6e.
_LEAST = 256


class Lanes(NamedTuple):
    """Where the units are.

    Attributes:
      heads: blocks of the recurrence, after joining.
      units: in each.
      width: lanes of each: ``units``, and the empty ones.
    """

    heads: int
    units: int
    width: int

    @property
    def all(self):
        """Lanes of all units."""
        return self.heads * self.width

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
        """[H, G, H] or [N, D, G, D] -> [heads, width, G * width]."""
        r = r if r.ndim == 4 else r[None]
        count, size, gates, _ = r.shape
        joined = count // self.heads
        if joined > 1:
            r = r.reshape(self.heads, joined, size, gates, size)
            one = jnp.eye(joined, dtype=r.dtype)
            r = jnp.einsum("njdge,jk->njdgke", r, one)
            r = r.reshape(self.heads, self.units, gates, self.units)
        empty = self.width - self.units
        r = jnp.pad(r, [(0, 0), (0, empty), (0, 0), (0, empty)])
        return r.reshape(self.heads, self.width, gates * self.width)

    def transposed(self, r):
        """The same for the other way, [heads, G * width, width], with zeros up to ``_LEAST``."""
        r = self.recurrent(r).swapaxes(1, 2)
        return jnp.pad(r, [(0, 0), (0, max(_LEAST - r.shape[1], 0)), (0, 0)])


def lanes(hidden, heads=1):
    """The ``Lanes`` of ``hidden`` units in ``heads`` heads."""
    units = hidden // heads
    joined = max(
        n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * units <= LANES)
    )
    units *= joined
    return Lanes(heads // joined, units, -(-units // LANES) * LANES)
