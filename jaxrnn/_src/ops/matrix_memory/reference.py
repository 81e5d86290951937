"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

import jax
import jax.numpy as jnp

from jaxrnn._src.core.sequence import scan
from jaxrnn._src.ops.matrix_memory.problem import product


def step(stabilised, state, x):
    """One step: ``(C, m)`` and ``(q, k, v, log_f, log_i)`` of [B, ...] -> (state, (y, m))."""
    (memory, m), (q, k, v, log_f, log_i) = state, x
    log_f = log_f + m
    m = jnp.maximum(log_f, log_i) if stabilised else m
    f, i = (jnp.exp(gate - m)[..., None, None] for gate in (log_f, log_i))
    k, v = k.astype(memory.dtype), v.astype(memory.dtype)
    memory = f * memory + i * (k[..., :, None] * v[..., None, :])
    y = product("...d,...de->...e", q, memory, q.dtype, memory.dtype)
    return (memory, m), (y, m)


def run(problem, operands):
    """The whole sequence: (C, m, ys, ms)."""
    state, out = scan(
        lambda state, x: step(problem.stabilised, state, x),
        operands.state,
        operands[:5],
        initial=jax.tree.map(jnp.zeros_like, operands.state),
        mask=operands.mask,
        starts=operands.starts,
        reverse=problem.reverse,
    )
    return (*state, *out)
