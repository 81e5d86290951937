"""The real-gated linear recurrent unit, and the block it was made for."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus

from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.builders.stateless import project
from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop.problem import product, split
from jaxrnn._src.wrappers.stack import parallel, stack


@constructor
def rg_lru(hidden: int, *, heads: int = 1) -> Cell:
    """The real-gated linear recurrent unit of Griffin and Hawk (De et al. 2024, arXiv:2402.19427).

        r, i = sigmoid(W x + b)                 log a = -8 r * softplus(l)
        h = a * h + sqrt(1 - a^2) * (i * x)     h = i * x at the first step of an episode

    The first step is that of the authors' RecurrentGemma; with the paper's, its input would count
    for less than all later ones.

    Args:
      hidden: H, the size of the state, of the output and of the input.
      heads: N, the gates' products are block-diagonal: a gate sees the H / N inputs of its head.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h, count)``, [..., H] and how many steps
      the episode has had, int32 [...], 2^31 - 1 at most; parameters ``w`` [H, 2, H], or [N, H / N,
      2, H / N] with N heads, and ``b`` [2, H], gates in the order r i; ``l`` [H], which begins so
      that a gate wide open has a from 0.9 to 0.999.

    Raises:
      ValueError: ``heads`` is no divisor of H; in ``init``, the input has not H features.

    >>> cell = jaxrnn.rg_lru(hidden=4, heads=2)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> (h, count), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 4)))
    >>> ys.shape, count
    ((7, 3, 4), Array([7, 7, 7], dtype=int32))
    """
    hidden, heads = checks.heads(hidden, heads)
    blocks, _ = param_spec.gated(hidden, 2, heads)["r"]
    spec = {
        "w": (blocks, jax.nn.initializers.lecun_normal()),
        "b": ((2, param_spec.INPUTS), param_spec.zeros),
        "l": ((hidden,), _ring),
    }

    def inputs(params, x, count):
        total = arithmetic(params)
        both = product(x, params["w"], promoted(x.dtype, params["w"].dtype), total)
        spread = lambda p: jnp.broadcast_to(p.astype(total), x.shape)
        r, i = (sigmoid(g + spread(b)) for g, b in zip(split(both, 2), params["b"]))
        r, i = tag("rg_lru.r", r), tag("rg_lru.i", i)
        log_a = -8 * r * spread(softplus(params["l"].astype(total)))
        log_a = jnp.where(count[..., None] > 0, log_a, -jnp.inf)
        # 1 - a^2, above zero: the root of zero has an infinite derivative.
        rest = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(total).tiny)
        a = tag("rg_lru.a", jnp.exp(log_a))
        b = jnp.sqrt(rest) * i * x.astype(total)
        return a, b

    def init(key, in_size):
        checks.check_same_size(in_size, hidden)
        return param_spec.made(spec, key, in_size)

    outputs = lambda params, h, x: h
    cell = diagonal(spec, hidden, inputs, outputs, counted=True)
    return dataclasses.replace(cell, init=init)


def _ring(key, shape, dtype):
    """softplus(l) = -log a, with a^2 even between 0.9^2 and 0.999^2."""
    square = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
    return jnp.log(jnp.expm1(-jnp.log(square) / 2))


@constructor
def rg_lru_block(
    hidden: int, *, width: int | None = None, heads: int = 1, kernel: int = 4
) -> Cell:
    """The recurrent block of Griffin and Hawk (De et al. 2024, arXiv:2402.19427, section 2.3).

        y = W_o (rg_lru(conv1d(W_x x)) * gelu(W_y x))

    With a bias at every product.

    Args:
      hidden: O, the size of the output.
      width: H, the size of the recurrence; None for that of the output.
      heads: see ``jaxrnn.rg_lru``.
      kernel: how many steps the convolution sees, which is depthwise: ``jaxrnn.conv1d``.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      both branches in ``jaxrnn.parallel``, the recurrent one first, and of ``jaxrnn.project``.

    >>> cell = jaxrnn.rg_lru_block(4, width=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3)))[1].shape
    (7, 4)
    """
    width = hidden if width is None else width
    convolution = conv1d(width, kernel=kernel, depthwise=True)
    recurrent = stack(project(width), convolution, rg_lru(width, heads=heads))
    gate = project(width, activation="gelu")
    return stack(parallel(recurrent, gate, merge="product"), project(hidden))
