"""Cells made of cells: each changes step and unroll together, so every layer keeps its kernel."""

import contextlib
import functools
import operator

import jax
import jax.numpy as jnp

from jaxrnn._src.builders.stateless import stateless
from jaxrnn._src.core import (
    checks,
    dropout_masks,
    every_step,
    memory_order,
    param_spec,
    params_tree,
)
from jaxrnn._src.core.cell import Cell, check_cell, constructor, output_size
from jaxrnn._src.core.inputs import leading
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.time_axis import positions, resets
from jaxrnn._src.core.typing import Merge, Per
from jaxrnn._src.wrappers.views import views


@constructor
def stack(*cells: Cell) -> Cell:
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
    return _several("a stack", cells, lambda ys: ys[-1], deep=True)


@constructor
def parallel(*cells: Cell, merge: Merge = "concat") -> Cell:
    """Cells side by side, each fed with the same input.

    Args:
      cells: one or more cells.
      merge: "concat", "sum", "mean", "product", or a function of all their outputs [..., O]; None
        for all outputs as a tuple, which only the last cell of a stack may give.

    Returns:
      A ``Cell``. State: a tuple of the cells' states; parameters ``{"0": ..., "1": ...}``.

    Raises:
      ValueError: no cells, or an unknown ``merge``. An error in a cell says which.

    >>> cell = jaxrnn.parallel(jaxrnn.lstm(8), jaxrnn.gru(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)))[1].shape
    (5, 12)
    """
    merged = merge_function(merge)
    return _several("parallel", cells, lambda ys: merged(*ys), zero=False)


def _several(whole, cells, output, deep=False, zero=True):
    """A cell made of cells.

    Args:
      whole: what they are together, for errors.
      output: of all outputs.
      deep: each is fed with the output of the one before, not all with the same input.
      zero: that the output of zeros is zero.
    """
    if not cells:
        raise ValueError(f"{whole}: got no cells, want one or more")
    for cell in cells:
        check_cell(whole, cell)
    inits = {str(i): cell.init for i, cell in enumerate(cells)}

    def init(key, in_size):
        params, size = {}, in_size
        for i, (k, cell) in enumerate(zip(jax.random.split(key, len(cells)), cells)):
            with in_layer(i, whole, cell):
                params[str(i)] = cell.init(k, size)
                if deep and i + 1 < len(cells):
                    size = output_size(cell, params[str(i)], size)
        return params

    def initial_state(params, batch_shape):
        params = params_tree.parts(params, inits)
        return tuple(c.initial_state(params[str(i)], batch_shape) for i, c in enumerate(cells))

    def run(params, state, x, key, call):
        params = params_tree.parts(params, inits)
        checks.check_states(state, len(cells))
        after, ys = [], []
        for i, cell in enumerate(cells):
            with jax.named_scope(str(i)), in_layer(i, whole, cell):
                before = None if state is None else state[i]
                new, y = call(cell, params[str(i)], before, x, dropout_masks.fold(key, i))
                if deep and i + 1 < len(cells):
                    checks.check_one_output(cell, y)
            after.append(new)
            ys.append(y)
            x = y if deep else x
        return tuple(after), output(ys)

    draws = any(cell.draws for cell in cells)
    return Cell(init, initial_state, *views(run, initial_state, zero), draws)


@constructor
def residual(cell: Cell) -> Cell:
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
    check_cell("residual", cell)

    def run(params, state, x, key, call):
        state, y = call(cell, params, state, x, key)
        _check_sizes("residual", cell, x, y)
        return state, x + y

    return Cell(cell.init, cell.initial_state, *views(run, cell.initial_state), cell.draws)


