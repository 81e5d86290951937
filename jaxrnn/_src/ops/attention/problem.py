"""What an implementation of attention is given, and which keys a query sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._src.core.dtypes import promoted

Array = jax.Array


class Problem(NamedTuple):
    """The static half.

    ``plain`` says that the keys are those of the queries' own steps, all real and of one episode:
    then the places are not given, they are 0, 1, 2, ...
    """

    window: int | None  # how many positions back a query sees, itself included; None: all
    plain: bool
    implementation: str | None


class Operands(NamedTuple):
    """The arrays. B any batch axes, T queries, S keys, N heads, D their width."""

    q: Array  # [B, T, N, D]
    k: Array  # [B, S, N, D]
    v: Array  # [B, S, N, D]
    q_place: tuple[Array, Array] | None  # (position, episode), int32 [B, T]
    k_place: tuple[Array, Array] | None  # int32 [B, S]; episode -1: a key that no query sees


def places(problem, operands):
    """The places of queries and keys, also where they are not given: then [T]."""
    if not problem.plain:
        return operands.q_place, operands.k_place
    steps = jnp.arange(operands.q.shape[-3], dtype=jnp.int32)
    place = (steps, jnp.zeros_like(steps))
    return place, place


def scores(problem, q, k, q_place, k_place):
    """What the softmax is taken of: q [B, N, T, D], k [B, N, S, D] -> [B, N, T, S].

    Float32 at least; minus infinity where the query does not see the key.
    """
    total = promoted(q.dtype, jnp.dtype("float32"))
    out = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=total)
    seen = jnp.broadcast_to(_visible(problem, q_place, k_place), out.shape)
    return jnp.where(seen, out * (q.shape[-1] ** -0.5), -jnp.inf)


def _visible(problem, q_place, k_place):
    """bool [B, 1, T, S]."""
    (q_position, q_episode), (k_position, k_episode) = q_place, k_place
    back = q_position[..., None, :, None] - k_position[..., None, None, :]
    seen = (back >= 0) & (q_episode[..., None, :, None] == k_episode[..., None, None, :])
    return seen if problem.window is None else seen & (back < problem.window)
