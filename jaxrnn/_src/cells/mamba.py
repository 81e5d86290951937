"""The state spaces of Mamba, a state for each feature, and of Mamba-2, a matrix memory."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import silu, softplus

from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.builders.memory import by_head, joined, memory, reads, spread
from jaxrnn._src.cells.step_size import decay, inverse_softplus, log_rates
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag, tag_all


@constructor
def mamba(hidden: int, *, state: int = 16, rank: int | None = None) -> Cell:
    """The selective state space of Mamba, S6 (Gu & Dao 2023, arXiv:2312.00752).

        B, C = W x                                dt = softplus(R_2 R_1 x + c)
        h = exp(-exp(l) dt) h + dt B x            y = C h + d x     for each feature of x

    The convolution, the gate and the projections of the paper's block are not of this cell. It
    computes the states of all steps at once, D numbers for each feature of each step.

    Args:
      hidden: H, the size of the output and of the input.
      state: D, the width of B and C, and of each feature's state.
      rank: R, of the product that makes dt; None for H / 16, rounded up.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, [..., H D], feature by feature.
      Parameters ``bc`` [H, 2, D], ``r1`` [H, R], ``r2`` [R, H], ``c`` and ``d`` [H], and ``l``
      [H, D]; c and l begin as in the authors' code.

    Raises:
      ValueError: in ``init``, the input has not H features.

    >>> cell = jaxrnn.mamba(hidden=8, state=4)
    >>> params = cell.init(jax.random.key(0), 8)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 8)))
    >>> ys.shape, h.shape
    ((100, 5, 8), (5, 32))
    """
    hidden, state = checks.size("hidden", hidden), checks.size("state", state)
    rank = -(-hidden // 16) if rank is None else checks.size("rank", rank)

    def flat(a):
        return a.reshape(*a.shape[:-2], hidden * state)

    def inputs(params, x):
        total = arithmetic(params)
        rate = affine(affine(x, params["r1"]), params["r2"], params["c"]).astype(total)
        B = affine(x, params["bc"])[..., 0, :].astype(total)
        dt, B = tag_all("mamba", dt=softplus(rate), B=B)
        log_a = -dt[..., None] * jnp.exp(spread(params["l"], dt[..., None] * B[..., None, :]))
        return flat(jnp.exp(log_a)), flat((dt * x.astype(total))[..., None] * B[..., None, :])

    def outputs(params, h, x):
        C = tag("mamba.C", affine(x, params["bc"])[..., 1, :].astype(h.dtype))
        x = x.astype(h.dtype)
        h = h.reshape(*x.shape, state)
        return jnp.einsum("...hd,...d->...h", h, C) + spread(params["d"], x) * x

    def init(key, in_size):
        checks.check_same_size(in_size, hidden)
        return param_spec.made(spec, key, in_size)

    def steps(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(rank**-0.5), rank**-0.5)

    spec = {
        "bc": ((param_spec.INPUTS, 2, state), param_spec.input_init),
        "r1": ((param_spec.INPUTS, rank), param_spec.input_init),
        "r2": ((rank, hidden), steps),
        "c": ((hidden,), inverse_softplus),
        "d": ((hidden,), param_spec.ones),
        "l": ((hidden, state), _log_of_one_up),
    }
    return dataclasses.replace(diagonal(spec, hidden * state, inputs, outputs), init=init)


def _log_of_one_up(key, shape, dtype):
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


@constructor
def mamba2(hidden: int, *, heads: int = 4, state: int = 64) -> Cell:
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
        v, bc = by_head(silu(affine(x, params["v"])), heads), silu(affine(x, params["bc"]))
        return _written(
            "mamba2", params, v, bc[..., :1, :], bc[..., 1:, :], affine(x, params["u"])
        )

    def outputs(params, x, taken, y):
        v = by_head(silu(affine(x, params["v"])), heads).astype(y.dtype)
        return joined(params, x, taken, y + spread(params["d"][:, None], v) * v)

    spec = {
        "v": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "bc": ((param_spec.INPUTS, 2, state), param_spec.input_init),
        "u": ((param_spec.INPUTS, heads), param_spec.input_init),
    } | _of_heads(heads)
    return memory(spec, (heads, state, hidden // heads), inputs, outputs)


@constructor
def ssd(hidden: int, *, heads: int = 4, state: int = 64, groups: int = 1) -> Cell:
    """The memory of ``jaxrnn.mamba2`` alone, for what a block has made of its input before.

        v, B, C, u = x                            dt = softplus(u + c)
        log w = -exp(l) dt                        S = w S + B (dt v)'
        y = S' C + d v

    Args:
      hidden: H, the size of the output, and of all heads' values v together.
      heads: N, a divisor of ``hidden``.
      state: D, the width of B and C.
      groups: G, a divisor of ``heads``: how many B and C there are, each for N / G heads.

    Returns:
      A ``Cell``. Its input is v, B, C and u side by side: H + 2 G D + N features. State ``(S,)``,
      [..., N, D, E] for E = H / N. Parameters ``c``, ``l`` and ``d`` [N].

    Raises:
      ValueError: ``heads`` does not divide ``hidden``, ``groups`` not ``heads``, or the input has
        another size.

    >>> cell = jaxrnn.ssd(hidden=8, heads=2, state=16)
    >>> params = cell.init(jax.random.key(0), 8 + 2 * 16 + 2)
    >>> (S,), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 42)))
    >>> ys.shape, S.shape
    ((100, 5, 8), (5, 2, 16, 4))
    """
    hidden, heads = checks.heads(hidden, heads)
    state, groups = checks.size("state", state), checks.size("groups", groups)
    if heads % groups:
        raise ValueError(f"groups: got {groups}, want a divisor of heads={heads}")
    ends = (hidden, hidden + groups * state, hidden + 2 * groups * state)
    features = ends[-1] + heads

    def inputs(params, x):
        checks.check_features(x, features)
        v, B, C, rate = jnp.split(x.astype(arithmetic(params)), ends, -1)
        return _written(
            "ssd", params, by_head(v, heads), by_head(B, groups), by_head(C, groups), rate
        )

    def outputs(params, x, taken, y):
        v = by_head(x[..., :hidden], heads).astype(y.dtype)
        return joined(params, x, taken, y + spread(params["d"][:, None], v) * v)

    cell = memory(_of_heads(heads), (heads, state, hidden // heads), inputs, outputs)
    return reads(cell, features, "H + 2 G D + N")


def _written(name, params, v, B, C, rate):
    """What ``memory`` takes, of v [..., N, E], B and C [..., G, D] and rate [..., N]."""
    v, B, C = tag_all(name, v=v, B=B, C=C)
    B, C = (jnp.repeat(a, v.shape[-2] // a.shape[-2], -2) for a in (B, C))
    dt = tag(f"{name}.dt", softplus(rate + spread(params["c"], rate)))[..., None]
    log_w = tag(f"{name}.log_w", decay(params, rate))[..., None]
    return C, B, dt * v, log_w, None, None


def _of_heads(heads):
    """The spec of what each head has."""
    return {
        "c": ((heads,), inverse_softplus),
        "l": ((heads,), log_rates),
        "d": ((heads,), param_spec.ones),
    }
