"""Long short-term memory."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn.cell import constructor
from jaxrnn.gated import gated


def lstm_update(state, x, r, drop=lambda g: g):
    (_, c), (xi, xf, xg, xo), (ri, rf, rg, ro) = state, x, r
    i, f, o = sigmoid(xi + ri), sigmoid(xf + rf), sigmoid(xo + ro)
    c = f * c + i * drop(tanh(xg + rg))
    return o * tanh(c), c


@constructor
def lstm(hidden, *, forget_bias=1.0, heads=1, residuals="gates"):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gate (Gers et al. 2000).

        i, f, o = sigmoid(W x + R h + b)      g = tanh(W_g x + R_g h + b_g)
        c = f * c + i * g                     h = o * tanh(c)

    Args:
      hidden: H, the size of the state and the output.
      forget_bias: what the forget gate's bias begins at (1: Jozefowicz et al. 2015, section 2.2).
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 4, H], ``r`` [H, 4, H] and
      ``b`` [4, H], gates in the order i f g o.

    >>> cell = jaxrnn.lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape
    ((7, 3, 4), (3, 4))
    """
    bias = (0.0, forget_bias, 0.0, 0.0)
    make = gated(lstm_update, gates=4, states=2, bias=bias)
    return make(hidden, heads=heads, residuals=residuals)
