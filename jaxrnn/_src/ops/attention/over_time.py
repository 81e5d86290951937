"""Attention with time divided over devices: a ring of blocks (Liu et al. 2023, arXiv:2310.01889).

Each device keeps its queries. Keys and values go round: in each round a device passes on the block
it has, and attends to it meanwhile. What a query has seen so far are an output and the logarithm
of its sum, as in ``blockwise``. Backward, a block goes round again with its gradient.

Blocks that a device's queries do not see are passed on unread: those of later steps, and those
beyond a window or of other episodes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import time_division
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.sharding import varying, wants_devices
from jaxrnn._src.core.time_axis import place_of
from jaxrnn._src.ops.attention import blockwise, cpu, reference
from jaxrnn._src.ops.attention import problem as p
from jaxrnn._src.ops.operation import WEIGHT, Implementation, Operation

Array = jax.Array
Keys = tuple[Array, Array, tuple[Array, Array]]  # k, v [B, S, N, D], and their places [B, S]


class Problem(NamedTuple):
    """The static half: that of one device's queries, and the ring."""

    inner: p.Problem
    axis: str
    count: int  # devices
    reverse: bool  # the device with the last steps is the first of the ring
    padded: bool  # not all steps are real, so a window may reach over any number of them

    @property
    def implementation(self) -> str | None:
        return self.inner.implementation


class Operands(NamedTuple):
    """The arrays: a device's own steps, in the order of processing, as in ``problem.Operands``."""

    q: Array
    k: Array
    v: Array
    q_place: tuple[Array, Array] | None
    k_place: tuple[Array, Array] | None
    known: Keys | None  # what all devices have from before the first step
    place: Array  # int32 []: where the device comes in the ring


def attend_over_time(
    q, k, v, q_place, k_place, known, *, axis, reverse, padded, window, implementation
):
    """``attend`` of all steps, of which each device has a stretch.

    Args:
      q, k, v, q_place, k_place: of the device's own steps, in the order of processing; places
        count the steps of the whole sequence.
      known: keys and values of before the first step, and their places ``(k, v, place)``; None if
        there are none. On all devices the same.
      axis: the name of the mesh axis.
      reverse: the last stretch is the first one.
      padded: not all steps are real.
      window, implementation: see ``attend``; "gpu" is not here.
    """
    inner = p.Problem(window, q_place is None, implementation, wants_devices())
    problem = Problem(inner, axis, lax.axis_size(axis), reverse, padded)
    place = place_of(axis, reverse).astype(jnp.int32)
    operands = varying(Operands(q, k, v, q_place, k_place, known, place))
    *batch, steps, heads, width = q.shape
    sizes = f"T={steps} B={tuple(batch)} N={heads} D={width}"
    name = f"attend {sizes} over {problem.count} devices {q.dtype}"
    run = _operation.chosen(name, problem, operands)
    with time_division.divided(None):  # inside, a device's steps are all there is
        return run(problem, operands)[0]


class Ring:
    """An implementation for one device's queries and one block of keys, as one of the ring.

    Args:
      block: a module whose residual is the logarithm of each row's sum.
    """

    def __init__(self, block: Any) -> None:
        self.block = block
        self.EXPORTED = getattr(block, "EXPORTED", True)

    def unsupported(self, problem, operands, target):
        """Why the block's implementation can't run, or None."""
        return self.block.unsupported(problem.inner, _own(operands), target)

    def forward(self, problem, operands, wanted, save, target):
        """Returns (ys,), [B, T, N, D], then the logarithm of each row's sum, [B, T, N]."""
        ring, total = _Ring(problem, operands), _total(operands.q)

        def attend(problem, given):
            ys, sums = self.block.forward(problem, given, wanted, True, target)
            return ys.astype(total), sums

        def merged(seen, given, found):
            ys, sums = found
            more, top = attend(ring.placed, given)
            both = jnp.logaddexp(sums, top)
            ys = ys * _share(sums, both) + more * _share(top, both)
            return jax.tree.map(
                lambda new, old: jnp.where(_spread(seen, new), new, old), (ys, both), found
            )

        found = attend(problem.inner, _own(operands))
        if operands.known is not None:
            found = ring.where_seen(operands.known, True, merged, found)

        def turn(carry, number):
            keys, found = carry
            passed = ring.pass_on(keys)  # while the device looks at what it passes on
            found = ring.where_seen(keys, number <= operands.place, merged, found)
            return (passed, found), None

        if ring.rounds:
            carry = varying((ring.pass_on(ring.own), found))
            found = lax.scan(turn, carry, ring.numbers)[0][1]
        ys, sums = found
        return (ys.astype(operands.q.dtype), sums) if save else (ys.astype(operands.q.dtype),)

    def backward(self, problem, operands, outputs, residuals, cotangents, wanted, target):
        """Returns the gradients of the operands."""
        ring, total = _Ring(problem, operands), _total(operands.q)

        def pulled(problem, given):
            """The gradients of q, k and v, from one block of keys."""
            d = self.block.backward(problem, given, outputs, residuals, cotangents, wanted, target)
            return tuple(a.astype(total) for a in d[:3])

        def added(seen, given, found):
            del seen  # a query that sees nothing of a block has weights of zero
            return jax.tree.map(jnp.add, found, pulled(ring.placed, given))

        d_q, *own = pulled(problem.inner, _own(operands))
        known = operands.known
        if known is not None:
            found = d_q, *(jnp.zeros_like(a, total) for a in known[:2])
            d_q, *d_known = ring.where_seen(known, True, added, varying(found))
            known = *(d.astype(a.dtype) for d, a in zip(d_known, known)), known[2]

        def turn(carry, number):
            keys, d_q, d_keys = carry
            d_q, *d_keys = ring.where_seen(keys, number <= operands.place, added, (d_q, *d_keys))
            return (ring.pass_on(keys), d_q, ring.pass_on(d_keys)), None

        if ring.rounds:
            carry = varying((ring.pass_on(ring.own), d_q, list(map(jnp.zeros_like, own))))
            _, d_q, others = lax.scan(turn, carry, ring.numbers)[0]
            others = ring.pass_on(others, problem.count - 1 - ring.rounds)  # to whose they are
            own = map(jnp.add, own, others)
        d_k, d_v = (d.astype(a.dtype) for d, a in zip(own, operands[1:3]))
        return operands._replace(q=d_q.astype(operands.q.dtype), k=d_k, v=d_v, known=known)


