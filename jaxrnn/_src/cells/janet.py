"""A network with a forget gate only."""

import functools

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals
from jaxrnn._src.wrappers.initialized import chrono, initialized


@functools.lru_cache(256)
def _update(beta):
    def janet_update(state, x, r, drop=lambda g: g):
        (h,), (xf, xg), (rf, rg) = state, x, r
        f = tag("janet.f", xf + rf)
        g = tag("janet.g", drop(tanh(xg + rg)))
        h = tag("janet.h", sigmoid(f) * h + sigmoid(beta - f) * g)
        return (h,)

    return janet_update


@constructor
def janet(
    hidden: int,
    *,
    beta: float = 1.0,
    longest: float | None = None,
    heads: int = 1,
    residuals: Residuals = "gates",
) -> Cell:
    """A forget gate and nothing else (van der Westhuizen & Lasenby 2018, arXiv:1804.04849).

        f = W_f x + R_f h + b_f               g = tanh(W x + R h + b)
        h = sigmoid(f) * h + (1 - sigmoid(f - beta)) * g

    Args:
      hidden: H, the size of the state and the output.
      beta: the candidate is let in as if f were less by this.
      longest: the longest dependency to be learnt, in steps. The forget gate's bias begins at the
        logarithm of a number drawn between 1 and ``longest - 1`` (chrono initialisation: Tallec &
        Ollivier 2018, arXiv:1804.11188); at 1 if None.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 2, H], ``r`` [H, 2, H] and ``b``
      [2, H], gates in the order f g.

    Raises:
      ValueError: ``longest`` is not above 2.

    >>> cell = jaxrnn.janet(hidden=4, longest=100)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((params["b"][0] > 0).all())
    ((7, 3, 4), True)
    """
    make = gated(_update(checks.number("beta", beta)), gates=("f", "g"), bias=(1.0, 0.0))
    cell = make(hidden, heads=heads, residuals=residuals)
    return cell if longest is None else initialized(cell, b=chrono(longest, 0, input=None))
