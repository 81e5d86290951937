"""Chunk by chunk: within a chunk as attention with decay, between chunks by the memory.

As in Hua et al. 2022 (arXiv:2202.10447), Yang et al. 2023 (arXiv:2312.06635) and, with gates that
are exponentials, Beck et al. 2025 (arXiv:2503.14376). All exponents are at most 0. Backward makes
a chunk again from the memory before it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.attention.blocks import block_size, blocks, joined
from jaxrnn._src.ops.matrix_memory.problem import product

CHUNK = 64


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (C, m, ys, ms), then the C and m before each chunk: [chunks, B, N, ...]."""
    del wanted, target

    def one(state, chunk):
        after, out = _chunk(problem.stabilised, state, *chunk)
        return after, (out, state if save else ())

    state, (out, saved) = lax.scan(one, operands.state, _cut(problem, operands))
    return (*state, *_of_steps(problem, operands, out), *saved)


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target
    steps, state = operands.q.shape[0], operands.state
    *cut, starts = _cut(problem, operands)
    size = starts.shape[-1]
    shapes = *state, jnp.zeros_like(operands.v, state[0].dtype), operands.log_f
    filled = [jnp.zeros_like(a) if d is None else d for a, d in zip(shapes, cotangents)]
    _, d_memory, d_m, d_ys, d_ms = varying((operands.q, *filled))
    d_ys, d_ms = _in_order(problem, select(operands.mask, (d_ys, d_ms), 0))
    d_out = (
        blocks(jnp.moveaxis(d_ys, 0, -2), size, -2),
        blocks(jnp.moveaxis(d_ms, 0, -1), size, -1),
    )

    def one(d_state, chunk):
        state, starts, xs, d_out = chunk

        def one(state, q, k, v, log_f, log_i):
            return _chunk(problem.stabilised, state, q, k, v, log_f, log_i, starts)

        d_state, *made = jax.vjp(one, state, *xs)[1]((d_state, d_out))
        return d_state, made

    chunks = residuals, starts, tuple(cut), d_out
    d_state, made = lax.scan(one, (d_memory, d_m), chunks, reverse=True)
    vectors = (jnp.moveaxis(joined(d, -2, steps), -2, 0) for d in made[:3])
    scalars = (jnp.moveaxis(joined(d, -1, steps), -1, 0) for d in made[3:])
    made = _in_order(problem, (*vectors, *scalars))
    q, k, v, log_f, log_i = select(operands.mask, made, 0)
    return operands._replace(q=q, k=k, v=v, log_f=log_f, log_i=log_i, state=d_state)


def _cut(problem, operands):
    """What each chunk takes: q, k, v [chunks, B, N, L, D], gates [chunks, B, N, L], starts."""
    steps, *batch, _, _ = operands.q.shape
    held = jnp.zeros_like(operands.log_f), jnp.full_like(operands.log_i, -jnp.inf)
    gates = select(operands.mask, (operands.log_f, operands.log_i), held)
    starts = operands.starts
    starts = jnp.zeros((steps, *batch), bool) if starts is None else starts
    xs = _in_order(problem, (*operands[:3], *gates, starts[..., None]))
    vectors = (jnp.moveaxis(a, 0, -2) for a in xs[:3])
    scalars = (jnp.moveaxis(a, 0, -1) for a in xs[3:])
    size = block_size(CHUNK, steps) or 1  # of no steps, no chunk
    cut = [blocks(a, size, -2) for a in vectors]
    return cut + [blocks(a, size, -1, fill) for a, fill in zip(scalars, (0, -jnp.inf, False))]


def _of_steps(problem, operands, out):
    """ys and ms of each step, from those of chunks."""
    (ys, ms), steps = out, operands.q.shape[0]
    ys, ms = jnp.moveaxis(joined(ys, -2, steps), -2, 0), jnp.moveaxis(joined(ms, -1, steps), -1, 0)
    return select(operands.mask, tuple(_in_order(problem, (ys, ms))), 0)


def _in_order(problem, arrays):
    """[T, ...] in the order of processing, and back."""
    return jax.tree.map(lambda a: a[::-1], arrays) if problem.reverse else arrays


