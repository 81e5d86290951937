"""Attention with time divided over devices: a ring of blocks (Liu et al. 2023, arXiv:2310.01889).

Each device keeps its queries. Keys and values go to the others: in each round a device passes on
the block it has, and attends to it meanwhile. What a query has seen so far are an output and the
logarithm of its sum, as in ``blockwise``. Backward, a block goes the same way again, and its
gradient goes round with it, to where it came from. So n devices exchange n - 1 times.

With no window, a device takes an early and a late part of the steps (``devices.py``). Of the parts
of any other, both of its own see the early one, or its late one sees both: half of the pairs, on
all devices. With a window, or an odd number of steps, a device has the steps that it had; keys go
as far as the window reaches. Blocks that no query sees, as those of other episodes, are passed on
unread.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import time_division
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.core.time_axis import place_of
from jaxrnn._src.ops.attention import blockwise, cpu, reference
from jaxrnn._src.ops.attention import problem as p
from jaxrnn._src.ops.attention.devices import Devices
from jaxrnn._src.ops.operation import WEIGHT, Implementation, Operation

Array = jax.Array
Keys = tuple[Array, Array, tuple[Array, Array]]  # k, v [B, S, N, D], and their places [B, S]


class Problem(NamedTuple):
    """The static half: that of one device's queries, and the ring."""

    inner: p.Problem
    devices: Devices
    parts: int  # of the steps, that a device has
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
    inner = p.Problem(window, q_place is None, implementation)
    devices = Devices(axis, lax.axis_size(axis), reverse)
    *batch, steps, heads, width = q.shape
    parts = 2 if window is None and steps % 2 == 0 else 1
    problem = Problem(inner, devices, parts, padded)
    place, time = place_of(axis, reverse).astype(jnp.int32), len(batch)
    place, *given = varying((place, q, k, v, q_place, k_place))
    if parts == 2:
        given = devices.folded(given, place, time)
    q, k, v, q_place, k_place = given
    operands = varying(Operands(q, k, v, q_place, k_place, known, place))
    sizes = f"T={steps} B={tuple(batch)} N={heads} D={width}"
    name = f"attend {sizes} over {devices.count} devices {q.dtype}"
    run = _operation.chosen(name, problem, operands)
    with time_division.divided(None):  # inside, a device's steps are all there is
        ys = run(problem, operands)[0]
    return devices.unfolded(ys, place, time) if parts == 2 else ys


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
        return self.block.unsupported(problem.inner, p.Operands(*operands[:5]), target)

    def forward(self, problem, operands, wanted, save, target):
        """Returns (ys,), [B, T, N, D], then the logarithm of each row's sum, [B, T, N]."""
        ring, total = _Ring(problem, operands), _total(operands.q)

        def attend(problem, given):
            ys, sums = self.block.forward(problem, given, wanted, True, target)
            return ys.astype(total), sums

        def merged(seen, more, found):
            (new, top), (ys, sums) = more, found
            both = jnp.logaddexp(sums, top)
            new = ys * _share(sums, both) + new * _share(top, both), both
            return jax.tree.map(lambda a, b: jnp.where(_spread(seen, a), a, b), new, found)

        def look(pairs, found):
            def run(arrays, found):
                more = attend(ring.placed, arrays.given)
                for i, query in enumerate(pairs.queries):
                    new = merged(arrays.seen[i], _at(more, i), _at(found, query))
                    found = _put(found, query, new)
                return found

            return _if_any(pairs.arrays.seen, run, pairs.arrays, found)

        def turn(carry, number):
            keys, found = carry
            passed = ring.pass_on(keys)  # while the device looks at what it passes on
            return (passed, look(ring.pairs(keys, number), found)), None

        found = attend(problem.inner, ring.own)
        if problem.parts == 2:
            found = look(ring.pairs(ring.keys, 0), found)
        if ring.rounds:
            carry = varying((ring.pass_on(ring.keys), found))
            keys, found = lax.scan(turn, carry, ring.numbers)[0]
            found = look(ring.pairs(keys, ring.rounds), found)
        found = ring.joined(found)
        if ring.known is not None:
            seen, given = ring.known
            run = lambda seen, given, found: merged(seen, attend(ring.placed, given), found)
            found = _if_any(seen, run, seen, given, found)
        ys, sums = found
        return (ys.astype(operands.q.dtype), sums) if save else (ys.astype(operands.q.dtype),)

    def backward(self, problem, operands, outputs, residuals, cotangents, wanted, target):
        """Returns the gradients of the operands."""
        ring, total = _Ring(problem, operands), _total(operands.q)
        made = outputs, residuals, cotangents

        def pulled(problem, given, made):
            """The gradients of q, k and v, from one block of keys."""
            d = self.block.backward(problem, given, *made, wanted, target)
            return tuple(a.astype(total) for a in d[:3])  # 0 for a query that sees nothing of it

        def look(pairs, found):
            def run(arrays, found):
                d_q, d_keys = found
                more, *others = pulled(ring.placed, arrays.given, arrays.made)
                for i, (query, key) in enumerate(zip(pairs.queries, pairs.keys, strict=True)):
                    d_q = _put(d_q, query, _at(d_q, query) + more[i])
                    new = jax.tree.map(jnp.add, _at(d_keys, key), _at(others, i))
                    d_keys = _put(d_keys, key, new)
                return d_q, d_keys

            return _if_any(pairs.arrays.seen, run, pairs.arrays, found)

        def turn(carry, number):
            keys, found = carry
            passed = ring.pass_on(keys)
            d_q, d_keys = look(ring.pairs(keys, number, made), found)
            return (passed, (d_q, ring.pass_round(d_keys, 1))), None

        d_q, *d_own = pulled(problem.inner, ring.own, ring.parts(made))
        if problem.parts == 2:
            d_q, d_own = look(ring.pairs(ring.keys, 0, made), (d_q, d_own))
        if ring.rounds:
            found = d_q, list(map(jnp.zeros_like, d_own))
            carry = varying((ring.pass_on(ring.keys), found))
            keys, found = lax.scan(turn, carry, ring.numbers)[0]
            d_q, others = look(ring.pairs(keys, ring.rounds, made), found)
            others = ring.pass_round(others, problem.devices.count - ring.rounds)
            d_own = map(jnp.add, d_own, others)  # they are back where their keys came from
        d_q, d_k, d_v = ring.joined((d_q, *d_own))
        known = operands.known
        if known is not None and ring.known is not None:
            seen, given = ring.known
            found = d_q, *(jnp.zeros_like(a, total) for a in known[:2])
            add = lambda given, found: jax.tree.map(
                jnp.add, found, pulled(ring.placed, given, made)
            )
            d_q, *d_known = _if_any(seen, add, given, found)
            known = *(d.astype(a.dtype) for d, a in zip(d_known, known)), known[2]
        d_q, d_k, d_v = (d.astype(a.dtype) for d, a in zip((d_q, d_k, d_v), operands))
        return operands._replace(q=d_q, k=d_k, v=d_v, known=known)


