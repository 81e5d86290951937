"""Multiplicative long short-term memory."""

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.cells.lstm import lstm_update
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop import split


@constructor
def multiplicative_lstm(hidden: int, *, forget_bias: float = 1.0) -> Cell:
    """Multiplicative long short-term memory (Krause et al. 2016, arXiv:1609.07959).

        m = (W_m x) * (R_m h)
        i, f, o = sigmoid(W x + R m + b)          g = tanh(W_g x + R_g m + b_g)
        c = f * c + i * g                         h = o * tanh(c)

    An LSTM whose gates see m in place of h: two products a step, one after the other. It is fused
    on CPUs only. It is not xLSTM's mLSTM, whose memory is a matrix.

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
    hidden = checks.size("hidden", hidden)
    spec = param_spec.gated(hidden, gates=4, bias=(0.0, forget_bias, 0.0, 0.0)) | {
        "wm": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "rm": ((hidden, hidden), param_spec.recurrent_init),
    }

    def inputs(params, x):
        return linear.joined_gates(params, x), linear.affine(x, params["wm"])

    def step(_, state, x, dot):
        gates, xm = x
        m = tag("multiplicative_lstm.m", xm * dot("rm", state[0]))
        h, c = lstm_update(state, split(gates, 4), split(dot("r", m), 4))
        return (h, c), h

    return lifted(spec, {"h": hidden, "c": hidden}, inputs, step, products=("r", "rm"))
