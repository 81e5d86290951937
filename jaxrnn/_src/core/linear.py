"""The product of features with a weight, as every cell takes it for all steps at once."""

import math

import jax.numpy as jnp

from jaxrnn._src.core.dtypes import promoted


def affine(x, w, b=None):
    """``x w + b``: [..., I] with a weight [I, ...out] -> [..., *out].

    Factors are in the common type of x and w, the sum in float32 at least.

    Args:
      x: [..., I].
      w: [I, ...out].
      b: [...out], or None.
    """
    dtype = promoted(x.dtype, w.dtype)
    total = promoted(dtype, jnp.dtype("float32"))
    y = jnp.tensordot(x.astype(dtype), w.astype(dtype), 1, preferred_element_type=total)
    return y if b is None else y + jnp.broadcast_to(b.astype(total), y.shape)


def joined_gates(params, x):
    """The input's part of all gates, [..., G * H], of parameters ``w`` and ``b``."""
    y = affine(x, params["w"], params["b"])
    return y.reshape(*y.shape[:-2], math.prod(y.shape[-2:]))  # -1 fails for no rows


def gates(params, x):
    """The input's part of each gate, G arrays [..., H], of parameters ``w`` and ``b``."""
    y = affine(x, params["w"], params["b"])
    return tuple(y[..., k, :] for k in range(y.shape[-2]))
