"""Layers whose step takes two matmuls or a layer norm, as one would write them by hand.

The same step for JAX, in a ``lax.scan``, and for PyTorch, in a Python loop: what these offer where
they lack the layer. The inputs' matmul is taken before the loop.
"""

import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def gru_reset_before(lib, p, state, x):
    (h,), width = state, state[0].shape[-1]
    gates = lib.sigmoid(x[..., : 2 * width] + h @ p["rz"])
    r, z = gates[..., :width], gates[..., width:]
    n = lib.tanh(x[..., 2 * width :] + (r * h) @ p["rn"])
    return (n + z * (h - n),)


def lstm_projection(lib, p, state, x):
    h, c = state
    m, c = lstm(lib, x + h @ p["r"], c)
    return m @ p["p"], c


def layer_norm_lstm(lib, p, state, x):
    h, c = state
    a = x + lib.norm(h @ p["r"]) * p["sr"]
    i, f, g, o = gates(a, 4)
    c = lib.sigmoid(f) * c + lib.sigmoid(i) * lib.tanh(g)
    return lib.sigmoid(o) * lib.tanh(lib.norm(c) * p["sc"] + p["bc"]), c


def multiplicative_lstm(lib, p, state, x):
    h, c = state
    width = h.shape[-1]
    m = x[..., 4 * width :] * (h @ p["rm"])
    return lstm(lib, x[..., : 4 * width] + m @ p["r"], c)


def lstm(lib, a, c):
    i, f, g, o = gates(a, 4)
    c = lib.sigmoid(f) * c + lib.sigmoid(i) * lib.tanh(g)
    return lib.sigmoid(o) * lib.tanh(c), c


def gates(a, count):
    width = a.shape[-1] // count
    return [a[..., k * width : (k + 1) * width] for k in range(count)]


class Layer(NamedTuple):
    """A layer of H outputs: its step, and widths as multiples of H.

    Attributes:
      step: ``(lib, params, state, x) -> state``; the first state is the output.
      inputs: of the input's part.
      states: of the states.
      matmuls: of the other matrices.
      scales: of weights for each unit.
    """

    step: Callable
    inputs: int
    states: tuple[int, ...]
    matmuls: dict[str, tuple[int, int]]
    scales: dict[str, int] = {}


LAYERS = {
    "gru_reset_before": Layer(gru_reset_before, 3, (1,), {"rz": (1, 2), "rn": (1, 1)}),
    "lstm_projection": Layer(lstm_projection, 8, (1, 2), {"r": (1, 8), "p": (2, 1)}),
    "layer_norm_lstm": Layer(
        layer_norm_lstm, 4, (1, 1), {"r": (1, 4)}, {"sw": 4, "sr": 4, "sc": 1, "bc": 1}
    ),
    "multiplicative_lstm": Layer(multiplicative_lstm, 5, (1, 1), {"r": (1, 4), "rm": (1, 1)}),
}


def shapes(cell, inputs, hidden):
    """Of the parameters."""
    layer = LAYERS[cell]
    found = {"w": (inputs, layer.inputs * hidden), "b": (layer.inputs * hidden,)}
    found |= {name: (hidden * k, hidden * m) for name, (k, m) in layer.matmuls.items()}
    return found | {name: (hidden * n,) for name, n in layer.scales.items()}


def projected(lib, cell, p, xs):
    """The input's part of all steps."""
    if cell == "layer_norm_lstm":
        return lib.norm(xs @ p["w"]) * p["sw"] + p["b"]
    return xs @ p["w"] + p["b"]


def states(cell, shape):
    """The shapes of the states."""
    return [(shape.B, n * shape.H) for n in LAYERS[cell].states]


def _norm(a):
    a = a - a.mean(-1, keepdims=True)
    return a * jax.lax.rsqrt((a * a).mean(-1, keepdims=True) + 1e-5)


_jax = types.SimpleNamespace(sigmoid=jax.nn.sigmoid, tanh=jnp.tanh, norm=_norm)


def scan(cell, shape, dtype):
    """``(apply, params)``: see ``contenders.with_jax``."""
    if cell not in LAYERS:
        raise ImportError(f"libraries have {cell}: it is not written by hand")
    step = functools.partial(LAYERS[cell].step, _jax)
    params = {
        name: jax.ShapeDtypeStruct(size, dtype)
        for name, size in shapes(cell, shape.I, shape.H).items()
    }

    def apply(params, xs):
        def body(state, x):
            state = step(params, state, x)
            return state, state[0]

        state = tuple(jnp.zeros(size, dtype) for size in states(cell, shape))
        return jax.lax.scan(body, state, projected(_jax, cell, params, xs))[1]

    return apply, params


def in_torch(cell, shape, device, dtype):
    """A layer with ``parameters()`` that is called with xs, as ``torch.nn.LSTM`` is."""
    import torch

    norm = lambda a: torch.nn.functional.layer_norm(a, a.shape[-1:])
    lib = types.SimpleNamespace(sigmoid=torch.sigmoid, tanh=torch.tanh, norm=norm)
    bound = shape.H**-0.5
    p = {
        name: torch.empty(size, device=device, dtype=dtype).uniform_(-bound, bound)
        for name, size in shapes(cell, shape.I, shape.H).items()
    }
    for a in p.values():
        a.requires_grad_()

    def run(xs):
        x = projected(lib, cell, p, xs)
        state = [torch.zeros(size, device=device, dtype=dtype) for size in states(cell, shape)]
        ys = []
        for t in range(shape.T):
            state = LAYERS[cell].step(lib, p, state, x[t])
            ys.append(state[0])
        return (torch.stack(ys),)

    run.parameters = p.values
    return run
