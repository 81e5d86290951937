"""Attention whose heads share keys and values, with what language models add to it."""

import functools

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn._src.cells.attention import attending, glorot, product
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.layer_norm import normalised
from jaxrnn._src.core.rotary import BASE, rotated
from jaxrnn._src.core.tags import tag, tag_all


@constructor
def grouped_attention(
    hidden: int,
    *,
    heads: int = 4,
    kv_heads: int = 1,
    width: int | None = None,
    rotary: int | None = None,
    base: float = BASE,
    norm: float | None = None,
    gate: bool = False,
    bias: bool = False,
    window: int | None = None,
    context: int = 1024,
) -> Cell:
    """Attention with heads that share keys and values (Ainslie et al. 2023, arXiv:2305.13245).

        q, k, v = W x        y_t = W_out (g_t sum_s softmax_s(q_t k_s / sqrt(D)) v_s) + b

    It is ``jaxrnn.attention`` as language models have it. N heads of queries share M heads of keys
    and values: head n sees those of n M / N, rounded down. What else they have is an option:
    rotary positions of a part of each head, a root mean square norm of each head's queries and
    keys, before they are rotated; a gate g_t = sigmoid(G x_t) of each feature; and b.

    Args:
      hidden: O, the size of the output.
      heads: N, heads of queries.
      kv_heads: M, heads of keys and values, a divisor of ``heads``: 1 is multi-query attention
        (Shazeer 2019, arXiv:1911.02150).
      width: D, of a head; None for O / N.
      rotary: R, how many features of a head are rotated, the first; None for all of them.
      base: of the angles, whose d-th turns by ``base^(-2 d / R)`` at each step.
      norm: the epsilon of the norm of queries and keys; None for no norm.
      gate: whether there is one.
      bias: whether there is b.
      window, context: see ``attention``.

    Returns:
      A ``Cell``. State ``(k, v, count)`` as that of ``attention``, keys and values [..., S, M, D].
      Parameters ``q`` [I, N, D], ``kv`` [I, 2, M, D] and ``out`` [N, D, O]; ``qs`` and ``ks`` [D]
      with a norm, by which its results are multiplied; ``g`` [I, N, D] and ``b`` [O].

    Raises:
      ValueError: ``kv_heads`` does not divide ``heads``; ``heads`` not ``hidden``, without a
        ``width``; ``rotary`` is odd or above D; more steps than ``context``.

    >>> cell = jaxrnn.grouped_attention(8, heads=4, kv_heads=2, width=6, rotary=2, window=16)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (k, v, count), ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))
    >>> ys.shape, k.shape, count
    ((5, 2, 8), (2, 16, 2, 6), Array([5, 5], dtype=int32))
    """
    hidden, heads = checks.size("hidden", hidden), checks.size("heads", heads)
    width = checks.heads(hidden, heads)[0] // heads if width is None else width
    width, kv_heads = checks.size("width", width), checks.size("kv_heads", kv_heads)
    if heads % kv_heads:
        raise ValueError(f"kv_heads: got {kv_heads}, want a divisor of heads={heads}")
    if rotary is not None and (checks.size("rotary", rotary) > width or rotary % 2):
        raise ValueError(f"rotary: got {rotary}, want an even number up to D = {width}")
    base = checks.number("base", base, above=0)
    checks.check_bool("gate", gate)
    checks.check_bool("bias", bias)
    epsilon = None if norm is None else checks.number("norm", norm, above=0)

    def shapes(in_size):
        found = {"q": (in_size, heads, width), "kv": (in_size, 2, kv_heads, width)}
        found["out"] = (heads, width, hidden)
        if epsilon is not None:
            found |= {"qs": (width,), "ks": (width,)}
        if gate:
            found["g"] = (in_size, heads, width)
        return found | ({"b": (hidden,)} if bias else {})

    def init(key, in_size):
        checks.check_key(key)
        want = shapes(checks.size("in_size", in_size))
        keys = dict(zip((*want, "k", "v"), jax.random.split(key, len(want) + 2)))
        params = {name: jnp.ones(want[name]) for name in ("qs", "ks") if name in want}
        params |= {name: glorot(keys[name], want[name]) for name in ("q", "g") if name in want}
        k, v = (glorot(keys[name], (in_size, kv_heads, width)) for name in "kv")
        params |= {"kv": jnp.stack([k, v], 1), "out": glorot(keys["out"], want["out"], 2)}
        return params | ({"b": jnp.zeros(hidden)} if bias else {})

    def check(params, x):
        checks.check_params(params, shapes(x.shape[-1]), "q", x)

    def project(params, x):
        q = product(x, params["q"], 1, params)
        k, v = (product(x, params["kv"][:, i], 1, params) for i in range(2))
        if epsilon is not None:
            norm_of = functools.partial(normalised, epsilon=epsilon, centered=False)
            q, k = norm_of(q, params["qs"]), norm_of(k, params["ks"])
        return tag_all("grouped_attention", q=q, k=k, v=v)

    def output(params, x, y):
        if gate:
            g = tag("grouped_attention.g", sigmoid(product(x, params["g"], 1, params)))
            y = (y.astype(g.dtype) * g).astype(y.dtype)
        y = product(y, params["out"], 2, params)
        return y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape) if bias else y

    sizes = heads, kv_heads, width
    turn = functools.partial(rotated, width=rotary, base=base)
    return attending(init, check, project, output, sizes, window, context, turn)
