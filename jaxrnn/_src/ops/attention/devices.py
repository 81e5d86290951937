"""The devices of a ring, in the order in which their steps are processed, and how arrays move.

Where a step attends to all that come before it, the last stretch of steps takes the most time. So
the sequence is cut into two stretches for each device, as in Llama 3 (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.3.2): of n devices, the one at place k takes stretch k and stretch
2 n - 1 - k. Any two devices then have the same to do.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sharding import varying


class Devices(NamedTuple):
    """The devices of a mesh axis; if ``reverse``, the one with the last steps comes first."""

    axis: str
    count: int
    reverse: bool

    def moved(self, tree: Any, places: list[tuple[int, int]]) -> Any:
        """Arrays from and to places in the order of processing; zeros where nothing comes."""
        last = self.count - 1
        if self.reverse:
            places = [(last - one, last - other) for one, other in places]
        return jax.tree.map(lambda a: lax.ppermute(a, self.axis, places), tree)

    def folded(self, tree: Any, place: jax.Array, time: int) -> Any:
        """A device's steps, along axis ``time``, become those of stretches k and 2 n - 1 - k."""
        early, late = _halves(tree, time)
        early, late = self.moved(early, self._targets(0)), self.moved(late, self._targets(1))
        return _joined(*_swapped(place % 2 == 1, early, late), time)

    def unfolded(self, tree: Any, place: jax.Array, time: int) -> Any:
        """The inverse."""
        early, late = _swapped(place % 2 == 1, *_halves(tree, time))
        back = lambda which: [(to, of) for of, to in self._targets(which)]
        return _joined(self.moved(early, back(0)), self.moved(late, back(1)), time)

    def _targets(self, which):
        """Where the first or the second half of each device's steps goes: one half each."""
        stretches = ((k, 2 * k + which) for k in range(self.count))
        return [(k, min(n, 2 * self.count - 1 - n)) for k, n in stretches]


def _halves(tree, time):
    arrays, structure = jax.tree.flatten(tree)
    pairs = [jnp.split(a, 2, axis=time) for a in arrays]
    return (structure.unflatten([pair[i] for pair in pairs]) for i in range(2))


def _joined(one, other, time):
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], time), one, other)


def _swapped(swap, one, other):
    """``(other, one)`` if ``swap``."""
    swap, one, other = varying((swap, one, other))
    choose = lambda a, b: jnp.where(swap, a, b)
    return jax.tree.map(choose, other, one), jax.tree.map(choose, one, other)
