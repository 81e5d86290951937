"""Cells made of cells: each changes step and unroll together, so every layer keeps its kernel."""

import contextlib

import jax
import jax.numpy as jnp

from jaxrnn import arguments
from jaxrnn.cell import Cell, constructor, output_size
from jaxrnn.scan import positions, resets, select


@constructor
def stack(*cells):
    """Cells in layers, each fed with the output of the one before: a deep network.

    Args:
      cells: one or more cells.

    Returns:
      A ``Cell``. State: a tuple of the layers' states; parameters ``{"0": ..., "1": ...}``.

    Raises:
      ValueError: no cells. An error in a layer says which.

    >>> cell = jaxrnn.stack(jaxrnn.lstm(8), jaxrnn.dropout(0.1), jaxrnn.gru(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)))[1].shape
    (5, 4)
    """
    if not cells:
        raise ValueError("stack: got no cells, want one or more")
    for cell in cells:
        _check_cell("stack", cell)

    def init(key, in_size):
        params = {}
        for i, (k, cell) in enumerate(zip(jax.random.split(key, len(cells)), cells)):
            with _layer(i, cell):
                params[str(i)] = cell.init(k, in_size)
                in_size = output_size(cell, in_size)
        return params

    def initial_state(params, batch_shape):
        return tuple(c.initial_state(params[str(i)], batch_shape) for i, c in enumerate(cells))

    def run(params, state, x, key, call):
        arguments.check_layers(params, state, len(cells))
        after = []
        for i, cell in enumerate(cells):
            with _layer(i, cell):
                before = None if state is None else state[i]
                new, x = call(cell, params[str(i)], before, x, _fold(key, i))
                after.append(new)
        return tuple(after), x

    def step(params, state, x, key=None):
        return run(params, state, x, key, lambda cell, *args: cell.step(*args))

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        def call(cell, params, state, xs, key):
            return cell.unroll(params, state, xs, mask, starts, reverse, key, implementation)

        return run(params, state, xs, key, call)

    return Cell(init, initial_state, step, unroll)


@constructor
def residual(cell):
    """Adds a cell's input to its output (He et al. 2016, arXiv:1512.03385).

    Args:
      cell: a cell whose output has the size of its input.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``.

    Raises:
      ValueError: the sizes differ.

    >>> cell = jaxrnn.residual(jaxrnn.gru(4))
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 4), jnp.ones((5, 4)))[1].shape
    (5, 4)
    """
    _check_cell("residual", cell)

    def add(x, y):
        if x.shape != y.shape:
            sizes = f"an input of {x.shape[-1]} and an output of {y.shape[-1]} features"
            raise ValueError(f"residual: got {sizes}, want them equal: {cell}")
        return x + y

    def step(params, state, x, key=None):
        state, y = cell.step(params, state, x, key)
        return state, add(x, y)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        state, ys = cell.unroll(
            params, state, xs, mask, starts, reverse, key, implementation
        )  # fmt: skip
        return state, add(xs, ys)

    return Cell(cell.init, cell.initial_state, step, unroll)


_MERGES = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], -1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
}


