"""The recurrence of RWKV-4: means of values, with weights that are exponentials and decay.

    n = a + exp(u + k) v                      d = b + exp(u + k)
    a = exp(-decay) a + exp(k) v              b = exp(-decay) b + exp(k)

The state is ``(a, b, m)``, with a and b divided by exp(m), for m = max(m - decay, k). A stretch of
steps that begins with nothing ends in such a state too. It and the number of the steps are all
that the steps after it need to know, whatever came before: so stretches can be run at once, and
then once more from what came before each.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import sequence, time_axis, time_division
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.attention.blocks import blocks, joined

_NOTHING = -1e38  # the logarithm of no weight at all, below that of any key


def nothing(shape, dtype):
    """The state before the first step."""
    zero = jnp.zeros(shape, dtype)
    return zero, zero, jnp.full_like(zero, _NOTHING)


def step(decay, u, state, x):
    """One step: ``(a, b, m)`` and ``(k, v)``, all [...batch, H] -> (state, n / d)."""
    (a, b, m), (k, v) = state, x
    decay, u = (jnp.broadcast_to(w, a.shape) for w in (decay, u))
    most = jnp.maximum(m, u + k)
    before, now = jnp.exp(m - most), jnp.exp(u + k - most)
    y = (before * a + now * v) / (before * b + now)
    m = m - decay
    most = jnp.maximum(m, k)
    before, now = jnp.exp(m - most), jnp.exp(k - most)
    return (before * a + now * v, before * b + now, most), y


def run(decay, u, state, k, v, *, mask, starts, reverse, at_once):
    """All steps, ``(state, ys)``, also where time is divided over devices.

    Args:
      decay, u: [H].
      state: ``(a, b, m)`` [...batch, H].
      k, v: [T, ...batch, H], in the type of the state.
      mask, starts, reverse: as ``jaxrnn.unroll`` has them.
      at_once: stretches of the steps run at once where that is faster.
    """
    axis, starts = time_division.axis(), time_axis.resets(starts, mask, reverse)
    given = varying((decay, u, state, (k, v, mask, starts)))
    decay, u, state, steps = given
    turn = lambda tree: jax.tree.map(lambda a: a[::-1], tree) if reverse else tree

    def one(state, steps):
        k, v, mask, starts = steps
        return sequence.scan(
            functools.partial(step, decay, u),
            state,
            (k, v),
            initial=nothing(state[0].shape, state[0].dtype),
            mask=mask,
            starts=starts,
        )

    def some(state, steps):
        # A loop over all steps is faster on a CPU. Milliseconds of processor, forward and with
        # gradient, for T = 1024 in float32: one row of 64 features 1.0 and 2.9, in stretches 0.8
        # and 3.4; eight rows of 256 features 12 and 90, in stretches 25 and 141.
        if not at_once:
            return one(state, steps)
        several = functools.partial(_at_once, decay, one)
        return lax.platform_dependent(state, steps, cpu=one, default=several)

    with time_division.divided(None):  # what a device goes on from is known
        if axis is None:
            state, ys = some(state, turn(steps))
        else:
            before = functools.partial(time_axis.before, axis=axis, reverse=reverse)
            state, ys = _stretch(decay, some, before, state, turn(steps))
            state = time_axis.of_last(state, axis, reverse)
    return state, turn(ys)


def _stretch(decay, run, before, first, steps):
    """``run(state, steps)`` of a stretch, or of several side by side.

    Args:
      before: ``(combine, first, summary) -> summary`` of what comes before each stretch.
      first: the state before the first one.
    """
    k, _, mask, starts = steps
    real = jnp.ones(k.shape[:-1], bool) if mask is None else mask
    none, count = jnp.zeros(first[0].shape[:-1], bool), real.sum(0, dtype=k.dtype)
    empty, steps = varying((nothing(k.shape[1:], k.dtype), steps))
    end, _ = run(empty, steps)
    cut = time_axis.cuts(starts, jnp.zeros(count.shape, bool))

    def combine(earlier, later):
        (count, state, cut), (more, end, again) = earlier, later
        state = select(~again, state, nothing(state[0].shape, state[0].dtype))
        steps_here = select(~again, more, 0)
        fell = steps_here[..., None] * jnp.broadcast_to(decay, state[0].shape)
        fell = select(steps_here > 0, fell, 0)  # no step of an infinite decay would be NaN
        (a, b, m), (new_a, new_b, new_m) = state, end
        m = m - fell
        most = jnp.where((new_m > m) | jnp.isnan(new_m), new_m, m)
        kept, added = jnp.exp(m - most), jnp.exp(new_m - most)
        state = kept * a + added * new_a, kept * b + added * new_b, most
        return count + more, state, cut | again

    found = before(combine, (none.astype(k.dtype), first, none), (count, end, cut))
    return run(found[1], steps)


def _at_once(decay, run, state, steps):
    """``run(state, steps)`` of about sqrt(T) stretches side by side."""
    length = steps[0].shape[0]
    known = isinstance(length, int)
    if known and length < 4:
        return run(state, steps)
    size = math.isqrt(length) if known else 64

    def cut(a, fill=0):
        return jnp.swapaxes(blocks(a, size, -a.ndim, fill), 0, 1)

    k, v, mask, starts = steps
    mask = jnp.ones(k.shape[:-1], bool) if mask is None else mask
    steps = cut(k), cut(v), cut(mask, False), None if starts is None else cut(starts, False)

    def before(combine, first, summary):
        both = lambda earlier, later: (combine(earlier, later), earlier)
        return lax.scan(both, *varying((first, summary)))[1]

    ends, ys = _stretch(decay, run, before, state, steps)
    state = jax.tree.map(lambda a: a[-1], ends)
    return state, joined(jnp.swapaxes(ys, 0, 1), 1 - ys.ndim, length)
