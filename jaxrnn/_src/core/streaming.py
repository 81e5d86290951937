"""A long sequence a piece at a time, where what is made of its inputs would be large.

Before its loop a cell makes of all inputs what they alone decide, which is larger than they are.
Where no gradient is taken, nobody needs more than a piece of it at a time. A gradient needs all of
it: then there are no pieces.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn._src.core import dispatch, inputs, time_division
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import varying

_MOST = 64 << 20  # bytes that are made of all steps at once
_PIECE = 16 << 20  # bytes that are made of a piece, where all would be more
_STEPS = 64  # of a piece at least: beginning one costs as much as some steps


def size(steps, made):
    """How many steps a piece has, if ``made`` bytes are made of a step; None for all of them.

    Sizes may be symbolic: then there is one piece.
    """
    if not isinstance(steps, int) or not isinstance(made, int) or steps * made <= _MOST:
        return None
    most = max(_PIECE // made, _STEPS)
    if steps < 2 * most:
        return None
    whole = (n for n in range(most, most // 2, -1) if steps % n == 0)
    return next(whole, most)


def run(some, state, timed, size, *, reverse):
    """Runs ``some(state, part) -> (state, ys)`` over the parts of ``timed``.

    Args:
      some: the steps of a part.
      state: tree of arrays.
      timed: tree of [T, ...] arrays; a part has ``size`` steps of each, or those left over.
      size: of a part.
      reverse: from the last part to the first.

    Returns:
      ``(state, ys)``, ys of all steps.
    """
    steps = jax.tree.leaves(timed)[0].shape[0]
    count, rest = divmod(steps, size)
    state, timed = varying((state, timed))

    def part(state, first, steps):
        # Read in place: arrays in the shape of parts would be copies, if some steps are left over.
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=steps)
        return some(state, jax.tree.map(cut, timed))

    def several(state, first):
        state, ys = lax.scan(
            lambda state, k: part(state, first + k * size, size),
            state,
            jnp.arange(count, dtype=jnp.int32),
            reverse=reverse,
        )
        return state, jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:]), ys)

    if not rest:
        return several(state, 0)
    if reverse:
        state, after = several(state, rest)
        state, before = part(state, 0, rest)
    else:
        state, before = several(state, 0)
        state, after = part(state, count * size, rest)
    return state, jax.tree.map(lambda *both: jnp.concatenate(both), before, after)


def streamed(unroll, initial_state, made):
    """A cell's ``unroll`` that runs a long sequence a piece at a time, where it takes no gradient.

    Args:
      unroll: a ``Cell``'s, for which two halves with the state carried are one run.
      initial_state: the same cell's.
      made: ``(params, xs) -> tree``, what it makes of xs before it goes through time, and has all
        of at once; None if it can't go a piece at a time.

    Returns:
      The same, with the attribute ``made``.
    """

    def some(static, fixed, state, timed):
        (params, key, initial), (xs, mask, starts) = fixed, timed
        flip = lambda tree: jax.tree.map(lambda a: a[::-1], tree) if static.turned else tree
        xs, mask, starts = flip((xs, mask, starts))
        reverse = static.reverse and not static.turned
        options = Options(mask, starts, reverse, key, static.implementation)
        every = {"every": True} if static.every else {}
        state, ys = unroll(params, state, xs, options, **initial, **every)
        return state, flip(ys)

    @functools.wraps(unroll)
    def pieces(params, state, xs, options, **initial):
        given, every = initial, initial.get("every", False)
        initial = {name: value for name, value in given.items() if name != "every"}
        whole = dispatch.is_recording() or time_division.axis() is not None
        whole |= options.implementation == dispatch.NEWTON  # of which all steps are one unknown
        steps = None if whole else _size(bytes_made, params, xs)
        if steps is None:
            return unroll(params, state, xs, options, **given)
        if state is None:
            state = initial.get("initial")
        if state is None:
            state = initial_state(params, inputs.leading(xs)[1:])
        # A start is met on the way from a step to the one before, maybe in another piece.
        # So a piece is turned round, with the starts as they come in the order of processing.
        turned = options.reverse and options.starts is not None
        starts = resets(options.starts, options.mask, options.reverse)
        static = _Static(options.reverse, turned, options.implementation, every)
        given = (params, options.key, initial), state, (xs, options.mask, starts)
        if _closes_over_traced(functools.partial(some, static), steps, *given):
            return some(static, *given)
        return in_pieces(static, steps, *given)

    # Both live as long as the cell. What is jitted compiles once, for calls outside of it too.
    in_pieces = jax.jit(functools.partial(_in_pieces, some), static_argnums=(0, 1), inline=True)
    bytes_made = functools.lru_cache(64)(functools.partial(_bytes, made))
    vars(pieces)["made"] = made
    return pieces


class _Static(NamedTuple):
    """What the pieces of a run have in common, beside arrays."""

    reverse: bool
    turned: bool  # the steps of a piece run from the first to the last, in reverse order
    implementation: str | None
    every: bool  # whether ys are (ys, states)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _in_pieces(some, static, size, fixed, state, timed):
    one = functools.partial(some, static, fixed)
    return run(one, state, timed, size, reverse=static.reverse)


def _at_once(some, static, size, primals, tangents):
    """The derivative: of all steps as one piece."""
    del size
    arrays, tree = jax.tree.flatten(primals)
    tangents = [None if type(t) is SymbolicZero else t for t in jax.tree.leaves(tangents)]

    def function(*moving):
        moving = iter(moving)
        given = [a if t is None else next(moving) for a, t in zip(arrays, tangents, strict=True)]
        return some(static, *tree.unflatten(given))

    primals = tuple(a for a, t in zip(arrays, tangents, strict=True) if t is not None)
    return jax.jvp(function, primals, tuple(t for t in tangents if t is not None))


_in_pieces.defjvp(_at_once, symbolic_zeros=True)


def _closes_over_traced(some, size, fixed, state, timed):
    """Whether pieces see traced arrays they are not given: JAX refuses to differentiate those."""

    def first(fixed, state, timed):
        return some(fixed, state, jax.tree.map(lambda a: a[:size], timed))

    consts = jax.make_jaxpr(first)(fixed, state, timed).consts
    return any(isinstance(const, jax.core.Tracer) for const in consts)


def _size(bytes_made, params, xs):
    steps = inputs.leading(xs)[0]
    if not isinstance(steps, int) or steps < 2 * _STEPS:
        return None
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), xs)
    leaves, tree = jax.tree.flatten((params, one))
    leaves = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)
    return size(steps, bytes_made(leaves, tree))


def _bytes(made, leaves, tree):
    """Of what is made of xs, None if it can't go a piece at a time."""
    found = jax.eval_shape(lambda leaves: made(*tree.unflatten(leaves)), leaves)
    if found is None:
        return None
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(found))
