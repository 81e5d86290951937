"""Causal self-attention as a cell: its state is a cache of keys and values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._src.builders.stateless import layer_norm, project
from jaxrnn._src.core import checks, time_axis, time_division
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.rotary import rotated
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.tags import tag_all
from jaxrnn._src.core.time_axis import positions, resets
from jaxrnn._src.core.typing import Array
from jaxrnn._src.ops.attention import attend, attend_over_time, attend_ring
from jaxrnn._src.wrappers.stack import residual, stack


@constructor
def attention(
    hidden: int, *, heads: int = 4, window: int | None = None, context: int = 1024
) -> Cell:
    """Multi-head causal self-attention (Vaswani et al. 2017, arXiv:1706.03762).

        q, k, v = W x        y_t = W_out sum_s softmax_s(q_t k_s / sqrt(D)) v_s

    Each step attends to itself and the steps before it, of its own episode. Positions are
    rotary (Su et al. 2021, arXiv:2104.09864) and count the real steps of the episode, so both
    views and every way of padding give the same. Only distances matter: with a window, a stream
    may go on for ever. Exact, in memory linear in T.

    Args:
      hidden: H, the size of the output, and of all heads together.
      heads: N, a divisor of ``hidden``.
      window: how many steps back a step sees, itself included; None for all of them.
      context: without a window, how many steps the state has room for. Outputs of later steps
        are NaN, as what they should see is gone; where that is known before, it is an error.

    Returns:
      A ``Cell``. State ``(k, v, count)``: keys and values [..., S, N, D] of the last S steps,
      where S is ``window`` or else ``context`` and D = H / N, that of step n in slot n % S, and
      the number of steps, int32 [...]; after 2 S - 1 comes S again, with the same slot to come.
      Parameters ``qkv`` [I, 3, N, D] and ``out`` [N, D, H].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``; more steps than ``context``.

    >>> cell = jaxrnn.attention(hidden=8, heads=2, window=16)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (k, v, count), ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))
    >>> ys.shape, k.shape, count
    ((5, 2, 8), (2, 16, 2, 4), Array([5, 5], dtype=int32))
    """
    hidden, heads = checks.heads(hidden, heads)
    width = hidden // heads

    def init(key, in_size):
        checks.check_key(key)
        in_size = checks.size("in_size", in_size)
        keys = jax.random.split(key, 4)
        qkv = [glorot(k, (in_size, heads, width)) for k in keys[:3]]
        return {"qkv": jnp.stack(qkv, 1), "out": glorot(keys[3], (heads, width, hidden), 2)}

    def check(params, x):
        want = {"qkv": (x.shape[-1], 3, heads, width), "out": (heads, width, hidden)}
        checks.check_params(params, want, "qkv", x)

    def project(params, x):
        # By three matmuls: on a CPU, the slices of one take XLA longer than the matmul.
        parts = (product(x, params["qkv"][:, i], 1, params) for i in range(3))
        return tag_all("attention", **dict(zip("qkv", parts)))

    def output(params, x, y):
        return product(y, params["out"], 2, params)

    return attending(init, check, project, output, (heads, heads, width), window, context)


def attending(init, check, project, output, sizes, window, context, rotated=rotated):
    """A cell that attends to what it has seen.

    Args:
      init: ``(key, in_size) -> params``.
      check: ``(params, x)``, raises an error if they do not fit.
      project: ``(params, x) -> (q, k, v)``, [..., N, D], [..., M, D] and [..., M, D].
      output: ``(params, x, y) -> y``, [..., I] and [..., N, D] -> [..., O].
      sizes: ``(N, M, D)``, heads of queries, heads of keys and values, and their width.
      window, context: see ``attention``.
      rotated: ``(a, position) -> a``, as ``core.rotary`` has it.
    """
    heads, kv_heads, width = sizes
    room = checks.size("context", context)
    if window is not None:
        room = window = checks.size("window", window)

    def shared(a):
        """[..., M, D] of keys or values for each head of queries: [..., N, D]."""
        return a if heads == kv_heads else jnp.repeat(a, heads // kv_heads, -2)

    def initial_state(params, batch_shape):
        cache = jnp.zeros((*batch_shape, room, kv_heads, width), arithmetic(params))
        return cache, cache, jnp.zeros(batch_shape, jnp.int32)

    def step(params, state, x, key=None):
        del key
        check(params, x)
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        *caches, count = state
        count = _reduced(count, room)
        slot = count % room
        dtype, _ = _dtypes(params, x.dtype)
        q, k, v = project(params, x)
        stored = (a.astype(dtype) for a in (rotated(k, slot), v))
        caches = [_put(cache, slot, new) for cache, new in zip(caches, stored)]
        queries = rotated(q, slot), rotated(q, slot + room)
        keys, values = (shared(cache.astype(dtype)) for cache in caches)
        y = attend_ring(queries[0].astype(dtype), queries[1].astype(dtype), keys, values, count)
        y = output(params, x, y).astype(x.dtype)
        state = (*caches, _reduced(count + 1, room))
        return state, _without(y, None if window else count >= room)

    def unroll(params, state, xs, options):
        mask, starts, reverse = options.mask, options.starts, options.reverse
        check(params, xs)
        steps, *batch = xs.shape[:-1]
        axis = time_division.axis()
        plain = state is None and mask is None and starts is None
        all_steps = steps if axis is None else steps * lax.axis_size(axis)
        if window is None and mask is None and starts is None and _more(all_steps, room):
            raise ValueError(
                f"xs: got T = {all_steps} steps, want context={room} at most: give attention a"
                f" larger context, or a window"
            )
        initial = initial_state(params, tuple(batch))
        before = initial if state is None else state
        if steps == 0:
            size = params["out"].shape[-1]
            return before, jnp.zeros((0, *batch, size), xs.dtype)
        starts = resets(starts, mask, reverse)
        if reverse:
            xs, mask, starts = jax.tree.map(lambda a: a[::-1], (xs, mask, starts))
        real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
        gone = _reduced(before[2], room)
        # Steps are turned round, but which of them a device has is what it was.
        position, count = positions(gone, real, starts, False, turned=reverse)
        episode, last = time_axis.episodes(starts, position, reverse)
        dtype, _ = _dtypes(params, xs.dtype)
        q, k, v = project(params, xs)
        new = rotated(q, position), rotated(k, position), v, rotated(k, position % room)
        q, k, v, stored = (jnp.moveaxis(a.astype(dtype), 0, len(batch)) for a in new)
        position, episode, real = (
            jnp.moveaxis(a, 0, len(batch)) for a in (position, episode, real)
        )
        kept = real & (episode == last[..., None]) & (position >= count[..., None] - room)
        slot = jnp.where(kept, position % room, room)  # a slot that is not there is dropped
        caches = select(last > 0, initial[:2], before[:2])
        caches = [_put_many(c, slot, a, axis) for c, a in zip(caches, (stored, v))]
        after = (*caches, _reduced(count, room))
        (q, blind), (k, v, bad) = _finite(q), _finite(k, v)
        poisoned = blind | _sees(bad & real, position, episode, window, axis, reverse)
        query: tuple[Array, Array] | None = None
        key_place: tuple[Array, Array] | None = None
        if not plain:
            query, key_place = (position, episode), (position, jnp.where(real, episode, -1))
        known = None
        if state is not None:
            cached = _cached(gone, room)
            *caches, cache_bad = _finite(*(cache.astype(dtype) for cache in before[:2]))
            caches[0] = _lap_later(rotated, caches[0], cached[0] >= room, room)
            last = jnp.where(cache_bad, cached[0], -1).max(-1, keepdims=True)
            last = jnp.broadcast_to(last, position.shape)
            near = last >= 0 if window is None else (last >= 0) & (position - last < window)
            poisoned |= (episode == 0) & near
            known = *map(shared, caches), cached
        k, v = shared(k), shared(v)
        chosen = dict(window=window, implementation=options.implementation)
        if axis is not None:
            on_axis = dict(axis=axis, reverse=reverse, padded=mask is not None)
            ys = attend_over_time(q, k, v, query, key_place, known, **on_axis, **chosen)
        else:
            if known is not None:
                k, v, key_place = _joined(known, (k, v, key_place), len(batch))
            ys = attend(q, k, v, query, key_place, **chosen)
        poisoned = poisoned if window else poisoned | (position >= room)
        ys, poisoned = (jnp.moveaxis(a, len(batch), 0) for a in (ys, poisoned & real))
        ys = output(params, xs, ys).astype(xs.dtype)
        ys = select(mask, _without(ys, poisoned), 0)
        return after, ys[::-1] if reverse else ys

    return Cell(init, initial_state, step, unroll, states=("k", "v", "count"))


@constructor
def transformer_block(
    hidden: int, *, heads: int = 4, window: int | None = None, context: int = 1024, mlp: int = 4
) -> Cell:
    """A block of the Transformer, normalised before (Xiong et al. 2020, arXiv:2002.04745).

        z = x + attention(norm(x))        y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2

    Args:
      hidden: H, the size of the input and the output.
      heads, window, context: see ``attention``.
      mlp: how many times wider the hidden layer of the network is.

    Returns:
      A ``Cell``, made of others: ``stack(residual(stack(layer_norm, attention)),
      residual(stack(layer_norm, project, project)))``, with the state and parameters of that.

    >>> cell = jaxrnn.transformer_block(hidden=8, window=16)
    >>> params = cell.init(jax.random.key(0), 8)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 8)))[1].shape
    (5, 2, 8)
    """
    attend_ = attention(hidden, heads=heads, window=window, context=context)
    wide = project(checks.size("mlp", mlp) * hidden, activation="gelu")
    return stack(
        residual(stack(layer_norm(), attend_)),
        residual(stack(layer_norm(), wide, project(hidden))),
    )


def glorot(key, shape, inputs=1):
    """A weight, of so many axes of inputs, as the matrix that it is."""
    rows = math.prod(shape[:inputs])
    matrix = jax.nn.initializers.glorot_uniform()(key, (rows, math.prod(shape[inputs:])))
    return matrix.reshape(shape)


def product(x, weight, axes, params):
    """``x weight`` over so many axes, in the arithmetic's type."""
    dtype, total = _dtypes(params, x.dtype)
    return jnp.tensordot(x.astype(dtype), weight.astype(dtype), axes, preferred_element_type=total)


