"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

import jax.numpy as jnp

from jaxrnn._src.core.sequence import scan, select
from jaxrnn._src.ops.linear_scan.problem import Operands, Problem


def run(problem: Problem, operands: Operands):
    """The whole sequence: (final state, hs)."""

    def step(h, x):
        b, a = x
        h = operands.factor(a, h) * h + b.astype(h.dtype)
        return h, h

    # The derivative of what is not selected is zero times a factor, which may be NaN.
    inputs = operands.b, operands.a
    final, hs = scan(
        step,
        operands.h0,
        inputs if operands.mask is None else select(operands.mask, inputs, 0),
        initial=jnp.zeros_like(operands.h0),
        mask=operands.mask,
        starts=operands.starts,
        reverse=problem.reverse,
    )
    return final, hs.astype(operands.b.dtype)
