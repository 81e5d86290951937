"""Cells that see places and their neighbours: convolutions take the part of matrix products.

The features of all places are one axis, as features are everywhere: place after place in the
order of ``reshape``, all channels of a place side by side.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.ops.step_loop import split


def spatial(hidden, step, products, *, states, bias, shape, kernel, stride, dilation):
    """A cell of ``jaxrnn.lifted`` whose products are convolutions.

    Args:
      hidden: H, channels of a state at each place.
      step, products: see ``lifted``; x is a tuple of the gates' input parts.
      states: the names of the arrays of the state.
      bias: what the bias of each of the G gates begins at.
      shape, kernel, stride, dilation: see ``jaxrnn.conv_lstm``.

    Returns:
      A ``Cell``; parameters ``w`` [*kernel, C, G, H], ``r`` [*kernel, H, G, H] and ``b`` [G, H].
    """
    hidden, gates = checks.size("hidden", hidden), len(bias)
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= 3:
        want = "a tuple of 1, 2 or 3 sizes, as (height, width)"
        raise ValueError(f"shape: got {shape!r}, want {want}")
    sizes = {"shape": shape, "kernel": kernel, "stride": stride, "dilation": dilation}
    shape, kernel, stride, dilation = (_sizes(*size, len(shape)) for size in sizes.items())
    out_shape = tuple(-(-n // s) for n, s in zip(shape, stride))
    places, once = math.prod(out_shape), (1,) * len(shape)
    w, r = map(param_spec.taps, (param_spec.input_init, param_spec.recurrent_init))
    spec = {
        "w": ((*kernel, param_spec.Inputs(shape), gates, hidden), w),
        "r": ((*kernel, hidden, gates, hidden), r),
        "b": ((gates, hidden), param_spec.numbers(*bias)),
    }

    def inputs(params, x):
        dtype = promoted(x.dtype, params["w"].dtype)
        total = promoted(dtype, jnp.dtype("float32"))
        w, b = params["w"].astype(dtype), params["b"].astype(total)
        last = max(x.ndim - 2, 0)  # time, so a batch that is divided among devices leads
        x = jnp.moveaxis(x.astype(dtype), 0, last)
        y = convolution(x, w, total, shape=shape, stride=stride, dilation=dilation)
        y = jnp.moveaxis(y, last, 0)
        b = jnp.broadcast_to(b[:, None], (gates, places, hidden)).reshape(-1)
        return split(y + jnp.broadcast_to(b, y.shape), gates)

    dot = functools.partial(convolution, shape=out_shape, stride=once, dilation=once)
    states = dict.fromkeys(states, places * hidden)
    return lifted(spec, states, inputs, step, products=products, bilinear=dot)


def convolution(x, w, total, *, shape, stride, dilation):
    """[..., S * C] with a weight [*kernel, C, G, H] -> [..., G * P * H], padded as "SAME".

    Args:
      x: C channels at S places, of any leading axes.
      w: the weight.
      total: the type of the sums.
      shape: of the S places; stride and dilation have as many numbers.
      stride: how many places apart those of the output are, P of them.
      dilation: how many places apart the weight's taps are.
    """
    axes, leading = "DHW"[-len(shape) :], x.shape[:-1]
    *kernel, channels, gates, hidden = w.shape
    y = lax.conv_general_dilated(
        x.reshape(math.prod(leading), *shape, channels),
        w.reshape(*kernel, channels, gates * hidden),
        stride,
        "SAME",
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        preferred_element_type=total,
    )
    places = math.prod(y.shape[1:-1])
    y = jnp.moveaxis(y.reshape(-1, places, gates, hidden), 2, 1)
    return y.reshape(*leading, gates * places * hidden)


def _sizes(name, value, axes):
    """A size for each axis, from one for all or one for each."""
    values = value if isinstance(value, tuple) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{name}: got {value!r}, want one size, or one for each of {axes} axes")
    return tuple(checks.size(name, n) for n in values)