class _Ring:
    """A device's part of the ring.

    Attributes:
      own: its keys and values, with their places.
      placed: the problem of its queries and the keys of another.
      rounds: how many other devices' keys its queries may see.
      numbers: of the rounds, from 1.
    """

    def __init__(self, problem: Problem, operands: Operands) -> None:
        self.problem, self.operands = problem, operands
        self.placed = problem.inner._replace(plain=False)
        q_place, k_place = operands.q_place, operands.k_place
        steps, self.rounds = operands.k.shape[-3], problem.count - 1
        if problem.inner.plain:
            position = jnp.arange(steps, dtype=jnp.int32) + operands.place * steps
            position = jnp.broadcast_to(position, operands.q.shape[:-2])
            q_place = k_place = position, jnp.zeros_like(position)
        window = problem.inner.window
        if window is not None and not problem.padded:
            self.rounds = min(self.rounds, -(-(window - 1) // max(steps, 1)))
        self.numbers = jnp.arange(1, self.rounds + 1, dtype=jnp.int32)
        self.q_place = q_place
        self.own = operands.k, operands.v, k_place

    def pass_on(self, tree, distance=1):
        """To the device so many places later in the ring."""
        count, by = self.problem.count, -distance if self.problem.reverse else distance
        if by % count == 0:
            return tree
        pairs = [(k, (k + by) % count) for k in range(count)]
        return jax.tree.map(lambda a: lax.ppermute(a, self.problem.axis, pairs), tree)

    def where_seen(self, keys, earlier, run, found):
        """``run(seen, operands, found)`` if a query sees any of the keys, else ``found``."""
        k, v, k_place = keys
        seen = _sees(self.problem.inner.window, self.q_place, k_place) & earlier
        given = p.Operands(self.operands.q, k, v, self.q_place, k_place)
        seen, given, found = varying((seen, given, found))
        return lax.cond(seen.any(), run, lambda seen, given, found: found, seen, given, found)


def _sees(window, q_place, k_place):
    """Which queries see any of these keys, all of them of earlier steps: bool [B, T].

    It is the last key that they see, if any.
    """
    (position, episode), (k_position, k_episode) = q_place, k_place
    last = k_episode.max(-1, keepdims=True, initial=-1)
    latest = jnp.where(k_episode == jnp.broadcast_to(last, k_episode.shape), k_position, -1)
    latest = latest.max(-1, keepdims=True, initial=-1)
    last, latest = (jnp.broadcast_to(a, position.shape) for a in (last, latest))
    seen = (last >= 0) & (episode == last)
    return seen if window is None else seen & (position - latest < window)


def _own(operands):
    return p.Operands(*operands[:5])


def _total(q):
    return promoted(q.dtype, jnp.dtype("float32"))


def _share(part, whole):
    return jnp.exp(part - whole)[..., None]


def _spread(seen, a):
    """bool [B, T] in the shape of a [B, T, ...]."""
    return jnp.broadcast_to(seen.reshape(*seen.shape, *(1,) * (a.ndim - seen.ndim)), a.shape)


def _reference(problem, operands):
    """(ys,), from the keys of all devices: the specification, and what second derivatives take."""
    ring = _Ring(problem, operands)
    gather = lambda axis: lambda a: lax.all_gather(a, problem.axis, axis=axis, tiled=True)
    time = operands.q.ndim - 3
    k, v, place = jax.tree.map(gather(time), ring.own)
    if operands.known is not None:
        k, v, place = jax.tree.map(
            lambda *both: jnp.concatenate(both, time), (k, v, place), operands.known
        )
    given = p.Operands(operands.q, k, v, ring.q_place, place)
    return reference.run(ring.placed, varying(given))


# The best first. cuDNN keeps no sums that another block could be merged by.
IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": Ring(cpu), "xla": Ring(blockwise)}
_operation = Operation(
    "attend_over_time",
    IMPLEMENTATIONS,
    reference=_reference,
    operand_axes=dict.fromkeys(Operands._fields, 0) | {"place": WEIGHT},
    output_axes=lambda problem: (0,),
    residual_axis=0,
    reads=lambda problem, operands: (True,),
)