@constructor
def bidirectional(forward, backward=None, *, merge="concat"):
    """Two cells, one run from each end (Schuster & Paliwal 1997).

    With ``lengths`` or ``mask`` the backward cell begins at the last real step; with ``starts``
    no state crosses from one episode to another in either direction.

    Args:
      forward: the cell run from the first step to the last.
      backward: the one run from the last to the first; None for another like ``forward``, with
        parameters of its own.
      merge: "concat", "sum", "mean", or a function of both outputs [..., O].

    Returns:
      A ``Cell``. State: ``(forward's, backward's)``, final states as each cell's own ``unroll``
      gives them; parameters ``{"forward": ..., "backward": ...}``.

    Raises:
      ValueError: an unknown ``merge``; ``step`` is called, for which the future would be needed.

    >>> cell = jaxrnn.bidirectional(jaxrnn.lstm(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 8)
    """
    backward = forward if backward is None else backward
    for cell in (forward, backward):
        _check_cell("bidirectional", cell)
    if not callable(merge) and merge not in _MERGES:
        raise ValueError(f"merge: got {merge!r}, want a function or one of {tuple(_MERGES)}")
    merged = merge if callable(merge) else _MERGES[merge]

    def init(key, in_size):
        keys = jax.random.split(key)
        return {
            "forward": forward.init(keys[0], in_size),
            "backward": backward.init(keys[1], in_size),
        }

    def initial_state(params, batch_shape):
        arguments.check_names(params, ("forward", "backward"))
        return (
            forward.initial_state(params["forward"], batch_shape),
            backward.initial_state(params["backward"], batch_shape),
        )

    def step(params, state, x, key=None):
        raise ValueError("bidirectional has no step: it needs the whole sequence; use unroll")

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        arguments.check_names(params, ("forward", "backward"))
        first, second = (None, None) if state is None else state
        first, ahead = forward.unroll(
            params["forward"], first, xs, mask, starts, reverse, _fold(key, 0), implementation
        )
        second, back = backward.unroll(
            params["backward"], second, xs, mask, starts, not reverse, _fold(key, 1),
            implementation,
        )  # fmt: skip
        return (first, second), select(mask, merged(ahead, back), 0)

    return Cell(init, initial_state, step, unroll)


@constructor
def dropout(rate, *, per="step"):
    """Zeroes features at random and scales up the others (Srivastava et al. 2014).

    Without a key (evaluation) it is the identity. The mask is a function of the key, the row of
    the batch, and, per step, of how many steps have gone since the episode began.

    Args:
      rate: the probability of a zero, from 0 to 1.
      per: "step" for a new mask at every step, or "sequence" for the same at all of them
        (variational dropout, Gal & Ghahramani 2016, arXiv:1512.05287).

    Returns:
      A ``Cell`` without parameters; its state counts the steps, int32 [...batch].

    >>> cell = jaxrnn.dropout(0.5, per="sequence")
    >>> ys = jaxrnn.unroll(cell, {}, jnp.ones((3, 4)), key=jax.random.key(1))[1]
    >>> bool((ys == ys[:1]).all()), sorted({float(y) for y in ys[0]})
    (True, [0.0, 2.0])
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, want a probability from 0 to 1")
    if per not in ("step", "sequence"):
        raise ValueError(f"per: got {per!r}, want 'step' or 'sequence'")

    def drop(x, count, key):
        """x [...batch, I], count [...batch]."""
        if key is None or rate == 0:
            return x
        rows = jnp.arange(count.size, dtype=jnp.int32).reshape(count.shape)

        def keep(count, row):
            own = jax.random.fold_in(key, row)
            own = jax.random.fold_in(own, count) if per == "step" else own
            return jax.random.bernoulli(own, 1 - rate, x.shape[-1:])

        for _ in count.shape:
            keep = jax.vmap(keep)
        kept = keep(count, rows)
        return jnp.where(kept, x / max(1 - rate, 1e-30), jnp.zeros_like(x))

    def initial_state(params, batch_shape):
        return jnp.zeros(batch_shape, jnp.int32)

    def step(params, state, x, key=None):
        state = arguments.completed_state(initial_state, params, state, x.shape[:-1])
        return state + 1, drop(x, state, key)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        first = initial_state(params, xs.shape[1:-1]) if state is None else state
        real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
        before, after = positions(first, real, resets(starts, mask, reverse), reverse)
        return after, jax.vmap(drop, (0, 0, None))(xs, before, key)

    return Cell(lambda key, in_size: {}, initial_state, step, unroll)


def _fold(key, number):
    return None if key is None else jax.random.fold_in(key, number)


def _check_cell(name, cell):
    if not isinstance(cell, Cell):
        raise TypeError(f"{name}: got {cell!r}, want a Cell, as jaxrnn.lstm(128)")


@contextlib.contextmanager
def _layer(number, cell):
    """Says in which layer an error came up."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in layer {number} of a stack, {cell}")
        raise
