"""Time divided over the devices of a mesh axis: each has a stretch of the steps.

What a device has to know of the others is what came before its stretch. Each makes a summary of
its own, and summaries are combined in about log2 of the number of devices rounds of ``ppermute``
(Hillis & Steele 1986, "Data parallel algorithms").
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn._src.core import sequence, time_division
from jaxrnn._src.core.sharding import varying


def before(combine, first, summary, axis, reverse=False):
    """The summary of all that comes before each device's stretch.

    Args:
      combine: ``(earlier, later) -> summary``, associative, of two neighbouring stretches.
      first: the summary of what comes before the first stretch.
      summary: of the device's own stretch, a tree of arrays like ``first``.
      axis: the name of the mesh axis.
      reverse: the last stretch is the first one.
    """
    count, place = lax.axis_size(axis), place_of(axis, reverse)
    first, own = varying((first, summary, place))[:2]

    def from_place(tree, distance):
        pairs = [(k, k + distance) for k in range(count - distance)]
        pairs = [(b, a) for a, b in pairs] if reverse else pairs
        return jax.tree.map(lambda a: lax.ppermute(a, axis, pairs), tree)

    own = _where(place == 0, combine(first, own), own)
    distance = 1
    while distance < count:
        earlier = from_place(own, distance)
        own = _where(place >= distance, combine(earlier, own), own)
        distance *= 2
    return _where(place == 0, first, from_place(own, 1))


def of_last(tree, axis, reverse=False):
    """The arrays of the device that has the last stretch, on all devices."""
    last = place_of(axis, reverse) == lax.axis_size(axis) - 1
    tree, last = varying((tree, last))
    return jax.tree.map(lambda a: lax.psum(jnp.where(last, a, jnp.zeros_like(a)), axis), tree)


def segment_starts(ids):
    """``sequence.segment_starts`` of whole rows, also where time is divided."""
    axis, before_first = time_division.axis(), jnp.zeros(ids.shape[1:], ids.dtype)
    if axis is not None:
        real = jnp.where(ids != 0, lax.broadcasted_iota(jnp.int32, ids.shape, 0), 0)
        last = jnp.take_along_axis(ids, real.max(0, keepdims=True), 0)[0]

        def combine(earlier, later):
            return jnp.where(later != 0, later, earlier)

        before_first = before(combine, before_first, last, axis)
    return sequence.segment_starts(ids, before_first)


def resets(starts, mask, reverse):
    """``sequence.resets``, also where time is divided."""
    axis = time_division.axis()
    if axis is None:
        return sequence.resets(starts, mask, reverse)
    with time_division.divided(None):
        return resets_over(axis, starts, mask, reverse)


def positions(first, mask, starts, reverse, turned=False):
    """``sequence.positions``, also where time is divided; starts in the order of processing.

    ``turned`` says that a device's steps are in the order of processing, and ``reverse`` is for
    these, but that the last stretch is the first one.
    """
    axis = time_division.axis()
    if axis is None:
        return sequence.positions(first, mask, starts, reverse)
    with time_division.divided(None):
        _, own = sequence.positions(jnp.zeros_like(first), mask, starts, reverse)
        none = jnp.zeros(first.shape, bool)

        def combine(earlier, later):
            (count, cut), (more, again) = earlier, later
            return jnp.where(again, more, count + more), cut | again

        order = reverse or turned
        start, _ = before(combine, (first, none), (own, cuts(starts, none)), axis, order)
        counts, after = sequence.positions(start, mask, starts, reverse)
        return counts, of_last(after, axis, order)


def episodes(starts, like, turned):
    """The number of each step's episode, from 0, and that of the last: int32 [T, ...] and [...].

    Args:
      starts: bool [T, ...], all in the order of processing; None for one episode.
      like: int32 [T, ...].
      turned: the last stretch is the first one.
    """
    if starts is None:
        return jnp.zeros_like(like), jnp.zeros(like.shape[1:], like.dtype)
    axis, own = time_division.axis(), lax.cumsum(starts.astype(jnp.int32), axis=0)
    total = starts.sum(0, dtype=jnp.int32)
    if axis is None:
        return own, total
    start = before(jnp.add, jnp.zeros_like(total), total, axis, turned)
    return own + jnp.broadcast_to(start, own.shape), lax.psum(total, axis)


def cuts(starts, none):
    """Whether an episode begins in a stretch, bool [...batch]; ``none`` is False of this shape."""
    return none if starts is None else starts.any(0)


def resets_over(axis, starts, mask, reverse):
    """``sequence.resets`` of a stretch: a cut may have been met in one that is run before it."""
    found = sequence.resets(starts, mask, reverse)
    if starts is None or found is None or not reverse:
        return found
    real = jnp.ones_like(starts) if mask is None else mask
    time = lax.broadcasted_iota(jnp.int32, starts.shape, 0)
    earliest = jnp.where(real, time, starts.shape[0]).min(0, keepdims=True)
    latest = jnp.where(real, time, -1).max(0, keepdims=True)
    met = (starts & (time <= jnp.broadcast_to(earliest, time.shape))).any(0)  # since a real step

    def combine(earlier, later):
        (met, _), (met_later, none_real) = earlier, later
        return met_later | (met & none_real), none_real

    nothing = jnp.zeros_like(met)
    carried, _ = before(combine, (nothing, nothing), (met, ~real.any(0)), axis, reverse)
    last = time == jnp.broadcast_to(latest, time.shape)
    return found | (last & jnp.broadcast_to(carried[None], last.shape))


def mapped(run, axis, timed, others):
    """``run(timed, others) -> (state, ys)`` on each device of a mesh axis, with its stretch.

    Inside of a ``jax.shard_map`` over the axis each device has its stretch already.

    Raises:
      ValueError: the mesh of the context has no such axis, or it does not divide the steps.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis in mesh.manual_axes:
        return run(timed, others)
    if axis not in mesh.axis_names:
        want = "an axis of the mesh that jax.set_mesh or jax.shard_map has set"
        raise ValueError(f"time_axis: got {axis!r}, want {want}: {mesh.axis_names}")
    steps, count = jax.tree.leaves(timed)[0].shape[0], mesh.shape[axis]
    if steps % count:
        want = f"a multiple of the {count} devices of {axis!r}: pad, and give lengths or a mask"
        raise ValueError(f"time_axis: got {steps} steps, want {want}")
    if axis in mesh.explicit_axes:  # types say how arrays are sharded, and shard_map wants it so
        timed = jax.tree.map(lambda a: _divided(a, axis, mesh), timed)
    whole, divided = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        run, in_specs=(divided, whole), out_specs=(whole, divided), axis_names={axis}
    )(timed, others)


def own_lengths(axis, lengths, steps):
    """How many of the device's ``steps`` are real, of whole sequences of these lengths."""
    if axis not in jax.sharding.get_abstract_mesh().manual_axes:
        return lengths
    return jnp.clip(lengths - lax.axis_index(axis).astype(lengths.dtype) * steps, 0, steps)


def _divided(a, axis, mesh):
    _, *rest = jax.typeof(a).sharding.spec
    rest = (None if used == axis else used for used in rest)
    return jax.reshard(a, NamedSharding(mesh, PartitionSpec(axis, *rest)))


def place_of(axis, reverse):
    """Where the device's stretch comes in the order of processing."""
    index = lax.axis_index(axis)
    return lax.axis_size(axis) - 1 - index if reverse else index


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
