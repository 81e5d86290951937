"""The linear recurrence for XLA: step by step, or eight steps of every chunk at once.

The gradient is the same recurrence the other way:

    d_b[t] = d_hs[t] + a[t+1] * d_b[t+1]        d_a[t] = d_b[t] * h[t-1]
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.linear_scan.problem import before, cut, keeps

# Steps of a chunk. No kernel of XLA's carries a state from step to step: each result is made from
# the chunk's first step on. With 8 of them that is 9 numbers read for one, from the cache of a
# GPU, which takes about as long as memory does for the rest. Compiled for an H200, not yet timed
# on one: [1024, 8, 1024] in float32 is 7 kernels and twice the least bytes. A scan is 3,075
# kernels; `jax.lax.associative_scan` is 9, one of which reads from 2,700 places, and compiles for
# 7 to 9 s where this takes 1 s.
_CHUNK = 8

# On a TPU chunks move several times the least bytes (`make aot` counts them), and a loop about 1.
# With more numbers a step than this the loop is faster, if a step of it takes 1 us beside what
# memory takes: that is a guess. The kernel for TPUs is faster than both.
_WIDE = 1 << 15


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (final state, hs), then the states before each step if a backward needs them."""
    save = save and keeps(operands)

    def step(h, x):
        b, a, real, start = x
        h = cut(start, h)
        new = operands.factor(a, h) * h + b.astype(h.dtype)
        out = select(real, new, 0) if wanted[1] else None
        return select(real, new, h), (out, h if save else None)

    final, (hs, kept) = _run(step, operands, operands.h0, operands.b, problem.reverse, target)
    if hs is not None:  # it is wanted
        # Not in the step: there, XLA of JAX 0.10 for CPUs converts the whole of a bfloat16 array.
        hs = hs.astype(operands.b.dtype)
    return [final, hs, *([kept] if save else [])]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del wanted  # what nobody uses, XLA removes
    d_final, d_hs = cotangents
    d_final = jnp.zeros_like(operands.h0) if d_final is None else d_final
    if d_hs is None:
        d_hs = jnp.zeros((operands.b.shape[0], *(1,) * d_final.ndim), d_final.dtype)

    def step(d, x):
        d_h, a, real, start = x
        d_new = d + d_h.astype(d.dtype)
        d = select(real, operands.factor(a, d) * d_new, d)
        return cut(start, d), select(real, d_new, 0)

    d_h0, d_b = _run(step, operands, d_final, d_hs, not problem.reverse, target)
    d_a = select(operands.mask, d_b * before(problem, operands, outputs[1], residuals), 0)
    if operands.a is None:
        gradients = {"constant": d_a.sum(tuple(range(d_a.ndim - 1)))}
    else:
        gradients = {"a": d_a}
    gradients = operands._replace(b=d_b, h0=d_h0, **gradients)
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


def _run(step, operands, state, added, reverse, target):
    """``jax.lax.scan`` of ``step(state, (added, a, mask, starts)) -> (state, out)``."""
    inputs = added, operands.a, operands.mask, operands.starts
    if _one_by_one(operands, target):
        return lax.scan(step, state, inputs, reverse=reverse)

    def through(product, x):
        _, a, real, _ = x
        return select(real, operands.factor(a, product) * product, product)

    return _in_chunks(step, through, state, inputs, reverse)


def _one_by_one(operands, target):
    """Whether the steps run one after the other; sizes may be symbolic, and then they do.

    On a CPU a step of a small loop takes 12 ns, and another form was faster only at the last of
    these sizes, by a tenth. Two cores, float32, milliseconds forward:

          T    B*D      scan   in chunks   associative_scan
        256     16     0.010       0.023              0.060
       1024    256     0.062       0.129              0.547
       1024   4096     1.9         4.8               32
        256  65536    39          46                150
      65536     16     0.82        2.0                4.0
      65536    256    46          42                178
    """
    known = all(isinstance(n, int) for n in operands.b.shape)
    if target.platform in ("cpu", None) or not known:
        return True
    return target.platform == "tpu" and operands.h0.size // target.devices > _WIDE


def _in_chunks(step, through, state, inputs, reverse):
    """``jax.lax.scan`` of a step that is linear in the state, for all chunks of time at once.

    First each chunk begins at zero: where it ends, and the product of its factors, make it one
    step of a shorter recurrence (Blelloch 1990, "Prefix sums and their applications"). That one,
    run in the same way, gives the state before each chunk. From there the chunks run again.

    Args:
      step: ``(state, x) -> (state, out)``.
      through: ``(product, x) -> product``, times the step's factors.
      state: [B, D].
      inputs: (added, factors, mask, starts), [T, B, ...] each, or None.
      reverse: from the last to the first.
    """
    count, rest = divmod(inputs[0].shape[0], _CHUNK)
    few = functools.partial(lax.scan, reverse=reverse, unroll=True)
    if count < 2:
        return few(step, state, inputs)
    whole, left = slice(count * _CHUNK), slice(count * _CHUNK, None)
    if reverse:
        whole, left = slice(rest, None), slice(rest)
    chunks = jax.tree.map(lambda a: a[whole].reshape(count, _CHUNK, *a.shape[1:]), inputs)

    def each(step, state):
        """Scans over the steps of all chunks, written out."""
        outs = [None] * _CHUNK
        for k in reversed(range(_CHUNK)) if reverse else range(_CHUNK):
            state, outs[k] = step(state, jax.tree.map(lambda a: a[:, k], chunks))  # noqa: B023
        return state, outs

    def ends(both, x):
        product, end = both
        return (through(product, x), step(end, x)[0]), None

    zero = jnp.zeros((count, *state.shape), state.dtype)
    (product, end), _ = each(ends, (zero + 1, zero))
    product, end = lax.optimization_barrier((product, end))  # or whoever reads it makes it again
    starts = None if inputs[3] is None else chunks[3].any(1)
    shorter = end, product, None, starts
    state, first = _in_chunks(_chunk, _through_chunk, state, shorter, reverse)
    _, outs = each(step, first)
    outs = jax.tree.map(lambda *o: jnp.stack(o, 1).reshape(-1, *o[0].shape[1:]), *outs)
    if rest:
        state, last = few(step, state, jax.tree.map(lambda a: a[left], inputs))
        parts = (last, outs) if reverse else (outs, last)
        outs = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
    return state, outs


def _chunk(h, x):
    """A chunk as one step; gives the state before it."""
    end, product, _, start = x
    return _times(product, cut(start, h)) + end, h


def _through_chunk(product, x):
    return _times(x[1], product)


def _times(product, a):
    """Zero remains zero, where it was so step by step, if a product of factors overflows."""
    return jnp.where(a == 0, 0, product * a)
