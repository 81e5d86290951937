"""A loop over time whose matrix products are known by name: one contract, several implementations.

    state, y = step(others, state, x, dot)        dot(name, a) is a times weights[name]

For cells whose step is not elementwise, or takes products one after the other. The weights'
gradients are taken after the loop, as those of ``jaxrnn.recurrence`` are.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.closures import closed_over
from jaxrnn._src.core.compile_once import once_each
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.operation import WEIGHT, Implementation, Operation
from jaxrnn._src.ops.step_loop import cpu, newton, reference, xla
from jaxrnn._src.ops.step_loop.problem import Operands, Problem, split

IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu, "xla": xla}


def one(step, x, weights, others, state, *, product, bilinear=None):
    """One step, x a tree of [B, ...]: ``(state, y)``. The arguments are those of ``loop``."""
    problem, operands = _stated(step, x, weights, others, state, product, bilinear, 0)
    return reference.step(problem, operands, state, x)


def loop(
    step,
    xs,
    weights,
    others,
    state,
    *,
    product,
    bilinear=None,
    initial=None,
    mask=None,
    starts=None,
    reverse=False,
    implementation=None,
):
    """Runs ``step`` over time.

    T time, B any batch axes.

    Args:
      step: ``(others, state, x, dot) -> (state, y)``, of one step of any batch. It takes every
        product of a weight through ``dot(name, a)``: see ``problem.product``.
      xs: tree of [T, B, ...] arrays: what is known of all steps before.
      weights: dict of the products' weights, [K, M], [K, G, H], or [N, D, G, E] in blocks; any
        others with ``bilinear``.
      others: dict of what else the step is given, which it sees as [B, ...].
      state: tree of [B, ...] arrays, floating or complex, in the type of the arithmetic.
      product: the type of the products' factors.
      bilinear: what ``dot`` is in place of a matrix product: see ``problem.product``.
      initial: the state that ``starts`` puts back, like ``state``.
      mask: bool [T, B], true at a real step; at others the state is held and y is 0.
      starts: bool [T, B], true where a new episode begins.
      reverse: from the last step to the first.
      implementation: "cpu", "xla", "reference", or None for the best that can run; or "newton",
        for a step that is elementwise and has no products.

    Returns:
      ``(state, ys)``: the final state, and ys [T, B, ...].
    """
    starts = resets(starts, mask, reverse)
    problem, operands = _stated(step, xs, weights, others, state, product, bilinear, 1)
    operands = operands._replace(initial=initial, mask=mask, starts=starts)
    problem = problem._replace(reverse=reverse, implementation=implementation)
    operands = varying(operands)
    is_newton = implementation == dispatch.NEWTON
    dispatch.check(IMPLEMENTATIONS, None if is_newton else implementation)
    described = _describe(problem, operands)
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    why = closed_over(functools.partial(reference.step, problem), operands, state, x)
    if is_newton:
        why = why or newton.unsupported(problem, operands)
    if why is None and is_newton:
        *final, ys, solved = _newton(problem, operands)
        how = newton.blocks(problem).describe(jax.tree.leaves(state)[0].shape[-1])
        dispatch.record_newton(described, IMPLEMENTATIONS, how, solved)
        return jax.tree.structure(state).unflatten(final), ys
    if why is None:
        run = _operation.chosen(described, problem, operands)
    else:
        dispatch.only_reference(described, why, implementation)
        run = reference.run
    *final, ys = run(problem, operands)
    return jax.tree.structure(state).unflatten(final), ys


def _stated(step, xs, weights, others, state, product, bilinear, leading):
    """What one step and all of them have in common; xs have ``leading`` axes before the batch."""
    states = jax.tree.leaves(state)
    features = states[0].ndim - (jax.tree.leaves(xs)[0].ndim - 1 - leading)
    operands = Operands(xs, weights, others, state, None, None, None)
    dtype = jnp.dtype(product)
    return Problem(step, dtype, bilinear, False, None, len(states), features), operands


def _describe(problem, operands):
    steps, *batch, _ = jax.tree.leaves(operands.xs)[0].shape
    name = problem.step.__qualname__.split(".")[0]
    return f"{name} T={steps} B={tuple(batch)} {problem.product}"


_newton = once_each(newton.run)
_operation = Operation(
    "loop",
    IMPLEMENTATIONS,
    reference=reference.run,
    operand_axes={
        **dict.fromkeys(("weights", "others"), WEIGHT),
        **{"xs": 1, "state": 0, "initial": 0, "mask": 1, "starts": 1},
    },
    output_axes=lambda problem: (*(0,) * problem.states, 1),
    residual_axis=1,
    reads=lambda problem, operands: (False,) * (problem.states + 1),
)
