"""What an implementation of the loop is given, and the products all of them take."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Problem(NamedTuple):
    """The static half: hashable, known at trace time."""

    step: Callable  # step(others, state, x, dot) -> (state, y)
    product: Any  # the type of the products' factors
    bilinear: Callable | None  # what a product is, if not a matrix product: see ``product``
    reverse: bool
    implementation: str | None
    states: int  # arrays in the state
    features: int  # axes of the first of them that are not of the batch


class Operands(NamedTuple):
    """The arrays. T time, B any batch axes."""

    xs: Any  # tree of [T, B, ...]
    weights: dict[str, jax.Array]  # of products: see ``product``
    others: dict[str, jax.Array]  # what else the step is given, of neither time nor rows
    state: Any  # tree of [B, ...], floating or complex
    initial: Any  # the same; None without starts
    mask: jax.Array | None  # bool [T, B]
    starts: jax.Array | None  # bool [T, B], in the order of processing (`sequence.resets`)


def kind(problem, operands):
    """The types of the products' factors and of their sums, and what a product is."""
    total = jnp.finfo(jax.tree.leaves(operands.state)[0].dtype).dtype
    return problem.product, total, problem.bilinear


def of_rows(problem, operands):
    """``others`` for each row: a step has them as [B, ...], and may forget that there are rows."""
    state = jax.tree.leaves(operands.state)[0]
    batch = state.shape[: state.ndim - problem.features]
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *a.shape)), operands.others)


def of_all_rows(d_others, operands):
    """What ``of_rows`` gives back to ``others``."""
    total = lambda d, a: d.sum(tuple(range(d.ndim - a.ndim)))
    return jax.tree.map(total, d_others, operands.others)


def product(a, w, dtype, total, bilinear=None):
    """[..., K] with a weight [K, M] or [K, G, H] -> [..., M] or [..., G * H].

    A weight [N, D, G, E] is block-diagonal: unit d of head n sees only its own block, and of
    [..., N * D] comes [..., G * N * E].

    Or it is ``bilinear(a, w, total)`` -> [..., M], any bilinear function of [..., K], for any
    leading axes, and a weight of any shape.
    """
    a, w = a.astype(dtype), w.astype(dtype)
    if bilinear is not None:
        return bilinear(a, w, total)
    if w.ndim < 4:
        return jnp.matmul(a, w.reshape(w.shape[0], -1), preferred_element_type=total)
    a = a.reshape(*a.shape[:-1], *w.shape[:2])
    out = jnp.einsum("...nd,ndge->...gne", a, w, preferred_element_type=total)
    return out.reshape(*out.shape[:-3], math.prod(out.shape[-3:]))  # -1 fails for no rows


def turned(w, dtype, total, bilinear=None):
    """A weight as ``transposed`` wants it: in a loop, XLA would turn it again at every step."""
    del total
    w = w.astype(dtype)
    if bilinear is not None:
        return w
    return w.reshape(w.shape[0], -1).T if w.ndim < 4 else jnp.moveaxis(w, 1, 3)


def transposed(d, a, w, dtype, total, bilinear=None):
    """What ``product`` gives back to its first factor, [..., K]; ``w`` is ``turned``."""
    if bilinear is not None:
        return jax.linear_transpose(lambda a: bilinear(a, w, total), a.astype(dtype))(d)[0]
    d = d.astype(dtype)
    if w.ndim < 4:
        return jnp.matmul(d, w, preferred_element_type=total)
    heads, gates, width, _ = w.shape
    d = d.reshape(*d.shape[:-1], gates, heads, width)
    out = jnp.einsum("...gne,nged->...nd", d, w, preferred_element_type=total)
    return out.reshape(*out.shape[:-2], math.prod(out.shape[-2:]))


def gradient(a, d, w, dtype, total, bilinear=None):
    """What ``product`` gives back to its weight, of all steps and rows at once.

    A product over several axes, not over one made of them: merging time with a batch that is
    divided among devices would gather the batch. Where ``bilinear`` merges them, time comes last.
    """
    if bilinear is not None:
        a, d = (jnp.moveaxis(f, 0, -2) for f in (a.astype(dtype), d.astype(total)))
        return jax.linear_transpose(lambda w: bilinear(a, w, total), w.astype(dtype))(d)[0]
    a, d = a.astype(dtype), d.astype(dtype)
    leading = tuple(range(a.ndim - 1))
    contract = functools.partial(
        jnp.tensordot, axes=(leading, leading), preferred_element_type=total
    )
    if w.ndim < 4:
        return contract(a, d).reshape(w.shape)
    a = a.reshape(*a.shape[:-1], *w.shape[:2])
    heads, _, gates, width = w.shape
    d = d.reshape(*d.shape[:-1], gates, heads, width)
    return jax.vmap(contract, (-2, -2))(a, d)


def gradients(weights, names, factors, moves, *kind):
    """Those of all weights: what each product of a step, by name, gives back to its weight."""
    found = {name: jnp.zeros_like(w) for name, w in weights.items()}
    for name, a, d in zip(names, factors, moves, strict=True):
        more = gradient(a, d, weights[name], *kind)
        found[name] = found[name].astype(more.dtype) + more
    return found


def split(gates, count):
    """[..., count * H] as ``count`` arrays [..., H]."""
    return tuple(jnp.split(gates, count, -1))
