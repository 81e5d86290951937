"""The state space of Mamba-2."""

import jax.numpy as jnp
from jax.nn import silu, softplus

from jaxrnn._src.builders.memory import by_head, joined, memory, spread
from jaxrnn._src.cells.step_size import decay, inverse_softplus, log_rates
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import constructor
from jaxrnn._src.core.linear import affine


@constructor
def mamba2(hidden, *, heads=4, state=64):
    """The state space of Mamba-2, SSD (Dao & Gu 2024, arXiv:2405.21060).

        v = silu(V x), for each head              B, C = silu(W x), for all heads
        dt = softplus(U x + c)                    log w = -exp(l) dt
        S = w S + B (dt v)'                       y = S' C + d v

    The convolution, the gate and the norm of the paper's block are not of this cell.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      state: D, the width of B and C.

    Returns:
      A ``Cell``. State ``(S,)``, [..., N, D, E] for E = H / N. Parameters ``v`` [I, H], ``bc``
      [I, 2, D], ``u`` [I, N], and ``c``, ``l`` and ``d`` [N]; c and l begin as in the authors'
      code.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``.

    >>> cell = jaxrnn.mamba2(hidden=8, heads=2, state=16)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 16, 4))
    """
    hidden, heads = checks.heads(hidden, heads)
    state = checks.size("state", state)

    def inputs(params, x):
        v = by_head(silu(affine(x, params["v"])), heads)
        B, C = (
            jnp.broadcast_to(a, (*v.shape[:-1], state))
            for a in jnp.split(silu(affine(x, params["bc"])), 2, -2)
        )
        rate = affine(x, params["u"])
        dt = softplus(rate + spread(params["c"], rate))[..., None]
        return C, B, dt * v, decay(params, rate)[..., None], None, None

    def outputs(params, x, taken, y):
        v = by_head(silu(affine(x, params["v"])), heads).astype(y.dtype)
        return joined(params, x, taken, y + spread(params["d"][:, None], v) * v)

    spec = {
        "v": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "bc": ((param_spec.INPUTS, 2, state), param_spec.input_init),
        "u": ((param_spec.INPUTS, heads), param_spec.input_init),
        "c": ((heads,), inverse_softplus),
        "l": ((heads,), log_rates),
        "d": ((heads,), param_spec.ones),
    }
    return memory(spec, (heads, state, hidden // heads), inputs, outputs)
