"""Gated recurrent unit."""

import jax
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.typing import Residuals
from jaxrnn._src.ops.step_loop import split


def gru_update(state, x, r, rb, drop=lambda n: n):
    (h,), (xr, xz, xn), (rr, rz, rn) = state, x, r
    z, r = sigmoid(xz + rz), sigmoid(xr + rr)  # so a TPU's backward takes an eighth less than r, z
    n = drop(tanh(xn + r * (rn + rb)))
    h = n + z * (h - n)
    return (h,)


_reset_after = gated(gru_update, gates=3, unit={"rb": jax.nn.initializers.zeros})


@constructor
def gru(
    hidden: int, *, reset_after: bool = True, heads: int = 1, residuals: Residuals = "gates"
) -> Cell:
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

        r, z = sigmoid(W x + R h + b)             h = (1 - z) * n + z * h
        n = tanh(W_n x + b_n + r * (R_n h + rb))  with ``reset_after``
        n = tanh(W_n x + b_n + R_n (r * h))       without

    Args:
      hidden: H, the size of the state and the output.
      reset_after: where the reset gate r acts: on the recurrent product, as in cuDNN, PyTorch and
        Keras (and the paper's first version), or on the state before the product, as in the
        paper's final version. The latter needs two dependent products a step: no fused
        implementation, no ``heads``, no ``residuals``.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 3, H], ``r`` [H, 3, H] and ``b``
      [3, H], gates in the order r z n, and with ``reset_after`` the bias ``rb`` [H].

    >>> cell = jaxrnn.gru(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, sorted(params)
    ((7, 3, 4), ['b', 'r', 'rb', 'w'])
    """
    if reset_after:
        return _reset_after(hidden, heads=heads, residuals=residuals)
    if heads != 1 or residuals != "gates":
        raise ValueError("reset_after=False: got heads or residuals, want neither of them")
    return _reset_before(hidden)


def reset_before(_, state, x, dot):
    """A step, of any products."""
    (h,), (xr, xz, xn) = state, x
    rr, rz = split(dot("rz", h), 2)
    r, z = sigmoid(xr + rr), sigmoid(xz + rz)
    n = tanh(xn + dot("n", r * h))
    h = n + z * (h - n)
    return (h,), h


def _reset_before(hidden):
    products = lambda params: {"rz": params["r"][:, :2], "n": params["r"][:, 2]}
    hidden = checks.size("hidden", hidden)
    spec = param_spec.gated(hidden, 3)
    return lifted(spec, (hidden,), linear.gates, reset_before, products=products)
