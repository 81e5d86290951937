"""The loop over a step that takes its matmuls by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from cases import error

from jaxrnn._src.ops.step_loop import loop


def test_a_product_taken_twice_in_a_step(x64):
    """Its weight's gradient is the sum of both."""

    def step(others, state, x, dot):
        (h,) = state
        h = jnp.tanh(x + dot("r", jnp.tanh(x + dot("r", h))))
        return (h,), h

    rng = np.random.default_rng(0)
    xs, r, h, d_y = (rng.normal(size=s) for s in ((5, 2, 3), (3, 3), (2, 3), (5, 2, 3)))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(implementation, *moving):
        def loss(xs, r, h):
            _, ys = loop(
                step, xs, {"r": r}, {}, (h,), product="float64", implementation=implementation
            )
            return (ys * d_y).sum()

        return jax.grad(loss, (0, 1, 2))(*moving)

    given = xs, r, h
    came = gradients("xla", *given)
    assert error(came, gradients("reference", *given)) < 1e-12
    assert (np.asarray(came[1]) != 0).all()
