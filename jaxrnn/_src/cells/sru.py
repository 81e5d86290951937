"""The simple recurrent unit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag


@constructor
def sru(hidden: int, *, project: bool = False, highway_bias: float = 0.0) -> Cell:
    """The simple recurrent unit (Lei et al. 2018, arXiv:1709.02755v5).

        f = sigmoid(W_f x + v_f * c + b_f)      r = sigmoid(W_r x + v_r * c + b_r)
        s = alpha x                             without ``project``
        s = W_s x                               with it
        c = f * c + (1 - f) * (W x)             h = r * c + (1 - r) * s

    A step has no product, but it is not linear: see ``jaxrnn.gilr`` for one that is.

    Args:
      hidden: H, the size of the state and the output, and without ``project`` of the input.
      project: the highway takes a projection, as inputs of another size need it.
      highway_bias: what b_r begins at; alpha = sqrt(1 + 2 exp(highway_bias)).

    Returns:
      A ``Cell``. State ``(c,)``, [..., H]; parameters ``w`` [I, 3, H], or with ``project``
      [I, 4, H], in the order of W, f, r, s; ``v`` and ``b`` [2, H] in the order f r.

    Raises:
      ValueError: in ``init``, the input has not H features, without ``project``.

    >>> cell = jaxrnn.sru(hidden=4, project=True)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (c,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, params["w"].shape
    ((7, 3, 4), (2, 4, 4))
    """
    hidden, alpha = checks.size("hidden", hidden), math.sqrt(1 + 2 * math.exp(highway_bias))
    uniform = jax.nn.initializers.variance_scaling
    spec = {
        "w": ((param_spec.INPUTS, 3 + project, hidden), uniform(1.0, "fan_in", "uniform")),
        "v": ((2, hidden), _peephole),
        "b": ((2, hidden), param_spec.numbers(0.0, highway_bias)),
    }

    def inputs(params, x):
        y = affine(x, params["w"])
        new, f, r, *skip = (y[..., k, :] for k in range(y.shape[-2]))
        skip = skip or [alpha * x.astype(y.dtype)]
        bf, br = (jnp.broadcast_to(b.astype(y.dtype), f.shape) for b in params["b"])
        return new, f + bf, r + br, *skip

    def step(others, state, x, dot):
        (c,), (new, f, r, s), v = state, x, others["v"]
        s = tag("sru.s", s)
        f = tag("sru.f", sigmoid(f + v[..., 0, :] * c))
        r = tag("sru.r", sigmoid(r + v[..., 1, :] * c))
        c = tag("sru.c", f * c + (1 - f) * new)
        h = tag("sru.h", r * c + (1 - r) * s)
        return (c,), h

    def init(key, in_size):
        if not project:
            checks.check_same_size(in_size, hidden)
        params = param_spec.made(spec, key, in_size)
        # What a gate sums has the variance of what it gates, and h that of x.
        scale = jnp.array([1.0, math.sqrt(0.5), math.sqrt(0.5), alpha][: 3 + project])
        return params | {"w": params["w"] * scale[None, :, None]}

    cell = lifted(spec, {"c": hidden}, inputs, step, others=("v",))
    return dataclasses.replace(cell, init=init)


def _peephole(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * math.sqrt(1.5)
