"""The linear recurrent unit."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.cells.state_space import state_space
from jaxrnn._src.core.cell import Cell, constructor


@constructor
def lru(
    hidden: int,
    *,
    state: int | None = None,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 6.28,
) -> Cell:
    """The linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349).

        a = exp(-exp(nu) + i exp(theta))
        h = a * h + exp(gamma) * (B x)          y = Re(C h) + d * x

    Args:
      hidden: H, the size of the input and of the output.
      state: N, how many complex numbers the state has; None for H.
      r_min, r_max: the factors ``a`` begin at radii between these, evenly over the ring's area.
      max_phase: and at phases from 0 to this.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, complex [..., N]; parameters, all
      of them real: ``nu``, ``theta`` and ``gamma`` [N], ``b`` [H, 2, N] and ``c`` [N, 2, H], real
      and imaginary part each, and ``d`` [H].

    Raises:
      ValueError: the radii are not 0 <= r_min < r_max <= 1, or ``max_phase`` is not positive; in
        ``init``, the input has not H features.

    >>> cell = jaxrnn.lru(hidden=2, state=4, r_min=0.9, r_max=0.999)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape, h.dtype
    ((7, 3, 2), (3, 4), dtype('complex64'))
    """
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(f"r_min, r_max: got {r_min}, {r_max}, want 0 <= r_min < r_max <= 1")
    if not max_phase > 0:
        raise ValueError(f"max_phase: got {max_phase}, want a positive number")
    state = hidden if state is None else state
    spec = {
        "nu": ((state,), lambda *given: _log_radius(_uniform(*given), r_min, r_max)),
        "theta": ((state,), lambda *given: jnp.log(max_phase * _uniform(*given))),
        "gamma": ((state,), jax.nn.initializers.zeros),
    }

    def discretized(params):
        a = lax.complex(-jnp.exp(params["nu"]), jnp.exp(params["theta"]))
        return jnp.exp(a), jnp.exp(params["gamma"])

    def drawn(key, params):
        del key
        square = -2 * jnp.exp(params["nu"])  # log of |a|^2
        return {"gamma": jnp.log(-jnp.expm1(square)) / 2}

    return state_space(hidden, state, spec, discretized, drawn=drawn)


def _uniform(key, shape, dtype):
    # Not zero, of which the logarithm would stay infinite.
    return jax.random.uniform(key, shape, dtype, jnp.finfo(dtype).eps, 1.0)


def _log_radius(u, r_min, r_max):
    return jnp.log(-jnp.log(r_min**2 + u * (r_max**2 - r_min**2)) / 2)
