"""Cutting an axis into blocks, and which of them a block of queries needs."""

import jax.numpy as jnp

from jaxrnn._src.core.typing import Array


def block_size(most, length):
    """``most``, or less for a shorter axis; the length may be symbolic (``jax.export``)."""
    return min(most, length) if isinstance(length, int) else most


def blocks(a: Array, size: int, axis: int, fill: complex = 0) -> Array:
    """Axis ``axis`` (negative) in blocks of ``size``, the last filled up: [n, ..., size, ...]."""
    axis += a.ndim
    count = -(-a.shape[axis] // size)
    pad = [(0, 0)] * a.ndim
    pad[axis] = (0, count * size - a.shape[axis])
    a = jnp.pad(a, pad, constant_values=fill)
    shape = (*a.shape[:axis], count, size, *a.shape[axis + 1 :])
    return jnp.moveaxis(a.reshape(shape), axis, 0)


def joined(a, axis, length):
    """The inverse of ``blocks``: the first ``length`` along ``axis`` (negative)."""
    axis += a.ndim - 1
    a = jnp.moveaxis(a, 0, axis)
    count, size = a.shape[axis : axis + 2]
    a = a.reshape(*a.shape[:axis], count * size, *a.shape[axis + 2 :])
    return a[(slice(None),) * axis + (slice(length),)]


def heads_first(a):
    """[B, T, N, D] -> [B, N, T, D], and back."""
    return jnp.swapaxes(a, -2, -3)


def needed(problem, block, size, count):
    """The range of key blocks that query block ``block`` can see anything of."""
    if not problem.plain:
        return 0, count
    first = 0
    if problem.window is not None:
        first = jnp.maximum(block * size - (problem.window - 1), 0) // size
    return first, block + 1
