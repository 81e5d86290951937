"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

from jaxrnn._src.core.sequence import scan
from jaxrnn._src.ops.recurrence.problem import Operands, Problem, project, recurrent, split, spread


def step(problem: Problem, operands: Operands, state, x, h=None):
    """One step: state of [B, H], x [B, I] -> (state, y [B, H]). ``h`` is what recurs, if given."""
    h = state[0] if h is None else h
    xg = split(project(x, operands), problem.gates)
    rg = split(recurrent(h, operands), problem.gates)
    unit = {name: spread(u, state[0]) for name, u in operands.unit.items()}
    new = tuple(problem.update(state, xg, rg, **unit))
    return new, new[0].astype(x.dtype)


def run(problem: Problem, operands: Operands):
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
    return (*final, ys)
