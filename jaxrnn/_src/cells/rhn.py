"""Recurrent highway network."""

import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop import split


@constructor
def rhn(
    hidden: int, *, depth: int = 4, coupled: bool = True, transform_bias: float = -2.0
) -> Cell:
    """Recurrent highway network (Zilly et al. 2016, arXiv:1607.03474).

        s = h                                     then, for each of ``depth`` layers:
        g = tanh(W_g x + R_g s + b_g)             W x in the first layer only,
        t, c = sigmoid(W x + R s + b)             c = 1 - t where they are coupled,
        s = g * t + s * c                         and h = s after the last layer

    ``depth`` products a step, one after the other: it is fused on CPUs only.

    Args:
      hidden: H, the size of the state and the output.
      depth: how many highway layers a step goes through.
      coupled: the carry gate c is 1 - t, as in the paper's experiments, or a gate of its own.
      transform_bias: what the biases of t begin at. Below zero a layer hands on most of what it
        gets: -2 for words and -4 for characters in the authors' code.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, G, H], ``r`` [H, depth * G, H] and
      ``b`` [depth * G, H], layer after layer of G gates in the order g t, or g t c.

    >>> cell = jaxrnn.rhn(hidden=4, depth=3)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params["r"].shape, params["b"][:, 0].tolist()
    ((4, 6, 4), [0.0, -2.0, 0.0, -2.0, 0.0, -2.0])
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))[1].shape
    (7, 3, 4)
    """
    hidden, depth = checks.size("hidden", hidden), checks.size("depth", depth)
    gates = 2 if coupled else 3
    bias = (0.0, transform_bias, 0.0)[:gates] * depth
    spec = param_spec.gated(hidden, gates * depth, bias=bias)
    spec |= {"w": ((param_spec.INPUTS, gates, hidden), param_spec.input_init)}
    layers = tuple(f"layer {number}" for number in range(depth))

    def inputs(params, x):
        return affine(x, params["w"].reshape(x.shape[-1], -1))

    def products(params):
        parts = jnp.split(params["r"], depth, 1)
        return dict(zip(layers, parts))

    def others(params):
        return {"b": params["b"].reshape(depth, -1)}

    def step(others, state, x, dot):
        (s,) = state
        for number, layer in enumerate(layers):
            a = dot(layer, s) + others["b"][..., number, :]
            g, t, *c = split(a if number else a + x, gates)
            g, t = tag("rhn.g", tanh(g)), tag("rhn.t", sigmoid(t))
            c = tag("rhn.c", 1 - t if coupled else sigmoid(*c))
            s = tag("rhn.s", g * t + s * c)
        h = tag("rhn.h", s)
        return (h,), h

    return lifted(spec, {"h": hidden}, inputs, step, products=products, others=others)
