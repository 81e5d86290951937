"""ONNX's operator LinearAttention as a cell."""

import dataclasses
import itertools
from typing import Any, Literal

import jax.numpy as jnp

from jaxrnn._src.builders.memory import by_head, joined, memory
from jaxrnn._src.cells.delta_net import written
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor

RULES = ("linear", "gated", "delta", "gated_delta")


@constructor
def onnx_linear_attention(
    hidden: int,
    *,
    rule: Literal["linear", "gated", "delta", "gated_delta"] = "gated_delta",
    heads: int = 4,
    kv_heads: int | None = None,
    key: int | None = None,
    decay_by_key: bool = False,
    shared_beta: bool = False,
    scale: float | None = None,
) -> Cell:
    """ONNX's LinearAttention, of opset 27.

        q, k, v, g, b = x
        S = exp(g) S + k v'                          by the rules "linear", without g, and "gated"
        S = (I - b k k') exp(g) S + b k v'           by "delta", without g, and "gated_delta"
        y = scale S' q

    Args:
      hidden: H, the size of the output: N heads of width E.
      rule: the operator's ``update_rule``.
      heads: N, heads of queries, a divisor of ``hidden``.
      kv_heads: M, heads of keys and values, a divisor of N; None for N.
      key: D, the width of a head's q and k; None for E.
      decay_by_key: whether g, which decays S as a logarithm, has a number for each key, [M, D]; or
        one for each head, [M].
      shared_beta: whether b has one number for all heads; or one for each, [M].
      scale: what multiplies y; None for 1 / sqrt(D).

    Returns:
      A ``Cell`` without parameters. Its input is q [N D], k [M D], v [M E], and g and b where the
      rule has them, side by side. State ``(S,)``, float32 [..., N, D, E], that of a head of
      keys once for each of its heads of queries.

    Raises:
      ValueError: an unknown ``rule``; a number of heads that does not divide another; a decay or
        a beta that the rule has not; a ``scale`` of 0; in ``init``, an input of another size.

    >>> from jaxrnn.interop.onnx import onnx_linear_attention
    >>> cell = onnx_linear_attention(8, rule="gated", heads=4, kv_heads=2, key=3)
    >>> params = cell.init(jax.random.key(0), 4 * 3 + 2 * 3 + 2 * 2 + 2)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((5, 24)))
    >>> ys.shape, S.shape
    ((5, 8), (4, 3, 2))
    """
    hidden, heads = checks.heads(hidden, heads)
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, want one of {RULES}")
    kv_heads = heads if kv_heads is None else checks.size("kv_heads", kv_heads)
    if heads % kv_heads:
        raise ValueError(f"kv_heads: got {kv_heads}, want a divisor of heads={heads}")
    value = hidden // heads
    key = value if key is None else checks.size("key", key)
    gated, delta = _has(rule)
    if decay_by_key and not gated:
        raise ValueError(f"decay_by_key: got True, want False: the rule {rule!r} has no decay")
    if shared_beta and not delta:
        raise ValueError(f"shared_beta: got True, want False: the rule {rule!r} has no beta")
    factor = key**-0.5 if scale is None else checks.number("scale", scale)
    if factor == 0:
        raise ValueError("scale: got 0, want another number: to the operator it is none")
    sizes = _sizes(rule, heads, kv_heads, key, value, decay_by_key, shared_beta)
    features = sum(sizes.values())
    ends = [*itertools.accumulate(sizes.values())][:-1]

    def shared(a):
        return jnp.repeat(a, heads // kv_heads, -2)

    def inputs(params, x):
        del params
        checks.check_features(x, features)
        given = dict(zip(sizes, jnp.split(x.astype(jnp.float32), ends, -1)))
        k, v = (shared(by_head(given[name], kv_heads)) for name in "kv")
        q = by_head(given["q"], heads) * factor
        log_w = shared(by_head(given["g"], kv_heads)) if gated else None
        if not delta:
            return q, k, v, log_w, None, None
        beta = jnp.broadcast_to(given["b"], (*x.shape[:-1], kv_heads))
        return written(q, k, v, log_w, shared(beta[..., None])[..., 0])

    def init(key, in_size):
        checks.check_key(key)
        if in_size != features:
            want = f"{features}, of {' + '.join(f'{n} {size}' for n, size in sizes.items())}"
            raise ValueError(f"in_size: got {checks.described(in_size)}, want {want}")
        return {}

    cell = memory({}, (heads, key, value), inputs, joined)
    return dataclasses.replace(cell, init=init)


def attention_sizes(options: dict[str, Any]) -> dict[str, int]:
    """The parts of the input of a cell with these options, by name, in their order."""
    heads, value = options["heads"], options["hidden"] // options["heads"]
    kv_heads, key = options["kv_heads"] or heads, options["key"] or value
    last = options["decay_by_key"], options["shared_beta"]
    return _sizes(options["rule"], heads, kv_heads, key, value, *last)


def _sizes(rule, heads, kv_heads, key, value, decay_by_key, shared_beta):
    gated, delta = _has(rule)
    sizes = {"q": heads * key, "k": kv_heads * key, "v": kv_heads * value}
    sizes |= {"g": kv_heads * key if decay_by_key else kv_heads} if gated else {}
    return sizes | ({"b": 1 if shared_beta else kv_heads} if delta else {})


def _has(rule):
    """Whether a rule has a decay, and whether it has a beta."""
    return rule in ("gated", "gated_delta"), rule in ("delta", "gated_delta")