@constructor
def highway(cell: Cell, *, bias: float = -1.0) -> Cell:
    """Mixes a cell's output with its input, by a gate (Srivastava et al. 2015, arXiv:1505.00387).

        y = t * cell(x) + (1 - t) * x      t = sigmoid(W x + b)

    Args:
      cell: a cell whose output has the size of its input.
      bias: what b begins at; below zero, most of the input passes at first.

    Returns:
      A ``Cell`` with the state of ``cell``; parameters ``{"cell": ..., "w": [I, I], "b": [I]}``.

    Raises:
      ValueError: the sizes differ.

    >>> cell = jaxrnn.highway(jaxrnn.gru(4))
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 4), jnp.ones((5, 4)))[1].shape
    (5, 4)
    """
    check_cell("highway", cell)
    parts = lambda params: params_tree.parts(params, {"cell": cell.init}, ("w", "b"))

    def init(key, in_size):
        inner, own = jax.random.split(key)
        w = param_spec.input_init(own, (in_size, in_size))
        return {"cell": cell.init(inner, in_size), "w": w, "b": jnp.full(in_size, bias, w.dtype)}

    def initial_state(params, batch_shape):
        return cell.initial_state(parts(params)["cell"], batch_shape)

    def run(params, state, x, key, call):
        params = parts(params)
        own = {"w": params["w"], "b": params["b"]}
        checks.check_params(own, {"w": (x.shape[-1],) * 2, "b": x.shape[-1:]}, "w", x)
        state, y = call(cell, params["cell"], state, x, key)
        _check_sizes("highway", cell, x, y)
        t = tag("highway.t", jax.nn.sigmoid(affine(x, own["w"], own["b"])))
        dtype, x, y = x.dtype, x.astype(t.dtype), y.astype(t.dtype)
        return state, (x + t * (y - x)).astype(dtype)

    return Cell(init, initial_state, *views(run, initial_state), cell.draws)


@constructor
def dense(cell: Cell) -> Cell:
    """Concatenates a cell's input and its output (Huang et al. 2017, arXiv:1608.06993).

    Args:
      cell: a cell.

    Returns:
      A ``Cell``: ``parallel`` of one that gives back its input, which has no parameters and no
      state, and ``cell``, with the state and parameters of that.

    >>> cell = jaxrnn.dense(jaxrnn.gru(4))
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 3)))[1].shape
    (5, 7)
    """
    check_cell("dense", cell)
    return parallel(stateless(lambda key, in_size: {}, lambda params, x: x), cell)


def _sum(*ys):
    return functools.reduce(operator.add, ys)


_MERGES = {
    "concat": lambda *ys: jnp.concatenate(ys, -1),
    "sum": _sum,
    "mean": lambda *ys: _sum(*ys) / len(ys),
    "product": lambda *ys: functools.reduce(operator.mul, ys),
    None: lambda *ys: ys,
}