def _more(steps, room):
    """Whether there are more steps than room, if that is known: T may be symbolic."""
    return isinstance(steps, int) and steps > room


def _dtypes(params, dtype):
    return promoted(dtype, params["out"].dtype), arithmetic(params)


def _put(cache, slot, new):
    """``new`` [..., N, D] into ``slot`` [...] of the cache [..., S, N, D]."""

    def put(cache, slot, new):
        return lax.dynamic_update_index_in_dim(cache, new, slot, 0)

    for _ in slot.shape:
        put = jax.vmap(put)
    return put(cache, slot, new.astype(cache.dtype))


# The cache is a ring: the key of step n is in slot n % S, rotated by its slot and not by n. So it
# is the same however long a stream has gone. Between steps of one lap around the ring rotations
# are right for their distance; a step of the lap before is S further away.


def _reduced(count, room):
    """The number of steps; from 2 S on, one from S to 2 S - 1 with the same slot to come."""
    return jnp.where(count < 2 * room, count, room + count % room)


def _lap_later(rotated, k, later, room):
    """Keys [..., S, N, D] of the ring, those at ``later`` [..., S] rotated by a whole lap more."""
    wide = k.astype(promoted(k.dtype, jnp.dtype("float32")))
    return select(later, rotated(wide, np.int32(room)).astype(k.dtype), k)


