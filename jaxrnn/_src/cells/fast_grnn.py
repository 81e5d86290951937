"""FastGRNN, whose gate and candidate have the same weights."""

import jax.numpy as jnp
from jax.nn import initializers, sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core import param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Initializer, Residuals
from jaxrnn._src.wrappers.reparameterised import checked, with_params


def fast_grnn_update(state, x, r, bz, bn, zeta, nu):
    (h,), (a,), (q,) = state, x, r
    z, n = tag("fast_grnn.z", sigmoid(a + q + bz)), tag("fast_grnn.n", tanh(a + q + bn))
    h = tag("fast_grnn.h", (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * n + z * h)
    return (h,)


_unit: dict[str, Initializer] = dict.fromkeys(("bz", "bn", "zeta", "nu"), param_spec.zeros)
_separate = gated(fast_grnn_update, gates=("a",), unit=_unit)


@constructor
def fast_grnn(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """FastGRNN (Kusupati et al. 2018, arXiv:1901.02358).

        z = sigmoid(W x + R h + b_z)              n = tanh(W x + R h + b_n)
        h = (sigmoid(zeta) (1 - z) + sigmoid(nu)) * n + z * h

    The gate and the candidate share one product with each of W and R. zeta and nu are scalars, and
    begin at 1 and -4, the biases at 1, as in the authors' code. Factors of low rank for W and R,
    which the paper has too, are left out.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], ``r`` [H, 1, H], ``b``
      [2, H], those of z and n, and ``zeta`` and ``nu`` [].

    >>> cell = jaxrnn.fast_grnn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> float(params["zeta"]), float(params["nu"])
    (1.0, -4.0)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))[1].shape
    (7, 3, 4)
    """
    inner = _separate(hidden, heads=heads, residuals=residuals)
    spec = param_spec.gated(hidden, 1, heads) | {
        "b": ((2, hidden), param_spec.ones),
        "zeta": ((), initializers.constant(1.0)),
        "nu": ((), initializers.constant(-4.0)),
    }

    def separate(params):
        b = params["b"]
        scalars = {name: jnp.broadcast_to(params[name], (hidden,)) for name in ("zeta", "nu")}
        return params | scalars | {"b": jnp.zeros_like(b[:1]), "bz": b[0], "bn": b[1]}

    return checked(with_params(inner, separate), spec)
