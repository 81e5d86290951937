"""The memory with time divided over devices.

What a stretch of steps does to the memory before it is affine: a matrix times it, [D, D] with the
delta rule and a decay for each key without, plus where the stretch ends if it begins at zero.
Devices exchange these alone, and each then runs its own stretch from the memory before it.
"""

import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import time_axis
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.sharding import varying


def run(whole, operands, axis, reverse):
    """``whole(operands) -> (state, ys)`` of the device's stretch, as part of all of them."""
    state, mask = operands.state, operands.mask
    none = jnp.zeros(state.shape[:-3], bool)
    own = time_axis.cuts(operands.starts, none)
    end, _ = whole(operands._replace(state=jnp.zeros_like(state)))
    one = jnp.ones_like(state[..., :1])
    if operands.b is not None:
        eye = jnp.eye(state.shape[-2], dtype=state.dtype)
        one = jnp.broadcast_to(eye, (*state.shape[:-1], eye.shape[0]))
        alone = operands._replace(state=one, v=jnp.zeros_like(operands.k))
        product, _ = whole(varying(alone))
    elif operands.log_w is None:
        product = one
    else:
        log_w = select(~own, select(mask, operands.log_w, 0).sum(0), 0)  # or a NaN would pass
        product = jnp.broadcast_to(jnp.exp(log_w)[..., None], one.shape)

    def times(product, memory):
        if operands.b is None:
            return product * memory
        return jnp.matmul(product, memory, precision=lax.Precision.HIGHEST)

    def combine(earlier, later):
        (product, memory, cut), (more, end, again) = earlier, later
        product, memory = select(~again, (product, memory), 0)  # a NaN stays in its episode
        return times(more, product), times(more, memory) + end, cut | again

    _, found, _ = time_axis.before(combine, (one, state, none), (product, end, own), axis, reverse)
    state, ys = whole(operands._replace(state=found))
    return time_axis.of_last(state, axis, reverse), ys
