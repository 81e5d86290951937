"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

import jax

from jaxrnn._src.core.sequence import scan
from jaxrnn._src.ops.step_loop import problem as p


def step(problem, operands, state, x):
    """One step: state of [B, ...], x of [B, ...] -> (state, y)."""

    def dot(name, a):
        return p.product(a, operands.weights[name], *p.kind(problem, operands))

    return problem.step(p.of_rows(problem, operands), state, x, dot)


def run(problem, operands):
    """The whole sequence: (*final state, ys)."""
    final, ys = scan(
        lambda state, x: step(problem, operands, state, x),
        operands.state,
        operands.xs,
        initial=operands.initial,
        mask=operands.mask,
        starts=operands.starts,
        reverse=problem.reverse,
    )
    return (*jax.tree.leaves(final), ys)
