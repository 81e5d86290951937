"""Ragged sequences in the rows of one array: several to a row, so that little of it is padding."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._src.core import checks, sequence
from jaxrnn._src.core.typing import Array, InputArray, State


def pack(sequences: Iterable[Any], length: int, *, rows: int | None = None) -> tuple[Any, Any]:
    """Puts sequences of different lengths into rows, one after the other.

    The longest comes first, and each goes into the first row with room for it (first-fit
    decreasing), whole. It runs in NumPy, before any ``jax.jit``.

    Args:
      sequences: a list of arrays [t, ...], or of trees of them, as of inputs and targets.
      length: T, the steps of a row.
      rows: B, how many rows there are, so that every batch has one shape; None for as many as are
        needed.

    Returns:
      ``(packed, segment_ids)``: the arrays as [T, B, ...], zero at padding, and int32 [T, B]: 1
      for the steps of the first sequence, 2 for those of the second, and so on, and 0 for padding.

    Raises:
      ValueError: no sequences; one that is empty or longer than ``length``; they need more rows.

    >>> import numpy as np
    >>> sequences = [np.ones((steps, 2), np.float32) for steps in (3, 5, 2)]
    >>> xs, segment_ids = jaxrnn.pack(sequences, 6)
    >>> xs.shape, segment_ids.T.tolist()
    ((6, 2, 2), [[2, 2, 2, 2, 2, 0], [1, 1, 1, 3, 3, 0]])
    >>> cell = jaxrnn.gru(4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> ys = jaxrnn.unroll(cell, params, xs, segment_ids=segment_ids)[1]
    >>> [y.shape for y in jaxrnn.unpack(ys, segment_ids)]
    [(3, 4), (5, 4), (2, 4)]
    """
    length, sequences = checks.size("length", length), list(sequences)
    if not sequences:
        raise ValueError("sequences: got none, want one or more")
    sequences = [jax.tree.map(np.asarray, sequence) for sequence in sequences]
    steps = [_steps(i, sequence, length) for i, sequence in enumerate(sequences)]
    room, places = [], {}
    for i in sorted(range(len(steps)), key=lambda i: -steps[i]):
        row = next((row for row, left in enumerate(room) if left >= steps[i]), len(room))
        if row == len(room):
            room.append(length)
        places[i] = length - room[row], row
        room[row] -= steps[i]
    count = len(room) if rows is None else checks.size("rows", rows)
    if count < len(room):
        raise ValueError(f"rows: got {count}, want {len(room)} or more for these sequences")

    def put(*arrays):
        packed = np.zeros((length, count, *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (first, row) in places.items():
            packed[first : first + steps[i], row] = arrays[i]
        return packed

    ids = [np.full(n, i + 1, np.int32) for i, n in enumerate(steps)]
    return jax.tree.map(put, *sequences), put(*ids)


def unpack(packed: Any, segment_ids: InputArray) -> list[Any]:
    """Takes sequences out of the rows that ``pack`` put them into.

    Args:
      packed: arrays [T, B, ...], as outputs or losses of packed inputs; or a tree of them.
      segment_ids: int [T, B], from ``pack``.

    Returns:
      A list of NumPy arrays [t, ...], or of trees of them, in the order that ``pack`` was given.

    Raises:
      ValueError: an array does not begin with the axes [T, B]; a segment is in two rows.
      TypeError: ``segment_ids`` are no integers.

    >>> import numpy as np
    >>> packed, segment_ids = jaxrnn.pack([np.arange(3), np.arange(2)], 6)
    >>> jaxrnn.unpack(packed, segment_ids)
    [array([0, 1, 2]), array([0, 1])]
    """
    ids = np.asarray(segment_ids)
    checks.check_segment_ids(ids, ids.shape, "[T, B]")
    packed = jax.tree.map(np.asarray, packed)
    for a in jax.tree.leaves(packed):
        if a.shape[:2] != ids.shape:
            raise ValueError(f"packed: got shape {a.shape}, want [T, B, ...] of {ids.shape}")
    found = []
    for k in range(1, ids.max(initial=0) + 1):
        steps, rows = np.nonzero(ids == k)
        if len(set(rows)) != 1:
            came = f"{k} in the rows {sorted(set(rows.tolist()))}"
            raise ValueError(f"segment_ids: got {came}, want each of 1 to {ids.max()} in one row")
        found.append(jax.tree.map(lambda a, at=(steps, rows): a[at], packed))
    return found


def from_segment_ids(segment_ids: InputArray) -> tuple[Array, Array]:
    """``mask`` and ``starts`` of packed rows, from the number of the segment of each step.

    ``jaxrnn.unroll`` takes ``segment_ids`` itself; this is for ``jaxrnn.linear_scan``, a loss, and
    other functions that have a mask.

    Args:
      segment_ids: int [T, ...batch]: 0 for padding, another number for the steps of each segment.
        Padding may lie anywhere, within a segment too.

    Returns:
      ``(mask, starts)``, bool [T, ...batch] each, for ``jaxrnn.unroll``: true at the steps of a
      segment, and at the first one of each. So is the first in a row: no state enters it.

    Raises:
      ValueError, TypeError: at trace time, of another shape or type.

    >>> mask, starts = jaxrnn.from_segment_ids(jnp.array([7, 7, 0, 2, 2]))
    >>> print(mask, starts)
    [ True  True False  True  True] [ True False False  True False]
    """
    ids = _ids(segment_ids)
    return ids != 0, sequence.segment_starts(ids, jnp.zeros(ids.shape[1:], ids.dtype))


def final_states(
    states: State, segment_ids: InputArray, count: int, *, reverse: bool = False
) -> State:
    """The state that each packed sequence ends in, whichever row it is in.

    Args:
      states: arrays [T, ...batch, ...], or a tree of them: the states after each step, which
        ``jaxrnn.unroll(..., return_states=True)`` gives.
      segment_ids: int [T, ...batch], from ``pack``: 1 to ``count``, and 0 for padding.
      count: N, how many sequences there are.
      reverse: the rows were run from the last step to the first.

    Returns:
      Arrays [N, ...], in the order that ``pack`` was given: of each sequence, the state after the
      step that was its last one. Zeros for one that is not there.

    Raises:
      ValueError, TypeError: at trace time, of another shape or type.

    >>> import numpy as np
    >>> sequences = [np.ones((steps, 2), np.float32) for steps in (3, 5, 2)]
    >>> xs, segment_ids = jaxrnn.pack(sequences, 6)
    >>> cell = jaxrnn.lstm(4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> options = {"segment_ids": segment_ids, "return_states": True}
    >>> _, (ys, states) = jaxrnn.unroll(cell, params, xs, **options)
    >>> h, c = jaxrnn.final_states(states, segment_ids, 3)
    >>> c.shape, bool((c[0] == states[1][2, 1]).all())
    ((3, 4), True)
    """
    ids, count = _ids(segment_ids), checks.size("count", count)
    for a in jax.tree.leaves(states):
        if a.shape[: ids.ndim] != ids.shape:
            want = f"[T, ...batch, ...] of segment_ids {ids.shape}"
            raise ValueError(f"states: got shape {a.shape}, want {want}")
    steps, *batch = ids.shape
    if not ids.size:
        return jax.tree.map(lambda a: jnp.zeros((count, *a.shape[ids.ndim :]), a.dtype), states)
    time = lax.broadcasted_iota(jnp.int32, ids.shape, 0).reshape(-1)
    row = lax.rem(jnp.arange(ids.size, dtype=jnp.int32), jnp.int32(ids.size // steps))
    at = jnp.where(ids > 0, ids - 1, count).reshape(-1)  # padding: beyond the last, so dropped
    none = jnp.full(count, -1, jnp.int32)
    last = none.at[at].max(steps - 1 - time if reverse else time, mode="drop")
    row = none.at[at].max(row, mode="drop")
    last = jnp.where(last < 0, 0, steps - 1 - last if reverse else last)
    index = (last, *(jnp.unravel_index(jnp.maximum(row, 0), tuple(batch)) if batch else ()))
    return jax.tree.map(lambda a: sequence.select(row >= 0, a[index], 0), states)


def _ids(segment_ids: InputArray) -> Array:
    """Checked, as an array of JAX's."""
    layout = "[T, ...batch]"
    if getattr(segment_ids, "ndim", None) == 0:
        raise ValueError(f"segment_ids: got shape (), want {layout}, one axis at least")
    checks.check_segment_ids(segment_ids, getattr(segment_ids, "shape", layout), layout)
    return jnp.asarray(segment_ids)


def _steps(i: int, sequence: Any, length: int) -> int:
    """The steps of a sequence, the same of all its arrays."""
    shapes = [a.shape for a in jax.tree.leaves(sequence)]
    found = {shape[0] if shape else -1 for shape in shapes}
    if len(found) != 1 or -1 in found:
        raise ValueError(f"sequences[{i}]: got shapes {shapes}, want [t, ...] of one t")
    (steps,) = found
    if not 1 <= steps <= length:
        raise ValueError(f"sequences[{i}]: got {steps} steps, want 1 to length={length}")
    return steps
