"""What an implementation of the recurrence is given, and the products all of them share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core.dtypes import promoted

Array = jax.Array


class Problem(NamedTuple):
    """The static half: hashable, known at trace time."""

    update: Callable  # update(state, x, r, **unit) -> state, elementwise
    gates: int  # G
    states: int  # arrays in the state
    reverse: bool
    residuals: str  # what a forward keeps for its backward: "gates" or "states"
    implementation: str | None
    batch_first: bool = False  # how xs and ys lie in memory, whatever their axes: a hint
    every: bool = False  # whether the states after each step are outputs, after ys


class Operands(NamedTuple):
    """The arrays. T time, B any batch axes, I input, G gates, H hidden, N heads of D = H / N.

    ``state`` and ``initial`` are of the arithmetic's type, the others of any floating type.
    """

    xs: Array  # [T, B, I]
    w: Array  # [I, G, H]
    b: Array  # [G, H]
    r: Array  # [H, G, H], or [N, D, G, D]
    unit: dict[str, Array]  # each [H]
    state: tuple[Array, ...]  # each [B, H]; the first is the output and what recurs
    initial: tuple[Array, ...] | None  # each [B, H]; None without starts
    mask: Array | None  # bool [T, B]
    starts: Array | None  # bool [T, B], in the order of processing (`sequence.resets`)

    @property
    def product_dtype(self) -> Any:
        """The type products are taken in; they are summed in the state's."""
        return promoted(self.xs.dtype, self.w.dtype)


def dot(a: Array, m: Array, operands: Operands) -> Array:
    """[..., K] times [K, M]."""
    return _contract(a, m, ((a.ndim - 1,), (0,)), ((), ()), operands)


def project(xs: Array, operands: Operands) -> Array:
    """The input's part of the gates: [..., I] -> [..., G * H], gate after gate."""
    gates = dot(xs, flat(operands.w), operands)
    return gates + spread(operands.b.reshape(-1), gates)


def recurrent(h: Array, operands: Operands) -> Array:
    """The state's part of the gates: [..., H] -> [..., G * H]."""
    if operands.r.ndim == 3:
        return dot(h, flat(operands.r), operands)
    heads, width, gates, _ = operands.r.shape
    h = h.reshape(*h.shape[:-1], heads, width)
    out = _contract(h, operands.r, ((h.ndim - 1,), (1,)), ((h.ndim - 2,), (0,)), operands)
    return jnp.moveaxis(out, 0, -2).reshape(*h.shape[:-2], gates * heads * width)


def apart(a: Array, weight: Array, operands: Operands) -> tuple[Array, ...]:
    """[..., K] times [K, G, H], or [N, D, G, D], gate by gate: G arrays [..., H].

    Gates and units stay two axes, so that units that are divided over devices stay there.
    """
    if weight.ndim == 3:
        out = _contract(a, weight, ((a.ndim - 1,), (0,)), ((), ()), operands)
    else:
        heads, width, gates, _ = weight.shape
        a = a.reshape(*a.shape[:-1], heads, width)
        out = _contract(a, weight, ((a.ndim - 1,), (1,)), ((a.ndim - 2,), (0,)), operands)
        out = jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-2], gates, heads * width)
    return tuple(out[..., k, :] for k in range(out.shape[-2]))


def recurrent_transposed(operands: Operands) -> Callable[[Array], Array]:
    """The transpose of ``recurrent``, [..., G * H] -> [..., H], to be called in a loop.

    The weights are transposed here, before the loop: XLA would do it again at every step.
    """
    if operands.r.ndim == 3:
        transposed = flat(operands.r).T
        return lambda d_gates: dot(d_gates, transposed, operands)
    heads, width, gates, _ = operands.r.shape
    transposed = jnp.moveaxis(operands.r, 1, 3)  # [N, G, D, D]

    def product(d_gates):
        g = d_gates.reshape(*d_gates.shape[:-1], gates, heads, width)
        last = g.ndim - 1
        dims = ((last - 2, last), (1, 2)), ((last - 1,), (0,))
        out = _contract(g, transposed, *dims, operands)
        return jnp.moveaxis(out, 0, -2).reshape(*d_gates.shape[:-1], heads * width)

    return product


def project_transposed(d_gates: Array, gates: tuple[int, ...], operands: Operands) -> Array:
    """The input's gradient through some of the gates: [..., len(gates) * H] -> [..., I]."""
    w = operands.w if len(gates) == operands.w.shape[1] else operands.w[:, jnp.array(gates)]
    return dot(d_gates, flat(w).T, operands)


def input_gradient(d_gates: Array, operands: Operands) -> Array:
    """Some gates' part of w's gradient: [T, ..., K * H] -> [I, K, H]."""
    leading = tuple(range(d_gates.ndim - 1))
    out = _contract(operands.xs, d_gates, (leading, leading), ((), ()), operands)
    hidden = operands.w.shape[2]
    return out.reshape(out.shape[0], out.shape[1] // hidden, hidden)


def bias_gradient(d_gates: Array, operands: Operands) -> Array:
    """Some gates' part of b's gradient: [T, ..., K * H] -> [K, H]."""
    total = operands.state[0].dtype
    return over_rows(d_gates.astype(total)).reshape(-1, operands.b.shape[1])


def recurrent_gradient(h: Array, d_gates: Array, operands: Operands) -> Array:
    """Some gates' part of r's gradient: h [T, ..., H], [T, ..., K * H] -> [..., K, H or D].

    Like ``input_gradient`` a product over several axes, not a reshape and a matrix product:
    merging time with a batch that is sharded would gather the batch.
    """
    leading = tuple(range(h.ndim - 1))
    if operands.r.ndim == 3:
        out = _contract(h, d_gates, (leading, leading), ((), ()), operands)
        return out.reshape(out.shape[0], -1, out.shape[0])
    heads, width, *_ = operands.r.shape
    h = h.reshape(*h.shape[:-1], heads, width)
    gates = d_gates.shape[-1] // (heads * width)  # not -1: there may be no rows
    d = d_gates.reshape(*d_gates.shape[:-1], gates, heads, width)
    return _contract(h, d, (leading, leading), ((h.ndim - 2,), (d.ndim - 2,)), operands)


def over_rows(array: Array) -> Array:
    """[..., K] -> [K], summed."""
    return array.sum(tuple(range(array.ndim - 1)))


def spread(row: Array, like: Array) -> Array:
    """[K] as [..., K], in the type of ``like``."""
    return jnp.broadcast_to(row.astype(like.dtype), like.shape)


def split(gates: Array, count: int) -> tuple[Array, ...]:
    """[..., count * H] as ``count`` arrays [..., H]."""
    width = gates.shape[-1] // count
    return tuple(gates[..., k * width : (k + 1) * width] for k in range(count))


def _contract(a, b, contracting, batch, operands):
    dtype, total = operands.product_dtype, operands.state[0].dtype
    dims = (contracting, batch)
    return lax.dot_general(a.astype(dtype), b.astype(dtype), dims, preferred_element_type=total)


def flat(weight: Array) -> Array:
    """[K, G, H] as [K, G * H]."""
    return weight.reshape(weight.shape[0], -1)
