"""Cells whose recurrence is linear and elementwise: h_t = a_t h_{t-1} + b_t."""

import jax.numpy as jnp

from jaxrnn import arguments, parameters
from jaxrnn.cell import Cell
from jaxrnn.dtypes import arithmetic, promoted
from jaxrnn.lifted import zero_state
from jaxrnn.linear import linear_scan
from jaxrnn.scan import select


def diagonal(spec, width, inputs, outputs, *, complex_=False):
    """A cell of a linear recurrence, run by ``jaxrnn.linear_scan``.

    Args:
      spec: the parameters: see ``parameters.made``.
      width: of the state ``(h,)``, [..., width], zero at first.
      inputs: ``(params, x) -> (a, b)``, of [..., I] with any leading axes: factors [..., width],
        or [width] if they are the same at every step, and what is added, [..., width].
      outputs: ``(params, h, x) -> y``, [..., O], of any leading axes.
      complex_: the state is complex, and so are a and b.

    Returns:
      A ``Cell``. Outputs are in the type of the inputs.
    """
    initial_state = zero_state((width,), complex_)

    def given(params, x):
        parameters.check(spec, params, x)
        dtype = arithmetic(params)
        dtype = promoted(dtype, jnp.dtype("complex64")) if complex_ else dtype
        return tuple(part.astype(dtype) for part in inputs(params, x))

    def step(params, state, x, key=None):
        del key
        (h,) = arguments.completed_state(initial_state, params, state, x.shape[:-1])
        a, b = given(params, x)
        h = jnp.broadcast_to(a, h.shape) * h + b
        return (h,), outputs(params, h, x).astype(x.dtype)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        del key
        a, b = given(params, xs)
        h, hs = linear_scan(
            a, b, None if state is None else state[0], mask=mask, starts=starts, reverse=reverse,
            implementation=implementation,
        )  # fmt: skip
        ys = select(mask, outputs(params, hs, xs), 0)
        return (h,), ys.astype(xs.dtype)

    return Cell(lambda key, n: parameters.made(spec, key, n), initial_state, step, unroll)
