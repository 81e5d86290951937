"""The linear recurrence whose factors are small matrices, for all stretches of time at once.

    z_t = A_t z_{t-1} + b_t

Chunks of steps run side by side: what each does to the state before it is one step of a shorter
recurrence (Blelloch 1990, "Prefix sums and their applications"), which is run in the same way.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.ops.linear_scan import linear_scan

Array = jax.Array

# Steps of a chunk. A chunk's matrices are multiplied in turn, so the steps that follow each other
# are about 2 * 16 for each level, of which 10,000 steps have three; smaller chunks have more
# levels, and larger ones more steps.
_CHUNK = 16


def affine_scan(A: Array, b: Array, z: Array) -> Array:
    """The states after each step, [T, ..., M].

    Args:
      A: [T, ..., M, M].
      b: [T, ..., M].
      z: the state before the first step, [..., M].
    """
    if A.shape[-1] == 1:
        return linear_scan(A[..., 0, 0], b[..., 0], z[..., 0])[1][..., None]
    steps = b.shape[0]
    count = steps // _CHUNK
    if count < 2:
        return lax.scan(_step, z, (A, b))[1]
    whole = count * _CHUNK
    # Time within a chunk leads, then the chunks.
    cut = lambda a: jnp.swapaxes(a[:whole].reshape(count, _CHUNK, *a.shape[1:]), 0, 1)
    chunks = cut(A), cut(b)
    one = jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), chunks[0].shape[1:])
    (product, end), _ = lax.scan(_ends, (one, jnp.zeros_like(chunks[1][0])), chunks)
    ends = affine_scan(product, end, z)
    before = jnp.concatenate([z[None], ends[:-1]])
    zs = jnp.swapaxes(lax.scan(_step, before, chunks)[1], 0, 1).reshape(whole, *b.shape[1:])
    if whole == steps:
        return zs
    return jnp.concatenate([zs, lax.scan(_step, ends[-1], (A[whole:], b[whole:]))[1]])


def affine_scan_tangent(A: Array, b: Array, z: Array) -> Array:
    """The same as a linear function of b and z, which JAX can transpose."""
    if A.shape[-1] > 1:
        return affine_scan(A, b, z)
    run = lambda b, z: affine_scan(A, b, z)
    zeros = jax.tree.map(jnp.zeros_like, (b, z))
    return jax.jvp(run, zeros, (b, z))[1]


def times(A: Array, z: Array) -> Array:
    """[..., M, M] times [..., M]."""
    return jnp.matmul(A, z[..., None], precision=lax.Precision.HIGHEST)[..., 0]


def _step(z, factors):
    A, b = factors
    z = times(A, z) + b
    return z, z


def _ends(both, factors):
    (product, end), (A, b) = both, factors
    product = jnp.matmul(A, product, precision=lax.Precision.HIGHEST)
    return (product, times(A, end) + b), None
