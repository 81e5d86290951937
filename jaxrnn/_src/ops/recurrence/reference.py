"""The specification: ``jax.lax.scan`` of the step, with JAX's own derivatives. Runs everywhere."""

from jaxrnn._src.core.sequence import scan
from jaxrnn._src.ops.recurrence.problem import Operands, Problem, apart, spread


def step(problem: Problem, operands: Operands, state, x, h=None):
    """One step: state of [B, H], x [B, I] -> (state, y [B, H]). ``h`` is what recurs, if given."""
    h = state[0] if h is None else h
    xg, rg, unit = given(operands, state, x, h)
    new = tuple(problem.update(state, xg, rg, **unit))
    return new, new[0].astype(x.dtype)


def given(operands: Operands, state, x, h):
    """What the update is given beside the state: ``(x, r, unit)``."""
    unit = {name: spread(u, state[0]) for name, u in operands.unit.items()}
    xs = (a + spread(b, a) for a, b in zip(apart(x, operands.w, operands), operands.b))
    return tuple(xs), apart(h, operands.r, operands), unit


def run(problem: Problem, operands: Operands):
    """The whole sequence: (*final state, ys), then the states after each step, if wanted."""
    final, ys = scan(
        lambda state, x: step(problem, operands, state, x),
        operands.state,
        operands.xs,
        initial=operands.initial,
        mask=operands.mask,
        starts=operands.starts,
        reverse=problem.reverse,
        every=problem.every,
    )
    ys, states = ys if problem.every else (ys, ())
    return (*final, ys, *states)
