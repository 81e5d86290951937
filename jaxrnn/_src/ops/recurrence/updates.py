"""An update and its derivative as programs, for kernels that know no JAX."""

import functools

import jax
import numpy as np

from jaxrnn._src.core.closures import bound, traced_with
from jaxrnn._src.core.sharding import nowhere
from jaxrnn._src.ops.recurrence import problem as p
from jaxrnn._src.ops.recurrence.elements import of_any_size, said
from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.program import Program, Unknown, compiled


def programs(problem: p.Problem, operands: p.Operands, operations) -> tuple[Program, Program]:
    """The update's, of states, packed gates one by one, and unit weights; and its derivative's.

    The derivative takes the cotangents of the new states after these, and gives the gradients of
    all of the others.

    Args:
      operations: the names of what a program can be made of, in the order of their numbers.

    Raises:
      Unknown: the update has another operation, or no derivative.
    """
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return _programs(
        problem.update,
        problem.gates,
        problem.states,
        tuple(sorted(operands.unit)),
        operands.state[0].dtype,
        operations,
        x64,
    )


@functools.lru_cache(256)
def _programs(update, gates, states, unit, dtype, operations, x64):
    del x64  # what types are inside of the update depends on it
    problem = p.Problem(update, gates, states, False, "gates", None)
    packing = Packing(problem, unit)
    row = traced_with(update, jax.ShapeDtypeStruct((3,), dtype))
    count = states + len(packing.summed) + 2 * len(packing.apart) + len(unit)
    ends = np.cumsum([states, len(packing.summed), len(packing.apart), len(packing.apart)])

    def given(flat):
        state, *parts = (flat[i:j] for i, j in zip([0, *ends], ends))
        return tuple(state), parts, dict(zip(unit, flat[ends[-1] : ends[-1] + len(unit)]))

    def value(*flat):
        return packing.update_parts(*given(flat))

    def derivative(*flat):
        pull = jax.vjp(packing.update_parts, *given(flat[:count]))[1]
        return pull(tuple(flat[count:]))

    rows = [row] * (count + states)
    with nowhere():
        program = compiled(value, rows[:count], operations)
        try:
            jax.eval_shape(derivative, *rows)
        except Exception as error:  # JAX's, of a while loop, or a user's rule's
            raise Unknown(f"its derivative: {said(error)}") from error
        if not bound(update):
            sized = lambda size: jax.ShapeDtypeStruct((size,), dtype)
            of_any_size(lambda size: jax.make_jaxpr(derivative)(*[sized(size)] * len(rows)))
            of_any_size(lambda size: jax.make_jaxpr(value)(*[sized(size)] * count))
        return program, compiled(derivative, rows, operations)
