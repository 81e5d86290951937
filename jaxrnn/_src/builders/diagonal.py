"""Cells whose recurrence is linear and elementwise: h_t = a_t h_{t-1} + b_t."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxrnn._src.builders.lifted import state_dtype, zero_state
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.time_axis import positions, resets
from jaxrnn._src.core.typing import Array, Params, Spec
from jaxrnn._src.ops.linear_scan import linear_scan


def diagonal(
    spec: Spec,
    width: int,
    inputs: Callable[..., tuple[Array, Array]],
    outputs: Callable[[Params, Array, Array], Array],
    *,
    complex_: bool = False,
    counted: bool = False,
) -> Cell:
    """Makes a cell of a linear recurrence, h_t = a_t h_{t-1} + b_t, run by ``jaxrnn.linear_scan``.

    Args:
      spec: a dict from the name of each parameter to ``(shape, initializer)``, as for
        ``jaxrnn.lifted``.
      width: of the state ``(h,)``, [..., width], zero at first.
      inputs: ``(params, x) -> (a, b)``, of [..., I] with any leading axes: factors [..., width],
        or [width] if they are the same at every step, and what is added, [..., width].
      outputs: ``(params, h, x) -> y``, [..., O], of any leading axes.
      complex_: the state is complex, and so are a and b.
      counted: the state is ``(h, count)``, with how many steps the episode has had, int32 [...],
        and ``inputs`` is ``(params, x, count)``, with how many came before; a count that has come
        to 2^31 - 1 stays there.

    Returns:
      A ``Cell``. Outputs are in the type of the inputs.

    Raises:
      TypeError, ValueError: an argument is not as above; at the call, what ``inputs`` gives.

    >>> @jaxrnn.constructor
    ... def averages(hidden):  # h = a h + (1 - a) W x, with a factor for each unit
    ...     init = jax.nn.initializers
    ...     spec = {
    ...         "w": ((jaxrnn.INPUTS, hidden), init.glorot_uniform()),
    ...         "log_rate": ((hidden,), init.normal()),
    ...     }
    ...
    ...     def inputs(params, x):
    ...         a = jax.nn.sigmoid(params["log_rate"])
    ...         y = x @ params["w"]
    ...         return a, y * jnp.broadcast_to(1 - a, y.shape)
    ...
    ...     return jaxrnn.diagonal(spec, hidden, inputs, lambda params, h, x: h)
    >>> cell = averages(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 4)
    """
    param_spec.check_spec(spec)
    width = checks.size("width", width)
    zero = zero_state((width,), complex_)

    def initial_state(params, batch_shape):
        count = (jnp.zeros(batch_shape, jnp.int32),) if counted else ()
        return zero(params, batch_shape) + count

    def given(params, x, *count):
        param_spec.check(spec, params, x)
        dtype = state_dtype(params, complex_)
        parts = inputs(params, x, *count)
        if not isinstance(parts, tuple | list) or len(parts) != 2:
            raise TypeError(f"inputs: gave {checks.described(parts)}, want (a, b)")
        return tuple(part.astype(dtype) for part in parts)

    def step(params, state, x, key=None):
        del key
        h, *count = checks.completed_state(initial_state, params, state, x.shape[:-1])
        a, b = given(params, x, *count)
        h = jnp.broadcast_to(a, h.shape) * h + b
        return (h, *(_no_further(n + 1) for n in count)), outputs(params, h, x).astype(x.dtype)

    def unroll(params, state, xs, options):
        mask, reverse = options.mask, options.reverse
        h, *count = initial_state(params, xs.shape[1:-1]) if state is None else state
        before = ()
        if counted:
            real = jnp.ones(xs.shape[:-1], bool) if mask is None else mask
            both = positions(count[0], real, resets(options.starts, mask, reverse), reverse)
            *before, count[0] = map(_no_further, both)
        a, b = given(params, xs, *before)
        h, hs = linear_scan(
            a,
            b,
            h,
            mask=mask,
            starts=options.starts,
            reverse=reverse,
            implementation=options.implementation,
        )
        ys = select(mask, outputs(params, hs, xs), 0)
        return (h, *count), ys.astype(xs.dtype)

    def made(params, xs):
        return given(params, xs, *[jnp.zeros(xs.shape[:-1], jnp.int32)] * counted)

    init = lambda key, n: param_spec.made(spec, key, n)
    whole = streamed(unroll, initial_state, made)
    return Cell(init, initial_state, step, whole, states=("h", "count")[: 1 + counted])


def _no_further(count):
    """The greatest int32 in place of a count that has gone beyond it, and so below zero."""
    return jnp.where(count < 0, jnp.iinfo(count.dtype).max, count)
