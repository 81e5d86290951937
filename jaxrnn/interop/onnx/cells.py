"""Cells for what ONNX's operators say and the cells of this library do not."""

import functools

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import checks, every_step, param_spec
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation


@functools.lru_cache(256)
def _lstm_update(f, g, h, input_forget):
    def onnx_lstm_update(state, x, r, **peephole):
        (_, c), enters = state, [a + b for a, b in zip(x, r)]
        named = dict(zip("igo" if input_forget else "ifgo", enters))

        def gate(name, seen):
            gate = f(named[name] + peephole[f"p{name}"] * seen if peephole else named[name])
            return tag(f"onnx_lstm.{name}", gate)

        i = gate("i", c)
        forget = tag("onnx_lstm.f", 1 - i) if input_forget else gate("f", c)
        c = tag("onnx_lstm.c", forget * c + i * tag("onnx_lstm.g", g(named["g"])))
        return tag("onnx_lstm.h", gate("o", c) * h(c)), c

    return onnx_lstm_update


@constructor
def onnx_lstm(
    hidden: int,
    *,
    activations: tuple[Activation, ...] = ("sigmoid", "tanh", "tanh"),
    peepholes: bool = False,
    input_forget: bool = False,
) -> Cell:
    """ONNX's LSTM, with three activations.

        i, f, o = f(W x + R h + b)            g = g(W_g x + R_g h + b_g)
        c = f * c + i * g                     h = o * h(c)

    Args:
      hidden: H, the size of the state and the output.
      activations: f, g and h: names of functions in ``jax.nn``, or elementwise functions.
      peepholes: as in ``jaxrnn.lstm``.
      input_forget: f = 1 - i, as ONNX Runtime has it; ``jaxrnn.lstm(coupled=True)`` has i = 1 - f.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters as those of ``jaxrnn.lstm``, gates in
      the order i f g o; with ``input_forget`` three, i g o.

    >>> from jaxrnn.interop.onnx import onnx_lstm
    >>> cell = onnx_lstm(4, activations=("sigmoid", "tanh", "relu"))
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 3)))[1].shape
    (5, 4)
    """
    gates = "igo" if input_forget else "ifgo"
    if len(activations) != 3:
        raise ValueError(f"activations: got {len(activations)}, want 3")
    functions = [checks.activation(a, "activations") for a in activations]
    update = _lstm_update(*functions, input_forget)
    unit = {f"p{gate}": param_spec.zeros for gate in gates if gate != "g" and peepholes}
    return gated(update, gates=tuple(gates), states=("h", "c"), unit=unit)(hidden)


@constructor
def backward(cell: Cell) -> Cell:
    """A cell run from the last step to the first: ONNX's ``direction="reverse"``.

    Args:
      cell: a cell.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``. Outputs stay at their input's time.

    Raises:
      ValueError: ``step`` is called, for which the future would be needed.

    >>> from jaxrnn.interop.onnx import backward
    >>> cell = jaxrnn.gru(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jnp.ones((5, 3))
    >>> ys = jaxrnn.unroll(cell, params, xs, reverse=True)[1]
    >>> bool((jaxrnn.unroll(backward(cell), params, xs)[1] == ys).all())
    True
    """
    check_cell("backward", cell)

    def step(params, state, x, key=None):
        raise ValueError("backward has no step: it needs the whole sequence; use unroll")

    def unroll(params, state, xs, options, every=False):
        turned = options.replace(reverse=not options.reverse)
        return every_step.run(cell, params, state, xs, turned, every=every)

    return Cell(cell.init, cell.initial_state, step, unroll, cell.draws)
