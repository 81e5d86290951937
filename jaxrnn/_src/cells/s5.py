"""The simplified state space layer."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._src.cells.state_space import state_space
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor


@constructor
def s5(
    hidden: int,
    *,
    state: int | None = None,
    blocks: int = 1,
    discretization: Literal["zoh", "bilinear"] = "zoh",
    dt_min: float = 0.001,
    dt_max: float = 0.1,
    clip_eigs: bool = False,
) -> Cell:
    """The simplified state space layer, S5 (Smith et al. 2023, arXiv:2208.04933).

        L = lambda_re + i lambda_im                 D_t = exp(log_step)
        a = exp(L D_t)                              s = (a - 1) / L             by "zoh"
        a = (1 + L D_t / 2) / (1 - L D_t / 2)       s = D_t / (1 - L D_t / 2)   by "bilinear"
        h = a * h + s * (B x)                       y = 2 Re(C h) + d * x

    States come in conjugate pairs, of which one is kept: ``state`` is half the paper's P. They
    begin at the eigenvalues of HiPPO-N, the normal part of HiPPO-LegS, of size 2 N / blocks for
    each block; ``b`` and ``c`` begin as random matrices, LeCun's of P inputs as in the authors'
    code, seen from its eigenvectors.

    Args:
      hidden: H, the size of the input and of the output.
      state: N, how many complex numbers the state has; None for H.
      blocks: J, how many HiPPO-N matrices the states begin at; a divisor of N.
      discretization: "zoh" (zero-order hold) or "bilinear".
      dt_min, dt_max: steps begin between these, evenly in their logarithm.
      clip_eigs: keeps lambda_re at -1e-4 or below, so no state can grow.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, complex [..., N]; parameters, all
      of them real: ``lambda_re``, ``lambda_im`` and ``log_step`` [N], ``b`` [H, 2, N] and ``c``
      [N, 2, H], real and imaginary part each, and ``d`` [H].

    Raises:
      ValueError: ``blocks`` is no divisor of N, ``discretization`` is neither of the two, or
        not 0 < dt_min <= dt_max; in ``init``, the input has not H features.

    >>> cell = jaxrnn.s5(hidden=2, state=8, blocks=2)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, h.shape, h.dtype
    ((7, 3, 2), (3, 8), dtype('complex64'))
    """
    state = hidden if state is None else state
    state, blocks = checks.size("state", state), checks.size("blocks", blocks)
    if state % blocks:
        raise ValueError(f"blocks: got {blocks}, want a divisor of state={state}")
    if discretization not in _DISCRETIZED:
        want = tuple(_DISCRETIZED)
        raise ValueError(f"discretization: got {discretization!r}, want one of {want}")
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min, dt_max: got {dt_min}, {dt_max}, want 0 < dt_min <= dt_max")
    size, steps = 2 * state // blocks, (math.log(dt_min), math.log(dt_max))

    def imaginary(key, shape, dtype):
        return jnp.tile(_hippo_n(size)[0].astype(dtype), blocks)

    spec = {
        "lambda_re": ((state,), jax.nn.initializers.constant(-0.5)),
        "lambda_im": ((state,), imaginary),
        "log_step": ((state,), lambda k, s, dtype: jax.random.uniform(k, s, dtype, *steps)),
    }

    def discretized(params):
        re = params["lambda_re"]
        re = jnp.minimum(re, -1e-4) if clip_eigs else re
        values = lax.complex(re, params["lambda_im"])
        step = jnp.exp(params["log_step"]).astype(values.dtype)
        return _DISCRETIZED[discretization](values, step)

    def drawn(key, params):
        """B and C of the paper, of real and of complex numbers, in the eigenvectors' basis."""
        draw = jax.nn.initializers.lecun_normal(batch_axis=(0,))
        real = draw(key, (3, 2 * state, hidden), params["d"].dtype)
        b, *c = real.reshape(3, blocks, size, hidden)
        b, c = lax.complex(b, jnp.zeros_like(b)), lax.complex(*c)
        v = jnp.asarray(_hippo_n(size)[1].astype(c.dtype))
        b = jnp.einsum("jkh,kn->hjn", b, v.conj()).reshape(hidden, state)
        c = jnp.einsum("jkh,kn->jnh", c, v).reshape(state, hidden)
        return {"b": jnp.stack([b.real, b.imag], 1), "c": jnp.stack([c.real, c.imag], 1)}

    return state_space(hidden, state, spec, discretized, drawn=drawn, weight=2)


def _zoh(values, step):
    return jnp.exp(values * step), jnp.expm1(values * step) / values


def _bilinear(values, step):
    scale = 1 / (1 - values * step / 2)
    return (1 + values * step / 2) * scale, step * scale


_DISCRETIZED = {"zoh": _zoh, "bilinear": _bilinear}


@functools.cache
def _hippo_n(size):
    """Half the spectrum of HiPPO-N, -1/2 + i values: ``(values, eigenvectors)``.

    HiPPO-N is -I/2 and a skew-symmetric matrix. Its eigenvalues come in conjugate pairs.
    """
    root = np.sqrt(2 * np.arange(size) + 1)
    half = np.outer(root, root) / 2
    skew = np.triu(half, 1) - np.tril(half, -1)
    values, vectors = np.linalg.eigh(-1j * skew)
    return values[: size // 2], vectors[:, : size // 2]
