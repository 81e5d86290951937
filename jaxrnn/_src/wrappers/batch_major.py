"""Cells in modules: batch before time, as Flax has it, and one type for all products."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrnn._src.core import checks, inputs, memory_order, params_tree
from jaxrnn._src.core.cell import Cell, unroll
from jaxrnn._src.core.typing import InputArray, Inputs, Outputs, Params, State

LAYOUT = "[...batch, T, I]"


def run(
    cell: Cell,
    params: Params,
    xs: Inputs,
    *,
    dtype: DTypeLike | None,
    state: State | None,
    initial_state: State | None,
    lengths: InputArray | Sequence[int] | None,
    seq_lengths: InputArray | Sequence[int] | None,
    mask: InputArray | None,
    starts: InputArray | None,
    segment_ids: InputArray | None,
    time_major: bool,
    return_states: bool = False,
    **options: Any,
) -> tuple[State, Outputs]:
    """``jaxrnn.unroll`` of xs [...batch, T, I], mask, starts and segment_ids [...batch, T].

    Parameters and inputs are cast to ``dtype``, unless it is None. ``initial_state`` and
    ``seq_lengths`` are Flax's names of ``state`` and ``lengths``. If ``time_major``, all arrays
    are as for ``jaxrnn.unroll``. With ``return_states``, ys are ``(ys, states)``.
    """
    _, state = _either(state=state, initial_state=initial_state)
    name, lengths = _either(lengths=lengths, seq_lengths=seq_lengths)
    checks.check_bool("time_major", time_major)
    check_inputs(xs, time_major)
    params, xs = cast(dtype, params_tree.dicts(params), xs)
    if not time_major:
        for flags in (("mask", mask), ("starts", starts)):
            if flags[1] is not None:
                checks.check_flags(*flags, inputs.leading(xs), "[...batch, T]")
        if segment_ids is not None:
            checks.check_segment_ids(segment_ids, inputs.leading(xs), "[...batch, T]")
        time = len(inputs.leading(xs)) - 1
        xs = jax.tree.map(lambda a: jnp.moveaxis(a, time, 0), xs)
        time_first = lambda a: None if a is None else jnp.moveaxis(a, -1, 0)
        mask, starts, segment_ids = map(time_first, (mask, starts, segment_ids))
    mask = checks.combined_mask(xs, lengths, mask, name)
    options |= {"mask": mask, "starts": starts, "segment_ids": segment_ids}
    options |= {"return_states": return_states}
    with memory_order.batch_first(not time_major):
        state, ys = unroll(cell, params, xs, state, **options)
    return state, ys if time_major else jax.tree.map(lambda a: jnp.moveaxis(a, 0, time), ys)


def check_inputs(xs, time_major):
    """xs have time and features at least."""
    checks.check_all_inputs(xs, "[T, ...batch, I]" if time_major else LAYOUT)


def _either(**values):
    """The name and the value of an argument that has two names."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        ours, flax = values
        raise ValueError(f"{flax}: got it and {ours}, want one: they are the same")
    return next(iter(given.items()), (next(iter(values)), None))


def cast(dtype, *trees):
    """The floating arrays of some trees in ``dtype``, unless it is None."""
    if dtype is None:
        return trees
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: a.astype(dtype) if floating(a) else a, trees)
