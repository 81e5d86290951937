"""Causal convolution over time."""

import dataclasses

import jax

from jaxrnn._src.builders.convolved import convolved
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.typing import Activation


@constructor
def conv1d(
    hidden: int,
    *,
    kernel: int,
    dilation: int = 1,
    depthwise: bool = False,
    activation: Activation | None = None,
) -> Cell:
    """Causal convolution over time (WaveNet: van den Oord et al. 2016, arXiv:1609.03499).

        y_t = activation(b + sum_j w[j] x_{t - dilation j})      for j from 0 to kernel - 1

    Only real steps of the same episode count as steps, and before an episode there are zeros.
    It remembers the last inputs, so sequences may come in pieces, or step by step.

    Args:
      hidden: H, the size of the output.
      kernel: K, how many inputs an output sees.
      dilation: how many steps these are apart.
      depthwise: each feature is convolved by itself, and H is the size of the input.
      activation: the name of a function in ``jax.nn``, a function, or None.

    Returns:
      A ``Cell``. State ``(window,)``: the last inputs, [..., (K - 1) * dilation, I], the latest
      last; with ``kernel=1`` there is nothing to remember, and it is ``()``. Parameters ``w`` [K,
      I, H], or [K, I] if ``depthwise``, and ``b`` [H]. ``w[0]`` is of the newest input: elsewhere
      it is the last.

    Raises:
      ValueError: ``depthwise`` with a ``hidden`` that is not the size of the input.

    >>> cell = jaxrnn.conv1d(hidden=1, kernel=2)
    >>> params = {"w": jnp.array([[[1.0]], [[10.0]]]), "b": jnp.zeros(1)}
    >>> (window,), ys = jaxrnn.unroll(cell, params, jnp.array([[1.0], [2.0], [3.0]]))
    >>> ys[:, 0], window
    (Array([ 1., 12., 23.], dtype=float32), Array([[3.]], dtype=float32))
    """
    hidden = checks.size("hidden", hidden)
    kernel, dilation = checks.size("kernel", kernel), checks.size("dilation", dilation)
    function = (lambda z: z) if activation is None else checks.activation(activation)
    out = (param_spec.INPUTS,) if depthwise else (hidden,)
    shape = (kernel, param_spec.INPUTS) if depthwise else (kernel, param_spec.INPUTS, hidden)
    whole = param_spec.whole(jax.nn.initializers.lecun_normal())
    spec = {"w": (shape, whole), "b": (out, param_spec.zeros)}
    cell = convolved(spec, kernel, dilation, lambda z, state, _: (state, function(z)))

    def init(key, in_size):
        if depthwise and in_size != hidden:
            raise ValueError(
                f"hidden: got {hidden}, want in_size = {in_size}, as depthwise=True: each feature"
                f" is convolved by itself"
            )
        return cell.init(key, in_size)

    return dataclasses.replace(cell, init=init)