class _Arrays(NamedTuple):
    """Of pairs of a device's queries with keys, all of which came before them.

    Attributes:
      given: q [pairs, B, T / parts, N, D], and so on.
      seen: bool [pairs, B, T / parts], which queries see any of the keys.
      made: what a backward pass is given of the queries.
    """

    given: p.Operands
    seen: Array
    made: Any


class _Pairs(NamedTuple):
    """Them, and which parts the queries and the keys of each are."""

    arrays: _Arrays
    queries: Sequence[Any]
    keys: Sequence[Any]


class _Ring:
    """A device's place in the ring.

    Attributes:
      own: its queries with its keys, in parts that are not seen by each other.
      keys: its keys and values in parts, with their places: what is passed on.
      known: which queries see any key of before the first step, and both; None if there are none.
      placed: the problem of its queries and the keys of another.
      rounds: how many other devices' keys its queries may see.
      numbers: of the rounds but the last, from 1.
    """

    def __init__(self, problem: Problem, operands: Operands) -> None:
        self.problem, self.place = problem, operands.place
        self.placed, self.rounds = problem.inner._replace(plain=False), problem.devices.count - 1
        self.time = operands.q.ndim - 3
        q, k, v, q_place, k_place, known, _ = operands
        if problem.inner.plain:
            position = jnp.broadcast_to(self._positions(q.shape[self.time]), q.shape[:-2])
            q_place = k_place = position, jnp.zeros_like(position)
        self.q, self.places = self.parts((q, q_place))
        self.keys = self.parts((k, v, k_place))
        k, v, k_place = self.keys
        places = (None, None) if problem.inner.plain else (self.places, k_place)
        self.own = p.Operands(self.q, k, v, *places)
        window = problem.inner.window
        if window is not None and not problem.padded:
            self.rounds = min(self.rounds, -(-(window - 1) // max(q.shape[self.time], 1)))
        self.numbers = jnp.arange(1, max(self.rounds, 1), dtype=jnp.int32)
        self.known = None
        if known is not None:
            seen = _sees(window, q_place, known[2])
            self.known = seen, p.Operands(q, *known[:2], q_place, known[2])

    def _positions(self, steps):
        """Of the device's steps, int32 [T]."""
        part = jnp.arange(steps // self.problem.parts, dtype=jnp.int32)
        last = 2 * self.problem.devices.count - 1
        stretches = (self.place, last - self.place)[: self.problem.parts]
        return jnp.concatenate([part + stretch * part.size for stretch in stretches])

    def parts(self, tree):
        """[B, T, ...] in parts: [parts, B, T / parts, ...]."""
        count, time = self.problem.parts, self.time
        return jax.tree.map(lambda a: jnp.stack(jnp.split(a, count, time)), tree)

    def joined(self, tree):
        """The inverse."""
        return jax.tree.map(lambda a: jnp.concatenate(list(a), self.time), tree)

    def pass_on(self, tree):
        """To the next device; from the last to none where the first would not look at it."""
        count = self.problem.devices.count
        if self.problem.parts == 2:
            return self.pass_round(tree, 1)
        return self.problem.devices.moved(tree, [(k, k + 1) for k in range(count - 1)])

    def pass_round(self, tree, distance):
        """To the device so many places later in the ring."""
        count = self.problem.devices.count
        places = [(k, (k + distance) % count) for k in range(count)]
        return self.problem.devices.moved(tree, places)

    def pairs(self, keys, number, made=()):
        """What a device looks at in a round; in round 0, at the earlier of its own parts."""
        earlier = self.place >= number
        if self.problem.parts == 1:
            return self._pairs(keys, (0,), (0,), made, earlier)
        if isinstance(number, int) and number == 0:
            return self._pairs(keys, (1,), (0,), made, True)
        # Both of its parts see the early one of these keys, or its late one sees both.
        later = jnp.where(earlier, 0, 1)
        return self._pairs(keys, (1, later), (0, later), made, True)

    def _pairs(self, keys, queries, others, made, which):
        q, q_place = (_several(a, queries) for a in (self.q, self.places))
        k, v, k_place = _several(keys, others)
        seen = _sees(self.problem.inner.window, q_place, k_place) & which
        given = p.Operands(q, k, v, q_place, k_place)
        arrays = _Arrays(given, seen, _several(self.parts(made), queries))
        return _Pairs(arrays, queries, others)


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


def _if_any(seen, run, *args):
    """``run(*args)`` if any query is ``seen``, else the last of ``args``."""
    seen, args = varying((seen, args))
    return lax.cond(seen.any(), run, lambda *args: args[-1], *args)


def _at(tree, i):
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _put(tree, i, new):
    put = lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0)
    return jax.tree.map(put, tree, new)


def _several(tree, numbers):
    """Parts of these numbers, stacked."""
    return jax.tree.map(lambda a: jnp.stack([_at(a, i) for i in numbers]), tree)


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
    time, places = ring.time, ring.joined(ring.places)
    gather = lambda a: lax.all_gather(a, problem.devices.axis, axis=time, tiled=True)
    k, v, place = jax.tree.map(gather, ring.joined(ring.keys))
    if operands.known is not None:
        k, v, place = jax.tree.map(
            lambda *both: jnp.concatenate(both, time), (k, v, place), operands.known
        )
    given = p.Operands(operands.q, k, v, places, place)
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
