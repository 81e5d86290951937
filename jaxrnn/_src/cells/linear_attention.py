"""Linear attention, and retention, which decays at a fixed rate."""

import jax.numpy as jnp
import numpy as np
from jax.nn import elu

from jaxrnn._src.builders.memory import joined, keys, memory, projected, queries_keys_values
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.rotary import rotated
from jaxrnn._src.core.tags import tag_all

_LEAST = 1e-6  # as in the authors' code


@constructor
def linear_attention(hidden: int, *, heads: int = 4, key: int | None = None) -> Cell:
    """Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236).

        q, k = elu(W x) + 1, for each head        v = V x
        S = S + k v'     n = n + k                y = S' q / (n' q + 1e-6)

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E + 1], with n as the last column of S. Parameters
      ``qk`` [I, 2, N D] and ``v`` [I, H].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.linear_attention(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 5))
    """
    hidden, heads, width = keys(hidden, heads, key)

    def inputs(params, x):
        q, k, v = projected(params, x, heads)
        q, k, v = tag_all("linear_attention", q=elu(q) + 1, k=elu(k) + 1, v=v)
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)  # the last column of S is n
        return q, k, v, None, None, None

    def outputs(params, x, taken, y):
        return joined(params, x, taken, y[..., :-1] / (y[..., -1:] + _LEAST))

    sizes = heads, width, hidden // heads + 1
    return memory(queries_keys_values(hidden, heads, width), sizes, inputs, outputs)


@constructor
def retention(hidden: int, *, heads: int = 4, key: int | None = None) -> Cell:
    """Retention, the memory of RetNet (Sun et al. 2023, arXiv:2307.08621).

        q, k = rotated(W x), for each head        v = V x
        S = (1 - 2^(-5 - n)) S + k v' / sqrt(D)   y = S' q     of head n, from 0

    Queries and keys are turned by their position in the episode, as in ``jaxrnn.attention``: pair
    i of D / 2 by 10000^(-i / (D / 2)) a step, where the authors' code has D / 2 - 1 for D / 2. The
    norm of each head and the gate of the paper's layer are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.

    Returns:
      A ``Cell``. State ``(S, count)``, [..., N, D, E] and how many steps the episode has had,
      int32 [...]. Parameters ``qk`` [I, 2, N D] and ``v`` [I, H].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.retention(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S, count), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape, count.shape
    ((100, 5, 8), (5, 2, 4, 4), (5,))
    """
    hidden, heads, width = keys(hidden, heads, key)
    log_g = np.log1p(-(2.0 ** (-5 - np.arange(heads))))[:, None]

    def inputs(params, x, count):
        q, k, v = projected(params, x, heads)
        q, k, v = tag_all("retention", q=rotated(q, count), k=rotated(k, count), v=v)
        log_w = jnp.broadcast_to(jnp.asarray(log_g, q.dtype), (*q.shape[:-1], 1))
        return q, k / width**0.5, v, log_w, None, None

    spec = queries_keys_values(hidden, heads, width)
    return memory(spec, (heads, width, hidden // heads), inputs, joined, counted=True)
