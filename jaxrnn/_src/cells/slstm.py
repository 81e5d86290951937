"""The LSTM with exponential gates and scalar memories."""

import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals
from jaxrnn._src.wrappers.initialized import initialized

_LOGARITHMS = {"sigmoid": jax.nn.log_sigmoid, "exp": lambda f: f}
_NOTHING = -1e30  # the logarithm of no weight at all, in sums with which nothing overflows


@functools.lru_cache(256)
def _update(forget):
    def slstm_update(state, x, r):
        _, c, n, m = state
        a = dict(zip("ifzo", map(operator.add, x, r)))
        # Where n is 0 nothing came before, and m says nothing: of each row, as episodes begin.
        f = _LOGARITHMS[forget](a["f"]) + jnp.where(n == 0, _NOTHING, m)
        m = tag("slstm.m", jnp.maximum(f, a["i"]))
        i, f = tag("slstm.i", jnp.exp(a["i"] - m)), tag("slstm.f", jnp.exp(f - m))
        z, o = tag("slstm.z", tanh(a["z"])), tag("slstm.o", sigmoid(a["o"]))
        c, n = tag("slstm.c", f * c + i * z), tag("slstm.n", f * n + i)
        h = tag("slstm.h", o * c / n)
        return h, c, n, m

    return slstm_update


@constructor
def slstm(
    hidden: int,
    *,
    forget: Literal["sigmoid", "exp"] = "sigmoid",
    heads: int = 4,
    residuals: Residuals = "gates",
) -> Cell:
    """The LSTM with exponential gates and scalar memories (Beck et al. 2024, arXiv:2405.04517).

        i = exp(W_i x + R_i h + b_i)          f, o = sigmoid(W x + R h + b)
        z = tanh(W_z x + R_z h + b_z)         c = f * c + i * z
        n = f * n + i                         h = o * c / n

    Here c and n are divided by exp(m), the stabiliser: m is the greater of log i and log f + m, at
    a unit's first step log i. Then n is 1 at least, and gates of any size give finite numbers.

    Args:
      hidden: H, the size of the state and the output.
      forget: what f is made by, "sigmoid" or "exp".
      heads: N, a divisor of ``hidden``; 4, as in the paper and in ``jaxrnn.mlstm``.
      residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h, c, n, m)``, each [..., H]; parameters ``w`` [I, 4, H], ``r``
      [N, D, 4, D] with D = H / N, and ``b`` [4, H], gates in the order i f z o. The bias of a
      sigmoid f goes from 3 to 6 over the units of each head at first.

    Raises:
      ValueError: ``forget`` is neither.

    >>> cell = jaxrnn.slstm(hidden=4, heads=2)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> state, ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, len(state), params["b"][1].tolist()
    ((7, 3, 4), 4, [3.0, 6.0, 3.0, 6.0])
    """
    if forget not in _LOGARITHMS:
        raise ValueError(f"forget: got {forget!r}, want one of {tuple(_LOGARITHMS)}")
    make = gated(_update(forget), gates=tuple("ifzo"), states=("h", "c", "n", "m"))
    cell = make(hidden, heads=heads, residuals=residuals)

    def remembering(key, shape, dtype):
        del key
        bias = jnp.tile(jnp.linspace(3, 6, hidden // heads, dtype=dtype), heads)
        return jnp.zeros(shape, dtype).at[1].set(bias)

    return initialized(cell, b=remembering) if forget == "sigmoid" else cell
