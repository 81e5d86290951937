"""Step by step, for a CPU: a chunk and its gradient as loops over its steps."""

import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.delta_rule import reference
from jaxrnn._src.ops.delta_rule.reference import outer, read


def chunk(before, target, memory, taken, starts):
    """As ``chunked.chunk``."""
    del target

    def step(S, x):
        taken, start = x
        return reference.step(before, _cut(start, S), taken)

    return lax.scan(step, memory, (taken, starts))


def pulled(before, target, memory, taken, starts, d_memory, d_ys):
    """As ``chunked.pulled``, with a decay for each key.

    One loop runs the chunk again and keeps what each step finds, the other goes back. The gradient
    of q depends on nothing later, so the first loop makes it.
    """
    del target

    def again(S, x):
        taken, start, d_y = x
        found = _cut(start, S)
        new, _ = reference.step(before, found, taken)
        b = taken[5]
        r = None if b is None else read(found, b)
        return new, (found, r, _times(found if before else new, d_y))

    _, (found, r, d_q) = lax.scan(again, memory, (taken, starts, d_ys))

    def back(d, x):
        (q, k, v, log_w, a, b), start, d_y, S, r = x
        if not before:
            d = d + outer(q, d_y)
        written = v - r if a is None and b is not None else v
        d_k, d_v = _times(d, written), read(d, k)
        w = jnp.exp(log_w)
        d_log_w = w * _times(S * d, jnp.ones_like(v))  # a matmul, which XLA does faster than a sum
        new = w[..., None] * d
        d_a = d_b = None
        if b is not None:
            u = -d_v if a is None else read(d, a)
            d_a = None if a is None else _times(d, r)
            d_b = _times(S, u)
            new = new + outer(b, u)
        if before:
            new = new + outer(q, d_y)
        return _cut(start, new), (d_k, d_v, d_log_w, d_a, d_b)

    steps = taken, starts, d_ys, found, r
    d_memory, gradients = lax.scan(back, d_memory, steps, reverse=True)
    return d_memory, (d_q, *gradients)


def _cut(start, S):
    return S if start is None else select(~start, S, 0)


def _times(memory, value):
    return jnp.einsum("...de,...e->...d", memory, value)
