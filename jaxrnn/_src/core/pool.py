"""Many streams in one array of states: what a server runs a cell with."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, check_cell
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.typing import Array, InputArray, Inputs, Outputs, Params, State

# Slots or counts: integers, known or traced.
Numbers: TypeAlias = InputArray | Sequence[int] | int


class Streams(NamedTuple):
    """The streams of a ``Pool``: a tree of arrays, with the axis of the slots first.

    Attributes:
      state: the cell's state in each slot, a tree of [S, ...].
      live: bool [S], whether there is a stream in the slot.
      past: the states before the last K steps, a tree of [S, K, ...], as a ring.
      place: int32 [S], where in the ring the next one goes.
      kept: int32 [S], how many steps the stream can go back.
    """

    state: State
    live: Array
    past: State
    place: Array
    kept: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Pool:
    """S slots for streams of one cell, for serving: a step runs all of them in one call.

    Streams come, go, stand still, go back and fork, and each has the numbers it would have alone.
    Every method is a pure function from ``Streams`` to ``Streams`` that compiles once, whatever
    the ages of the streams: call them inside of ``jax.jit``, with ``streams`` donated.

    Going back is what speculative decoding wants: run a few guessed tokens, then take back those
    that were wrong. For it, a pool keeps K states of each slot beside the one it steps, however
    large they are; an attention's is its cache.

    Args:
      cell: a cell, whose steps draw no random numbers here.
      slots: S, how many streams there can be.
      history: K, how many steps a stream can go back.

    Raises:
      ValueError, TypeError: at trace time, naming the argument, what came and what is wanted. A
        slot or a count out of range is an error where it is known. Inside ``jax.jit`` it is not:
        such a slot is left out, and a stream goes back as far as it can.

    >>> pool = jaxrnn.Pool(jaxrnn.gru(4), slots=8, history=2)
    >>> params = pool.cell.init(jax.random.key(0), 3)
    >>> streams = pool.admit(params, pool.init(params), jnp.array([0, 5]))
    >>> streams, ys = pool.step(params, streams, jnp.ones((8, 3)))
    >>> streams = pool.fork(streams, 5, jnp.array([1, 2]))
    >>> once, ys = pool.step(params, streams, jnp.ones((8, 3)))
    >>> again, same = pool.step(params, pool.rollback(once, once.kept // 2), jnp.ones((8, 3)))
    >>> bool((ys == same).all()), pool.evict(again, 5).live.astype(int)
    (True, Array([1, 1, 1, 0, 0, 0, 0, 0], dtype=int32))
    """

    cell: Cell
    slots: int
    history: int = 0

    def __post_init__(self) -> None:
        check_cell("cell", self.cell)
        object.__setattr__(self, "slots", checks.size("slots", self.slots))
        history = checks.size("history", self.history, least=0)
        object.__setattr__(self, "history", history)

    def init(self, params: Params) -> Streams:
        """No streams, for parameters of these types."""
        one = self.cell.initial_state(params, ())
        zeros = lambda *leading: jax.tree.map(
            lambda a: jnp.zeros((*leading, *a.shape), a.dtype), one
        )
        number = jnp.zeros(self.slots, jnp.int32)
        past = zeros(self.slots, self.history) if self.history else None
        return Streams(zeros(self.slots), number.astype(bool), past, number, number)

    def admit(
        self, params: Params, streams: Streams, slots: Numbers, state: State | None = None
    ) -> Streams:
        """Begins streams in some slots, in place of what was there.

        Args:
          params: from ``cell.init``.
          streams: the streams there are.
          slots: int [...], different ones.
          state: where they begin, a tree of [..., ...] arrays, as ``jaxrnn.unroll`` gives of a
            prompt; None for the initial state.
        """
        slots = self._checked("slots", slots)
        if state is None:
            one = self.cell.initial_state(params, ())
            state = jax.tree.map(lambda a: jnp.broadcast_to(a, (*slots.shape, *a.shape)), one)
        else:
            batch = slots.shape
            state = checks.completed_state(self.cell.initial_state, params, state, batch)
        set_at = lambda array, new: array.at[slots].set(new, mode="drop")
        return streams._replace(
            state=jax.tree.map(set_at, streams.state, state),
            live=set_at(streams.live, True),
            kept=set_at(streams.kept, 0),
        )

    def evict(self, streams: Streams, slots: Numbers) -> Streams:
        """Ends the streams in some slots, int [...]; those that have none stay as they are."""
        slots = self._checked("slots", slots)
        return streams._replace(
            live=streams.live.at[slots].set(False, mode="drop"),
            kept=streams.kept.at[slots].set(0, mode="drop"),
        )

    def step(
        self, params: Params, streams: Streams, xs: Inputs, active: InputArray | None = None
    ) -> tuple[Streams, Outputs]:
        """One step of the streams in all slots, or in some.

        Args:
          params: from ``cell.init``.
          streams: the streams there are.
          xs: the input of each slot, [S, I], tokens [S], or a dict of these; whatever stands where
            no stream steps changes nothing.
          active: bool [S], which of the streams step; None for all. The others stand still.

        Returns:
          ``(streams, ys)``, ys [S, O], zero where no stream stepped.
        """
        for x in jax.tree.leaves(xs):
            if jnp.shape(x)[:1] != (self.slots,):
                raise ValueError(f"xs: got {checks.described(x)}, want {self.slots} slots first")
        steps = streams.live
        if active is not None:
            checks.check_flags("active", active, (self.slots,), "[S]")
            steps = steps & active
        xs = select(steps, jax.tree.map(jnp.asarray, xs), 0)
        new, ys = jax.vmap(self.cell.step, (None, 0, 0))(params, streams.state, xs)
        moved = streams._replace(state=select(steps, new, streams.state))
        if self.history:
            at = jnp.where(steps, streams.place, self.history)  # beyond the ring: dropped
            put = jax.vmap(lambda past, old, at: past.at[at].set(old, mode="drop"))
            moved = moved._replace(
                past=jax.tree.map(lambda p, s: put(p, s, at), streams.past, streams.state),
                place=jnp.where(steps, (streams.place + 1) % self.history, streams.place),
                kept=jnp.where(steps, jnp.minimum(streams.kept + 1, self.history), streams.kept),
            )
        return moved, select(steps, ys, 0)

    def rollback(self, streams: Streams, counts: Numbers) -> Streams:
        """Takes back the last steps of each stream.

        Args:
          streams: the streams there are; ``kept`` says how far each can go back.
          counts: int [S], how many steps of each.
        """
        counts = _integers("counts", counts)
        if counts.shape != (self.slots,):
            want = f"one for each slot, [S] = ({self.slots},)"
            raise ValueError(f"counts: got shape {counts.shape}, want {want}")
        known, kept = _known(counts), _known(streams.kept)
        if known is not None and kept is not None:
            wrong = np.flatnonzero((known < 0) | (known > kept))
            if wrong.size:
                want = f"0 to {kept[wrong[0]]}, as many as are kept"
                raise ValueError(f"counts[{wrong[0]}]: got {known[wrong[0]]}, want {want}")
        counts = jnp.clip(counts, 0, streams.kept)
        if not self.history:
            return streams
        at = (streams.place - counts) % self.history
        old = jax.vmap(lambda past, at: jax.tree.map(lambda a: a[at], past))(streams.past, at)
        return streams._replace(
            state=select(counts > 0, old, streams.state), place=at, kept=streams.kept - counts
        )

    def fork(self, streams: Streams, source: Numbers, slots: Numbers) -> Streams:
        """Copies streams, with the steps that they can go back, into other slots.

        Args:
          streams: the streams there are.
          source: int, the slot of one, or one for each of ``slots``.
          slots: int [...], different ones; what was there is replaced.
        """
        source, slots = self._checked("source", source), self._checked("slots", slots)
        if source.shape not in ((), slots.shape):
            want = f"one, or one for each of slots, {slots.shape}"
            raise ValueError(f"source: got shape {source.shape}, want {want}")
        source = jnp.broadcast_to(source, slots.shape)
        slots = jnp.where(source < self.slots, slots, self.slots)  # of no stream, no copy
        return jax.tree.map(lambda a: a.at[slots].set(a[source], mode="drop"), streams)

    def _checked(self, name: str, slots: Numbers) -> Array:
        slots = _integers(name, slots)
        known = _known(slots)
        if known is not None and ((known < 0) | (known >= self.slots)).any():
            raise ValueError(f"{name}: got {known}, want slots from 0 to {self.slots - 1}")
        return jnp.where(slots < 0, self.slots, slots)  # out of range, where it would wrap around


def _integers(name: str, value: Numbers) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: got {checks.described(value)}, want integers")
    return value.astype(jnp.int32)


def _known(value: Array) -> np.ndarray | None:
    """The numbers of an array; None if it is traced."""
    return None if isinstance(value, Tracer) else np.asarray(value)
