"""Linear oscillators as a state space."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jax.nn.initializers import variance_scaling

from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine

_LEAST, _MOST = 1e-6, 3.99  # of a, and of dt^2 a


@constructor
def linoss(
    hidden: int, *, state: int | None = None, discretization: Literal["im", "imex"] = "im"
) -> Cell:
    """Linear oscillatory state space, LinOSS (Rusch & Rus 2024, arXiv:2410.03943).

        a = relu(a)                               dt = sigmoid(step)
        z = (z + dt * (B x - a * y)) / (1 + dt^2 * a)         by "im"
        z = z + dt * (B x - a * y)                            by "imex"
        y = y + dt * z                            o = C y + d * x

    The matrix that takes (z, y) to the new ones has two conjugate eigenvalues r and conj(r), so
    both schemes are one complex number for each oscillator:

        h = r (h + dt B x)                        y = Im h / (sqrt(a) q)

    with r = 1 / (1 - i dt sqrt(a)) and q = 1 for the implicit "im", whose oscillations fade, and
    r = 1 - dt^2 a / 2 + i dt sqrt(a) q and q = sqrt(1 - dt^2 a / 4) for the symplectic "imex",
    whose do not. So a is 1e-6 at least, and for "imex" at most 3.99 / dt^2: from 4 on it is
    unstable.

    Args:
      hidden: H, the size of the input and of the output.
      state: N, how many oscillators there are; None for H.
      discretization: "im" or "imex".

    Returns:
      A ``Cell`` with the output o, run by ``jaxrnn.linear_scan``. State ``(h,)``, complex
      [..., N]; parameters ``a`` and ``step`` [N], ``b`` [H, N], ``c`` [N, H] and ``d`` [H]. B and
      C are real, as in the paper; the authors' code has two real oscillators for each a. The gated
      linear unit of the paper's block is not of this cell.

    Raises:
      ValueError: ``discretization`` is neither; in ``init``, the input has not H features.

    >>> cell = jaxrnn.linoss(hidden=2, state=4, discretization="imex")
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape, h.dtype
    ((7, 3, 2), (3, 4), dtype('complex64'))
    """
    hidden = checks.size("hidden", hidden)
    state = hidden if state is None else checks.size("state", state)
    if discretization not in ("im", "imex"):
        want = "'im' or 'imex'"
        raise ValueError(f"discretization: got {discretization!r}, want {want}")

    def oscillators(params):
        """``(r, dt, sqrt(a) q)``, [N] each."""
        a, dt = (params[name].astype(arithmetic(params)) for name in ("a", "step"))
        a, dt = jnp.maximum(a, _LEAST), sigmoid(dt)
        if discretization == "im":
            frequency = jnp.sqrt(a)
            scale = 1 / (1 + jnp.square(dt) * a)
            return lax.complex(scale, scale * dt * frequency), dt, frequency
        square = jnp.minimum(jnp.square(dt) * a, _MOST)
        turn = jnp.sqrt(square * (1 - square / 4))
        return lax.complex(1 - square / 2, turn), dt, turn / dt

    def inputs(params, x):
        r, dt, _ = oscillators(params)
        b = affine(x, params["b"]).astype(r.dtype)
        return r, jnp.broadcast_to(r * dt.astype(r.dtype), b.shape) * b

    def outputs(params, h, x):
        *_, scale = oscillators(params)
        y = h.imag / jnp.broadcast_to(scale, h.shape)
        d = params["d"].astype(y.dtype)
        return affine(y, params["c"]) + jnp.broadcast_to(d, x.shape) * x.astype(y.dtype)

    def init(key, in_size):
        checks.check_same_size(in_size, hidden)
        return param_spec.made(spec, key, in_size)

    uniform = jax.nn.initializers.uniform(1.0)
    fan_in = variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(fan_in)
    spec = {
        "a": ((state,), uniform),
        "step": ((state,), uniform),
        "b": ((param_spec.INPUTS, state), fan_in),
        "c": ((state, hidden), fan_in),
        "d": ((hidden,), jax.nn.initializers.normal(1.0)),
    }
    return dataclasses.replace(diagonal(spec, state, inputs, outputs, complex_=True), init=init)
