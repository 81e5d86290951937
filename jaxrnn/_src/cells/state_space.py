"""What LRU and S5 have in common: a diagonal, complex, linear state behind real inputs."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import variance_scaling

from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.linear import affine


def state_space(hidden, state, spec, discretized, *, drawn, weight=1):
    """A cell of h = a * h + s * (B x), y = weight * Re(C h) + d * x.

    Args:
      hidden: H, of x and y.
      state: N, complex numbers.
      spec: of its parameters beside ``b`` [H, 2, N] and ``c`` [N, 2, H], each the real and the
        imaginary part, and ``d`` [H].
      discretized: ``params -> (a, s)``, [N] each, of parameters in the arithmetic's type.
      drawn: ``(key, params) -> params``, those that are not drawn by ``spec`` alone.
      weight: of the states' part in the output.
    """
    hidden, state = checks.size("hidden", hidden), checks.size("state", state)
    spec = spec | {
        "b": (
            (param_spec.INPUTS, 2, state),
            variance_scaling(0.5, "fan_in", "normal"),
        ),
        "c": ((state, 2, hidden), variance_scaling(1.0, "fan_in", "normal")),
        "d": ((hidden,), jax.nn.initializers.normal(1.0)),
    }

    def inputs(params, x):
        total = arithmetic(params)
        a, s = discretized({name: p.astype(total) for name, p in params.items()})
        b = affine(x, params["b"]).astype(total)
        b = lax.complex(b[..., 0, :], b[..., 1, :])
        return a, b * jnp.broadcast_to(s.astype(b.dtype), b.shape)

    def outputs(params, h, x):
        c, d = params["c"], params["d"].astype(h.real.dtype)
        y = affine(h.real, c[:, 0]) - affine(h.imag, c[:, 1])
        return weight * y + jnp.broadcast_to(d, x.shape) * x.astype(d.dtype)

    def init(key, in_size):
        checks.check_same_size(in_size, hidden)
        keys = jax.random.split(key)
        params = param_spec.made(spec, keys[0], in_size)
        return params | drawn(keys[1], params)

    return dataclasses.replace(diagonal(spec, state, inputs, outputs, complex_=True), init=init)


# Of one part: a complex number has twice its variance (Orvieto et al. 2023, appendix A).
