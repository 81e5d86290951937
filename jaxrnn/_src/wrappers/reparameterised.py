"""Cells whose parameters are made of others, once a call: every implementation keeps running."""

import dataclasses
import inspect
from collections.abc import Callable

import jax

from jaxrnn._src.core import checks, dropout_masks, param_spec
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.typing import Init, Params, PRNGKey
from jaxrnn._src.wrappers.views import views


@constructor
def with_params(
    cell: Cell,
    transform: Callable[[Params], Params] | Callable[[Params, PRNGKey | None], Params],
    init: Init | None = None,
) -> Cell:
    """A cell whose parameters are a function of others.

    Args:
      cell: a cell.
      transform: ``params -> params``, what ``cell`` is given, made once a call; or ``(params, key)
        -> params`` if it draws random numbers: the key is None in evaluation.
      init: ``(key, in_size) -> params``, what ``transform`` is given; None for those of ``cell``.

    Returns:
      A ``Cell`` with the state of ``cell``.

    >>> positive = lambda params: params | {"r": jnp.abs(params["r"])}
    >>> cell = jaxrnn.with_params(jaxrnn.elman(4), positive)
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 3)))[1].shape
    (5, 4)
    """
    check_cell("with_params", cell)
    draws = len(inspect.signature(transform).parameters) > 1
    function: Callable[..., Params] = transform
    transformed = function if draws else lambda params, key: function(params)

    def initial_state(params, batch_shape):
        return cell.initial_state(transformed(params, None), batch_shape)

    def run(params, state, x, key, call):
        own, inner = dropout_masks.fold(key, 0), dropout_masks.fold(key, 1)
        return call(cell, transformed(params, own), state, x, inner)

    init, both = init or cell.init, views(run, initial_state)
    return Cell(init, initial_state, *both, cell.draws or draws)


def checked(cell, spec):
    """``cell``, with parameters made by a spec and checked against it: see ``parameters``."""

    def run(params, state, x, key, call):
        param_spec.check(spec, params, x)
        return call(cell, params, state, x, key)

    init = lambda key, in_size: param_spec.made(spec, key, in_size)
    step, unroll = views(run, cell.initial_state)
    return dataclasses.replace(cell, init=init, step=step, unroll=unroll)


@constructor
def weight_dropout(cell: Cell, rate: float, *, names: tuple[str, ...] = ("r",)) -> Cell:
    """Zeroes weights at random and scales up the others (DropConnect, Wan et al. 2013).

    With the recurrent weights of an LSTM, the weight-dropped LSTM of Merity et al. 2018
    (arXiv:1708.02182). The mask is the same for all steps and rows: a function of the key alone.
    Without a key (evaluation) nothing is zeroed.

    Args:
      cell: a cell; in one made of others, it is the weights of all of them.
      rate: the probability of a zero, from 0 to 1.
      names: of the parameters.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``.

    Raises:
      ValueError: ``cell`` has no parameter of one of the names.

    >>> cell = jaxrnn.weight_dropout(jaxrnn.lstm(4), 0.5)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)), key=jax.random.key(1))[1].shape
    (5, 4)
    """
    check_cell("weight_dropout", cell)
    rate, names = checks.probability("rate", rate), tuple(names)

    def dropped(params, key):
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        own = [getattr(path[-1], "key", None) for path, _ in leaves]
        known = {name for name in own if name is not None}  # None for an element of a tuple
        if not set(names) <= known:
            raise ValueError(f"names: got {names}, want some of {sorted(known)}: {cell}")
        if key is None or rate == 0:
            return params
        weights = [w for _, w in leaves]
        for i, (name, w) in enumerate(zip(own, weights)):
            if name in names:
                kept = jax.random.bernoulli(dropout_masks.fold(key, i), 1 - rate, w.shape)
                weights[i] = dropout_masks.scaled(w, kept, rate)
        return tree.unflatten(weights)

    made = with_params(cell, dropped)
    return dataclasses.replace(made, draws=cell.draws or rate > 0)
