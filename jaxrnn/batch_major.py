"""Cells in modules: batch before time, as Flax has it, and one type for all products."""

import jax
import jax.numpy as jnp

from jaxrnn import arguments
from jaxrnn.cell import unroll


def run(cell, params, xs, state, *, dtype, seq_lengths, mask, starts, **options):
    """``jaxrnn.unroll`` of xs [...batch, T, I], mask and starts [...batch, T].

    Parameters and inputs are cast to ``dtype``, unless it is None.
    """
    params, xs = cast(dtype, params, xs)
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            arguments.check_flags(name, flags, xs.shape[:-1], "[...batch, T]")
    xs = time_first(xs, -2)
    mask, starts = (a if a is None else time_first(a, -1) for a in (mask, starts))
    state, ys = unroll(
        cell, params, xs, state, lengths=seq_lengths, mask=mask, starts=starts, **options
    )  # fmt: skip
    return state, jnp.moveaxis(ys, 0, -2)


def cast(dtype, *trees):
    """The arrays of some trees in ``dtype``, unless it is None."""
    if dtype is None:
        return trees
    return jax.tree.map(lambda a: a.astype(dtype), trees)


def time_first(array, axis):
    if getattr(array, "ndim", 0) < -axis:
        return array  # too few axes: the law's own check says so
    return jnp.moveaxis(array, axis, 0)
