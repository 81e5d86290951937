"""The derivative of a step by the state before it, from the derivatives of elementwise functions.

States are seen as blocks [..., n, M]: a step's derivative is zero between blocks, or taken as
zero. Of S states of H units:

    diagonal    n = H units        M = S        no unit sees another
    dense       n = N heads        M = S H / N  the units of a head see each other
    quasi       n = H units        M = S        they do, and what goes between units is left out
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Blocks(NamedTuple):
    """How states, a tuple of S arrays [..., H], are seen as blocks [..., n, M]."""

    kind: str  # "diagonal", "dense" or "quasi"
    states: int  # S
    heads: int  # N, of "dense"

    def join(self, states: tuple[Array, ...]) -> Array:
        """Tuple of [..., H] -> [..., n, M]."""
        if self.kind != "dense":
            return jnp.stack(states, -1)
        by_head = lambda a: a.reshape(*a.shape[:-1], self.heads, a.shape[-1] // self.heads)
        return jnp.concatenate([by_head(a) for a in states], -1)

    def split(self, z: Array) -> tuple[Array, ...]:
        """[..., n, M] -> tuple of [..., H]."""
        if self.kind != "dense":
            return tuple(z[..., k] for k in range(self.states))
        parts = jnp.split(z, self.states, -1)
        return tuple(a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1]) for a in parts)

    def describe(self, units: int) -> str:
        """The Jacobian in words, for cells of H units."""
        size = self.states * (units // self.heads if self.kind == "dense" else 1)
        blocks = self.heads if self.kind == "dense" else units
        if self.kind == "quasi":
            return f"quasi-Newton, by {blocks} blocks {size} x {size} on the Jacobian's diagonal"
        return f"{self.kind} Jacobian, {blocks} blocks {size} x {size}"


def derivatives(
    function: Callable[..., tuple[Array, ...]], arguments: tuple[Array, ...]
) -> tuple[tuple[Array, ...], list[list[Array]]]:
    """The results of an elementwise function, and the derivatives, ``[result][argument]``.

    All arrays have one shape.
    """
    by_argument = []
    for k in range(len(arguments)):
        tangents = tuple(
            jnp.ones_like(a) if i == k else jnp.zeros_like(a) for i, a in enumerate(arguments)
        )
        out, derivative = jax.jvp(function, arguments, tangents)
        by_argument.append(derivative)
    return out, list(map(list, zip(*by_argument)))


def by_unit(parts: list[list[Array]]) -> Array:
    """``[result][argument]`` of [..., H] -> [..., H, S, S]."""
    return jnp.stack([jnp.stack(row, -1) for row in parts], -2)


def dense(direct: list[list[Array]], through: list[list[Array]], r: Array) -> Array:
    """The derivative of an update with a recurrent product: [..., N, S D, S D].

    Args:
      direct: of each new state by each state, [..., H], the products held fixed.
      through: of each new state by each gate's product, [..., H].
      r: [N, D, G, D], by which the first state of a head is multiplied.
    """
    heads, width, *_ = r.shape
    by_head = lambda a: a.reshape(*a.shape[:-1], heads, width)
    own = jnp.stack([jnp.stack([by_head(a) for a in row], -1) for row in direct], -3)
    rest = jnp.stack([jnp.stack([by_head(a) for a in row], -1) for row in through], -3)
    # own [..., N, S', D', S] on the diagonal of D' and D; rest [..., N, S', D', G] times r.
    count = len(direct)
    eye = jnp.eye(width, dtype=r.dtype)
    out = jnp.einsum("...npes,ed->...npesd", own, eye)
    first = jnp.einsum("...npeg,ndge->...nped", rest, r, precision=jax.lax.Precision.HIGHEST)
    out = out.at[..., 0, :].add(first)
    return out.reshape(*out.shape[:-4], count * width, count * width)


def quasi(direct: list[list[Array]], through: list[list[Array]], r: Array) -> Array:
    """What ``dense`` has on the diagonal of each unit: [..., H, S, S]."""
    own = jnp.diagonal(r, axis1=1, axis2=3)  # [N, G, D]
    own = jnp.moveaxis(own, 1, 0).reshape(r.shape[2], -1)  # [G, H]
    rows = []
    for by_state, by_gate in zip(direct, through, strict=True):
        extra = sum(e * jnp.broadcast_to(u, e.shape) for e, u in zip(by_gate, own, strict=True))
        rows.append([by_state[0] + extra, *by_state[1:]])
    return by_unit(rows)
