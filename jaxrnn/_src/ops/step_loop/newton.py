"""A loop whose step is elementwise by Newton's method: see ``ops.newton``."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops import dependence, newton
from jaxrnn._src.ops.newton.jacobian import Blocks, by_unit, derivatives
from jaxrnn._src.ops.step_loop import problem as p
from jaxrnn._src.ops.step_loop import reference


def run(problem: p.Problem, operands: p.Operands):
    """The whole sequence: (*final state, ys, solved)."""
    tree = jax.tree.structure(operands.state)
    flip = lambda a: jax.tree.map(lambda a: a[::-1], a) if problem.reverse else a
    xs, mask, starts = flip((operands.xs, operands.mask, operands.starts))
    initial = None if operands.initial is None else tuple(jax.tree.leaves(operands.initial))
    given = newton.Given(
        operands.others, xs, tuple(jax.tree.leaves(operands.state)), initial, mask, starts
    )

    def both(others, states, x):
        inner = operands_of(others, tree.unflatten(states))
        state, y = reference.step(problem, inner, inner.state, x)
        return tuple(jax.tree.leaves(state)), y

    def step(others, states, x):
        return both(others, states, x)[0]

    def jacobian(others, states, x):
        new, parts = derivatives(lambda *states: step(others, states, x), states)
        return new, by_unit(parts)

    states, solved = newton.solve(newton.System(step, jacobian, blocks(problem)), given)
    found = newton.before(given, states)
    ys = jax.vmap(both, (None, 0, 0))(operands.others, found, xs)[1]
    return (*(a[-1] for a in states), flip(select(mask, ys, 0)), solved)


def operands_of(others, state) -> p.Operands:
    """What one step is given, without products."""
    return p.Operands(None, {}, others, state, None, None, None)


def blocks(problem: p.Problem) -> Blocks:
    """How the Jacobian is taken."""
    return Blocks("diagonal", problem.states, 1)


def unsupported(problem: p.Problem, operands: p.Operands) -> str | None:
    """Why it can't run: None if the step is elementwise in its units."""
    if operands.weights:
        return "a step has matrix products of its own"
    states = jax.tree.leaves(operands.state)
    if any(jnp.iscomplexobj(a) or a.shape != states[0].shape for a in states):
        return "its states are complex, or not of one shape"
    if problem.features != 1:
        return "a state has more than one axis of features"
    row = lambda a: jax.ShapeDtypeStruct(a.shape[-1:], a.dtype)
    state = jax.tree.map(row, operands.state)
    x = jax.tree.map(row, operands.xs)

    def run(state):
        inner = operands_of(operands.others, state)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x)
        return reference.step(problem, inner, state, zeros)[0]

    closed = jax.make_jaxpr(run)(state)
    own = np.arange(states[0].shape[-1])
    for k in range(len(states)):
        for label in dependence.labels(closed, k):
            if not ((label == own) | (label == dependence.NOBODY)).all():
                return "a unit of its state sees other units"
    return None
