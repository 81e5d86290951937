"""Cells that see their inputs through a causal convolution over time."""

import functools
import operator

import jax.numpy as jnp

from jaxrnn._src.builders.lifted import zero_state
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.cell import cell as from_step
from jaxrnn._src.core.dispatch import REFERENCE
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.input_history import lagged
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed


def convolved(spec, kernel, dilation, run, states=()):
    """A cell whose step is the run of one step, on a causal convolution of its inputs.

        z_t = b + sum_j w[j] x_{t - j * dilation}      for j from 0 to kernel - 1

    Args:
      spec: the parameters ``w`` [kernel, I, ...out], or [kernel, I] if each feature is convolved
        by itself, and ``b`` [...out]: see ``param_spec.made``.
      kernel, dilation: of the convolution.
      run: ``(z, state, options) -> (state, ys)``, z [T, ...batch, ...out] in float32 at least.
      states: a dict from the name of each state of ``run`` to its width: [..., width], zero at
        first; or nothing.

    Returns:
      A ``Cell`` with the state ``(window, *state)``: before those of ``run`` the last inputs
      [..., (kernel - 1) * dilation, I], the latest last. A kernel of 1 has none to remember, and
      then there is no window: what stores arrays may refuse one of size zero. Outputs are in the
      type of the inputs.
    """
    room = (kernel - 1) * dilation
    states = dict(states)
    rest = zero_state(states.values())

    def initial_state(params, batch_shape):
        checks.check_names(params, spec)
        shape = (*batch_shape, room, params["w"].shape[1])
        window = (jnp.zeros(shape, arithmetic(params)),) if room else ()
        return *window, *rest(params, batch_shape)

    def whole(params, state, xs, options):
        param_spec.check(spec, params, xs)
        state = initial_state(params, xs.shape[1:-1]) if state is None else state
        window, inputs = (), [xs]
        if room:
            given, *state = state
            flags = options.mask, options.starts, options.reverse
            given, inputs = lagged(given, xs, range(0, room + 1, dilation), *flags)
            window = (given,)
        z = _sum(inputs, params, xs.dtype)
        state, ys = run(z, tuple(state), options)
        return (*window, *state), select(options.mask, ys, 0).astype(xs.dtype)

    def step(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        state, ys = whole(params, state, x[None], Options(implementation=REFERENCE))
        return state, ys[0]

    def unroll(params, state, xs, options):
        run = scanned.unroll if options.implementation == REFERENCE else whole
        return run(params, state, xs, options)

    def made(params, xs):
        param_spec.check(spec, params, xs)
        inputs = [xs.astype(arithmetic(params))] * kernel
        return inputs, _sum(inputs, params, xs.dtype)

    init = lambda key, in_size: param_spec.made(spec, key, in_size)
    scanned = from_step(init, initial_state, step)
    names = ("window", *states) if room else tuple(states)
    return Cell(init, initial_state, step, streamed(unroll, initial_state, made), states=names)


def _sum(inputs, params, dtype):
    w, b = params["w"], params["b"]
    dtype = promoted(dtype, w.dtype)
    total = promoted(dtype, b.dtype, jnp.dtype("float32"))

    def times(x, w):
        x = x.astype(dtype)
        if w.ndim > 1:
            return affine(x, w).astype(total)
        return x.astype(total) * jnp.broadcast_to(w.astype(total), x.shape)

    z = functools.reduce(operator.add, map(times, inputs, w))
    return z + jnp.broadcast_to(b.astype(total), z.shape)
