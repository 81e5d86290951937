"""The state space of Mamba-3: a matrix memory that turns, written by the trapezoidal rule."""

import math

import jax.numpy as jnp
from jax.nn import sigmoid, softplus

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.builders.memory import by_head, spread
from jaxrnn._src.cells.step_size import inverse_softplus
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag_all

_EPSILON, _SLOWEST = 1e-5, 1e-4  # of the norm, and of the decay, as in the authors' code


@constructor
def mamba3(hidden: int, *, heads: int = 4, state: int = 64) -> Cell:
    """The state space of Mamba-3 (Lahoti et al. 2026, arXiv:2603.15569).

        B, C = rms_norm(W x) * scale + b, for each head       v = V x
        dt = softplus(U_1 x + c)                  log w = -dt * max(softplus(U_2 x), 1e-4)
        l = sigmoid(U_3 x)                        phi = phi + pi * dt * tanh(P x)
        B, C = rotated(B), rotated(C)  by phi
        S = w (S + (1 - l) dt k u') + l dt B v'
        k, u = B, v                               y = S' C + d v

    The trapezoidal rule writes k and u, the B and v of the step before, once more. The first half
    of the D features is rotated: each two neighbours are a complex number. As in the authors'
    code, phi has a tanh, and B and C are normalised before each head adds its b. This is their
    form with one input and one output a head; the gate and the projections of the block are not of
    this cell. It runs step by step.

    Args:
      hidden: H, the size of the output, and of all heads' values together.
      heads: N, a divisor of ``hidden``.
      state: D, the width of B and C, a multiple of 4.

    Returns:
      A ``Cell``. State ``(S, k, u, phi)``, flat: [..., N D E] for E = H / N, [..., N D], [..., H]
      and [..., N D / 4], angles from 0 to 2 pi. Parameters ``v`` [I, H], ``bc`` [I, 2, D], ``u``
      [I, 3, N], ``p`` [I, D / 4], ``scale`` [2, D], ``b`` [2, N, D], and ``c`` and ``d`` [N].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``, or 4 not ``state``.

    >>> cell = jaxrnn.mamba3(hidden=8, heads=2, state=16)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (S, k, u, phi), ys = jaxrnn.unroll(cell, params, jnp.ones((10, 5, 3)))
    >>> ys.shape, S.shape, phi.shape
    ((10, 5, 8), (5, 128), (5, 8))
    """
    hidden, heads = checks.heads(hidden, heads)
    width = checks.size("state", state)
    if width % 4:
        raise ValueError(f"state: got {width}, want a multiple of 4")

    def inputs(params, x):
        total = arithmetic(params)
        bc = affine(x, params["bc"]).astype(total)
        bc = bc / jnp.sqrt((bc * bc).mean(-1, keepdims=True) + _EPSILON)
        bc = (bc * spread(params["scale"], bc))[..., None, :]  # of all heads, before b
        bc = jnp.broadcast_to(bc, (*bc.shape[:-2], heads, width))
        bc = bc + spread(params["b"], bc)
        rate, decay, part = jnp.moveaxis(affine(x, params["u"]).astype(total), -2, 0)
        dt = softplus(rate + spread(params["c"], rate))
        log_w = -dt * jnp.maximum(softplus(decay), _SLOWEST)
        turn = math.pi * jnp.tanh(affine(x, params["p"]).astype(total))
        turn = dt[..., None] * turn[..., None, :]
        B, C, dt, log_w, l = tag_all(  # noqa: E741, the equations' name
            "mamba3", B=bc[..., 0, :, :], C=bc[..., 1, :, :], dt=dt, log_w=log_w, l=sigmoid(part)
        )
        return _flat(B), _flat(C), affine(x, params["v"]), dt, log_w, l, _flat(turn)

    def step(own, state, x, dot):
        del dot
        B, C, v, dt, log_w, l, turn = x  # noqa: E741
        S, k, u, phi = state
        phi = phi + turn
        phi = phi - 2 * math.pi * jnp.floor(phi / (2 * math.pi))
        B, C = (_rotated(by_head(a, heads), by_head(phi, heads)) for a in (B, C))
        k, u, v = (by_head(a, heads) for a in (k, u, v))
        S = S.reshape(*S.shape[:-1], heads, width, hidden // heads)
        S = jnp.exp(log_w)[..., None, None] * (S + _outer((1 - l) * dt, k, u))
        S = S + _outer(l * dt, B, v)
        y = jnp.einsum("...nde,...nd->...ne", S, C) + own["d"][..., None] * v
        return (_flat(_flat(S)), _flat(B), _flat(v), phi), _flat(y)

    spec = {
        "v": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "bc": ((param_spec.INPUTS, 2, width), param_spec.input_init),
        "u": ((param_spec.INPUTS, 3, heads), param_spec.input_init),
        "p": ((param_spec.INPUTS, width // 4), param_spec.input_init),
        "scale": ((2, width), param_spec.ones),
        "b": ((2, heads, width), param_spec.ones),
        "c": ((heads,), inverse_softplus),
        "d": ((heads,), param_spec.ones),
    }
    states = {"S": hidden * width, "k": heads * width, "u": hidden, "phi": heads * width // 4}
    return lifted(spec, states, inputs, step, others=("d",))


def _flat(a):
    """The last two axes as one."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _outer(scale, k, v):
    return jnp.einsum("...n,...nd,...ne->...nde", scale, k, v)


def _rotated(a, phi):
    """Pairs (2 i, 2 i + 1) of a [..., D], turned by phi [..., D / 4]; the others stay."""
    turned, rest = jnp.split(a, 2, -1)
    pairs = turned.reshape(*phi.shape, 2)
    cos, sin = jnp.cos(phi), jnp.sin(phi)
    first, second = pairs[..., 0], pairs[..., 1]
    pairs = jnp.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return jnp.concatenate([pairs.reshape(turned.shape), rest], -1)