def _chunk(stabilised, state, q, k, v, log_f, log_i, starts):
    """L steps of ``(C, m)``: q, k [B, N, L, D], v [B, N, L, E], gates [B, N, L], starts [B, 1, L].

    Returns (state, (ys [B, N, L, E], ms [B, N, L])).
    """
    (memory, m), total, dtype = state, state[0].dtype, q.dtype
    # In a product over steps, and in its derivative, 0 times NaN would reach steps before it, and
    # other episodes: a step that writes what is not finite writes nothing, and its episode is NaN
    # from there on. So is one whose memory is lost.
    broken = ~(jnp.isfinite(k).all(-1) & jnp.isfinite(v).all(-1) & (log_f + log_i < jnp.inf))
    if stabilised:  # both gates 0: the step divides 0 by 0
        broken |= jnp.maximum(log_f, log_i) == -jnp.inf
    unread = ~jnp.isfinite(q).all(-1)
    lost = ~(jnp.isfinite(memory).all((-2, -1)) & (m < jnp.inf))
    memory, m = select(~lost, (memory, m), 0)
    q = jnp.where(unread[..., None], 0, q)
    k, v = (jnp.where(broken[..., None], 0, a) for a in (k, v))
    log_f, log_i = jnp.where(broken, 0, log_f), jnp.where(broken, -jnp.inf, log_i)
    # What a forget gate of 0 ends is no sum of logarithms: the difference of two -inf is NaN.
    closed = log_f == -jnp.inf  # [B, N, L]
    log_f = jnp.where(closed, 0, log_f)
    count = lambda flags: lax.cumsum(flags.astype(jnp.int32), axis=flags.ndim - 1)
    episode, closings = count(starts), count(closed)
    first = episode == 0  # the episode that C and m are of
    steps = jnp.arange(starts.shape[-1])
    causal = jnp.broadcast_to(steps[:, None] >= steps[None, :], (*starts.shape, steps.size))
    episodes = causal & (episode[..., :, None] == episode[..., None, :])  # [B, 1, L, L]
    seen = episodes & (closings[..., :, None] == closings[..., None, :])  # [B, N, L, L]
    forgotten = (episodes & closed[..., None, :]).any(-1)
    # What is left at each step: of the memory before the chunk, and of each step s of the chunk.
    left = jnp.where(seen, log_f[..., None, :], 0).sum(-1)
    of_step = left[..., :, None] - left[..., None, :] + log_i[..., None, :]
    of_step = jnp.where(seen, of_step, -jnp.inf)
    of_memory = jnp.where(forgotten, -jnp.inf, left + jnp.where(first, m[..., None], 0))
    top = jnp.maximum(of_memory, _most(of_step)) if stabilised else jnp.zeros_like(left)
    of_step, of_memory = jnp.exp(of_step - top[..., None]), jnp.exp(of_memory - top)[..., None]

    scores = product("...td,...sd->...ts", q, k, dtype, total) * of_step
    read = of_memory * product("...td,...de->...te", q, memory, dtype, total)
    ys = product("...ts,...se->...te", scores, v, dtype, total) + select(first, read, 0)
    memory = select(first[..., -1], of_memory[..., -1:, :] * memory, 0)
    written = of_step[..., -1, :, None] * k.astype(total)
    memory += product("...sd,...se->...de", written, v, dtype, total)
    spoiled = (episodes & broken[..., None, :]).any(-1) | (first & lost[..., None])
    memory = jnp.where(spoiled[..., -1:, None], jnp.nan, memory)
    ys = jnp.where((spoiled | unread)[..., None], jnp.nan, ys)
    return (memory, top[..., -1]), (ys, top)


@jax.custom_jvp
def _most(a):
    """The largest along the last axis."""
    return a.max(-1)


@_most.defjvp
def _most_jvp(primals, tangents):
    # JAX's own looks for elements equal to the result: when a program rounds a once for each,
    # differently, there may be none, and 0 / 0.
    (a,), (t,) = primals, tangents
    chosen = jax.nn.one_hot(a.argmax(-1), a.shape[-1], dtype=bool)
    return _most(a), jnp.where(chosen, t, 0).sum(-1)
