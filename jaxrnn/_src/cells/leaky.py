"""Leaky, or continuous-time, recurrent networks."""

import functools

import jax.numpy as jnp

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation, Residuals
from jaxrnn._src.wrappers.reparameterised import checked, with_params


@functools.lru_cache(256)
def _update(alpha, activation):
    def leaky_update(state, x, r):
        (h,), (xh,), (rh,) = state, x, r
        a = tag("leaky.a_h", xh + rh)
        h = tag("leaky.h", h + alpha * (activation(a) - h))
        return (h,)

    return leaky_update


@constructor
def leaky(
    hidden: int,
    *,
    alpha: float,
    activation: Activation = "tanh",
    signs: tuple[int, ...] | None = None,
    heads: int = 1,
    residuals: Residuals = "gates",
) -> Cell:
    """A leaky or continuous-time network (Yang & Wang 2020, arXiv:2006.01001), with Dale's law.

        h = (1 - alpha) h + alpha activation(W x + R h + b)

    Euler's step of tau dh/dt = -h + activation(W x + R h + b), for alpha = dt / tau.

    Args:
      hidden: H, the size of the state and the output.
      alpha: how much of a step is new: above 0, and 1 for ``jaxrnn.elman``.
      activation: the name of a function in ``jax.nn`` ("tanh", "relu", ...), or any elementwise
        function.
      signs: Dale's law, 1 for each unit that excites and -1 for each that inhibits: R is the
        absolute value of ``r`` with the sign of the unit that sends (Song et al. 2016, PLoS
        Computational Biology 12(2)). None for any R.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], ``r`` [H, 1, H] and
      ``b`` [1, H].

    Raises:
      ValueError: ``alpha`` or ``signs`` are not as said; ``activation`` is the name of nothing in
        ``jax.nn``.
      TypeError: ``activation`` is not elementwise.

    >>> cell = jaxrnn.leaky(4, alpha=0.2, activation="relu", signs=(1, 1, 1, -1))
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    alpha = checks.number("alpha", alpha, above=0, most=1)
    make = gated(_update(alpha, checks.activation(activation)), gates=("h",))
    cell = make(hidden, heads=heads, residuals=residuals)
    if signs is None:
        return cell
    if not isinstance(signs, tuple) or len(signs) != hidden or not set(signs) <= {1, -1}:
        raise ValueError(f"signs: got {signs}, want a tuple of 1 or -1 for each of {hidden} units")

    def signed(params):
        r = params["r"]
        sender = jnp.array(signs, r.dtype).reshape(*r.shape[:-2], 1, 1)
        return params | {"r": sender * jnp.abs(r)}

    return checked(with_params(cell, signed), param_spec.gated(hidden, 1, heads))
