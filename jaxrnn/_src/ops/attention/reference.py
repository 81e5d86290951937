"""The specification: the softmax of whole rows, a block of rows at a time."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import wide_scan
from jaxrnn._src.ops.attention.blocks import block_size, blocks, heads_first, joined
from jaxrnn._src.ops.attention.problem import places, scores

_ROWS = 128  # at a time; memory is this times the number of keys


def run(problem, operands):
    """(ys,), [B, T, N, D]."""
    q, k, v = (heads_first(a) for a in operands[:3])
    q_place, k_place = places(problem, operands)

    @jax.checkpoint
    def some(q, q_place):
        s = scores(problem, q, k, q_place, k_place)
        top = lax.stop_gradient(jnp.max(s, -1, keepdims=True))
        weights = jnp.exp(s - jnp.where(jnp.isinf(top), 0, top))
        total = weights.sum(-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1, total)  # a row that sees nothing is zero
        return jnp.einsum(
            "...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=s.dtype
        ).astype(q.dtype)

    size = block_size(_ROWS, q.shape[-2])
    cut = blocks(q, size, -2), tuple(blocks(p, size, -1) for p in q_place)
    out = wide_scan.scan(lambda _, block: (None, some(*block)), None, cut)[1]
    return (heads_first(joined(out, -2, q.shape[-2])),)
