"""The loop with the weights' gradients taken after it.

Forward keeps the states before each step and what its products gave. Backward runs the step's own
vjp, in which a product gives what it gave before and its weight stands still: what would have
moved the result is an argument of its own. That argument's gradient and the product's first factor
are written down, and the weight's gradient is one product over all steps, where JAX's derivative
of a scan adds to an array of the weight's size at every step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.sequence import select
from jaxrnn._src.ops.step_loop import problem as p


def unsupported(problem, operands, target):
    """Why this implementation can't run the problem: None, it runs every one."""
    del problem, operands, target


def forward(problem, operands, wanted, save, target):
    """Returns (*final state, ys), then states before each step and what products gave."""
    del target
    others = p.of_rows(problem, operands)

    def step(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, operands.initial, state)
        given = []

        def dot(name, a):
            given.append(p.product(a, operands.weights[name], *p.kind(problem, operands)))
            return given[-1]

        new, y = problem.step(others, state, x, dot)
        kept = (state, given) if save else ()
        y = select(real, y, 0) if wanted[-1] else None
        return select(real, new, state), (y, kept)

    inputs = operands.xs, operands.mask, operands.starts
    final, (ys, kept) = lax.scan(step, operands.state, inputs, reverse=problem.reverse)
    return [*jax.tree.leaves(final), ys, *jax.tree.leaves(kept)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted, target  # what nobody uses, XLA removes
    others, tree = p.of_rows(problem, operands), jax.tree.structure(operands.state)
    *d_final, d_ys = cotangents
    zero = jax.tree.map(jnp.zeros_like, operands.state)
    d_final = [z if d is None else d for d, z in zip(d_final, tree.flatten_up_to(zero))]
    names, kind = [], p.kind(problem, operands)
    turned = {name: p.turned(w, *kind) for name, w in operands.weights.items()}

    def step(carry, inputs):
        d_state, d_initial, d_others = carry
        state, given, x, d_y, real, start = inputs
        names.clear()

        def run(others, state, x, moves):
            factors = []

            def dot(name, a):
                k = len(factors)
                names.append(name)
                factors.append(a.astype(problem.product))
                return _known(kind, a, turned[name], moves[k], given[k])

            return problem.step(others, state, x, dot), factors

        moves = [jnp.zeros_like(g) for g in given]
        (_, y), pull, factors = jax.vjp(run, others, state, x, moves, has_aux=True)
        d_others_now, d_before, d_x, d_moves = pull(
            (d_state, jnp.zeros_like(y) if d_y is None else d_y)
        )
        d_moves = [d.astype(problem.product) for d in d_moves]
        d_others_now, d_x, d_moves = select(real, (d_others_now, d_x, d_moves), 0)
        d_before = select(real, d_before, d_state)
        if start is not None:
            d_initial = _add(d_initial, select(start, d_before, 0))
            d_before = select(~start, d_before, 0)
        return (d_before, d_initial, _add(d_others, d_others_now)), (d_x, factors, d_moves)

    count = tree.num_leaves
    states, given = tree.unflatten(residuals[:count]), list(residuals[count:])
    inputs = states, given, operands.xs, d_ys, operands.mask, operands.starts
    d_initial = None if operands.initial is None else zero
    carry = tree.unflatten(d_final), d_initial, jax.tree.map(jnp.zeros_like, others)
    carry, (d_xs, factors, d_moves) = lax.scan(step, carry, inputs, reverse=not problem.reverse)
    d_state, d_initial, d_others = carry
    d_weights = {name: jnp.zeros_like(w) for name, w in operands.weights.items()}
    for name, a, d in zip(names, factors, d_moves, strict=True):
        w = operands.weights[name]
        found = p.gradient(a, d, w, *kind)
        d_weights[name] = d_weights[name].astype(found.dtype) + found
    gradients = operands._replace(
        xs=d_xs,
        weights=d_weights,
        state=d_state,
        initial=d_initial,
        others=jax.tree.map(
            lambda d, a: d.sum(tuple(range(d.ndim - a.ndim))), d_others, operands.others
        ),
    )
    return jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(kind, a, w, moved, value):
    """The product of ``a`` with a weight, which is ``turned``, plus ``moved``: ``value``."""
    del kind, a, w, moved
    return value


def _known_forward(kind, a, w, moved, value):
    del kind, moved
    return value, (a, w)


def _known_backward(kind, saved, d):
    a, w = saved
    return p.transposed(d, a, w, *kind).astype(a.dtype), None, d, None


_known.defvjp(_known_forward, _known_backward)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
