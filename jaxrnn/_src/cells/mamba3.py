"""The state space of Mamba-3: a matrix memory that turns, written by the trapezoidal rule."""

import itertools
import math

import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, softplus

from jaxrnn._src.builders.memory import by_head, spread
from jaxrnn._src.cells.step_size import inverse_softplus
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.input_history import lagged
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.tags import tag_all
from jaxrnn._src.ops.linear_scan import linear_scan
from jaxrnn._src.ops.matrix_memory import matrix_memory

_EPSILON, _SLOWEST = 1e-5, 1e-4  # of the norm, and of the decay, as in the authors' code
_PARTS = 512  # of a turn, what angles are counted in


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
    this cell. ``unroll`` is not a scan of ``step``: the angles of all steps are a
    ``jaxrnn.linear_scan``, and the memory then runs as that of ``jaxrnn.mlstm`` does.

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

    def initial_state(params, batch_shape):
        widths = hidden * width, heads * width, hidden, heads * width // 4
        return tuple(jnp.zeros((*batch_shape, n), arithmetic(params)) for n in widths)

    def given(params, x):
        """What the memory takes of each step: B and C [..., N, D], before they are rotated."""
        param_spec.check(spec, params, x)
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
        v = by_head(affine(x, params["v"]).astype(total), heads)
        return B, C, v, l * dt, (1 - l) * dt, log_w, turn

    def outputs(params, y, v, x):
        y = y + spread(params["d"][:, None], v) * v
        return _flat(y).astype(x.dtype)

    def step(params, state, x, key=None):
        del key
        S, k, u, phi = checks.completed_state(initial_state, params, state, x.shape[:-1])
        B, C, v, now, again, log_w, turn = given(params, x)
        phi = _modulo(by_head(phi, heads) + turn)
        B, C = _rotated(B, phi), _rotated(C, phi)
        k, u, S = by_head(k, heads), by_head(u, heads), S.reshape(*B.shape, hidden // heads)
        S = jnp.exp(log_w)[..., None, None] * (S + _outer(again, k, u)) + _outer(now, B, v)
        y = jnp.einsum("...nde,...nd->...ne", S, C)
        return (_flat(_flat(S)), _flat(B), _flat(v), _flat(phi)), outputs(params, y, v, x)

    def unroll(params, state, xs, options):
        flags = options.mask, options.starts, options.reverse
        state = initial_state(params, xs.shape[1:-1]) if state is None else state
        S, k, u, before = state
        B, C, v, now, again, log_w, turn = given(params, xs)
        phi, angles = _angles(before, _flat(turn), flags, options.implementation)
        angles = by_head(angles, heads)
        B, C = _rotated(B, angles), _rotated(C, angles)

        # A step writes its B and v when the next one comes, which has a weight for them too. So
        # the memory holds nothing of a step that reads it, and no weight is taken away again.
        sizes = heads * width, hidden, heads, 1  # B, v, its weight, and that there was a step
        own = jnp.concatenate([_flat(B), _flat(v), now, jnp.ones_like(now[..., :1])], -1)
        last = jnp.concatenate([k, u, jnp.zeros((*u.shape[:-1], heads + 1), u.dtype)], -1)
        last, (own,) = lagged(last[..., None, :], own, (1,), *flags)
        k, u, left, _ = _split(own, sizes)
        k, u = by_head(k, heads), by_head(u, heads)
        S = S.reshape(*S.shape[:-1], heads, width, hidden // heads)
        (S, _), (ys, _) = matrix_memory(
            C,
            k,
            (left + again)[..., None] * u,
            log_w,
            log_w,
            (S, jnp.zeros_like(S[..., 0, 0])),
            stabilised=False,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        ys = ys + (now * (B * C).sum(-1))[..., None] * v
        ys = select(options.mask, outputs(params, ys, v, xs), 0)
        k, u, left, any_step = _split(last[..., 0, :], sizes)
        S = S + _outer(left, by_head(k, heads), by_head(u, heads))
        return (_flat(_flat(S)), k, u, jnp.where(any_step > 0, _modulo(phi), phi)), ys

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
    init = lambda key, n: param_spec.made(spec, key, n)
    whole = streamed(unroll, initial_state, given)
    return Cell(init, initial_state, step, whole, states=("S", "k", "u", "phi"))


def _angles(before, turn, flags, implementation):
    """The sum of the angles ``turn`` [T, ..., W] up to each step, ``(last, each)``.

    A sum of many turns has few digits left of the angle. So parts of a turn are counted, which is
    exact for 65,536 steps, and only what is left over is summed.
    """
    mask, starts, reverse = flags
    part = 2 * math.pi / _PARTS
    count = lax.stop_gradient(jnp.round(turn / part))
    parts = jnp.concatenate([count - _PARTS * jnp.round(count / _PARTS), turn - count * part], -1)
    found = linear_scan(
        jnp.ones_like(parts, shape=parts.shape[-1:]),
        parts,
        jnp.concatenate([jnp.zeros_like(before), before], -1),
        mask=mask,
        starts=starts,
        reverse=reverse,
        implementation=implementation,
    )
    each = [jnp.split(a, 2, -1) for a in found]
    return [(count - _PARTS * jnp.floor(count / _PARTS)) * part + rest for count, rest in each]


def _modulo(phi):
    return phi - 2 * math.pi * jnp.floor(phi / (2 * math.pi))


def _split(a, sizes):
    """[..., sum of sizes] in parts of these sizes."""
    return jnp.split(a, list(itertools.accumulate(sizes[:-1])), -1)


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
