"""Regularisers inside a recurrence: what they draw is a function of key, row and steps gone."""

import functools
import inspect

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, dropout_masks, inputs
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.cell import cell as from_step
from jaxrnn._src.core.sharding import nowhere
from jaxrnn._src.core.typing import Per
from jaxrnn._src.wrappers.stack import dropout
from jaxrnn._src.wrappers.views import views

_counter = dropout(0.0)  # its state is the number of steps


@constructor
def zoneout(cell: Cell, rate: float | tuple[float, ...]) -> Cell:
    """Units keep their previous values at random (Krueger et al. 2017, arXiv:1606.01305).

        new = cell's state after the step       state = old with probability rate, else new
        y = the first array of the state

    Without a key (evaluation) the state is the expectation, ``rate * old + (1 - rate) * new``.

    Args:
      cell: a cell whose output is the first array of its state.
      rate: the probability of keeping, from 0 to 1: a number, or a tuple of one for each array of
        the state, counters left out: ``(0.05, 0.5)`` for h and c of an LSTM.

    Returns:
      A ``Cell`` with the parameters of ``cell``; state ``(cell's, count)``, the number of steps
      modulo 2^32, int32 [...batch]. It runs as a scan of its step if a rate is not zero.

    Raises:
      ValueError: another number of rates; the output is not the first array of the state.

    >>> cell = jaxrnn.zoneout(jaxrnn.lstm(4), rate=(0.05, 0.5))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> ((h, c), count), ys = jaxrnn.unroll(cell, params, jnp.ones((5, 3)), key=jax.random.key(1))
    >>> bool((ys[-1] == h).all()), int(count)
    (True, 5)
    """
    check_cell("zoneout", cell)
    for each in rate if isinstance(rate, tuple) else (rate,):
        checks.probability("rate", each)

    def kept(rate, old, new, count, key):
        if rate == 0:
            return new
        if key is None:
            return rate * old + (1 - rate) * new
        return jnp.where(dropout_masks.kept(key, rate, count, new.shape[count.ndim :]), new, old)

    def change(params, state, x, count, key):
        leaves = jax.tree.leaves(state)
        if not leaves or not _gives_its_state(cell, *_shapes(params, state, x)):
            want = "a cell whose output is its state's first array"
            raise ValueError(f"zoneout: got {cell}, want {want}")
        after, y = cell.step(params, state, x, dropout_masks.fold(key, 0))
        new, tree = jax.tree.flatten(after)
        places = [i for i, a in enumerate(new) if jnp.issubdtype(a.dtype, jnp.inexact)]
        rates = rate if isinstance(rate, tuple) else (rate,) * len(places)
        if len(rates) != len(places):
            want = f"a number or one for each of {len(places)} arrays of the state"
            raise ValueError(f"rate: got {len(rates)} of them, want {want}: {cell}")
        for n, (place, rate_, old) in enumerate(zip(places, rates, jax.tree.leaves(state))):
            own = dropout_masks.fold(key, n + 1)
            new[place] = kept(rate_, old, new[place], count, own)
        return tree.unflatten(new), new[0].astype(y.dtype)

    nothing = not any(rate) if isinstance(rate, tuple) else rate == 0
    return _counted(cell, change, lambda key: nothing, draws=cell.draws or not nothing)


@constructor
def recurrent_dropout(cell: Cell, rate: float, *, per: Per = "step") -> Cell:
    """Drops what is added to the state, at random (Semeniuta et al. 2016, arXiv:1603.05118).

        lstm: c = f * c + i * d(g)        gru: h = (1 - z) * d(n) + z * h

    d zeroes units at random and scales up the others. Without a key (evaluation) it is the
    identity.

    Args:
      cell: a cell made by ``jaxrnn.gated`` whose update takes ``drop``: ``lstm``, ``gru``,
        ``ugrnn``, ``janet``, ``ligru``.
      rate: the probability of a zero, from 0 to 1.
      per: "step" for a new mask at every step, or "sequence" for the same at all of them.

    Returns:
      A ``Cell`` with the parameters of ``cell``; state ``(cell's, count)``, the number of steps
      modulo 2^32, int32 [...batch]. With a key it runs as a scan of its step, without one as
      ``cell`` does.

    Raises:
      TypeError: ``cell`` has no candidate that could be dropped.

    >>> cell = jaxrnn.recurrent_dropout(jaxrnn.lstm(4), 0.25)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)), key=jax.random.key(1))[1].shape
    (5, 4)
    """
    parts = _parts("recurrent_dropout", cell)
    if "drop" not in inspect.signature(parts.form.update).parameters:
        raise TypeError(f"recurrent_dropout: got {cell}, want a cell whose update takes drop")
    rate = checks.probability("rate", rate)
    checks.check_per(per)

    def change(params, state, x, count, key):
        def drop(g):
            return dropout_masks.scaled(
                g, dropout_masks.kept(key, rate, count, g.shape[-1:], per), rate
            )

        return parts.step(params, state, x, drop=drop)

    return _counted(cell, change, lambda key: key is None or rate == 0, draws=rate > 0)


