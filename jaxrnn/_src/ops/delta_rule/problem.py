"""What an implementation of the delta rule is given."""

from typing import NamedTuple

import jax

Array = jax.Array


class Problem(NamedTuple):
    """The static half."""

    before: bool
    reverse: bool
    implementation: str | None


class Operands(NamedTuple):
    """The arrays. T time, B any batch axes, N heads, D the width of a key, E of a value."""

    q: Array  # [T, B, N, D]
    k: Array  # [T, B, N, D]
    v: Array  # [T, B, N, E]
    log_w: Array | None  # [T, B, N, D] or [T, B, N, 1]
    a: Array | None  # [T, B, N, D]; None with a b is -k
    b: Array | None  # [T, B, N, D]
    state: Array  # [B, N, D, E]
    mask: Array | None  # bool [T, B]
    starts: Array | None  # bool [T, B], in the order of processing (`sequence.resets`)
