"""Multiplicative long short-term memory."""

from jaxrnn import affine, arguments, parameters
from jaxrnn.cell import constructor
from jaxrnn.cells.lstm import lstm_update
from jaxrnn.lifted import lifted
from jaxrnn.loop import split


@constructor
def multiplicative_lstm(hidden, *, forget_bias=1.0):
    """Multiplicative long short-term memory (Krause et al. 2016, arXiv:1609.07959).

        m = (W_m x) * (R_m h)
        i, f, o = sigmoid(W x + R m + b)          g = tanh(W_g x + R_g m + b_g)
        c = f * c + i * g                         h = o * tanh(c)

    An LSTM whose gates see m in place of h: two products a step, one after the other. It has no
    fused kernel. It is not xLSTM's mLSTM, whose memory is a matrix.

    Args:
      hidden: H, the size of m, the state and the output.
      forget_bias: what the forget gate's bias begins at: see ``jaxrnn.lstm``.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 4, H], ``r`` [H, 4, H] and
      ``b`` [4, H], gates in the order i f g o, and of m ``wm`` [I, H] and ``rm`` [H, H].

    >>> cell = jaxrnn.multiplicative_lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params["b"][:, 0]
    Array([0., 1., 0., 0.], dtype=float32)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape
    ((7, 3, 4), (3, 4))
    """
    hidden = arguments.size("hidden", hidden)
    spec = parameters.gated(hidden, gates=4, bias=(0.0, forget_bias, 0.0, 0.0)) | {
        "wm": ((parameters.INPUTS, hidden), parameters.input_init),
        "rm": ((hidden, hidden), parameters.recurrent_init),
    }

    def inputs(params, x):
        return affine.gates(params, x), affine.affine(x, params["wm"])

    def step(_, state, x, dot):
        gates, xm = x
        m = xm * dot("rm", state[0])
        h, c = lstm_update(state, gates, split(dot("r", m), 4))
        return (h, c), h

    return lifted(spec, (hidden, hidden), inputs, step, products=("r", "rm"))
