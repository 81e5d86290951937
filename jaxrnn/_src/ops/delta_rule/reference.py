"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

import jax.numpy as jnp

from jaxrnn._src.core.sequence import scan


def step(before, state, taken):
    """One step of [B, N, D, E]: ``(q, k, v, log_w, a, b)`` of [B, ...] -> (state, y [B, N, E])."""
    q, k, v, log_w, a, b = taken
    new = state if log_w is None else jnp.exp(log_w)[..., None] * state
    if b is not None:
        found = read(state, b)
        if a is None:
            v -= found
        else:
            new += outer(a, found)
    new += outer(k, v)
    return new, read(state if before else new, q)


def run(problem, operands):
    """The whole sequence: (state, ys)."""
    return scan(
        lambda state, taken: step(problem.before, state, taken),
        operands.state,
        operands[:6],
        initial=jnp.zeros_like(operands.state),
        mask=operands.mask,
        starts=operands.starts,
        reverse=problem.reverse,
    )


def outer(key, value):
    return key[..., :, None] * value[..., None, :]


def read(memory, key):
    return jnp.einsum("...d,...de->...e", key, memory)
