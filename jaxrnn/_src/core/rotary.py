"""Rotary positions (Su et al. 2021, arXiv:2104.09864), as exact at any position as at the first.

As a float, an angle has fewer and fewer digits left of it as positions grow. Here it is counted
in turns, of which only the fraction matters: an unsigned integer that wraps around.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

BASE = 10000.0


def rotated(a, position, *, width=None, base=BASE):
    """Features d and d + R // 2 of a, as a pair turned by position / base^(d / (R // 2)).

    Args:
      a: [..., N, D], float32 or float64.
      position: int32, not negative, of a shape that broadcasts to [...].
      width: R, how many of the features are turned, from the first; None for D.
      base: how many times slower the last pair turns than the first.
    """
    half = (a.shape[-1] if width is None else width) // 2
    spread = lambda part: jnp.broadcast_to(part[..., None, :], (*a.shape[:-1], half))
    cos, sin = map(spread, _cos_sin(position, half, a.dtype, base))
    first, second, rest = a[..., :half], a[..., half : 2 * half], a[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, rest], -1)


def _cos_sin(position, half, dtype, base):
    """Cosine and sine [..., half] of the angles at positions [...]."""
    turns = base ** (-np.arange(half) / max(half, 1)) / (2 * math.pi)  # in a step
    turns = (turns * 2.0**64).astype(np.uint64)
    position = jnp.broadcast_to(position[..., None], (*position.shape, half))
    spread = lambda part: jnp.broadcast_to(part, position.shape)
    if dtype == jnp.float64:
        phase = position.astype(jnp.uint64) * spread(turns)
        angle = lax.bitcast_convert_type(phase, jnp.int64).astype(dtype) * (math.pi / 2.0**63)
        return jnp.cos(angle), jnp.sin(angle)
    high, low = (spread(part.astype(np.uint32)) for part in (turns >> 32, turns & 0xFFFFFFFF))
    position = position.astype(jnp.uint32)
    phase = lax.bitcast_convert_type(position * high + _upper(position, low), jnp.int32)
    return _cos_sin_of_phase(phase, dtype)


def _cos_sin_of_phase(phase, dtype):
    """The same of ``phase`` / 2^32 turns, int32, in float32.

    XLA fuses this into loops that need it for every head. Its own cosine takes there, for angles
    of any size, 15 times as long as all else: here an angle is known as a number of quarter turns,
    and a rest of an eighth at most, for which short polynomials are as exact.
    """
    quarter = (phase + (1 << 29)) >> 30
    rest = (phase - (quarter << 30)).astype(dtype) * (math.pi / 2.0**31)
    square = rest * rest
    sin = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
    sin = rest + rest * square * sin
    cos = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cos = 1 - 0.5 * square + square * square * cos
    odd, back = quarter & 1 == 1, quarter & 2 == 2
    cos, sin = jnp.where(odd, -sin, cos), jnp.where(odd, cos, sin)
    return jnp.where(back, -cos, cos), jnp.where(back, -sin, sin)


def _upper(a, b):
    """The upper 32 bits of the product of two uint32, which has 64."""
    (a_high, a_low), (b_high, b_low) = ((n >> 16, n & 0xFFFF) for n in (a, b))
    crossed, other = a_high * b_low, a_low * b_high
    middle = (a_low * b_low >> 16) + (crossed & 0xFFFF) + (other & 0xFFFF)
    return a_high * b_high + (crossed >> 16) + (other >> 16) + (middle >> 16)