@constructor
def bidirectional(forward: Cell, backward: Cell | None = None, *, merge: Merge = "concat") -> Cell:
    """Two cells, one run from each end (Schuster & Paliwal 1997).

    With ``lengths`` or ``mask`` the backward cell begins at the last real step; with ``starts``
    no state crosses from one episode to another in either direction.

    Args:
      forward: the cell run from the first step to the last.
      backward: the one run from the last to the first; None for another like ``forward``, with
        parameters of its own.
      merge: "concat", "sum", "mean", "product", or a function of both outputs [..., O]; None for
        both outputs as a pair, which only the last cell of a stack may give.

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
        check_cell("bidirectional", cell)
    merged = merge_function(merge)
    inits = {"forward": forward.init, "backward": backward.init}

    def init(key, in_size):
        keys = jax.random.split(key)
        return {
            "forward": forward.init(keys[0], in_size),
            "backward": backward.init(keys[1], in_size),
        }

    def initial_state(params, batch_shape):
        params = params_tree.parts(params, inits)
        return (
            forward.initial_state(params["forward"], batch_shape),
            backward.initial_state(params["backward"], batch_shape),
        )

    def step(params, state, x, key=None):
        raise ValueError("bidirectional has no step: it needs the whole sequence; use unroll")

    def unroll(params, state, xs, options, every=False):
        params = params_tree.parts(params, inits)
        given = (None, None) if state is None else state
        reverse = options.reverse
        ways = (forward, "forward", reverse), (backward, "backward", not reverse)
        final, ys, states = [], [], []
        for n, (cell, name, turned) in enumerate(ways):
            own = options.replace(reverse=turned, key=dropout_masks.fold(options.key, n))
            args = params[name], given[n], xs, own
            with jax.named_scope(name):
                after, both = every_step.run(cell, *args, every=every)
            y, after_each = both if every else (both, None)
            final.append(after)
            ys.append(y)
            states.append(after_each)
        ys = select(options.mask, memory_order.in_place(merged, *ys), 0)
        return tuple(final), (ys, tuple(states)) if every else ys

    return Cell(init, initial_state, step, unroll, forward.draws or backward.draws)


@constructor
def dropout(rate: float, *, per: Per = "step") -> Cell:
    """Zeroes features at random and scales up the others (Srivastava et al. 2014).

    Without a key (evaluation) it is the identity. The mask is a function of the key, the row of
    the batch, and, per step, of how many steps have gone since the episode began.

    Args:
      rate: the probability of a zero, from 0 to 1.
      per: "step" for a new mask at every step, or "sequence" for the same at all of them
        (variational dropout, Gal & Ghahramani 2016, arXiv:1512.05287).

    Returns:
      A ``Cell`` without parameters; its state counts the steps, int32 [...batch], modulo 2^32.

    >>> cell = jaxrnn.dropout(0.5, per="sequence")
    >>> ys = jaxrnn.unroll(cell, {}, jnp.ones((3, 4)), key=jax.random.key(1))[1]
    >>> bool((ys == ys[:1]).all()), sorted({float(y) for y in ys[0]})
    (True, [0.0, 2.0])
    """
    rate = checks.probability("rate", rate)
    checks.check_per(per)

    def kept(count, size, key):
        """bool [...batch, size], for count [...batch]."""
        return dropout_masks.kept(key, rate, count, (size,), per)

    scaled = functools.partial(dropout_masks.scaled, rate=rate)

    def initial_state(params, batch_shape):
        return jnp.zeros(batch_shape, jnp.int32)

    def step(params, state, x, key=None):
        state = checks.completed_state(initial_state, params, state, leading(x))
        if key is None or rate == 0:
            return state + 1, x
        return state + 1, scaled(x, kept(state, x.shape[-1], key))

    def unroll(params, state, xs, options, every=False):
        mask, reverse, key = options.mask, options.reverse, options.key
        first = initial_state(params, leading(xs)[1:]) if state is None else state
        real = jnp.ones(leading(xs), bool) if mask is None else mask
        before, after = positions(first, real, resets(options.starts, mask, reverse), reverse)
        ys = xs
        if key is not None and rate > 0:
            of_steps = jax.vmap(kept, (0, None, None))(before, xs.shape[-1], key)
            ys = memory_order.in_place(scaled, xs, of_steps)
        return after, (ys, before + real.astype(before.dtype)) if every else ys

    whole = streamed(unroll, initial_state, lambda params, xs: ())
    return Cell(lambda key, in_size: {}, initial_state, step, whole, draws=rate > 0)


def merge_function(merge):
    """The function that ``merge`` is, or the name of."""
    if not callable(merge) and merge not in _MERGES:
        raise ValueError(f"merge: got {merge!r}, want a function or one of {tuple(_MERGES)}")
    return merge if callable(merge) else _MERGES[merge]


def _check_sizes(name, cell, x, y):
    if x.shape != y.shape:
        sizes = f"an input of {x.shape[-1]} and an output of {y.shape[-1]} features"
        raise ValueError(f"{name}: got {sizes}, want them equal: {cell}")


@contextlib.contextmanager
def in_layer(number, whole, cell):
    """Says in which layer an error came up."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        error.add_note(f"in layer {number} of {whole}, {cell}")
        raise
