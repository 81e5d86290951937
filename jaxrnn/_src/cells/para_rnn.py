"""The GRU and the LSTM of ParaRNN, in which no unit sees another."""

import jax
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import gates
from jaxrnn._src.core.tags import tag


@constructor
def para_gru(hidden: int) -> Cell:
    """The GRU of ParaRNN (Danieli et al. 2025, arXiv:2510.21450).

        z, r = sigmoid(W x + a * h + b)           n = tanh(W_n x + a_n * (r * h) + b_n)
        h = (1 - z) * h + z * n

    Its recurrent matrices are diagonal. The authors also divide W into blocks, which is left out.

    Args:
      hidden: H, the size of the state and the output.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 3, H], ``a`` [3, H] and ``b``
      [3, H], gates in the order z r n. a begins between 0 and 0.5.

    >>> cell = jaxrnn.para_gru(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)

    def step(others, state, x, dot):
        del dot
        (h,), (xz, xr, xn), a = state, x, others["a"]
        z = tag("para_gru.z", sigmoid(xz + a[..., 0, :] * h))
        r = tag("para_gru.r", sigmoid(xr + a[..., 1, :] * h))
        n = tag("para_gru.n", tanh(xn + a[..., 2, :] * (r * h)))
        h = tag("para_gru.h", (1 - z) * h + z * n)
        return (h,), h

    return lifted(_spec(hidden), {"h": hidden}, gates, step, others=("a",))


@constructor
def para_lstm(hidden: int) -> Cell:
    """The LSTM of ParaRNN (Danieli et al. 2025, arXiv:2510.21450).

        f = sigmoid(W_f x + a_f * h + p_f * c + b_f)       g = tanh(W_g x + a_g * h + b_g)
        c = f * c + (1 - f) * g                            with the new c
        o = sigmoid(W_o x + a_o * h + p_o * c + b_o)       h = o * tanh(c)

    Its recurrent matrices are diagonal, its input and forget gates are coupled, and it has
    peepholes. The authors also divide W into blocks, which is left out.

    Args:
      hidden: H, the size of each state and of the output.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 3, H], ``a`` [3, H] and
      ``b`` [3, H], gates in the order f o g, and ``p`` [2, H], of f and o. a and p begin between
      0 and 0.5.

    >>> cell = jaxrnn.para_lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)

    def step(others, state, x, dot):
        del dot
        (h, c), (xf, xo, xg), a, p = state, x, others["a"], others["p"]
        f = tag("para_lstm.f", sigmoid(xf + a[..., 0, :] * h + p[..., 0, :] * c))
        g = tag("para_lstm.g", tanh(xg + a[..., 2, :] * h))
        c = tag("para_lstm.c", f * c + (1 - f) * g)
        o = tag("para_lstm.o", sigmoid(xo + a[..., 1, :] * h + p[..., 1, :] * c))
        h = tag("para_lstm.h", o * tanh(c))
        return (h, c), h

    spec = _spec(hidden) | {"p": ((2, hidden), _small)}
    return lifted(spec, {"h": hidden, "c": hidden}, gates, step, others=("a", "p"))


def _spec(hidden):
    return param_spec.feedforward(hidden, 3) | {"a": ((3, hidden), _small)}


_small = jax.nn.initializers.uniform(0.5)
