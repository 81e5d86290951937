"""Liquid networks, whose steps may be any time apart."""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals


def ltc_update(state, x, r, dt, l, a):  # noqa: E741, the parameter's name
    (h,), (xf,), (rf,) = state, x, r
    f = tag("ltc.f", sigmoid(xf + rf))
    h = tag("ltc.h", (h + dt * f * a) / (1 + dt * (jnp.exp(l) + f)))
    return (h,)


def _signs(key, shape, dtype):
    return jax.random.rademacher(key, shape, dtype)


@constructor
def ltc(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """The liquid time-constant network (Hasani et al. 2020, arXiv:2006.04439).

        f = sigmoid(W x + R h + b)
        h = (h + dt * f * a) / (1 + dt * (exp(l) + f))

    One step of the paper's fused solver for dh/dt = -(exp(l) + f) h + f a, where exp(l) is 1 / tau
    and f is one layer, not the authors' synapses. The solver may take several steps for one
    input: then repeat the input, with a part of ``dt``.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell`` whose input is a dict of ``x`` [..., I] and the time since the step before, ``dt``
      [..., 1], zero or more. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], ``r``
      [H, 1, H], ``b`` [1, H], and ``a`` and ``l`` [H]. a begins as 1 or -1 at random, l at zero.

    >>> cell = jaxrnn.ltc(hidden=4)
    >>> params = cell.init(jax.random.key(0), {"x": 2, "dt": 1})
    >>> xs = {"x": jnp.ones((7, 3, 2)), "dt": jnp.full((7, 3, 1), 0.5)}
    >>> (h,), ys = jaxrnn.unroll(cell, params, xs)
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    unit = {"l": param_spec.zeros, "a": _signs}
    make = gated(ltc_update, gates=("f",), inputs=("dt",), unit=unit)
    return make(hidden, heads=heads, residuals=residuals)


def cfc_update(state, x, r, dt):
    g, n, a, b = (xk + rk for xk, rk in zip(x, r))
    g, n = tag("cfc.g", tanh(g)), tag("cfc.n", tanh(n))
    s = tag("cfc.s", sigmoid(a * dt + b))
    h = tag("cfc.h", g + s * (n - g))
    return (h,)


@constructor
def cfc(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """The closed-form continuous-time network (Hasani et al. 2021, arXiv:2106.13898).

        a, b = W x + R h + c                      g, n = tanh(W x + R h + c)
        s = sigmoid(a * dt + b)                   h = (1 - s) * g + s * n

    In the paper, s has no b and g, n and a share a first layer, the backbone. As in the authors'
    code there is b; as there with no layers in the backbone, there is none.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell`` whose input is a dict of ``x`` [..., I] and the time since the step before, ``dt``
      [..., 1]. State ``(h,)``, [..., H]; parameters ``w`` [I, 4, H], ``r`` [H, 4, H] and ``b``
      [4, H], the c above, gates in the order g n a b.

    >>> cell = jaxrnn.cfc(hidden=4)
    >>> params = cell.init(jax.random.key(0), {"x": 2, "dt": 1})
    >>> xs = {"x": jnp.ones((7, 3, 2)), "dt": jnp.full((7, 3, 1), 0.5)}
    >>> (h,), ys = jaxrnn.unroll(cell, params, xs)
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    make = gated(cfc_update, gates=tuple("gnab"), inputs=("dt",))
    return make(hidden, heads=heads, residuals=residuals)
