"""The loop as XLA's, with the weights' gradients taken after it: see ``body``."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.ops.step_loop import body
from jaxrnn._src.ops.step_loop import problem as p


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (*final state, ys), then states before each step and what products gave."""
    del target
    kind = p.kind(problem, operands)

    def dot(name, a):
        return p.product(a, operands.weights[name], *kind)

    others = p.of_rows(problem, operands)
    step = body.forward(problem, dot, others, operands.initial, save, wanted[-1])
    inputs = operands.xs, operands.mask, operands.starts
    final, (ys, kept) = lax.scan(step, operands.state, inputs, reverse=problem.reverse)
    return [*jax.tree.leaves(final), ys, *jax.tree.leaves(kept)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target  # what nobody uses, XLA removes
    others, tree = p.of_rows(problem, operands), jax.tree.structure(operands.state)
    *d_final, d_ys = cotangents
    names, kind = [], p.kind(problem, operands)
    turned = {name: p.turned(w, *kind) for name, w in operands.weights.items()}

    def dot(name, d, a):
        return p.transposed(d, a, turned[name], *kind)

    step = body.backward(problem, dot, others, names)
    count = tree.num_leaves
    states, given = tree.unflatten(residuals[:count]), list(residuals[count:])
    inputs = states, given, operands.xs, d_ys, operands.mask, operands.starts
    d_initial = None if operands.initial is None else jax.tree.map(jnp.zeros_like, operands.state)
    d_final = body.cotangents_of_state(operands, d_final)
    carry = d_final, d_initial, jax.tree.map(jnp.zeros_like, others)
    carry, (d_xs, factors, d_moves) = lax.scan(step, carry, inputs, reverse=not problem.reverse)
    d_state, d_initial, d_others = carry
    gradients = operands._replace(
        xs=d_xs,
        weights=p.gradients(operands.weights, names, factors, d_moves, *kind),
        state=d_state,
        initial=d_initial,
        others=p.of_all_rows(d_others, operands),
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)
