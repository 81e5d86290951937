"""The memories of RWKV, versions 6 and 7."""

import math

import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.memory import (
    by_head,
    joined,
    keys,
    memory,
    projected,
    queries_keys_values,
    spread,
    unit,
)
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag, tag_all

_FASTEST = math.exp(-0.5)  # of RWKV-7's decays, a step: w is above 0.545


@constructor
def rwkv6(hidden: int, *, heads: int = 4, key: int | None = None, rank: int = 16) -> Cell:
    """The memory of RWKV-6, Finch (Peng et al. 2024, arXiv:2404.05892).

        r, k = W x, for each head                 v = V x
        log w = -exp(c + W_2 tanh(W_1 x))         for each key
        y = (S + diag(u) k v')' r                 S = diag(w) S + k v'

    The token shift, the norm and the gate of the paper's time mixing are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      rank: R, of the product that makes w.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], those of r and k,
      ``v`` [I, H], ``w1`` [I, R], ``w2`` [R, N D], ``c`` [N D], which begins from -6 to -1, and
      ``u`` [N, D].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.rwkv6(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    rank = checks.size("rank", rank)

    def inputs(params, x):
        r, k, v = projected(params, x, heads)
        r, k, v = tag_all("rwkv6", r=r, k=k, v=v)
        rate = affine(tanh(affine(x, params["w1"])), params["w2"], params["c"])
        log_w = tag("rwkv6.log_w", -jnp.exp(by_head(rate, heads)))
        return r, k, v, log_w, None, None

    def outputs(params, x, taken, y):
        r, k, v, *_ = taken
        bonus = (r * spread(params["u"], k) * k).sum(-1, keepdims=True)
        return joined(params, x, taken, y + bonus * v)

    spec = queries_keys_values(hidden, heads, width) | {
        "w1": ((param_spec.INPUTS, rank), param_spec.input_init),
        "w2": ((rank, heads * width), param_spec.input_init),
        "c": ((heads * width,), _from_slow_to_fast),
        "u": ((heads, width), param_spec.zeros),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, outputs, before=True)


@constructor
def rwkv7(hidden: int, *, heads: int = 4, key: int | None = None, rank: int = 16) -> Cell:
    """The memory of RWKV-7, Goose (Peng et al. 2025, arXiv:2503.14456).

        r, k = W x, for each head                 v = V x
        log w = -exp(-1/2) sigmoid(c_w + W_2 tanh(W_1 x))      for each key
        a = sigmoid(c_a + A_2 A_1 x)              z = unit(k * xi)
        p = k * (1 + (a - 1) * alpha)
        S = (diag(w) - (a * z) z') S + p v'       y = S' r + (r' (rho * p)) v

    ``unit(z)`` is z / sqrt(|z|^2 + 1e-6). The token shift, the norm, the gate and the first
    layer's values of the paper's time mixing are not of this cell. There the norm is of S' r
    alone, and what rho is in is added after it: for that model, let rho be zero and add it.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's keys; None for that of its values, E = H / N.
      rank: R, of the products that make w and a.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E]. Parameters ``qk`` [I, 2, N D], those of r and k,
      ``v`` [I, H], ``wa1`` [I, 2, R], ``w2`` and ``a2`` [R, N D], ``c`` [2, N D], those of w and
      a, and ``xi``, ``alpha`` and ``rho`` [N, D].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.rwkv7(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 4, 4))
    """
    hidden, heads, width = keys(hidden, heads, key)
    rank = checks.size("rank", rank)

    def inputs(params, x):
        r, k, v = projected(params, x, heads)
        r, k, v = tag_all("rwkv7", r=r, k=k, v=v)
        low = affine(x, params["wa1"])
        rate = affine(tanh(low[..., 0, :]), params["w2"], params["c"][0])
        log_w = tag("rwkv7.log_w", -_FASTEST * sigmoid(by_head(rate, heads)))
        a = sigmoid(by_head(affine(low[..., 1, :], params["a2"], params["c"][1]), heads))
        a = tag("rwkv7.a", a)
        z = tag("rwkv7.z", unit(k * spread(params["xi"], k)))
        p = tag("rwkv7.p", k * (1 + (a - 1) * spread(params["alpha"], k)))
        return r, p, v, log_w, -a * z, z

    def outputs(params, x, taken, y):
        r, p, v, *_ = taken
        bonus = (r * spread(params["rho"], p) * p).sum(-1, keepdims=True)
        return joined(params, x, taken, y + bonus * v)

    spec = queries_keys_values(hidden, heads, width) | {
        "wa1": ((param_spec.INPUTS, 2, rank), param_spec.input_init),
        "w2": ((rank, heads * width), param_spec.input_init),
        "a2": ((rank, heads * width), param_spec.input_init),
        "c": ((2, heads * width), param_spec.zeros),
        "xi": ((heads, width), param_spec.ones),
        "alpha": ((heads, width), param_spec.ones),
        "rho": ((heads, width), param_spec.zeros),
    }
    return memory(spec, (heads, width, hidden // heads), inputs, outputs)


def _from_slow_to_fast(key, shape, dtype):
    del key
    return jnp.linspace(-6, -1, *shape, dtype=dtype)