def _cached(count, room):
    """Position and episode of what each slot holds after ``count`` steps: [..., S]."""
    slot = lax.broadcasted_iota(count.dtype, (*count.shape, room), count.ndim)
    last = jnp.broadcast_to(count[..., None] - 1, slot.shape)
    position = last - (last - slot) % room
    return position, jnp.where(position >= 0, 0, -1).astype(count.dtype)


def _put_many(cache, slot, new, axis):
    """``new`` [..., T, N, D] into the slots [..., T] of the cache that are there.

    With time divided over a mesh axis, each device has its own of the steps. A slot is written by
    one of them at most.
    """

    def put(cache, slot, new):
        return cache.at[slot].set(new, mode="drop")

    for _ in slot.shape[1:]:
        put = jax.vmap(put)
    new = new.astype(cache.dtype)
    if axis is None:
        return put(cache, slot, new)
    none = jnp.zeros(cache.shape[:-2], jnp.int32)
    zeros, none, _ = varying((jnp.zeros_like(cache), none, slot))
    own, written = put(zeros, slot, new), put(none, slot, jnp.ones_like(slot))
    own, written = lax.psum((own, written), axis)
    return select(written > 0, own, cache)


def _joined(first, then, axis):
    """Two trees of arrays, one after the other along an axis."""
    return jax.tree.map(lambda *both: jnp.concatenate(both, axis), first, then)


# In a product of many keys, a weight of zero does not silence a NaN. So keys that are not finite
# are taken out, and the queries that see one become NaN by their places.


def _finite(*arrays):
    """Arrays [..., S, N, D], zero where one is not finite, and where that is, [..., S]."""
    bad = ~functools.reduce(jnp.logical_and, map(jnp.isfinite, arrays)).all((-1, -2))
    return (*select(~bad, arrays, 0), bad)


def _sees(bad, position, episode, window, axis, reverse):
    """Which steps see a bad one, of their own episode and not later: [..., T]."""
    time = lax.broadcasted_iota(jnp.int32, bad.shape, bad.ndim - 1)
    last = lax.cummax(jnp.where(bad, time, -1), axis=bad.ndim - 1)
    at = [jnp.take_along_axis(a, jnp.maximum(last, 0), -1) for a in (position, episode)]
    latest = last >= 0, *at
    if axis is not None:
        known = [a[..., -1] for a in latest]
        known = time_axis.before(_later, list(map(jnp.zeros_like, known)), known, axis, reverse)
        latest = _later([jnp.broadcast_to(a[..., None], last.shape) for a in known], latest)
    found, position_of, episode_of = latest
    seen = found & (episode == episode_of)
    return seen if window is None else seen & (position - position_of < window)


def _later(one, other):
    """The later of two places ``(found, position, episode)``, of what is found."""
    return [jnp.where(other[0], b, a) for a, b in zip(one, other)]


def _without(ys, rows):
    """NaN in place of the rows of ys [..., H] that are marked."""
    if rows is None:
        return ys
    # Not an array of NaN: `jax_debug_nans` would find that, where no row is marked too.
    return jnp.where(rows[..., None], jnp.nan, ys)
