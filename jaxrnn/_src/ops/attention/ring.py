"""The attention of one step in a stream, whose last keys are kept in a ring."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.dtypes import promoted


def attend_ring(near, far, k, v, count):
    """Softmax attention of one query over a ring of S slots.

    Step n of a stream has put its key and value into slot n % S, and the query's step has too. A
    slot up to the query's own was written in this lap of the ring, a later one in the lap before.

    Args:
      near, far: [..., N, D], the query as keys of this lap and of the one before are to meet it.
      k, v: [..., S, N, D], in the type of the query.
      count: int32 [...], how many steps came before the query's.

    Returns:
      [..., N, D].
    """
    total = promoted(k.dtype, jnp.dtype("float32"))
    both = jnp.stack([near, far])
    near, far = jnp.einsum("a...nd,...snd->a...ns", both, k, preferred_element_type=total)
    slot = lax.broadcasted_iota(count.dtype, near.shape, near.ndim - 1)
    count = jnp.broadcast_to(count[..., None, None], slot.shape)
    scores = jnp.where(slot <= count % k.shape[-3], near, far) * k.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(slot <= count, scores, -jnp.inf), axis=-1)
    return jnp.einsum(
        "...ns,...snd->...nd", weights.astype(v.dtype), v, preferred_element_type=total
    ).astype(v.dtype)
