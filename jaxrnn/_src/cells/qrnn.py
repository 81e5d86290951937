"""Quasi-recurrent network."""

from typing import Literal

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.convolved import convolved
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.ops.linear_scan import linear_scan

_GATES = {"f": 2, "fo": 3, "ifo": 4}  # of each pooling


@constructor
def qrnn(hidden: int, *, kernel: int = 2, pooling: Literal["f", "fo", "ifo"] = "fo") -> Cell:
    """Quasi-recurrent network (Bradbury et al. 2016, arXiv:1611.01576).

        z = tanh(W_z * x + b_z)      f, o, i = sigmoid(W * x + b)      W * x convolves over time
        c = f * c + (1 - f) * z      h = c                   with pooling "f"
        c = f * c + (1 - f) * z      h = o * c               with "fo"
        c = f * c + i * z            h = o * c               with "ifo"

    The paper has no biases; here they begin at zero.

    Args:
      hidden: H, the size of the state and the output.
      kernel: K, how many inputs the convolution sees.
      pooling: "f", "fo" or "ifo".

    Returns:
      A ``Cell``. State ``(window, c)``: the last inputs [..., K - 1, I], the latest last, and
      [..., H]; with ``kernel=1`` it is ``(c,)``. Parameters ``w`` [K, I, G, H] and ``b`` [G, H],
      as many as the pooling has of the gates z f o i, in this order. ``w[0]`` is of the newest
      input.

    Raises:
      ValueError: an unknown ``pooling``.

    >>> cell = jaxrnn.qrnn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (window, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, window.shape, params["w"].shape
    ((7, 3, 4), (3, 1, 2), (2, 2, 3, 4))
    """
    hidden, kernel = checks.size("hidden", hidden), checks.size("kernel", kernel)
    if pooling not in _GATES:
        raise ValueError(f"pooling: got {pooling!r}, want one of {tuple(_GATES)}")
    gates = _GATES[pooling]
    spec = {
        "w": (
            (kernel, param_spec.INPUTS, gates, hidden),
            param_spec.taps(param_spec.input_init),
        ),
        "b": ((gates, hidden), param_spec.zeros),
    }

    def run(a, state, options):
        z, (f, *rest) = tanh(a[..., 0, :]), (sigmoid(a[..., k, :]) for k in range(1, gates))
        i = rest[1] if pooling == "ifo" else 1 - f
        c, cs = linear_scan(
            f,
            i * z,
            *state,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        return (c,), cs if pooling == "f" else rest[0] * cs

    return convolved(spec, kernel, 1, run, {"c": hidden})
