"""Attention with an online softmax, block by block: memory linear in the number of steps.

Forward as in Milakov & Gimelshein 2018 (arXiv:1805.02867) and Rabe & Staats 2021
(arXiv:2112.05682), backward from the logarithm of each row's sum as in FlashAttention (Dao et al.
2022, arXiv:2205.14135). Blocks that no query of a block sees are left out where that is known.
"""

import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.attention.blocks import block_size, blocks, heads_first, joined, needed
from jaxrnn._src.ops.attention.problem import places, scores

_BLOCK = 256


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (ys,), [B, T, N, D], then the logarithm of each row's sum, [B, T, N]."""
    del wanted, target
    cut = _Cut(problem, operands)
    k, v, k_place = cut.keys

    def row(block):
        i, q, q_place = block

        def column(j, carry):
            top, total, out = carry
            s = scores(problem, q, k[j], q_place, _at(k_place, j))
            new_top = jnp.maximum(top, s.max(-1))
            base = _finite(new_top)
            weights = jnp.exp(s - base[..., None])
            shrink = jnp.exp(top - base)
            out = out * shrink[..., None] + _product("...ts,...sd->...td", weights, v[j])
            return new_top, total * shrink + weights.sum(-1), out

        shape, dtype = q.shape[:-1], cut.total
        start = jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype)
        start = _carry(q, *start, jnp.zeros(q.shape, dtype))
        range_ = needed(problem, i, cut.size, k.shape[0])
        top, total, out = lax.fori_loop(*range_, column, start)
        total = jnp.where(total == 0, 1, total)  # a row that sees nothing is zero
        return (out / total[..., None]).astype(q.dtype), _finite(top) + jnp.log(total)

    ys, sums = lax.map(row, cut.queries)
    ys = heads_first(joined(ys, -2, cut.steps))
    sums = jnp.swapaxes(joined(sums, -1, cut.steps), -1, -2)
    return (ys, sums) if save else (ys,)


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del wanted, target
    cut = _Cut(problem, operands)
    k, v, k_place = cut.keys
    (ys,), (sums,), (d_ys,) = outputs, residuals, cotangents
    size, total = cut.size, cut.total
    scale = operands.q.shape[-1] ** -0.5
    along = jnp.sum(ys.astype(total) * d_ys.astype(total), -1)
    sums, along = (blocks(jnp.swapaxes(a, -1, -2), size, -1) for a in (sums, along))
    d_ys = blocks(heads_first(d_ys), size, -2)

    def row(carry, block):
        (i, q, q_place), d_y, logsum, along = block

        def column(j, carry):
            d_q, d_k, d_v = carry
            s = scores(problem, q, k[j], q_place, _at(k_place, j))
            weights = jnp.exp(s - logsum[..., None])
            d_weights = _product("...td,...sd->...ts", d_y, v[j])
            d_s = weights * (d_weights - along[..., None]) * scale
            d_v = d_v.at[j].add(_product("...ts,...td->...sd", weights, d_y))
            d_k = d_k.at[j].add(_product("...ts,...td->...sd", d_s, q))
            return d_q + _product("...ts,...sd->...td", d_s, k[j]), d_k, d_v

        start = (*_carry(q, jnp.zeros(q.shape, total)), *carry)
        d_q, *carry = lax.fori_loop(*needed(problem, i, size, k.shape[0]), column, start)
        return tuple(carry), d_q

    start = _carry(k, jnp.zeros(k.shape, total), jnp.zeros(v.shape, total))
    (d_k, d_v), d_q = lax.scan(row, start, (cut.queries, d_ys, sums, along))
    d_q, d_k, d_v = (
        heads_first(joined(d, -2, a.shape[-3])).astype(a.dtype)
        for d, a in zip((d_q, d_k, d_v), operands[:3])
    )
    return operands._replace(q=d_q, k=d_k, v=d_v)


class _Cut:
    """The operands in blocks: ``queries`` (number, q, place) and ``keys`` (k, v, place)."""

    def __init__(self, problem, operands):
        q, k, v = (heads_first(a) for a in operands[:3])
        self.steps = q.shape[-2]
        size, self.size = (block_size(_BLOCK, a.shape[-2]) for a in (k, q))
        self.total = jnp.result_type(jnp.float32) if q.dtype.itemsize < 4 else q.dtype
        q_place, (position, episode) = places(problem, operands)
        cut = blocks(q, self.size, -2)
        q_place = tuple(blocks(p, self.size, -1) for p in q_place)
        self.queries = jnp.arange(cut.shape[0]), cut, q_place
        place = blocks(position, size, -1), blocks(episode, size, -1, fill=-1)
        self.keys = blocks(k, size, -2), blocks(v, size, -2), place


def _carry(like, *arrays):
    """What a loop begins with, of the type it will have after a round with ``like``."""
    return varying((like, *arrays))[1:]


def _product(subscripts, weights, other):
    """In the type of ``other``, summed in the type of ``weights``."""
    total = weights.dtype if weights.dtype.itemsize >= 4 else jnp.dtype("float32")
    return jnp.einsum(subscripts, weights.astype(other.dtype), other, preferred_element_type=total)


def _finite(top):
    return jnp.where(jnp.isinf(top), 0, top)


def _at(place, j):
    return tuple(p[j] for p in place)
