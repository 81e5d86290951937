"""``jaxrnn.attention`` as ``accelerator`` checks it: without its state, as cuDNN can run it."""

import functools

import jax.numpy as jnp

import jaxrnn
from benchmarks.shared.shapes import Shape


@jaxrnn.constructor
def attention(hidden, *, window=None):
    """A cell of two heads, whose state goes through it as it is."""

    def layer(steps):
        return jaxrnn.attention(hidden, heads=2, window=window, context=steps)

    def unroll(params, state, xs, options):
        _, ys = jaxrnn.unroll(
            layer(len(xs)),
            params,
            xs,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        return state, ys

    def initial_state(params, batch_shape):
        return jnp.zeros((*batch_shape, 1))

    return jaxrnn.Cell(lambda *args: layer(1).init(*args), initial_state, None, unroll)


NAME = "attention"
CELLS = {NAME: attention, f"{NAME} window": functools.partial(attention, window=5)}
# Several blocks of queries and keys, the last not full; an odd number of steps.
BLOCKS = Shape("blocks", 3, 601, 40, 128)
