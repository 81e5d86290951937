"""What an implementation of the matrix memory is given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Problem(NamedTuple):
    """The static half."""

    stabilised: bool
    reverse: bool
    implementation: str | None


class Operands(NamedTuple):
    """The arrays. T time, B any batch axes, N heads, D the width of a key, E of a value."""

    q: Array  # [T, B, N, D]
    k: Array  # [T, B, N, D]
    v: Array  # [T, B, N, E]
    log_f: Array  # [T, B, N]
    log_i: Array  # [T, B, N]
    state: tuple[Array, Array]  # C [B, N, D, E], m [B, N]
    mask: Array | None  # bool [T, B]
    starts: Array | None  # bool [T, B], in the order of processing (`sequence.resets`)


def product(subscripts, a, b, dtype, total):
    """Factors of one type, their sum in another."""
    return jnp.einsum(subscripts, a.astype(dtype), b.astype(dtype), preferred_element_type=total)