@constructor
def variational_dropout(cell: Cell, rate: float) -> Cell:
    """Drops units of h before its products, the same at every step (arXiv:1512.05287).

        r[k] = R_k d(h)      for each gate k, with one mask a sequence (Gal & Ghahramani 2016)

    d zeroes units at random and scales up the others; what else a cell does with h, it does with
    all of it. Without a key (evaluation) d is the identity. For the same on the inputs, put
    ``jaxrnn.dropout(rate, per="sequence")`` before the cell.

    Args:
      cell: a cell made by ``jaxrnn.gated``.
      rate: the probability of a zero, from 0 to 1.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``. With a key it runs as a scan of its
      step, without one as ``cell`` does.

    Raises:
      TypeError: ``cell`` is not made by ``jaxrnn.gated``, or none of its gates is recurrent.

    >>> dropped = jaxrnn.variational_dropout(jaxrnn.gru(4), 0.25)
    >>> cell = jaxrnn.stack(jaxrnn.dropout(0.25, per="sequence"), dropped)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)), key=jax.random.key(1))[1].shape
    (5, 4)
    """
    parts = _parts("variational_dropout", cell)
    if not parts.form.recurrent:
        raise TypeError(f"variational_dropout: got {cell}, want a cell with recurrent gates")
    rate = checks.probability("rate", rate)

    def step(params, state, x, key):
        h = state[0]
        rows = jnp.zeros(inputs.leading(x), jnp.int32)
        kept = dropout_masks.kept(key, rate, rows, h.shape[-1:], "sequence")
        return parts.step(params, state, x, dropout_masks.scaled(h, kept, rate))

    changed = from_step(cell.init, cell.initial_state, step)

    def run(params, state, x, key, call):
        return call(cell if key is None or rate == 0 else changed, params, state, x, key)

    return Cell(cell.init, cell.initial_state, *views(run, cell.initial_state), draws=rate > 0)


def _counted(cell, change, plain, draws):
    """A cell with a count of its steps.

    Args:
      cell: what it is made of.
      change: ``(params, state, x, count, key) -> (state, y)``, a step.
      plain: ``key -> bool``, whether the step is ``cell``'s own.
      draws: whether it draws random numbers.
    """

    def initial_state(params, batch_shape):
        return cell.initial_state(params, batch_shape), _counter.initial_state({}, batch_shape)

    def step(params, state, x, key):
        state, count = state
        state, y = change(params, state, x, count, key)
        return (state, count + 1), y

    changed = from_step(cell.init, initial_state, step)

    def run(params, state, x, key, call):
        if not plain(key):
            return call(changed, params, state, x, key)
        state, count = (None, None) if state is None else state
        state, y = call(cell, params, state, x, key)
        count, _ = call(_counter, {}, count, x, None)
        return (state, count), y

    return Cell(cell.init, initial_state, *views(run, initial_state), draws)


def _parts(name, cell):
    check_cell(name, cell)
    if cell.gated is None:
        raise TypeError(f"{name}: got {cell}, want a cell made by jaxrnn.gated, as lstm or gru")
    return cell.gated


def _shapes(params, state, x):
    """What a step is given, as leaves and their tree; x in the state's type."""
    dtype = jax.tree.leaves(state)[0].dtype
    leaves, tree = jax.tree.flatten((params, state, jax.tree.map(lambda a: a.astype(dtype), x)))
    return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves), tree


@functools.lru_cache(256)
def _gives_its_state(cell, leaves, tree):
    """Whether a step's output is the first array of the state it gives: the same in its jaxpr."""
    with nowhere():
        outs = jax.make_jaxpr(cell.step)(*tree.unflatten(leaves)).jaxpr.outvars
    return outs[0] is outs[-1]
