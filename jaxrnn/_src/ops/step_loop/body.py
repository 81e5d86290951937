"""One step of the loop, forward and backward, for implementations that keep weights out of it.

Forward keeps the states before each step and what its products gave. Backward runs the step's own
vjp, in which a product gives what it gave before and its weight stands still: what would have
moved the result is an argument of its own. That argument's gradient and the product's first factor
are written down, and the weight's gradient is one product over all steps, where JAX's derivative
of a scan adds to an array of the weight's size at every step.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrnn._src.core.sequence import select


def forward(problem, dot, others, initial, save, want_y):
    """``(state, (x, real, start)) -> (new state, (y, kept))``, a function for ``lax.scan``.

    Args:
      problem: ``Problem``.
      dot: ``(name, a) -> `` the product with that weight.
      others: for each row: ``problem.of_rows``.
      initial: the state that ``start`` puts back, or None.
      save: whether ``(state, given)`` is kept for a backward: the state before the step, and what
        products gave.
      want_y: whether y is used.
    """

    def step(state, inputs):
        x, real, start = inputs
        if start is not None:
            state = select(start, initial, state)
        given = []

        def remembered(name, a):
            given.append(dot(name, a))
            return given[-1]

        new, y = problem.step(others, state, x, remembered)
        kept = (state, given) if save else ()
        y = select(real, y, 0) if want_y else None
        return select(real, new, state), (y, kept)

    return step


def backward(problem, dot, others, names):
    """The same of the gradient, from the last step processed to the first.

    ``((d_state, d_initial, d_others), (state, given, x, d_y, real, start)) -> (the former,
    (d_x, factors, d_moves))``: of each product its first factor and the gradient of its result.
    ``d_others`` may be None.

    Args:
      problem, others: as of ``forward``.
      dot: ``(name, d, a) -> `` what a product gives back to its first factor a.
      names: a list, into which go the names of the products.
    """

    def step(carry, inputs):
        d_state, d_initial, d_others = carry
        state, given, x, d_y, real, start = inputs
        names.clear()

        def run(others, state, x, moves):
            factors = []

            def known(name, a):
                k = len(factors)
                names.append(name)
                factors.append(a.astype(problem.product))
                return _known(functools.partial(dot, name), a, moves[k], given[k])

            return problem.step(others, state, x, known), factors

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
        if d_others is not None:
            d_others = _add(d_others, d_others_now)
        return (d_before, d_initial, d_others), (d_x, factors, d_moves)

    return step


def cotangents_of_state(operands, d_final):
    """The cotangents of the final state, a tree like it: zero where there is none."""
    leaves, tree = jax.tree.flatten(operands.state)
    d_final = [jnp.zeros_like(a) if d is None else d for a, d in zip(leaves, d_final)]
    return tree.unflatten(d_final)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(transposed, a, moved, value):
    """The product of ``a``, plus ``moved``: ``value``. Its derivative takes ``transposed``."""
    del transposed, a, moved
    return value


def _known_forward(transposed, a, moved, value):
    del transposed, moved
    return value, a


def _known_backward(transposed, a, d):
    return transposed(d, a).astype(a.dtype), d, None


_known.defvjp(_known_forward, _known_backward)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
