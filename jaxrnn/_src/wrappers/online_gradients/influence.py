"""Influences: how the states depend on the parameters, carried forward in time.

The influence of a weight on a state is the derivative of each of the state's numbers by each of
the weight's, for each row. Where a number of a weight reaches one unit alone, that is one number
for each of the weight's: the influence has the shape of the weight. A complex state counts as two
real ones, its parts.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.ops.dependence import NOBODY, SEVERAL, joined, labels


class Structure(NamedTuple):
    """Which parameters reach which units of a cell.

    Attributes:
      states: the numbers of the state's arrays that parameters reach, by time.
      parts: for each real part of these, the number of its array.
      weights: the numbers of the parameters' arrays that reach a state in one step.
      owners: for each weight, the unit that each of its numbers reaches, of the weight's shape,
        or of size 1 on axes along which it is the same.
      reached: for each part and each weight, which numbers reach it in one step, shaped alike.
      mixed: the numbers of the states' arrays of which a unit sees others than its own.
    """

    states: tuple
    parts: tuple
    weights: tuple
    owners: tuple
    reached: tuple
    mixed: tuple


def structure(cell, params, features=None):
    """The ``Structure`` of a cell whose every weight reaches its own unit alone.

    Args:
      cell: the cell.
      params: its parameters.
      features: I; None for the first number of features that the parameters fit.

    Raises:
      ValueError: a number of a parameter reaches several units in one step, the cell's initial
        state is made of parameters, or its states have different sizes.
    """
    leaves, tree = jax.tree.flatten(params)
    return _structure(cell, tree, tuple((a.shape, a.dtype) for a in leaves), features)


@functools.lru_cache(64)
def _structure(cell, tree, types, features):
    params = tree.unflatten(jax.ShapeDtypeStruct(*each) for each in types)
    first = jax.make_jaxpr(lambda params: cell.initial_state(params, ()))(params)
    of_params = [label for k in range(len(first.out_avals)) for label in labels(first, k)]
    if any((label != NOBODY).any() for label in of_params):
        raise ValueError(f"online: the initial state of {cell} is made of its parameters")
    state = jax.eval_shape(lambda params: cell.initial_state(params, ()), params)
    closed = _traced(cell, params, state, types, features)
    leaves, count = jax.tree.leaves(state), len(types)
    inexact = [k for k, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.inexact)]
    known = {k: labels(closed, k) for k in inexact}
    touches = lambda k, i: (known[k][i] != NOBODY).any()
    reached = {k for k in inexact if any(touches(k, i) for i in range(count))}
    while more := {k for k in inexact for j in reached if touches(k, count + j)} - reached:
        reached |= more
    states = tuple(sorted(reached))
    shapes = {leaves[k].shape for k in states}
    if len(shapes) > 1:
        raise ValueError(f"online: the states of {cell} have the shapes {shapes}, want one")
    weights = tuple(i for i in range(count) if any(touches(k, i) for k in states))
    owners = [functools.reduce(joined, (known[k][i] for k in states)) for i in weights]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for i, owner in zip(weights, owners):
        if (owner == SEVERAL).any():
            raise ValueError(
                f"online: a number of params{names[i]} of {cell} reaches several units in one"
                " step, want one: only 'uoro' takes such a cell"
            )
    parts = tuple(k for k in states for _ in range(1 + (leaves[k].dtype.kind == "c")))
    own = {j: np.arange(leaves[j].size).reshape(leaves[j].shape) for j in states}
    seen = {j: [known[k][count + j] for k in states] for j in states}
    mixed = [j for j in states if any(((s != NOBODY) & (s != own[j])).any() for s in seen[j])]
    return Structure(
        states,
        parts,
        weights,
        tuple(_narrow(np.maximum(o, 0)) for o in owners),
        tuple(tuple(_narrow(known[k][i] != NOBODY) for i in weights) for k in parts),
        tuple(mixed),
    )


def _traced(cell, params, state, types, features):
    """The jaxpr of a step of one row."""
    sizes = {1, *(n for shape, _ in types for n in shape)} if features is None else {features}
    why = None
    for size in sorted(sizes):
        x = jax.ShapeDtypeStruct((size,), arithmetic(params))
        try:
            return jax.make_jaxpr(lambda *args: cell.step(*args))(params, state, x)
        except (TypeError, ValueError) as error:
            why = error
    assert why is not None  # there is a size at least
    raise why


def _narrow(array):
    """The array with size 1 on axes along which it is the same."""
    for axis in range(array.ndim):
        one = array.take([0], axis) if array.shape[axis] else array
        array = one if (array == one).all() else array
    return array


def parts(found, state):
    """The real parts of the arrays of a state that parameters reach."""
    leaves = jax.tree.leaves(state)
    return tuple(part for k in found.states for part in real_parts(leaves[k]))


def replaced(found, state, new):
    """The state with ``new`` in place of ``parts(found, state)``."""
    leaves, tree = jax.tree.flatten(state)
    new = iter(new)
    for k in found.states:
        leaves[k] = of_parts(leaves[k], new)
    return tree.unflatten(leaves)


def real_parts(a):
    """An array, or the real and the imaginary part of a complex one."""
    return (a.real, a.imag) if jnp.iscomplexobj(a) else (a,)


def of_parts(like, new):
    """What ``real_parts`` took apart, from an iterator."""
    return lax.complex(next(new), next(new)) if jnp.iscomplexobj(like) else next(new)


def zeros(found, params, batch_shape):
    """No influence: [...batch, parts, *shape] for each weight."""
    leaves, dtype = jax.tree.leaves(params), arithmetic(params)
    shape = (*batch_shape, len(found.parts))
    return tuple(jnp.zeros((*shape, *leaves[i].shape), dtype) for i in found.weights)


def immediate(found, step, params, state, x):
    """The influence of the parameters in this step alone.

    Args:
      found: the ``Structure``.
      step: ``(params, state, x) -> state``.
    """
    dtype = arithmetic(params)

    def row(state, x):
        new, pull = jax.vjp(lambda params: parts(found, step(params, state, x)), params)
        each = []
        for k in range(len(new)):  # a weight's number reaches one unit: the sum over all is its
            ones = tuple(jnp.full_like(a, float(j == k)) for j, a in enumerate(new))
            leaves = jax.tree.leaves(pull(ones)[0])
            each.append([leaves[i].astype(dtype) for i in found.weights])
        return tuple(jnp.stack([row[j] for row in each]) for j in range(len(found.weights)))

    for _ in x.shape[:-1]:
        row = jax.vmap(row)
    return row(state, x)


def jacobian(found, step, state):
    """The derivatives of an elementwise ``step(state) -> state``: [to][from], of each unit."""
    given = parts(found, state)
    run = lambda given: parts(found, step(replaced(found, state, given)))
    columns = []
    for k in range(len(given)):
        ones = tuple(jnp.full_like(a, float(j == k)) for j, a in enumerate(given))
        columns.append(jax.jvp(run, (given,), (ones,))[1])
    return [list(row) for row in zip(*columns)]


def carried(found, jacobian, influence):
    """The influence of what came before, a step later."""

    def one(owner, before):
        axis = before.ndim - owner.ndim - 1
        by_part = jnp.moveaxis(before, axis, 0)

        def row(factors):
            return sum(_of_owner(d, owner, axis) * m for d, m in zip(factors, by_part))

        return jnp.stack([row(factors) for factors in jacobian], axis)

    return tuple(map(one, found.owners, influence))


def _of_owner(d, owner, batch):
    """[...batch, *units] -> [...batch, *owner]: each number of a weight has that of its unit."""
    return d.reshape(*d.shape[:batch], -1)[..., owner]


def influenced(found, params, state, influence):
    """The state, whose derivative by the parameters is the influence."""

    @jax.custom_jvp
    def given(weights, parts, influence):
        del weights, influence
        return parts

    @given.defjvp
    def rule(primals, tangents):
        weights, parts, influence = primals
        moved = [_moved(found, k, a, tangents[0], influence) for k, a in enumerate(parts)]
        return parts, tuple(a + t for a, t in zip(moved, tangents[1]))

    leaves = jax.tree.leaves(params)
    weights = tuple(leaves[i] for i in found.weights)
    return replaced(found, state, given(weights, parts(found, state), influence))


def _moved(found, k, state, tangents, influence):
    """How a part of the states moves with the weights."""
    batch = influence[0].ndim - found.owners[0].ndim - 1
    rows = state.shape[:batch]
    total = jnp.zeros((*rows, math.prod(state.shape[batch:])), state.dtype)
    for owner, tangent, m in zip(found.owners, tangents, influence):
        m = lax.index_in_dim(m, k, batch, keepdims=False)
        moved = m * jnp.broadcast_to(tangent.astype(m.dtype), m.shape)
        same = tuple(batch + axis for axis, n in enumerate(owner.shape) if n == 1)
        total = total.at[..., owner.ravel()].add(moved.sum(same).reshape(*rows, owner.size))
    return total.reshape(state.shape)
