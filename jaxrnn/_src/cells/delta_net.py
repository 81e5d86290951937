"""Memories that write by the delta rule: what is there at a key makes room for the value."""

import jax.numpy as jnp
from jax.nn import sigmoid, silu

from jaxrnn._src.builders.memory import (
    by_head,
    joined,
    keys,
    memory,
    projected,
    queries_keys_values,
    reads,
    unit,
)
from jaxrnn._src.cells.step_size import decay, inverse_softplus, log_rates
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag, tag_all


@constructor
def delta_net(
    hidden: int, *, heads: int = 4, key: int | None = None, negative: bool = False
) -> Cell:
    """DeltaNet (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484).

        q, k = unit(silu(W x)), for each head     v = silu(V x)     beta = sigmoid(U x)
        S = (I - beta k k') S + beta k v'         y = S' q / sqrt(D)

    ``unit(z)`` is z / sqrt(|z|^2 + 1e-6). With ``negative``, beta is twice as large (Grazzi et al.
    2024, arXiv:2411.12537): I - beta k k' may then reflect, and S can count modulo 2, as parity
    needs. The convolutions, the norm and the gate of the papers' layers are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      negative: beta is between 0 and 2, not between 0 and 1.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], ``v`` [I, H] and
      ``u`` [I, N], of beta.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.delta_net(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)

    def inputs(params, x):
        q, k, v = activated("delta_net", *projected(params, x, heads))
        beta = tag("delta_net.beta", _most(negative) * sigmoid(affine(x, params["u"])))
        return written(q, k, v, None, beta)

    spec = queries_keys_values(hidden, heads, width) | {
        "u": ((param_spec.INPUTS, heads), param_spec.input_init)
    }
    return memory(spec, (heads, width, hidden // heads), inputs, joined)


@constructor
def gated_delta_net(
    hidden: int, *, heads: int = 4, key: int | None = None, negative: bool = False
) -> Cell:
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).

        q, k = unit(silu(W x)), for each head     v = silu(V x)     beta = sigmoid(U_2 x)
        log w = -exp(l) softplus(U_1 x + c)
        S = w (I - beta k k') S + beta k v'       y = S' q / sqrt(D)

    ``unit(z)`` is z / sqrt(|z|^2 + 1e-6). The convolutions, the norm and the gate of the paper's
    layer are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      negative: beta is between 0 and 2: see ``jaxrnn.delta_net``.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], ``v`` [I, H],
      ``u`` [I, 2, N], of w and beta, and ``c`` and ``l`` [N], which begin as in the authors' code.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.gated_delta_net(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)

    def inputs(params, x):
        q, k, v = activated("gated_delta_net", *projected(params, x, heads))
        u = affine(x, params["u"])
        beta = tag("gated_delta_net.beta", _most(negative) * sigmoid(u[..., 1, :]))
        log_w = tag("gated_delta_net.log_w", decay(params, u[..., 0, :]))
        return written(q, k, v, log_w[..., None], beta)

    spec = queries_keys_values(hidden, heads, width) | {
        "u": ((param_spec.INPUTS, 2, heads), param_spec.input_init),
        "c": ((heads,), inverse_softplus),
        "l": ((heads,), log_rates),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, joined)


@constructor
def gated_delta_memory(
    hidden: int, *, heads: int = 4, key_heads: int | None = None, key: int | None = None
) -> Cell:
    """The memory of ``jaxrnn.gated_delta_net`` alone, for what a block has made of its input.

        z, p, v, a, b = x         q = unit(z), k = unit(p), for each head       beta = sigmoid(b)
        log w = -exp(l) softplus(a + c)
        S = w (I - beta k k') S + beta k v'       y = S' q / sqrt(D)

    Args:
      hidden: H, the size of the output, and of all heads' values v together.
      heads: N, a divisor of ``hidden``.
      key_heads: M, a divisor of ``heads``: how many q and k there are, each for N / M heads; None
        for N.
      key: D, the width of a q and a k; None for that of a head's values, E = H / N.

    Returns:
      A ``Cell``. Its input is z, p, v, a and b side by side: 2 M D + H + 2 N features. State
      ``(S,)``, [..., N, D, E]. Parameters ``c`` and ``l`` [N], as in ``jaxrnn.gated_delta_net``.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``, ``key_heads`` not ``heads``, or the input
        has another size.

    >>> cell = jaxrnn.gated_delta_memory(hidden=8, heads=4, key_heads=2, key=3)
    >>> params = cell.init(jax.random.key(0), 2 * 2 * 3 + 8 + 2 * 4)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 28)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 4, 3, 2))
    """
    hidden, heads, width = keys(hidden, heads, key)
    key_heads = heads if key_heads is None else checks.size("key_heads", key_heads)
    if heads % key_heads:
        raise ValueError(f"key_heads: got {key_heads}, want a divisor of heads={heads}")
    of_keys = key_heads * width
    ends = (of_keys, 2 * of_keys, 2 * of_keys + hidden, 2 * of_keys + hidden + heads)
    features = ends[-1] + heads

    def inputs(params, x):
        checks.check_features(x, features)
        q, k, v, rate, beta = jnp.split(x.astype(arithmetic(params)), ends, -1)
        q, k = (jnp.repeat(unit(by_head(a, key_heads)), heads // key_heads, -2) for a in (q, k))
        q, k, v = tag_all("gated_delta_memory", q=q, k=k, v=by_head(v, heads))
        beta = tag("gated_delta_memory.beta", sigmoid(beta))
        log_w = tag("gated_delta_memory.log_w", decay(params, rate))
        return written(q / width**0.5, k, v, log_w[..., None], beta)

    spec = {"c": ((heads,), inverse_softplus), "l": ((heads,), log_rates)}
    cell = memory(spec, (heads, width, hidden // heads), inputs, joined)
    return reads(cell, features, "2 M D + H + 2 N")


@constructor
def kimi_delta(
    hidden: int,
    *,
    heads: int = 4,
    key: int | None = None,
    rank: int | None = None,
    negative: bool = False,
) -> Cell:
    """Kimi delta attention, KDA (Kimi Team 2025, arXiv:2510.26692).

        q, k = unit(silu(W x)), for each head     v = silu(V x)     beta = sigmoid(U x)
        log w = -exp(l) softplus(G_2 G_1 x + c)   for each key
        S = (I - beta k k') diag(w) S + beta k v'      y = S' q / sqrt(D)

    ``unit(z)`` is z / sqrt(|z|^2 + 1e-6). The convolutions, the norm and the gate of the paper's
    layer are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      rank: R, of the product that makes w; None for E.
      negative: beta is between 0 and 2: see ``jaxrnn.delta_net``.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], ``v`` [I, H],
      ``u`` [I, N], ``g1`` [I, R], ``g2`` [R, N D], ``c`` [N D] and ``l`` [N]; c and l begin as in
      the authors' code.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.kimi_delta(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    rank = hidden // heads if rank is None else checks.size("rank", rank)

    def inputs(params, x):
        q, k, v = activated("kimi_delta", *projected(params, x, heads))
        beta = tag("kimi_delta.beta", _most(negative) * sigmoid(affine(x, params["u"])))
        rate = by_head(affine(affine(x, params["g1"]), params["g2"]), heads)
        by_key = {"c": by_head(params["c"], heads), "l": params["l"][:, None]}
        log_w = tag("kimi_delta.log_w", decay(by_key, rate))
        return written(q, k, v, log_w, beta)

    spec = queries_keys_values(hidden, heads, width) | {
        "u": ((param_spec.INPUTS, heads), param_spec.input_init),
        "g1": ((param_spec.INPUTS, rank), param_spec.input_init),
        "g2": ((rank, heads * width), param_spec.input_init),
        "c": ((heads * width,), inverse_softplus),
        "l": ((heads,), log_rates),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, joined)


