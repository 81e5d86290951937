"""Cells for what ONNX's operators say and the cells of this library do not."""

import functools

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.typing import Activation
from jaxrnn._src.ops.step_loop import split
from jaxrnn._src.wrappers.views import check_cell


@functools.lru_cache(256)
def _lstm_update(f, g, h, input_forget):
    def onnx_lstm_update(state, x, r, **peephole):
        (_, c), enters = state, [a + b for a, b in zip(x, r)]
        named = dict(zip("igo" if input_forget else "ifgo", enters))

        def gate(name, seen):
            return f(named[name] + peephole[f"p{name}"] * seen if peephole else named[name])

        i = gate("i", c)
        c = (1 - i if input_forget else gate("f", c)) * c + i * g(named["g"])
        return gate("o", c) * h(c), c

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
    update = _lstm_update(*_functions(activations, 3), input_forget)
    unit = {f"p{gate}": param_spec.zeros for gate in gates if gate != "g" and peepholes}
    return gated(update, gates=len(gates), states=2, unit=unit)(hidden)


@functools.lru_cache(256)
def _gru_updates(f, g):
    """With the reset after the product, and as a step before it."""

    def onnx_gru_update(state, x, r, rb):
        (h,), (xr, xz, xn), (rr, rz, rn) = state, x, r
        z = f(xz + rz)
        return ((1 - z) * g(xn + f(xr + rr) * (rn + rb)) + z * h,)

    def reset_before(_, state, x, dot):
        (h,), (xr, xz, xn) = state, x
        rr, rz = split(dot("rz", h), 2)
        z = f(xz + rz)
        h = (1 - z) * g(xn + dot("n", f(xr + rr) * h)) + z * h
        return (h,), h

    return onnx_gru_update, reset_before


@constructor
def onnx_gru(
    hidden: int,
    *,
    activations: tuple[Activation, ...] = ("sigmoid", "tanh"),
    reset_after: bool = True,
) -> Cell:
    """ONNX's GRU, with two activations.

        r, z = f(W x + R h + b)                   h = (1 - z) * n + z * h
        n = g(W_n x + b_n + r * (R_n h + rb))     with ``reset_after``
        n = g(W_n x + b_n + R_n (r * h))          without

    Args:
      hidden: H, the size of the state and the output.
      activations: f and g: names of functions in ``jax.nn``, or elementwise functions.
      reset_after: ONNX's ``linear_before_reset``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters as those of ``jaxrnn.gru``.

    >>> from jaxrnn.interop.onnx import onnx_gru
    >>> cell = onnx_gru(4, activations=("hard_sigmoid", "relu"))
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 3)))[1].shape
    (5, 4)
    """
    after, before = _gru_updates(*_functions(activations, 2))
    if reset_after:
        return gated(after, gates=3, unit={"rb": param_spec.zeros})(hidden)
    hidden = checks.size("hidden", hidden)
    products = lambda params: {"rz": params["r"][:, :2], "n": params["r"][:, 2]}
    spec = param_spec.gated(hidden, 3)
    return lifted(spec, (hidden,), linear.gates, before, products=products)


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

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        return cell.unroll(params, state, xs, mask, starts, not reverse, key, implementation)

    return Cell(cell.init, cell.initial_state, step, unroll)


def _functions(activations, count):
    if len(activations) != count:
        raise ValueError(f"activations: got {len(activations)}, want {count}")
    return [checks.activation(a, "activations") for a in activations]
