"""The linear recurrence h_t = a_t h_{t-1} + b_t as JAX's own scans run it, and in jaxrnn.

Functions of the factors, [T, B, D] or [D], and of what is added, [T, B, D]. In bfloat16 JAX's
scans carry bfloat16; jaxrnn carries float32.
"""

import jax
import jax.numpy as jnp

import jaxrnn


def ours(a, b, implementation=None):
    return jaxrnn.linear_scan(a, b, implementation=implementation)[1]


def scan(a, b):
    """Step by step, with JAX's own derivative."""
    zero = jnp.zeros_like(b[0])
    if a.ndim == 1:
        return _scan(lambda h, b: a * h + b, zero, b)
    return _scan(lambda h, x: x[0] * h + x[1], zero, (a, b))


def _scan(step, h, xs):
    def both(h, x):
        h = step(h, x)
        return h, h

    return jax.lax.scan(both, h, xs)[1]


def associative(a, b):
    """Pairs of steps, and pairs of these."""

    def combine(first, second):
        (a, h), (next_a, b) = first, second
        return next_a * a, next_a * h + b

    return jax.lax.associative_scan(combine, (jnp.broadcast_to(a, b.shape), b))[1]


PEERS = {"associative": associative, "scan": scan}
