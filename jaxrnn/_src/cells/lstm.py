"""Long short-term memory."""

import functools
import operator

import jax
import jax.numpy as jnp

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.cells.lstmp import lstmp
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation, Residuals


@functools.lru_cache(256)
def _update(gates, cell_clip, activation, gate_activation):
    def lstm_update(state, x, r, drop=lambda g: g, **peephole):
        (_, c), a = state, dict(zip(gates, map(operator.add, x, r)))

        def gate(name, seen):
            if peephole:
                a[name] = a[name] + peephole[f"p{name}"] * seen
            return tag(f"lstm.{name}", gate_activation(tag(f"lstm.a_{name}", a[name])))

        f = gate("f", c)
        i = gate("i", c) if "i" in a else tag("lstm.i", 1 - f)
        g = tag("lstm.g", activation(tag("lstm.a_g", a["g"])))
        c = f * c + i * drop(g)
        c = tag("lstm.c", c if cell_clip is None else jnp.clip(c, -cell_clip, cell_clip))
        o = gate("o", c)
        h = tag("lstm.h", o * activation(c))
        return h, c

    return lstm_update


lstm_update = _update("ifgo", None, jax.nn.tanh, jax.nn.sigmoid)


@constructor
def lstm(
    hidden: int,
    *,
    forget_bias: float = 1.0,
    peepholes: bool = False,
    coupled: bool = False,
    cell_clip: float | None = None,
    activation: Activation = "tanh",
    gate_activation: Activation = "sigmoid",
    projection: int | None = None,
    heads: int = 1,
    residuals: Residuals = "gates",
) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gate (Gers et al. 2000).

        i, f, o = sigmoid(W x + R h + b)      g = tanh(W_g x + R_g h + b_g)
        c = f * c + i * g                     h = o * tanh(c)

    Args:
      hidden: H, the size of the state and the output.
      forget_bias: what the forget gate's bias begins at (1: Jozefowicz et al. 2015, section 2.2).
      peepholes: the gates also see the cell (Gers et al. 2002): ``pi * c`` is added to what enters
        i, ``pf * c`` to f, both of the step before, and ``po * c`` to o, of this step.
      coupled: i = 1 - f, without parameters of its own (Greff et al. 2017, arXiv:1503.04069, whose
        f = 1 - i is the same with another sign of the gate). ONNX calls it ``input_forget``.
      cell_clip: c is kept between this and its negative; None for no bound. Not ONNX's ``clip``,
        which bounds what enters the activations.
      activation: of g, and of c where h is made of it: the name of a function in ``jax.nn`` or
        ``jax.numpy`` ("tanh", "relu", ...), or any elementwise function.
      gate_activation: of the gates i, f and o, the same.
      projection: P, the size of the output and of what recurs, ``P h``, a linear map without bias
        (Sak et al. 2014, arXiv:1402.1128); None for H. With it the cell is fused on CPUs only, and
        has neither ``heads`` nor ``residuals``.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 4, H], ``r`` [H, 4, H] and
      ``b`` [4, H], gates in the order i f g o. With ``projection`` h is [..., P] and ``r``
      [P, 4, H], and there is ``p`` [H, P]. If ``coupled``, three gates f g o. With
      ``peepholes`` also ``pi``, ``pf`` and ``po``, each [H] and zero at first; no ``pi`` if
      ``coupled``.

    Raises:
      ValueError: ``cell_clip`` is not above 0; an activation is the name of no function.
      TypeError: an activation is not elementwise.

    >>> cell = jaxrnn.lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape
    ((7, 3, 4), (3, 4))
    >>> sorted(jaxrnn.lstm(4, peepholes=True, coupled=True).init(jax.random.key(0), 2))
    ['b', 'pf', 'po', 'r', 'w']
    """
    if cell_clip is not None:
        cell_clip = checks.number("cell_clip", cell_clip, above=0)
    activation = checks.activation(activation)
    gate_activation = checks.activation(gate_activation, "gate_activation")
    gates = "fgo" if coupled else "ifgo"
    update = _update(gates, cell_clip, activation, gate_activation)
    bias = [forget_bias if gate == "f" else 0.0 for gate in gates]
    unit = {f"p{gate}": param_spec.zeros for gate in gates if gate != "g" and peepholes}
    if projection is not None:
        return lstmp(update, bias, unit, hidden, projection, heads=heads, residuals=residuals)
    make = gated(update, gates=tuple(gates), states=("h", "c"), bias=bias, unit=unit)
    return make(hidden, heads=heads, residuals=residuals)
