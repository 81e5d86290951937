"""Cells in modules: batch before time, as Flax has it, and one type for all products."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, unroll
from jaxrnn._src.core.typing import Array, InputArray, Params, State

LAYOUT = "[...batch, T, I]"


def run(
    cell: Cell,
    params: Params,
    xs: InputArray,
    state: State | None,
    *,
    dtype: DTypeLike | None,
    seq_lengths: InputArray | Sequence[int] | None,
    mask: InputArray | None,
    starts: InputArray | None,
    **options: Any,
) -> tuple[State, Array]:
    """``jaxrnn.unroll`` of xs [...batch, T, I], mask and starts [...batch, T].

    Parameters and inputs are cast to ``dtype``, unless it is None.
    """
    checks.check_inputs(xs, LAYOUT)
    params, xs = cast(dtype, params_tree.dicts(params), xs)
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            checks.check_flags(name, flags, xs.shape[:-1], "[...batch, T]")
    xs = jnp.moveaxis(xs, -2, 0)
    mask, starts = (a if a is None else jnp.moveaxis(a, -1, 0) for a in (mask, starts))
    mask = checks.combined_mask(xs, seq_lengths, mask, "seq_lengths")
    state, ys = unroll(cell, params, xs, state, mask=mask, starts=starts, **options)
    return state, jnp.moveaxis(ys, 0, -2)


def cast(dtype, *trees):
    """The arrays of some trees in ``dtype``, unless it is None."""
    if dtype is None:
        return trees
    return jax.tree.map(lambda a: a.astype(dtype), trees)
