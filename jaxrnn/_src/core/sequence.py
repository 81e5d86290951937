"""Scanning a step over time: what mask, starts and reverse mean, said once.

Every other way of running a recurrence has to give these numbers.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import time_division, wide_scan
from jaxrnn._src.core.typing import InputArray

Tree = TypeVar("Tree")


def select(condition: InputArray | None, new: Tree, old: Any) -> Tree:
    """Picks between two trees of arrays row by row, without arithmetic (a NaN not picked is gone).

    Args:
      condition: bool [...batch], or None, which picks ``new``.
      new, old: trees of [...batch, ...] arrays; ``old`` may be 0.
    """
    if condition is None:
        return new

    def pick(a, b):
        rows = condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim))
        return jnp.where(rows, a, b)

    if isinstance(old, int):
        return jax.tree.map(lambda a: pick(a, jnp.zeros((), a.dtype)), new)
    return jax.tree.map(pick, new, old)


def segment_starts(ids, before):
    """Where the segments of packed rows begin: bool [T, ...batch].

    Args:
      ids: int [T, ...batch]: 0 for padding, another number for the steps of each segment.
      before: int [...batch], the last such number before the first step; 0 if there is none.
    """
    ids = jnp.concatenate([before[None], ids])
    time = lax.broadcasted_iota(jnp.int32, ids.shape, 0)
    real = lax.cummax(jnp.where(ids != 0, time, 0), axis=0)  # the last real step, or `before`
    ids, last = ids[1:], jnp.take_along_axis(ids, real[:-1], 0)
    return (ids != 0) & (ids != last)


def resets(starts, mask, reverse):
    """Where the state is put back, in the order of processing: bool [T, ...batch] or None.

    ``starts[t]`` cuts the sequence between t-1 and t, and no state crosses a cut. Going forward,
    the state is put back before step t. Going backward, the cut is met on the way from t to t-1,
    and the state is put back before the next real step: the last one of the earlier episode.
    """
    time_division.refuse()
    if starts is None or not reverse:
        return starts
    steps = starts.shape[0]
    time = lax.broadcasted_iota(jnp.int32, starts.shape, 0)

    def first_after(flags):  # the time of the first flag later than t; `steps` where there is none
        times = jnp.where(flags, time, steps)
        later = jnp.concatenate([times[1:], jnp.full_like(times[:1], steps)])
        return lax.cummin(later, axis=0, reverse=True)

    if mask is None:
        return jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])
    cut = first_after(starts)
    return mask & (cut < steps) & (cut <= first_after(mask))


def positions(first, mask, starts, reverse):
    """How many real steps of its own episode come before each step, in the order of processing.

    Args:
      first: int [...batch], how many came before the first step processed.
      mask: bool [T, ...batch].
      starts: bool [T, ...batch] or None, in the order of processing.
      reverse: from the last step to the first.

    Returns:
      ``(before, after)``: int [T, ...batch], and for the state after the last step [...batch].
    """
    time_division.refuse()
    real = mask.astype(first.dtype)
    through = lax.cumsum(real, axis=0, reverse=reverse)
    before, total = through - real, real.sum(0, dtype=first.dtype)
    if starts is None:
        return jnp.broadcast_to(first[None], before.shape) + before, first + total
    marks = lax.cummax(jnp.where(starts, before, -1), axis=0, reverse=reverse)

    def since(count, mark):  # the mark is the count at the last start, -1 where there was none
        return count + jnp.where(mark < 0, jnp.broadcast_to(first, mark.shape), -mark)

    return since(before, marks), since(total, marks.max(0, initial=-1))


def scan(step, state, xs, *, initial=None, mask=None, starts=None, reverse=False, every=False):
    """Runs ``step(state, x) -> (state, y)`` over the leading axis of ``xs``.

    Args:
      step: a pure function of one step.
      state: tree of [...batch, ...] arrays.
      xs: tree of [T, ...batch, ...] arrays.
      initial: what ``starts`` puts back; the same structure as ``state``.
      mask: bool [T, ...batch], true at a real step. At any other, the state is held and y is 0.
      starts: bool [T, ...batch], true where ``initial`` is put back: see ``resets``.
      reverse: runs from the last step to the first; outputs stay at their input's time.
      every: ys are ``(ys, states)``, with the states after each step.

    Returns:
      ``(state, ys)``, as ``jax.lax.scan``. Gradients of what ``step`` closes over are summed in
      float32 at least.
    """

    def body(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, initial, state)
        new, y = step(state, x)
        new, y = select(real, new, state), select(real, y, 0)
        return new, (y, new) if every else y

    return wide_scan.scan(body, state, (xs, mask, starts), reverse=reverse)
