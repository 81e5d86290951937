"""The memory with time divided over devices.

A stretch of steps multiplies the memory before it by its gates' product, and adds where it ends if
it begins with nothing. Both are kept divided by an exponential, so that they stay in range.
Devices exchange these alone, and each then runs its own stretch from the memory before it.
"""

import jax.numpy as jnp

from jaxrnn._src.core import time_axis
from jaxrnn._src.core.sequence import select

_NOTHING = -1e30  # the logarithm of what a stretch begins with; -inf less -inf would be NaN


def run(whole, operands, axis, reverse, stabilised):
    """``whole(operands) -> (state, out)`` of the device's stretch, as part of all of them."""
    memory, m = operands.state
    none = jnp.zeros(m.shape[:-1], bool)
    own = time_axis.cuts(operands.starts, none)
    least = jnp.full_like(m, _NOTHING) if stabilised else m
    end, _ = whole(operands._replace(state=(jnp.zeros_like(memory), least)))
    left = select(~own, select(operands.mask, operands.log_f, 0).sum(0), 0)  # or a NaN would pass
    nothing = jnp.zeros_like(left)

    def combine(earlier, later):
        (left, memory, m, cut), (more, end, top, again) = earlier, later
        left, memory, m = select(~again, (left, memory, m), 0)  # a NaN stays in its episode
        found = jnp.maximum(more + m, top) if stabilised else m
        found = select(again, top, found)
        # A memory that was cut off is zero: nothing is left of it, whatever the exponential.
        kept = select(~again, jnp.exp(more + m - found), 0)[..., None, None]
        added = jnp.exp(top - found)[..., None, None]
        return left + more, kept * memory + added * end, found, cut | again

    first, summary = (nothing, memory, m, none), (left, *end, own)
    _, *found, _ = time_axis.before(combine, first, summary, axis, reverse)
    state, out = whole(operands._replace(state=tuple(found)))
    return time_axis.of_last(state, axis, reverse), out
