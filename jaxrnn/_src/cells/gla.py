"""Memories whose keys decay each at a rate of its own: gated linear attention, and HGRN2."""

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid, silu

from jaxrnn._src.builders.memory import (
    by_head,
    joined,
    keys,
    memory,
    projected,
    queries_keys_values,
)
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag, tag_all

_TEMPERATURE = 16  # the paper's tau: gates begin near 1


@constructor
def gla(hidden: int, *, heads: int = 4, key: int | None = None, rank: int = 16) -> Cell:
    """Gated linear attention (Yang et al. 2023, arXiv:2312.06635).

        q, k = W x, for each head                 v = V x
        log w = logsigmoid(G_2 G_1 x + c) / 16    for each key
        S = diag(w) S + k v'                      y = S' q / sqrt(D)

    The norm of each head and the output gate of the paper's layer are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      rank: R, of the product that makes w.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], ``v`` [I, H],
      ``g1`` [I, R], ``g2`` [R, N D] and ``c`` [N D].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.gla(hidden=8, heads=2, key=3)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 3, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    rank = checks.size("rank", rank)

    def inputs(params, x):
        q, k, v = projected(params, x, heads)
        q, k, v = tag_all("gla", q=q, k=k, v=v)
        gate = affine(affine(x, params["g1"]), params["g2"], params["c"])
        log_w = tag("gla.log_w", log_sigmoid(by_head(gate, heads)) / _TEMPERATURE)
        return q / width**0.5, k, v, log_w, None, None

    spec = queries_keys_values(hidden, heads, width) | {
        "g1": ((param_spec.INPUTS, rank), param_spec.input_init),
        "g2": ((rank, heads * width), param_spec.input_init),
        "c": ((heads * width,), param_spec.zeros),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, joined)


@constructor
def hgrn2(
    hidden: int, *, heads: int = 4, key: int | None = None, lower_bound: float = 0.0
) -> Cell:
    """The hierarchically gated linear RNN with an expanded state, HGRN2 (Qin et al. 2024,
    arXiv:2404.07904).

        f = l + (1 - l) sigmoid(W_f x)            q = silu(W_q x)          v = V x
        S = diag(f) S + (1 - f) v'                y = S' q

    The norm of the paper's layer is not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      lower_bound: l, which the paper raises from layer to layer, from 0 up to below 1.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], those of q and f,
      and ``v`` [I, H].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``; ``lower_bound`` is not from 0 to below 1.

    >>> cell = jaxrnn.hgrn2(hidden=8, heads=2, lower_bound=0.5)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    if not 0 <= lower_bound < 1:
        raise ValueError(f"lower_bound: got {lower_bound}, want a number from 0 to below 1")

    def inputs(params, x):
        q, z, v = projected(params, x, heads)
        f = lower_bound + (1 - lower_bound) * sigmoid(z)
        q, f, v = tag_all("hgrn2", q=silu(q), f=f, v=v)
        k = (1 - lower_bound) * sigmoid(-z)  # 1 - f, to the last digit where f is near 1
        log_w = jnp.log(f) if lower_bound else log_sigmoid(z)
        return q, k, v, log_w, None, None

    spec = queries_keys_values(hidden, heads, width)
    return memory(spec, (heads, width, hidden // heads), inputs, joined)
