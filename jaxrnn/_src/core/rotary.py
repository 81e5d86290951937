"""Rotary positions (Su et al. 2021, arXiv:2104.09864), as exact at any position as at the first.

As a float, an angle has fewer and fewer digits left of it as positions grow. Here it is counted
in turns, of which only the fraction matters: an unsigned integer that wraps around.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

_BASE = 10000.0


def rotated(a, position):
    """Features d and d + D // 2 of a, as a pair turned by position / 10000^(d / (D // 2)).

    Args:
      a: [..., N, D], float32 or float64.
      position: int32, not negative, of a shape that broadcasts to [...].
    """
    half = a.shape[-1] // 2
    angle = _angle(position, half, a.dtype)[..., None, :]
    cos, sin = (jnp.broadcast_to(f(angle), (*a.shape[:-1], half)) for f in (jnp.cos, jnp.sin))
    first, second, rest = a[..., :half], a[..., half : 2 * half], a[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, rest], -1)


def _angle(position, half, dtype):
    """Angles [..., half] between -pi and pi, of positions [...]."""
    turns = _BASE ** (-np.arange(half) / max(half, 1)) / (2 * math.pi)  # in a step
    turns = (turns * 2.0**64).astype(np.uint64)
    position = jnp.broadcast_to(position[..., None], (*position.shape, half))
    spread = lambda part: jnp.broadcast_to(part, position.shape)
    if dtype == jnp.float64:
        phase = position.astype(jnp.uint64) * spread(turns)
        return lax.bitcast_convert_type(phase, jnp.int64).astype(dtype) * (math.pi / 2.0**63)
    high, low = (spread(part.astype(np.uint32)) for part in (turns >> 32, turns & 0xFFFFFFFF))
    position = position.astype(jnp.uint32)
    phase = position * high + _upper(position, low)
    return lax.bitcast_convert_type(phase, jnp.int32).astype(dtype) * (math.pi / 2.0**31)


def _upper(a, b):
    """The upper 32 bits of the product of two uint32, which has 64."""
    (a_high, a_low), (b_high, b_low) = ((n >> 16, n & 0xFFFF) for n in (a, b))
    crossed, other = a_high * b_low, a_low * b_high
    middle = (a_low * b_low >> 16) + (crossed & 0xFFFF) + (other & 0xFFFF)
    return a_high * b_high + (crossed >> 16) + (other >> 16) + (middle >> 16)
