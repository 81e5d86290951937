"""The simple recurrent network."""

import functools

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation, Residuals


@functools.lru_cache(256)
def _update(activation):
    def elman_update(state, x, r):
        (xh,), (rh,) = x, r
        h = tag("elman.h", activation(xh + rh))
        return (h,)

    return elman_update


@constructor
def elman(
    hidden: int, *, activation: Activation = "tanh", heads: int = 1, residuals: Residuals = "gates"
) -> Cell:
    """The simple recurrent network (Elman 1990).

        h = activation(W x + R h + b)

    Args:
      hidden: H, the size of the state and the output.
      activation: the name of a function in ``jax.nn`` or ``jax.numpy`` ("tanh", "relu", ...), or
        any elementwise function.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], ``r`` [H, 1, H] and
      ``b`` [1, H].

    Raises:
      ValueError: ``activation`` is the name of no function.
      TypeError: ``activation`` is not elementwise.

    >>> cell = jaxrnn.elman(hidden=4, activation="relu")
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    activation = checks.activation(activation)
    make = gated(_update(activation), gates=("h",))
    return make(hidden, heads=heads, residuals=residuals)