@constructor
def delta_product(hidden: int, *, heads: int = 4, key: int | None = None, writes: int = 2) -> Cell:
    """DeltaProduct (Siems et al. 2025, arXiv:2502.10297).

        q, k = unit(silu(W x)), for each head     v = silu(V x)     beta = 2 sigmoid(U x)
        S = (I - beta k k') S + beta k v'         M times, each with its own k, v and beta
        y = S' q / sqrt(D)

    A product of M reflections is any orthogonal matrix that leaves all but M directions alone, so
    a step can permute M + 1 things. ``unit(z)`` is z / sqrt(|z|^2 + 1e-6). The convolutions, the
    norm and the gates of the paper's layer are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      writes: M, how often a step writes.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``q`` [I, N D], ``k`` [I, M, N D],
      ``v`` [I, M, H] and ``u`` [I, M, N].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.delta_product(hidden=8, heads=2, writes=3)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    writes = checks.size("writes", writes)

    def inputs(params, x):
        projections = (by_head(affine(x, params[name]), heads) for name in "qkv")
        q, k, v = activated("delta_product", *projections)
        q = jnp.broadcast_to(q[..., None, :, :], k.shape)
        beta = tag("delta_product.beta", 2 * sigmoid(affine(x, params["u"])))
        taken = written(q, k, v, None, beta)
        return taken if writes > 1 else tuple(a if a is None else a[..., 0, :, :] for a in taken)

    spec = {
        "q": ((param_spec.INPUTS, heads * width), param_spec.input_init),
        "k": ((param_spec.INPUTS, writes, heads * width), param_spec.input_init),
        "v": ((param_spec.INPUTS, writes, hidden), param_spec.input_init),
        "u": ((param_spec.INPUTS, writes, heads), param_spec.input_init),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, joined, writes=writes)


def activated(cell, q, k, v):
    """Queries, keys and values of the delta rule, with the tags of a cell of this name."""
    q, k, v = tag_all(cell, q=unit(silu(q)), k=unit(silu(k)), v=silu(v))
    return q / q.shape[-1] ** 0.5, k, v


def written(q, k, v, log_w, beta):
    """What the memory takes to decay, and to put v in the place of a part of what is at k."""
    beta = beta[..., None]
    b = k if log_w is None else k * jnp.exp(log_w)
    return q, beta * k, v, log_w, None, b


def _most(negative):
    return 2 if negative else 1
