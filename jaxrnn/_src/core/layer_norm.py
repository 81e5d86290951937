"""Layer normalisation, and that by the root mean square."""

import jax
import jax.numpy as jnp

from jaxrnn._src.core.dtypes import promoted


def normalised(x, scale, bias=None, *, epsilon, axes=1, centered=True):
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the last ``axes`` axes.

    The arithmetic, and the result, are float32 at least.

    Args:
      x: [..., I], or [..., G, H] where ``axes`` is 2.
      scale, bias: the last axes of x, or all of them; no bias if None.
      epsilon: added to the variance.
      axes: over how many axes mean and variance are.
      centered: whether the mean is subtracted; else the variance is the mean square of x.
    """
    over = tuple(range(-axes, 0))
    z = x.astype(promoted(x.dtype, scale.dtype, jnp.dtype("float32")))
    z = z - z.mean(over, keepdims=True) if centered else z
    z = z * jax.lax.rsqrt((z * z).mean(over, keepdims=True) + epsilon)
    z = z * jnp.broadcast_to(scale.astype(z.dtype), z.shape)
    return z if bias is None else z + jnp.broadcast_to(bias.astype(z.dtype), z.shape)
