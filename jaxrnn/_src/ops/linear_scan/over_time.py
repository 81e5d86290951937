"""The linear recurrence with time divided over devices.

A stretch of steps is one step of a shorter recurrence, given by the product of its factors and by
where it ends if it begins at zero (Blelloch 1990, "Prefix sums and their applications"). Devices
exchange these alone, and each then runs its own stretch from the state before it.
"""

import jax.numpy as jnp

from jaxrnn._src.core import time_axis
from jaxrnn._src.core.sequence import select


def run(whole, operands, axis, reverse):
    """``whole(operands) -> (state, hs)`` of the device's stretch, as part of all of them."""
    zero = jnp.zeros_like(operands.h0)
    end, _ = whole(operands._replace(h0=zero))
    nothing = jnp.zeros_like(operands.b)
    product, _ = whole(operands._replace(h0=jnp.ones_like(zero), b=nothing))
    none = jnp.zeros(zero.shape[:-1], bool)
    own = time_axis.cuts(operands.starts, none)
    first, summary = (jnp.ones_like(zero), operands.h0, none), (product, end, own)
    _, before, _ = time_axis.before(_combine, first, summary, axis, reverse)
    state, hs = whole(operands._replace(h0=before))
    return time_axis.of_last(state, axis, reverse), hs


def _combine(earlier, later):
    """Two neighbouring stretches as one: product of factors, end, and whether episodes begin."""
    (first, state, cut), (product, end, again) = earlier, later
    first, state = select(~again, (first, state), 0)  # a NaN stays in its episode
    return _times(product, first), _times(product, state) + end, cut | again


def _times(product, a):
    """Zero remains zero, as it does step by step, where a product of factors overflows."""
    return jnp.where(a == 0, jnp.zeros_like(a), product * a)
