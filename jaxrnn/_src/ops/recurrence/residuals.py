"""What a forward keeps for its backward, and the products a backward ends with.

All implementations agree on these, so that each can go back over what another one kept.
"""

import jax
import jax.numpy as jnp

from jaxrnn._src.ops.recurrence import problem as p


def first_kept(operands):
    """The first state that is kept for the backward: 1 if ys holds the first one as it recurs."""
    plain = operands.mask is None and operands.starts is None
    return int(plain and operands.xs.dtype == operands.state[0].dtype)


def saved(packing, operands, outputs, residuals):
    """What entered the gates, and a list of the states before each step."""
    packed, states = packing.kept(residuals)
    if first_kept(operands):
        first = operands.state[0]
        ys = outputs[packing.problem.states]
        states.insert(0, _before(ys, first, packing.problem.reverse))
    if packed is None:
        packed = packing.pack(p.project(operands.xs, operands), p.recurrent(states[0], operands))
    return packed, states


def of_products(packing, d_packed, h, operands, merge=False):
    """The gradients of xs, w, b and r, from those of the gates and h before each step.

    ``merge`` makes one axis of steps and rows, for where no array is divided among devices. On a
    TPU XLA takes several times as long to compile a product over two.
    """
    if merge:
        flat = lambda a: a.reshape(-1, a.shape[-1])
        merged = operands._replace(xs=flat(operands.xs))
        found = of_products(packing, jax.tree.map(flat, d_packed), flat(h), merged)
        return found._replace(xs=found.xs.reshape(operands.xs.shape))
    to_input = packing.parts(d_packed.sums, d_packed.inputs)
    to_state = packing.parts(d_packed.sums, d_packed.recurrents)
    return operands._replace(
        xs=sum(p.project_transposed(d, gates, operands) for gates, d in to_input),
        w=packing.reordered([p.input_gradient(d, operands) for _, d in to_input]),
        b=packing.reordered([p.bias_gradient(d, operands) for _, d in to_input]),
        r=packing.reordered([p.recurrent_gradient(h, d, operands) for _, d in to_state]),
    )


def _before(ys, first, reverse):
    """The state before each step, from the state after it: [T, B, H]."""
    if reverse:
        return jnp.concatenate([ys[1:], first[None]])
    return jnp.concatenate([first[None], ys[:-1]])
