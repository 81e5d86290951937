"""Cells whose inputs are a dict of arrays, as cells of one array: so they fit the tests' table."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn._src.core.inputs import sizes
from jaxrnn._src.wrappers.views import views


@jaxrnn.constructor
def of_dict(split, cell):
    """``cell`` given ``split(x)``, a dict, in place of x; the same ``split`` serves NumPy."""

    def run(params, state, x, key, call):
        return call(cell, params, state, split(x), key)

    init = lambda key, in_size: cell.init(key, sizes(split(jnp.zeros(in_size))))
    return jaxrnn.Cell(init, cell.initial_state, *views(run, cell.initial_state))


def timed(x):
    """The last feature squared is the time since the step before."""
    return {"x": x[..., :-1], "dt": x[..., -1:] ** 2}


def observed(x):
    """The first half is observed where the second is positive; the last feature as above."""
    features = x.shape[-1] // 2
    first, second = x[..., :features], x[..., features:-1]
    unknown = jnp.nan if isinstance(x, jax.Array) else 0
    seen = second.real > 0
    pick = jnp if isinstance(x, jax.Array) else np
    return {
        "x": pick.where(seen, first, unknown),
        "observed": seen.astype(x.dtype),
        "dt": x[..., -1:] ** 2,
    }
