"""Leaky integrate-and-fire neurons, which spike."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Array, Residuals

_SURROGATES = {
    "triangle": lambda u: 0.3 * jnp.maximum(0, 1 - jnp.abs(u)),
    "fast_sigmoid": lambda u: 1 / jnp.square(1 + 10 * jnp.abs(u)),
}


@functools.lru_cache(256)
def _update(decay, threshold, surrogate):
    @jax.custom_jvp
    def spike(u):
        return jnp.where(u > 0, jnp.ones_like(u), 0)

    @spike.defjvp
    def derivative(primals, tangents):
        (u,), (du,) = primals, tangents
        return spike(u), surrogate(u) * du

    def lif_update(state, x, r):
        (z, v), (xv,), (rv,) = state, x, r
        v = tag("lif.v", decay * v + xv + rv - threshold * z)
        z = tag("lif.z", spike((v - threshold) / threshold))
        return z, v

    return lif_update


@constructor
def lif(
    hidden: int,
    *,
    decay: float = 0.95,
    threshold: float = 1.0,
    surrogate: Literal["triangle", "fast_sigmoid"] | Callable[[Array], Array] = "triangle",
    heads: int = 1,
    residuals: Residuals = "gates",
) -> Cell:
    """Leaky integrate-and-fire neurons (Bellec et al. 2020, doi:10.1038/s41467-020-17236-y).

        v = decay * v + W x + R z + b - threshold * z
        z = 1 if v > threshold, else 0

    A spike z has no useful derivative. In its place stands a surrogate (Neftci et al. 2019,
    arXiv:1901.09948), a function of u = (v - threshold) / threshold, divided by the threshold. It
    is taken wherever z is, in the reset of v too.

    Args:
      hidden: H, the size of the state and the output.
      decay: what is left of v after a step, exp(-dt / tau): from 0 to 1.
      threshold: above which v spikes, and which a spike takes from it: positive.
      surrogate: "triangle", 0.3 max(0, 1 - abs(u)), as in the paper; "fast_sigmoid",
        1 / (1 + 10 abs(u))^2 (Zenke & Ganguli 2018, arXiv:1705.11146); or any elementwise
        function.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell`` with the output z. State ``(z, v)``, each [..., H]; parameters ``w`` [I, 1, H],
      ``r`` [H, 1, H] and ``b`` [1, H].

    Raises:
      ValueError: an argument is not as above.
      TypeError: ``surrogate`` is neither a name nor a function; another argument is no number.

    >>> cell = jaxrnn.lif(hidden=4, decay=0.9)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (z, v), ys = jaxrnn.unroll(cell, params, 2 * jnp.ones((7, 3, 2)))
    >>> ys.shape, sorted(set(ys.ravel().tolist()))
    ((7, 3, 4), [0.0, 1.0])
    """
    decay = checks.fraction("decay", decay)
    threshold = checks.number("threshold", threshold, above=0)
    if not callable(surrogate):
        want = f"one of {tuple(_SURROGATES)} or a function"
        if not isinstance(surrogate, str):
            raise TypeError(f"surrogate: got {checks.described(surrogate)}, want {want}")
        if surrogate not in _SURROGATES:
            raise ValueError(f"surrogate: got {surrogate!r}, want {want}")
        surrogate = _SURROGATES[surrogate]
    update = _update(decay, threshold, surrogate)
    make = gated(update, gates=("v",), states=("z", "v"))
    return make(hidden, heads=heads, residuals=residuals)
