"""The recurrence by Newton's method: see ``ops.newton``."""

from typing import Any

import jax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops import newton
from jaxrnn._src.ops.newton.jacobian import Blocks, dense, derivatives, quasi
from jaxrnn._src.ops.recurrence import problem as p


def run(problem: p.Problem, operands: p.Operands):
    """The whole sequence: (final state, ys, states after each step, solved)."""
    system = _system(problem, operands)
    flip = lambda tree: jax.tree.map(lambda a: a[::-1], tree) if problem.reverse else tree
    xs, mask, starts = flip((p.project(operands.xs, operands), operands.mask, operands.starts))
    params = operands.r, operands.unit
    given = newton.Given(params, xs, operands.state, operands.initial, mask, starts)
    states, solved = newton.solve(system, given)
    ys = select(mask, states[0].astype(operands.xs.dtype), 0)
    return tuple(a[-1] for a in states), flip(ys), flip(states), solved


def blocks(problem: p.Problem, operands: p.Operands) -> Blocks:
    """How the Jacobian is taken."""
    heads, width = _by_head(operands.r).shape[:2]
    return Blocks("dense" if width <= newton.DENSE else "quasi", problem.states, heads)


def _by_head(r):
    """[N, D, G, D], also of one head."""
    return r[None] if r.ndim == 3 else r


def _type(array: p.Array) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _system(problem, operands):
    # What the functions close over is types alone.
    xs, w, b = map(_type, operands[:3])
    found = blocks(problem, operands)

    def of(params, states, x):
        r, unit = params
        inner = p.Operands(xs, w, b, r, unit, states, None, None, None)
        unit = {name: p.spread(row, states[0]) for name, row in unit.items()}
        rg = p.split(p.recurrent(states[0], inner), problem.gates)
        return inner, p.split(x, problem.gates), rg, unit

    def step(params, states, x):
        _, xg, rg, unit = of(params, states, x)
        return tuple(problem.update(states, xg, rg, **unit))

    def jacobian(params, states, x):
        inner, xg, rg, unit = of(params, states, x)

        def update(*arrays):
            state, r = arrays[: problem.states], arrays[problem.states :]
            return tuple(problem.update(state, xg, r, **unit))

        new, parts = derivatives(update, (*states, *rg))
        direct = [row[: problem.states] for row in parts]
        through = [row[problem.states :] for row in parts]
        r = _by_head(inner.r).astype(inner.product_dtype).astype(states[0].dtype)
        return new, (dense if found.kind == "dense" else quasi)(direct, through, r)

    return newton.System(step, jacobian, found)
