"""An initial state that is learned."""

import inspect

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import checks, every_step, inputs, params_tree
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.cell import cell as from_step


@constructor
def learned_state(cell: Cell) -> Cell:
    """The initial state is a parameter, the same for all rows and episodes.

    Args:
      cell: a cell.

    Returns:
      A ``Cell`` with the state of ``cell``; parameters ``{"cell": ..., "state": {"0": ...}}``, an
      array for each of the state's but counters, without batch axes, which begins as that of
      ``cell``; of a complex one the real and the imaginary part, [2, ...].

      With ``starts``, a cell that is not made by ``gated`` or lifted from its step, a stack for
      one, runs as a scan of its step: learn the states of its layers instead.

    >>> cell = jaxrnn.learned_state(jaxrnn.lstm(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params["state"]["0"].shape, cell.initial_state(params, (2,))[0].shape
    ((4,), (2, 4))
    """
    check_cell("learned_state", cell)

    def init(key, in_size):
        params = cell.init(key, in_size)
        leaves = enumerate(jax.tree.leaves(cell.initial_state(params, ())))
        learned = {str(i): _real(a) for i, a in leaves if jnp.issubdtype(a.dtype, jnp.inexact)}
        return {"cell": params, "state": learned}

    def parts(params):
        state = lambda key, in_size: init(key, in_size)["state"]
        return params_tree.parts(params, {"cell": cell.init, "state": state})

    def initial_state(params, batch_shape):
        params = parts(params)
        leaves, tree = jax.tree.flatten(cell.initial_state(params["cell"], ()))
        learned = [i for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.inexact)]
        checks.check_names(params["state"], list(map(str, learned)))
        for i in learned:
            leaves[i] = _like(leaves[i], params["state"][str(i)])
        return tree.unflatten(jnp.broadcast_to(a, (*batch_shape, *a.shape)) for a in leaves)

    def step(params, state, x, key):
        return cell.step(parts(params)["cell"], state, x, key)

    scanned = from_step(init, initial_state, step)
    takes_initial = "initial" in inspect.signature(cell.unroll).parameters

    def unroll(params, state, xs, options, every=False):
        params = parts(params)
        initial = initial_state(params, inputs.leading(xs)[1:])
        state = initial if state is None else state
        if takes_initial:
            args = params["cell"], state, xs, options
            return every_step.run(cell, *args, every=every, initial=initial)
        if options.starts is None:
            return every_step.run(cell, params["cell"], state, xs, options, every=every)
        return every_step.run(scanned, params, state, xs, options, every=every)

    return Cell(init, initial_state, scanned.step, unroll, cell.draws)


def _real(a):
    return jnp.stack([a.real, a.imag]) if jnp.iscomplexobj(a) else a


def _like(a, learned):
    """What is learned, as the array it is for."""
    want = jax.eval_shape(_real, a)
    if learned.shape != want.shape:
        raise ValueError(f"params['state']: got shape {learned.shape}, want {want.shape}")
    learned = learned.astype(want.dtype)
    return lax.complex(*learned) if jnp.iscomplexobj(a) else learned
