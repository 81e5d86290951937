"""The memory for XLA, chunk by chunk. Backward makes each chunk again from the memory before it.

So what is kept grows with T as the values do, not as the memories of all steps.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.attention.blocks import blocks, joined
from jaxrnn._src.ops.delta_rule import chunked, stepwise

_CHUNK = 32


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (final state, ys), then the memory before each chunk if a backward needs them."""
    del wanted  # what nobody uses, XLA removes
    form = _form(operands, target)

    def body(memory, steps):
        new, ys = form.chunk(problem.before, target, memory, *steps)
        return new, (ys, memory if save else None)

    steps = _cut(problem, operands.mask, operands[:6]), _blocks(problem, operands.starts)
    final, (ys, kept) = lax.scan(body, operands.state, steps)
    ys = select(operands.mask, _joined(problem, ys, operands.v.shape[0]), 0)
    return [final, ys, *([kept] if save else [])]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted
    form = _form(operands, target, gradient=True)
    d_final, d_ys = cotangents
    d_final = jnp.zeros_like(operands.state) if d_final is None else d_final
    d_ys = jnp.zeros_like(operands.v) if d_ys is None else select(operands.mask, d_ys, 0)
    cut, pull_cut = jax.vjp(functools.partial(_cut, problem, operands.mask), operands[:6])

    def body(d_memory, x):
        d_ys, memory, taken, starts = x
        return form.pulled(problem.before, target, memory, taken, starts, d_memory, d_ys)

    steps = _blocks(problem, d_ys), *residuals, cut, _blocks(problem, operands.starts)
    d_state, d_cut = lax.scan(body, d_final, steps, reverse=True)
    (gradients,) = pull_cut(d_cut)
    return operands._replace(**dict(zip(operands._fields, gradients)), state=d_state)


def _form(operands, target, gradient=False):
    """The module that runs a chunk, or its gradient.

    On a CPU the parallel form pays where matmuls do most of it. With a decay for each key they do
    not, and the delta rule's triangular systems take longer than its steps, which is made up for
    backward. Milliseconds of processor for T = 1024, float32, two busy cores, so roughly:

                                       forward               with gradient
        (B, N, D, E)                steps    chunks          steps    chunks
        (1, 4, 32, 32)   scalar       2.0       1.7             13       6.9
                         vector       2.2       5.8             14        68
                         delta        1.4       3.9             12        15
                         KDA          2.2        20             14       204
        (8, 2, 64, 64)   scalar        17        13            149        40
                         vector        11        64            162       156
                         delta         26        26            206        82
                         KDA           21       116            229       407

    Chunks with a decay for each key are an earlier form's here. Forward, today's take 4.3 (vector)
    and 13 (KDA) at the smaller size, and 40 (KDA) at the larger.
    """
    each = operands.log_w is not None and operands.log_w.shape[-1] == operands.k.shape[-1]
    steps = each or (operands.b is not None and not gradient)
    return stepwise if target.platform == "cpu" and steps else chunked


def _cut(problem, mask, taken):
    """``(q, k, v, log_w, a, b)`` in chunks, [n, L, B, ...]: padding writes nothing and holds."""
    q, k, v, log_w, a, b = taken
    k, log_w, a = select(mask, (k, log_w, a), 0)
    return jax.tree.map(functools.partial(_blocks, problem), (q, k, v, log_w, a, b))


def _blocks(problem, a):
    """[T, ...] as [n, L, ...] in the order of processing, the last chunk filled up with zeros."""
    if a is None:
        return None
    a = a[::-1] if problem.reverse else a
    return blocks(a, chunk_size(a.shape[0]), -a.ndim)


def _joined(problem, ys, steps):
    """The inverse of ``_blocks``: [n, L, ...] as [T, ...]."""
    ys = joined(ys, 1 - ys.ndim, steps)
    return ys[::-1] if problem.reverse else ys


def chunk_size(steps):
    """A power of two: ``_CHUNK``, or less for a shorter sequence; steps may be symbolic."""
    return min(_CHUNK, 1 << max(steps - 1, 0).bit_length()) if isinstance(steps, int) else _CHUNK
