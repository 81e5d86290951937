"""Update gate recurrent network."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals


def ugrnn_update(state, x, r, drop=lambda g: g):
    (h,), (xg, xc), (rg, rc) = state, x, r
    c = tag("ugrnn.c", drop(tanh(xc + rc)))
    g = tag("ugrnn.g", sigmoid(xg + rg))
    h = tag("ugrnn.h", c + g * (h - c))
    return (h,)


@constructor
def ugrnn(
    hidden: int, *, forget_bias: float = 1.0, heads: int = 1, residuals: Residuals = "gates"
) -> Cell:
    """The update gate recurrent network (Collins et al. 2017, arXiv:1611.09913).

        g = sigmoid(W x + R h + b)            c = tanh(W_c x + R_c h + b_c)
        h = g * h + (1 - g) * c

    Args:
      hidden: H, the size of the state and the output.
      forget_bias: what the bias of g begins at, 1 as in TensorFlow's.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 2, H], ``r`` [H, 2, H] and ``b``
      [2, H], gates in the order g c.

    >>> cell = jaxrnn.ugrnn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    make = gated(ugrnn_update, gates=("g", "c"), bias=(forget_bias, 0.0))
    return make(hidden, heads=heads, residuals=residuals)
