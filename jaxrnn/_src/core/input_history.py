"""The last inputs: what a convolution over time has to remember."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import time_axis, time_division
from jaxrnn._src.core.sequence import positions, select


def lagged(window, xs, lags, mask=None, starts=None, reverse=False):
    """The inputs so many steps before each step, where only real steps of its episode count.

    Args:
      window: [...batch, S, I], the S inputs before the first step processed, the latest last.
      xs: [T, ...batch, I].
      lags: ints from 0 to S.
      mask, starts, reverse: as ``jaxrnn.unroll`` has them.

    Returns:
      ``(window, inputs)``: the window after the last step, and for each lag the inputs [T,
      ...batch, I], zero where the episode had not begun; both in the type of ``window``.
    """
    starts, axis = time_axis.resets(starts, mask, reverse), time_division.axis()
    if axis is None:
        return _lagged(window, xs, lags, mask, starts, reverse)
    with time_division.divided(None):  # what came before the device's stretch is known
        found = _before(window, xs, mask, starts, reverse, axis)
        window, inputs = _lagged(found, xs, lags, mask, starts, reverse)
        return time_axis.of_last(window, axis, reverse), inputs


def _before(window, xs, mask, starts, reverse, axis):
    """The last inputs before the device's stretch: a halo, of as many stretches as it takes."""
    room, batch = window.shape[-2], window.shape[:-2]
    none = jnp.zeros(batch, bool)
    real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
    own, _ = _lagged(jnp.zeros_like(window), xs, (), mask, starts, reverse)
    _, count = positions(jnp.zeros(batch, jnp.int32), real, starts, reverse)
    slot = lax.broadcasted_iota(jnp.int32, (*batch, room), len(batch))

    def combine(earlier, later):
        (old, count, cut), (new, more, again) = earlier, later
        place = slot + jnp.broadcast_to(more[..., None], slot.shape)
        old = jnp.take_along_axis(old, jnp.minimum(place, room - 1)[..., None], -2)
        # The last ones of a stretch that has fewer steps are those of the stretch before it.
        window = select(~again[..., None] & (place < room), old, new)
        return window, jnp.minimum(jnp.where(again, more, count + more), room), cut | again

    first = window, jnp.full(batch, room, jnp.int32), none
    summary = own, jnp.minimum(count, room), time_axis.cuts(starts, none)
    return time_axis.before(combine, first, summary, axis, reverse)[0]


def _lagged(window, xs, lags, mask, starts, reverse):
    """``lagged`` of one stretch of time, starts in the order of processing."""
    flip = lambda tree: jax.tree.map(lambda a: a[::-1], tree) if reverse else tree
    xs, mask, starts = flip((xs, mask, starts))
    (steps, *batch, _), room = xs.shape, window.shape[-2]
    known = jnp.concatenate([jnp.moveaxis(window, -2, 0), xs.astype(window.dtype)])
    slot = lax.broadcasted_iota(jnp.int32, (room, *batch), 0)
    if mask is None:
        inputs = [lax.slice_in_dim(known, room - lag, room - lag + steps) for lag in lags]
        last = lax.slice_in_dim(known, steps, steps + room)
    else:
        numbers, count = positions(jnp.zeros(batch, jnp.int32), mask, None, False)
        times = jnp.argsort(~mask, axis=0, stable=True).astype(jnp.int32)  # of the real steps
        places = jnp.concatenate([slot, room + times])

        def numbered(n):
            place = jnp.take_along_axis(places, n, 0, mode="promise_in_bounds")
            return jnp.take_along_axis(known, place[..., None], 0, mode="promise_in_bounds")

        inputs = [numbered(numbers + room - lag) for lag in lags]
        last = numbered(jnp.broadcast_to(count, slot.shape) + slot)
    if starts is not None:
        real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
        before, after = positions(jnp.full(batch, room, jnp.int32), real, starts, False)
        inputs = [select(before >= lag, a, 0) for lag, a in zip(lags, inputs)]
        last = select(jnp.broadcast_to(after, slot.shape) >= room - slot, last, 0)
    return jnp.moveaxis(last, 0, -2), flip(inputs)
